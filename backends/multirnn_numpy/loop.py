"""The loops over time: one layer in one direction over one sequence.

Rows times matrices: x_t is `(batch, features)`, h `(batch, hidden_size)`, W `(features, gates * hidden_size)` and U
`(hidden_size, gates * hidden_size)`. For equations, gates and biases see `multirnn.cells`; b is the sum of both biases if
only that counts. h_t and c_t are the state after step t, prev_h and prev_c the state before it.

z = x W + b is computed for all steps at once; then the loop of the cell adds h U step by step. Steps are counted in running
order: the backward direction gets a reversed x. At padding the state stays as it is.

A batch of one comes without its axis: NumPy multiplies a vector by a matrix faster than a matrix of one row. The loops
write into existing rows, `f(a, b, out)`: a new array costs as much as the arithmetic.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy import add, copyto, multiply, subtract
from numpy.typing import NDArray

from multirnn import RecurrentSpec
from multirnn.cells import GRU_RESET_AFTER, GRU_RESET_BEFORE, LSTM, SIMPLE_RNN, Cell
from multirnn.weights import Array
from multirnn_numpy.activations import activation
from multirnn_numpy.workspace import Empty

__all__ = ["CELLS", "GruResetAfter", "GruResetBefore", "Lstm", "Padding", "Pass", "SimpleRnn", "gates", "rows"]

Padding = NDArray[np.bool_]

ONE_THREAD = 2**18
"""Up to so many multiplications OpenBLAS runs a product on one thread (`interface/gemm.c`).

