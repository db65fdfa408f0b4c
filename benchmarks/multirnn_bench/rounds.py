"""Interleaved rounds: each times every contender once, in a shuffled order, so that drift hits all alike.

The length of a block of calls and the number of rounds are planned from the available time. Contenders far behind the
fastest are timed less often. A disturbed block is repeated at the end of its round; the try with less interference
counts, whatever its time.
"""

import math
import random
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from multirnn_bench.interference import TAKEN, Interference, Taken
from multirnn_bench.process import RESTS, Lost, Process

__all__ = ["ALLOWANCE", "ROUNDS", "Entrant", "Estimate", "RoundPlan", "interleave", "plan", "plans", "unstable"]

ROUNDS = (5, 11)
LONGER = 3  # rounds of a long call, unless there is time for more; each outlasts ten blocks
LONG = 0.1  # seconds of a call
FAR = 2.0  # times the fastest, beyond which a percent does not matter
FEWER = {ROUNDS[0]: 3, LONGER: 2}  # rounds of contenders that far behind, unless there is time for more
BLOCK = (0.02, 0.05)  # seconds; 20 ms hold several calls, and medians of 50 ms differ by 1 %
TOO_SHORT = 0.005  # seconds of a block
# Seconds of calls before a block, for caches and the core's clock to settle, and for the spinning threads of the
# previous contender to sleep, unless they are stopped: ONNX Runtime's spin for 2^20 pauses, up to 58 ms.
SETTLING = 0.005 if RESTS else 0.06
WATCHING = 0.004  # seconds around a block, to wake the process and measure interference
ALLOWANCE = 5.0  # seconds of one contender on one problem, in a run without a time limit
AGAIN = 0.5  # blocks that may be repeated, as a share of a contender's rounds
PLANNED = 0.85  # of the available time, for rounds; the rest is for repeated blocks
SPREAD = 0.1


@dataclass(frozen=True)
class RoundPlan:
    """How one contender is timed on one problem: its rounds, and the calls in each block."""

    rounds: int
    repetitions: int


class Estimate(NamedTuple):
    """The input of a plan."""

    seconds: float  # of one call
    boundaries: int = 0  # rounds in which the call from NumPy to NumPy is timed too
    threads: int = 1


def plan(call: Estimate, allowance: float = ALLOWANCE, fewest: int = ROUNDS[0]) -> RoundPlan:
    """The plan for a contender with `allowance` seconds for all rounds; the fewest rounds run in any case."""
    shortest, longest = BLOCK
    block = min(max(allowance / (7 + call.boundaries) - SETTLING, shortest), longest)
    repetitions = max(1, round(block / call.seconds))
    fit = int(allowance / (WATCHING + SETTLING + repetitions * call.seconds)) - call.boundaries
    return RoundPlan(min(max(fit, fewest), ROUNDS[1]), repetitions)


def plans(calls: Sequence[Estimate], budget: float) -> list[RoundPlan]:
    """Plans for contenders timed together: the time that a short call leaves of its share goes to the longer ones.

    A contender more than `FAR` times as slow as the fastest with as many threads gets what all others leave. The budget
    (seconds) includes repeated blocks. The fewest rounds run in any case: five, three of long calls, and one or two
    fewer of contenders far behind.
    """
    budget = min(PLANNED * budget, ALLOWANCE * len(calls))
    fastest = {call.threads: call.seconds for call in sorted(calls, reverse=True)}
    far = [call.seconds > FAR * fastest[call.threads] for call in calls]
    fewest = [LONGER if call.seconds > LONG else ROUNDS[0] for call in calls]
    fewest = [FEWER[rounds] if behind else rounds for rounds, behind in zip(fewest, far, strict=True)]
    made = [plan(call, 0.0, rounds) for call, rounds in zip(calls, fewest, strict=True)]
    left = sorted(range(len(calls)), key=lambda place: (far[place], calls[place]))
    while left:
        alike = [place for place in left if far[place] == far[left[0]]]
        kept = sum(_cost(made[place], calls[place]) for place in left[len(alike) :])  # of those far behind
        first = left.pop(0)
        made[first] = plan(calls[first], max(budget - kept, 0.0) / len(alike), fewest[first])
        budget -= _cost(made[first], calls[first])
    return made


def _cost(planned: RoundPlan, call: Estimate) -> float:
    return (planned.rounds + call.boundaries) * (WATCHING + SETTLING + planned.repetitions * call.seconds)


UNPLANNED = RoundPlan(0, 1)


