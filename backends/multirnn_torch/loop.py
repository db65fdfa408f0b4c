"""`Loop`: a stack over plain tensors on the CPU, forward and backward, without autograd.

`KernelLoop` and `TensorLoop` are the two. A sequence is `(batch, time, features)`, of any strides, the features dense; a
state `(num_layers * directions, batch, hidden_size)`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

__all__ = ["Loop", "LoopCall", "Maybe"]

Maybe = Tensor | None


class LoopCall(NamedTuple):
    """The arguments of a loop.

    With `starts`, the first row of each step, x, y and their gradients are packed as in a `PackedSequence`,
    `(rows of all steps, features)`, with falling lengths.
    """

    x: Tensor  # (batch, time, input_size); no axis is 0
    state: Sequence[Maybe]  # h, and c of an LSTM, contiguous; None is zero
    weights: Sequence[Tensor]  # contiguous, in the order of `RecurrentSpec.shapes`, in PyTorch's shapes
    y: Tensor  # (batch, time, directions * hidden_size); written by the loop
    lengths: Maybe = None  # (batch,), int64, contiguous; None if every row is full
    starts: Maybe = None  # (time,), int64, contiguous; None if not packed
    prepared: Any = None  # from `Loop.prepare`, for `forward` without `keep`

    @property
    def size(self) -> tuple[int, int]:
        """Batch and time."""
        if self.lengths is not None and self.starts is not None:
            return len(self.lengths), len(self.starts)
        batch, time, _ = self.x.shape
        return batch, time


class Loop(Protocol):
    """The recurrence of one spec."""

    ragged: bool  # whether it takes lengths and packed rows

    def prepare(self, weights: Sequence[Tensor]) -> Any:
        """Constant weights in the form that `forward` would make of them in every call; None if it makes none."""
        ...

    def forward(self, call: LoopCall, *, keep: bool) -> tuple[list[Tensor], list[Tensor]]:
        """Write `call.y`; return the final h, and c of an LSTM, and with `keep` what `backward` needs."""
        ...

    def backward(
        self, call: LoopCall, kept: Sequence[Tensor], dy: Maybe, dfinal: Sequence[Maybe], wanted: Sequence[bool]
    ) -> list[Maybe]:
        """The gradients of x, of the initial states and of the weights, from the call of `forward` and what it kept.

        `dy` and `dfinal` are the gradients of the sequence and the final states; None is zero. A gradient that is not
        wanted is None, or one that cost nothing.
        """
        ...
