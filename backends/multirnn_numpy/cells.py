"""The recurrences: one layer in one direction over one sequence, there and back.

Rows times matrices: x_t is `(batch, features)`, h_t `(batch, hidden_size)`, W `(features, gates * hidden_size)` and U
`(hidden_size, gates * hidden_size)`; gates, biases and equations are those of `multirnn.cells`. h_t and c_t are the
state after step t, prev_h and prev_c the one before it, and dh_t is the gradient of h_t. Whatever the step before does
not enter stands outside of the loop:

    there   z = x W + b for all steps at once; step by step, what h enters
    back    the slopes for all steps at once; step by step, dz_t = slope * dh_t and dprev_h += dz_t Uᵀ; for all steps
            at once, dW = Σ xᵀ dz, dU = Σ hᵀ dz, db = Σ dz and dx = dz Wᵀ

Steps are counted in the order in which they run: the backward direction is given a reversed x. At padding the state
stays as it is, and its gradient passes as it is.

A batch of one comes without its axis: NumPy multiplies a vector by a matrix faster than a matrix of one row. The loops
write into rows that are there already, `f(a, b, out)`: a new array costs as much as the arithmetic.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy import add, copyto, multiply, subtract

from multirnn import Cell, RecurrentSpec
from multirnn.cells import GRU_RESET_AFTER, GRU_RESET_BEFORE, LSTM, SIMPLE_RNN
from multirnn.weights import Array
from multirnn_numpy.activations import activation

__all__ = ["RECURRENCES", "GruResetAfter", "GruResetBefore", "Lstm", "Recurrence", "SimpleRnn"]


class Recurrence(ABC):
    """One layer in one direction, run over one sequence; it remembers what the way back needs.

    Args:
        spec: of the stack.
        parameters: of this layer and direction, by their last name, in canonical shapes.
        x: `(time, batch, features)` in running order, or `(time, features)`.
        first: the state before the first step, h and of an LSTM c: `(batch, hidden_size)`, or `(hidden_size,)`.
        padded: which steps are padding, `(time, batch, 1)`, or `(time, 1)`; None where none is.

    Attributes:
        states: h, and of an LSTM c, before the first and after every step: `(time + 1, batch, hidden_size)`.
        z: x W + b, which the run turns into the gates: `(time, batch, gates * hidden_size)`.
    """

    def __init__(
        self,
        spec: RecurrentSpec,
        parameters: Mapping[str, Array],
        x: Array,
        first: Sequence[Array],
        padded: Array | None = None,
    ) -> None:
        self.a, self.a_slope = activation(spec.activation)
        self.s, self.s_slope = activation(spec.recurrent_activation)
        self.parameters = parameters
        self.W, self.U = matrix(parameters["weight_ih"]), matrix(parameters["weight_hh"])
        self.x = np.ascontiguousarray(x)
        self.states = [np.empty((len(x) + 1, *start.shape), x.dtype) for start in first]
        for state, start in zip(self.states, first, strict=True):
            state[0] = start
        self.z = self.room_for_z()
        rows(self.x).dot(self.W, rows(self.z))
        if "bias_ih" in parameters:
            self.z += np.full(
                self.z.shape[1:], self.bias().ravel()
            )  # adding to whole steps is four times as fast as row by row
        self.padded = padded
        self.frozen = [None] * len(x) if padded is None else [step if step.any() else None for step in padded]
        self.forward()

    def room_for_z(self) -> Array:
        """Where x W + b goes."""
        return np.empty((*self.x.shape[:-1], self.W.shape[1]), self.x.dtype)

    def bias(self) -> Array:
        """What is added to x W: b, and d where there is one."""
        b, d = self.parameters["bias_ih"], self.parameters.get("bias_hh")
        return b if d is None else b + d

    @property
    def outputs(self) -> Array:
        """What the layer above is given: h after every step."""
        return self.states[0][1:]

    @property
    def last(self) -> list[Array]:
        """The state after the last step."""
        return [state[-1] for state in self.states]

    @abstractmethod
    def forward(self) -> None:
        """From the first step to the last: fill the states, turn z into the gates."""

    @abstractmethod
    def backward(self, dstates: list[Array]) -> tuple[Array, Array, Array]:
        """From the last step to the first.

        Args:
            dstates: the gradient of h before the first and after every step, `(time + 1, batch, hidden_size)`, as far
                as it does not come through later steps; it becomes the whole. Of an LSTM also the gradient of the last
                c, `(batch, hidden_size)`; it becomes that of the first.

        Returns:
            The gradients of x W + b and of h U + d, `(time, batch, gates * hidden_size)` each, and of Uᵀ.
        """

    def pull_back(self, dy: Array, dlast: Sequence[Array]) -> tuple[dict[str, Array], Array, list[Array]]:
        """From the gradients of outputs and last state to those of the parameters, by last name, x and first state."""
        dh = np.empty_like(self.states[0])
        dh[0] = 0
        dh[1:] = dy
        dh[-1] += dlast[0]
        dstates = [dh, *(part.copy() for part in dlast[1:])]
        dz, dhU, dU = self.backward(dstates)
        found = {"weight_ih": sum_of_products(dz, self.x), "weight_hh": dU, "bias_ih": total(dz), "bias_hh": total(dhU)}
        parameters = {}
        for name, parameter in self.parameters.items():
            gradient = found[name].reshape(-1, *parameter.shape[1:])
            # The one recurrent bias of a reset-after GRU with single biases is the candidate's, the last gate's.
            parameters[name] = gradient[-len(parameter) :]
        dx = (rows(dz) @ self.W.T).reshape(self.x.shape)
        return parameters, dx, [dh[0], *dstates[1:]]

    def at_padding(self, value: float, *arrays: Array) -> None:
        """Set the padded steps of arrays `(time, batch, …)`."""
        if self.padded is not None:
            for array in arrays:
                copyto(array, value, where=self.padded)


class SimpleRnn(Recurrence):
    """h_t = a(x_t W + b + h U)."""

    def room_for_z(self) -> Array:
        """The rows of h, each of which begins as x_t W + b."""
        return self.outputs

    def forward(self) -> None:
        """Three operations a step."""
        (h,) = self.states
        a, U = self.a, self.U
        prev_h, hU = h[0], np.empty_like(h[0])
        for h_t, frozen in steps(h[1:], self.frozen):
            prev_h.dot(U, hU)
            add(h_t, hU, h_t)
            a(h_t, h_t)
            if frozen is not None:
                copyto(h_t, prev_h, where=frozen)
            prev_h = h_t

    def backward(self, dstates: list[Array]) -> tuple[Array, Array, Array]:
        """Everything comes from dz_t = dh_t * a'."""
        (h,), (dh,) = self.states, dstates
        dz = self.a_slope(h[1:])
        self.at_padding(0, dz)
        U_T, dzU = transposed(self.U), np.empty_like(dh[0])
        for dz_t, dprev_h, dh_t, frozen in steps_back(dz, dh[:-1], dh[1:], self.frozen):
            multiply(dz_t, dh_t, dz_t)
            dz_t.dot(U_T, dzU)
            add(dprev_h, dzU, dprev_h)
            if frozen is not None:
                add(dprev_h, dh_t, dprev_h, where=frozen)
        return dz, dz, sum_of_products(dz, h[:-1])


