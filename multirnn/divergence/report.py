"""Builds a `Divergence` from a pair and the place where it parts."""

from collections.abc import Sequence
from typing import Any

from multirnn.divergence.measures import Pair, apart, largest_at
from multirnn.divergence.record import Divergence, Parting
from multirnn.divergence.stepping import Seen
from multirnn.numerics import magnitude, normwise
from multirnn.weights import Array

__all__ = ["at", "final_report", "output_report", "report"]


def report(
    pair: Pair,
    *,
    kind: str = "mistake",
    parting: Sequence[Parting] = (),
    values: tuple[float, float] | None = None,
    stepped: bool = True,
    blank: bool = False,
    **found: Any,
) -> Divergence:
    """The record of a pair.

    Args:
        pair: the pair that was searched.
        kind: see `Divergence`.
        parting: the passes that part, the first one first.
        values: in `pair.a` and in `pair.b`.
        stepped: whether `growth` is measured by single steps; else it is what the call shows.
        blank: whether nothing was measured.
        found: other fields of the record.
    """
    titles = (pair.a.layer.title, pair.b.layer.title)
    if pair.A == "B":
        titles = titles[1], titles[0]
        values = values and (values[1], values[0])
    return Divergence(
        kind=kind,
        spec=pair.spec,
        titles=titles,
        shape=pair.call.x.shape,
        dtype=pair.dtype,
        own=pair.unknown if blank else pair.separate,
        growth=pair.unknown if blank else pair.growth if stepped else pair.seen_growth,
        parting=tuple(parting),
        values=values,
        **found,
    )


def output_report(
    pair: Pair, probe: str, parting: Sequence[Parting], answers: tuple[Seen, Seen], says: str
) -> Divergence:
    """The record of an element of the sequence, where the first of `parting` is a pass of the last layer."""
    half = pair.spec.directions.index(parting[0].direction or "forward")
    a, b = (pair.halves(seen.sequence)[half] for seen in answers)
    step = parting[0].step or 0
    row, unit = largest_at(a[step], b[step])
    return report(
        pair,
        probe=probe,
        parting=parting,
        quantity="output",
        row=row,
        unit=unit,
        values=(float(a[step, row, unit]), float(b[step, row, unit])),
        eps=_eps(pair, a[step], b[step], a),
        stepped=False,
        says=says,
    )


def final_report(
    pair: Pair, probe: str, parting: Sequence[Parting], answers: tuple[Seen, Seen], says: str
) -> Divergence:
    """The record of an element of a final state of the first of `parting`."""
    place = pair.place(parting[0])
    parted = pair.parted(answers[1], answers[0]).final[:, place]
    part = int(parted.argmax())
    a, b = (seen.final[part, place] for seen in answers)
    row, unit = largest_at(a, b)
    return report(
        pair,
        probe=probe,
        parting=parting,
        quantity=f"final {pair.spec.form.states[part]}",
        row=row,
        unit=unit,
        values=(float(a[row, unit]), float(b[row, unit])),
        eps=_eps(pair, a, b, a),
        stepped=False,
        says=says,
    )


def _eps(pair: Pair, a: Array, b: Array, of: Array) -> float:
    return float(normwise(apart(a, b), magnitude(of, of.dtype)) / pair.eps)


def at(pair: Pair, parting: Parting) -> str:
    """A pass and a step in words."""
    layer, direction, step = parting
    first = step == pair.first_step(pair.place(parting))
    return f"in layer {layer} {direction} at step {step}{', the first that it runs' * first}"
