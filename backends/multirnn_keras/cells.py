"""The cells, one step there and back: what has to wait for a step, and what is known of all steps before the way back.

A cell has `step`, a step; `slopes`, what is known of all steps at once before the way back; `back`, a step back; and
`gradients`, of all steps at once after it. What the gates were is computed again in `slopes`: one product more, and
nothing is kept of the steps but their states. The names and shapes are those of `multirnn_keras.passes`.

Source: the equations of `multirnn.cells`, differentiated.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from multirnn import Activation
from multirnn.cells import CellName
from multirnn_keras.operations import Tensors, affine, concatenate, nn, ops, rows, where

__all__ = ["Form", "cell_of"]


class Form(NamedTuple):
    """What a layer computes, whatever its sizes.

    Attributes:
        cell: "simple_rnn", "lstm" or "gru".
        reset_after: of the GRU.
        activation, recurrent_activation: of the candidate, and of the gates.
        bias: whether there is one.
        reverse: run from the last step to the first; outputs stand where their inputs do.
    """

    cell: CellName
    reset_after: bool
    activation: Activation
    recurrent_activation: Activation
    bias: bool
    reverse: bool


def _act(activation: Activation) -> Callable[[Any], Any]:
    name, alpha, beta = activation.name, activation.alpha, activation.beta
    if name in ("tanh", "sigmoid", "relu"):
        own: Callable[[Any], Any] = getattr(nn, name)
        return own
    if name == "elu":
        return lambda x: ops.elu(x, alpha=alpha)
    if name == "hard_sigmoid":
        return lambda x: ops.clip(alpha * x + beta, 0, 1)
    others: dict[str, Callable[[Any], Any]] = {"linear": lambda x: x, "softsign": ops.softsign}
    return others[name]


def _slope(activation: Activation, y: Any) -> Any:
    """The derivative of an activation where its value is y."""
    name, alpha = activation.name, activation.alpha
    one = ops.ones_like(y)
    if name == "tanh":
        return one - y * y
    if name == "sigmoid":
        return y * (one - y)
    if name == "softsign":
        return ops.square(one - ops.abs(y))
    if name == "linear":
        return one
    if name == "elu":
        return where(y > 0, one, y + alpha)
    inside = y > 0 if name == "relu" else (y > 0) & (y < 1)
    return where(inside, one if name == "relu" else alpha * one, ops.zeros_like(y))


class SimpleRNN:
    """`h' = a(p + h U)`."""

    def __init__(self, form: Form) -> None:
        self.form = form
        self.act = _act(form.activation)

    def step(self, weights: Tensors, p: Any, h: Any) -> Tensors:
        """The states after a step."""
        return [self.act(affine(p, h, weights[0]))]

    def slopes(self, weights: Tensors, p: Any, before: Tensors, after: Tensors) -> tuple[Tensors, Tensors]:
        """What `back` needs of each step beside the gradients, and how much of each state stays (None: nothing)."""
        return [_slope(self.form.activation, after[0])], [None]

    def back(self, transposed: Tensors, slopes: Tensors, dh: Any) -> tuple[Tensors, Any]:
        """The gradients of the states before a step, without what stays, and what `gradients` needs of the step."""
        dz = dh * slopes[0]
        return [dz @ transposed[0]], dz

    def gradients(self, dz: Any, before: Tensors, slopes: Tensors) -> tuple[Any, Any, Any]:
        """Of p, of the recurrent kernel, and of the candidate's recurrent bias if there is one."""
        return dz, _outer(before[0], dz), None


class LSTM:
    """See `multirnn.cells.LSTM`."""

    def __init__(self, form: Form) -> None:
        self.form = form
        self.act, self.gate = _act(form.activation), _act(form.recurrent_activation)

    def step(self, weights: Tensors, p: Any, h: Any, c: Any) -> Tensors:
        i, f, g, o = self._gates(affine(p, h, weights[0]))
        c = f * c + i * g
        return [o * self.act(c), c]

    def _gates(self, z: Any) -> Tensors:
        k = z.shape[-1] // 4
        both = self.gate(z[..., : 2 * k])
        return [both[..., :k], both[..., k:], self.act(z[..., 2 * k : 3 * k]), self.gate(z[..., 3 * k :])]

    def slopes(self, weights: Tensors, p: Any, before: Tensors, after: Tensors) -> tuple[Tensors, Tensors]:
        h, c = before
        i, f, g, o = self._gates(p + ops.matmul(h, weights[0]))
        a, s = self.form.activation, self.form.recurrent_activation
        held = self.act(after[1])
        of_gates = concatenate([g * _slope(s, i), c * _slope(s, f), i * _slope(a, g), held * _slope(s, o)], -1)
        of_c = o * _slope(a, held)
        return [of_gates, of_c, of_c * f], [None, f]

    def back(self, transposed: Tensors, slopes: Tensors, dh: Any, dc: Any) -> tuple[Tensors, Any]:
        of_gates, of_c, of_c_before = slopes
        dc = dc + dh * of_c
        dz = concatenate([dc, dc, dc, dh], -1) * of_gates
        return [dz @ transposed[0], dh * of_c_before], dz

    def gradients(self, dz: Any, before: Tensors, slopes: Tensors) -> tuple[Any, Any, Any]:
        return dz, _outer(before[0], dz), None


