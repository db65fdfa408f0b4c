"""NumPy's archives of arrays, `.npz`. Pickled objects in them are refused."""

import io
import json
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from multirnn.errors import FormatError
from multirnn.formats import archive
from multirnn.formats.contents import Contents, Tensor
from multirnn.formats.fitting import entries
from multirnn.weights import Weights

__all__ = ["read", "write"]

SPEC = "multirnn.spec"
"""The entry with the spec as JSON, a string without axes; also the key in the metadata of safetensors."""


def read(path: Path) -> Contents:
    """The arrays by name. Facts: `spec`, the text of the spec in a file of ours.

    Raises:
        FormatError: it is damaged, or holds Python objects.
    """
    arrays: dict[str, Tensor] = {}
    with archive.opened(path) as entries:
        for entry in entries.names:
            name = entry.removesuffix(".npy")
            try:
                arrays[name] = _array(entries.read(entry))
            except FormatError as error:
                text = str(error)
                raise FormatError(
                    text if text.startswith(str(path)) else f"{path}: the array {name!r} {text}"
                ) from error
    facts: dict[str, Any] = {}
    if (spec := arrays.pop(SPEC, None)) is not None:
        facts["spec"] = str(spec)
    return Contents("npz", arrays, facts)


def _array(data: memoryview) -> NDArray[Any]:
    """The array of a `.npy` file, a read-only view of its bytes."""
    head = io.BytesIO(data[: 1 << 16])
    try:
        version = npy.read_magic(head)
        if version == (1, 0):
            shape, fortran, dtype = npy.read_array_header_1_0(head, max_header_size=1 << 16)
        elif version == (2, 0):
            shape, fortran, dtype = npy.read_array_header_2_0(head, max_header_size=1 << 16)
        else:
            raise FormatError(f"is in version {version} of NumPy's format, which is not read here")
    except FormatError:
        raise
    except (ValueError, TypeError, SyntaxError, EOFError, MemoryError, RecursionError, OverflowError) as error:
        raise FormatError(f"has a damaged header: {error}") from error
    if dtype.hasobject:
        raise FormatError("holds Python objects; save arrays of numbers")
    count = 1
    for size in shape:
        count *= size
    body = data[head.tell() :]
    if count < 0 or min(shape, default=0) < 0 or count * dtype.itemsize != len(body):
        raise FormatError(f"claims the shape {shape} of {dtype}, and has {len(body)} bytes")
    flat = np.frombuffer(body, dtype, count) if count and dtype.itemsize else np.zeros(count, dtype)
    return flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)


def write(weights: Weights, file: BinaryIO, convention: str) -> None:
    """Write arrays by name; canonical ones with the spec in an entry of its own."""
    about = {SPEC: np.array(json.dumps(weights.spec.to_dict()))} if convention == "canonical" else {}
    np.savez(file, allow_pickle=False, **entries(weights, convention), **about)
