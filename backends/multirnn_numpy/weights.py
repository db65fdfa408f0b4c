"""Canonical weights <-> a `Stack`.

A stack's parameters have the canonical names and shapes; only their order in memory differs. The loops multiply rows by
matrices, h U, so a weight `(gates, hidden_size, n)` lies in memory as `(n, gates, hidden_size)`, and the matrix
`(n, gates * hidden_size)` is a view of it.
"""

from functools import partial
from typing import Any

import numpy as np

from multirnn import Output, State, Unrepresentable, Weights
from multirnn.boundary import Inputs
from multirnn_numpy.stack import Stack

__all__ = ["read", "stack"]


def stack(weights: Weights) -> Stack:
    """A stack with a copy of these weights."""
    return Stack(
        weights.spec,
        {
            name: np.moveaxis(np.moveaxis(array, -1, 0).copy(), 0, -1) if array.ndim == 3 else array.copy()
            for name, array in weights.arrays.items()
        },
    )


def read(native: Any) -> Weights:
    """The spec and the weights of a stack as they are now, copied.

    A stack with a `forward` of its own is called once to confirm its output.

    Raises:
        Unrepresentable: it is no `multirnn_numpy.Stack`, or its output is not its spec's.
        InvalidWeights: its parameters do not fit its spec.
    """
    if not isinstance(native, Stack):
        kind = f"{type(native).__module__}.{type(native).__qualname__}"
        raise Unrepresentable(f"the numpy backend reads a multirnn_numpy.Stack, not a {kind}")
    weights = Weights(native.spec, native.parameters)
    if type(native) is Stack and "forward" not in vars(native):
        return weights
    from multirnn.confirmation import confirmed  # here, since it loads the reference, which is this backend

    return confirmed(weights, partial(_called, native), f"this {type(native).__name__}")


def _called(native: Stack, inputs: Inputs) -> Output:
    padded = None if inputs.lengths is None else ~inputs.valid.T[..., None]
    sequence, state, _ = native.forward(inputs.x.swapaxes(0, 1), inputs.state.parts, padded)
    return Output(sequence.swapaxes(0, 1), State(*state))
