"""`Divergence`: where two layers part, and how the difference grows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from multirnn.numerics import TOLERANCE
from multirnn.spec import RecurrentSpec
from multirnn.tables import Column, Content, Shown, Styled, Table, json_value
from multirnn.weights import Array

__all__ = ["Divergence", "Parting"]


class Parting(NamedTuple):
    """A pass that parts, and the first step in its running order at which it does; None where a field is not known."""

    layer: int | None
    direction: str | None
    step: int | None


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Divergence(Shown):
    """Where B parts from A, and how the difference grows. It prints as a table, also in a notebook, and exports JSON.

    It locates and names no cause; `diagnose` names causes.

    Attributes:
        kind: "none", "rounding" or "mistake".
        probe: the question that showed the difference: "call" (B does not take it), "repetition" (two equal calls),
            "rows" (a row alone), "step" (single steps from the states of A), "final state", "output", "call in part" (the
            shortest beginning of the call that parts), "gradient"; "" if there is no mistake. The headline and the table
            both show its `parting`.
        parting: every pass that parts, the first one first. Passes above a layer that parts in a single step are left out:
            their inputs differ already.
        gate: the gate with the largest error there; None if not known.
        quantity: "h", "c", "output", "final h", "gradient of x" and so on; "" if there is no mistake.
        row, unit: the worst element there.
        values: its value in A and in B.
        eps: the normwise difference there, in units of eps.
        spec, titles: the spec of A; the titles of A and B.
        shape: the shape of the input, `(batch, time, input_size)`.
        dtype: the narrower of the two dtypes; eps is always its eps.
        own: `(passes, time)`: the normwise error of one step from the states of A, in eps. NaN above a layer that parts in
            the same step, whose outputs are the input there.
        growth: `(passes, time)`: the error of B running on by itself. NaN where it cannot be observed.
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
    probe: str = ""
    parting: tuple[Parting, ...] = ()
    gate: str | None = None
    quantity: str = ""
    row: int | None = None
    unit: int | None = None
    values: tuple[float, float] | None = None
    eps: float = 0.0
    gates: Mapping[str, Array] = field(default_factory=dict)

    @property
    def layer(self) -> int | None:
        """The layer of the first divergence."""
        return self._first.layer

    @property
    def direction(self) -> str | None:
        """The direction of the first divergence."""
        return self._first.direction

    @property
    def step(self) -> int | None:
        """The step of the first divergence, in original time."""
        return self._first.step

    @property
    def _first(self) -> Parting:
        return self.parting[0] if self.parting else Parting(None, None, None)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values; infinite and unknown numbers are null."""
        plain = ("kind", "probe", "says", "layer", "direction", "step", "gate", "quantity", "row", "unit")
        return {
            **{name: getattr(self, name) for name in (*plain, "dtype")},
            "parting": [part._asdict() for part in self.parting],
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
        """The headline."""
        if self.kind != "mistake":
            return "No divergence" + " but rounding" * (self.kind == "rounding")
        named = {"layer": self.layer, "": self.direction, "step": self.step, "gate": self.gate}
        place = [f"{name} {value}".strip() for name, value in named.items() if value is not None]
        return f"First divergence: {', '.join(place) or self.probe}"

    def _contents(self) -> Iterator[Content]:
        yield Styled(self.title, "bold")
        yield self.says
        yield from (f"{letter}  {title}" for letter, title in zip("AB", self.titles, strict=True))
        yield ""
        numbers = (Column(name, number=True) for name in ("parts at", "own", "largest", "last"))
        table = Table("layer", "direction", *numbers, Column("over time", whole=True, spare=True), keys=2)
        parts_at = {(layer, direction): "?" if step is None else str(step) for layer, direction, step in self.parting}
        for place, own, growth in zip(self.spec.passes, self.own, self.growth, strict=True):
            parts = parts_at.get(place, "echo" if self.probe == "step" and np.isnan(own).all() else "–")
            last = growth[:: 1 if place[1] == "forward" else -1][-1:]
            errors = (f"{error:.2g}" if error >= 0 else "?" for error in map(_largest, (own, growth, last)))
            bold = place == (self.layer, self.direction)
            table.add_row(*place, parts, *errors, _line(growth), style="bold red" if bold else "")
        yield table
        yield ""
        yield (
            f"Errors: max|a−b| / max|a| at a step, in eps of {self.dtype}; {TOLERANCE[self.dtype]} count as rounding. "
            "Own: one step from the states of A. Largest, last, over time: B running on by itself."
        )


_LEVELS = "▁▂▃▄▅▆▇█"
_LINE = 24  # characters at most


def _line(errors: Array) -> str:
    """The errors over time as blocks on a logarithmic scale, from at most one eps to the size of the value."""
    pieces = map(_largest, np.array_split(errors, max(1, min(_LINE, len(errors)))))
    return "".join(" " if np.isnan(v) else _LEVELS[int(min(np.log10(max(v, 1)), len(_LEVELS) - 1))] for v in pieces)


def _largest(errors: Array) -> float:
    """The largest known error; NaN if none is known."""
    known = errors[~np.isnan(errors)]
    return float(known.max()) if known.size else float("nan")
