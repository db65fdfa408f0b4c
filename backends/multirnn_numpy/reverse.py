"""The backward passes, written by hand: the loops of `loop.py` from the last step to the first.

dh and dprev_h are the gradients of h_t and prev_h. At padding the gradient of the state passes unchanged.

    before the loop, all steps at once    factor = the gradient of each gate per dh (or dc)
    step by step                          dh += dy_t, dz_t = factor * dh, dprev_h = dz_t Uᵀ
    after the loop, all steps at once     dW = Σ xᵀ dz, dU = Σ hᵀ dz, db = Σ dz, dx = dz Wᵀ
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy import add, ascontiguousarray, copyto, multiply

from multirnn.cells import GRU_RESET_AFTER, GRU_RESET_BEFORE, LSTM, SIMPLE_RNN, Cell
from multirnn.weights import Array
from multirnn_numpy.loop import GruResetAfter, GruResetBefore, Lstm, Pass, SimpleRnn, gates, rows

__all__ = ["pull_back"]

SLOPES = 2**15
"""So many slopes are computed at once, 128 kB of them in float32."""


def pull_back(run: Pass, dy: Array, dlast: Sequence[Array]) -> tuple[dict[str, Array], Array, list[Array]]:
    """The gradients of parameters (by last name), x and first state from the gradients of outputs and last state."""
    dstate = [part.copy() for part in dlast]
    dz, dhU, dU_T = BACKWARD[run.spec.form](run, dy, dstate)
    db = _total(dz)
    dd = db.copy() if dhU is dz else _total(dhU)
    found = {"weight_ih": _sum_of_products(dz, run.x), "weight_hh": dU_T, "bias_ih": db, "bias_hh": dd}
    parameters = {}
    for name, parameter in run.parameters.items():
        gradient = found[name].reshape(-1, *parameter.shape[1:])
        # A single recurrent bias is the candidate's, and the candidate is the last gate.
        parameters[name] = gradient[-len(parameter) :]
    dx = (rows(dz) @ run.W.T).reshape(run.x.shape)
    return parameters, dx, dstate


def _simple_rnn(run: SimpleRnn, dy: Array, dstate: list[Array]) -> tuple[Array, Array, Array]:
    """dz_t = dh * a'."""
    (h,), (dh,) = run.states, dstate
    dz = run.empty(h[1:].shape, h.dtype)
    U_T, dprev_h = ascontiguousarray(run.U.T), np.empty_like(dh)
    for dz_t, dy_t, frozen in zip(_slopes_back(run, h[1:], dz), dy[::-1], run.frozen[::-1], strict=True):
        add(dh, dy_t, dh)  # all of dh
        multiply(dz_t, dh, dz_t)  # dz_t = dh * a'
        dz_t.dot(U_T, dprev_h)
        if frozen is not None:
            copyto(dprev_h, dh, where=frozen)
        dh, dprev_h = dprev_h, dh
    dstate[0] = dh
    return dz, dz, _sum_of_products(dz, h[:-1])


def _lstm(run: Lstm, dy: Array, dstate: list[Array]) -> tuple[Array, Array, Array]:
    """First dc += dh * o * a'; then di, df and dg come from dc, do from dh, and dprev_c = dc * f."""
    (h, c), (dh, dc) = run.states, dstate
    i, f, g, o = gates(run.z, 4)
    a_c, dc_dh = (run.empty(c[1:].shape, c.dtype) for _ in range(2))
    run.a(c[1:], a_c)
    run.a_slope(a_c, dc_dh)
    multiply(dc_dh, o, dc_dh)
    dz = run.empty(run.z.shape, run.z.dtype)
    di, df, dg, do = gates(dz, 4)
    for gate, slope, factor, d in (
        (i, run.s_slope, g, di),
        (f, run.s_slope, c[:-1], df),
        (g, run.a_slope, i, dg),
        (o, run.s_slope, a_c, do),
    ):
        slope(gate, d)
        multiply(d, factor, d)
    _at_padding(run, 0, dz, dc_dh)
    _at_padding(run, 1, f)
    difg, dc_gates = _gate_axis(dz, 4)[..., :3, :], dc[..., None, :]
    U_T, dprev_h = ascontiguousarray(run.U.T), np.empty_like(dh)
    for dz_t, difg_t, do_t, dc_dh_t, f_t, dy_t, frozen in _steps_back(dz, difg, do, dc_dh, f, dy, run.frozen):
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
    return dz, dz, _sum_of_products(dz, h[:-1])