class GRU:
    """See `multirnn.cells.GRU_RESET_AFTER`; the weights are the recurrent kernel and the candidate's recurrent bias."""

    def __init__(self, form: Form) -> None:
        self.form = form
        self.act, self.gate = _act(form.activation), _act(form.recurrent_activation)

    def _parts(self, weights: Tensors, p: Any, h: Any) -> Tensors:
        k = h.shape[-1]
        q = h @ weights[0] if len(h.shape) == 2 else ops.matmul(h, weights[0])
        zr = self.gate(p[..., : 2 * k] + q[..., : 2 * k])
        z, r = zr[..., :k], zr[..., k:]
        q = q[..., 2 * k :] if len(weights) == 1 else q[..., 2 * k :] + weights[1]
        return [z, r, q, self.act(p[..., 2 * k :] + r * q)]

    def step(self, weights: Tensors, p: Any, h: Any) -> Tensors:
        z, _, _, n = self._parts(weights, p, h)
        # As the reference has it, also where n is infinite; Keras' own z * h + (1 - z) * n has other NaN there.
        return [n + z * (h - n)]

    def slopes(self, weights: Tensors, p: Any, before: Tensors, after: Tensors) -> tuple[Tensors, Tensors]:
        h = before[0]
        z, r, q, n = self._parts(weights, p, h)
        a, s = self.form.activation, self.form.recurrent_activation
        dn = (1 - z) * _slope(a, n)
        # Of the gates, of the candidate's recurrent part, and of the candidate.
        return [concatenate([(h - n) * _slope(s, z), dn * q * _slope(s, r), dn * r, dn], -1)], [z]

    def back(self, transposed: Tensors, slopes: Tensors, dh: Any) -> tuple[Tensors, Any]:
        dz = concatenate([dh, dh, dh, dh], -1) * slopes[0]
        return [dz[:, : 3 * dh.shape[-1]] @ transposed[0]], dz

    def gradients(self, dz: Any, before: Tensors, slopes: Tensors) -> tuple[Any, Any, Any]:
        k = dz.shape[-1] // 4
        recurrent = dz[..., : 3 * k]
        dp = concatenate([dz[..., : 2 * k], dz[..., 3 * k :]], -1)
        return dp, _outer(before[0], recurrent), ops.sum(recurrent[..., 2 * k :], (0, 1))


class GRUResetBefore:
    """See `multirnn.cells.GRU_RESET_BEFORE`; the weights are the recurrent kernels of the gates and of the candidate."""

    def __init__(self, form: Form) -> None:
        self.form = form
        self.act, self.gate = _act(form.activation), _act(form.recurrent_activation)

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
        a, s = self.form.activation, self.form.recurrent_activation
        return [(h - n) * _slope(s, z), h * _slope(s, r), (1 - z) * _slope(a, n), r], [z]

    def back(self, transposed: Tensors, slopes: Tensors, dh: Any) -> tuple[Tensors, Any]:
        of_z, of_r, of_n, r = slopes
        dn = dh * of_n
        dreset = dn @ transposed[1]
        dzr = concatenate([dh * of_z, dreset * of_r], -1)
        return [dreset * r + dzr @ transposed[0]], concatenate([dzr, dn], -1)

    def gradients(self, dz: Any, before: Tensors, slopes: Tensors) -> tuple[Any, Any, Any]:
        k = dz.shape[-1] // 3
        h, r = before[0], slopes[3]
        return dz, concatenate([_outer(h, dz[..., : 2 * k]), _outer(r * h, dz[..., 2 * k :])], -1), None


def _outer(a: Any, b: Any) -> Any:
    """The sum over all steps and rows of the products of a's columns with b's: one matrix product."""
    return ops.matmul(ops.transpose(rows(a)), rows(b))


@cache
def cell_of(form: Form) -> Any:
    """The cell of a form."""
    if form.cell == "gru":
        return GRU(form) if form.reset_after else GRUResetBefore(form)
    return {"simple_rnn": SimpleRNN, "lstm": LSTM}[form.cell](form)
