"""Mistakes with the states: ignored, in another order, h taken for c, taken at the wrong end."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from multirnn.boundary import Inputs
from multirnn.layer import Gradients, Lengths, Output, State
from multirnn.mistakes.change import (
    Change,
    Edit,
    Mistake,
    Runs,
    applied,
    drop,
    in_family,
    of_initial_state,
    of_output,
    pull_back,
    run,
)
from multirnn.mistakes.plumbing import Plumbing
from multirnn.spec import RecurrentSpec
from multirnn.weights import Array

__all__ = ["STATES"]

Applies = Callable[[RecurrentSpec], bool]


def _each_state(change: Callable[[RecurrentSpec, Array], Array]) -> Edit:
    """Both parts of a state changed, `(num_layers * directions, batch, hidden_size)` each."""
    return lambda spec, arrays: {name: change(spec, arrays[name]) for name in spec.form.states}


# --- Ignored ---------------------------------------------------------------------------------------------------------


def _zero_at(places: Callable[[int], slice]) -> Edit:
    """The states of some passes zero, of a stack of so many directions."""

    def zeroed(spec: RecurrentSpec, part: Array) -> Array:
        made = part.copy()
        made[places(len(spec.directions))] = 0
        return made

    return _each_state(zeroed)


def _lowest_everywhere(spec: RecurrentSpec, part: Array) -> Array:
    return np.tile(part[: len(spec.directions)], (spec.num_layers, 1, 1))


def _bidirectional(spec: RecurrentSpec) -> bool:
    return spec.bidirectional


def _lstm(spec: RecurrentSpec) -> bool:
    return spec.cell == "lstm"


def _of_layers(name: str, says: str, edit: Edit, layers: int = 2) -> Mistake:
    """A mistake in the initial states of a stack of at least so many layers."""
    fix = "give each layer its own part of the initial state"
    return Mistake(name, says, fix, of_initial_state(edit), lambda spec: spec.num_layers >= layers)


def _of_direction(given: str, ignored: str, half: str, first: int) -> Mistake:
    return Mistake(
        f"initial state {given} alone",
        f"starts the {ignored} direction from zero",
        f"give the {ignored} direction its own part of the initial state: the {half} half of a Keras Bidirectional's list",
        of_initial_state(_zero_at(lambda directions: slice(first, None, 2))),
        _bidirectional,
    )


# --- In another order ------------------------------------------------------------------------------------------------

Order = Callable[[np.ndarray], np.ndarray]
"""From places `(num_layers, directions)` to their wrong order, of as many numbers."""


def _ordered(order: Order, name: str, says: str, fix: str, applies: Applies) -> tuple[Mistake, ...]:
    """Both ends of a wrong order of the axis of layers and directions."""

    def index(spec: RecurrentSpec) -> np.ndarray:
        places = np.arange(spec.num_layers * len(spec.directions))
        return order(places.reshape(spec.num_layers, -1)).ravel()

    final = _each_state(lambda spec, part: part[index(spec)])
    initial = _each_state(lambda spec, part: part[np.argsort(index(spec))])
    out = Mistake(f"final states {name}", f"hands the final states back {says}", fix, of_output(final), applies)
    into = Mistake(
        f"initial states {name}", f"reads the initial states {says}", fix, of_initial_state(initial), applies
    )
    return *in_family("final state order", out), *in_family("initial state order", into)


def _swapped_parts(spec: RecurrentSpec, arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {"h": arrays["c"], "c": arrays["h"]}


# --- Taken at the wrong end ------------------------------------------------------------------------------------------


def _state_after(steps: Callable[[Lengths], Lengths], directions: tuple[str, ...]) -> Plumbing:
    """The final state of these directions taken from a shorter call."""

    def cut(inputs: Inputs) -> Inputs:
        return replace(inputs, lengths=steps(inputs.valid.sum(axis=1)))

    def forth(direction: str, layer: Runs, inputs: Inputs) -> Output:
        output = run(layer, inputs)
        return Output(output.sequence, run(layer, cut(inputs)).state) if direction in directions else output

    def back(direction: str, layer: Runs, inputs: Inputs, cotangent: Output) -> Gradients:
        if direction not in directions:
            return pull_back(layer, inputs, cotangent)
        whole = pull_back(layer, inputs, applied(drop("h", "c"), layer.spec, cotangent))
        end = pull_back(layer, cut(inputs), applied(drop("sequence"), layer.spec, cotangent))
        return Gradients(
            {name: array + end.weights[name] for name, array in whole.weights.items()},
            whole.x + end.x,
            State(*map(np.add, whole.state.parts, end.state.parts)),
        )

    return Plumbing(run=forth, pull_back=back)


def _short(spec: RecurrentSpec, inputs: Inputs, output: Output) -> Output:
    """The top layer's forward h without the rows that end in padding."""
    h = output.state.h.copy()
    h[-len(spec.directions), ~inputs.valid.all(axis=1)] = 0
    return output._replace(state=output.state._replace(h=h))


