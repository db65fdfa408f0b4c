"""The hand-written backward pass of `multirnn_keras.loop`.

One loop multiplies the factors of each step, known beforehand, with the gradient from the step above; the gradients of
the weights are single products over all steps afterwards.
"""

from collections.abc import Sequence
from typing import Any

from multirnn_keras.cells import Form, cell_of, ops, rows
from multirnn_keras.engines import engine
from multirnn_keras.engines.interface import Tensors
from multirnn_keras.loop import column, forward, parted, swapped

__all__ = ["backward", "recurrence"]


def recurrence(form: Form, primals: Sequence[Any], mask: Any) -> Tensors:
    """The outputs of `forward`, with gradients by `backward`; its arguments are those of `forward`."""
    return engine.differentiated(forward, backward, form, primals, mask)


def backward(form: Form, primals: Sequence[Any], mask: Any, kept: Sequence[Any], cotangents: Sequence[Any]) -> Tensors:
    """The gradients of the primals, from what `forward` kept and the gradients of its outputs."""
    x, kernel, bias, states, weights = parted(form, primals)
    cell = cell_of(form)
    p, *after = kept
    before = [
        engine.concatenate([each[1:], first[None]] if form.reverse else [first[None], each[:-1]], 0)
        for first, each in zip(states, after, strict=True)
    ]
    slopes, stays = cell.slopes(weights, p, before, after)
    if mask is not None:
        valid = column(mask)
        zero, one = ops.zeros_like(states[0][:, :1]), ops.ones_like(states[0][:, :1])
        slopes = [engine.where(valid, slope, zero) for slope in slopes]
        stays = [engine.where(valid, zero if stay is None else stay, one) for stay in stays]
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
    given = [swapped(dy), *slopes, *(stays[place] for place in staying)]
    first, (dz,) = engine.scan(step, last, given, 1, not form.reverse)
    dp, drecurrent, dcandidate = cell.gradients(dz, before, slopes)
    flat = rows(dp)
    dx = ops.reshape(ops.matmul(flat, ops.transpose(kernel)), (*ops.shape(dp)[:2], kernel.shape[0]))
    found = [swapped(dx), ops.matmul(ops.transpose(rows(swapped(x))), flat), drecurrent]
    if bias is not None:
        db = ops.sum(flat, 0)
        if len(bias.shape) == 2:
            db = ops.stack([db, engine.concatenate([db[: -dcandidate.shape[0]], dcandidate], -1)])
        found.append(db)
    return [*found, *first]
