"""What a search for the first divergence found: `Divergence`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from multirnn.compare import TOLERANCE
from multirnn.spec import RecurrentSpec
from multirnn.weights import Array

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

__all__ = ["Divergence"]


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Divergence:
    """Where B parts from A, and how the difference grows; it prints as a table, shows itself in a notebook, exports JSON.

    Attributes:
        kind: "none"; "rounding"; or "mistake".
        pattern: what the difference looks like: "arithmetic" of a step, "recurrence" (only of states that are not zero),
            "initial state", "order of states", "final state", "output", "hand-over" between layers, "order of time",
            "late" (only after some steps), "lengths", "gradient", "rows" that are not independent, "repetition"; "" of
            no mistake.
        says: one or two sentences.
        layer, direction, step: where; None where undefined.
        gate: the one that differs most there; None where it is not known.
        quantity: what differs: "h", "c", "output", "final h", "gradient of x", …; "" of no mistake.
        row, unit: the worst element there.
        values: that of A and that of B.
        eps: the normwise difference there, in units of eps.
        spec: of A.
        titles: of A and of B.
        shape: of the input, `(batch, time, input_size)`.
        dtype: the narrower of both, whose eps is meant everywhere.
        own: `(passes, time)`: the normwise error that a pass makes in one step when it is given the states of A, in eps.
            NaN above a layer that parts in the same step, since its outputs are what the pass runs on.
        growth: `(passes, time)`: that of B running on by itself. NaN where it cannot be seen.
        gates: by name, `(passes, time)`: the error of each gate, in eps; NaN where it is not known.
    """

    kind: str
    spec: RecurrentSpec
    titles: tuple[str, str]
    shape: tuple[int, ...]
    dtype: str
    own: Array
    growth: Array
    says: str = ""
    pattern: str = ""
    layer: int | None = None
    direction: str | None = None
    step: int | None = None
    gate: str | None = None
    quantity: str = ""
    row: int | None = None
    unit: int | None = None
    values: tuple[float, float] | None = None
    eps: float = 0.0
    gates: Mapping[str, Array] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """All that was found, in values that JSON has; what is infinite or not known is null."""
        plain = ("kind", "pattern", "says", "layer", "direction", "step", "gate", "quantity", "row", "unit", "dtype")
        return {
            **{name: getattr(self, name) for name in plain},
            "values": None if self.values is None else [_number(value) for value in self.values],
            "eps": _number(self.eps),
            "tolerance_eps": TOLERANCE[self.dtype],
            "titles": list(self.titles),
            "spec": self.spec.to_dict(),
            "shape": list(self.shape),
            "own": _numbers(self.own),
            "growth": _numbers(self.growth),
            "gates": {name: _numbers(errors) for name, errors in self.gates.items()},
        }

    def to_json(self, indent: int | None = 2) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False, allow_nan=False)

    @property
    def title(self) -> str:
        """Where, in a few words."""
        if self.kind == "none":
            return "No divergence"
        if self.kind == "rounding":
            return "No divergence but rounding"
        place = [] if self.layer is None else [f"layer {self.layer}"]
        place += [self.direction] if self.direction else []
        place += [] if self.step is None else [f"step {self.step}"]
        place += [f"gate {self.gate}"] if self.gate else []
        return f"First divergence: {', '.join(place) or self.pattern}"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
        for name in _COLUMNS:
            table.add_column(name, no_wrap=True, overflow="crop", justify="right" if name in _COLUMNS[2:6] else "left")
        for place, cells in zip(self.spec.passes, self._rows(), strict=True):
            here = self.kind == "mistake" and place == (self.layer, self.direction)
            table.add_row(*(Text(cell) for cell in cells), style="bold red" if here else None)
        yield Text(self.title, style="bold")
        yield Text(self.says)
        yield Text(f"A  {self.titles[0]}\nB  {self.titles[1]}\n")
        yield table
        yield Text(f"{self._caption}\n")

    def __str__(self) -> str:
        from io import StringIO

        from rich.console import Console

        text = StringIO()
        Console(file=text, width=_width(), color_system=None).print(self)
        return "\n".join(line.rstrip() for line in text.getvalue().rstrip().splitlines())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from html import escape

        def row(cells: tuple[str, ...], tag: str) -> str:
            return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"

        sides = "".join(f"<br>{letter}: {escape(title)}" for letter, title in zip("AB", self.titles, strict=True))
        return (
            f"<table><caption><b>{escape(self.title)}</b><br>{escape(self.says)}{sides}</caption>"
            f"<thead>{row(_COLUMNS, 'th')}</thead><tbody>{''.join(row(cells, 'td') for cells in self._rows())}</tbody>"
            f"<tfoot><tr><td colspan={len(_COLUMNS)}>{escape(self._caption)}</td></tr></tfoot></table>"
        )

    def _rows(self) -> Iterator[tuple[str, ...]]:
        for (layer, direction), own, growth in zip(self.spec.passes, self.own, self.growth, strict=True):
            running = slice(None) if direction == "forward" else slice(None, None, -1)
            over = np.flatnonzero((own > TOLERANCE[self.dtype])[running])
            parts = "echo" if np.isnan(own).all() else "–"
            if len(over):
                parts = str(over[0] if direction == "forward" else len(own) - 1 - over[0])
            last = growth[running][-1:]
            yield (
                str(layer),
                direction,
                parts,
                _shown(_largest(own)),
                _shown(_largest(growth)),
                _shown(float(last[0]) if len(last) else np.nan),
                _line(growth),
            )

    @property
    def _caption(self) -> str:
        return (
            f"Errors: max|a−b| / max|a| at a step, in eps of {self.dtype}; a step parts above {TOLERANCE[self.dtype]}. "
            "Own: of one step from the states of A. Largest, last, over time: of B running on by itself."
        )


_COLUMNS = ("layer", "direction", "parts at", "own", "largest", "last", "over time")
_LEVELS = "▁▂▃▄▅▆▇█"
_LINE = 24  # characters at most


def _width() -> int:
    """Of a table in a string: of the terminal if it says, or else as wide as prose is read."""
    columns = os.environ.get("COLUMNS", "")
    return int(columns) if columns.isdigit() and int(columns) >= 40 else 100


def _line(errors: Array) -> str:
    """The errors over time as a line of blocks, logarithmic: the lowest up to one eps, the highest the whole value."""
    if not errors.size:
        return ""
    pieces = np.array_split(errors, min(_LINE, len(errors)))
    return "".join(" " if np.isnan(v := _largest(piece)) else _LEVELS[_level(v)] for piece in pieces)


def _level(error: float) -> int:
    return int(np.clip(np.log10(max(error, 1.0)), 0, len(_LEVELS) - 1))


def _largest(errors: Array) -> float:
    """NaN where nothing is known."""
    known = errors[~np.isnan(errors)]
    return float(known.max()) if known.size else float("nan")


def _shown(error: float) -> str:
    return "?" if np.isnan(error) else f"{error:.2g}"


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _numbers(array: Array) -> list[list[float | None]]:
    return [[_number(value) for value in row] for row in array]
