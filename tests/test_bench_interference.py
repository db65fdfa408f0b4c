"""What the host takes: the time that it tells, and the pace that it does not."""

import os
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from multirnn_bench import interference
from multirnn_bench.interference import FIRST, TAKEN, Interference, Pace, Taken
from multirnn_bench.machine import allowed_cores


def test_a_tick_is_much_of_a_short_block_and_little_of_a_long_one() -> None:
    assert interference.stolen_share(1.0, 1.01, 0.05, 2) == pytest.approx(0.1)
    assert interference.stolen_share(1.0, 1.01, 0.2, 2) > TAKEN > interference.stolen_share(1.0, 1.01, 0.3, 2)
    assert interference.stolen_share(None, None, 0.05, 2) == 0


def test_what_computations_differ_by_themselves_is_not_taken() -> None:
    assert interference.slowed_share(0.9) == interference.slowed_share(1.25) == 0
    assert interference.slowed_share(2.0) == 0.5


def test_the_larger_of_what_was_told_and_what_was_seen_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, stolen, paces = iter([0.0, 4.0] * 2), iter([5.0, 5.0, 5.0, 8.0]), iter([1.0, 2.0, 2.0, 1.1])
    monkeypatch.setattr(interference, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    watching = Interference(lambda cores: next(paces), lambda: next(stolen))
    assert (slowed := watching.watch(1)()) == Taken(stolen=0, slowed=0.5)
    assert (robbed := watching.watch(1)()) == Taken(stolen=0.75, slowed=0.5)
    assert (slowed.most, robbed.most) == (0.5, 0.75)


@pytest.fixture
def pace() -> Iterator[Pace]:
    made = Pace()
    yield made
    made.end()


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the computation takes on each core."""
    taken = [1.0] * len(allowed_cores())
    cores = iter(range(len(taken)))

    def computation() -> Callable[[], float]:
        core = next(cores)
        return lambda: taken[core]

    monkeypatch.setattr(interference, "_computation", computation)
    return taken


def test_pace_is_of_the_slowest_core_and_against_the_usual(pace: Pace, seconds: list[float]) -> None:
    assert [pace(1) for _ in range(FIRST)] == [1.0] * FIRST
    seconds[0] = 1.75
    assert pace(1) == 1.75
    assert pace(1) == 1.75  # what is slow for a while is not the usual


@pytest.mark.skipif(len(allowed_cores()) < 2, reason="two cores are needed")
def test_pace_knows_the_usual_of_each_number_of_cores(pace: Pace, seconds: list[float]) -> None:
    seconds[1] = 3.0
    assert (pace(1), pace(2)) == (1.0, 1.0)
    seconds[1] = 6.0
    assert (pace(1), pace(2)) == (1.0, 2.0)


def test_a_computation_takes_about_as_long_as_usual_on_the_cores_that_are_asked_for(pace: Pace) -> None:
    cores = len(allowed_cores()[:2])
    paces = sorted(pace(cores) for _ in range(50))
    assert 0.5 < paces[len(paces) // 2] < 2
    assert len(pace._cores) == cores
    if hasattr(os, "sched_getaffinity"):
        where = [thread.submit(os.sched_getaffinity, 0).result() for thread, _ in pace._cores]
        assert where == [{core} for core in allowed_cores()[:cores]]
        assert len(os.sched_getaffinity(0)) == len(allowed_cores())  # this thread is bound to none


def test_a_pace_that_is_ended_leaves_no_thread() -> None:
    before = threading.active_count()
    pace = Pace()
    pace(1)
    assert threading.active_count() == before + 1
    pace.end()
    pace.end()
    assert threading.active_count() == before
