"""Mistakes in the backward pass: cut, truncated, forgotten, scaled; the outputs are right."""

from collections.abc import Callable
from dataclasses import replace
from itertools import repeat

import numpy as np

from multirnn.boundary import Boundary, Inputs
from multirnn.layer import Gradients, Output, State
from multirnn.mistakes.change import (
    BIASES,
    Build,
    Change,
    Mistake,
    Runs,
    drop,
    in_family,
    of_cotangent,
    of_gradients,
    pull_back,
    run,
)
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


GRADIENTS = in_family(
    "gradient",
    Mistake(
        "gradient detached between layers",
        "stops the gradient between two layers, so that only the top one learns",
        "pass the sequence from layer to layer without detach(), stop_gradient or a way through NumPy",
        Plumbing(detached=True),
        lambda spec: spec.num_layers > 1,
    ),
    Mistake(
        "gradient truncated half-way",
        "cuts the gradient through the state in the middle of the sequence, as truncated backpropagation through time does",
        "pass the state from chunk to chunk without detach(), or run the whole sequence at once",
        _truncated(lambda time: [0, time // 2, time] if time > 1 else [0, time]),
    ),
    Mistake(
        "gradient truncated at every step",
        "detaches the state at every step, so that no gradient flows back in time",
        "pass the state from step to step without detach() or stop_gradient",
        _truncated(lambda time: list(range(time + 1))),
    ),
    Mistake(
        "gradient of the input missing",
        "gives no gradient for the input",
        "do not detach the input",
        of_gradients(drop("x")),
    ),
    Mistake(
        "gradient of the initial state missing",
        "gives no gradient for the initial state",
        "do not detach the initial state, nor make a new one of its values",
        of_gradients(drop("h", "c")),
    ),
    Mistake(
        "gradient of the recurrent kernel missing",
        "gives no gradient for weight_hh",
        "make weight_hh trainable, and multiply with it and not with a copy of its values",
        of_gradients(drop("weight_hh")),
    ),
    Mistake(
        "gradient of the biases missing",
        "gives no gradient for the biases",
        "make the biases trainable, and add them and not copies of their values",
        of_gradients(drop(*BIASES)),
        lambda spec: spec.bias != "none",
    ),
    Mistake(
        "gradient from the final state missing",
        "ignores what comes back through the final state",
        "return the final state without detach()",
        of_cotangent(drop("h", "c")),
    ),
    Mistake(
        "gradient from the final c missing",
        "ignores what comes back through the final c",
        "return the final c without detach()",
        of_cotangent(drop("c")),
        lambda spec: spec.cell == "lstm",
    ),
    Mistake(
        "gradient from the last step alone",
        "takes what comes back through the last step's output for all of it: overwritten at each step, not summed",
        "add the gradients of the steps up",
        Change(cotangent=_last_step_alone),
    ),
    Mistake(
        "gradient of the biases doubled",
        "gives the biases twice their gradient, as when one parameter stands for both",
        "keep one bias trainable, or halve its gradient",
        _weights_times(lambda name, inputs: 2.0 if "bias" in name else 1.0),
        lambda spec: spec.bias != "none",
    ),
    Mistake(
        "gradient averaged over the batch",
        "divides the gradients of the weights by the number of rows",
        "sum over the rows; a mean belongs into the loss",
        _weights_times(lambda name, inputs: 1 / len(inputs.x)),
    ),
    Mistake(
        "gradient averaged over time",
        "divides the gradients of the weights by the number of steps",
        "sum over the steps; a mean belongs into the loss",
        _weights_times(lambda name, inputs: 1 / inputs.x.shape[1]),
    ),
    Mistake(
        "gradient run through the padding",
        "computes the gradients without the lengths: what comes back through the final state runs through the padding",
        "give the backward pass the same mask or lengths as the forward pass",
        _WithoutLengths,
    ),
    shows="gradients",
)