class Lstm(Recurrence):
    """i f g o = s s a s(x_t W + b + h U), c_t = f * c + i * g, h_t = o * a(c_t)."""

    def forward(self) -> None:
        """The gates stay in z."""
        h, c = self.states
        a, s, U = self.a, self.s, self.U
        i, f, g, o = gates(self.z, 4)
        i_f = self.z[..., : 2 * h.shape[-1]]
        hU, ig = np.empty_like(self.z[0]), np.empty_like(h[0])
        for z_t, i_f_t, i_t, f_t, g_t, o_t, prev_h, h_t, prev_c, c_t, frozen in steps(
            self.z, i_f, i, f, g, o, h[:-1], h[1:], c[:-1], c[1:], self.frozen
        ):
            prev_h.dot(U, hU)
            add(z_t, hU, z_t)
            s(i_f_t, i_f_t)
            a(g_t, g_t)
            s(o_t, o_t)
            multiply(f_t, prev_c, c_t)
            multiply(i_t, g_t, ig)
            add(c_t, ig, c_t)
            a(c_t, h_t)
            multiply(o_t, h_t, h_t)
            if frozen is not None:
                copyto(h_t, prev_h, where=frozen)
                copyto(c_t, prev_c, where=frozen)

    def backward(self, dstates: list[Array]) -> tuple[Array, Array, Array]:
        """First dc_t += dh_t * o * a'; then di, df and dg come from dc_t, do from dh_t, and dc = dc_t * f."""
        (h, c), (dh, dc) = self.states, dstates
        i, f, g, o = gates(self.z, 4)
        a_c = np.empty_like(c[1:])
        self.a(c[1:], a_c)
        dc_dh = o * self.a_slope(a_c)
        dz = np.empty_like(self.z)
        di, df, dg, do = gates(dz, 4)
        multiply(g, self.s_slope(i), di)
        multiply(c[:-1], self.s_slope(f), df)
        multiply(i, self.a_slope(g), dg)
        multiply(a_c, self.s_slope(o), do)
        self.at_padding(0, dz, dc_dh)
        self.at_padding(1, f)
        difg, dc_gates = gate_axis(dz, 4)[..., :3, :], dc[..., None, :]
        U_T, dzU = transposed(self.U), np.empty_like(dh[0])
        for dz_t, difg_t, do_t, dc_dh_t, f_t, dprev_h, dh_t, frozen in steps_back(
            dz, difg, do, dc_dh, f, dh[:-1], dh[1:], self.frozen
        ):
            multiply(dc_dh_t, dh_t, dc_dh_t)
            add(dc, dc_dh_t, dc)
            multiply(difg_t, dc_gates, difg_t)
            multiply(do_t, dh_t, do_t)
            multiply(dc, f_t, dc)
            dz_t.dot(U_T, dzU)
            add(dprev_h, dzU, dprev_h)
            if frozen is not None:
                add(dprev_h, dh_t, dprev_h, where=frozen)
        return dz, dz, sum_of_products(dz, h[:-1])


