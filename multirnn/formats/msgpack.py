"""Flax's msgpack files: nested dictionaries of arrays, as `flax.serialization.to_bytes` writes them.

Needs the package msgpack. Format: `flax/serialization.py`, extension types 1 (an array) and 3 (a NumPy scalar).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from multirnn.errors import FormatError
from multirnn.formats.contents import BFLOAT16, Contents, Tensor, Unread, needed
from multirnn.formats.fitting import entries
from multirnn.weights import Weights

__all__ = ["read", "write"]

ARRAY, COMPLEX, SCALAR = 1, 2, 3
CHUNKED = "__msgpack_chunked_array__"
DEEPEST = 100


def read(path: Path) -> Contents:
    """The arrays by name, nested names joined with "/".

    Raises:
        FormatError: it is damaged.
        MissingFramework: the package msgpack is not installed.
    """
    msgpack = needed("msgpack", path)
    data = path.read_bytes()

    def extension(code: int, body: bytes) -> Any:
        if code == COMPLEX:
            return None
        if code not in (ARRAY, SCALAR):
            raise FormatError(f"{path} has a value of the unknown extension type {code}")
        shape, dtype, raw = msgpack.unpackb(body, raw=True)
        return _array(path, tuple(shape), bytes(dtype).decode(), raw)

    try:
        tree = msgpack.unpackb(data, ext_hook=extension, raw=False, strict_map_key=False)
        arrays: dict[str, Tensor] = {}
        _flatten(path, "", tree, arrays, 0)
    except FormatError:
        raise
    except (msgpack.UnpackException, ValueError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise FormatError(f"{path} is no msgpack file of Flax, or damaged: {type(error).__name__}: {error}") from error
    return Contents("msgpack", arrays)


def _array(path: Path, shape: tuple[int, ...], dtype: str, raw: bytes) -> Tensor:
    if dtype == BFLOAT16:
        return Unread(BFLOAT16, shape)
    found = np.dtype(dtype)
    count = 1
    for size in shape:
        count *= size
    if found.hasobject or min(shape, default=0) < 0 or count * found.itemsize != len(raw):
        raise FormatError(f"{path} has an array of the shape {shape} and {found} in {len(raw)} bytes")
    return np.frombuffer(raw, found).reshape(shape) if raw else np.zeros(shape, found)


def _flatten(path: Path, name: str, value: Any, arrays: dict[str, Tensor], depth: int) -> None:
    if depth > DEEPEST:
        raise FormatError(f"{path} is nested more than {DEEPEST} deep")
    if isinstance(value, np.ndarray | Unread):
        arrays[name] = value
    elif isinstance(value, dict) and CHUNKED in value:
        arrays[name] = _joined(path, value)
    elif isinstance(value, dict):
        for key, inner in value.items():
            _flatten(path, f"{name}/{key}" if name else str(key), inner, arrays, depth + 1)


def _joined(path: Path, value: Mapping[str, Any]) -> Tensor:
    """An array of more than 2³⁰ bytes, which Flax writes in pieces."""
    pieces = value.get("chunks")
    shape = value.get("shape")
    if not isinstance(pieces, dict) or not isinstance(shape, dict):
        raise FormatError(f"{path} has an array in pieces, and no list of them")
    return np.concatenate([piece.ravel() for piece in pieces.values()]).reshape(tuple(shape.values()))


def write(weights: Weights, file: BinaryIO, convention: str) -> None:
    """Write arrays by name; "/" in a name nests dictionaries."""
    arrays = entries(weights, convention)
    msgpack = needed("msgpack", file.name)
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *folders, last = name.split("/")
        inner = tree
        for folder in folders:
            inner = inner.setdefault(folder, {})
        body = msgpack.packb((array.shape, array.dtype.name, np.ascontiguousarray(array).tobytes()), use_bin_type=True)
        inner[last] = msgpack.ExtType(ARRAY, body)
    file.write(msgpack.packb(tree, strict_types=True))
