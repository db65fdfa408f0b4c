"""Finds the rows in which ONNX Runtime would lose NaN or infinity.

Its kernels clamp before they compute: relu, hard_sigmoid, and all activations of the LSTM and the GRU, turn NaN into an
ordinary number. So NaN must never reach them, neither from a call nor from infinity minus infinity inside. Nothing
becomes infinite while inputs, states and products stay below a bound, which follows from the sizes of the weights.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multirnn import Activation, Weights
from multirnn.boundary import Inputs
from multirnn.weights import Array

__all__ = ["Guard"]

Flags = NDArray[np.bool_]

LARGEST = 2.0**100  # no number inside may exceed it; float32 ends at 2**128
LONGEST = 2.0**40  # more steps than any call has: the state of an LSTM grows by at most one with each
LIMITS = (2.0**60, 2.0**30, 2.0**15, 0.0)  # of inputs and states; with the last nothing passes

AT_MOST_ONE = frozenset(("hard_sigmoid", "sigmoid", "softsign", "tanh"))


class Guard:
    """Finds the rows in which a number may overflow, or is not finite to begin with; weights are all finite.

    It `sees_outputs` of every layer where an activation is not bounded.
    """

    def __init__(self, weights: Weights) -> None:
        spec = weights.spec
        self._spec = spec
        self._activation, self._gate = Activation.of(spec.activation), Activation.of(spec.recurrent_activation)
        gates = AT_MOST_ONE if spec.cell == "lstm" else ("hard_sigmoid", "sigmoid")  # a GRU has 1 - z as well
        self.sees_outputs = self._activation.name not in AT_MOST_ONE or self._gate.name not in gates
        self._gains = [_gains(weights, layer) for layer in range(spec.num_layers)]
        with np.errstate(all="ignore"):
            self._limit = next(filter(self._suffices, LIMITS))

    def passes(self, *arrays: Array) -> bool:
        """Whether a call is known to be safe in all rows; quick. Arrays: x, given states, outputs if it `sees_outputs`."""
        limit = self._limit
        for array in arrays:
            numbers = array.ravel("K")  # in memory order, without a copy
            # 0.6 µs for 256 numbers, where `min` and `max` take 3. NaN is both the smallest and the largest.
            if not (-limit < numbers.item(numbers.argmin()) and numbers.item(numbers.argmax()) < limit):
                return False
        return True

    def unsafe(self, inputs: Inputs, outputs: Sequence[Array] = ()) -> Flags | None:
        """The rows `(batch,)` in which ONNX Runtime may be wrong; None if there are none.

        Outputs are those of every layer, `(batch, time, directions * hidden_size)`, if the guard `sees_outputs`.
        """
        with np.errstate(all="ignore"):
            if np.all(self._fits(inputs, outputs, each=False)):
                return None
            flags: Flags = ~self._fits(inputs, outputs, each=True)
        return flags if flags.any() else None

    def _fits(self, inputs: Inputs, outputs: Sequence[Array], each: bool) -> Any:
        """Whether nothing exceeds `LARGEST`: in each row, or in all together, which is quicker."""
        directions, time = len(self._spec.directions), inputs.x.shape[1]
        x, fits = _largest(inputs.x, each), np.True_
        for layer in range(self._spec.num_layers):
            place = slice(layer * directions, (layer + 1) * directions)
            h, *c = (_largest(part[place].swapaxes(0, 1), each) for part in inputs.state if part is not None)
            h = np.maximum(h, _largest(outputs[layer], each) if self.sees_outputs else 1.0)
            fits = fits & (self._reach(layer, x, h, c[0] if c else 0.0, time) <= LARGEST)  # False for NaN
            x = h
        return fits

    def _suffices(self, limit: float) -> bool:
        """Whether inputs, states and outputs below the limit are safe."""
        size = max(limit, 1.0)
        return limit == 0.0 or all(
            self._reach(layer, size, size, size, LONGEST) <= LARGEST for layer in range(self._spec.num_layers)
        )

    def _reach(self, layer: int, x: Any, h: Any, c: Any, time: float) -> Any:
        """A bound of every number in a layer, from the largest input, output or initial h, and initial c."""
        from_x, from_h, bias = self._gains[layer]
        gate = _bound(self._gate, from_x * x + from_h * h + bias)
        before = from_x * x + bias + np.maximum(gate, 1.0) * (from_h * h + bias)
        candidate = _bound(self._activation, before)
        if self._spec.cell == "simple_rnn":
            return np.maximum(before, candidate)
        if self._spec.cell == "gru":
            return np.maximum(before, (1 + gate) * candidate + gate * h)
        cell = np.maximum(gate, 1.0) ** time * (c + gate * candidate * time)
        return np.maximum(before, np.maximum(cell, gate * _bound(self._activation, cell)))


def _gains(weights: Weights, layer: int) -> tuple[float, float, float]:
    """The largest row sum of magnitudes in `weight_ih` and in `weight_hh`, and the largest sum of biases."""

    def largest(name: str) -> float:
        names = [f"layers.{layer}.{direction}.{name}" for direction in weights.spec.directions]
        sizes = [np.abs(weights.arrays[one]) for one in names if one in weights.arrays]
        sums = [size.sum(-1, dtype=np.float64) if name.startswith("weight") else size for size in sizes]
        return max((float(one.max()) for one in sums), default=0.0)

    return largest("weight_ih"), largest("weight_hh"), largest("bias_ih") + largest("bias_hh")


def _bound(activation: Activation, of: Any) -> Any:
    """The largest value of an activation for numbers up to this size."""
    if activation.name in AT_MOST_ONE:
        return 1.0
    return np.maximum(of, activation.parameters.get("alpha", 0.0))  # elu's


def _largest(array: Array, each: bool) -> Any:
    """The largest magnitude in float64, NaN if there is one: of each row, or of all."""
    axes = tuple(range(1, array.ndim)) if each else None
    return np.maximum(array.max(axis=axes), -array.min(axis=axes)).astype(np.float64)
