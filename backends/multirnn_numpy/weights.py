"""Canonical weights <-> the parameters of a `Stack`.

The parameters keep the canonical names and shapes. Only their order in memory differs: the loop multiplies rows by
matrices, h U with U `(hidden_size, gates * hidden_size)`, so a weight `(gates, hidden_size, features)` is stored with
its last axis outermost and `matrix` is a view of it.
"""

from typing import Any

import numpy as np

from multirnn import Unrepresentable, Weights
from multirnn.weights import Array
from multirnn_numpy.stack import Stack

__all__ = ["read", "stack"]


def stack(weights: Weights) -> Stack:
    """A stack with parameters of its own that begin at these weights."""
    return Stack(weights.spec, {name: _stored(array) for name, array in weights.arrays.items()})


def read(native: Any) -> Weights:
    """The spec and the weights of a stack, as they are now.

    Raises:
        Unrepresentable: it is not a `multirnn_numpy.Stack`.
        InvalidWeights: its parameters are no longer those of its spec.
    """
    if not isinstance(native, Stack):
        raise Unrepresentable(f"the numpy backend reads a multirnn_numpy.Stack, not a {type(native).__qualname__}")
    return Weights(native.spec, native.parameters)


def _stored(array: Array) -> Array:
    """A copy of the array with its last axis outermost in memory."""
    return np.moveaxis(np.moveaxis(array, -1, 0).copy(order="C"), 0, -1) if array.ndim == 3 else array.copy()
