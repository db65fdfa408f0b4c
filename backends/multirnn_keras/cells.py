"""The cells over tensors, forward and backward: one step, and the parts that can be computed for all steps at once.

    step(weights, p, *states)               one step: the states after it
    slopes(weights, p, before, after)       all steps: the factors that `back` needs beside gradients, and how much of each
                                            state stays (None: nothing)
    back(transposed, slopes, *dstates)      one step: the gradients of the states before it, without the share that stays;
                                            and dz
    gradients(dz, before, slopes)           all steps: the gradients of p, of the recurrent kernel, and of the candidate's
                                            recurrent bias if there is one

`slopes` computes the gates again: one more product, and only the states of each step are kept. Names and shapes are as
in `multirnn_keras.loop`.

Source: the equations of `multirnn.cells`, differentiated.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import keras

from multirnn import Activation
from multirnn.cells import CellName
from multirnn_keras.engines import engine
from multirnn_keras.engines.interface import Tensors

__all__ = ["Form", "cell_of", "rows"]

ops: Any = keras.ops  # typed there as the results of a symbolic call


class Form(NamedTuple):
    """The function of a layer, apart from its sizes."""

    cell: CellName  # "simple_rnn", "lstm" or "gru"
    reset_after: bool  # of the GRU
    activation: Activation  # of the candidate, and of the gates
    recurrent_activation: Activation
    bias: bool  # whether there is one
    reverse: bool  # run from the last step to the first; outputs stand where their inputs do

    @property
    def states(self) -> int:
        """The number of states: h, or h and c."""
        return 2 if self.cell == "lstm" else 1


def _with_slope(activation: Activation) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """An activation as a function of x, and its derivative as one of its value y."""
    alpha, beta, nn = activation.alpha, activation.beta, engine.nn
    where, one, zero = engine.where, ops.ones_like, ops.zeros_like
    pairs: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
        "elu": (lambda x: ops.elu(x, alpha=alpha), lambda y: where(y > 0, one(y), y + alpha)),
        "hard_sigmoid": (
            lambda x: ops.clip(alpha * x + beta, 0, 1),
            lambda y: where((y > 0) & (y < 1), alpha * one(y), zero(y)),
        ),
        "linear": (lambda x: x, one),
        "relu": (nn.relu, lambda y: where(y > 0, one(y), zero(y))),
        "sigmoid": (nn.sigmoid, lambda y: y * (one(y) - y)),
        "softsign": (ops.softsign, lambda y: ops.square(one(y) - ops.abs(y))),
        "tanh": (nn.tanh, lambda y: one(y) - y * y),
    }
    return pairs[activation.name]


class _Cell:
    def __init__(self, form: Form) -> None:
        self.act, self.act_slope = _with_slope(form.activation)
        self.gate, self.gate_slope = _with_slope(form.recurrent_activation)

    def gradients(self, dz: Any, before: Tensors, slopes: Tensors) -> tuple[Any, Any, Any]:
        return dz, _outer(before[0], dz), None


class _SimpleRNN(_Cell):
    """`h' = a(p + h U)`."""

    def step(self, weights: Tensors, p: Any, h: Any) -> Tensors:
        return [self.act(engine.affine(p, h, weights[0]))]

    def slopes(self, weights: Tensors, p: Any, before: Tensors, after: Tensors) -> tuple[Tensors, Tensors]:
        return [self.act_slope(after[0])], [None]

    def back(self, transposed: Tensors, slopes: Tensors, dh: Any) -> tuple[Tensors, Any]:
        dz = dh * slopes[0]
        return [dz @ transposed[0]], dz


class _LSTM(_Cell):
    """See `multirnn.cells.LSTM`."""

    def step(self, weights: Tensors, p: Any, h: Any, c: Any) -> Tensors:
        i, f, g, o = self._gates(engine.affine(p, h, weights[0]))
        c = f * c + i * g
        return [o * self.act(c), c]

    def _gates(self, z: Any) -> Tensors:
        k = z.shape[-1] // 4
        both = self.gate(z[..., : 2 * k])
        return [both[..., :k], both[..., k:], self.act(z[..., 2 * k : 3 * k]), self.gate(z[..., 3 * k :])]

    def slopes(self, weights: Tensors, p: Any, before: Tensors, after: Tensors) -> tuple[Tensors, Tensors]:
        h, c = before
        i, f, g, o = self._gates(p + ops.matmul(h, weights[0]))
        shown = self.act(after[1])
        slope = self.gate_slope
        of_gates = engine.concatenate([g * slope(i), c * slope(f), i * self.act_slope(g), shown * slope(o)], -1)
        of_c = o * self.act_slope(shown)
        return [of_gates, of_c, of_c * f], [None, f]

    def back(self, transposed: Tensors, slopes: Tensors, dh: Any, dc: Any) -> tuple[Tensors, Any]:
        of_gates, of_c, of_c_before = slopes
        dc = dc + dh * of_c
        dz = engine.concatenate([dc, dc, dc, dh], -1) * of_gates
        return [dz @ transposed[0], dh * of_c_before], dz


class _GRUResetAfter(_Cell):
    """See `multirnn.cells.GRU_RESET_AFTER`; the weights are the recurrent kernel and the candidate's recurrent bias."""

    def _parts(self, weights: Tensors, p: Any, h: Any) -> Tensors:
        k = h.shape[-1]
        q = h @ weights[0] if len(h.shape) == 2 else ops.matmul(h, weights[0])
        zr = self.gate(p[..., : 2 * k] + q[..., : 2 * k])
        z, r = zr[..., :k], zr[..., k:]
        q = q[..., 2 * k :] if len(weights) == 1 else q[..., 2 * k :] + weights[1]
        return [z, r, q, self.act(p[..., 2 * k :] + r * q)]

    def step(self, weights: Tensors, p: Any, h: Any) -> Tensors:
        z, _, _, n = self._parts(weights, p, h)
        # As the reference computes it, also where n is infinite; Keras' own z * h + (1 - z) * n has other NaN there.
        return [n + z * (h - n)]

    def slopes(self, weights: Tensors, p: Any, before: Tensors, after: Tensors) -> tuple[Tensors, Tensors]:
        h = before[0]
        z, r, q, n = self._parts(weights, p, h)
        dn = (1 - z) * self.act_slope(n)
        # The factors of the gates, of the candidate's recurrent part, and of the candidate.
        return [engine.concatenate([(h - n) * self.gate_slope(z), dn * q * self.gate_slope(r), dn * r, dn], -1)], [z]

    def back(self, transposed: Tensors, slopes: Tensors, dh: Any) -> tuple[Tensors, Any]:
        dz = engine.concatenate([dh, dh, dh, dh], -1) * slopes[0]
        return [dz[:, : 3 * dh.shape[-1]] @ transposed[0]], dz

    def gradients(self, dz: Any, before: Tensors, slopes: Tensors) -> tuple[Any, Any, Any]:
        k = dz.shape[-1] // 4
        recurrent = dz[..., : 3 * k]
        dp = engine.concatenate([dz[..., : 2 * k], dz[..., 3 * k :]], -1)
        return dp, _outer(before[0], recurrent), ops.sum(recurrent[..., 2 * k :], (0, 1))