class GruResetAfter(Recurrence):
    """r z = s(x_t W + b + h U), n = a(x_t W_n + b_n + r * (h U_n + d_n)), h_t = (1 - z) * n + z * h."""

    def bias(self) -> Array:
        """What is added to x W: b, and of d all but d_n, which the reset gate multiplies."""
        folded, d = self.parameters["bias_ih"].copy(), self.parameters["bias_hh"]
        folded[: len(d) - 1] += d[:-1]
        return folded

    def forward(self) -> None:
        """The gates stay in z, and m = h U_n + d_n beside them."""
        (h,) = self.states
        a, s, U = self.a, self.s, self.U
        d_n = self.parameters["bias_hh"][-1] if "bias_hh" in self.parameters else np.zeros_like(h[0])
        r, z, n = gates(self.z, 3)
        self.m = np.empty_like(n, order="C")
        hU = np.empty_like(self.z[0])
        rz, hU_rz, hU_n = self.z[..., : 2 * h.shape[-1]], hU[..., : 2 * h.shape[-1]], gates(hU, 3)[2]
        for rz_t, r_t, z_t, n_t, m_t, prev_h, h_t, frozen in steps(rz, r, z, n, self.m, h[:-1], h[1:], self.frozen):
            prev_h.dot(U, hU)
            add(rz_t, hU_rz, rz_t)
            s(rz_t, rz_t)
            add(hU_n, d_n, m_t)
            multiply(r_t, m_t, h_t)
            add(n_t, h_t, n_t)
            a(n_t, n_t)
            subtract(prev_h, n_t, h_t)
            multiply(z_t, h_t, h_t)
            add(n_t, h_t, h_t)  # n + z * (h - n): one multiplication less
            if frozen is not None:
                copyto(h_t, prev_h, where=frozen)

    def backward(self, dstates: list[Array]) -> tuple[Array, Array, Array]:
        """All of dr, dz, dm and dn come from dh_t, and dn is not needed before the end; dh = dh_t * z + what U brings."""
        (h,), (dh,) = self.states, dstates
        r, z, n = gates(self.z, 3)
        dn_dh = (1 - z) * self.a_slope(n)
        drzm = np.empty_like(self.z)
        dr, dz, dm = gates(drzm, 3)
        multiply(dn_dh * self.m, self.s_slope(r), dr)
        multiply(h[:-1] - n, self.s_slope(z), dz)
        multiply(dn_dh, r, dm)
        self.at_padding(0, drzm, dn_dh)
        self.at_padding(1, z)
        U_T, to_h = transposed(self.U), np.empty_like(dh[0])
        for drzm_t, gates_t, z_t, dprev_h, dh_t, dh_gates in steps_back(
            drzm, gate_axis(drzm, 3), z, dh[:-1], dh[1:], dh[1:, ..., None, :]
        ):
            multiply(gates_t, dh_gates, gates_t)
            drzm_t.dot(U_T, to_h)
            add(dprev_h, to_h, dprev_h)
            multiply(dh_t, z_t, to_h)
            add(dprev_h, to_h, dprev_h)
        drzn = drzm.copy()
        multiply(dn_dh, dh[1:], gates(drzn, 3)[2])
        return drzn, drzm, sum_of_products(drzm, h[:-1])


