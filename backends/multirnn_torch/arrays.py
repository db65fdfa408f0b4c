"""NumPy arrays as tensors, and tensors as NumPy arrays; on the CPU they share their memory."""

from collections.abc import Iterable

import torch
from torch import Tensor

from multirnn.weights import Array

__all__ = ["array_of", "arrays", "tensor_of", "tensors"]


def tensors(values: Iterable[Array], device: torch.device) -> list[Tensor]:
    """On the CPU they share the memory of the arrays."""
    return [tensor_of(array, device) for array in values]


def arrays(values: Iterable[Tensor]) -> list[Array]:
    """On the CPU they share the memory of the tensors."""
    return [array_of(tensor) for tensor in values]


def tensor_of(array: Array, device: torch.device) -> Tensor:
    """On this device."""
    # from_numpy shares the memory, and warns of memory that it must not write to.
    shared = torch.from_numpy(array if array.flags.writeable else array.copy())
    return shared if device.type == "cpu" else shared.to(device)


def array_of(tensor: Tensor) -> Array:
    """Wherever the tensor is."""
    array: Array = (tensor if tensor.is_cpu else tensor.cpu()).numpy()
    return array
