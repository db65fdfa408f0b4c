"""Rows of length 0, which ONNX Runtime must not get.

It returns zeros for their state, and its RNN reads before its own memory. So such a row is run for a step, and what comes
of it is put right.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from multirnn.layer import Lengths
from multirnn.weights import Array

__all__ = ["settle", "steps"]


def steps(lengths: Lengths | None, batch: int, time: int) -> NDArray[np.int32]:
    """How long the rows are run: `(batch,)`, each from 1 to time."""
    return np.full(batch, time, np.int32) if lengths is None else np.maximum(lengths, 1).astype(np.int32)


def settle(y: Array, final: Sequence[Array], state: Sequence[Array], lengths: Lengths | None) -> None:
    """Give the rows of length 0 outputs that are zero and the state that they had, in place.

    Args:
        y: `(time, batch, directions * hidden_size)`.
        final: the final states, `(num_layers * directions, batch, hidden_size)` each.
        state: the initial ones, likewise.
        lengths: `(batch,)`; None where every row is full.
    """
    if lengths is None or lengths.all():
        return
    nothing = lengths == 0
    y[:, nothing] = 0
    for end, start in zip(final, state, strict=True):
        end[:, nothing] = start[:, nothing]