class GruResetBefore(Recurrence):
    """r z = s(x_t W + b + h U), n = a(x_t W_n + b_n + (r * h) U_n), h_t = (1 - z) * n + z * h."""

    def forward(self) -> None:
        """The gates stay in z, and r * h beside them."""
        (h,) = self.states
        a, s = self.a, self.s
        rz_end = 2 * h.shape[-1]
        U_rz, U_n = np.ascontiguousarray(self.U[:, :rz_end]), np.ascontiguousarray(self.U[:, rz_end:])
        r, z, n = gates(self.z, 3)
        rz = self.z[..., :rz_end]
        self.rh = np.empty_like(n, order="C")
        hU = np.empty_like(rz[0], order="C")
        for rz_t, r_t, z_t, n_t, rh_t, prev_h, h_t, frozen in steps(rz, r, z, n, self.rh, h[:-1], h[1:], self.frozen):
            prev_h.dot(U_rz, hU)
            add(rz_t, hU, rz_t)
            s(rz_t, rz_t)
            multiply(r_t, prev_h, rh_t)
            rh_t.dot(U_n, h_t)
            add(n_t, h_t, n_t)
            a(n_t, n_t)
            subtract(prev_h, n_t, h_t)
            multiply(z_t, h_t, h_t)
            add(n_t, h_t, h_t)  # n + z * (h - n): one multiplication less
            if frozen is not None:
                copyto(h_t, prev_h, where=frozen)

    def backward(self, dstates: list[Array]) -> tuple[Array, Array, Array]:
        """First dz and dn come from dh_t, then dr from d(r * h) = dn U_nᵀ; dh = dh_t * z + d(r * h) * r + what U brings."""
        (h,), (dh,) = self.states, dstates
        r, z, n = gates(self.z, 3)
        drzn = np.empty_like(self.z)
        dr, dz, dn = gates(drzn, 3)
        multiply(h[:-1], self.s_slope(r), dr)
        multiply(h[:-1] - n, self.s_slope(z), dz)
        multiply(1 - z, self.a_slope(n), dn)
        self.at_padding(0, drzn)
        self.at_padding(1, z)
        rz_end = 2 * h.shape[-1]
        U_rz_T, U_n_T = transposed(self.U[:, :rz_end]), transposed(self.U[:, rz_end:])
        drz, dzn = drzn[..., :rz_end], gate_axis(drzn, 3)[..., 1:, :]
        drh, to_h = np.empty_like(dh[0]), np.empty_like(dh[0])
        for drz_t, dzn_t, dr_t, dn_t, r_t, z_t, dprev_h, dh_t, dh_gates in steps_back(
            drz, dzn, dr, dn, r, z, dh[:-1], dh[1:], dh[1:, ..., None, :]
        ):
            multiply(dzn_t, dh_gates, dzn_t)
            dn_t.dot(U_n_T, drh)
            multiply(dr_t, drh, dr_t)
            drz_t.dot(U_rz_T, to_h)
            add(dprev_h, to_h, dprev_h)
            multiply(drh, r_t, to_h)
            add(dprev_h, to_h, dprev_h)
            multiply(dh_t, z_t, to_h)
            add(dprev_h, to_h, dprev_h)
        dU = np.concatenate([sum_of_products(drz, h[:-1]), sum_of_products(dn, self.rh)])
        return drzn, drzn, dU


RECURRENCES: Mapping[Cell, type[Recurrence]] = {
    SIMPLE_RNN: SimpleRnn,
    LSTM: Lstm,
    GRU_RESET_AFTER: GruResetAfter,
    GRU_RESET_BEFORE: GruResetBefore,
}


def matrix(weight: Array) -> Array:
    """A weight `(gates, hidden_size, n)` as the matrix `(n, gates * hidden_size)`; a view, as `weights.py` stores it."""
    return weight.transpose(2, 0, 1).reshape(weight.shape[2], -1)


def transposed(matrix: Array) -> Array:
    """The transposed matrix, contiguous: a product that is done in every step shall not meet it askew."""
    return np.ascontiguousarray(matrix.T)


def gates(array: Array, count: int) -> list[Array]:
    """The gates that stand beside one another on the last axis, a view each."""
    hidden = array.shape[-1] // count
    return [array[..., k * hidden : (k + 1) * hidden] for k in range(count)]


def gate_axis(array: Array, count: int) -> Array:
    """The same with the gates on an axis of their own: `(…, gates, hidden_size)`."""
    return array.reshape(*array.shape[:-1], count, -1)


def rows(array: Array) -> Array:
    """All steps below one another: `(time * batch, n)`."""
    return array.reshape(-1, array.shape[-1])


def sum_of_products(left: Array, right: Array) -> Array:
    """Σ leftᵀ right over time and batch."""
    return rows(left).T @ rows(right)


def total(array: Array) -> Array:
    """Σ over time and batch."""
    return rows(array.reshape(len(array), -1).sum(axis=0).reshape(array.shape[1:])).sum(axis=0)


def steps(*arrays: Any) -> Iterator[Any]:
    """The first step of all arrays, then the second, and so on."""
    return zip(*arrays, strict=True)


def steps_back(*arrays: Any) -> Iterator[Any]:
    """The last step of all arrays, then the last but one, and so on."""
    return zip(*(array[::-1] for array in arrays), strict=True)
