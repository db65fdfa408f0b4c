"""A layer run step by step, from given states.

A layer shows the states of its lower layers only after the last step of a call. So it is called one step at a time, with
the input of that step and a given state for every layer and direction. A side with readable weights is run in float64
instead, pass by pass, which shows every state and gate.

Arrays are as in `multirnn.diagnosis.calls`. `UNKNOWN` marks states that a layer does not hand back.
"""

from __future__ import annotations  # or naming np.random.Generator loads numpy.random

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from multirnn.adoption import Adopted
from multirnn.diagnosis.calls import Probe, Seen, answer
from multirnn.errors import InvalidCall
from multirnn.layer import Lengths
from multirnn.mistakes.plumbing import reversed_rows
from multirnn.registry import backend
from multirnn.weights import Array, Weights

__all__ = ["UNKNOWN", "Known", "Side", "Trajectory", "perturbed", "unknown"]

UNKNOWN = float(np.array(0x7FF8_0000_0000_0B0E, np.uint64).view(np.float64))
"""A NaN with bits that copies keep and no arithmetic makes: any other NaN was computed by a layer."""


def unknown(array: Array) -> NDArray[np.bool_]:
    """Where an array is `UNKNOWN`."""
    return np.asarray(np.ascontiguousarray(array).view(np.uint64) == np.float64(UNKNOWN).view(np.uint64))


class Trajectory(NamedTuple):
    """Every state before and after every step, in original time: `(parts, passes, time, batch, hidden_size)`."""

    before: Array
    after: Array
    gates: Array | None  # after their activations, (passes, batch, time, gates, hidden_size); None if not known
    sequence: Array  # of the last layer, (batch, time, directions * hidden_size)


class Side:
    """One of two layers, known by its calls: called in its own dtype, answering in float64."""

    def __init__(self, layer: Adopted) -> None:
        self.layer, self.spec = layer, layer.spec

    def __call__(self, call: Probe) -> Seen:
        """The output of a call, its shapes checked."""
        spec, batch = self.spec, len(call.x)
        found = answer(self.layer, call, spec.dtype)
        state = spec.num_layers * len(spec.directions), batch, spec.hidden_size
        shapes = {"sequence": (batch, call.x.shape[1], spec.output_size)}
        shapes |= {f"final {n}": state for n in spec.form.states}
        for name, shape in shapes.items():
            if name in found and found[name].shape != shape:
                raise InvalidCall(
                    f"{self.layer.title} hands back a {name} of the shape {found[name].shape}, not {shape}"
                )
        final = [found.get(f"final {n}", np.full(state, UNKNOWN)) for n in spec.form.states]
        return Seen(found["sequence"], np.stack(final))

    def step(self, x: Array, states: Array) -> Array:
        """One step of all passes; if no state is handed back, the output gives the h of the last layer."""
        seen = self(Probe(x[:, None], states))
        directions = len(self.spec.directions)
        last = seen.sequence[:, 0].reshape(len(x), directions, -1).swapaxes(0, 1)
        top = seen.final[0, -directions:]
        seen.final[0, -directions:] = np.where(unknown(top), last, top)
        return seen.final

    def run(self, x: Array, first: Array) -> Trajectory:
        """By single steps of the stack; layer by layer if bidirectional: a step needs the whole layer below."""
        batch, time, _ = x.shape
        before = np.empty((*first.shape[:2], time, *first.shape[2:]))
        after = np.empty_like(before)
        states = first
        for t in range(0 if self.spec.bidirectional else time):
            before[:, :, t] = states
            states = after[:, :, t] = self.step(x[:, t], states)
        for forward in range(0, 2 * self.spec.num_layers if self.spec.bidirectional else 0, 2):
            backward = forward + 1
            now, end = first[:, forward], first[:, backward]
            for t, u in zip(range(time), reversed(range(time)), strict=True):
                before[:, forward, t], before[:, backward, u] = now, end
                ahead, back = first.copy(), first.copy()  # the layers above do not matter
                ahead[:, :forward], back[:, :forward] = before[:, :forward, t], before[:, :forward, u]
                ahead[:, forward], back[:, backward] = now, end
                new = self.step(np.concatenate([x[:, t], x[:, u]]), np.concatenate([ahead, back], axis=2))
                now, end = new[:, forward, :batch], new[:, backward, batch:]
                after[:, forward, t], after[:, backward, u] = now, end
        last = after[0, -len(self.spec.directions) :]
        return Trajectory(before, after, None, np.concatenate(last, axis=2).swapaxes(0, 1))

    def moved(self, amount: float, rng: np.random.Generator) -> Side:
        """Itself: there are no weights to move."""
        return self


class Known:
    """A stack with known weights, run in float64 by the NumPy backend, pass by pass."""

    def __init__(self, weights: Weights) -> None:
        self.spec = weights.spec
        self.weights = weights.astype("float64")
        build = backend("numpy").build
        self._passes = [build(self.weights.part(*place)).native for place in self.spec.passes]

    def run(self, x: Array, first: Array, lengths: Lengths | None = None) -> Trajectory:
        """Over a whole sequence, which is zero at padding, from the states `first`."""
        spec = self.spec
        valid = None if lengths is None else (np.arange(x.shape[1]) < lengths[:, None])[:, :, None]
        padded = None if valid is None else ~valid.swapaxes(0, 1)
        states, gates, outputs = [], [], []
        for place, (_, direction) in enumerate(spec.passes):

            def turned(array: Array, backward: bool = direction == "backward") -> Array:
                return reversed_rows(array, lengths) if backward else array

            start = list(first[:, place : place + 1])
            _, _, (run,) = self._passes[place].forward(turned(x).swapaxes(0, 1), start, padded)
            along = np.stack(run.states, axis=2).swapaxes(0, 1)  # (batch, time + 1, parts, hidden_size)
            states.append([turned(along[:, :-1]), turned(along[:, 1:])])
            gates.append(turned(run.z.reshape(*run.z.shape[:2], -1, spec.hidden_size).swapaxes(0, 1)))
            outputs.append(turned(run.outputs.swapaxes(0, 1)))
            if len(outputs) == len(spec.directions):
                x = np.concatenate(outputs, axis=2)
                x = x if valid is None else np.where(valid, x, 0)
                outputs = []
        before, after = np.array(states).transpose(1, 4, 0, 3, 2, 5)
        return Trajectory(before, after, np.array(gates), x)

    def step(self, x: Array, states: Array) -> Array:
        """One step of all passes; see `Side.step`."""
        return self.run(x[:, None], states).after[:, :, 0]

    def moved(self, amount: float, rng: np.random.Generator) -> Known:
        """The stack with every weight moved up or down by the fraction `amount`."""
        arrays = {name: perturbed(array, amount, rng) for name, array in self.weights.arrays.items()}
        return Known(Weights(self.weights.spec, arrays))


def perturbed(array: Array, amount: float, rng: np.random.Generator) -> Array:
    """Every element moved up or down by the fraction `amount`."""
    return array * (1 + amount * rng.choice((-1.0, 1.0), array.shape))
