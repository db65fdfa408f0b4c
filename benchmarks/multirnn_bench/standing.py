"""The ranking: who is fastest, by how much, and what was not timed.

A `View` is one mode with one number of threads: the rows whose times may be compared. Only verified and timed rows take
part; the others are counted and keep their reasons.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from multirnn.protocol import MODES
from multirnn_bench.quantities import count
from multirnn_bench.statistics import Interval, geometric_mean, independent_ratio, paired_ratio

__all__ = ["Duel", "Standing", "View", "duel_mean", "label", "reasons", "views"]

Row = Mapping[str, Any]


def label(row: Row) -> str:
    """The name of a row's contender."""
    return str(row["contender"]["name"])


@dataclass(frozen=True)
class Duel:
    """The best of ours against the best peer on one problem.

    Attributes:
        problem: its name.
        ours: the row of the fastest of our realisations.
        peer: the row of the fastest peer.
        ratio: how many times as long the peer takes.
    """

    problem: str
    ours: Row
    peer: Row
    ratio: Interval


@dataclass(frozen=True)
class Standing:
    """One contender in one view.

    Attributes:
        name: of the contender.
        kind: "ours" or "peer".
        rows: all of its rows.
        timed: its timed rows.
        wins: the number of problems on which it is the fastest.
        behind: geometric mean of its time over the best time of each problem; None without a timed row.
        share: the median of its shares of the limit; None without a timed row.
        error: the largest error of its timed rows, in eps.
    """

    name: str
    kind: str
    rows: tuple[Row, ...]
    timed: tuple[Row, ...]
    wins: int
    behind: Interval | None
    share: float | None
    error: float | None


@dataclass(frozen=True, eq=False)
class View:
    """The rows of one mode and one number of threads."""

    mode: str
    threads: int
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        """The view in words."""
        return f"{self.mode}, {count(self.threads, 'thread')}"

    @cached_property
    def problems(self) -> Mapping[str, Mapping[str, Row]]:
        """The rows by problem and contender, in the order of the file."""
        found: dict[str, dict[str, Row]] = {}
        for row in self.rows:
            found.setdefault(row["problem"]["name"], {})[label(row)] = row
        return found

    @cached_property
    def best(self) -> Mapping[str, Row]:
        """The fastest row of each problem with a timed row."""
        timed = {problem: _timed(rows.values()) for problem, rows in self.problems.items()}
        return {problem: min(rows, key=_median) for problem, rows in timed.items() if rows}

    def behind(self, row: Row) -> float:
        """The time of a row over the fastest time of its problem."""
        return _median(row) / _median(self.best[row["problem"]["name"]])

    @cached_property
    def duels(self) -> tuple[Duel, ...]:
        """The best of ours against the best peer, on each problem timed by both sides."""
        return tuple(self._duels())

    def _duels(self) -> Iterator[Duel]:
        for problem, rows in self.problems.items():
            sides = [
                [row for row in _timed(rows.values()) if row["contender"]["kind"] == kind] for kind in ("ours", "peer")
            ]
            if all(sides):
                ours, peer = (min(side, key=_median) for side in sides)
                yield Duel(problem, ours, peer, _ratio(ours, peer))

    @cached_property
    def standings(self) -> tuple[Standing, ...]:
        """All contenders, those with the most wins first, then those least behind."""
        made = [self._standing(name) for name in dict.fromkeys(map(label, self.rows))]
        far = float("inf")
        return tuple(sorted(made, key=lambda one: (-one.wins, one.behind.value if one.behind else far)))

    def _standing(self, name: str) -> Standing:
        rows = tuple(row for row in self.rows if label(row) == name)
        timed = tuple(_timed(rows))
        shares = sorted(row["share"] for row in timed if row.get("share") is not None)
        errors = [row["error_eps"] for row in timed if row.get("error_eps") is not None]
        return Standing(
            name=name,
            kind=rows[0]["contender"]["kind"],
            rows=rows,
            timed=timed,
            wins=sum(label(row) == name for row in self.best.values()),
            behind=geometric_mean([self.behind(row) for row in timed]) if timed else None,
            share=shares[len(shares) // 2] if shares else None,
            error=max(errors, default=None),
        )


def views(rows: Sequence[Row]) -> tuple[View, ...]:
    """The rows as views, by mode and then by threads."""
    found: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        found.setdefault((row["mode"], row["threads"]), []).append(row)
    order = {mode: place for place, mode in enumerate(MODES)}
    names = sorted(found, key=lambda name: (order.get(name[0], len(order)), name[1]))
    return tuple(View(mode, threads, tuple(found[mode, threads])) for mode, threads in names)


def duel_mean(duels: Sequence[Duel]) -> Interval | None:
    """The geometric mean over problems of the best peer's time over ours; None without a duel."""
    return geometric_mean([duel.ratio.value for duel in duels]) if duels else None


def reasons(rows: Sequence[Row]) -> Mapping[tuple[str, str, str], tuple[Row, ...]]:
    """The rows that were not timed, by contender, status and reason."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row["status"] != "timed":
            found.setdefault((label(row), row["status"], row.get("reason") or "no reason was given"), []).append(row)
    return {name: tuple(grouped) for name, grouped in found.items()}


def _ratio(row: Row, other: Row) -> Interval:
    """The time of the other over that of the row, by shared rounds; by medians if fewer than three are shared."""
    times, others = (
        dict(zip(one.get("round_numbers") or range(len(one["rounds"])), one["rounds"], strict=True))
        for one in (row, other)
    )
    shared = sorted(set(times) & set(others))
    if len(shared) < FEWEST:
        return independent_ratio(row["rounds"], other["rounds"])
    return paired_ratio([times[number] for number in shared], [others[number] for number in shared])


FEWEST = 3


def _timed(rows: Any) -> list[Row]:
    return [row for row in rows if row["status"] == "timed"]


def _median(row: Row) -> float:
    return float(row["median"])
