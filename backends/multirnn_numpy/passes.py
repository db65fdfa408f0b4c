"""What the passes of all cells share: everything around the loop over the steps.

A pass is one layer in one direction over one sequence, there and back. What the step before does not enter is done for
all steps at once:

    there   z = x W + b; then the loop of the cell
    back    the loop of the cell, which finds dz; then dW = Σ xᵀ dz, dU = Σ hᵀ dz, db = Σ dz and dx = dz Wᵀ
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy import copyto
from numpy.typing import NDArray

from multirnn import RecurrentSpec
from multirnn.weights import Array
from multirnn_numpy.activations import activation
from multirnn_numpy.workspace import Empty

__all__ = ["Padding", "Pass", "gate_axis", "gates", "steps", "steps_back", "sum_of_products", "transposed"]

Padding = NDArray[np.bool_]

ONE_THREAD = 2**18
"""Up to so many multiplications OpenBLAS leaves a product on one thread (`interface/gemm.c`).

Below it a product a step is faster than one for all steps, which needs x copied into the order of steps: 1.06 ms against
1.25 for a call of (batch, time, input, hidden) = (32, 100, 32, 64) on one core, and nothing waits for a second core that
is busy. Above it the one product is faster, 16.0 ms against 16.4 for (32, 100, 256, 256).
"""


SLOPES = 2**15
"""So many slopes are computed at once, 128 kB of them in float32."""


class Pass(ABC):
    """One layer in one direction over one sequence; it remembers what the way back needs.

    Args:
        spec: of the stack.
        parameters: of this layer and direction, by their last name, in canonical shapes.
        x: `(time, batch, features)` in running order; or `(time, features)`.
        first: the state before the first step, h and of an LSTM c: `(batch, hidden_size)`; or `(hidden_size,)`.
        padded: which steps are padding: `(time, batch, 1)`; or `(time, 1)`. None where none is.
        empty: where the large arrays come from.

    Attributes:
        states: h, and of an LSTM c, before the first and after every step: `(time + 1, batch, hidden_size)`.
        z: `(time, batch, gates * hidden_size)`; x W + b, which `forward` turns into the gates.
        U_there: U, as `forward` multiplies by it.
        multiply: how it does, `multiply(h, U_there, out)`.
        kept: the names of what else `forward` leaves to `backward`, `(time, batch, hidden_size)` each.
    """

    multiply: Any = staticmethod(np.dot)
    kept: tuple[str, ...] = ()

    def __init__(
        self,
        spec: RecurrentSpec,
        parameters: Mapping[str, Array],
        x: Array,
        first: Sequence[Array],
        padded: Padding | None = None,
        empty: Empty = np.empty,
    ) -> None:
        self.empty = empty
        self.a, self.a_slope = activation(spec.activation)
        self.s, self.s_slope = activation(spec.recurrent_activation)
        self.parameters = parameters
        self.W, self.U = matrix(parameters["weight_ih"]), matrix(parameters["weight_hh"])
        self.x = x
        self.padded = padded
        # Most steps have no padding, and are not to pay for any.
        self.frozen = [None] * len(x) if padded is None else [step if step.any() else None for step in padded]
        self.states = [empty((len(x) + 1, *part.shape), x.dtype) for part in first]
        for state, part in zip(self.states, first, strict=True):
            state[0] = part
        self.z = self.room_for_z()
        W, self.U_there, b = self.there()
        self.project(W, b)

    def room_for_z(self) -> Array:
        """Where x W + b goes."""
        return self.empty((*self.x.shape[:-1], self.W.shape[1]), self.x.dtype)

    def there(self) -> tuple[Array, Array, Array | None]:
        """W, U and b as `forward` multiplies and adds them."""
        return self.W, self.U, self.bias().ravel() if "bias_ih" in self.parameters else None

    def project(self, W: Array, b: Array | None) -> None:
        """Fill z with x W + b."""
        few = self.x.ndim == 3 and self.x[0].size * W.shape[1] <= ONE_THREAD
        if few or not self.z.flags.c_contiguous:
            np.matmul(self.x, W, self.z)  # a product a step
        else:
            if not self.x.flags.c_contiguous:
                x = self.x
                self.x = self.empty(x.shape, x.dtype)
                copyto(self.x, x)
            rows(self.x).dot(W, rows(self.z))
        if b is not None:
            self.z += np.full(self.z.shape[1:], b)  # whole steps: four times as fast as row by row

    def bias(self) -> Array:
        """What is added to x W: b, and d where there is one."""
        b, d = self.parameters["bias_ih"], self.parameters.get("bias_hh")
        return b if d is None else b + d

    @abstractmethod
    def forward(self) -> None:
        """Run from the first step to the last: fill the states, and turn z into the gates."""

    @property
    def outputs(self) -> Array:
        """What goes to the layer above: h after every step."""
        return self.states[0][1:]

    @property
    def last(self) -> list[Array]:
        """The state after the last step."""
        return [state[-1] for state in self.states]

    @abstractmethod
    def backward(self, dy: Array, dstate: list[Array]) -> tuple[Array, Array, Array]:
        """Run from the last step to the first.

        Args:
            dy: the gradient of the outputs, `(time, batch, hidden_size)`.
            dstate: the gradient of the state after the last step, which becomes that of the state before the first.

        Returns:
            The gradients of x W + b and of h U + d, `(time, batch, gates * hidden_size)` each, and of Uᵀ.
        """

    def pull_back(self, dy: Array, dlast: Sequence[Array]) -> tuple[dict[str, Array], Array, list[Array]]:
        """From the gradients of outputs and last state to those of parameters (by last name), x and first state."""
        dstate = [part.copy() for part in dlast]
        dz, dhU, dU_T = self.backward(dy, dstate)
        db = total(dz)
        dd = db.copy() if dhU is dz else total(dhU)
        found = {"weight_ih": sum_of_products(dz, self.x), "weight_hh": dU_T, "bias_ih": db, "bias_hh": dd}
        parameters = {}
        for name, parameter in self.parameters.items():
            gradient = found[name].reshape(-1, *parameter.shape[1:])
            # One recurrent bias for all gates is the candidate's, and the candidate is the last gate.
            parameters[name] = gradient[-len(parameter) :]
        dx = (rows(dz) @ self.W.T).reshape(self.x.shape)
        return parameters, dx, dstate

    def slopes_back(self, y: Array, out: Array) -> Iterator[Array]:
        """The steps of `out`, the last first, with a' in terms of a step's output y in them, and zero at padding.

        They are filled a block at a time, so that a step is still in the cache when it is used.
        """
        block = max(1, SLOPES // y[0].size)
        for end in range(len(y), 0, -block):
            steps = slice(max(0, end - block), end)
            self.a_slope(y[steps], out[steps])
            if self.padded is not None:
                copyto(out[steps], 0, where=self.padded[steps])
            yield from out[steps][::-1]

    def at_padding(self, value: float, *arrays: Array) -> None:
        """Write a value into the padded steps of arrays `(time, batch, …)`."""
        if self.padded is not None:
            for array in arrays:
                copyto(array, value, where=self.padded)


def matrix(weight: Array) -> Array:
    """A weight `(gates, hidden_size, n)` as the matrix `(n, gates * hidden_size)`; a view, as `weights.py` stores it."""
    return weight.transpose(2, 0, 1).reshape(weight.shape[2], -1)


def transposed(matrix: Array) -> Array:
    """The transposed matrix, contiguous: it is multiplied with in every step."""
    return np.ascontiguousarray(matrix.T)


def gates(array: Array, count: int) -> list[Array]:
    """The gates that stand side by side on the last axis, a view each."""
    hidden = array.shape[-1] // count
    return [array[..., k * hidden : (k + 1) * hidden] for k in range(count)]


def gate_axis(array: Array, count: int) -> Array:
    """The same with the gates on an axis of their own, `(…, gates, hidden_size)`."""
    return array.reshape(*array.shape[:-1], count, -1)


def rows(array: Array) -> Array:
    """All steps below one another: `(time * batch, n)`."""
    return array.reshape(-1, array.shape[-1])


def sum_of_products(left: Array, right: Array) -> Array:
    """Σ leftᵀ right over time and batch: one product."""
    product: Array = rows(left).T @ rows(right)
    return product


def total(array: Array) -> Array:
    """Σ over time and batch, as a product with ones: NumPy's own sum over rows takes half as long again."""
    below = rows(array)
    summed: Array = np.ones(len(below), array.dtype) @ below
    return summed


def steps(*arrays: Any) -> Iterator[Any]:
    """The first step of all arrays, then the second, and so on."""
    return zip(*arrays, strict=True)


def steps_back(*arrays: Any) -> Iterator[Any]:
    """The last step of all arrays, then the last but one, and so on."""
    return zip(*(array[::-1] for array in arrays), strict=True)
