"""The parameters of a `Stack` at the moment of a call, checked when one was replaced."""

from operator import is_, itemgetter

import numpy as np

from multirnn import InvalidWeights, Weights
from multirnn.weights import Array
from multirnn_numpy.stack import Stack

__all__ = ["Parameters"]


class Parameters:
    """The current parameters of a stack; keep the tuple while you use their addresses.

    They may be replaced at any time, also by another thread.
    """

    def __init__(self, native: Stack) -> None:
        self._native = native
        self._in_order = itemgetter(*native.spec.shapes)
        self._seen: tuple[Array, ...] = ()

    def now(self) -> tuple[Array, ...]:
        """In the order of `spec.shapes`; the same tuple as long as none is replaced.

        `InvalidWeights` if one was replaced by an array that does not fit the spec or is not aligned in memory.
        """
        given, seen = self._native.parameters, self._seen
        if len(given) == len(seen):
            try:
                if all(map(is_, self._in_order(given), seen)):
                    return seen
            except KeyError:
                pass
        given = dict(given)  # a copy, which no other thread changes between check and use
        Weights(self._native.spec, given)
        for name, array in given.items():
            if not isinstance(array, np.ndarray):
                raise InvalidWeights(f"{name} must be a NumPy array, not a {type(array).__qualname__}")
            if not array.flags.aligned:
                raise InvalidWeights(f"{name} is not aligned in memory; write into the array that is there instead")
        self._seen = self._in_order(given)
        return self._seen
