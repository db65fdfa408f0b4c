"""A stack assembled from one-layer, one-direction passes, and the plumbing between them.

With the right plumbing it equals the stack, whatever builds the passes. People write this plumbing by hand around a
framework's single layers, and make mistakes in it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from multirnn.boundary import Boundary, Inputs
from multirnn.layer import Gradients, Lengths, Output, State
from multirnn.mistakes.change import Build, Runs, pull_back, run
from multirnn.mistakes.edits import Edit, adjoint
from multirnn.weights import Array, Weights

__all__ = ["Assembly", "Chunks", "Plumbing", "reversed_rows", "unchanged"]

Flip = Callable[[Array, Lengths | None], Array]


def reversed_rows(sequence: Array, lengths: Lengths | None) -> Array:
    """Every row of `(batch, time, …)` reversed in time within its length. Its own inverse and adjoint."""
    if lengths is None:
        return sequence[:, ::-1]
    step = np.arange(sequence.shape[1])
    order = np.where(step < lengths[:, None], lengths[:, None] - 1 - step, step)
    return np.take_along_axis(sequence, order.reshape(*order.shape, *[1] * (sequence.ndim - 2)), axis=1)


def unchanged(sequence: Array, lengths: Lengths | None) -> Array:
    """The sequence as it is."""
    return sequence


class Chunks:
    """A pass run chunk by chunk, each from the final state of the one before; `edges` are where they begin and end."""

    def __init__(self, layers: Iterable[Runs], inputs: Inputs, edges: Sequence[int]) -> None:
        self._calls: list[tuple[Runs, slice, Inputs]] = []
        self._outputs: list[Output] = []
        for layer, (start, stop) in zip(layers, pairwise(edges), strict=False):
            steps = slice(start, stop)
            lengths = None if inputs.lengths is None else np.clip(inputs.lengths - start, 0, stop - start)
            taken = replace(inputs, x=inputs.x[:, steps], lengths=lengths)
            if self._outputs:
                taken = replace(taken, state=self._outputs[-1].state, state_given=True)
            self._calls.append((layer, steps, taken))
            self._outputs.append(run(layer, taken))

    @property
    def output(self) -> Output:
        """The output of the whole call."""
        return Output(np.concatenate([out.sequence for out in self._outputs], axis=1), self._outputs[-1].state)

    def pull_back(self, cotangent: Output, change: Callable[[int, Inputs, Gradients], Gradients]) -> Gradients:
        """The gradients of the whole call: each chunk's are changed, then its state's are the cotangent of the chunk before."""
        weights: dict[str, Array] = {}
        dx: list[Array] = []
        state = cotangent.state
        for place, (layer, steps, taken) in reversed(list(enumerate(self._calls))):
            found = change(place, taken, pull_back(layer, taken, Output(cotangent.sequence[:, steps], state)))
            weights = {name: array + weights.get(name, 0) for name, array in found.weights.items()}
            dx.insert(0, found.x)
            state = found.state
        return Gradients(weights, np.concatenate(dx, axis=1), state)


@dataclass(frozen=True, slots=True)
class Plumbing:
    """The plumbing of a stack; right by default. Usable as `Mistake.realise`."""

    flip_in: Flip = reversed_rows  # of the input of a backward pass, in time; its own adjoint
    flip_out: Flip = reversed_rows  # of its output again; its own adjoint
    joined: Edit | None = None  # of the concatenated outputs of every layer, `sequence`
    make: Callable[[Build, Weights, tuple[int, str]], Runs] = lambda build, weights, place: build(weights)
    run: Callable[[str, Runs, Inputs], Output] = lambda direction, layer, inputs: run(layer, inputs)
    pull_back: Callable[[str, Runs, Inputs, Output], Gradients] = lambda direction, *call: pull_back(*call)
    detached: bool = False  # whether the gradient stops between two layers
    undo: Callable[[Weights], Weights] | None = None

    def __call__(self, build: Build, weights: Weights) -> "Assembly":
        """The stack with this plumbing."""
        return Assembly(build, weights, self)


class Assembly(Boundary):
    """A stack made of one-layer, one-direction layers."""

    def __init__(self, build: Build, weights: Weights, plumbing: Plumbing) -> None:
        super().__init__(weights.spec)
        self._passes = [plumbing.make(build, weights.part(*place), place) for place in weights.spec.passes]
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
            if plumbing.joined:
                dy = adjoint(plumbing.joined)(self.spec, {"sequence": dy})["sequence"]
            halves, lowest = np.split(dy, len(directions), axis=2), layer * len(directions)
            dx = np.zeros_like(taken[lowest].x)
            for place, (direction, half) in enumerate(zip(directions, halves, strict=True), lowest):
                backward = direction == "backward"
                part = plumbing.flip_out(half, inputs.lengths) if backward else half
                of_pass = Output(part, _state_of(cotangent.state, place))
                found = plumbing.pull_back(direction, self._passes[place], taken[place], of_pass)
                prefix = f"layers.{layer}.{direction}."
                weights |= {prefix + name.rpartition(".")[2]: array for name, array in found.weights.items()}
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
            sequence = np.concatenate(parts, axis=2)
            if plumbing.joined:
                sequence = plumbing.joined(self.spec, {"sequence": sequence})["sequence"]
        return taken, sequence, final


def _state_of(state: State, place: int) -> State:
    """The state of one pass, `(1, batch, hidden_size)` each."""
    return State(*(part[place : place + 1] for part in state.parts))


def _stacked(states: Sequence[State]) -> State:
    """The states of all passes in one, `(num_layers * directions, batch, hidden_size)` each."""
    return State(*map(np.concatenate, zip(*(state.parts for state in states), strict=True)))
