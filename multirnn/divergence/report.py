"""From what a search found to a `Divergence`: the parts that all of its answers have."""

from typing import Any

from multirnn.divergence.measures import Pair, apart, largest_at
from multirnn.divergence.record import Divergence
from multirnn.numerics import magnitude
from multirnn.weights import Array

__all__ = ["at", "final_report", "output_report", "report"]


def report(
    pair: Pair,
    *,
    kind: str = "mistake",
    place: int | None = None,
    values: tuple[float, float] | None = None,
    stepped: bool = True,
    blank: bool = False,
    **found: Any,
) -> Divergence:
    """A record of a pair.

    Args:
        pair: what was searched.
        kind: see `Divergence`.
        place: of the pass, out of `pair.passes`.
        values: that of the right side and that of the suspect one.
        stepped: whether the growth is that of single steps, and not what the calls show.
        blank: whether nothing was measured.
        found: other fields of the record.
    """
    layer, direction = (None, None) if place is None else pair.passes[place]
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
        layer=layer,
        direction=direction,
        values=values,
        **found,
    )


def output_report(pair: Pair, pattern: str, place: int, step: int, a: Array, b: Array, says: str) -> Divergence:
    """A record of an element of the sequence of one direction, `(time, batch, hidden_size)`."""
    row, unit = largest_at(a[step], b[step])
    return report(
        pair,
        pattern=pattern,
        place=place,
        step=step,
        quantity="output",
        row=row,
        unit=unit,
        values=(float(a[step, row, unit]), float(b[step, row, unit])),
        eps=_eps(pair, a[step], b[step], a),
        stepped=False,
        says=says,
    )


def final_report(
    pair: Pair, pattern: str, place: int, step: int | None, part: int, a: Array, b: Array, says: str
) -> Divergence:
    """A record of an element of a final state, `(batch, hidden_size)`."""
    row, unit = largest_at(a, b)
    return report(
        pair,
        pattern=pattern,
        place=place,
        step=step,
        quantity=f"final {pair.spec.form.states[part]}",
        row=row,
        unit=unit,
        values=(float(a[row, unit]), float(b[row, unit])),
        eps=_eps(pair, a, b, a),
        stepped=False,
        says=says,
    )


def _eps(pair: Pair, a: Array, b: Array, of: Array) -> float:
    return float(apart(a, b) / (magnitude(of, of.dtype) or 1) / pair.eps)


def at(pair: Pair, place: int, step: int) -> str:
    """A pass and a step in words."""
    layer, direction = pair.passes[place]
    return f"in layer {layer} {direction} at step {step}{', the first that it runs' if step == pair.first_step(place) else ''}"
