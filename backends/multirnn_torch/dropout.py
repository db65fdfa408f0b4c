"""Dropout between the layers of a stack while it trains: each layer runs on its own, PyTorch's dropout in between.

The masks are bit for bit those of `torch.nn.RNN`, `LSTM` and `GRU` on the CPU, and as many random numbers are drawn: one mask
for each gap between two layers, over the whole output of the lower one. A mask is drawn in the order of its elements, so that
output is laid out as PyTorch's layers have it: `(time, batch, features)`, also with `batch_first`, or the rows of a
`PackedSequence`. Rows with `lengths` are packed as by `pack_padded_sequence(..., enforce_sorted=False)`, without those of
length 0.

No gradient draws again: those of gradients run the layers alone, on outputs whose elements are dropped already.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from multirnn_torch.calls import reordered, run
from multirnn_torch.loop import Maybe
from multirnn_torch.recurrence import ModuleRecurrence, RecurrenceFunction, Rows

__all__ = ["SENTENCES", "run_dropping"]

SENTENCES: Mapping[str, str] = MappingProxyType(
    {
        "kernel": "the compiled kernel: one call for each layer, and PyTorch's dropout between them",
        "tensors": "a loop of PyTorch's operations for each layer, and PyTorch's dropout between them",
    }
)
"""What runs, by the key of `LOOPS`."""


def run_dropping(
    recurrence: ModuleRecurrence,
    rows: Rows,
    x: Tensor,
    state: Sequence[Maybe],
    weights: Sequence[Tensor],
    rate: float,
) -> tuple[Tensor, list[Tensor]]:
    """The sequence in the layout of x, and the parts of the final state; differentiable.

    Args:
        recurrence: of the whole stack.
        rows: the layout and the lengths of x.
        x: `(batch, time, input_size)` or `(time, batch, input_size)`, or packed, `(rows of all steps, input_size)`.
        state: h, and c of an LSTM, `(num_layers * directions, batch, hidden_size)`, contiguous; None is zero.
        weights: contiguous, of all layers.
        rate: the probability of an output between two layers to be dropped.
    """
    if rows.lengths is None or rows.starts is not None:
        return _run_layers(recurrence, rows, x, state, weights, rate)
    if not rows.lengths.any():  # nothing is drawn
        return _run_layers(recurrence, rows, x, state, weights, 0)

    def packed(sequence: PackedSequence, hx: Any) -> Any:
        data, sizes, order, back = sequence
        held: Any = reordered(hx, order)
        y, final = _run_layers(
            recurrence,
            cast("Rows", Rows.packed(sizes, len(data))),
            data,
            held if isinstance(held, tuple) else [held],
            weights,
            rate,
        )
        return PackedSequence(y, sizes, order, back), reordered(tuple(final), back)

    size = len(tuple(recurrence.spec.passes)), len(rows.lengths), recurrence.spec.hidden_size
    given = [x.new_zeros(size) if part is None else part for part in state]
    sequence, *final = run(packed, rows.turned(x), given, rows.lengths.numpy())
    return rows.turned(sequence), final


def _run_layers(
    recurrence: ModuleRecurrence,
    rows: Rows,
    x: Tensor,
    state: Sequence[Maybe],
    weights: Sequence[Tensor],
    rate: float,
) -> tuple[Tensor, list[Tensor]]:
    layers = recurrence.layers
    count = len(layers)
    each = len(weights) // count
    states = [[None] * count if part is None else part.chunk(count) for part in state]
    turned = rows.batch_first and rows.starts is None
    inner = rows._replace(batch_first=False) if turned else rows  # it is time first between the layers
    y = x.transpose(0, 1) if turned else x
    ends = []
    for number, layer in enumerate(layers):
        if number:
            y = torch.dropout(y, rate, True)
        if turned and number == count - 1:
            y, inner = y.transpose(0, 1), rows
        first = [part[number] for part in states]
        y, *final = _run_layer(layer, inner, y, first, weights[number * each : (number + 1) * each])
        ends.append(final)
    return y, [torch.cat(parts) for parts in zip(*ends, strict=True)]


def _run_layer(
    layer: ModuleRecurrence, rows: Rows, x: Tensor, state: Sequence[Maybe], weights: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    if torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in (x, *state, *weights)):
        apply: Any = RecurrenceFunction.apply
        outputs: tuple[Tensor, ...] = apply(layer, rows, x, *state, *weights)
        return outputs
    y, final, _ = layer.forward(x, state, weights, rows)
    return y, *final
