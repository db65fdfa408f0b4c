"""What a search for the first divergence found: `Divergence`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from multirnn.compare import TOLERANCE
from multirnn.spec import RecurrentSpec
from multirnn.tables import Column, Content, Shown, Styled, Table, json_value
from multirnn.weights import Array

__all__ = ["Divergence"]


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Divergence(Shown):
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
            "values": json_value(self.values),
            "eps": json_value(self.eps),
            "tolerance_eps": TOLERANCE[self.dtype],
            "titles": list(self.titles),
            "spec": self.spec.to_dict(),
            "shape": list(self.shape),
            "own": json_value(self.own),
            "growth": json_value(self.growth),
            "gates": json_value(self.gates),
        }

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

    def _contents(self) -> Iterator[Content]:
        yield Styled(self.title, "bold")
        yield self.says
        yield from (f"{letter}  {title}" for letter, title in zip("AB", self.titles, strict=True))
        yield ""
        numbers = (Column(name, number=True) for name in ("parts at", "own", "largest", "last"))
        table = Table("layer", "direction", *numbers, Column("over time", whole=True, spare=True), keys=2)
        for place, cells in zip(self.spec.passes, self._rows(), strict=True):
            here = self.kind == "mistake" and place == (self.layer, self.direction)
            table.add_row(*cells, style="bold red" if here else "")
        yield table
        yield ""
        yield (
            f"Errors: max|a−b| / max|a| at a step, in eps of {self.dtype}; a step parts above {TOLERANCE[self.dtype]}. "
            "Own: of one step from the states of A. Largest, last, over time: of B running on by itself."
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


_LEVELS = "▁▂▃▄▅▆▇█"
_LINE = 24  # characters at most


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
