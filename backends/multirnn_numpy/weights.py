"""Canonical weights <-> a `Stack`.

A stack's parameters have the canonical names and shapes; only their order in memory is its own. The loops multiply rows
by matrices, h U, so a weight `(gates, hidden_size, n)` lies in memory as `(n, gates, hidden_size)`, and the matrix
`(n, gates * hidden_size)` is a view of it.
"""

from typing import Any

import numpy as np

from multirnn import Unrepresentable, Weights
from multirnn.weights import Array
from multirnn_numpy.stack import Stack

__all__ = ["read", "stack"]


def stack(weights: Weights) -> Stack:
    """A stack that starts from these weights, copied."""
    return Stack(weights.spec, {name: _laid_out(array) for name, array in weights.arrays.items()})


def read(native: Any) -> Weights:
    """The spec and the weights of a stack as they are now, copied.

    Raises:
        Unrepresentable: it is no `multirnn_numpy.Stack`.
        InvalidWeights: its parameters are not those of its spec.
    """
    if not isinstance(native, Stack):
        kind = type(native)
        raise Unrepresentable(
            f"the numpy backend reads a multirnn_numpy.Stack, not a {kind.__module__}.{kind.__qualname__}"
        )
    return Weights(native.spec, native.parameters)


def _laid_out(array: Array) -> Array:
    """A copy of the same shape, the last axis of a weight outermost in memory."""
    return np.moveaxis(np.moveaxis(array, -1, 0).copy(), 0, -1) if array.ndim == 3 else array.copy()
