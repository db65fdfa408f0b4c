"""Memory for the arrays of a forward and backward pass, kept from call to call."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multirnn.weights import Array

__all__ = ["Empty", "Workspaces"]

Empty = Callable[[tuple[int, ...], Any], Array]
"""`empty(shape, dtype)`: an uninitialised array; `numpy.empty`, or from a workspace."""


class Workspaces:
    """A pool of workspaces: a call takes one for itself, or a new one if none is free.

    The system zeroes each page of new memory at its first touch. Forward and backward, a call of (batch, time, input,
    hidden) = (32, 100, 256, 256) touches 4200 pages, which took 10 ms of its 41. A workspace keeps as much as its largest
    call needed. Its arrays must not reach the caller.
    """

    def __init__(self) -> None:
        self._free: list[list[NDArray[np.uint8]]] = []

    @contextmanager
    def lend(self) -> Iterator[Empty]:
        """An `Empty` for the length of a `with`."""
        try:
            blocks = self._free.pop()  # atomic
        except IndexError:
            blocks = []
        taken = 0

        def empty(shape: tuple[int, ...], dtype: Any) -> Array:
            nonlocal taken
            size = prod(shape) * np.dtype(dtype).itemsize
            if taken == len(blocks):
                blocks.append(_aligned(size))
            elif blocks[taken].nbytes < size:
                blocks[taken] = _aligned(size)
            array: Array = blocks[taken][:size].view(dtype).reshape(shape)
            taken += 1
            return array

        try:
            yield empty
        finally:
            self._free.append(blocks)


def _aligned(size: int) -> NDArray[np.uint8]:
    """Bytes that begin at a cache line of 64: the products of a step take 5 % less time."""
    block = np.empty(size + 63, np.uint8)
    start = -block.ctypes.data % 64
    return block[start : start + size]
