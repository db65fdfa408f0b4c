"""The recurrences: one layer in one direction over one sequence, there and back.

Rows times matrices: x_t is `(batch, features)`, h `(batch, hidden_size)`, W `(features, gates * hidden_size)` and U
`(hidden_size, gates * hidden_size)`. Equations, gates and biases are those of `multirnn.cells`; where only the sum of
both biases counts, it is called b. h_t and c_t are the state after step t, prev_h and prev_c the one before it, and dh and
dprev_h are the gradients of h_t and prev_h.

    forward    x W + b waits in z; step by step, what h enters
    backward   for all steps at once, the factor by which the gradient of each gate hangs on dh (or dc);
               step by step, dh += dy_t, dz_t = factor * dh and dprev_h = dz_t Uᵀ

Steps are counted in the order in which they run: the backward direction is given a reversed x. At padding the state
stays as it is, and its gradient passes as it is.

A batch of one comes without its axis: NumPy multiplies a vector by a matrix faster than a matrix of one row. The loops
write into rows that are there already, `f(a, b, out)`: a new array costs as much as the arithmetic.
"""

from collections.abc import Mapping

import numpy as np
from numpy import add, copyto, multiply, subtract

from multirnn.cells import GRU_RESET_AFTER, GRU_RESET_BEFORE, LSTM, SIMPLE_RNN, Cell
from multirnn.weights import Array
from multirnn_numpy.passes import Pass, gate_axis, gates, steps, steps_back, sum_of_products, transposed

__all__ = ["CELLS", "GruResetAfter", "GruResetBefore", "Lstm", "SimpleRnn"]


class SimpleRnn(Pass):
    """h_t = a(x_t W + b + h U)."""

    def room_for_z(self) -> Array:
        """The rows of h, each of which begins as x_t W + b."""
        return self.outputs

    def forward(self) -> None:
        """Three operations a step."""
        (h,) = self.states
        a, U, times = self.a, self.U_there, self.multiply
        prev_h, hU = h[0], np.empty_like(h[0])
        for h_t, frozen in steps(h[1:], self.frozen):
            times(prev_h, U, hU)
            add(h_t, hU, h_t)
            a(h_t, h_t)  # h_t = a(x_t W + b + h U)
            if frozen is not None:
                copyto(h_t, prev_h, where=frozen)
            prev_h = h_t

    def backward(self, dy: Array, dstate: list[Array]) -> tuple[Array, Array, Array]:
        """Everything comes from dz_t = dh * a'."""
        (h,), (dh,) = self.states, dstate
        dz = self.empty(h[1:].shape, h.dtype)
        U_T, dprev_h = transposed(self.U), np.empty_like(dh)
        for dz_t, dy_t, frozen in zip(self.slopes_back(h[1:], dz), dy[::-1], self.frozen[::-1], strict=True):
            add(dh, dy_t, dh)  # all of dh
            multiply(dz_t, dh, dz_t)  # dz_t = dh * a'
            dz_t.dot(U_T, dprev_h)
            if frozen is not None:
                copyto(dprev_h, dh, where=frozen)
            dh, dprev_h = dprev_h, dh
        dstate[0] = dh
        return dz, dz, sum_of_products(dz, h[:-1])


