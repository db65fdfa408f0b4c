"""The numbers of an HDF5 file: contiguous ones as views, chunks put together; see `keras_hdf5`."""

import zlib
from math import prod

import numpy as np

from multirnn.errors import FormatError
from multirnn.formats.contents import BFLOAT16, Tensor, array_of
from multirnn.formats.keras_hdf5_nodes import (
    DATASPACE,
    DATATYPE,
    EXTERNAL,
    FILTERS,
    LAYOUT,
    NOWHERE,
    File,
    Messages,
    first,
    leaves,
    number,
    shape_of,
    type_of,
)

__all__ = ["dataset"]


def dataset(file: File, header: Messages) -> Tensor:
    """The numbers of an array, read-only.

    Raises:
        FormatError: they are damaged, or not in the file; the sentence goes on behind the name.
    """
    shape = shape_of(first(header, DATASPACE))
    dtype, size = type_of(first(header, DATATYPE))
    if shape is None or dtype in ("", "text", "texts elsewhere"):
        raise FormatError("holds no numbers")
    if first(header, EXTERNAL) is not None:
        raise FormatError("has its numbers in another file, which is not read")
    count = prod(shape)
    layout = first(header, LAYOUT)
    assert layout is not None
    if len(layout) < 4 or layout[0] not in (3, 4):
        raise FormatError("is stored in a way that is not read here; write it with h5py's defaults")
    if layout[1] == 0:
        return _numbers(layout[4 : 4 + number(layout[2:4])], dtype, shape)
    if layout[1] == 1:
        place, length = number(layout[2:10]), number(layout[10:18])
        if place == NOWHERE or length != count * size:
            stored = 0 if place == NOWHERE else length
            if count == 0:
                return _numbers(file.at(0, 0), dtype, shape)
            raise FormatError(f"claims the shape {shape}, and has {stored} bytes")
        return _numbers(file.at(place, length), dtype, shape)
    if layout[1] == 2 and layout[0] == 3 and dtype != BFLOAT16:
        return _chunked(file, header, layout, dtype, shape)
    if layout[1] == 3:
        raise FormatError("has its numbers in other arrays or files, which are not read")
    raise FormatError("is stored in a way that is not read here; write it with h5py's defaults")


def _numbers(data: memoryview, dtype: str, shape: tuple[int, ...]) -> Tensor:
    if len(data) != prod(shape) * (2 if dtype == BFLOAT16 else np.dtype(dtype).itemsize):
        raise FormatError(f"claims the shape {shape}, and has {len(data)} bytes")
    return array_of(data, dtype, shape, "which")


def _chunked(file: File, header: Messages, layout: memoryview, dtype: str, shape: tuple[int, ...]) -> Tensor:
    """An array in chunks, compressed or not."""
    rank, size = len(shape), np.dtype(dtype).itemsize
    tree = number(layout[3:11])
    chunk = tuple(number(layout[11 + 4 * axis : 15 + 4 * axis]) for axis in range(rank + 1))
    if layout[2] != rank + 1 or chunk[-1] != size or 0 in chunk or len(layout) < 15 + 4 * rank:
        raise FormatError("has damaged chunks")
    whole = prod(chunk)
    filters = _filters(first(header, FILTERS))
    file.spend(prod(shape) * size)
    found: dict[tuple[int, ...], Tensor] = {}
    for entry in leaves(file, tree, 1, 16 + 8 * rank) if tree != NOWHERE else ():
        offset = tuple(number(entry[8 + 8 * axis : 16 + 8 * axis]) for axis in range(rank))
        data = file.at(number(entry[-8:]), number(entry[:4]))
        if number(entry[4:8]) or any(o % c or o >= n for o, c, n in zip(offset, chunk, shape, strict=False)):
            raise FormatError("has damaged chunks")
        file.spend(whole)
        for one in reversed(filters):
            data = _unshuffled(data, size) if one == 2 else _inflated(data, whole)
        found[offset] = _numbers(data, dtype, chunk[:-1])
    needed = prod(-(-n // c) for n, c in zip(shape, chunk, strict=False))
    if len(found) != needed:
        raise FormatError(f"claims the shape {shape}, and has {len(found)} of {needed} chunks")
    full = np.zeros(shape, dtype)
    for offset, part in found.items():
        inside = tuple(slice(o, min(o + c, n)) for o, c, n in zip(offset, chunk, shape, strict=False))
        full[inside] = np.asarray(part)[tuple(slice(0, one.stop - one.start) for one in inside)]
    full.flags.writeable = False
    return full


def _filters(data: memoryview | None) -> list[int]:
    """The numbers of the filters in the order of writing: 1 is gzip, 2 shuffle."""
    if data is None:
        return []
    found: list[int] = []
    place, new = 2 if bytes(data[:1]) == b"\x02" else 8, bytes(data[:1]) == b"\x02"
    for _ in range(data[1] if len(data) > 1 else 0):
        kind = number(data[place : place + 2])
        named = not new or kind >= 256
        length = number(data[place + 2 : place + 4]) if named else 0
        count = number(data[place + 4 + 2 * named : place + 6 + 2 * named])
        place += 6 + 2 * named + length + 4 * (count + (count % 2 if not new else 0))
        if kind not in (1, 2):
            raise FormatError(f"is compressed by the filter {kind}, which is not read here; gzip and shuffle are")
        found.append(kind)
    return found


def _inflated(data: memoryview, most: int) -> memoryview:
    try:
        return memoryview(zlib.decompressobj().decompress(data, most + 1))
    except zlib.error as error:
        raise FormatError(f"is compressed, and damaged: {error}") from error


def _unshuffled(data: memoryview, size: int) -> memoryview:
    if len(data) % size:
        raise FormatError("has damaged chunks")
    return memoryview(np.frombuffer(data, np.uint8).reshape(size, -1).T.tobytes())