STATES: tuple[Mistake, ...] = (
    *in_family(
        "initial state",
        Mistake(
            "initial state ignored",
            "starts from zero whatever initial state is given",
            "pass the initial state on: hx in PyTorch, initial_state= in Keras, initial_carry= in Flax",
            of_initial_state(drop("h", "c")),
        ),
        *(
            Mistake(
                f"initial {part} ignored",
                f"starts with {part} at zero and takes {other} alone from the initial state",
                "pass both parts of the initial state on, (h, c)",
                of_initial_state(drop(part)),
                _lstm,
            )
            for part, other in ("hc", "ch")
        ),
        _of_layers(
            "initial state in the lowest layer alone",
            "starts the layers above the lowest one from zero",
            _zero_at(lambda directions: slice(directions, None)),
        ),
        _of_layers(
            "initial state ignored in the lowest layer",
            "starts the lowest layer from zero and the layers above from the initial state",
            _zero_at(lambda directions: slice(directions)),
        ),
        _of_layers(
            "initial state ignored in the top layer",
            "starts the top layer from zero and the layers below from the initial state",
            _zero_at(lambda directions: slice(-directions, None)),
            layers=3,
        ),
        _of_layers(
            "initial state of the lowest layer in all",
            "starts every layer with the initial state of the lowest one",
            _each_state(_lowest_everywhere),
        ),
        _of_direction("forward", "backward", "second", 1),
        _of_direction("backward", "forward", "first", 0),
    ),
    *_ordered(
        lambda places: places.T,
        "by direction",
        "in the order of directions, all layers forward and then all layers backward, where layers come first, layer 0 "
        "forward, layer 0 backward, layer 1 forward and so on",
        "reshape the first axis to (num_layers, directions), as PyTorch's h_n has it, not to (directions, num_layers)",
        lambda spec: spec.bidirectional and spec.num_layers > 1,
    ),
    *_ordered(
        lambda places: np.argsort(places.T.ravel()),
        "meant by direction",
        "as if they came in the order of directions, all layers forward and then all layers backward: it moves states that "
        "are in the order of layers already",
        "leave the first axis in the order of layers: layer 0 forward, layer 0 backward, layer 1 forward and so on",
        lambda spec: spec.bidirectional and spec.num_layers > 2,  # with two layers it equals the order above
    ),
    *_ordered(
        lambda places: places[:, ::-1],
        "backward first",
        "with the backward direction before the forward one in each layer",
        "put the forward direction first, as PyTorch, Keras and ONNX do",
        _bidirectional,
    ),
    *_ordered(
        lambda places: places[::-1],
        "from the top",
        "from the top layer down",
        "put the lowest layer first, so that h[-1] is the top layer's",
        lambda spec: spec.num_layers > 1,
    ),
    *_ordered(
        lambda places: places[::-1, ::-1],
        "from the last to the first",
        "from the top layer down, and with the backward direction before the forward one in each layer",
        "do not reverse the first axis: the lowest layer comes first, and forward before backward",
        lambda spec: spec.bidirectional and spec.num_layers > 1,
    ),
    *in_family(
        "final state",
        Mistake(
            "final h and c swapped",
            "hands the final state back as (c, h), the order of Flax' carry; here it is (h, c)",
            "swap the two parts of the final state",
            of_output(_swapped_parts),
            _lstm,
        ),
    ),
    *in_family(
        "initial state",
        Mistake(
            "initial h and c swapped",
            "reads the initial state as (c, h), the order of Flax' carry; here it is (h, c)",
            "swap the two parts of the initial state",
            of_initial_state(_swapped_parts),
            _lstm,
        ),
    ),
    *in_family(
        "final state",
        Mistake(
            "reverse state at the wrong end",
            "takes the backward direction's final state at the last time step, which is the first that it processes",
            "take it at step 0: h_n of PyTorch, not output[:, -1]",
            _state_after(lambda lengths: np.minimum(lengths, 1), ("backward",)),
            _bidirectional,
        ),
        Mistake(
            "final state before the last step",
            "hands back the state before the last step as the final state",
            "return the state after the last step, h_n",
            _state_after(lambda lengths: np.maximum(lengths - 1, 0), ("forward", "backward")),
        ),
        Mistake(
            "final state at the padded end",
            "takes the final h of a row at the last column of the batch, output[:, -1], which is padding where the row is "
            "shorter",
            "take each row at its own length - 1: h_n of a packed sequence, or gather",
            Change(output=_short, cotangent=_short),
            shows="lengths",
        ),
    ),
)
