"""Mistakes with the states: ignored, in another order, h taken for c, taken at the wrong end."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from multirnn.assembly import Plumbing
from multirnn.boundary import Inputs
from multirnn.layer import Gradients, Lengths, Output, State
from multirnn.mistakes import Change, Mistake, Runs
from multirnn.spec import RecurrentSpec
from multirnn.weights import Array

__all__ = ["STATES"]

Applies = Callable[[RecurrentSpec], bool]
Map = Callable[[RecurrentSpec, State], State]
"""A linear map of states, `(num_layers * directions, batch, hidden_size)` each."""


def _each(state: State, change: Callable[[Array], Array]) -> State:
    return State(*(change(part) for part in state if part is not None))


def _into(forth: Map, back: Map) -> Change:
    """The initial state changed on its way in."""
    return Change(
        inputs=lambda spec, inputs: replace(inputs, state=forth(spec, inputs.state)),
        gradients=lambda spec, inputs, found: found._replace(state=back(spec, found.state)),
    )


def _out_of(forth: Map, back: Map) -> Change:
    """The final state changed on its way out."""
    return Change(
        output=lambda spec, inputs, output: Output(output.sequence, forth(spec, output.state)),
        cotangent=lambda spec, inputs, cotangent: Output(cotangent.sequence, back(spec, cotangent.state)),
    )


# --- Ignored ---------------------------------------------------------------------------------------------------------


def _zero_h(spec: RecurrentSpec, state: State) -> State:
    return state._replace(h=np.zeros_like(state.h))


def _zero_c(spec: RecurrentSpec, state: State) -> State:
    return State(state.h, _each(state, np.zeros_like).c)


def _zero(spec: RecurrentSpec, state: State) -> State:
    return _each(state, np.zeros_like)


def _zero_at(places: Callable[[int], slice]) -> Map:
    """The states of some passes zero, of a stack of so many directions."""

    def zeroed(spec: RecurrentSpec, state: State) -> State:
        def change(part: Array) -> Array:
            made = part.copy()
            made[places(len(spec.directions))] = 0
            return made

        return _each(state, change)

    return zeroed


def _lowest_everywhere(spec: RecurrentSpec, state: State) -> State:
    return _each(state, lambda part: np.tile(part[: len(spec.directions)], (spec.num_layers, 1, 1)))


def _added_to_lowest(spec: RecurrentSpec, state: State) -> State:
    """The adjoint of `_lowest_everywhere`."""

    def change(part: Array) -> Array:
        made = np.zeros_like(part)
        made[: len(spec.directions)] = part.reshape(spec.num_layers, -1, *part.shape[1:]).sum(axis=0)
        return made

    return _each(state, change)


def _lstm(spec: RecurrentSpec) -> bool:
    return spec.cell == "lstm"


def _stacked(spec: RecurrentSpec) -> bool:
    return spec.num_layers > 1


def _bidirectional(spec: RecurrentSpec) -> bool:
    return spec.bidirectional


def _ignored(name: str, says: str, fix: str, applies: Applies, masked: Map, back: Map | None = None) -> Mistake:
    return Mistake(name, "initial state", says, fix, applies, realise=_into(masked, back or masked))


_IGNORED = (
    _ignored(
        "initial state ignored",
        "starts from zero whatever initial state is given",
        "pass the initial state on: hx in PyTorch, initial_state= in Keras, initial_carry= in Flax",
        lambda spec: True,
        _zero,
    ),
    _ignored(
        "initial h ignored",
        "starts with h at zero and takes c alone from the initial state",
        "pass both parts of the initial state on, (h, c)",
        _lstm,
        _zero_h,
    ),
    _ignored(
        "initial c ignored",
        "starts with c at zero and takes h alone from the initial state",
        "pass both parts of the initial state on, (h, c)",
        _lstm,
        _zero_c,
    ),
    _ignored(
        "initial state in the lowest layer alone",
        "starts the layers above the lowest one from zero",
        "give each layer its own part of the initial state",
        _stacked,
        _zero_at(lambda directions: slice(directions, None)),
    ),
    _ignored(
        "initial state ignored in the lowest layer",
        "starts the lowest layer from zero and the layers above from the initial state",
        "give each layer its own part of the initial state",
        _stacked,
        _zero_at(lambda directions: slice(directions)),
    ),
    _ignored(
        "initial state ignored in the top layer",
        "starts the top layer from zero and the layers below from the initial state",
        "give each layer its own part of the initial state",
        lambda spec: spec.num_layers > 2,
        _zero_at(lambda directions: slice(-directions, None)),
    ),
    _ignored(
        "initial state of the lowest layer in all",
        "starts every layer with the initial state of the lowest one",
        "give each layer its own part of the initial state",
        _stacked,
        _lowest_everywhere,
        _added_to_lowest,
    ),
    _ignored(
        "initial state forward alone",
        "starts the backward direction from zero",
        "give the backward direction its own part of the initial state: the second half of a Keras Bidirectional's list",
        _bidirectional,
        _zero_at(lambda directions: slice(1, None, 2)),
    ),
    _ignored(
        "initial state backward alone",
        "starts the forward direction from zero",
        "give the forward direction its own part of the initial state: the first half of a Keras Bidirectional's list",
        _bidirectional,
        _zero_at(lambda directions: slice(0, None, 2)),
    ),
)

# --- In another order ------------------------------------------------------------------------------------------------


def _swapped_parts(spec: RecurrentSpec, state: State) -> State:
    assert state.c is not None
    return State(state.c, state.h)


def _ordered(
    order: Callable[[RecurrentSpec], np.ndarray], name: str, says: str, fix: str, applies: Applies
) -> tuple[Mistake, Mistake]:
    """Both ends of a wrong order of the axis of layers and directions."""

    def forth(spec: RecurrentSpec, state: State) -> State:
        index = order(spec)
        return _each(state, lambda part: part[index])

    def back(spec: RecurrentSpec, state: State) -> State:
        index = np.argsort(order(spec))
        return _each(state, lambda part: part[index])

    return (
        Mistake(
            f"final states {name}",
            "final state order",
            f"hands the final states back {says}",
            fix,
            applies,
            realise=_out_of(forth, back),
        ),
        Mistake(
            f"initial states {name}",
            "initial state order",
            f"reads the initial states {says}",
            fix,
            applies,
            realise=_into(back, forth),
        ),
    )


def _places(spec: RecurrentSpec) -> np.ndarray:
    return np.arange(spec.num_layers * len(spec.directions)).reshape(spec.num_layers, -1)


_ORDERS = (
    *_ordered(
        lambda spec: _places(spec).T.ravel(),
        "by direction",
        "in the order of directions, all layers forward and then all layers backward, where layers come first, layer 0 "
        "forward, layer 0 backward, layer 1 forward and so on",
        "reshape the first axis to (num_layers, directions), as PyTorch's h_n has it, not to (directions, num_layers)",
        lambda spec: spec.bidirectional and spec.num_layers > 1,
    ),
    *_ordered(
        lambda spec: np.argsort(_places(spec).T.ravel()),
        "meant by direction",
        "as if they came in the order of directions, all layers forward and then all layers backward: it moves states that "
        "are in the order of layers already",
        "leave the first axis in the order of layers: layer 0 forward, layer 0 backward, layer 1 forward and so on",
        lambda spec: spec.bidirectional and spec.num_layers > 2,  # with two layers it equals the order above
    ),
    *_ordered(
        lambda spec: _places(spec)[:, ::-1].ravel(),
        "backward first",
        "with the backward direction before the forward one in each layer",
        "put the forward direction first, as PyTorch, Keras and ONNX do",
        _bidirectional,
    ),
    *_ordered(
        lambda spec: _places(spec)[::-1].ravel(),
        "from the top",
        "from the top layer down",
        "put the lowest layer first, so that h[-1] is the top layer's",
        _stacked,
    ),
    *_ordered(
        lambda spec: _places(spec)[::-1, ::-1].ravel(),
        "from the last to the first",
        "from the top layer down, and with the backward direction before the forward one in each layer",
        "do not reverse the first axis: the lowest layer comes first, and forward before backward",
        lambda spec: spec.bidirectional and spec.num_layers > 1,
    ),
)
_PARTS = (
    Mistake(
        "final h and c swapped",
        "final state",
        "hands the final state back as (c, h), the order of Flax' carry; here it is (h, c)",
        "swap the two parts of the final state",
        _lstm,
        realise=_out_of(_swapped_parts, _swapped_parts),
    ),
    Mistake(
        "initial h and c swapped",
        "initial state",
        "reads the initial state as (c, h), the order of Flax' carry; here it is (h, c)",
        "swap the two parts of the initial state",
        _lstm,
        realise=_into(_swapped_parts, _swapped_parts),
    ),
)

# --- Taken at the wrong end ------------------------------------------------------------------------------------------


def _cut_to(steps: Callable[[Lengths], Lengths], inputs: Inputs) -> Inputs:
    """The call with other lengths."""
    batch, time, _ = inputs.x.shape
    return replace(inputs, lengths=steps(np.full(batch, time, np.int64) if inputs.lengths is None else inputs.lengths))


def _state_after(steps: Callable[[Lengths], Lengths], directions: tuple[str, ...]) -> Plumbing:
    """The final state of these directions taken from a shorter call."""

    def run(direction: str, layer: Runs, inputs: Inputs) -> Output:
        output = layer(inputs.x, inputs.state, lengths=inputs.lengths)
        if direction not in directions:
            return output
        cut = _cut_to(steps, inputs)
        return Output(output.sequence, layer(cut.x, cut.state, lengths=cut.lengths).state)

    def pull_back(direction: str, layer: Runs, inputs: Inputs, cotangent: Output) -> Gradients:
        if direction not in directions:
            return layer.vjp(inputs.x, inputs.state, lengths=inputs.lengths, cotangent=cotangent)
        none = _each(cotangent.state, np.zeros_like)
        whole = layer.vjp(inputs.x, inputs.state, lengths=inputs.lengths, cotangent=Output(cotangent.sequence, none))
        cut = _cut_to(steps, inputs)
        of_state = Output(np.zeros_like(cotangent.sequence), cotangent.state)
        end = layer.vjp(cut.x, cut.state, lengths=cut.lengths, cotangent=of_state)
        parts = zip(whole.state, end.state, strict=True)
        return Gradients(
            {name: array + end.weights[name] for name, array in whole.weights.items()},
            whole.x + end.x,
            State(*(a + b for a, b in parts if a is not None and b is not None)),
        )

    return Plumbing(run=run, pull_back=pull_back)


def _short(spec: RecurrentSpec, inputs: Inputs, state: State) -> State:
    """The top layer's forward h without the rows that end in padding."""
    if inputs.lengths is None:
        return state
    h = state.h.copy()
    h[-len(spec.directions), inputs.lengths < inputs.x.shape[1]] = 0
    return state._replace(h=h)


