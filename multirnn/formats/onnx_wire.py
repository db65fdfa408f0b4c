"""The large tensors of an ONNX file, left where they lie: parsing them would copy them twice.

Source: the encoding of Protocol Buffers, https://protobuf.dev/programming-guides/encoding; `onnx/onnx.proto`.
"""

from collections.abc import Iterator, Mapping
from math import prod
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["GRAPH", "INITIALIZER", "RAW_DATA", "field", "parted"]

LARGE = 1 << 16
"""Bytes of a tensor that is left where it lies."""
GRAPH, INITIALIZER = 7, 5
DIMS, DATA_TYPE, NAME, RAW_DATA = 1, 2, 8, 9
DTYPES: Mapping[int, str] = MappingProxyType({1: "<f4", 10: "<f2", 11: "<f8"})
"""Of ONNX's numbers for them."""


class _Field(NamedTuple):
    """A field of a message: its number, where it starts, where its contents lie, and a number that it is."""

    number: int
    start: int
    inside: int
    end: int
    value: int


def parted(data: memoryview) -> tuple[bytes, dict[str, NDArray[Any]]]:
    """A ModelProto without its large initialisers' numbers, and those numbers by name, views of the data.

    What is not understood here is left in the message, for Protocol Buffers to judge.
    """
    try:
        graphs = [one for one in _fields(data, 0, len(data)) if one.number == GRAPH]
        if len(graphs) != 1 or len(data) <= LARGE:
            return bytes(data), {}
        graph, kept, arrays = graphs[0], list[memoryview | bytes](), dict[str, NDArray[Any]]()
        done = graph.inside
        for one in _fields(data, graph.inside, graph.end):
            if one.number != INITIALIZER or one.end - one.inside <= LARGE:
                continue
            found = _tensor(data, one)
            if found is not None and found[0] not in arrays:
                name, arrays[name], head = found
                kept += [data[done : one.start], field(INITIALIZER, len(head)), head]
                done = one.end
    except (IndexError, ValueError):
        return bytes(data), {}
    kept.append(data[done : graph.end])
    size = field(GRAPH, sum(map(len, kept)))
    return b"".join([data[: graph.start], size, *kept, data[graph.end :]]), arrays


def _tensor(data: memoryview, tensor: _Field) -> tuple[str, NDArray[Any], bytes] | None:
    """The name and the numbers of a tensor, and its message without them; None if it has other fields than these."""
    dims: list[int] = []
    found: dict[int, _Field] = {}
    for one in _fields(data, tensor.inside, tensor.end):
        if one.number == DIMS:
            dims += [one.value] if one.inside == one.end else _packed(data, one)
        elif one.number in found or one.number not in (DATA_TYPE, NAME, RAW_DATA):
            return None
        else:
            found[one.number] = one
    if len(found) < 3 or (kind := DTYPES.get(found[DATA_TYPE].value)) is None:
        return None
    raw = found[RAW_DATA]
    numbers = np.frombuffer(data[raw.inside : raw.end], kind)
    if prod(dims) != numbers.size or 0 in dims or raw.inside == raw.end:
        return None
    name = bytes(data[found[NAME].inside : found[NAME].end]).decode()
    head = bytes(data[tensor.inside : raw.start]) + bytes(data[raw.end : tensor.end])
    return name, numbers.reshape(dims), head


def _packed(data: memoryview, one: _Field) -> list[int]:
    numbers, place = [], one.inside
    while place < one.end:
        number, place = _number(data, place)
        numbers.append(number)
    return numbers


def _fields(data: memoryview, place: int, end: int) -> Iterator[_Field]:
    """The fields of a message that lies there.

    Raises:
        IndexError, ValueError: it is damaged, or has groups.
    """
    while place < end:
        start = place
        key, place = _number(data, place)
        kind, value = key & 7, 0
        if kind == 0:
            value, place = _number(data, place)
            inside = place
        elif kind == 2:
            size, inside = _number(data, place)
            place = inside + size
        elif kind in (1, 5):
            inside, place = place, place + (8 if kind == 1 else 4)
        else:
            raise ValueError(f"a field of the kind {kind}")
        if place > end:
            raise ValueError("a field that is longer than its message")
        yield _Field(key >> 3, start, inside, place, value)


def _number(data: memoryview, place: int) -> tuple[int, int]:
    """A number of variable length, and the place after it."""
    number = shift = 0
    while True:
        byte = data[place]
        number |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return number, place
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def field(number: int, size: int) -> bytes:
    """What precedes the contents of a field with a length."""
    return bytes([*_encoded(number << 3 | 2), *_encoded(size)])


def _encoded(number: int) -> Iterator[int]:
    while number > 127:
        yield number & 127 | 128
        number >>= 7
    yield number
