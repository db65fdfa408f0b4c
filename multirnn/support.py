"""Which specs a backend accepts: it is asked about a grid of specs, and its answers become as few rules as possible.

The grid has all combinations of cell forms, bias forms, directions, activations of both kinds and dtypes, for one layer
and for two; see `AXES`. A rule is a box of that grid and a reason. The first rule that a spec fits is the answer, and a
spec that fits none is accepted. So the rules reproduce what `refuses` says about every spec of the grid, word for word,
and `support_table` leaves no reason out.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multirnn.activations import ACTIVATIONS, Activation
from multirnn.backend import Backend
from multirnn.cells import CELLS, FORMS
from multirnn.spec import BIASES, DTYPES, RecurrentSpec

__all__ = ["AXES", "QUOTED", "Rule", "Support", "ask", "axis_value", "blanks", "grid"]


ACTIVATIONS_ASKED: tuple[str | Activation, ...] = (
    *(name for name, definition in ACTIVATIONS.items() if not definition.parameters),
    *(Activation("elu", alpha=alpha) for alpha in (1.0, 0.5)),  # many a framework has the first alone
    *(Activation("hard_sigmoid", alpha=slope, beta=0.5) for slope in (0.2, 1 / 6)),
)

AXES: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "form": tuple(FORMS),
        "bias": BIASES,
        "num_layers": (1, 2),
        "bidirectional": (False, True),
        "activation": ACTIVATIONS_ASKED,
        "recurrent_activation": ACTIVATIONS_ASKED,
        "dtype": DTYPES,
    }
)
"""What is asked about: the fields of a spec, the cell and `reset_after` as one, and the values that each goes through."""

QUOTED = ("activation", "recurrent_activation")  # axes with so many values that a reason is not repeated for each

# Sizes are on no axis: no function depends on them.
INPUT_SIZE, HIDDEN_SIZE = 5, 3


def grid(cells: Iterable[str] = CELLS) -> Iterator[RecurrentSpec]:
    """Every spec that a backend is asked about, of these cells."""
    return (spec for _, spec in _points(_axes(cells)))


def _axes(cells: Iterable[str]) -> dict[str, tuple[Any, ...]]:
    asked = tuple(cells)
    return {**AXES, "form": tuple(name for name, form in FORMS.items() if form.name in asked)}


def _points(axes: Mapping[str, tuple[Any, ...]]) -> Iterator[tuple[tuple[int, ...], RecurrentSpec]]:
    """Every spec, and where it is: its place on each axis."""
    for places in product(*(range(len(values)) for values in axes.values())):
        fields = {axis: values[place] for (axis, values), place in zip(axes.items(), places, strict=True)}
        form = FORMS[fields.pop("form")]
        if len(form.gates) > 1 or fields["recurrent_activation"] == "sigmoid":
            yield places, RecurrentSpec(form.name, INPUT_SIZE, HIDDEN_SIZE, reset_after=form.reset_after, **fields)


# --- Rules -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rule:
    """Specs that a backend refuses, and why.

    Attributes:
        where: the values of the specs, by axis; an axis that is not named has any.
        reason: the backend's sentence. Where it quotes the spec, there is a field in braces instead, as in
            "not {activation!r}", so that refusing eight activations is one sentence.
    """

    where: Mapping[str, tuple[Any, ...]]
    reason: str

    def fits(self, spec: RecurrentSpec) -> bool:
        """Whether the spec is one of those."""
        return all(_value(spec, axis) in values for axis, values in self.where.items())

    def meets(self, **values: Any) -> bool:
        """Whether there may be such specs with these values, by axis."""
        return all(value in self.where.get(axis, (value,)) for axis, value in values.items())

    @property
    def plain(self) -> bool:
        """Whether it depends on one field beside the cell, so that a row of the table shows all of it."""
        return len(self.where.keys() - {"form"}) <= 1

    def sentence(self, spec: RecurrentSpec) -> str:
        """The reason as the backend gives it for this spec."""
        sentence = self.reason
        for blank, quoted in blanks(spec).items():
            sentence = sentence.replace(blank, quoted)
        return sentence

    def to_dict(self) -> dict[str, Any]:
        """Both, in values that JSON has."""
        return {
            "where": {axis: [axis_value(v) for v in values] for axis, values in self.where.items()},
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True, eq=False)
class Support:
    """What a backend answered.

    Attributes:
        name: of the backend.
        title: its name with the engine that it runs on, `keras (tensorflow)`.
        axes: what it was asked about.
        rules: what it refuses; the first rule that a spec fits has the reason.
        accepted: whether it accepts a spec, at the spec's place on every axis; False where there is no such spec.
        asked: how many specs there are.
        differentiable: whether its layers have `vjp`.
        takes_lengths: whether its layers take `lengths`.
    """

    name: str
    title: str
    axes: Mapping[str, tuple[Any, ...]]
    rules: tuple[Rule, ...]
    accepted: NDArray[np.bool_]
    asked: int
    differentiable: bool
    takes_lengths: bool

    def refuses(self, spec: RecurrentSpec) -> str | None:
        """What the backend answered about a spec of the grid; its sizes are not looked at."""
        return next((rule.sentence(spec) for rule in self.rules if rule.fits(spec)), None)

    def takes(self, **where: Any) -> bool:
        """Whether it accepts any of the specs with these values, by axis."""
        box = [
            [values.index(where[axis])] if axis in where else range(len(values)) for axis, values in self.axes.items()
        ]
        return bool(self.accepted[np.ix_(*box)].any())

    def to_dict(self) -> dict[str, Any]:
        """All that it answered, in values that JSON has: it refuses what fits a rule, for the reason of the first one."""
        return {
            "differentiable": self.differentiable,
            "takes_lengths": self.takes_lengths,
            "asked": self.asked,
            "accepted": int(self.accepted.sum()),
            "rules": [rule.to_dict() for rule in self.rules],
        }


def ask(backend: Backend, cells: Iterable[str] = CELLS) -> Support:
    """Ask a backend about every spec of the grid.

    Args:
        backend: the Backend object.
        cells: names of cells; a cell is asked about in all its forms.
    """
    axes = _axes(cells)
    shape = tuple(map(len, axes.values()))
    answers = np.full(shape, None, object)
    there = np.zeros(shape, bool)
    for places, spec in _points(axes):
        reason = backend.refuses(spec)
        answers[places] = reason.replace(repr(spec), "{spec!r}") if reason else None
        there[places] = True
    for axis in QUOTED:
        _blank(answers, axis, tuple(axes).index(axis), axes[axis])
    engine = getattr(backend, "engine", None)
    return Support(
        name=backend.name,
        title=f"{backend.name} ({engine})" if engine else backend.name,
        axes=axes,
        rules=tuple(_rules(answers, there, axes)),
        accepted=there & (answers == None),  # noqa: E711
        asked=int(there.sum()),
        differentiable=backend.differentiable,
        takes_lengths=getattr(backend, "takes_lengths", True),
    )


def _value(spec: RecurrentSpec, axis: str) -> Any:
    return spec.form.form if axis == "form" else getattr(spec, axis)


def axis_value(value: Any) -> Any:
    """A value of an axis as `RecurrentSpec.to_dict` has it."""
    return {"name": value.name, **value.parameters} if isinstance(value, Activation) else value


def blanks(spec: RecurrentSpec) -> dict[str, str]:
    """What stands for each blank of a reason."""
    quotes = {"{spec!r}": repr(spec)}
    for axis in QUOTED:
        value = getattr(spec, axis)
        quotes |= {f"{{{axis}!r}}": repr(value), f"{{{axis}}}": str(value)}
    return quotes


def _blank(answers: NDArray[Any], axis: str, place: int, values: Sequence[Any]) -> None:
    """Put a blank, in place, where a sentence quotes the value of an axis: where others differ from it in nothing else."""
    lines = np.moveaxis(answers, place, -1)
    for index in np.ndindex(lines.shape[:-1]):
        line = lines[index]
        for blank, quote in ((f"{{{axis}!r}}", repr), (f"{{{axis}}}", str)):
            blanked = [
                reason and reason.replace(quote(value), blank) for reason, value in zip(line, values, strict=True)
            ]
            for i, reason in enumerate(blanked):
                if reason != line[i] and blanked.count(reason) > 1:
                    line[i] = reason


# A box is a list of places for each axis.
Box = list[list[int]]

FREE, ACCEPTED = -1, 0  # codes beside those of the reasons: does not matter; is accepted


def _rules(answers: NDArray[Any], there: NDArray[np.bool_], axes: Mapping[str, tuple[Any, ...]]) -> Iterator[Rule]:
    reasons = list(dict.fromkeys(reason for reason in answers.flat if reason is not None))
    codes = {None: ACCEPTED, **{reason: code for code, reason in enumerate(reasons, ACCEPTED + 1)}}
    coded = np.array([codes[reason] for reason in answers.flat], int).reshape(answers.shape)
    for code, box in _boxes(np.where(there, coded, FREE)):
        where = {
            axis: tuple(values[place] for place in places)
            for (axis, values), places in zip(axes.items(), box, strict=True)
            if len(places) < len(values)
        }
        yield Rule(where, reasons[code - ACCEPTED - 1])


def _boxes(codes: NDArray[np.int_]) -> Iterator[tuple[int, Box]]:
    """Boxes with their codes, so that each refused point has the code of the first box that it is in, and no other is in one.

    Backends refuse by a sequence of conditions, so what the first of them refuses is a box, what the next refuses is one
    but for those, and so on: such boxes are taken first. Where there is none, one is grown from a point.
    """
    codes = codes.copy()
    while (codes > ACCEPTED).any():
        refused = np.unique(codes[codes > ACCEPTED])
        found = [(code, box) for code in refused if _only(codes, code, box := _hull(codes == code))]
        if not found:
            commonest = max(refused, key=lambda code: int((codes == code).sum()))
            found = [(commonest, _grown(codes, commonest))]
        for code, box in found:
            yield int(code), _widened(codes, code, box)
            codes[np.ix_(*box)] = FREE


def _hull(points: NDArray[np.bool_]) -> Box:
    """The smallest box with these points in it."""
    return [sorted(set(places.tolist())) for places in np.nonzero(points)]


def _only(codes: NDArray[np.int_], code: int, box: Box) -> bool:
    """Whether all that matters in the box has this code."""
    inside = codes[np.ix_(*box)]
    return bool(((inside == code) | (inside == FREE)).all())


def _with(box: Box, axis: int, places: list[int]) -> Box:
    return [*box[:axis], places, *box[axis + 1 :]]


def _grown(codes: NDArray[np.int_], code: int) -> Box:
    """A box of this code that can grow along no axis, around its first point."""
    box = [[int(place)] for place in np.argwhere(codes == code)[0]]
    for axis, length in enumerate(codes.shape):
        for place in range(length):
            slab = _with(box, axis, [place])
            if _only(codes, code, slab) and (codes[np.ix_(*slab)] == code).any():
                box = _with(box, axis, sorted({*box[axis], place}))
    return box


def _widened(codes: NDArray[np.int_], code: int, box: Box) -> Box:
    """The box along the whole of each axis where nothing else that matters is met: the axis then need not be named."""
    for axis, length in enumerate(codes.shape):
        wide = _with(box, axis, list(range(length)))
        if _only(codes, code, wide):
            box = wide
    return box
