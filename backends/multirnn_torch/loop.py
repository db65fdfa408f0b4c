"""`Loop`: the recurrence of a stack over tensors, there and back, without autograd; `KernelLoop` and `TensorLoop` are two.

A sequence is `(batch, time, features)`, of any strides, the features dense; a state
`(num_layers * directions, batch, hidden_size)`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

__all__ = ["Call", "Loop", "Maybe"]

Maybe = Tensor | None


class Call(NamedTuple):
    """What a stack is run over.

    Attributes:
        x: `(batch, time, input_size)`; no axis is 0.
        state: h, and of an LSTM c, contiguous; None is zero.
        weights: contiguous, in the order of `RecurrentSpec.shapes`, as PyTorch shapes them.
        y: `(batch, time, directions * hidden_size)`; the sequence is written here.
        lengths: `(batch,)`, int64, contiguous; None where every row is full.
        starts: `(time,)`, int64, contiguous: x and y are packed as in a `PackedSequence`, `(rows of all steps, features)`,
            and so are their gradients. It is the row that a step begins with; the lengths are falling. None: not packed.
        prepared: of the weights, as `Loop.prepare` left it, for `forward` that keeps nothing; None where it is not.
    """

    x: Tensor
    state: Sequence[Maybe]
    weights: Sequence[Tensor]
    y: Tensor
    lengths: Maybe = None
    starts: Maybe = None
    prepared: Any = None

    @property
    def size(self) -> tuple[int, int]:
        """Batch and time."""
        if self.lengths is not None and self.starts is not None:
            return len(self.lengths), len(self.starts)
        batch, time, _ = self.x.shape
        return batch, time


class Loop(Protocol):
    """A stack, run over plain tensors of its dtype on the CPU.

    Attributes:
        ragged: whether rows may be of unequal length, and packed.
    """

    ragged: bool

    def prepare(self, weights: Sequence[Tensor]) -> Any:
        """What `forward` needs of weights and would make in every call; None if it makes nothing of them."""
        ...

    def forward(self, call: Call, *, keep: bool) -> tuple[list[Tensor], list[Tensor]]:
        """The final h, and c of an LSTM; and what `backward` needs besides the call.

        Args:
            call: its y is written.
            keep: whether `backward` is to follow.
        """
        ...

    def backward(
        self, call: Call, kept: Sequence[Tensor], dy: Maybe, dfinal: Sequence[Maybe], wanted: Sequence[bool]
    ) -> list[Maybe]:
        """The gradients of x, of the initial states and of the weights, in this order.

        Args:
            call: that of `forward`, y as it left it.
            kept: what it returned.
            dy, dfinal: the gradients of the sequence and of the final states; None is zero.
            wanted: for each gradient whether it is needed; what is not is None, or what cost nothing.
        """
        ...
