"""Edits of named arrays, and the changes that they make of weights, states, outputs and gradients.

An edit that moves, copies, negates or drops numbers needs no adjoint of its own: `adjoint` derives it.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from multirnn.layer import Gradients, Output, State
from multirnn.mistakes.change import Change
from multirnn.spec import RecurrentSpec
from multirnn.weights import Array, Weights

__all__ = ["BIASES", "MATRICES", "Edit", "adjoint", "applied", "drop", "each", "edited", "in_blocks"]
__all__ += ["of_cotangent", "of_gradients", "of_initial_state", "of_output", "of_weights"]

Edit = Callable[[RecurrentSpec, Mapping[str, Array]], Mapping[str, Array]]
"""From arrays by name (parameters, h, c, x of gradients, sequence of outputs) to those that change, of equal shapes."""
Take = Callable[[RecurrentSpec, Array], Array]
Record = TypeVar("Record", State, Output, Gradients)
MATRICES, BIASES = ("weight_ih", "weight_hh"), ("bias_ih", "bias_hh")


def each(kinds: tuple[str, ...], change: Callable[[Array], Array]) -> Edit:
    """Every array changed whose last name is one of these."""
    return lambda spec, arrays: {n: change(a) for n, a in arrays.items() if n.rpartition(".")[2] in kinds}


def drop(*kinds: str) -> Edit:
    """Every array zeroed whose last name is one of these."""
    return each(kinds, np.zeros_like)


def in_blocks(take: Take, kinds: tuple[str, ...] = MATRICES + BIASES) -> Edit:
    """Every parameter of these kinds changed that has all gates, which a single recurrent candidate bias has not."""

    def edit(spec: RecurrentSpec, arrays: Mapping[str, Array]) -> Mapping[str, Array]:
        gates = len(spec.form.gates)
        return each(kinds, lambda array: take(spec, array) if len(array) == gates else array)(spec, arrays)

    return edit


def adjoint(edit: Edit) -> Edit:
    """The adjoint of an edit that moves, copies, negates or drops numbers; the inverse of one that loses none.

    Edited are the places of all numbers, counted from 1: so the result tells where each number comes from, a negative
    place that it is negated, and 0 that it is dropped.
    """

    def back(spec: RecurrentSpec, arrays: Mapping[str, Array]) -> dict[str, Array]:
        places, end = {}, 1
        for name, array in arrays.items():
            places[name] = np.arange(end, end + array.size, dtype=np.float64).reshape(array.shape)
            end += array.size
        moved = {**places, **edit(spec, places)}
        source = np.concatenate([moved[name].ravel() for name in arrays])
        values = np.concatenate([array.ravel() for array in arrays.values()])
        summed = np.bincount(np.abs(source).astype(int), np.sign(source) * values, end)
        return {name: summed[place.astype(int)].astype(arrays[name].dtype) for name, place in places.items()}

    return back


def applied(edit: Edit, spec: RecurrentSpec, record: Record) -> Record:
    """A state, an output or gradients with their arrays edited."""
    named = _flat(record)
    changed: Record = _rebuilt(record, {**named, **edit(spec, named)})
    return changed


def _flat(record: Any) -> dict[str, Array]:
    named: dict[str, Array] = {}
    for field, value in record._asdict().items():
        if isinstance(value, State):
            named |= _flat(value)
        elif value is not None:
            named |= value if isinstance(value, Mapping) else {field: value}
    return named


def _rebuilt(record: Any, named: Mapping[str, Array]) -> Any:
    def made(field: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: named[name] for name in value}
        return _rebuilt(value, named) if isinstance(value, State) else named.get(field)

    return record._replace(**{field: made(field, value) for field, value in record._asdict().items()})


def edited(edit: Edit) -> Callable[[Weights], Weights]:
    """The edit as a function of weights."""
    return lambda weights: Weights(weights.spec, {**weights.arrays, **edit(weights.spec, weights.arrays)})


def of_weights(edit: Edit, back: Edit | None = None, *, undo: Edit | bool = False) -> Change:
    """`back` is the adjoint, derived unless given; `undo` undoes the edit in advance, True if it is the adjoint."""
    back = back or adjoint(edit)
    undoing = back if undo is True else undo
    return Change(
        weights=edited(edit),
        gradients=lambda spec, inputs, found: found._replace(weights={**found.weights, **back(spec, found.weights)}),
        undo=edited(undoing) if undoing else None,
    )


def of_initial_state(edit: Edit) -> Change:
    """An edit of the initial state on its way in."""
    back = adjoint(edit)
    return Change(
        inputs=lambda spec, inputs: replace(inputs, state=applied(edit, spec, inputs.state)),
        gradients=lambda spec, inputs, found: found._replace(state=applied(back, spec, found.state)),
    )


def of_output(edit: Edit) -> Change:
    """An edit of the output."""
    return replace(of_cotangent(adjoint(edit)), output=lambda spec, inputs, output: applied(edit, spec, output))


def of_cotangent(edit: Edit) -> Change:
    """An edit of the cotangent alone: the outputs stay right."""
    return Change(cotangent=lambda spec, inputs, cotangent: applied(edit, spec, cotangent))


def of_gradients(edit: Edit) -> Change:
    """An edit of the gradients alone: the outputs stay right."""
    return Change(gradients=lambda spec, inputs, found: applied(edit, spec, found))
