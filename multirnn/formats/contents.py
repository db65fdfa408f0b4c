"""What the reader of a format returns: the file's arrays by name, and the facts it states about them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from multirnn.errors import FormatError, MissingFramework

__all__ = ["BFLOAT16", "Bfloat16", "Contents", "Tensor", "Unread", "array_of", "needed", "numbers_of", "stored_as"]

BFLOAT16 = "bfloat16"
MOST_AXES = 64
"""NumPy's own limit."""


class Unread(NamedTuple):
    """An array in a dtype that is not read here."""

    dtype: str
    shape: tuple[int, ...]


class Bfloat16(NamedTuple):
    """An array of bfloat16, which NumPy does not have: the upper halves of float32."""

    bits: NDArray[np.uint16]

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.bits.shape

    def wide(self) -> NDArray[np.float32]:
        """The same numbers in float32, exactly."""
        wide = self.bits.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)


Tensor = NDArray[Any] | Bfloat16 | Unread


@dataclass(frozen=True)
class Contents:
    """A file as its reader sees it.

    Attributes:
        format: the name of the format.
        arrays: by the file's own names, in its order; read-only views where the format allows it.
        facts: what the file states besides, by the names that its reader documents.
    """

    format: str
    arrays: Mapping[str, Tensor]
    facts: Mapping[str, Any] = field(default_factory=dict)


def array_of(data: Any, dtype: str, shape: Any, what: str) -> Tensor:
    """The array whose numbers are these bytes, a read-only view of them.

    Args:
        data: bytes, or a buffer of them.
        dtype: NumPy's name for it, or "bfloat16".
        shape: a sequence of integers.
        what: the array at the beginning of a sentence.

    Raises:
        FormatError: the bytes are not as many as the shape needs.
    """
    found = np.dtype("<u2" if dtype == BFLOAT16 else dtype)
    sizes = [size for size in shape if type(size) is int and 0 <= size < 1 << 62]
    if len(sizes) != len(shape) or len(sizes) > MOST_AXES:
        raise FormatError(f"{what} has an impossible shape")
    if prod(sizes) * found.itemsize != len(data):
        raise FormatError(f"{what} claims the shape {tuple(sizes)} of {dtype}, and has {len(data)} bytes")
    if found.kind not in "biufc":
        return Unread(dtype, tuple(sizes))
    array: NDArray[Any]
    try:
        array = np.frombuffer(data, found).reshape(sizes) if len(data) else np.zeros(sizes, found)
    except ValueError as error:  # a size of zero beside sizes whose product is no integer of the machine
        raise FormatError(f"{what} has an impossible shape: {error}") from error
    array.flags.writeable = False
    return Bfloat16(array) if dtype == BFLOAT16 else array


def numbers_of(name: str, array: Tensor) -> NDArray[Any]:
    """The array in a dtype of the machine; float16 and bfloat16 are widened to float32, exactly.

    Raises:
        FormatError: it is in a dtype that is not read.
    """
    if isinstance(array, Unread):
        raise FormatError(f"the array {name!r} is {array.dtype}, which is not read here; save it as float32")
    if isinstance(array, Bfloat16):
        return array.wide()
    return np.asarray(array, np.float32 if array.dtype == np.float16 else array.dtype.newbyteorder("="))


def stored_as(array: Tensor) -> str:
    """The name of the dtype in the file."""
    return BFLOAT16 if isinstance(array, Bfloat16) else array.dtype if isinstance(array, Unread) else array.dtype.name


def needed(package: str, path: object, extra: str = "files") -> Any:
    """Import the package that a format or an export needs, which an extra of multirnn installs.

    Raises:
        MissingFramework: it is not installed.
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise MissingFramework(
            f'{path} needs the package {package!r}, which is not installed: pip install "multirnn[{extra}]"'
        ) from error
