"""Interleaved rounds: in each, every contender is timed once, in a shuffled order, so that drift hits all alike.

Those with one number of threads are timed after each other, since a process with several leaves them spinning.

How long a block of calls lasts and how many rounds there are is planned from the time that there is. What is far behind
the fastest is timed less often. A round in which the host gave too much of the cores to others is run again.
"""

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from multirnn.bench.machine import steal
from multirnn.bench.process import Lost, Process

__all__ = ["ALLOWANCE", "Call", "Entrant", "Plan", "interleave", "plan", "plans", "unstable"]

ROUNDS = (5, 11)
LONGER = 3  # rounds of a long call, unless there is time for more; each lasts more than ten blocks
LONG = 0.1  # seconds of a call
FAR = 2.0  # times the fastest, from which on nobody asks how far to the percent
FEWER = {ROUNDS[0]: 3, LONGER: 2}  # rounds of what is so far behind, unless there is time for more
BLOCK = (0.01, 0.05)  # seconds; the clock costs 0.1 µs, and a block of 10 ms differs from one of 50 by 1 %
TOO_SHORT = 0.005  # seconds of a block
BOUNDARIES = 3
SETTLING = 0.02  # seconds; GNU OpenMP's threads spin for 300 000 pauses, 17 ms, before they sleep
SETTLING_ALONE = 0.005  # after a process without a second thread, only caches and the clock of the core have to settle
ALLOWANCE = 5.0  # seconds of one contender on one problem, where nothing limits the run
STEAL = 0.01
AGAIN = 0.5  # of the rounds may be run again
SPREAD = 0.1


@dataclass(frozen=True)
class Plan:
    """How one contender is timed on one problem: how many rounds it is in, and calls in each of its blocks."""

    rounds: int
    repetitions: int


def plan(seconds: float, allowance: float = ALLOWANCE, *, boundary: bool = False, fewest: int = ROUNDS[0]) -> Plan:
    """The plan for a contender.

    Args:
        seconds: of one call of it, about.
        allowance: how many it may take in all; the fewest rounds are run even so.
        boundary: whether the call from NumPy to NumPy is timed too, in the first `BOUNDARIES` rounds.
        fewest: rounds.
    """
    more = BOUNDARIES if boundary else 0
    shortest, longest = BLOCK
    block = min(max(allowance / (7 + more) - SETTLING, shortest), longest)
    repetitions = max(1, round(block / seconds))
    fit = int(allowance / (SETTLING + repetitions * seconds)) - more
    return Plan(min(max(fit, fewest), ROUNDS[1]), repetitions)


class Call(NamedTuple):
    """What a plan depends on.

    Attributes:
        seconds: of one call, about.
        boundary: whether the call from NumPy to NumPy is timed too.
        threads: of the process.
    """

    seconds: float
    boundary: bool = False
    threads: int = 1


def plans(calls: Sequence[Call], budget: float) -> list[Plan]:
    """The plans of all that are timed together: what a short call leaves of its share is for the longer ones.

    Args:
        calls: one a contender.
        budget: seconds of all rounds of all of them. The fewest rounds are run even so: five, of long calls three, and
            one or two less of what takes more than `FAR` times as long as the fastest with as many threads.
    """
    made: dict[int, Plan] = {}
    budget = min(budget, ALLOWANCE * len(calls))
    fastest = {call.threads: call.seconds for call in sorted(calls, reverse=True)}
    for place in sorted(range(len(calls)), key=lambda place: calls[place]):
        seconds, more, threads = calls[place]
        allowance = max(budget, 0.0) / (len(calls) - len(made))
        fewest = LONGER if seconds > LONG else ROUNDS[0]
        if seconds > FAR * fastest[threads]:
            fewest = FEWER[fewest]
        made[place] = plan(seconds, allowance, boundary=more, fewest=fewest)
        budget -= _cost(made[place], seconds, more)
    return [made[place] for place in range(len(calls))]


def _cost(planned: Plan, seconds: float, boundary: bool) -> float:
    """The seconds that a plan takes."""
    return (planned.rounds + BOUNDARIES * boundary) * (SETTLING + planned.repetitions * seconds)


UNPLANNED = Plan(0, 1)


