"""A layer run step by step, from given states.

A layer shows the states of its lower layers only after the last step of a call. So it is called one step at a time, with
the input of that step and a given state for every layer and direction. A side with readable weights is run in float64
instead, pass by pass, which shows every state and gate.

Arrays are float64. States are one array `(parts, passes, …, hidden_size)`: the parts are h, and c for an LSTM; passes are
in the order of `RecurrentSpec.passes`. `UNKNOWN` marks states that a layer does not hand back.
"""

from __future__ import annotations  # or naming np.random.Generator loads numpy.random

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from multirnn.adoption import Adopted
from multirnn.errors import InvalidCall
from multirnn.layer import Lengths, State
from multirnn.mistakes.plumbing import reversed_rows
from multirnn.registry import backend
from multirnn.spec import RecurrentSpec
from multirnn.weights import Array, Weights

__all__ = ["UNKNOWN", "Known", "Seen", "Side", "Step", "Stepped", "Trajectory", "perturbed", "swept", "unknown"]

UNKNOWN = float(np.array(0x7FF8_0000_0000_0B0E, np.uint64).view(np.float64))
"""A NaN with bits that copies keep and no arithmetic makes: any other NaN was computed by a layer."""


def unknown(array: Array) -> NDArray[np.bool_]:
    """Where an array is `UNKNOWN`."""
    return np.asarray(np.ascontiguousarray(array).view(np.uint64) == np.float64(UNKNOWN).view(np.uint64))


Step = Callable[[Array, Array], Array]
"""One step of all passes: inputs `(rows, input_size)` and states `(parts, passes, rows, hidden_size)` to new states."""


class Seen(NamedTuple):
    """The output of a call: `(batch, time, directions * hidden_size)` and `(parts, passes, batch, hidden_size)`."""

    sequence: Array
    final: Array


class Trajectory(NamedTuple):
    """Every state before and after every step, in original time: `(parts, passes, time, batch, hidden_size)`.

    Attributes:
        gates: after their activations, `(passes, time, batch, gates, hidden_size)`; None if not known.
        sequence: the output of the last layer, `(batch, time, directions * hidden_size)`.
    """

    before: Array
    after: Array
    gates: Array | None
    sequence: Array


@dataclass(frozen=True, slots=True)
class Side:
    """One of two layers, called in its own dtype and answering in float64."""

    layer: Adopted

    @property
    def spec(self) -> RecurrentSpec:
        """Its spec."""
        return self.layer.spec

    def __call__(self, x: Array, states: Array | None = None, lengths: Lengths | None = None) -> Seen:
        """Run over `x` `(batch, time, input_size)`, from `states` `(parts, passes, batch, hidden_size)`.

        Raises:
            InvalidCall: an output has the wrong shape.
        """
        spec = self.spec
        state = None if states is None else State(*states.astype(spec.dtype))
        output = self.layer(x.astype(spec.dtype), state, lengths=lengths)
        shape = (spec.num_layers * len(spec.directions), len(x), spec.hidden_size)
        final = []
        for name in spec.form.states:
            part = getattr(output.state, name)
            final.append(np.full(shape, UNKNOWN) if part is None else self._wide(f"final {name}", part, shape))
        return Seen(self._wide("sequence", output.sequence, (*x.shape[:2], spec.output_size)), np.stack(final))

    def step(self, x: Array, states: Array) -> Array:
        """A `Step`. If no state is handed back, the output gives the h of the last layer."""
        seen = self(x[:, None], states)
        directions = len(self.spec.directions)
        last = seen.sequence[:, 0].reshape(len(x), directions, -1).swapaxes(0, 1)
        top = seen.final[0, -directions:]
        seen.final[0, -directions:] = np.where(unknown(top), last, top)
        return seen.final

    def _wide(self, name: str, array: Any, shape: tuple[int, ...]) -> Array:
        if np.shape(array) != shape:
            raise InvalidCall(f"{self.layer.title} hands back a {name} of the shape {np.shape(array)}, not {shape}")
        return np.array(array, np.float64)  # a copy: a layer may reuse its output buffer