class Lstm(Pass):
    """i f g o = s s a s(x_t W + b + h U), c_t = f * c + i * g, h_t = o * a(c_t)."""

    def forward(self) -> None:
        """The gates stay in z."""
        h, c = self.states
        a, s, U, times = self.a, self.s, self.U_there, self.multiply
        i, f, g, o = gates(self.z, 4)
        i_f = self.z[..., : 2 * h.shape[-1]]
        hU, ig = np.empty_like(self.z[0]), np.empty_like(h[0])
        for z_t, i_f_t, i_t, f_t, g_t, o_t, prev_h, h_t, prev_c, c_t, frozen in steps(
            self.z, i_f, i, f, g, o, h[:-1], h[1:], c[:-1], c[1:], self.frozen
        ):
            times(prev_h, U, hU)
            add(z_t, hU, z_t)
            s(i_f_t, i_f_t)  # i = s(x_t W_i + b_i + h U_i), f likewise
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

    def backward(self, dy: Array, dstate: list[Array]) -> tuple[Array, Array, Array]:
        """First dc += dh * o * a'; then di, df and dg come from dc, do from dh, and dprev_c = dc * f."""
        (h, c), (dh, dc) = self.states, dstate
        i, f, g, o = gates(self.z, 4)
        a_c, dc_dh = (self.empty(c[1:].shape, c.dtype) for _ in range(2))
        self.a(c[1:], a_c)
        self.a_slope(a_c, dc_dh)
        multiply(dc_dh, o, dc_dh)
        dz = self.empty(self.z.shape, self.z.dtype)
        di, df, dg, do = gates(dz, 4)
        for gate, slope, factor, d in (
            (i, self.s_slope, g, di),
            (f, self.s_slope, c[:-1], df),
            (g, self.a_slope, i, dg),
            (o, self.s_slope, a_c, do),
        ):
            slope(gate, d)
            multiply(d, factor, d)
        self.at_padding(0, dz, dc_dh)
        self.at_padding(1, f)
        difg, dc_gates = gate_axis(dz, 4)[..., :3, :], dc[..., None, :]
        U_T, dprev_h = transposed(self.U), np.empty_like(dh)
        for dz_t, difg_t, do_t, dc_dh_t, f_t, dy_t, frozen in steps_back(dz, difg, do, dc_dh, f, dy, self.frozen):
            add(dh, dy_t, dh)  # all of dh
            multiply(dc_dh_t, dh, dc_dh_t)
            add(dc, dc_dh_t, dc)  # all of dc
            multiply(difg_t, dc_gates, difg_t)
            multiply(do_t, dh, do_t)
            multiply(dc, f_t, dc)  # dprev_c
            dz_t.dot(U_T, dprev_h)
            if frozen is not None:
                copyto(dprev_h, dh, where=frozen)
            dh, dprev_h = dprev_h, dh
        dstate[0] = dh
        return dz, dz, sum_of_products(dz, h[:-1])


class GruResetAfter(Pass):
    """r z = s(x_t W + b + h U), n = a(x_t W_n + b_n + r * (h U_n + d_n)), h_t = (1 - z) * n + z * h."""

    kept = ("m",)

    def bias(self) -> Array:
        """What is added to x W: b, and of d all but d_n, which the reset gate multiplies."""
        folded, d = self.parameters["bias_ih"].copy(), self.parameters["bias_hh"]
        folded[: len(d) - 1] += d[:-1]
        return folded

    def forward(self) -> None:
        """The gates stay in z, and m = h U_n + d_n beside them."""
        (h,) = self.states
        a, s, U, times = self.a, self.s, self.U_there, self.multiply
        d_n = self.parameters["bias_hh"][-1] if "bias_hh" in self.parameters else np.zeros_like(h[0])
        r, z, n = gates(self.z, 3)
        self.m = np.empty_like(n, order="C")
        hU = np.empty_like(self.z[0])
        rz, hU_rz, hU_n = self.z[..., : 2 * h.shape[-1]], hU[..., : 2 * h.shape[-1]], gates(hU, 3)[2]
        for rz_t, r_t, z_t, n_t, m_t, prev_h, h_t, frozen in steps(rz, r, z, n, self.m, h[:-1], h[1:], self.frozen):
            times(prev_h, U, hU)
            add(rz_t, hU_rz, rz_t)
            s(rz_t, rz_t)  # r = s(x_t W_r + b_r + h U_r + d_r), z likewise
            add(hU_n, d_n, m_t)
            multiply(r_t, m_t, h_t)
            add(n_t, h_t, n_t)
            a(n_t, n_t)  # n = a(x_t W_n + b_n + r * m)
            subtract(prev_h, n_t, h_t)
            multiply(z_t, h_t, h_t)
            add(n_t, h_t, h_t)  # h_t = n + z * (h - n), one multiplication less than (1 - z) * n + z * h
            if frozen is not None:
                copyto(h_t, prev_h, where=frozen)

    def backward(self, dy: Array, dstate: list[Array]) -> tuple[Array, Array, Array]:
        """All of dr, dz, dm and dn come from dh, and dn is not needed before the end; dprev_h = dh * z + what U brings."""
        (h,), (dh,) = self.states, dstate
        r, z, n = gates(self.z, 3)
        dn_dh = self.empty(n.shape, n.dtype)
        self.a_slope(n, dn_dh)
        multiply(dn_dh, 1 - z, dn_dh)
        drzm = self.empty(self.z.shape, self.z.dtype)
        dr, dz, dm = gates(drzm, 3)
        self.s_slope(r, dr)
        multiply(dr, dn_dh * self.m, dr)
        self.s_slope(z, dz)
        multiply(dz, h[:-1] - n, dz)
        multiply(dn_dh, r, dm)
        self.at_padding(0, drzm, dn_dh)
        self.at_padding(1, z)
        dhs = self.empty(dy.shape, dy.dtype)
        U_T, to_h = transposed(self.U), np.empty_like(dh)
        for drzm_t, gates_t, z_t, dy_t, dh_t, dh_gates in steps_back(
            drzm, gate_axis(drzm, 3), z, dy, dhs, dhs[..., None, :]
        ):
            add(dh, dy_t, dh_t)  # all of dh
            multiply(gates_t, dh_gates, gates_t)
            multiply(dh_t, z_t, dh)
            drzm_t.dot(U_T, to_h)
            add(dh, to_h, dh)  # dprev_h
        drzn = drzm.copy()
        multiply(dn_dh, dhs, gates(drzn, 3)[2])
        return drzn, drzm, sum_of_products(drzm, h[:-1])


