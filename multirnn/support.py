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
from multirnn.cells import CELLS, FORMS
from multirnn.protocol import Backend, abilities, backend_title
from multirnn.spec import BIASES, DTYPES, RecurrentSpec, axis_value

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
    """Every spec of the grid with these cells."""
    return (spec for _, spec in _points(_axes(cells)))


def _axes(cells: Iterable[str]) -> dict[str, tuple[Any, ...]]:
    asked = tuple(cells)
    return {**AXES, "form": tuple(name for name, form in FORMS.items() if form.name in asked)}


def _points(axes: Mapping[str, tuple[Any, ...]]) -> Iterator[tuple[tuple[int, ...], RecurrentSpec]]:
    """Every spec with its place on each axis."""
    for places in product(*(range(len(values)) for values in axes.values())):
        fields = {axis: values[place] for (axis, values), place in zip(axes.items(), places, strict=True)}
        form = FORMS[fields.pop("form")]
        if len(form.gates) > 1 or fields["recurrent_activation"] == "sigmoid":
            yield places, RecurrentSpec(form.name, INPUT_SIZE, HIDDEN_SIZE, reset_after=form.reset_after, **fields)


# --- Rules -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rule:
    """Specs that a backend refuses, and its sentence.

    Quotes of the spec are fields in braces, as in "not {activation!r}", so that refusing eight activations is one sentence.
    """

    where: Mapping[str, tuple[Any, ...]]  # the values of the specs, by axis; a missing axis has any value
    reason: str

    def fits(self, spec: RecurrentSpec) -> bool:
        """Whether the rule covers the spec."""
        given = {"form": spec.form.form}
        return all(given.get(axis, getattr(spec, axis)) in values for axis, values in self.where.items())

    def meets(self, **values: Any) -> bool:
        """Whether the rule covers any spec with these values, by axis."""
        return all(value in self.where.get(axis, (value,)) for axis, value in values.items())

    @property
    def plain(self) -> bool:
        """Whether it depends on at most one field beside the cell, so that a row of the table shows it completely."""
        return len(self.where.keys() - {"form"}) <= 1

    def sentence(self, spec: RecurrentSpec) -> str:
        """The reason as the backend gives it for this spec."""
        sentence = self.reason
        for blank, quoted in blanks(spec).items():
            sentence = sentence.replace(blank, quoted)
        return sentence

    def to_dict(self) -> dict[str, Any]:
        """Both fields as JSON values."""
        where = {axis: [axis_value(value) for value in values] for axis, values in self.where.items()}
        return {"where": where, "reason": self.reason}


@dataclass(frozen=True, slots=True, eq=False)
class Support:
    """The answers of a backend."""

    name: str
    title: str  # its name with its engine, `keras (tensorflow)`
    axes: Mapping[str, tuple[Any, ...]]  # of the grid
    rules: tuple[Rule, ...]  # the first that covers a spec gives the reason
    accepted: NDArray[np.bool_]  # at each place of the grid; False if there is no such spec
    asked: int  # the number of specs
    differentiable: bool
    takes_lengths: bool

    def refuses(self, spec: RecurrentSpec) -> str | None:
        """The backend's answer for a spec of the grid; sizes are ignored."""
        return next((rule.sentence(spec) for rule in self.rules if rule.fits(spec)), None)

    def takes(self, **where: Any) -> bool:
        """Whether it accepts any spec with these values, by axis."""
        box = [
            [values.index(where[axis])] if axis in where else range(len(values)) for axis, values in self.axes.items()
        ]
        return bool(self.accepted[np.ix_(*box)].any())

    def to_dict(self) -> dict[str, Any]:
        """The answers as JSON values: a spec that fits a rule is refused, for the reason of the first such rule."""
        return {
            "differentiable": self.differentiable,
            "takes_lengths": self.takes_lengths,
            "asked": self.asked,
            "accepted": int(self.accepted.sum()),
            "rules": [rule.to_dict() for rule in self.rules],
        }


def ask(backend: Backend, cells: Iterable[str] = CELLS) -> Support:
    """Ask a backend about every spec of the grid with these cells, each in all its forms."""
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
    return Support(
        backend.name,
        backend_title(backend),
        axes,
        tuple(_rules(answers, there, axes)),
        there & (answers == None),  # noqa: E711
        int(there.sum()),
        backend.differentiable,
        abilities(backend).takes_lengths,
    )


def blanks(spec: RecurrentSpec) -> dict[str, str]:
    """The text of each blank of a reason."""
    quotes = {"{spec!r}": repr(spec)}
    for axis in QUOTED:
        value = getattr(spec, axis)
        quotes |= {f"{{{axis}!r}}": repr(value), f"{{{axis}}}": str(value)}
    return quotes


def _blank(answers: NDArray[Any], axis: str, place: int, values: Sequence[Any]) -> None:
    """Replaces, in place, a quoted value of an axis by a blank if other sentences differ in nothing else."""
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

FREE, ACCEPTED = -1, 0  # any rule may cover it; accepted. Reasons have the codes from 1 on


def _rules(answers: NDArray[Any], there: NDArray[np.bool_], axes: Mapping[str, tuple[Any, ...]]) -> Iterator[Rule]:
    reasons: list[Any] = list(dict.fromkeys([None, *answers.flat]))  # by code; None is ACCEPTED
    codes = {reason: code for code, reason in enumerate(reasons)}
    coded = np.array([codes[reason] for reason in answers.flat], int).reshape(answers.shape)
    for code, box in _boxes(np.where(there, coded, FREE)):
        where = {
            axis: tuple(values[place] for place in places)
            for (axis, values), places in zip(axes.items(), box, strict=True)
            if len(places) < len(values)
        }
        yield Rule(where, reasons[code])


def _boxes(codes: NDArray[np.int_]) -> Iterator[tuple[int, Box]]:
    """Boxes with codes: the first box around a refused point has its code, and no accepted point is in a box.

    Backends refuse by a sequence of conditions. The first condition refuses a box, the next one a box less the first, and
    so on: such boxes are taken first. If there is none, one is grown from a point.
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
    """The smallest box around these points."""
    return [sorted(set(places.tolist())) for places in np.nonzero(points)]


def _only(codes: NDArray[np.int_], code: int, box: Box) -> bool:
    """Whether every point of the box has this code or is free."""
    inside = codes[np.ix_(*box)]
    return bool(((inside == code) | (inside == FREE)).all())


def _with(box: Box, axis: int, places: list[int]) -> Box:
    return [*box[:axis], places, *box[axis + 1 :]]


def _grown(codes: NDArray[np.int_], code: int) -> Box:
    """A box of this code around its first point, grown along every axis."""
    box = [[int(place)] for place in np.argwhere(codes == code)[0]]
    for axis, length in enumerate(codes.shape):
        for place in range(length):
            slab = _with(box, axis, [place])
            if _only(codes, code, slab) and (codes[np.ix_(*slab)] == code).any():
                box = _with(box, axis, sorted({*box[axis], place}))
    return box


def _widened(codes: NDArray[np.int_], code: int, box: Box) -> Box:
    """The box widened to the whole of each axis that allows it: such an axis need not be named."""
    for axis, length in enumerate(codes.shape):
        wide = _with(box, axis, list(range(length)))
        if _only(codes, code, wide):
            box = wide
    return box
