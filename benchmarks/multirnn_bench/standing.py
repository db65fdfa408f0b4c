"""The ranking: who is fastest, by how much, and what was not timed.

Only verified and timed rows take part; the others are counted and keep their reasons.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import Any

from multirnn.protocol import MODES
from multirnn_bench.quantities import count
from multirnn_bench.statistics import Interval, geometric_mean, independent_ratio, paired_ratio, shared_rounds

__all__ = ["Duel", "Row", "Standing", "View", "label", "reasons", "views"]

Row = dict[str, Any]
FEWEST = 3  # shared rounds for a paired ratio

_median = itemgetter("median")


def label(row: Mapping[str, Any]) -> str:
    """The name of a row's contender."""
    return str(row["contender"]["name"])


@dataclass(frozen=True)
class Duel:
    """The fastest row of ours and of the peers on one problem; the ratio is the peer's time over ours."""

    problem: str
    ours: Row
    peer: Row

    @cached_property
    def ratio(self) -> Interval:
        """By shared rounds; by medians if fewer than three are shared."""
        shared = shared_rounds(self.ours, self.peer)
        if len(shared[0]) < FEWEST:
            return independent_ratio(self.ours["rounds"], self.peer["rounds"])
        return paired_ratio(*shared)


@dataclass(frozen=True)
class Standing:
    """One contender in one view."""

    name: str  # of the contender
    rows: Sequence[Row]  # all of its rows
    timed: Sequence[Row]  # its timed rows
    wins: int  # the number of problems on which it is the fastest
    behind: Interval | None  # geometric mean of its time over the best time of each problem; None without a timed row
    share: float | None  # the median of its shares of the limit; None without a timed row
    error: float | None  # the largest error of its timed rows, in eps


@dataclass(frozen=True, eq=False)
class View:
    """The rows of one mode and one number of threads: those whose times may be compared."""

    mode: str
    threads: int
    rows: Sequence[Row]

    @property
    def title(self) -> str:
        """The view in words."""
        return f"{self.mode}, {count(self.threads, 'thread')}"

    @cached_property
    def problems(self) -> dict[str, dict[str, Row]]:
        """The rows by problem and contender, in the order of the file."""
        found: dict[str, dict[str, Row]] = {}
        for row in self.rows:
            found.setdefault(row["problem"]["name"], {})[label(row)] = row
        return found

    @cached_property
    def timed(self) -> list[Row]:
        """The rows with a time."""
        return _timed(self.rows)

    @cached_property
    def reasons(self) -> dict[tuple[str, str, str], list[Row]]:
        """See `reasons`."""
        return reasons(self.rows)

    @cached_property
    def best(self) -> dict[str, Row]:
        """The fastest row of each problem with a timed row."""
        timed = {problem: _timed(rows.values()) for problem, rows in self.problems.items()}
        return {problem: min(rows, key=_median) for problem, rows in timed.items() if rows}

    def behind(self, row: Row) -> float:
        """The time of a row over the fastest time of its problem."""
        return float(row["median"] / self.best[row["problem"]["name"]]["median"])

    @cached_property
    def duels(self) -> list[Duel]:
        """The best of ours against the best peer, on each problem timed by both sides."""
        found = []
        for problem, rows in self.problems.items():
            timed = _timed(rows.values())
            ours, peers = ([row for row in timed if row["contender"]["kind"] == kind] for kind in ("ours", "peer"))
            if ours and peers:
                found.append(Duel(problem, min(ours, key=_median), min(peers, key=_median)))
        return found

    @cached_property
    def duel_mean(self) -> Interval | None:
        """The geometric mean over problems of the best peer's time over ours; None without a duel."""
        return geometric_mean([duel.ratio.value for duel in self.duels]) if self.duels else None

    @cached_property
    def standings(self) -> list[Standing]:
        """All contenders, those with the most wins first, then those least behind."""
        made = [self._standing(name) for name in dict.fromkeys(map(label, self.rows))]
        return sorted(made, key=lambda one: (-one.wins, one.behind.value if one.behind else float("inf")))

    def _standing(self, name: str) -> Standing:
        rows = [row for row in self.rows if label(row) == name]
        timed = _timed(rows)
        shares = sorted(row["share"] for row in timed if row.get("share") is not None)
        return Standing(
            name=name,
            rows=rows,
            timed=timed,
            wins=sum(label(row) == name for row in self.best.values()),
            behind=geometric_mean([self.behind(row) for row in timed]) if timed else None,
            share=shares[len(shares) // 2] if shares else None,
            error=max((row["error_eps"] for row in timed if row.get("error_eps") is not None), default=None),
        )


def views(rows: Iterable[Row]) -> list[View]:
    """The rows as views, by mode and then by threads."""
    found: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        found.setdefault((row["mode"], row["threads"]), []).append(row)
    order = sorted(found, key=lambda one: (MODES.index(one[0]) if one[0] in MODES else len(MODES), one[1]))
    return [View(mode, threads, found[mode, threads]) for mode, threads in order]


def reasons(rows: Iterable[Row]) -> dict[tuple[str, str, str], list[Row]]:
    """The rows that were not timed, by contender, status and reason."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row["status"] != "timed":
            why = row.get("reason") or "no reason was given"
            found.setdefault((label(row), row["status"], why), []).append(row)
    return found


def _timed(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row["status"] == "timed"]
