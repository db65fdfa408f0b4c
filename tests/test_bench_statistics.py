"""Quartiles, intervals of ratios, and what changed between two files of results."""

import json
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
from multirnn_bench.results import Results
from multirnn_bench.statistics import (
    Interval,
    compare_results,
    geometric_mean,
    independent_ratio,
    paired_ratio,
    quartiles,
)

from multirnn.errors import InvalidCall

PROBLEM = {"name": "small", "cell": "gru", "batch": 3, "time": 7, "input_size": 5, "hidden_size": 11}


def timed(
    name: str = "torch", scale: float = 1.0, noise: float = 0.01, seed: int = 0, **changes: Any
) -> dict[str, Any]:
    """A row of nine rounds around `scale` milliseconds."""
    rounds = 1e-3 * scale * np.exp(np.random.default_rng(seed).normal(0, noise, 9))
    low, median, high = quartiles(rounds)
    contender = {"name": name, "kind": "peer", "implementation": "", "versions": {"torch": "2.13.0"}}
    row = {"kind": "row", "problem": dict(PROBLEM), "mode": "inference", "threads": 1, "contender": contender}
    times = {"rounds": list(rounds), "median": median, "low": low, "high": high, "stable": True}
    return {**row, "status": "timed", "reason": "", **times, **changes}


def results(*rows: dict[str, Any], **machine: Any) -> Results:
    about = {"processor": "a processor", "cores": 2, "memory_bytes": 2**34, "kernel": "Linux 6", **machine}
    return Results({"kind": "header", "version": 1, "table": "smoke", "machine": about}, list(rows))


# --- Intervals -----------------------------------------------------------------------------------------------------------------


def test_quartiles_by_hand() -> None:
    assert quartiles([4.0, 1.0, 3.0, 2.0, 5.0]) == (2.0, 3.0, 4.0)
    assert quartiles([7.0]) == (7.0, 7.0, 7.0)


def test_a_paired_ratio_keeps_what_hits_both_sides_out() -> None:
    drift = np.linspace(1, 3, 9)  # the machine becomes three times slower during the run
    found = paired_ratio(1e-3 * drift, 2e-3 * drift)
    assert (found.value, found.low, found.high) == pytest.approx((2, 2, 2))
    apart = independent_ratio(1e-3 * drift, 2e-3 * drift)
    assert apart.low < 1.9
    assert apart.high > 2.1


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    hits = 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        a, b = np.exp(generator.normal(0, 0.05, (2, 15)))
        interval = paired_ratio(a, 1.3 * b)
        hits += interval.low <= 1.3 <= interval.high
    assert 0.88 <= hits / 200 <= 0.99


def test_equal_times_are_no_difference_and_the_seed_decides() -> None:
    generator = np.random.default_rng(1)
    a, b = np.exp(generator.normal(0, 0.05, (2, 9)))
    assert paired_ratio(a, b).holds_one
    assert not paired_ratio(a, 2 * b).holds_one
    assert paired_ratio(a, b) == paired_ratio(a, b, seed=0)
    assert geometric_mean(a) == geometric_mean(a, seed=0)
    assert geometric_mean(a) != geometric_mean(a, seed=3)


def test_a_geometric_mean_by_hand() -> None:
    found = geometric_mean([1.0, 4.0])
    assert found.value == pytest.approx(2)
    assert (found.low, found.high) == pytest.approx((1, 4))
    assert geometric_mean([1.5]) == Interval(*[pytest.approx(1.5)] * 3)


@pytest.mark.parametrize("times", [[], [1.0, 0.0], [1.0, -1.0], [float("nan")], [float("inf")], [[1.0]]])
@pytest.mark.parametrize("function", [quartiles, geometric_mean, lambda times: independent_ratio([1.0], times)])
def test_what_is_no_list_of_times_is_refused(function: Callable[..., Any], times: Any) -> None:
    with pytest.raises(InvalidCall, match="above zero"):
        function(times)


def test_pairs_are_of_the_same_rounds() -> None:
    with pytest.raises(InvalidCall, match="3 and 2"):
        paired_ratio([1.0, 1.0, 1.0], [1.0, 1.0])


# --- Two files -----------------------------------------------------------------------------------------------------------------


def only(a: dict[str, Any], b: dict[str, Any], **settings: Any) -> Any:
    compared = compare_results(results(a), results(b), **settings)
    assert len(compared.changes) == 1
    assert compared.regressed == compared.changes[0].regressed
    return compared.changes[0]


def test_the_same_file_twice_is_no_difference() -> None:
    file = results(timed("torch"), timed("jax", seed=1))
    compared = compare_results(file, deepcopy(file))
    assert [change.says.partition(" (")[0] for change in compared.changes] == ["no difference"] * 2
    assert not compared.regressed
    assert not any(change.improved for change in compared.changes)
    assert compared.mean == Interval(1, 1, 1)
    assert (compared.only_a, compared.only_b, compared.warnings) == ((), (), ())


