"""Mistakes in the backward pass: cut, truncated, forgotten, scaled; the outputs are right."""

from collections.abc import Callable
from dataclasses import replace
from itertools import repeat

import numpy as np

from multirnn.boundary import Boundary, Inputs
from multirnn.layer import Gradients, Output, State
from multirnn.mistakes.change import Build, Change, Runs, biased, known, pull_back, run
from multirnn.mistakes.edits import BIASES, drop, of_cotangent, of_gradients
from multirnn.mistakes.plumbing import Chunks, Plumbing
from multirnn.spec import RecurrentSpec
from multirnn.weights import Weights

__all__ = ["GRADIENTS"]


def _last_step_alone(spec: RecurrentSpec, inputs: Inputs, cotangent: Output) -> Output:
    """The cotangent of each row's last valid step; of the others nothing comes back."""
    sequence = cotangent.sequence.copy()
    sequence[np.arange(sequence.shape[1]) < inputs.valid.sum(axis=1, keepdims=True) - 1] = 0
    return cotangent._replace(sequence=sequence)


def _truncated(edges: Callable[[int], list[int]]) -> Plumbing:
    """The state of every pass detached at these steps."""

    def detached(place: int, taken: Inputs, found: Gradients) -> Gradients:
        # A row that ended before this chunk runs no step in it, so its state is not detached there.
        over = np.zeros(len(taken.x), bool) if taken.lengths is None else taken.lengths == 0
        return found._replace(state=State(*(part * over[:, None] for part in found.state.parts))) if place else found

    def back(direction: str, layer: Runs, inputs: Inputs, cotangent: Output) -> Gradients:
        return Chunks(repeat(layer), inputs, edges(inputs.x.shape[1])).pull_back(cotangent, detached)

    return Plumbing(pull_back=back)


class _WithoutLengths(Boundary):
    """Right forward; backward as if there were no padding."""

    def __init__(self, build: Build, weights: Weights) -> None:
        super().__init__(weights.spec)
        self._inner = build(weights)

    def run(self, inputs: Inputs) -> Output:
        return run(self._inner, inputs)

    def pull_back(self, inputs: Inputs, cotangent: Output) -> Gradients:
        return pull_back(self._inner, replace(inputs, lengths=None), cotangent)


def _weights_times(factor: Callable[[str, Inputs], float]) -> Change:
    return Change(
        gradients=lambda spec, inputs, found: found._replace(
            weights={name: array * array.dtype.type(factor(name, inputs)) for name, array in found.weights.items()}
        )
    )


GRADIENTS = known(
    "gradients",
    {
        "gradient detached between layers": (Plumbing(detached=True), lambda spec: spec.num_layers > 1),
        "gradient truncated half-way": _truncated(lambda time: [0, time // 2, time] if time > 1 else [0, time]),
        "gradient truncated at every step": _truncated(lambda time: list(range(time + 1))),
        "gradient of the input missing": of_gradients(drop("x")),
        "gradient of the initial state missing": of_gradients(drop("h", "c")),
        "gradient of the recurrent kernel missing": of_gradients(drop("weight_hh")),
        "gradient of the biases missing": (of_gradients(drop(*BIASES)), biased),
        "gradient from the final state missing": of_cotangent(drop("h", "c")),
        "gradient from the final c missing": (of_cotangent(drop("c")), lambda spec: spec.cell == "lstm"),
        "gradient from the last step alone": Change(cotangent=_last_step_alone),
        "gradient of the biases doubled": (_weights_times(lambda name, inputs: 2 if "bias" in name else 1), biased),
        "gradient averaged over the batch": _weights_times(lambda name, inputs: 1 / len(inputs.x)),
        "gradient averaged over time": _weights_times(lambda name, inputs: 1 / inputs.x.shape[1]),
        "gradient run through the padding": _WithoutLengths,
    },
)