class Known:
    """A stack with known weights, run in float64 by the NumPy backend, pass by pass."""

    def __init__(self, weights: Weights) -> None:
        self.spec = weights.spec
        self.weights = weights.astype("float64")
        build = backend("numpy").build
        self._passes = [build(self.weights.part(*place)).native for place in self.spec.passes]
        self._turned = [direction == "backward" for _, direction in self.spec.passes]

    def run(self, x: Array, first: Array, lengths: Lengths | None = None) -> Trajectory:
        """Over a whole sequence.

        Args:
            x: `(batch, time, input_size)`, zero at padding.
            first: `(parts, passes, batch, hidden_size)`.
            lengths: `(batch,)`.
        """
        directions = len(self.spec.directions)
        padded = None if lengths is None else (np.arange(x.shape[1]) >= lengths[:, None]).T[:, :, None]
        states, gates, outputs = [], [], []
        for place, stack in enumerate(self._passes):
            taken = reversed_rows(x, lengths) if self._turned[place] else x
            _, _, (run,) = stack.forward(taken.swapaxes(0, 1), list(first[:, place : place + 1]), padded)
            along = [np.stack(run.states, axis=2)[:-1], np.stack(run.states, axis=2)[1:]]  # (time, batch, parts, n)
            made = run.z.reshape(*run.z.shape[:2], -1, self.spec.hidden_size)
            if self._turned[place]:
                along = [_turned(part, lengths) for part in along]
                made = _turned(made, lengths)
            states.append(along)
            gates.append(made)
            output = run.outputs.swapaxes(0, 1)
            outputs.append(reversed_rows(output, lengths) if self._turned[place] else output)
            if len(outputs) == directions:
                x = np.concatenate(outputs, axis=2)
                x = x if padded is None else np.where(padded.swapaxes(0, 1), 0, x)
                outputs = []
        before, after = np.moveaxis(np.array(states), (1, 4), (0, 1))
        return Trajectory(before, after, np.array(gates), x)

    def step(self, x: Array, states: Array) -> Array:
        """A `Step`."""
        return self.run(x[:, None], states).after[:, :, 0]

    def gates(self, x: Array, states: Array) -> Array:
        """The gates of a `Step`: `(passes, rows, gates, hidden_size)`."""
        gates = self.run(x[:, None], states).gates[:, 0]  # type: ignore[index]
        return gates.reshape(*gates.shape[:2], -1, self.spec.hidden_size)

    def moved(self, amount: float, rng: np.random.Generator) -> Known:
        """The stack with every weight moved up or down by the fraction `amount`."""
        arrays = {name: perturbed(array, amount, rng) for name, array in self.weights.arrays.items()}
        return Known(Weights(self.weights.spec, arrays))


@dataclass(frozen=True, slots=True)
class Stepped:
    """A stack known only by its steps."""

    side: Side

    def step(self, x: Array, states: Array) -> Array:
        """A `Step`."""
        return self.side.step(x, states)

    def run(self, x: Array, first: Array) -> Trajectory:
        """Over a whole sequence, step by step; see `Known.run`."""
        spec = self.side.spec
        after = swept(self.step, spec, x, first)
        before = np.empty_like(after)
        for place, (_, direction) in enumerate(spec.passes):
            order = slice(None, None, -1 if direction == "backward" else 1)
            before[:, place, order] = np.concatenate([first[:, place, None], after[:, place, order][:, :-1]], axis=1)
        return Trajectory(before, after, None, np.concatenate(after[0, -len(spec.directions) :], axis=2).swapaxes(0, 1))

    def moved(self, amount: float, rng: np.random.Generator) -> Stepped:
        """Itself: there are no weights to move."""
        return self


def _turned(array: Array, lengths: Lengths | None) -> Array:
    """An array `(time, batch, …)` with every row reversed in time within its length."""
    flat = array.reshape(*array.shape[:2], -1).swapaxes(0, 1)
    return reversed_rows(flat, lengths).swapaxes(0, 1).reshape(array.shape)


def perturbed(array: Array, amount: float, rng: np.random.Generator) -> Array:
    """Every element moved up or down by the fraction `amount`."""
    return array * (1 + amount * rng.choice((-1.0, 1.0), array.shape))


def swept(step: Step, spec: RecurrentSpec, x: Array, first: Array) -> Array:
    """Every state after every step, from single steps of the whole stack.

    A bidirectional stack is run layer by layer: every step of a layer needs the whole layer below.

    Args:
        step: one step of all passes.
        spec: of the stack.
        x: `(batch, time, input_size)`.
        first: `(parts, passes, batch, hidden_size)`.

    Returns:
        `(parts, passes, time, batch, hidden_size)`, in original time.
    """
    batch, time, _ = x.shape
    after = np.empty((*first.shape[:2], time, *first.shape[2:]))
    if not spec.bidirectional:
        states = first
        for t in range(time):
            states = after[:, :, t] = step(x[:, t], states)
        return after
    before = np.empty_like(after)
    for forward in range(0, 2 * spec.num_layers, 2):
        backward = forward + 1
        now, end = first[:, forward], first[:, backward]
        for t, u in zip(range(time), reversed(range(time)), strict=True):
            before[:, forward, t], before[:, backward, u] = now, end
            ahead, back = first.copy(), first.copy()  # the layers above do not matter
            ahead[:, :forward], back[:, :forward] = before[:, :forward, t], before[:, :forward, u]
            ahead[:, forward], back[:, backward] = now, end
            new = step(np.concatenate([x[:, t], x[:, u]]), np.concatenate([ahead, back], axis=2))
            now, end = new[:, forward, :batch], new[:, backward, batch:]
            after[:, forward, t], after[:, backward, u] = now, end
    return after
