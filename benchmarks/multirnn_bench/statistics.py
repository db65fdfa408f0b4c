"""From times to claims: quartiles, bootstrap intervals of ratios, and what changed between two files of results.

A ratio without its interval is no claim: if the interval holds 1, the two count as the same. Intervals are by the
percentile bootstrap (Efron & Tibshirani 1993, chapter 13), seeded, so that one file always gives one answer.
"""

from __future__ import annotations  # or naming np.random.Generator loads numpy.random

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from multirnn.errors import InvalidCall
from multirnn.weights import Array
from multirnn_bench.quantities import count

__all__ = [
    "ComparedResults", "Interval", "RowChange", "compare_results", "geometric_mean", "independent_ratio",
    "paired_ratio", "quartiles", "shared_rounds",
]  # fmt: skip

CONFIDENCE = 0.95
RESAMPLES = 2000  # the ends of an interval then move by less than a tenth of its width from seed to seed
THRESHOLD = 1.05

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and its 95 % confidence interval."""

    value: float
    low: float
    high: float

    @property
    def holds_one(self) -> bool:
        """Whether, as a ratio, it allows that both sides are the same."""
        return self.low <= 1 <= self.high


def quartiles(times: ArrayLike) -> tuple[float, float, float]:
    """The lower quartile, the median and the upper quartile, linearly interpolated."""
    low, median, high = np.quantile(_positive(times), (0.25, 0.5, 0.75))
    return float(low), float(median), float(high)


def paired_ratio(times: ArrayLike, others: ArrayLike, *, seed: int = 0) -> Interval:
    """How many times as long the others took, in seconds of the same rounds: the median of `others / times`.

    For contenders of one run: a slow spell of the machine hits both times of a round and leaves their ratio.
    `InvalidCall` unless both have as many rounds, of positive times.
    """
    times, others = _positive(times), _positive(others)
    if times.shape != others.shape:
        raise InvalidCall(f"paired times are of the same rounds, not of {len(times)} and {len(others)}")
    ratios = others / times
    return _interval(float(np.median(ratios)), np.median(_resampled(ratios, np.random.default_rng(seed)), axis=1))


def independent_ratio(times: ArrayLike, others: ArrayLike, *, seed: int = 0) -> Interval:
    """How many times as long the others took: the ratio of the medians of two runs that share no rounds.

    The bootstrap draws from each side by itself. `InvalidCall` if a time is not positive.
    """
    times, others = _positive(times), _positive(others)
    generator = np.random.default_rng(seed)
    below, above = (np.median(_resampled(side, generator), axis=1) for side in (times, others))
    return _interval(float(np.median(others) / np.median(times)), above / below)


def shared_rounds(row: Row, other: Row) -> tuple[list[float], list[float]]:
    """The seconds of two rows in the rounds that both took part in."""
    one, two = (
        dict(zip(each.get("round_numbers") or range(len(each["rounds"])), each["rounds"], strict=True))
        for each in (row, other)
    )
    shared = sorted(one.keys() & two.keys())
    return [one[number] for number in shared], [two[number] for number in shared]


def geometric_mean(ratios: ArrayLike, *, seed: int = 0) -> Interval:
    """The geometric mean of ratios `(problems,)`, with an interval over their choice; `InvalidCall` unless all are positive."""
    logarithms = np.log(_positive(ratios))
    means = np.mean(_resampled(logarithms, np.random.default_rng(seed)), axis=1)
    return _interval(float(np.exp(np.mean(logarithms))), np.exp(means))


def _positive(times: ArrayLike) -> Array:
    array = np.asarray(times, np.float64)
    if array.ndim != 1 or not array.size or not np.all(np.isfinite(array)) or not np.all(array > 0):
        raise InvalidCall("times and ratios are a list of at least one finite number above zero")
    return array


def _resampled(values: Array, generator: np.random.Generator) -> Array:
    """`(RESAMPLES, len(values))`, drawn with replacement."""
    return values[generator.integers(0, len(values), (RESAMPLES, len(values)))]


def _interval(value: float, resamples: Array) -> Interval:
    low, high = np.quantile(resamples, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return Interval(value, float(low), float(high))


# --- Two files of results --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RowChange:
    """One row in two files."""

    a: Row  # the row of the first file
    b: Row  # its counterpart in the second
    ratio: Interval | None  # time in b over time in a; None unless it was timed in both
    regressed: bool  # b is slower by more than the threshold, with confidence; or it was timed in a alone
    improved: bool  # the reverse

    @property
    def title(self) -> str:
        """The row in words."""
        return _title(self.a)

    @property
    def says(self) -> str:
        """The change in words."""
        if self.ratio is None:
            was, now = (
                f"{row['status']} ({row['reason']})" if row.get("reason") else str(row["status"])
                for row in (self.a, self.b)
            )
            return f"{was}, as before" if was == now else f"was {was}, is {now}"
        interval = f"{self.ratio.low:.2f} to {self.ratio.high:.2f}"
        if self.ratio.holds_one:
            return f"no difference (time × {interval})"
        word = "slower" if self.ratio.value > 1 else "faster"
        by = max(self.ratio.value, 1 / self.ratio.value)
        within = "" if self.regressed or self.improved else ", within the threshold"
        return f"{by:.2f} times {word}{within} (time × {interval})"

    def to_dict(self) -> dict[str, Any]:
        """The change as JSON values, without times."""
        statuses = {"status": [self.a["status"], self.b["status"]]}
        outcome = {"regressed": self.regressed, "improved": self.improved, "says": self.says}
        return {**_named(self.a), **statuses, "ratio": self.ratio and asdict(self.ratio), **outcome}


def _title(row: Row) -> str:
    return f"{row['contender']['name']}, {row['problem']['name']}, {row['mode']}, {count(row['threads'], 'thread')}"


def _named(row: Row) -> dict[str, Any]:
    named = {"problem": row["problem"]["name"], "mode": row["mode"], "threads": row["threads"]}
    return {**named, "contender": row["contender"]["name"], "status": row["status"]}


@dataclass(frozen=True, slots=True)
class ComparedResults:
    """The changes from one file of results to another."""

    changes: tuple[RowChange, ...]  # of rows in both files, in the order of the first
    only_a: tuple[Row, ...]  # rows that the second file lacks
    only_b: tuple[Row, ...]  # rows that the first file lacks
    warnings: tuple[str, ...]  # why the two may not be comparable
    mean: Interval | None  # geometric mean of time in b over time in a, over rows timed in both; None without any
    threshold: float  # factor by which a row may become slower

    @property
    def regressed(self) -> bool:
        """Whether any row is slower beyond the threshold, or no longer timed."""
        return any(change.regressed for change in self.changes)

    def __str__(self) -> str:
        """In words: warnings, slower and faster rows, rows of one file alone, and the mean."""
        worse = [f"{change.title}: {change.says}" for change in self.changes if change.regressed]
        better = [f"{change.title}: {change.says}" for change in self.changes if change.improved]
        rest = len(self.changes) - len(worse) - len(better)
        groups = {
            "Warnings": self.warnings,
            "Slower, or not timed any more": worse,
            "Faster, or timed now": better,
            "Only in the first": [_title(row) for row in self.only_a],
            "Only in the second": [_title(row) for row in self.only_b],
        }
        parts = ["\n".join([name, *(f"  {line}" for line in lines)]) for name, lines in groups.items() if lines]
        whole = f"{len(worse)} slower, {len(better)} faster, {rest} with no difference beyond the threshold of "
        whole += f"{self.threshold:g}."
        if self.mean is not None:
            interval = f"{self.mean.value:.2f}, {self.mean.low:.2f} to {self.mean.high:.2f}"
            same = " (no difference)" if self.mean.holds_one else ""
            whole += f"\nGeometric mean of the time in the second over the first: {interval}{same}."
        return "\n\n".join([*parts, whole])

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {
            "regressed": self.regressed,
            "threshold": self.threshold,
            "warnings": list(self.warnings),
            "mean": self.mean and asdict(self.mean),
            "changes": [change.to_dict() for change in self.changes],
            "only_a": list(map(_named, self.only_a)),
            "only_b": list(map(_named, self.only_b)),
        }


def compare_results(a: Any, b: Any, *, threshold: float = THRESHOLD) -> ComparedResults:
    """Compare a later file of results with an earlier one, row by row.

    A row has regressed when it takes more than `threshold` times as long and the interval of that ratio lies above 1,
    or when it is no longer timed. Two runs share no rounds, so the interval is of independent medians; changes of the
    machine between the runs are not in it, hence the threshold.

    Args:
        a, b: the earlier and the later results, with `header` and `rows`.
        threshold: factor by which a time may grow; at least 1.

    Raises:
        InvalidCall: the threshold is below 1.
    """
    if not threshold >= 1:
        raise InvalidCall(f"threshold is a factor of at least 1, such as {THRESHOLD}, not {threshold!r}")
    rows_a, rows_b = ({_identity(row): row for row in results.rows} for results in (a, b))
    changes = tuple(_change(row, rows_b[name], threshold) for name, row in rows_a.items() if name in rows_b)
    ratios = [change.ratio.value for change in changes if change.ratio is not None]
    return ComparedResults(
        changes=changes,
        only_a=tuple(row for name, row in rows_a.items() if name not in rows_b),
        only_b=tuple(row for name, row in rows_b.items() if name not in rows_a),
        warnings=tuple(_warnings(a, b, changes)),
        mean=geometric_mean(ratios) if ratios else None,
        threshold=threshold,
    )


def _identity(row: Row) -> tuple[Hashable, ...]:
    """The problem counts with all its fields, so that a name reused for another shape pairs nothing."""
    problem = tuple(sorted((name, str(value)) for name, value in row["problem"].items()))
    contender = row["contender"]
    return problem, row["mode"], row["threads"], contender["name"], contender.get("implementation")


def _change(a: Row, b: Row, threshold: float) -> RowChange:
    timed_a, timed_b = (row["status"] == "timed" for row in (a, b))
    if not (timed_a and timed_b):
        return RowChange(a, b, None, regressed=timed_a, improved=timed_b)
    ratio = independent_ratio(a["rounds"], b["rounds"])
    slower, faster = ratio.value > threshold, ratio.value < 1 / threshold
    return RowChange(a, b, ratio, slower and not ratio.holds_one, faster and not ratio.holds_one)


SAME_MACHINE = {"processor": "processor", "cores": "number of cores", "memory_bytes": "memory", "kernel": "kernel"}


def _warnings(a: Any, b: Any, changes: Sequence[RowChange]) -> Iterator[str]:
    here, there = a.header.get("machine", {}), b.header.get("machine", {})
    for name, title in SAME_MACHINE.items():
        if here.get(name) != there.get(name):
            yield f"another {title}: {here.get(name)} in the first, {there.get(name)} in the second"
    versions = [[row["contender"].get("versions") or {} for row in (change.a, change.b)] for change in changes]
    for package in dict.fromkeys(name for one, _ in versions for name in one):
        pairs = {(str(one[package]), str(other.get(package))) for one, other in versions if package in one}
        for was, now in sorted(pairs):
            if was != now:
                yield f"another {package}: {was} in the first, {now} in the second"
    if shaky := [one.title for one in changes if one.ratio and not (one.a["stable"] and one.b["stable"])]:
        yield f"{len(shaky)} of {len(changes)} rows were unstable in one of the two, such as {shaky[0]}"