@dataclass
class Entrant:
    """A contender that has been verified on a problem, and what it is found to take.

    Attributes:
        process: where it waits.
        plan: how it is timed; unless given, by what its first call takes.
        threads: of the process.
        boundary: whether the call from NumPy to NumPy is timed too.
        cap: seconds that one answer may take.
        rounds: seconds of a call, one a round that it was in.
        numbers: of those rounds.
        boundaries: seconds of a call from NumPy to NumPy, of the first rounds.
        lost: why there are no more.
    """

    process: Process
    plan: Plan = UNPLANNED
    threads: int = 1
    boundary: bool = False
    cap: float = 60.0
    rounds: list[float] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    boundaries: list[float] = field(default_factory=list)
    lost: Lost | None = None

    def takes_part(self, number: int, of: int, after: int = 0) -> bool:
        """Whether it is in this round: in the first so many, and its others are spread evenly over those that follow."""
        number, of, own = number - after, of - after, self.plan.rounds - after
        return number < 0 or (number + 1) * own // of > number * own // of

    def run(self, number: int, settle: float) -> None:
        """Time one block after so many seconds of settling, and one from NumPy to NumPy in the first rounds."""
        common = {"do": "time", "repetitions": self.plan.repetitions}
        try:
            answer = self.process.ask({**common, "what": "call", "settle": settle}, self.cap)
            if self.boundary and len(self.boundaries) < BOUNDARIES and answer["status"] == "timed":
                through = self.process.ask({**common, "what": "boundary", "settle": SETTLING_ALONE}, self.cap)
                if through["status"] != "timed":
                    answer = through
                else:
                    self.boundaries.append(through["seconds"])
        except Lost as lost:
            self.lost = lost
            return
        if answer["status"] != "timed":
            self.lost = Lost(answer["status"], answer["reason"])
            return
        self.rounds.append(answer["seconds"])
        self.numbers.append(number)
        if answer["seconds"] * self.plan.repetitions < TOO_SHORT:  # it was estimated while something disturbed it
            self.plan = replace(self.plan, repetitions=math.ceil(BLOCK[0] / answer["seconds"]))

    def forget(self, number: int) -> None:
        """Take back what the round gave."""
        if self.numbers and self.numbers[-1] == number:
            self.numbers.pop()
            self.rounds.pop()


def interleave(
    entrants: Sequence[Entrant],
    seed: int = 0,
    stolen: Callable[[], float | None] = steal,
    cores: int = 1,
    until: float = math.inf,
) -> tuple[float | None, int]:
    """Run all rounds; fills the entrants.

    Args:
        entrants: who takes part, all planned or none; one that is lost is left out from then on.
        seed: of the order in each round.
        stolen: seconds that the host has given to others until now; None if not told.
        cores: among which they are counted.
        until: by `time.monotonic`; no round is run again any more, and what is not planned has until then.

    Returns:
        the share of the cores' time that was stolen in the rounds that count, None if not told; and how many rounds were
        run again because it was above `STEAL`.
    """
    rng = random.Random(seed)  # noqa: S311  # an order, no secret
    unplanned = int(
        any(entrant.plan is UNPLANNED for entrant in entrants)
    )  # the rounds that are run before there are plans
    total = unplanned or _longest(entrants)
    again, taken, spent = 0, 0.0, 0.0
    number = last = 0
    told = stolen() is not None
    while number < total:
        order = [one for one in entrants if one.lost is None and one.takes_part(number, total, unplanned)]
        turns = {entrant.threads: rng.random() for entrant in entrants}
        rng.shuffle(order)
        order.sort(key=lambda entrant: turns[entrant.threads])
        before, start = stolen(), time.monotonic()
        for entrant in order:
            entrant.run(number, SETTLING if last > 1 else SETTLING_ALONE)
            last = entrant.threads
        lasted = (time.monotonic() - start) * cores
        lost = (stolen() or 0.0) - (before or 0.0)
        # The kernel counts in hundredths of a second: one of them says nothing about a short round.
        if lost > max(STEAL * lasted, 0.015) and again < AGAIN * total and time.monotonic() < until:
            again += 1
            for entrant in order:
                entrant.forget(number)
            continue
        taken, spent = taken + lost, spent + lasted
        number += 1
        if number == unplanned:
            _plan_by_the_first(entrants, until - time.monotonic())
            total = _longest(entrants)
    return (taken / spent if told and spent else None), again


def _plan_by_the_first(entrants: Sequence[Entrant], budget: float) -> None:
    left = [entrant for entrant in entrants if entrant.lost is None]
    calls = [Call(entrant.rounds[0], entrant.boundary, entrant.threads) for entrant in left]
    for entrant, planned in zip(left, plans(calls, budget), strict=True):
        entrant.plan = planned


def _longest(entrants: Sequence[Entrant]) -> int:
    return max((entrant.plan.rounds for entrant in entrants), default=0)


def unstable(low: float, median: float, high: float) -> bool:
    """Whether the middle half of the rounds is spread over more than a tenth of their median."""
    return (high - low) / median > SPREAD
