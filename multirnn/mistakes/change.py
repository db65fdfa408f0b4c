"""A layer made wrong on purpose, in one place: `Mistake`, and `Change`, which most of them are.

A mistake wraps a function that builds layers. So the known mistakes (`multirnn.mistakes.MISTAKES`) serve two purposes: a
test must catch a backend with the mistake (`multirnn.testing`), and a mistake that makes the right layer wrong in the same
way explains a wrong one (`multirnn.diagnosis`). Mistakes compose: the second wraps the layers of the first.

The gradients of a wrong layer are the derivatives of the wrong function with respect to the right weights: a mistake in
the forward pass adds none in the backward pass. An `Edit` that moves, copies, negates or drops numbers needs no adjoint
of its own: `adjoint` derives it.
"""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from multirnn.boundary import Boundary, Inputs
from multirnn.layer import Gradients, Output, State
from multirnn.spec import RecurrentSpec
from multirnn.weights import Array, Weights

__all__ = [
    "Build",
    "Change",
    "Edit",
    "Mistake",
    "Runs",
    "adjoint",
    "always",
    "applied",
    "biased",
    "bidirectional",
    "composed",
    "drop",
    "each",
    "in_blocks",
    "known",
    "of_cotangent",
    "of_gradients",
    "of_initial_state",
    "of_output",
    "of_weights",
    "pull_back",
    "run",
]


class Runs(Protocol):
    """The two calls of a `Layer` that a mistake can change."""

    @property
    def spec(self) -> RecurrentSpec:
        """Its spec."""
        ...

    def __call__(self, x: ArrayLike, state: State | None = None, *, lengths: ArrayLike | None = None) -> Output:
        """See `Layer.__call__`."""
        ...

    def vjp(
        self, x: ArrayLike, state: State | None = None, *, lengths: ArrayLike | None = None, cotangent: Output
    ) -> Gradients:
        """See `Layer.vjp`."""
        ...


Build = Callable[[Weights], Runs]
Realise = Callable[[Build, Weights], Runs]
Applies = Callable[[RecurrentSpec], bool]
Shows = Literal["outputs", "no state", "gradients", "lengths", "float64"]


def always(spec: RecurrentSpec) -> bool:
    """Whatever the spec."""
    return True


def bidirectional(spec: RecurrentSpec) -> bool:
    """Whether the stack has both directions."""
    return spec.bidirectional


def biased(spec: RecurrentSpec) -> bool:
    """Whether the stack has biases."""
    return spec.bias != "none"


@dataclass(frozen=True, slots=True)
class Mistake:
    """One known mistake.

    Attributes:
        name: short and unique, as "gates z r n" or "initial state ignored".
        says: what is wrong, as a sentence without its subject, the wrong side: "reads the GRU blocks as z r n; they are
            stored r z n".
        fix: what to do about it, as an imperative sentence.
        realise: builds the wrong layer, from a function that builds right layers and the right weights.
        applies: whether it changes the function or the gradients of a stack of this spec. Also False if it would equal
            another known mistake, or if `says` would not be true.
        family: mistakes of one family exclude one another, as two orders of the gates do.
        shows: what shows it: calls with an initial state ("outputs"), calls without one ("no state"), calls with
            lengths, gradients, or a stack of float64.
    """

    name: str
    says: str
    fix: str
    realise: Realise
    applies: Applies = always
    family: str = ""
    shows: Shows = "outputs"

    @property
    def undo(self) -> Callable[[Weights], Weights] | None:
        """Makes weights with which the wrong layer is the right function; None if there are none."""
        return getattr(self.realise, "undo", None)


def known(topic: str, made: Mapping[str, Realise | tuple[Realise, Applies]]) -> tuple[Mistake, ...]:
    """The mistakes of a topic: how each is made and where it applies, and its words in `TOPIC.toml`, in the order there."""
    words = tomllib.loads(Path(__file__).with_name(f"{topic}.toml").read_text(encoding="utf-8"))
    if unlike := words.keys() ^ made.keys():
        raise KeyError(
            f"mistakes/{topic}.toml and {topic}.py do not name the same mistakes: {', '.join(sorted(unlike))}"
        )
    both = {name: change if isinstance(change, tuple) else (change, always) for name, change in made.items()}
    return tuple(Mistake(name, realise=both[name][0], applies=both[name][1], **said) for name, said in words.items())


def composed(build: Build, *mistakes: Mistake) -> Build:
    """A function that builds layers with all these mistakes; the first is innermost, nearest to the framework."""
    for mistake in mistakes:
        build = partial(mistake.realise, build)
    return build


