"""The support of several backends as a table with notes: `summarise`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce
from itertools import count, product
from types import MappingProxyType
from typing import Any, NamedTuple

from multirnn.cells import CELLS, FORMS
from multirnn.spec import BIASES
from multirnn.support import AXES, Rule, Support, blanks, grid

__all__ = ["LABELS", "Answer", "Line", "Note", "Summary", "summarise"]

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
"""The names of the axes in the table."""


class Answer(NamedTuple):
    """One backend's answer of a row: "yes", "no", the accepted values, or "–" if it refuses all cells of the row.

    The notes with these numbers have the reasons for the rest.
    """

    text: str
    notes: tuple[int, ...] = ()

    def __str__(self) -> str:
        but = ", but" if self.notes and self.text in ("yes", "all") else ""
        return f"{self.text}{but} [{', '.join(map(str, self.notes))}]" if self.notes else self.text


class Line(NamedTuple):
    """A row: a cell form and a bias, or a field and the cells or values it is about; an answer per backend."""

    label: str
    of: str
    answers: tuple[Answer, ...]


class Note(NamedTuple):
    """A reason with "…" for quotes of the spec, and in words the specs that have it unless the rows show them."""

    number: int
    backend: str
    reason: str
    where: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}" if self.where else self.reason


class Summary(NamedTuple):
    """Rows for cell forms and biases, rows for the other fields with lengths and gradients, and every reason."""

    titles: tuple[str, ...]
    cells: tuple[Line, ...]
    fields: tuple[Line, ...]
    notes: tuple[Note, ...]


def summarise(supports: Sequence[Support]) -> Summary:
    """The table of several backends that were asked about the same cells."""
    forms = supports[0].axes["form"] if supports else ()
    cells = [(form, bias, [_of_cell(one, form, bias) for one in supports]) for form, bias in product(forms, BIASES)]
    fields = [
        *(row for axis in AXES if axis not in ("form", "bias") for row in _field_rows(supports, axis)),
        ("lengths", "", [_Said("yes" if one.takes_lengths else "no") for one in supports]),
        ("gradients", "", [_Said("yes" if one.differentiable else "no") for one in supports]),
    ]
    numbers: dict[tuple[int, str], int] = {}  # by the place of the backend and the reason

    def answer(column: int, said: _Said) -> Answer:
        notes = {numbers.setdefault((column, rule.reason), len(numbers) + 1) for rule in said.rules}
        return Answer(said.text, tuple(sorted(notes)))

    def lines(drafts: Iterable[tuple[str, str, list[_Said]]]) -> tuple[Line, ...]:
        return tuple(Line(label, of, tuple(map(answer, count(), said))) for label, of, said in drafts)

    titles = tuple(one.title for one in supports)
    return Summary(titles, lines(cells), lines(fields), tuple(_notes(supports, numbers)))


class _Said(NamedTuple):
    """An answer before its notes have numbers."""

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
    """One row for all cells with the same answers; "–" for a cell that a backend refuses altogether fits any answer."""
    groups: list[tuple[list[str], list[_Said]]] = []
    for form in supports[0].axes["form"] if supports else ():
        if axis == "recurrent_activation" and len(FORMS[form].gates) == 1:
            continue
        row = [_of_field(one, form, axis) for one in supports]
        for members, said in reversed(groups):
            if all("–" in (a.text, b.text) or a.text == b.text for a, b in zip(said, row, strict=True)):
                members.append(form)
                pairs = zip(said, row, strict=True)
                said[:] = [_Said(b.text if a.text == "–" else a.text, [*a.rules, *b.rules]) for a, b in pairs]
                break
        else:
            groups.append(([form], row))
    every = ", ".join(_word(axis, value) for value in AXES[axis]) if len(AXES[axis]) == 2 else ""
    for members, said in groups:
        yield LABELS[axis], _cell_names(members) if len(groups) > 1 else every, said


def _notes(supports: Sequence[Support], numbers: dict[tuple[int, str], int]) -> Iterator[Note]:
    """Every reason: those with a reference in the rows first."""
    shown = set(numbers)
    for column, support in enumerate(supports):
        for rule in support.rules:
            numbers.setdefault((column, rule.reason), len(numbers) + 1)
    for (column, reason), number in numbers.items():
        support = supports[column]
        hidden = (column, reason) not in shown
        rules = [rule for rule in support.rules if rule.reason == reason and (hidden or not rule.plain)]
        readable = reduce(lambda text, blank: text.replace(blank, "…"), blanks(next(grid())), reason)
        yield Note(number, support.name, readable, " / ".join(_where(rule) for rule in rules))


def _where(rule: Rule) -> str:
    cells = _cell_names(rule.where.get("form", ()))
    fields = [f"{LABELS[axis]} {_listed(axis, values)}" for axis, values in rule.where.items() if axis != "form"]
    return f"{cells}{' with ' if fields else ''}{' and '.join(fields)}".lstrip()


def _listed(axis: str, values: Sequence[Any]) -> str:
    """Values of an axis, or the values left out if these are fewer."""
    rest = [value for value in AXES[axis] if value not in values]
    if not rest:
        return "all"
    if len(rest) < len(values) and len(AXES[axis]) > 3:
        return f"all but {', '.join(_word(axis, value) for value in rest)}"
    return ", ".join(_word(axis, value) for value in values)


def _word(axis: str, value: Any) -> str:
    return {False: "forward", True: "both"}[value] if axis == "bidirectional" else str(value)


def _cell_names(forms: Sequence[str]) -> str:
    """The names of cell forms; the cell's name if all its forms are listed."""
    names = {name: [form for form in FORMS if FORMS[form].name == name] for name in CELLS}
    parts = ([name] if set(names[name]) <= set(forms) else [f for f in names[name] if f in forms] for name in CELLS)
    return ", ".join(part for one in parts for part in one)
