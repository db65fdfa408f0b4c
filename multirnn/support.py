"""What each backend takes: it is asked about a grid of specs, and its answers are put into as few rules as say the same.

The grid has all combinations of the cell forms, bias forms, directions, activations of both kinds and dtypes, for one
layer and for two; see `AXES`. A rule is a box of that grid and a reason. The first rule that a spec fits is the answer,
and a spec that fits none is accepted: so the rules give back what `refuses` says of every spec of the grid, word for
word, and the table that is made of them leaves no reason out.
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

__all__ = [
    "AXES",
    "Entry",
    "Note",
    "Row",
    "Rule",
    "Summary",
    "Support",
    "ask",
    "grid",
    "json_value",
    "summarise",
]


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

_QUOTED = ("activation", "recurrent_activation")  # axes with so many values that a reason is not repeated for each

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
        for blank, quoted in _quotes(spec).items():
            sentence = sentence.replace(blank, quoted)
        return sentence

    def to_dict(self) -> dict[str, Any]:
        """Both, in values that JSON has."""
        return {
            "where": {axis: [json_value(v) for v in values] for axis, values in self.where.items()},
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
    for axis in _QUOTED:
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


def json_value(value: Any) -> Any:
    """A value of an axis as `RecurrentSpec.to_dict` has it."""
    return {"name": value.name, **value.parameters} if isinstance(value, Activation) else value


def _quotes(spec: RecurrentSpec) -> dict[str, str]:
    """What stands for each blank of a reason."""
    quotes = {"{spec!r}": repr(spec)}
    for axis in _QUOTED:
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


# --- The table -------------------------------------------------------------------------------------------------------

LABELS: Mapping[str, str] = MappingProxyType(
    {
        "form": "cell",
        "bias": "bias",
        "num_layers": "layers",
        "bidirectional": "directions",
        "activation": "activation",
        "recurrent_activation": "recurrent activation",
        "dtype": "dtype",
    }
)
"""What the table calls the axes."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What a backend says in a row.

    Attributes:
        text: "yes", "no", the values that it takes, or "–" where the row is of cells that it refuses altogether.
        notes: numbers of the notes that say why not the rest.
    """

    text: str
    notes: tuple[int, ...] = ()

    def __str__(self) -> str:
        but = ", but" if self.notes and self.text in ("yes", "all") else ""
        return f"{self.text}{but} [{', '.join(map(str, self.notes))}]" if self.notes else self.text


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table.

    Attributes:
        label: a cell form, or a field.
        of: the bias form; or of a field, the cells that the row is of, else its values where they are only two.
        entries: one a backend.
    """

    label: str
    of: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Note:
    """A reason, and where it applies if the table does not show that.

    Attributes:
        number: by which the table refers to it.
        backend: its name.
        reason: the sentence, "…" standing for what differs from spec to spec.
        where: the specs, in words; empty where the rows that refer to the note show them.
    """

    number: int
    backend: str
    reason: str
    where: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}" if self.where else self.reason


@dataclass(frozen=True, slots=True)
class Summary:
    """The answers of several backends as a table with notes.

    Attributes:
        titles: of the backends.
        cells: the cell forms with their bias forms, all other fields at whatever is accepted.
        fields: the other fields, then lengths and gradients.
        notes: every reason that any backend gave.
    """

    titles: tuple[str, ...]
    cells: tuple[Row, ...]
    fields: tuple[Row, ...]
    notes: tuple[Note, ...]


def summarise(supports: Sequence[Support]) -> Summary:
    """The table of what backends have answered, all of them asked about the same cells."""
    forms = supports[0].axes["form"] if supports else ()
    cells = [(form, bias, [_of_cell(one, form, bias) for one in supports]) for form, bias in product(forms, BIASES)]
    fields = [
        *(row for axis in AXES if axis not in ("form", "bias") for row in _field_rows(supports, axis)),
        ("lengths", "", [_Said("yes" if one.takes_lengths else "no") for one in supports]),
        ("gradients", "", [_Said("yes" if one.differentiable else "no") for one in supports]),
    ]
    numbers: dict[tuple[int, str], int] = {}  # by the place of the backend and the reason

    def rows(drafts: Iterable[tuple[str, str, list[_Said]]]) -> Iterator[Row]:
        for label, of, said in drafts:
            entries = []
            for column, one in enumerate(said):
                keys = [(column, rule.reason) for rule in one.rules]
                notes = {numbers.setdefault(key, len(numbers) + 1) for key in keys}
                entries.append(Entry(one.text, tuple(sorted(notes))))
            yield Row(label, of, tuple(entries))

    return Summary(
        titles=tuple(one.title for one in supports),
        cells=tuple(rows(cells)),
        fields=tuple(rows(fields)),
        notes=tuple(_notes(supports, numbers)),
    )


