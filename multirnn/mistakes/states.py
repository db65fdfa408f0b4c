"""Mistakes with the states: ignored, in another order, h taken for c, taken at the wrong end."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from multirnn.boundary import Inputs
from multirnn.layer import Gradients, Lengths, Output, State
from multirnn.mistakes.change import Applies, Change, Runs, bidirectional, known, pull_back, run
from multirnn.mistakes.edits import Edit, applied, drop, of_initial_state, of_output
from multirnn.mistakes.plumbing import Plumbing
from multirnn.spec import RecurrentSpec
from multirnn.weights import Array

__all__ = ["STATES"]


def _each_state(change: Callable[[RecurrentSpec, Array], Array]) -> Edit:
    """Both parts of a state changed, `(num_layers * directions, batch, hidden_size)` each."""
    return lambda spec, arrays: {name: change(spec, arrays[name]) for name in spec.form.states}


def _zero_at(places: Callable[[int], slice]) -> Edit:
    """The states of some passes zero, of a stack of so many directions."""

    def zeroed(spec: RecurrentSpec, part: Array) -> Array:
        made = part.copy()
        made[places(len(spec.directions))] = 0
        return made

    return _each_state(zeroed)


_LOWEST_EVERYWHERE = _each_state(lambda spec, part: np.tile(part[: len(spec.directions)], (spec.num_layers, 1, 1)))


def _lstm(spec: RecurrentSpec) -> bool:
    return spec.cell == "lstm"


def _of_layers(edit: Edit, layers: int = 2) -> tuple[Change, Applies]:
    """The initial states changed of a stack of at least so many layers."""
    return of_initial_state(edit), lambda spec: spec.num_layers >= layers


Order = Callable[[np.ndarray], np.ndarray]  # from places (num_layers, directions) to as many in a wrong order


def _ordered(name: str, order: Order, applies: Applies) -> dict[str, tuple[Change, Applies]]:
    """Both ends of a wrong order of the axis of layers and directions."""

    def index(spec: RecurrentSpec) -> np.ndarray:
        places = np.arange(spec.num_layers * len(spec.directions))
        return order(places.reshape(spec.num_layers, -1)).ravel()

    final = of_output(_each_state(lambda spec, part: part[index(spec)]))
    initial = of_initial_state(_each_state(lambda spec, part: part[np.argsort(index(spec))]))
    return {f"final states {name}": (final, applies), f"initial states {name}": (initial, applies)}


def _both_in_stacks(spec: RecurrentSpec) -> bool:
    return spec.bidirectional and spec.num_layers > 1


def _swapped_parts(spec: RecurrentSpec, arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {"h": arrays["c"], "c": arrays["h"]}


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


STATES = known(
    "states",
    {
        "initial state ignored": of_initial_state(drop("h", "c")),
        "initial h ignored": (of_initial_state(drop("h")), _lstm),
        "initial c ignored": (of_initial_state(drop("c")), _lstm),
        "initial state in the lowest layer alone": _of_layers(_zero_at(lambda directions: slice(directions, None))),
        "initial state ignored in the lowest layer": _of_layers(_zero_at(slice)),
        "initial state ignored in the top layer": _of_layers(_zero_at(lambda directions: slice(-directions, None)), 3),
        "initial state of the lowest layer in all": _of_layers(_LOWEST_EVERYWHERE),
        "initial state forward alone": (of_initial_state(_zero_at(lambda _: slice(1, None, 2))), bidirectional),
        "initial state backward alone": (of_initial_state(_zero_at(lambda _: slice(0, None, 2))), bidirectional),
        **_ordered("by direction", lambda places: places.T, _both_in_stacks),
        **_ordered(
            "meant by direction",
            lambda places: np.argsort(places.T.ravel()),
            lambda spec: spec.bidirectional and spec.num_layers > 2,  # with two layers it equals the order above
        ),
        **_ordered("backward first", lambda places: places[:, ::-1], bidirectional),
        **_ordered("from the top", lambda places: places[::-1], lambda spec: spec.num_layers > 1),
        **_ordered("from the last to the first", lambda places: places[::-1, ::-1], _both_in_stacks),
        "final h and c swapped": (of_output(_swapped_parts), _lstm),
        "initial h and c swapped": (of_initial_state(_swapped_parts), _lstm),
        "reverse state at the wrong end": (
            _state_after(lambda lengths: np.minimum(lengths, 1), ("backward",)),
            bidirectional,
        ),
        "final state before the last step": _state_after(
            lambda lengths: np.maximum(lengths - 1, 0), ("forward", "backward")
        ),
        "final state at the padded end": Change(output=_short, cotangent=_short),
    },
)
