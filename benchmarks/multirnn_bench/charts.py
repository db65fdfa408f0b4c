"""The geometry of a page's charts: scales, ticks, and the order of what is drawn. `templates/charts.html` draws it."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from multirnn.cells import CELLS
from multirnn.layer import FAST, FROZEN, NATIVE
from multirnn_bench.standing import Duel, Row, View, label

__all__ = [
    "BOTTOM", "FAMILIES", "HEIGHT", "LEFT", "LETTERS", "RIGHT", "TOP", "WIDTH", "Look", "Panel", "Scale",
    "duel_scale", "error_scale", "having", "looks", "panels", "waits",
]  # fmt: skip

FAMILIES = ("numpy", "torch", "keras", "jax", "onnx", "flax")
"""Words in a contender's name that give it a colour, `--f0` and on; all other names share one more colour."""

MARKS = (NATIVE, FAST, FROZEN, "peer")
LETTERS = {"wrong": "W", "refused": "R", "failed": "F", "killed": "K", "slow": "S"}


class Look(NamedTuple):
    """How a contender is shown everywhere on a page."""

    number: int
    family: int
    mark: str

    @property
    def classes(self) -> str:
        """The colour, and the class by which the legend finds the contender."""
        return f"c f{self.family} c{self.number}"


def looks(rows: Iterable[Row]) -> dict[str, Look]:
    """The look of every contender: ours first, then by framework, its own layer before the fast and the frozen one."""
    found: dict[str, tuple[bool, int, int]] = {}
    for row in rows:
        contender, name = row["contender"], label(row)
        made = "peer" if contender["kind"] == "peer" else contender.get("implementation")
        family = next((place for place, word in enumerate(FAMILIES) if word in name.lower()), len(FAMILIES))
        order = contender["kind"] != "ours", family, MARKS.index(made) if made in MARKS else 0
        found.setdefault(name, order)
    ordered = sorted(found.items(), key=lambda item: item[1])
    return {name: Look(number, family, MARKS[mark]) for number, (name, (_, family, mark)) in enumerate(ordered)}


@dataclass
class Scale:
    """An axis."""

    low: float  # the values at its ends; of a logarithmic one, their exponents
    high: float
    base: float | None = None  # of the logarithm; None for a linear axis
    start: float = 0  # where it begins and ends on the page
    end: float = 100

    def at(self, value: float) -> float:
        """Where a value stands; a value below a logarithmic axis stands at its start."""
        if self.base is not None:
            value = max(self.low, math.log(value, self.base)) if value > 0 else self.low
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 2)

    @cached_property
    def ticks(self) -> list[tuple[float, float]]:
        """At most seven round values and their places: powers of the base, or steps of 1, 2 or 5 by a power of ten."""
        length = self.high - self.low
        if self.base is not None:
            step = max(1, math.ceil(length / 6))
            powers = range(math.ceil(self.low), math.floor(self.high) + 1)
            values = [float(self.base) ** power for power in powers if power % step == 0]
        else:
            unit = 10.0 ** math.floor(math.log10(length))
            interval = next(part * unit for part in (0.2, 0.5, 1, 2) if length < 6.1 * part * unit)
            values = [self.low + interval * place for place in range(int(length / interval + 1e-9) + 1)]
        return [(value, self.at(value)) for value in values]


def having(rows: Iterable[Row], field: str) -> list[Row]:
    """The rows that know a field."""
    return [row for row in rows if row.get(field) is not None]


def duel_scale(duels: Sequence[Duel]) -> Scale:
    """All ratios with their intervals, in powers of two."""
    ends = [math.log2(end) for duel in duels for end in (duel.ratio.low, duel.ratio.high)]
    return Scale(min(-0.5, *ends) - 0.1, max(1, *ends) + 0.1, 2)


def error_scale(rows: Sequence[Row]) -> Scale:
    """All errors from 0.1 eps on and their bounds, in powers of ten."""
    ends = [max(0.1, float(row["error_eps"])) for row in rows]
    ends += [row["allowed_eps"] for row in rows if row.get("allowed_eps")]
    return Scale(math.floor(math.log10(min(ends))), math.ceil(math.log10(max(ends)) + 0.1), 10, start=1, end=99)


def waits(view: View, calls: int) -> dict[str, list[float]]:
    """By contender, the seconds of import, preparation, first call and later calls; medians, shortest sum first."""
    found: dict[str, list[float]] = {}
    for one in view.standings:
        if one.timed:
            *once, call = (
                sorted(float(row.get(part) or 0) for row in one.timed)[len(one.timed) // 2]
                for part in ("import_s", "prepare_s", "first_call_s", "median")
            )
            found[one.name] = [*once, calls * call]
    return dict(sorted(found.items(), key=lambda item: sum(item[1])))


WIDTH, HEIGHT = 380, 290
LEFT, RIGHT, TOP, BOTTOM = 52, WIDTH - 12, 10, HEIGHT - 38


class Panel(NamedTuple):
    """Time over the work in a call, both logarithmic, for one cell."""

    title: str  # of the cell
    across: Scale  # the scales of work and time
    up: Scale
    pale: list[Row]  # the rows behind the best of their side on their problem
    best: dict[str, list[Row]]  # by side, a row a problem, by its work
    floor: list[tuple[float, float]]  # work and the machine's limit, by work


def panels(view: View) -> Iterator[Panel]:
    """A panel a cell, of the timed rows with known work."""
    cells: dict[str, list[Row]] = {}
    for row in view.timed:
        if row.get("flops"):
            cells.setdefault(row["problem"]["cell"], []).append(row)
    for cell, rows in cells.items():
        limits = {float(row["flops"]): float(row["limit_s"]) for row in rows if row.get("limit_s")}
        best: dict[tuple[str, str], Row] = {}
        for row in sorted(rows, key=lambda row: row["median"], reverse=True):
            best[row["contender"]["kind"], row["problem"]["name"]] = row
        leading = sorted(best.values(), key=lambda row: row["flops"])
        shown = set(map(id, leading))
        yield Panel(
            CELLS[cell].title.partition(" (")[0].partition(",")[0] if cell in CELLS else cell,
            _fitted([row["flops"] for row in rows], LEFT, RIGHT),
            _fitted([row["median"] for row in rows] + list(limits.values()), BOTTOM, TOP),
            [row for row in rows if id(row) not in shown],
            {kind: [row for row in leading if row["contender"]["kind"] == kind] for kind in ("peer", "ours")},
            sorted(limits.items()),
        )


def _fitted(values: Sequence[float], start: float, end: float) -> Scale:
    """A scale with all values and some room, which holds at least one power of ten."""
    low, high = math.log10(min(values)), math.log10(max(values))
    room = max(0.04 * (high - low), (1.01 - high + low) / 2)
    return Scale(low - room, high + room, 10, start=start, end=end)
