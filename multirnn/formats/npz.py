"""NumPy's archives of arrays, `.npz`. Pickled objects in them are refused."""

import io
import json
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from multirnn.errors import FormatError
from multirnn.formats import archive
from multirnn.formats.contents import Contents, Tensor, array_of
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
    facts: dict[str, Any] = {}
    with archive.opened(path) as entries:
        for entry in entries.names:
            name = entry.removesuffix(".npy")
            what = f"{path}: the array {name[:80]!r}"
            if name in arrays:
                raise FormatError(f"{what} is there twice")
            data = entries.read(entry)
            if name == SPEC:
                facts["spec"] = _text(data, what)
            else:
                arrays[name] = _array(data, what)
    return Contents("npz", arrays, facts)


def _array(data: memoryview, what: str) -> Tensor:
    """The array of a `.npy` file, a read-only view of its bytes."""
    shape, fortran, dtype, body = _parsed(data, what)
    if dtype.hasobject:
        raise FormatError(f"{what} holds Python objects; save arrays of numbers")
    found = array_of(body, dtype.str, shape[::-1] if fortran else shape, what)
    return found.T if fortran and isinstance(found, np.ndarray) else found


def _text(data: memoryview, what: str) -> str:
    """The string in a `.npy` file without axes."""
    shape, _, dtype, body = _parsed(data, what)
    if shape or dtype.kind != "U" or dtype.itemsize != len(body):
        raise FormatError(f"{what} has to be the spec, one string")
    return str(np.frombuffer(body, dtype)[0]) if len(body) else ""


def _parsed(data: memoryview, what: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], memoryview]:
    """The shape, whether the first axis varies fastest, the dtype, and the bytes of the numbers."""
    head = io.BytesIO(data[: 1 << 16])
    try:
        version = npy.read_magic(head)
        readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
        if version not in readers:
            raise FormatError(f"{what} is in version {version} of NumPy's format, which is not read here")
        shape, fortran, dtype = readers[version](head, max_header_size=1 << 16)
    except FormatError:
        raise
    except (
        ValueError,
        TypeError,
        SyntaxError,
        TokenError,
        EOFError,
        MemoryError,
        RecursionError,
        OverflowError,
    ) as error:
        raise FormatError(f"{what} has a damaged header: {str(error)[:200]}") from error
    return shape, fortran, dtype, data[head.tell() :]


def write(weights: Weights, file: BinaryIO, convention: str) -> None:
    """Write arrays by name; canonical ones with the spec in an entry of its own."""
    about = {SPEC: np.array(json.dumps(weights.spec.to_dict()))} if convention == "canonical" else {}
    np.savez(file, allow_pickle=False, **entries(weights, convention), **about)
