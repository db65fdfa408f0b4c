"""Rounds: who is timed when, how often, and for how long."""

import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from multirnn_bench import interference, rounds
from multirnn_bench.interference import Interference, Taken
from multirnn_bench.process import Lost

SILENT = Interference(stolen=lambda: None)


class Sitting:
    """Answers as a process would, and writes down who was asked."""

    def __init__(self, name: str, asked: list[str], lost_after: int = 1000) -> None:
        self.name, self.asked, self.left = name, asked, lost_after

    def ask(self, message: dict[str, Any], cap: float) -> dict[str, Any]:
        if self.left == 0:
            raise Lost("killed", "killed by signal 9")
        self.left -= 1
        self.asked.append(self.name)
        return {"status": "timed", "seconds": 0.1}


def entrants(counts: Sequence[int], asked: list[str], **options: Any) -> list[rounds.Entrant]:
    return [
        rounds.Entrant(Sitting(str(place), asked, **options), rounds.RoundPlan(count, 1))  # type: ignore[arg-type]
        for place, count in enumerate(counts)
    ]


def test_rounds_are_interleaved_and_shuffled() -> None:
    asked: list[str] = []
    taking_part = entrants([9, 9, 9, 9], asked)
    rounds.interleave(taking_part, host=SILENT)
    orders = [tuple(asked[first : first + 4]) for first in range(0, len(asked), 4)]
    assert [sorted(order) for order in orders] == [["0", "1", "2", "3"]] * 9
    assert len(set(orders)) > 3
    assert all(entrant.numbers == list(range(9)) for entrant in taking_part)


def test_who_is_in_few_rounds_has_them_spread_over_all() -> None:
    fast, slow = entrants([9, 3], [])
    rounds.interleave([fast, slow], host=SILENT)
    assert fast.numbers == list(range(9))
    assert slow.numbers == [2, 5, 8]
    assert len(slow.rounds) == 3


def test_who_dies_is_left_out_from_then_on() -> None:
    asked: list[str] = []
    one, other = entrants([5], asked)[0], entrants([5], asked, lost_after=2)[0]
    rounds.interleave([one, other], host=SILENT)
    assert len(one.rounds) == 5
    assert other.lost is not None
    assert (other.lost.status, len(other.rounds)) == ("killed", 2)


class Thief:
    """A host that steals so many seconds in each block, by its number, and a contender that takes as long for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *stolen: float) -> None:
        self.stolen, self.total, self.clock, self.blocks = stolen, 0.0, 0.0, 0
        for module in (rounds, interference):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.clock))

    def __call__(self) -> float:
        return self.total

    def ask(self, message: dict[str, Any], cap: float) -> dict[str, Any]:
        lost = self.stolen[self.blocks] if self.blocks < len(self.stolen) else 0.0
        self.blocks += 1
        self.total += lost
        self.clock += 0.5 + lost
        return {"status": "timed", "seconds": 0.5 + lost}

    def run(self, count: int, rounds_each: int, **options: Any) -> list[rounds.Entrant]:
        taking_part = [rounds.Entrant(self, rounds.RoundPlan(rounds_each, 1)) for _ in range(count)]  # type: ignore[arg-type]
        rounds.interleave(taking_part, host=Interference(stolen=self), **options)
        return taking_part


def test_a_block_in_which_time_was_stolen_is_run_again_and_counts_without(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Thief(monkeypatch, 0, 0.25, 0)
    (entrant,) = host.run(1, 4)
    assert (entrant.rounds, entrant.numbers) == ([0.5] * 4, [0, 1, 2, 3])
    assert entrant.taken == [Taken(0, 0)] * 4
    assert (entrant.again, host.blocks) == (1, 5)


def test_where_every_block_is_disturbed_the_one_counts_with_the_least_stolen(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Thief(monkeypatch, 0.25, 0.125, 0.5, 0.25, 0.25, 0.25)
    (entrant,) = host.run(1, 4)
    # At most half as many blocks as rounds are run again: both in the first round, of which the second try is the best.
    assert entrant.rounds == [0.625, 0.75, 0.75, 0.75]
    assert (entrant.again, host.blocks) == (2, 6)
    assert [taken.stolen for taken in entrant.taken] == pytest.approx([0.2, 1 / 3, 1 / 3, 1 / 3])


def test_who_is_disturbed_has_another_turn_when_all_others_had_theirs() -> None:
    asked: list[str] = []
    taking_part = entrants([3] * 4, asked)
    clock = iter([0.0] * 11 + [0.5] * 1000)  # before and after each block: during the second of the second round
    rounds.interleave(taking_part, host=Interference(stolen=lambda: next(clock)))
    assert [len(asked), asked[8]] == [13, asked[5]]
    assert [entrant.again for entrant in taking_part] == [int(name == asked[5]) for name in "0123"]
    assert all(entrant.numbers == [0, 1, 2] for entrant in taking_part)


def test_when_the_time_is_over_few_blocks_are_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    taking_part = Thief(monkeypatch, *[0.25] * 100).run(4, 11, until=0.0)
    assert sum(entrant.again for entrant in taking_part) == 7  # of 51, which is as much as plans leave
    assert [entrant.again for entrant in Thief(monkeypatch, *[0.25] * 3).run(1, 3, until=0.0)] == [0]


@pytest.mark.parametrize("slow", [8, 9])
def test_who_was_slowed_before_or_after_a_block_has_another_turn(slow: int) -> None:
    asked: list[str] = []
    taking_part = entrants([3] * 4, asked)
    # Before and after each block: at the fifth, the first of its round.
    paces = iter([1.2] * slow + [2.0] + [1.2] * 1000)
    rounds.interleave(taking_part, host=Interference(lambda cores: next(paces), stolen=lambda: None))
    assert [len(asked), asked[8]] == [13, asked[4]]
    assert [entrant.again for entrant in taking_part] == [int(name == asked[4]) for name in "0123"]
    assert all(entrant.taken == [Taken(0, 0)] * 3 for entrant in taking_part)


def test_where_every_block_is_slowed_the_one_counts_that_was_slowed_least() -> None:
    paces = iter([2.0, 1.0, 1.25, 1.6, 4.0, 1.0, 2.0, 1.0])
    (entrant,) = entrants([2], [])
    rounds.interleave([entrant], host=Interference(lambda cores: next(paces), stolen=lambda: None))
    assert [taken.slowed for taken in entrant.taken] == pytest.approx([0.375, 0.75])
    assert entrant.again == 1


@pytest.fixture(autouse=True)
def _stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where processes are stopped while they are not asked."""
    monkeypatch.setattr(rounds, "SETTLING", 0.005)


