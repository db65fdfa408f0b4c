"""A stack assembled from one-layer, one-direction passes, and the plumbing between them.

With the right plumbing it equals the stack, whatever builds the passes. People write this plumbing by hand around a
framework's single layers, and make mistakes in it: a reverse output that is not flipped back, directions concatenated in
the wrong order, a gradient detached between two layers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from multirnn.boundary import Boundary, Inputs
from multirnn.layer import Gradients, Lengths, Output, State
from multirnn.mistakes import Build, Runs, state_as_given
from multirnn.weights import Array, Weights

__all__ = [
    "Assembly",
    "Plumbing",
    "built",
    "chunk",
    "concatenated",
    "pull_back",
    "reversed_rows",
    "run",
    "taken_apart",
    "unchanged",
]

Flip = Callable[[Array, Lengths | None], Array]


def reversed_rows(sequence: Array, lengths: Lengths | None) -> Array:
    """Every row of `(batch, time, n)` reversed in time within its length. Its own inverse and adjoint."""
    if lengths is None:
        return sequence[:, ::-1]
    step = np.arange(sequence.shape[1])
    order = np.where(step < lengths[:, None], lengths[:, None] - 1 - step, step)
    return np.take_along_axis(sequence, order[:, :, None], axis=1)


def unchanged(sequence: Array, lengths: Lengths | None) -> Array:
    """The sequence as it is."""
    return sequence


def concatenated(parts: Sequence[Array]) -> Array:
    """The outputs of the directions, `(batch, time, hidden_size)` each, side by side: forward‖backward."""
    return np.concatenate(parts, axis=2)


def taken_apart(sequence: Array, directions: int) -> list[Array]:
    """The adjoint of `concatenated`."""
    return np.split(sequence, directions, axis=2)


def chunk(inputs: Inputs, start: int, stop: int | None) -> Inputs:
    """The steps from `start` to `stop` of a call, with its initial state."""
    x, lengths = inputs.x[:, start:stop], inputs.lengths
    return replace(inputs, x=x, lengths=None if lengths is None else np.clip(lengths - start, 0, x.shape[1]))


def built(build: Build, weights: Weights) -> Runs:
    """One pass."""
    return build(weights)


def run(direction: str, layer: Runs, inputs: Inputs) -> Output:
    """One pass, in the order of its processing."""
    return layer(inputs.x, state_as_given(inputs), lengths=inputs.lengths)


def pull_back(direction: str, layer: Runs, inputs: Inputs, cotangent: Output) -> Gradients:
    """The gradients of one pass."""
    return layer.vjp(inputs.x, state_as_given(inputs), lengths=inputs.lengths, cotangent=cotangent)


@dataclass(frozen=True, slots=True)
class Plumbing:
    """The plumbing of a stack; right by default. Serves as `Mistake.realise`.

    Attributes:
        flip_in: reverses the input of a backward pass in time; its own adjoint.
        flip_out: reverses the output of a backward pass again; its own adjoint.
        join: joins the outputs of the directions.
        split: the adjoint of `join`.
        make: builds a pass from its weights.
        run: runs a pass.
        pull_back: pulls a cotangent back through a pass.
        detached: whether the gradient stops between two layers.
    """

    flip_in: Flip = reversed_rows
    flip_out: Flip = reversed_rows
    join: Callable[[Sequence[Array]], Array] = concatenated
    split: Callable[[Array, int], list[Array]] = taken_apart
    make: Callable[[Build, Weights], Runs] = built
    run: Callable[[str, Runs, Inputs], Output] = run
    pull_back: Callable[[str, Runs, Inputs, Output], Gradients] = pull_back
    detached: bool = False

    def __call__(self, build: Build, weights: Weights) -> "Assembly":
        """The stack with this plumbing."""
        return Assembly(build, weights, self)


class Assembly(Boundary):
    """A stack made of one-layer, one-direction layers.

    Args:
        build: builds them.
        weights: of the whole stack.
        plumbing: how they are put together.
    """

    def __init__(self, build: Build, weights: Weights, plumbing: Plumbing) -> None:
        super().__init__(weights.spec)
        self._passes = [plumbing.make(build, weights.part(*place)) for place in weights.spec.passes]
        self._plumbing = plumbing
        self.differentiable = all(getattr(one, "differentiable", True) for one in self._passes)

    def run(self, inputs: Inputs) -> Output:
        """See `BoundaryLayer.run`."""
        _, sequence, final = self._forward(inputs)
        return Output(sequence, _stacked(final))

    def pull_back(self, inputs: Inputs, cotangent: Output) -> Gradients:
        """See `BoundaryLayer.pull_back`."""
        plumbing, directions = self._plumbing, self.spec.directions
        taken, _, _ = self._forward(inputs)
        weights: dict[str, Array] = {}
        states: list[State] = [inputs.state] * len(taken)
        dy = cotangent.sequence
        for layer in reversed(range(self.spec.num_layers)):
            dx = np.zeros_like(taken[layer * len(directions)].x)
            for place, (direction, part) in enumerate(
                zip(directions, plumbing.split(dy, len(directions)), strict=True), layer * len(directions)
            ):
                backward = direction == "backward"
                part = plumbing.flip_out(part, inputs.lengths) if backward else part
                found = plumbing.pull_back(
                    direction, self._passes[place], taken[place], Output(part, _state_of(cotangent.state, place))
                )
                weights |= {
                    f"layers.{layer}.{direction}.{name.rpartition('.')[2]}": array
                    for name, array in found.weights.items()
                }
                states[place] = found.state
                dx = dx + (plumbing.flip_in(found.x, inputs.lengths) if backward else found.x)
            dy = np.zeros_like(dx) if plumbing.detached and layer else dx
        if inputs.lengths is not None:
            dy = np.where(inputs.valid[:, :, None], dy, dy.dtype.type(0))
        return Gradients({name: weights[name] for name in self.spec.shapes}, dy, _stacked(states))

    def _forward(self, inputs: Inputs) -> tuple[list[Inputs], Array, list[State]]:
        """The input of every pass, the output sequence of the last layer, and the final states."""
        plumbing, lengths = self._plumbing, inputs.lengths
        taken: list[Inputs] = []
        final: list[State] = []
        sequence = inputs.x
        for _ in range(self.spec.num_layers):
            parts = []
            for direction in self.spec.directions:
                backward = direction == "backward"
                x = plumbing.flip_in(sequence, lengths) if backward else sequence
                taken.append(Inputs(x, _state_of(inputs.state, len(taken)), lengths, inputs.state_given))
                output = plumbing.run(direction, self._passes[len(taken) - 1], taken[-1])
                parts.append(plumbing.flip_out(output.sequence, lengths) if backward else output.sequence)
                final.append(output.state)
            sequence = plumbing.join(parts)
        return taken, sequence, final


def _state_of(state: State, place: int) -> State:
    """The state of one pass, `(1, batch, hidden_size)` each."""
    return State(*(part[place : place + 1] for part in state if part is not None))


def _stacked(states: Sequence[State]) -> State:
    """The states of all passes in one, `(num_layers * directions, batch, hidden_size)` each."""
    return State(*(np.concatenate(parts) for parts in zip(*states, strict=True) if parts[0] is not None))