def test_a_row_that_became_slower_has_regressed() -> None:
    change = only(timed(), timed(scale=1.3, seed=1))
    assert change.regressed
    assert not change.improved
    assert change.says.startswith("1.3")
    assert "slower" in change.says
    assert change.title == "torch, small, inference, 1 thread"


def test_a_row_that_became_faster_has_not() -> None:
    change = only(timed(), timed(scale=0.7, seed=1))
    assert change.improved
    assert not change.regressed
    assert "faster" in change.says


def test_within_the_threshold_is_said_and_is_no_regression() -> None:
    a, b = timed(noise=0.001), timed(scale=1.03, noise=0.001, seed=1)
    assert not only(a, b).regressed
    assert "within the threshold" in only(a, b).says
    assert only(a, b, threshold=1.01).regressed


def test_a_large_ratio_that_is_not_certain_is_no_regression() -> None:
    # Half of the rounds of each side are ten times slower: the medians differ, and mean nothing.
    a = timed(rounds=[1.0, 1.0, 1.0, 1.0, 1.0, 10.0, 10.0, 10.0, 10.0])
    b = timed(rounds=[1.0, 1.0, 1.0, 1.0, 10.0, 10.0, 10.0, 10.0, 10.0])
    change = only(a, b)
    assert change.ratio.value == pytest.approx(10)
    assert not change.regressed
    assert change.says.startswith("no difference")


@pytest.mark.parametrize("status", ["wrong", "failed", "killed", "refused", "slow"])
def test_a_row_that_is_not_timed_any_more_has_regressed(status: str) -> None:
    gone = timed(status=status, reason="because", rounds=[], median=None, stable=None)
    change = only(timed(), gone)
    assert change.regressed
    assert change.ratio is None
    assert change.says == f"was timed, is {status} (because)"
    assert only(gone, timed()).improved
    assert only(gone, gone).says == f"{status} (because), as before"
    assert not only(gone, gone).regressed


def test_rows_of_one_file_only_are_listed() -> None:
    other = timed()
    other["problem"] = PROBLEM | {"hidden_size": 13}  # the same name, another problem
    compared = compare_results(results(timed()), results(other))
    assert compared.changes == ()
    assert compared.mean is None
    assert [row["problem"]["hidden_size"] for row in compared.only_a] == [11]
    assert [row["problem"]["hidden_size"] for row in compared.only_b] == [13]
    assert not compared.regressed


@pytest.mark.parametrize(
    "change",
    [{"mode": "training"}, {"threads": 2}, {"contender": timed("jax")["contender"]}],
    ids=lambda one: next(iter(one)),
)
def test_what_pairs_rows(change: dict[str, Any]) -> None:
    assert compare_results(results(timed()), results(timed(**change))).changes == ()


def test_another_machine_or_version_is_warned_about() -> None:
    newer = timed()
    newer["contender"] = newer["contender"] | {"versions": {"torch": "2.14.0"}}
    compared = compare_results(results(timed()), results(newer, processor="another", cores=2))
    assert compared.warnings == (
        "another processor: a processor in the first, another in the second",
        "another torch: 2.13.0 in the first, 2.14.0 in the second",
    )
    shaky = compare_results(results(timed()), results(timed(stable=False)))
    assert "1 of 1 rows were unstable" in shaky.warnings[0]


def test_it_is_values_of_json() -> None:
    compared = compare_results(
        results(timed(), timed("jax")), results(timed(scale=2), timed("jax", status="failed", reason="x"))
    )
    written = json.loads(json.dumps(compared.to_dict(), allow_nan=False))
    assert written["regressed"] is True
    assert [one["regressed"] for one in written["changes"]] == [True, True]


def test_it_is_said_in_words() -> None:
    exact = {"noise": 1e-9}
    before = results(timed("torch", **exact), timed("jax", **exact), timed("keras"), timed("onnxruntime"))
    after = results(
        timed("torch", scale=2, **exact),
        timed("jax", scale=0.5, **exact),
        timed("keras", seed=1),
        timed("numpy"),
        cores=4,
    )
    assert str(compare_results(before, after)).splitlines()[:11] == [
        "Warnings",
        "  another number of cores: 2 in the first, 4 in the second",
        "",
        "Slower, or not timed any more",
        "  torch, small, inference, 1 thread: 2.00 times slower (time × 2.00 to 2.00)",
        "",
        "Faster, or timed now",
        "  jax, small, inference, 1 thread: 2.00 times faster (time × 0.50 to 0.50)",
        "",
        "Only in the first",
        "  onnxruntime, small, inference, 1 thread",
    ]
    text = str(compare_results(before, before))
    assert text.startswith("0 slower, 0 faster, 4 with no difference beyond the threshold of 1.05.")
    assert "1.00, 1.00 to 1.00 (no difference)" in text


def test_the_threshold_is_a_factor() -> None:
    with pytest.raises(InvalidCall, match=r"at least 1, such as 1\.05, not 0\.05"):
        compare_results(results(), results(), threshold=0.05)
