"""Flax's msgpack files: nested dictionaries of arrays, as `flax.serialization.to_bytes` writes them.

Needs the package msgpack. Format: `flax/serialization.py`, extension types 1 (an array) and 3 (a NumPy scalar).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from multirnn.errors import FormatError
from multirnn.formats.contents import BFLOAT16, Bfloat16, Contents, Tensor, Unread, array_of, needed
from multirnn.formats.fitting import entries
from multirnn.weights import Array, Weights

__all__ = ["read", "write"]

ARRAY, COMPLEX, SCALAR = 1, 2, 3
CHUNKED = "__msgpack_chunked_array__"
LARGEST = (1 << 32) - 1000
"""Bytes of an array that msgpack counts in 32 bits, with what stands before them."""
DEEPEST, LONGEST = 100, 4096
"""Of names: the dictionaries around an array, and its letters."""


def read(path: Path) -> Contents:
    """The arrays by name, nested names joined with "/".

    Raises:
        FormatError: it is damaged.
        MissingFramework: the package msgpack is not installed.
    """
    msgpack = needed("msgpack", path)

    def extension(code: int, body: bytes) -> Any:
        if code == COMPLEX:
            return None
        if code not in (ARRAY, SCALAR):
            raise FormatError(f"{path} has a value of the unknown extension type {code}")
        shape, dtype, raw = msgpack.unpackb(body, raw=True)
        return _array(path, shape, dtype.decode(), raw)

    size = path.stat().st_size
    limits = {f"max_{kind}_len": size for kind in ("str", "bin", "array", "map", "ext")}
    with path.open("rb") as file:
        try:
            stream = msgpack.Unpacker(  # from the file, piece by piece: the whole in memory would be there twice
                file,
                ext_hook=extension,
                object_pairs_hook=_without_repetition,
                raw=False,
                strict_map_key=False,
                max_buffer_size=0,
                **limits,
            )
            tree = stream.unpack()
            if stream.tell() != size:
                raise FormatError(f"{path} is no msgpack file of Flax: it goes on behind its end")
        except FormatError:
            raise
        except (msgpack.UnpackException, ValueError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            raise FormatError(
                f"{path} is no msgpack file of Flax, or damaged: {type(error).__name__}: {str(error)[:200]}"
            ) from error
    arrays: dict[str, Tensor] = {}
    _flatten(path, "", tree, arrays, 0)
    return Contents("msgpack", arrays)


def _without_repetition(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("it names something twice")
    return found


def _array(path: Path, shape: Any, dtype: str, raw: bytes) -> Tensor:
    what = f"{path}: an array"
    try:
        known = dtype if dtype == BFLOAT16 else np.dtype(dtype).newbyteorder("<").str
    except TypeError:  # float8 and int4, which NumPy does not have
        return Unread(dtype[:40], ())
    return array_of(raw, known, shape, what)


def _flatten(path: Path, name: str, value: Any, arrays: dict[str, Tensor], depth: int) -> None:
    if depth > DEEPEST or len(name) > LONGEST:
        raise FormatError(f"{path} is nested more than {DEEPEST} deep, or has a name of more than {LONGEST} letters")
    if isinstance(value, dict) and CHUNKED in value:
        value = _joined(path, value)
    if isinstance(value, np.ndarray | Bfloat16 | Unread):
        if name in arrays:
            raise FormatError(f"{path} has two arrays that are named {name[:80]!r}")
        arrays[name] = value
    elif isinstance(value, dict):
        for key, inner in value.items():
            word = key if isinstance(key, str) else str(key)[:40]
            _flatten(path, f"{name}/{word}" if name else word, inner, arrays, depth + 1)


def _joined(path: Path, value: Mapping[str, Any]) -> Tensor:
    """An array of more than 2³⁰ bytes, which Flax writes in pieces."""
    pieces, shape = value.get("chunks"), value.get("shape")
    if not isinstance(pieces, dict) or not isinstance(shape, dict) or not pieces:
        raise FormatError(f"{path} has an array in pieces, and no list of them")
    flat = [piece.bits if isinstance(piece, Bfloat16) else piece for piece in pieces.values()]
    if not all(isinstance(piece, np.ndarray) and piece.dtype == flat[0].dtype for piece in flat):
        raise FormatError(f"{path} has an array in pieces of several dtypes")
    whole = np.concatenate([piece.ravel() for piece in flat])
    dtype = BFLOAT16 if isinstance(next(iter(pieces.values())), Bfloat16) else whole.dtype.str
    return array_of(whole.data.cast("B") if whole.size else b"", dtype, tuple(shape.values()), f"{path}: an array")


def write(weights: Weights, file: BinaryIO, convention: str) -> None:
    """Write arrays by name; "/" in a name nests dictionaries."""
    msgpack = needed("msgpack", file.name)
    tree: dict[str, Any] = {}
    for name, array in entries(weights, convention).items():
        *folders, last = name.split("/")
        inner = tree
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[last] = array
    _pack(msgpack.Packer(use_bin_type=True), tree, file)


def _pack(packer: Any, tree: Mapping[str, Any], file: BinaryIO) -> None:
    """Write a dictionary, one array after the other, so that no copy of the whole is made."""
    file.write(packer.pack_map_header(len(tree)))
    for name, value in tree.items():
        file.write(packer.pack(name))
        if isinstance(value, dict):
            _pack(packer, value, file)
        else:
            _pack_array(packer, value, file)


def _pack_array(packer: Any, array: Array, file: BinaryIO) -> None:
    """The extension type of an array: its shape, its dtype, and its bytes, which are written from where they lie."""
    if array.nbytes > LARGEST:
        raise FormatError(f"{file.name} cannot hold an array of {array.nbytes} bytes; save it as .safetensors")
    head = (
        b"\x93" + packer.pack(array.shape) + packer.pack(array.dtype.name) + b"\xc6" + array.nbytes.to_bytes(4, "big")
    )
    file.write(b"\xc9" + (len(head) + array.nbytes).to_bytes(4, "big") + bytes([ARRAY]) + head)
    file.write(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)