# --- Changes ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Change:
    """The changes that make a layer wrong; None changes nothing. Serves as `Mistake.realise`.

    Calls arrive checked and batched by `multirnn.boundary`.

    Attributes:
        weights: changes the weights, possibly to another spec, which a backend may refuse.
        inputs: changes the call.
        output: changes the output.
        cotangent: the adjoint of `output`: maps a cotangent of the changed output to one of the layer's output.
        gradients: the adjoint of `weights` and `inputs`: maps the layer's gradients to gradients of the call.
        undo: makes weights that `weights` changes to the given ones.
    """

    weights: Callable[[Weights], Weights] | None = None
    inputs: Callable[[RecurrentSpec, Inputs], Inputs] | None = None
    output: Callable[[RecurrentSpec, Inputs, Output], Output] | None = None
    cotangent: Callable[[RecurrentSpec, Inputs, Output], Output] | None = None
    gradients: Callable[[RecurrentSpec, Inputs, Gradients], Gradients] | None = None
    undo: Callable[[Weights], Weights] | None = None

    def __call__(self, build: Build, weights: Weights) -> Runs:
        """The wrong layer."""
        inner = build(weights if self.weights is None else self.weights(weights))
        around = any((self.inputs, self.output, self.cotangent, self.gradients))
        return _Changed(weights.spec, inner, self) if around or inner.spec != weights.spec else inner


class _Changed(Boundary):
    def __init__(self, spec: RecurrentSpec, inner: Runs, change: Change) -> None:
        super().__init__(spec)
        self.differentiable = getattr(inner, "differentiable", True)
        self._inner = inner
        self._change = change

    def run(self, inputs: Inputs) -> Output:
        output = run(self._inner, self._taken(inputs))
        return output if self._change.output is None else self._change.output(self.spec, inputs, output)

    def pull_back(self, inputs: Inputs, cotangent: Output) -> Gradients:
        change = self._change
        if change.cotangent is not None:
            cotangent = change.cotangent(self.spec, inputs, cotangent)
        found = pull_back(self._inner, self._taken(inputs), cotangent)
        if change.gradients is not None:
            found = change.gradients(self.spec, inputs, found)
        if inputs.lengths is not None:  # x counts as zero at padding
            found = found._replace(x=np.where(inputs.valid[:, :, None], found.x, found.x.dtype.type(0)))
        return found

    def _taken(self, inputs: Inputs) -> Inputs:
        return inputs if self._change.inputs is None else self._change.inputs(self.spec, inputs)


def run(layer: Runs, inputs: Inputs) -> Output:
    """The layer called; without an initial state if there was none, since a zero one does not fit a misread batch."""
    return layer(inputs.x, inputs.state if inputs.state_given else None, lengths=inputs.lengths)


def pull_back(layer: Runs, inputs: Inputs, cotangent: Output) -> Gradients:
    """The gradients of `run`."""
    state = inputs.state if inputs.state_given else None
    return layer.vjp(inputs.x, state, lengths=inputs.lengths, cotangent=cotangent)


# --- Edits of named arrays -------------------------------------------------------------------------------------------

Edit = Callable[[RecurrentSpec, Mapping[str, Array]], Mapping[str, Array]]
"""From arrays by name to those that change, of the same shapes.

Names are those of the parameters; h and c; x of gradients, and sequence of an output.
"""
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
        return each(kinds, lambda array: take(spec, array) if len(array) == len(spec.form.gates) else array)(
            spec, arrays
        )

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
        if value is not None:
            named |= (
                value if isinstance(value, Mapping) else _flat(value) if isinstance(value, State) else {field: value}
            )
    return named


def _rebuilt(record: Any, named: Mapping[str, Array]) -> Any:
    made: dict[str, Any] = {}
    for field, value in record._asdict().items():
        if isinstance(value, Mapping):
            made[field] = {name: named[name] for name in value}
        else:
            made[field] = _rebuilt(value, named) if isinstance(value, State) else named.get(field)
    return record._replace(**made)


def edited(edit: Edit) -> Callable[[Weights], Weights]:
    """The edit as a function of weights."""
    return lambda weights: Weights(weights.spec, {**weights.arrays, **edit(weights.spec, weights.arrays)})


def of_weights(edit: Edit, back: Edit | None = None, *, undo: Edit | bool = False) -> Change:
    """An edit of the weights; `back` is its adjoint, and derived unless given.

    Args:
        edit: the edit.
        back: its adjoint.
        undo: the edit that undoes it in advance; True if it is the adjoint.
    """
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