@dataclass(frozen=True, slots=True)
class _Said:
    """An entry before its notes have numbers."""

    text: str
    rules: Sequence[Rule] = ()


def _of_cell(support: Support, form: str, bias: str) -> _Said:
    rules = [rule for rule in support.rules if rule.meets(form=form, bias=bias)]
    if support.takes(form=form, bias=bias):
        return _Said("yes", [rule for rule in rules if "bias" in rule.where and not rule.plain])
    alone = [rule for rule in rules if rule.where.keys() <= {"form", "bias"}]
    return _Said("no", alone[:1] or rules)


def _of_field(support: Support, form: str, axis: str) -> _Said:
    if not support.takes(form=form):
        return _Said("–")
    values = support.axes[axis]
    taken = [value for value in values if support.takes(**{"form": form, axis: value})]
    return _Said(_listed(axis, taken), [rule for rule in support.rules if axis in rule.where and rule.meets(form=form)])


def _field_rows(supports: Sequence[Support], axis: str) -> Iterator[tuple[str, str, list[_Said]]]:
    """A row for all cells of which the backends say the same; of one that a backend refuses altogether it says nothing."""
    groups: list[tuple[list[str], list[_Said]]] = []
    for form in supports[0].axes["form"] if supports else ():
        if axis == "recurrent_activation" and len(FORMS[form].gates) == 1:
            continue
        row = [_of_field(one, form, axis) for one in supports]
        for members, said in reversed(groups):
            if all("–" in (a.text, b.text) or a.text == b.text for a, b in zip(said, row, strict=True)):
                members.append(form)
                said[:] = [_both(a, b) for a, b in zip(said, row, strict=True)]
                break
        else:
            groups.append(([form], row))
    every = ", ".join(_word(axis, value) for value in AXES[axis]) if len(AXES[axis]) == 2 else ""
    for members, said in groups:
        yield LABELS[axis], _cell_names(members) if len(groups) > 1 else every, said


def _both(a: _Said, b: _Said) -> _Said:
    return _Said(b.text if a.text == "–" else a.text, [*a.rules, *b.rules])


def _notes(supports: Sequence[Support], numbers: dict[tuple[int, str], int]) -> Iterator[Note]:
    """Every reason: those that rows refer to, then those of specs that are refused for another reason in every row."""
    shown = set(numbers)
    for column, support in enumerate(supports):
        for rule in support.rules:
            numbers.setdefault((column, rule.reason), len(numbers) + 1)
    for (column, reason), number in numbers.items():
        support = supports[column]
        hidden = (column, reason) not in shown
        rules = [rule for rule in support.rules if rule.reason == reason and (hidden or not rule.plain)]
        yield Note(number, support.name, _readable(reason), " / ".join(_where(rule) for rule in rules))


def _readable(reason: str) -> str:
    for blank in _quotes(next(grid())):
        reason = reason.replace(blank, "…")
    return reason


def _where(rule: Rule) -> str:
    cells = _cell_names(rule.where.get("form", ()))
    fields = [f"{LABELS[axis]} {_listed(axis, values)}" for axis, values in rule.where.items() if axis != "form"]
    return f"{cells}{' with ' if fields else ''}{' and '.join(fields)}".lstrip()


def _listed(axis: str, values: Sequence[Any]) -> str:
    """Values of an axis, by those that are left out where these are fewer."""
    rest = [value for value in AXES[axis] if value not in values]
    if not rest:
        return "all"
    if len(rest) < len(values) and len(AXES[axis]) > 3:
        return f"all but {', '.join(_word(axis, value) for value in rest)}"
    return ", ".join(_word(axis, value) for value in values)


def _word(axis: str, value: Any) -> str:
    return {False: "forward", True: "both"}[value] if axis == "bidirectional" else str(value)


def _cell_names(forms: Sequence[str]) -> str:
    """The names of cell forms; that of the cell alone where all its forms are there."""
    names = {name: [form for form in FORMS if FORMS[form].name == name] for name in CELLS}
    parts = ([name] if set(names[name]) <= set(forms) else [f for f in names[name] if f in forms] for name in CELLS)
    return ", ".join(part for one in parts for part in one)