class _GRUResetBefore(_Cell):
    """See `multirnn.cells.GRU_RESET_BEFORE`; the weights are the recurrent kernels of the gates and of the candidate."""

    def _parts(self, weights: Tensors, p: Any, h: Any) -> Tensors:
        k = h.shape[-1]
        zr = self.gate(p[..., : 2 * k] + ops.matmul(h, weights[0]))
        z, r = zr[..., :k], zr[..., k:]
        return [z, r, self.act(p[..., 2 * k :] + ops.matmul(r * h, weights[1]))]

    def step(self, weights: Tensors, p: Any, h: Any) -> Tensors:
        z, _, n = self._parts(weights, p, h)
        return [n + z * (h - n)]

    def slopes(self, weights: Tensors, p: Any, before: Tensors, after: Tensors) -> tuple[Tensors, Tensors]:
        h = before[0]
        z, r, n = self._parts(weights, p, h)
        return [(h - n) * self.gate_slope(z), h * self.gate_slope(r), (1 - z) * self.act_slope(n), r], [z]

    def back(self, transposed: Tensors, slopes: Tensors, dh: Any) -> tuple[Tensors, Any]:
        of_z, of_r, of_n, r = slopes
        dn = dh * of_n
        dreset = dn @ transposed[1]
        dzr = engine.concatenate([dh * of_z, dreset * of_r], -1)
        return [dreset * r + dzr @ transposed[0]], engine.concatenate([dzr, dn], -1)

    def gradients(self, dz: Any, before: Tensors, slopes: Tensors) -> tuple[Any, Any, Any]:
        k = dz.shape[-1] // 3
        h, r = before[0], slopes[3]
        return dz, engine.concatenate([_outer(h, dz[..., : 2 * k]), _outer(r * h, dz[..., 2 * k :])], -1), None


def rows(a: Any) -> Any:
    """The rows of all steps, one under another."""
    return ops.reshape(a, (-1, a.shape[-1]))


def _outer(a: Any, b: Any) -> Any:
    """The sum over all steps and rows of the products of a's columns with b's: one matrix product."""
    return ops.matmul(ops.transpose(rows(a)), rows(b))


@cache
def cell_of(form: Form) -> Any:
    """The cell of a form."""
    gru = _GRUResetAfter if form.reset_after else _GRUResetBefore
    return {"simple_rnn": _SimpleRNN, "lstm": _LSTM, "gru": gru}[form.cell](form)