Below it a product per step is faster than one for all steps, which needs x copied into the order of steps: 1.06 ms against
1.25 for a call of (batch, time, input, hidden) = (32, 100, 32, 64) on one core, and nothing waits for a second core that
is busy. Above it the one product is faster, 16.0 ms against 16.4 for (32, 100, 256, 256).
"""


class Pass(ABC):
    """One layer in one direction over one sequence, with all that its backward pass needs.

    x is `(time, batch, features)` in running order, the state `first` before the first step `(batch, hidden_size)`, and
    `padded`, the steps that are padding, `(time, batch, 1)`. The parameters have the last parts of their names, and
    canonical shapes. `empty` allocates the large arrays.
    """

    multiply: Any = staticmethod(np.dot)  # as in `forward`, `multiply(h, U_forward, out)`
    kept: tuple[str, ...] = ()  # more arrays for the backward pass, `(time, batch, hidden_size)` each

    def __init__(
        self,
        spec: RecurrentSpec,
        parameters: Mapping[str, Array],
        x: Array,
        first: Sequence[Array],
        padded: Padding | None = None,
        empty: Empty = np.empty,
    ) -> None:
        self.spec = spec
        self.empty = empty
        self.a, self.a_slope = activation(spec.activation)
        self.s, self.s_slope = activation(spec.recurrent_activation)
        self.parameters = parameters
        self.W, self.U = _matrix(parameters["weight_ih"]), _matrix(parameters["weight_hh"])
        self.x = x
        self.padded = padded
        # Most steps have no padding, and should not pay for any.
        self.frozen = [None] * len(x) if padded is None else [step if step.any() else None for step in padded]
        # h, and c of an LSTM, before the first and after every step: (time + 1, batch, hidden_size).
        self.states = [empty((len(x) + 1, *part.shape), x.dtype) for part in first]
        for state, part in zip(self.states, first, strict=True):
            state[0] = part
        self.z = self.room_for_z()  # x W + b, which `forward` turns into the gates
        W, self.U_forward, b = self.matrices()
        self.project(W, b)

    def room_for_z(self) -> Array:
        """Memory for x W + b."""
        return self.empty((*self.x.shape[:-1], self.W.shape[1]), self.x.dtype)

    def matrices(self) -> tuple[Array, Array, Array | None]:
        """W, U and b as `forward` uses them."""
        return self.W, self.U, self.bias().ravel() if "bias_ih" in self.parameters else None

    def project(self, W: Array, b: Array | None) -> None:
        """Fill z with x W + b."""
        few = self.x.ndim == 3 and self.x[0].size * W.shape[1] <= ONE_THREAD
        if few or not self.z.flags.c_contiguous:
            np.matmul(self.x, W, self.z)  # a product per step
        else:
            if not self.x.flags.c_contiguous:
                x = self.x
                self.x = self.empty(x.shape, x.dtype)
                copyto(self.x, x)
            rows(self.x).dot(W, rows(self.z))
        if b is not None:
            self.z += np.full(self.z.shape[1:], b)  # whole steps: four times as fast as row by row

    def bias(self) -> Array:
        """The part of the biases that is added to x W: b and, if present, d."""
        b, d = self.parameters["bias_ih"], self.parameters.get("bias_hh")
        return b if d is None else b + d

    @abstractmethod
    def forward(self) -> None:
        """Run all steps: fill the states, and turn z into the gates."""

    @property
    def outputs(self) -> Array:
        """The input of the layer above: h after every step."""
        return self.states[0][1:]

    @property
    def last(self) -> list[Array]:
        """The state after the last step."""
        return [state[-1] for state in self.states]


class SimpleRnn(Pass):
    """h_t = a(x_t W + b + h U)."""

    def room_for_z(self) -> Array:
        """The rows of h: each starts as x_t W + b."""
        return self.outputs

    def forward(self) -> None:
        """Three operations per step."""
        (h,) = self.states
        a, U, times = self.a, self.U_forward, self.multiply
        prev_h, hU = h[0], np.empty_like(h[0])
        for h_t, frozen in zip(h[1:], self.frozen, strict=True):
            times(prev_h, U, hU)
            add(h_t, hU, h_t)
            a(h_t, h_t)  # h_t = a(x_t W + b + h U)
            if frozen is not None:
                copyto(h_t, prev_h, where=frozen)
            prev_h = h_t


class Lstm(Pass):
    """i f g o = s s a s(x_t W + b + h U), c_t = f * c + i * g, h_t = o * a(c_t)."""

    def forward(self) -> None:
        """The gates stay in z."""
        h, c = self.states
        a, s, U, times = self.a, self.s, self.U_forward, self.multiply
        i, f, g, o = gates(self.z, 4)
        i_f = self.z[..., : 2 * h.shape[-1]]
        hU, ig = np.empty_like(self.z[0]), np.empty_like(h[0])
        for z_t, i_f_t, i_t, f_t, g_t, o_t, prev_h, h_t, prev_c, c_t, frozen in zip(
            self.z, i_f, i, f, g, o, h[:-1], h[1:], c[:-1], c[1:], self.frozen, strict=True
        ):
            times(prev_h, U, hU)
            add(z_t, hU, z_t)
            s(i_f_t, i_f_t)  # i = s(x_t W_i + b_i + h U_i), and f
            a(g_t, g_t)  # g = a(x_t W_g + b_g + h U_g)
            s(o_t, o_t)  # o = s(x_t W_o + b_o + h U_o)
            multiply(f_t, prev_c, c_t)
            multiply(i_t, g_t, ig)
            add(c_t, ig, c_t)  # c_t = f * c + i * g
            a(c_t, h_t)
            multiply(o_t, h_t, h_t)  # h_t = o * a(c_t)
            if frozen is not None:
                copyto(h_t, prev_h, where=frozen)
                copyto(c_t, prev_c, where=frozen)


class GruResetAfter(Pass):
    """r z = s(x_t W + b + h U), n = a(x_t W_n + b_n + r * (h U_n + d_n)), h_t = (1 - z) * n + z * h."""

    kept = ("m",)
    m: Array

    def bias(self) -> Array:
        """b, and d except d_n, which the reset gate multiplies."""
        folded, d = self.parameters["bias_ih"].copy(), self.parameters["bias_hh"]
        folded[: len(d) - 1] += d[:-1]
        return folded

    def forward(self) -> None:
        """The gates stay in z, and m = h U_n + d_n beside them."""
        (h,) = self.states
        a, s, U, times = self.a, self.s, self.U_forward, self.multiply
        d_n = self.parameters["bias_hh"][-1] if "bias_hh" in self.parameters else np.zeros_like(h[0])
        r, z, n = gates(self.z, 3)
        self.m = np.empty_like(n, order="C")
        hU = np.empty_like(self.z[0])
        rz, hU_rz, hU_n = self.z[..., : 2 * h.shape[-1]], hU[..., : 2 * h.shape[-1]], gates(hU, 3)[2]
        steps = zip(rz, r, z, n, self.m, h[:-1], h[1:], self.frozen, strict=True)
        for rz_t, r_t, z_t, n_t, m_t, prev_h, h_t, frozen in steps:
            times(prev_h, U, hU)
            add(rz_t, hU_rz, rz_t)
            s(rz_t, rz_t)  # r = s(x_t W_r + b_r + h U_r + d_r), and z
            add(hU_n, d_n, m_t)
            multiply(r_t, m_t, h_t)
            add(n_t, h_t, n_t)
            a(n_t, n_t)  # n = a(x_t W_n + b_n + r * m)
            subtract(prev_h, n_t, h_t)
            multiply(z_t, h_t, h_t)
            add(n_t, h_t, h_t)  # h_t = n + z * (h - n), one multiplication less than (1 - z) * n + z * h
            if frozen is not None:
                copyto(h_t, prev_h, where=frozen)


class GruResetBefore(Pass):
    """r z = s(x_t W + b + h U), n = a(x_t W_n + b_n + (r * h) U_n), h_t = (1 - z) * n + z * h."""

    kept = ("rh",)
    rh: Array

    def forward(self) -> None:
        """The gates stay in z, and r * h beside them."""
        (h,) = self.states
        a, s, times = self.a, self.s, self.multiply
        rz_end = 2 * h.shape[-1]
        U_rz, U_n = (np.ascontiguousarray(U) for U in (self.U_forward[..., :rz_end], self.U_forward[..., rz_end:]))
        r, z, n = gates(self.z, 3)
        rz = self.z[..., :rz_end]
        self.rh = np.empty_like(n, order="C")
        hU = np.empty_like(rz[0], order="C")
        steps = zip(rz, r, z, n, self.rh, h[:-1], h[1:], self.frozen, strict=True)
        for rz_t, r_t, z_t, n_t, rh_t, prev_h, h_t, frozen in steps:
            times(prev_h, U_rz, hU)
            add(rz_t, hU, rz_t)
            s(rz_t, rz_t)  # r = s(x_t W_r + b_r + h U_r), and z
            multiply(r_t, prev_h, rh_t)
            times(rh_t, U_n, h_t)
            add(n_t, h_t, n_t)
            a(n_t, n_t)  # n = a(x_t W_n + b_n + (r * h) U_n)
            subtract(prev_h, n_t, h_t)
            multiply(z_t, h_t, h_t)
            add(n_t, h_t, h_t)  # h_t = n + z * (h - n), one multiplication less than (1 - z) * n + z * h
            if frozen is not None:
                copyto(h_t, prev_h, where=frozen)


CELLS: Mapping[Cell, type[Pass]] = {
    SIMPLE_RNN: SimpleRnn,
    LSTM: Lstm,
    GRU_RESET_AFTER: GruResetAfter,
    GRU_RESET_BEFORE: GruResetBefore,
}


def _matrix(weight: Array) -> Array:
    """A weight `(gates, hidden_size, n)` as the matrix `(n, gates * hidden_size)`; a view, as `weights.py` stores it."""
    return weight.transpose(2, 0, 1).reshape(weight.shape[2], -1)


def gates(array: Array, count: int) -> list[Array]:
    """A view of each gate on the last axis."""
    hidden = array.shape[-1] // count
    return [array[..., k * hidden : (k + 1) * hidden] for k in range(count)]


def rows(array: Array) -> Array:
    """All steps below one another: `(time * batch, n)`."""
    return array.reshape(-1, array.shape[-1])
