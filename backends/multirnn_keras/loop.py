"""A layer of one direction over tensors: the input is projected for all steps by one product, then the steps run.

Names and shapes, `k` units and `g` gates in Keras' order (i f c o; z r h):

    kernel (features, g k)    recurrent (k, g k)    bias (g k); of the reset-after GRU (2, 3 k), input and recurrent
    p      (time, batch, g k)                       the projected input
    h, c   (batch, k)                               a state; `after` (time, batch, k) those after each step
"""

from collections.abc import Sequence
from typing import Any

from multirnn_keras.cells import Form, cell_of, ops, rows
from multirnn_keras.engines import engine
from multirnn_keras.engines.interface import Tensors

__all__ = ["column", "forward", "parted", "plain", "swapped"]


def parted(form: Form, primals: Sequence[Any]) -> tuple[Any, Any, Any, Tensors, Tensors]:
    """x, the kernel, the bias or None, the initial states, and the weights of a step."""
    x, kernel, recurrent, *rest = primals
    bias: Any = rest[0] if form.bias else None
    k = recurrent.shape[0]
    weights = [recurrent]
    if form.cell == "gru" and not form.reset_after:
        weights = [recurrent[:, : 2 * k], recurrent[:, 2 * k :]]
    elif form.cell == "gru" and form.bias:
        weights = [recurrent, bias[1, 2 * k :]]
    return x, kernel, bias, rest[form.bias :], weights


def _input_bias(bias: Any) -> Any:
    """All biases but the candidate's recurrent one of the reset-after GRU."""
    if len(bias.shape) == 1:
        return bias
    k = bias.shape[1] // 3
    return engine.concatenate([bias[0, : 2 * k] + bias[1, : 2 * k], bias[0, 2 * k :]], -1)


def forward(form: Form, primals: Sequence[Any], mask: Any) -> tuple[Tensors, Tensors]:
    """The outputs `(batch, time, k)` and final states; and p and all states, time first, for `reverse.backward`.

    The primals are x `(batch, time, features)`, kernel, recurrent kernel, bias if there is one, h, and c of an LSTM.
    Where the mask `(batch, time)` is False the states stay.
    """
    x, kernel, bias, states, weights = parted(form, primals)
    cell = cell_of(form)
    x = swapped(x)
    p = ops.matmul(rows(x), kernel)
    if bias is not None:
        p = p + _input_bias(bias)
    p = ops.reshape(p, (*ops.shape(x)[:2], kernel.shape[1]))

    def step(states: Tensors, given: Tensors) -> tuple[Tensors, Tensors]:
        new = cell.step(weights, given[0], *states)
        if mask is not None:
            new = [engine.where(given[1], *both) for both in zip(new, states, strict=True)]
        return new, new

    given = [p] if mask is None else [p, column(mask)]
    final, after = engine.scan(step, states, given, len(states), form.reverse)
    return [swapped(after[0]), *final], [p, *after]


def plain(form: Form, primals: Sequence[Any], mask: Any) -> Tensors:
    """The outputs of `forward` alone, left to the engine to differentiate."""
    return forward(form, primals, mask)[0]


def swapped(sequence: Any) -> Any:
    """Batch and time change places."""
    return ops.transpose(sequence, (1, 0, 2))


def column(mask: Any) -> Any:
    """The mask, time first, over states."""
    return ops.transpose(mask)[:, :, None]