def test_a_plan_fits_into_the_time_there_is() -> None:
    for seconds in (1e-5, 1e-3, 0.1, 3.0):
        roomy, tight = (rounds.plan(rounds.Estimate(seconds), most) for most in (10.0, 0.0))
        assert 5 == tight.rounds <= roomy.rounds <= 11
        assert roomy.repetitions * seconds >= 0.04
        assert tight.repetitions <= max(1, round(0.02 / seconds))
        if roomy.rounds > 5:
            assert roomy.rounds * roomy.repetitions * seconds <= 10
    assert rounds.plan(rounds.Estimate(1e-5), 10.0).rounds == 11


def test_what_short_calls_leave_of_their_share_is_for_long_ones() -> None:
    calls = [rounds.Estimate(0.2), rounds.Estimate(0.15, 3), rounds.Estimate(0.11)]
    assert [one.rounds for one in rounds.plans(calls, 4.5 / rounds.PLANNED)] == [7, 7, 11]
    assert [one.rounds for one in rounds.plans(calls, float("inf"))] == [11, 11, 11]
    # Late, a long call is timed less often, and a short one never less than five times.
    assert [one.rounds for one in rounds.plans(calls, 0.0)] == [3, 3, 3]
    assert [one.rounds for one in rounds.plans([rounds.Estimate(1e-4), rounds.Estimate(1.1e-4)], 0.0)] == [5, 5]


def test_what_is_far_behind_is_timed_less_often_where_time_is_short() -> None:
    calls = [
        rounds.Estimate(1.0),
        rounds.Estimate(1e-3),
        rounds.Estimate(1.9e-3),
        rounds.Estimate(2.1e-3),
        rounds.Estimate(4e-3, threads=2),
    ]
    assert [one.rounds for one in rounds.plans(calls, 0.0)] == [
        2,
        5,
        5,
        3,
        5,
    ]  # the last is the only one with two threads
    assert [one.rounds for one in rounds.plans(calls, float("inf"))][1:] == [11, 11, 11, 11]
    # What there is beside goes to the others first.
    calls = [rounds.Estimate(0.2), rounds.Estimate(0.3), rounds.Estimate(0.5)]
    assert [one.rounds for one in rounds.plans(calls, 5.1 / rounds.PLANNED)] == [9, 7, 2]
    assert [one.rounds for one in rounds.plans(calls, 9.0 / rounds.PLANNED)] == [11, 11, 6]


def test_what_is_not_planned_is_planned_by_its_first_round_which_counts() -> None:
    asked: list[str] = []
    one, other = (rounds.Entrant(Sitting(name, asked)) for name in "ab")  # type: ignore[arg-type]
    dying = rounds.Entrant(Sitting("c", asked, lost_after=0))  # type: ignore[arg-type]
    rounds.interleave([one, other, dying], host=SILENT, until=time.monotonic())
    assert one.numbers == other.numbers == [0, 1, 2, 3, 4]  # calls of a tenth of a second, without time to spare
    assert len(asked) == 10
    assert dying.lost is not None


def test_a_block_that_is_too_short_is_made_longer() -> None:
    class Quick(Sitting):
        def ask(self, message: dict[str, Any], cap: float) -> dict[str, Any]:
            self.asked.append(message["repetitions"])
            return {"status": "timed", "seconds": 1e-5}

    asked: list[Any] = []
    entrant = rounds.Entrant(Quick("quick", asked), rounds.RoundPlan(3, 2))  # type: ignore[arg-type]
    rounds.interleave([entrant], host=SILENT)
    assert asked == [2, 2000, 2000]
    assert entrant.plan == rounds.RoundPlan(3, 2000)


def test_unstable_is_told_by_the_quartiles() -> None:
    assert rounds.unstable(0.9, 1.0, 1.01)
    assert not rounds.unstable(0.99, 1.0, 1.01)
