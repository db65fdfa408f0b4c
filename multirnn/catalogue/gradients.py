"""Mistakes in the backward pass: cut, truncated, forgotten, scaled; the outputs are right."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise

import numpy as np

from multirnn.assembly import Plumbing, chunk
from multirnn.boundary import Boundary, Inputs
from multirnn.layer import Gradients, Output, State
from multirnn.mistakes import Build, Change, Mistake, Runs
from multirnn.spec import RecurrentSpec
from multirnn.weights import Array, Weights

__all__ = ["GRADIENTS"]

Applies = Callable[[RecurrentSpec], bool]
Way = Callable[[RecurrentSpec, Inputs, Gradients], Gradients]


def _always(spec: RecurrentSpec) -> bool:
    return True


def _has_biases(spec: RecurrentSpec) -> bool:
    return spec.bias != "none"


def _lstm(spec: RecurrentSpec) -> bool:
    return spec.cell == "lstm"


def _zero(state: State) -> State:
    return State(*(np.zeros_like(part) for part in state if part is not None))


# --- Cut -------------------------------------------------------------------------------------------------------------


def _without(*kinds: str) -> Way:
    """The gradients of these parameters zero."""

    def change(spec: RecurrentSpec, inputs: Inputs, found: Gradients) -> Gradients:
        return found._replace(
            weights={n: np.zeros_like(a) if n.endswith(kinds) else a for n, a in found.weights.items()}
        )

    return change


def _without_x(spec: RecurrentSpec, inputs: Inputs, found: Gradients) -> Gradients:
    return found._replace(x=np.zeros_like(found.x))


def _without_state(spec: RecurrentSpec, inputs: Inputs, found: Gradients) -> Gradients:
    return found._replace(state=_zero(found.state))


def _sequence_alone(spec: RecurrentSpec, inputs: Inputs, cotangent: Output) -> Output:
    return Output(cotangent.sequence, _zero(cotangent.state))


def _without_c(spec: RecurrentSpec, inputs: Inputs, cotangent: Output) -> Output:
    return Output(cotangent.sequence, State(cotangent.state.h, _zero(cotangent.state).c))


def _last_step_alone(spec: RecurrentSpec, inputs: Inputs, cotangent: Output) -> Output:
    """The cotangent of each row's last valid step; of the others nothing comes back."""
    sequence = cotangent.sequence.copy()
    batch, time, _ = sequence.shape
    lengths = np.full(batch, time) if inputs.lengths is None else inputs.lengths
    sequence[np.arange(time) < lengths[:, None] - 1] = 0
    return cotangent._replace(sequence=sequence)


# --- Truncated -------------------------------------------------------------------------------------------------------


def _truncated(bounds: Callable[[int], list[int]]) -> Callable[[str, Runs, Inputs, Output], Gradients]:
    """The gradients of a pass whose state is detached at these steps."""

    def pull_back(direction: str, layer: Runs, inputs: Inputs, cotangent: Output) -> Gradients:
        edges = bounds(inputs.x.shape[1])
        chunks = []
        state = inputs.state
        for start, stop in pairwise(edges):
            taken = replace(chunk(inputs, start, stop), state=state)
            chunks.append((start, stop, taken))
            state = layer(taken.x, taken.state, lengths=taken.lengths).state
        weights: dict[str, Array] = {}
        dx: list[Array] = []
        dstate = cotangent.state
        for start, stop, taken in reversed(chunks):
            part = Output(cotangent.sequence[:, start:stop], dstate)
            found = layer.vjp(taken.x, taken.state, lengths=taken.lengths, cotangent=part)
            weights = {name: array + weights.get(name, 0) for name, array in found.weights.items()}
            dx.insert(0, found.x)
            # A row that ended before this chunk runs no step in it, so its state is not detached there.
            over = np.zeros(len(taken.x), bool) if taken.lengths is None else taken.lengths == 0
            dstate = State(*(p * over[:, None] for p in found.state if p is not None)) if start else found.state
        return Gradients(weights, np.concatenate(dx, axis=1), dstate)

    return pull_back


