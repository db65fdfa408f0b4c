"""Memory that NumPy and TensorFlow share, with no copy between them."""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from multirnn.weights import Array

__all__ = ["address", "copied", "empty", "in_memory", "owned", "tensor_of"]

ALIGNMENT = 64
"""Of the memory of every tensor: TensorFlow aborts the process where an operation finds another."""


def address(array: np.ndarray[Any, Any]) -> int:
    """Where the first element is."""
    return int(array.__array_interface__["data"][0])


def empty(shape: Sequence[int], dtype: Any) -> Array:
    """An array that TensorFlow can have: C-contiguous and aligned."""
    dtype = np.dtype(dtype)
    memory = np.empty(prod(shape) * dtype.itemsize + ALIGNMENT, np.uint8)
    return np.ndarray(shape, dtype, memory, -address(memory) % ALIGNMENT)


def in_memory(value: Any) -> Array:
    """A tensor or variable of TensorFlow as an array over its own memory, to be read only."""
    import tensorflow as tf

    if isinstance(value, tf.Variable):  # its read_value() takes four times as long
        value = tf.raw_ops.ReadVariableOp(resource=value.handle, dtype=value.dtype)
    array: Array = np.asarray(value)
    return array


def tensor_of(array: Array) -> Any:
    """A tensor over the memory of an array, which nobody may write to from now on; of a copy where that is not aligned.

    `tf.convert_to_tensor` copies, and takes seven times as long for a small one.
    """
    import tensorflow as tf

    if address(array) % ALIGNMENT:
        return copied(array)
    return tf.experimental.dlpack.from_dlpack(array.__dlpack__())


def copied(array: Array) -> Any:
    """A tensor of a copy of an array."""
    memory = empty(array.shape, array.dtype)
    memory[...] = array
    return tensor_of(memory)


def owned(tensor: Any) -> Array:
    """An array over the memory of a tensor that nobody else has, to be written to as well; `tensor.numpy()` copies."""
    return np.asarray(_Writable(tensor))


class _Writable:
    """What NumPy reads where an array is, and what it keeps alive."""

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor
        shared = np.asarray(tensor).__array_interface__
        self.__array_interface__ = {**shared, "data": (shared["data"][0], False)}
