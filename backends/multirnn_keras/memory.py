"""Memory shared by NumPy and TensorFlow without copies."""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from multirnn.kernel import address
from multirnn.weights import Array

__all__ = ["ALIGNMENT", "copied", "empty", "in_memory", "owned", "tensor_of"]

ALIGNMENT = 64
"""Of every tensor's memory: TensorFlow aborts the process where an operation finds another."""


def empty(shape: Sequence[int], dtype: Any) -> Array:
    """An array that TensorFlow can take over: C-contiguous and aligned."""
    dtype = np.dtype(dtype)
    memory = np.empty(prod(shape) * dtype.itemsize + ALIGNMENT, np.uint8)
    return np.ndarray(shape, dtype, memory, -address(memory) % ALIGNMENT)


def in_memory(value: Any) -> Array:
    """A read-only array over the memory of a TensorFlow tensor or variable."""
    import tensorflow as tf

    if isinstance(value, tf.Variable):  # its read_value() takes four times as long
        value = tf.raw_ops.ReadVariableOp(resource=value.handle, dtype=value.dtype)
    array: Array = np.asarray(value)
    return array


def tensor_of(array: Array) -> Any:
    """A tensor over the memory of an array that is not written to any more; a copy if that memory is not aligned.

    `tf.convert_to_tensor` copies, and takes seven times as long for a small array.
    """
    import tensorflow as tf

    if address(array) % ALIGNMENT:
        return copied(array)
    return tf.experimental.dlpack.from_dlpack(array.__dlpack__())


def copied(array: Array) -> Any:
    """A tensor holding a copy of an array."""
    memory = empty(array.shape, array.dtype)
    memory[...] = array
    return tensor_of(memory)


def owned(tensor: Any) -> Array:
    """A writable array over the memory of a tensor that nobody else uses; `tensor.numpy()` copies."""
    return np.asarray(_Writable(tensor))


class _Writable:
    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor  # NumPy keeps this object, and so the tensor, alive
        shared = np.asarray(tensor).__array_interface__
        self.__array_interface__ = {**shared, "data": (shared["data"][0], False)}