def _halfway(time: int) -> list[int]:
    return [0, time // 2, time] if time > 1 else [0, time]


def _each_step(time: int) -> list[int]:
    return list(range(time + 1))


# --- Run through the padding -----------------------------------------------------------------------------------------


class _WithoutLengths(Boundary):
    """Right forward; backward as if there were no padding."""

    def __init__(self, build: Build, weights: Weights) -> None:
        super().__init__(weights.spec)
        self._inner = build(weights)

    def run(self, inputs: Inputs) -> Output:
        return self._inner(inputs.x, inputs.state, lengths=inputs.lengths)

    def pull_back(self, inputs: Inputs, cotangent: Output) -> Gradients:
        return self._inner.vjp(inputs.x, inputs.state, cotangent=cotangent)


# --- Scaled ----------------------------------------------------------------------------------------------------------


def _weights_times(factor: Callable[[str, Inputs], float]) -> Way:
    def change(spec: RecurrentSpec, inputs: Inputs, found: Gradients) -> Gradients:
        scaled: Mapping[str, Array] = {n: a * a.dtype.type(factor(n, inputs)) for n, a in found.weights.items()}
        return found._replace(weights=scaled)

    return change


def _gradient(
    name: str, says: str, fix: str, way: Way | None = None, *, applies: Applies = _always, change: Change | None = None
) -> Mistake:
    return Mistake(name, "gradient", says, fix, applies, realise=change or Change(gradients=way), shows="gradients")


def _cut(name: str, says: str, fix: str, plumbing: Plumbing, applies: Applies = _always) -> Mistake:
    return Mistake(name, "gradient", says, fix, applies, realise=plumbing, shows="gradients")


GRADIENTS: tuple[Mistake, ...] = (
    _cut(
        "gradient detached between layers",
        "stops the gradient between two layers, so that only the top one learns",
        "pass the sequence from layer to layer without detach(), stop_gradient or a way through NumPy",
        Plumbing(detached=True),
        lambda spec: spec.num_layers > 1,
    ),
    _cut(
        "gradient truncated half-way",
        "cuts the gradient through the state in the middle of the sequence, as truncated backpropagation through time does",
        "pass the state from chunk to chunk without detach(), or run the whole sequence at once",
        Plumbing(pull_back=_truncated(_halfway)),
    ),
    _cut(
        "gradient truncated at every step",
        "detaches the state at every step, so that no gradient flows back in time",
        "pass the state from step to step without detach() or stop_gradient",
        Plumbing(pull_back=_truncated(_each_step)),
    ),
    _gradient(
        "gradient of the input missing",
        "gives no gradient for the input",
        "do not detach the input",
        _without_x,
    ),
    _gradient(
        "gradient of the initial state missing",
        "gives no gradient for the initial state",
        "do not detach the initial state, nor make a new one of its values",
        _without_state,
    ),
    _gradient(
        "gradient of the recurrent kernel missing",
        "gives no gradient for weight_hh",
        "make weight_hh trainable, and multiply with it and not with a copy of its values",
        _without("weight_hh"),
    ),
    _gradient(
        "gradient of the biases missing",
        "gives no gradient for the biases",
        "make the biases trainable, and add them and not copies of their values",
        _without("bias_ih", "bias_hh"),
        applies=_has_biases,
    ),
    _gradient(
        "gradient from the final state missing",
        "ignores what comes back through the final state",
        "return the final state without detach()",
        change=Change(cotangent=_sequence_alone),
    ),
    _gradient(
        "gradient from the final c missing",
        "ignores what comes back through the final c",
        "return the final c without detach()",
        applies=_lstm,
        change=Change(cotangent=_without_c),
    ),
    _gradient(
        "gradient from the last step alone",
        "takes what comes back through the last step's output for all of it: overwritten at each step, not summed",
        "add the gradients of the steps up",
        change=Change(cotangent=_last_step_alone),
    ),
    _gradient(
        "gradient of the biases doubled",
        "gives the biases twice their gradient, as when one parameter stands for both",
        "keep one bias trainable, or halve its gradient",
        _weights_times(lambda name, inputs: 2.0 if "bias" in name else 1.0),
        applies=_has_biases,
    ),
    _gradient(
        "gradient averaged over the batch",
        "divides the gradients of the weights by the number of rows",
        "sum over the rows; a mean belongs into the loss",
        _weights_times(lambda name, inputs: 1 / len(inputs.x)),
    ),
    _gradient(
        "gradient averaged over time",
        "divides the gradients of the weights by the number of steps",
        "sum over the steps; a mean belongs into the loss",
        _weights_times(lambda name, inputs: 1 / inputs.x.shape[1]),
    ),
    Mistake(
        "gradient run through the padding",
        "gradient",
        "computes the gradients without the lengths: what comes back through the final state runs through the padding",
        "give the backward pass the same mask or lengths as the forward pass",
        _always,
        realise=_WithoutLengths,
        shows="gradients",
    ),
)
