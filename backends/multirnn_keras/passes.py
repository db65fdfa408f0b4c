"""A recurrent layer in one direction over tensors, there and back, as loops that do only what has to wait for a step.

The input is projected for all steps by one product before the loop. The way back runs one loop too, which multiplies
what is known beforehand of each step with the gradient that comes from the step above; the gradients of the weights are
single products over all steps after it.

Names and shapes, `k` units and `g` gates in Keras' order (i f c o; z r h):

    kernel (features, g k)    recurrent (k, g k)    bias (g k); of the reset-after GRU (2, 3 k), input and recurrent
    p      (time, batch, g k)                       the projected input
    h, c   (batch, k)                               a state; hs, cs (time, batch, k) those after each step
"""

from collections.abc import Sequence
from typing import Any

from multirnn_keras.cells import Form, cell_of
from multirnn_keras.operations import Tensors, concatenate, ops, rows, where
from multirnn_keras.scan import scan

__all__ = ["backward", "forward"]


def _weights(form: Form, recurrent: Any, bias: Any) -> Tensors:
    """What a step multiplies with, and adds."""
    k = recurrent.shape[0]
    if form.cell != "gru":
        return [recurrent]
    if not form.reset_after:
        return [recurrent[:, : 2 * k], recurrent[:, 2 * k :]]
    return [recurrent] if bias is None else [recurrent, bias[1, 2 * k :]]


def _input_bias(bias: Any) -> Any:
    """All biases but the candidate's recurrent one of the reset-after GRU."""
    if len(bias.shape) == 1:
        return bias
    k = bias.shape[1] // 3
    return concatenate([bias[0, : 2 * k] + bias[1, : 2 * k], bias[0, 2 * k :]], -1)


def _unpacked(form: Form, primals: Sequence[Any]) -> tuple[Any, Any, Any, Any, Tensors]:
    x, kernel, recurrent, *rest = primals
    return x, kernel, recurrent, rest[0] if form.bias else None, rest[form.bias :]


def forward(form: Form, primals: Sequence[Any], mask: Any) -> tuple[Tensors, Tensors]:
    """The states after each step, and after the last; and what `backward` wants to be kept.

    Args:
        form: what is computed.
        primals: x `(batch, time, features)`, kernel, recurrent kernel, the bias if there is one, h, and c of an LSTM.
        mask: `(batch, time)`, bool, or None; where it is False the states stay.

    Returns:
        h `(batch, time, k)` of all steps, and the final h, and c of an LSTM. Then p and all states, time first.
    """
    x, kernel, recurrent, bias, states = _unpacked(form, primals)
    cell, weights = cell_of(form), _weights(form, recurrent, bias)
    x = _swapped(x)
    p = ops.matmul(rows(x), kernel)
    if bias is not None:
        p = p + _input_bias(bias)
    p = ops.reshape(p, (*ops.shape(x)[:2], kernel.shape[1]))

    def step(states: Tensors, given: Tensors) -> tuple[Tensors, Tensors]:
        new = cell.step(weights, given[0], *states)
        if mask is not None:
            new = [where(given[1], *both) for both in zip(new, states, strict=True)]
        return new, new

    final, after = scan(step, states, [p] if mask is None else [p, _column(mask)], len(states), form.reverse)
    return [_swapped(after[0]), *final], [p, *after]


def backward(form: Form, primals: Sequence[Any], mask: Any, kept: Sequence[Any], cotangents: Sequence[Any]) -> Tensors:
    """The gradients of the primals, from what `forward` kept and the gradients of its outputs."""
    x, kernel, recurrent, bias, states = _unpacked(form, primals)
    cell, weights = cell_of(form), _weights(form, recurrent, bias)
    p, *after = kept
    before = [
        concatenate([each[1:], first[None]] if form.reverse else [first[None], each[:-1]], 0)
        for first, each in zip(states, after, strict=True)
    ]
    slopes, stays = cell.slopes(weights, p, before, after)
    if mask is not None:
        valid = _column(mask)
        zero, one = ops.zeros_like(states[0][:, :1]), ops.ones_like(states[0][:, :1])
        slopes = [where(valid, slope, zero) for slope in slopes]
        stays = [where(valid, zero if stay is None else stay, one) for stay in stays]
    transposed = [ops.transpose(weight) for weight in weights if len(weight.shape) == 2]
    staying = [place for place, stay in enumerate(stays) if stay is not None]
    count = len(slopes)

    def step(above: Tensors, given: Tensors) -> tuple[Tensors, Tensors]:
        above = [above[0] + given[0], *above[1:]]
        below, dz = cell.back(transposed, given[1 : 1 + count], *above)
        for place, stay in zip(staying, given[1 + count :], strict=True):
            below[place] = below[place] + above[place] * stay
        return below, [dz]

    dy, *last = cotangents
    given = [_swapped(dy), *slopes, *(stays[place] for place in staying)]
    first, (dz,) = scan(step, last, given, 1, not form.reverse)
    dp, drecurrent, dcandidate = cell.gradients(dz, before, slopes)
    flat = rows(dp)
    dx = ops.reshape(ops.matmul(flat, ops.transpose(kernel)), (*ops.shape(dp)[:2], kernel.shape[0]))
    found = [_swapped(dx), ops.matmul(ops.transpose(rows(_swapped(x))), flat), drecurrent]
    if bias is not None:
        db = ops.sum(flat, 0)
        if len(bias.shape) == 2:
            db = ops.stack([db, concatenate([db[: -dcandidate.shape[0]], dcandidate], -1)])
        found.append(db)
    return [*found, *first]


def _swapped(sequence: Any) -> Any:
    """Batch and time change places."""
    return ops.transpose(sequence, (1, 0, 2))


def _column(mask: Any) -> Any:
    """The mask, time first, over states."""
    return ops.transpose(mask)[:, :, None]