def _gru_reset_after(run: GruResetAfter, dy: Array, dstate: list[Array]) -> tuple[Array, Array, Array]:
    """dr, dz, dm and dn come from dh, and dn can wait for the end; dprev_h = dh * z + the product with Uᵀ."""
    (h,), (dh,) = run.states, dstate
    r, z, n = gates(run.z, 3)
    dn_dh = run.empty(n.shape, n.dtype)
    run.a_slope(n, dn_dh)
    multiply(dn_dh, 1 - z, dn_dh)
    drzm = run.empty(run.z.shape, run.z.dtype)
    dr, dz, dm = gates(drzm, 3)
    run.s_slope(r, dr)
    multiply(dr, dn_dh * run.m, dr)
    run.s_slope(z, dz)
    multiply(dz, h[:-1] - n, dz)
    multiply(dn_dh, r, dm)
    _at_padding(run, 0, drzm, dn_dh)
    _at_padding(run, 1, z)
    dhs = run.empty(dy.shape, dy.dtype)
    U_T, to_h = ascontiguousarray(run.U.T), np.empty_like(dh)
    steps = _steps_back(drzm, _gate_axis(drzm, 3), z, dy, dhs, dhs[..., None, :])
    for drzm_t, gates_t, z_t, dy_t, dh_t, dh_gates in steps:
        add(dh, dy_t, dh_t)  # all of dh
        multiply(gates_t, dh_gates, gates_t)
        multiply(dh_t, z_t, dh)
        drzm_t.dot(U_T, to_h)
        add(dh, to_h, dh)  # dprev_h
    drzn = drzm.copy()
    multiply(dn_dh, dhs, gates(drzn, 3)[2])
    return drzn, drzm, _sum_of_products(drzm, h[:-1])


def _gru_reset_before(run: GruResetBefore, dy: Array, dstate: list[Array]) -> tuple[Array, Array, Array]:
    """First dz and dn come from dh, then dr from d(r * h) = dn U_nᵀ; dprev_h = dh * z + d(r * h) * r + the product with Uᵀ."""
    (h,), (dh,) = run.states, dstate
    r, z, n = gates(run.z, 3)
    drzn = run.empty(run.z.shape, run.z.dtype)
    dr, dz, dn = gates(drzn, 3)
    for gate, slope, factor, d in (
        (r, run.s_slope, h[:-1], dr),
        (z, run.s_slope, h[:-1] - n, dz),
        (n, run.a_slope, 1 - z, dn),
    ):
        slope(gate, d)
        multiply(d, factor, d)
    _at_padding(run, 0, drzn)
    _at_padding(run, 1, z)
    rz_end = 2 * h.shape[-1]
    U_rz_T, U_n_T = ascontiguousarray(run.U[:, :rz_end].T), ascontiguousarray(run.U[:, rz_end:].T)
    drz, dzn = drzn[..., :rz_end], _gate_axis(drzn, 3)[..., 1:, :]
    drh, to_h, dh_gates = np.empty_like(dh), np.empty_like(dh), dh[..., None, :]
    for drz_t, dzn_t, dr_t, dn_t, r_t, z_t, dy_t in _steps_back(drz, dzn, dr, dn, r, z, dy):
        add(dh, dy_t, dh)  # all of dh
        multiply(dzn_t, dh_gates, dzn_t)
        dn_t.dot(U_n_T, drh)
        multiply(dr_t, drh, dr_t)
        multiply(dh, z_t, dh)
        multiply(drh, r_t, drh)
        add(dh, drh, dh)
        drz_t.dot(U_rz_T, to_h)
        add(dh, to_h, dh)  # dprev_h
    dU = np.concatenate([_sum_of_products(drz, h[:-1]), _sum_of_products(dn, run.rh)])
    return drzn, drzn, dU


BACKWARD: Mapping[Cell, Callable[[Any, Array, list[Array]], tuple[Array, Array, Array]]] = {
    SIMPLE_RNN: _simple_rnn,
    LSTM: _lstm,
    GRU_RESET_AFTER: _gru_reset_after,
    GRU_RESET_BEFORE: _gru_reset_before,
}
"""Each takes dy, `(time, batch, hidden_size)`, and the gradient of the last state, which becomes that of the first. It returns
the gradients of x W + b and of h U + d, `(time, batch, gates * hidden_size)` each, and of Uᵀ.
"""


def _slopes_back(run: Pass, y: Array, out: Array) -> Iterator[Array]:
    """The steps of `out` from the last to the first, filled with a' in terms of y, zero at padding.

    They are filled a block at a time, so that a step is still in the cache when it is used.
    """
    block = max(1, SLOPES // y[0].size)
    for end in range(len(y), 0, -block):
        steps = slice(max(0, end - block), end)
        run.a_slope(y[steps], out[steps])
        if run.padded is not None:
            copyto(out[steps], 0, where=run.padded[steps])
        yield from out[steps][::-1]


def _at_padding(run: Pass, value: float, *arrays: Array) -> None:
    if run.padded is not None:
        for array in arrays:
            copyto(array, value, where=run.padded)


def _steps_back(*arrays: Any) -> Iterator[Any]:
    return zip(*(array[::-1] for array in arrays), strict=True)


def _gate_axis(array: Array, count: int) -> Array:
    return array.reshape(*array.shape[:-1], count, -1)


def _sum_of_products(left: Array, right: Array) -> Array:
    """Σ leftᵀ right over time and batch: one product."""
    product: Array = rows(left).T @ rows(right)
    return product


def _total(array: Array) -> Array:
    """Σ over time and batch, as a product with ones: NumPy's own sum over rows takes half as long again."""
    below = rows(array)
    summed: Array = np.ones(len(below), array.dtype) @ below
    return summed
