"""`Loop`: the recurrence of a stack over tensors, there and back, without autograd; `KernelLoop` and `TensorLoop` are two.

A sequence is `(batch, time, features)`, of any strides; a state `(num_layers * directions, batch, hidden_size)`.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

__all__ = ["Loop", "Maybe"]

Maybe = Tensor | None


class Loop(Protocol):
    """A stack, run over plain tensors of its dtype on the CPU.

    Attributes:
        ragged: whether rows may be of unequal length.
    """

    ragged: bool

    def forward(
        self,
        x: Tensor,
        state: Sequence[Maybe],
        weights: Sequence[Tensor],
        lengths: Maybe,
        y: Tensor,
        *,
        keep: bool,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The final h, and c of an LSTM; and what `backward` needs besides y.

        Args:
            x: `(batch, time, input_size)`, the features dense; no axis is 0.
            state: h, and of an LSTM c, contiguous; None is zero.
            weights: contiguous, in the order of `RecurrentSpec.shapes`, as PyTorch shapes them.
            lengths: `(batch,)`, int64, contiguous; None where every row is full.
            y: `(batch, time, directions * hidden_size)`, the features dense; the sequence is written here.
            keep: whether `backward` is to follow.
        """
        ...

    def backward(
        self,
        x: Tensor,
        state: Sequence[Maybe],
        weights: Sequence[Tensor],
        lengths: Maybe,
        y: Tensor,
        kept: Sequence[Tensor],
        dy: Maybe,
        dfinal: Sequence[Maybe],
        wanted: Sequence[bool],
    ) -> list[Maybe]:
        """The gradients of x, of the initial states and of the weights, in this order.

        Args:
            x, state, weights, lengths, y: as in the call of `forward`, y as it left it.
            kept: what it returned.
            dy, dfinal: the gradients of the sequence and of the final states; None is zero.
            wanted: for each gradient whether it is needed; what is not is None, or what cost nothing.
        """
        ...