_ENDS = (
    Mistake(
        "reverse state at the wrong end",
        "final state",
        "takes the backward direction's final state at the last time step, which is the first that it processes",
        "take it at step 0: h_n of PyTorch, not output[:, -1]",
        _bidirectional,
        realise=_state_after(lambda lengths: np.minimum(lengths, 1), ("backward",)),
    ),
    Mistake(
        "final state before the last step",
        "final state",
        "hands back the state before the last step as the final state",
        "return the state after the last step, h_n",
        lambda spec: True,
        realise=_state_after(lambda lengths: np.maximum(lengths - 1, 0), ("forward", "backward")),
    ),
    Mistake(
        "final state at the padded end",
        "final state",
        "takes the final h of a row at the last column of the batch, output[:, -1], which is padding where the row is "
        "shorter",
        "take each row at its own length - 1: h_n of a packed sequence, or gather",
        lambda spec: True,
        realise=Change(
            output=lambda spec, inputs, output: Output(output.sequence, _short(spec, inputs, output.state)),
            cotangent=lambda spec, inputs, cotangent: Output(cotangent.sequence, _short(spec, inputs, cotangent.state)),
        ),
        shows="lengths",
    ),
)

STATES: tuple[Mistake, ...] = (*_IGNORED, *_ORDERS, *_PARTS, *_ENDS)