@dataclass
class Entrant:
    """A verified contender and its times on one problem."""

    process: Process
    plan: RoundPlan = UNPLANNED  # then planned by `seconds`, or by the first round
    threads: int = 1
    boundaries: int = 0  # the first rounds, in which the call from NumPy to NumPy is timed too
    cap: float = 60.0  # seconds that one answer may take
    seconds: float | None = None  # estimate of one call; None for long calls
    rounds: list[float] = field(default_factory=list)  # seconds of a call, one for each round that it took part in
    numbers: list[int] = field(default_factory=list)  # of those rounds
    taken: list[Taken] = field(default_factory=list)  # interference during each of those blocks
    again: int = 0  # repeated blocks
    through: list[tuple[float, float]] = field(default_factory=list)  # from NumPy to NumPy, and the call beside it
    lost: Lost | None = None

    def takes_part(self, number: int, of: int, after: int = 0) -> bool:
        """Whether it takes part in this round: in the first `after` always, then in rounds spread evenly."""
        number, of, own = number - after, of - after, self.plan.rounds - after
        return number < 0 or (number + 1) * own // of > number * own // of

    def run(self) -> float | None:
        """The seconds of a call, and of one from NumPy to NumPy the first times; None if the contender is lost."""
        try:
            seconds: float = self._block("call")["seconds"]
            if len(self.through) < self.boundaries:
                answer = self._block("boundary")
                self.through.append((answer["seconds"], *answer["beside"]))
        except Lost as lost:
            self.lost = lost
            return None
        if seconds * self.plan.repetitions < TOO_SHORT:  # the estimate was disturbed
            self.plan = replace(self.plan, repetitions=math.ceil(BLOCK[0] / seconds))
        return seconds

    def _block(self, what: str) -> dict[str, Any]:
        message = {"do": "time", "repetitions": self.plan.repetitions, "settle": SETTLING, "what": what}
        answer = self.process.ask(message, self.cap)
        if answer["status"] != "timed":
            raise Lost(answer["status"], answer["reason"])
        return answer

    def count(self, number: int, seconds: float, taken: Taken) -> None:
        """Keep the time of a block, unless an earlier one of the same round had less interference."""
        if self.numbers[-1:] != [number]:
            self.numbers.append(number)
            self.rounds.append(seconds)
            self.taken.append(taken)
        elif taken.most < self.taken[-1].most:
            self.rounds[-1], self.taken[-1] = seconds, taken


def interleave(
    entrants: Sequence[Entrant], seed: int = 0, host: Interference | None = None, until: float = math.inf
) -> None:
    """Run all rounds; fills the entrants, of which all are planned, or all estimated, or none.

    `until` is by `time.monotonic`: after it, blocks are repeated only within the share of time that plans leave free.
    Without a `host`, interference is the reported steal time alone.
    """
    host = host or Interference()
    rng = random.Random(seed)  # noqa: S311  # an order, no secret
    if all(one.seconds is not None for one in entrants):
        _plan(entrants, until - time.monotonic())
    unplanned = int(any(one.plan is UNPLANNED for one in entrants))  # rounds before there are plans
    number, total = 0, unplanned or _longest(entrants)
    begun, repeated = time.monotonic(), 0.0
    while number < total:
        order = [one for one in entrants if one.lost is None and one.takes_part(number, total, unplanned)]
        rng.shuffle(order)
        queue = deque(order)
        while queue:
            entrant = queue.popleft()
            start, watched = time.monotonic(), host.watch(entrant.threads)
            if (seconds := entrant.run()) is None:
                continue
            taken, now = watched(), time.monotonic()
            entrant.count(number, seconds, taken)
            in_time = now < until or repeated + now - start < (1 - PLANNED) * (now - begun)
            if taken.most > TAKEN and in_time and entrant.again < AGAIN * max(entrant.plan.rounds, 1):
                entrant.again += 1
                repeated += now - start
                queue.append(entrant)
        number += 1
        if number == unplanned:
            _plan([one for one in entrants if one.lost is None], until - time.monotonic())
            total = _longest(entrants)


def _plan(entrants: Sequence[Entrant], budget: float) -> None:
    calls = [Estimate(one.seconds or one.rounds[0], one.boundaries, one.threads) for one in entrants]
    for entrant, planned in zip(entrants, plans(calls, budget), strict=True):
        entrant.plan = planned


def _longest(entrants: Sequence[Entrant]) -> int:
    return max((entrant.plan.rounds for entrant in entrants), default=0)


def unstable(low: float, median: float, high: float) -> bool:
    """Whether the middle half of the rounds is spread over more than a tenth of their median."""
    return (high - low) / median > SPREAD