class GruResetBefore(Pass):
    """r z = s(x_t W + b + h U), n = a(x_t W_n + b_n + (r * h) U_n), h_t = (1 - z) * n + z * h."""

    kept = ("rh",)

    def forward(self) -> None:
        """The gates stay in z, and r * h beside them."""
        (h,) = self.states
        a, s, times = self.a, self.s, self.multiply
        rz_end = 2 * h.shape[-1]
        U_rz, U_n = (np.ascontiguousarray(U) for U in (self.U_there[..., :rz_end], self.U_there[..., rz_end:]))
        r, z, n = gates(self.z, 3)
        rz = self.z[..., :rz_end]
        self.rh = np.empty_like(n, order="C")
        hU = np.empty_like(rz[0], order="C")
        for rz_t, r_t, z_t, n_t, rh_t, prev_h, h_t, frozen in steps(rz, r, z, n, self.rh, h[:-1], h[1:], self.frozen):
            times(prev_h, U_rz, hU)
            add(rz_t, hU, rz_t)
            s(rz_t, rz_t)  # r = s(x_t W_r + b_r + h U_r), z likewise
            multiply(r_t, prev_h, rh_t)
            times(rh_t, U_n, h_t)
            add(n_t, h_t, n_t)
            a(n_t, n_t)  # n = a(x_t W_n + b_n + (r * h) U_n)
            subtract(prev_h, n_t, h_t)
            multiply(z_t, h_t, h_t)
            add(n_t, h_t, h_t)  # h_t = n + z * (h - n), one multiplication less than (1 - z) * n + z * h
            if frozen is not None:
                copyto(h_t, prev_h, where=frozen)

    def backward(self, dy: Array, dstate: list[Array]) -> tuple[Array, Array, Array]:
        """First dz and dn come from dh, then dr from d(r * h) = dn U_nᵀ; dprev_h = dh * z + d(r * h) * r + what U brings."""
        (h,), (dh,) = self.states, dstate
        r, z, n = gates(self.z, 3)
        drzn = self.empty(self.z.shape, self.z.dtype)
        dr, dz, dn = gates(drzn, 3)
        for gate, slope, factor, d in (
            (r, self.s_slope, h[:-1], dr),
            (z, self.s_slope, h[:-1] - n, dz),
            (n, self.a_slope, 1 - z, dn),
        ):
            slope(gate, d)
            multiply(d, factor, d)
        self.at_padding(0, drzn)
        self.at_padding(1, z)
        rz_end = 2 * h.shape[-1]
        U_rz_T, U_n_T = transposed(self.U[:, :rz_end]), transposed(self.U[:, rz_end:])
        drz, dzn = drzn[..., :rz_end], gate_axis(drzn, 3)[..., 1:, :]
        drh, to_h, dh_gates = np.empty_like(dh), np.empty_like(dh), dh[..., None, :]
        for drz_t, dzn_t, dr_t, dn_t, r_t, z_t, dy_t in steps_back(drz, dzn, dr, dn, r, z, dy):
            add(dh, dy_t, dh)  # all of dh
            multiply(dzn_t, dh_gates, dzn_t)
            dn_t.dot(U_n_T, drh)
            multiply(dr_t, drh, dr_t)
            multiply(dh, z_t, dh)
            multiply(drh, r_t, drh)
            add(dh, drh, dh)
            drz_t.dot(U_rz_T, to_h)
            add(dh, to_h, dh)  # dprev_h
        dU = np.concatenate([sum_of_products(drz, h[:-1]), sum_of_products(dn, self.rh)])
        return drzn, drzn, dU


CELLS: Mapping[Cell, type[Pass]] = {
    SIMPLE_RNN: SimpleRnn,
    LSTM: Lstm,
    GRU_RESET_AFTER: GruResetAfter,
    GRU_RESET_BEFORE: GruResetBefore,
}
