"""HDF5, read without libhdf5: the part that Keras and h5py write by default.

A damaged file can hold the C library in an endless loop or make it allocate gigabytes, which Python cannot interrupt. Here
every address is checked, every node is met once, and links and numbers never leave the file. Contiguous arrays are views.
Format: the HDF5 File Format Specification, version 3.
"""

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from multirnn.errors import FormatError
from multirnn.formats.archive import RATIO, SMALL
from multirnn.formats.contents import BFLOAT16, Tensor, Unread

__all__ = ["Group", "opened"]

NOWHERE = (1 << 64) - 1
MOST_NODES = 50_000
"""Groups, headers and index nodes that one file may have."""
FLOATS = {(2, 10, 15): "f2", (4, 23, 127): "f4", (8, 52, 1023): "f8"}
"""By size, bits of the fraction and exponent bias."""
DATASPACE, LINK_INFO, DATATYPE, LINK, EXTERNAL, LAYOUT, FILTERS, ATTRIBUTE, CONTINUED, SYMBOLS, ATTRIBUTE_INFO = (
    *(0x01, 0x02, 0x03, 0x06, 0x07, 0x08, 0x0B, 0x0C, 0x10, 0x11, 0x15),
)


@dataclass
class _File:
    """The bytes of a file, with a limit to what may be made of them."""

    data: memoryview
    nodes: int = MOST_NODES
    budget: int = 0
    headers: dict[int, list[tuple[int, memoryview]]] = field(default_factory=dict)

    def at(self, start: int, count: int) -> memoryview:
        """The bytes at a place.

        Raises:
            FormatError: they are outside of the file.
        """
        if start < 0 or count < 0 or start + count > len(self.data):
            raise FormatError(f"refers to the bytes from {start} to {start + count}, and has {len(self.data)}")
        return self.data[start : start + count]

    def node(self, start: int, magic: bytes, count: int) -> memoryview:
        """The beginning of a structure, whose kind its first bytes tell."""
        self.nodes -= 1
        if self.nodes < 0:
            raise FormatError(f"has more than {MOST_NODES} nodes")
        found = self.at(start, count)
        if bytes(found[: len(magic)]) != magic:
            raise FormatError(f"is damaged at byte {start}: there is no {magic.decode()!r}")
        return found

    def spend(self, count: int) -> None:
        """Count bytes that are allocated."""
        self.budget -= count
        if self.budget < 0:
            raise FormatError(f"would unpack to more than {RATIO} times its size")


def opened(data: memoryview) -> "Group":
    """The root group of a file.

    Raises:
        FormatError: it is no HDF5 file, damaged, or of a kind that is not read here.
    """
    file = _File(data, budget=max(SMALL, RATIO * len(data)))
    if bytes(data[:8]) != b"\x89HDF\r\n\x1a\n":
        raise FormatError("is no HDF5 file")
    version = _number(file.at(8, 1))
    sizes, root, base, end = {0: (13, 64, 24, 40), 1: (13, 68, 28, 44), 2: (9, 36, 12, 28), 3: (9, 36, 12, 28)}.get(
        version, (0, 0, 0, 0)
    )
    if not sizes or bytes(file.at(sizes, 2)) != b"\x08\x08" or _number(file.at(base, 8)):
        raise FormatError(
            "is HDF5 of a kind that is not read here: its superblock has another version, sizes or base address"
        )
    if (claimed := _number(file.at(end, 8))) > len(data):
        raise FormatError(f"is cut off: it has {len(data)} of {claimed} bytes")
    return Group(file, _number(file.at(root, 8)))


class Group:
    """A group of a file, all of whose links stay in the file.

    Args:
        file: the whole.
        address: of its object header.
    """

    def __init__(self, file: _File, address: int) -> None:
        self._file, self._address = file, address

    def names(self, path: str = "") -> tuple[str, ...]:
        """The names in a group below; none in an array."""
        found: dict[str, int] = _links(self._file, self._at(path))
        return tuple(found)

    def open(self, path: str) -> "Group":
        """The group below.

        Raises:
            FormatError: there is none.
        """
        address = self._at(path)
        if _is_array(_header(self._file, address)):
            raise FormatError(f"{path!r} is no group")
        return Group(self._file, address)

    def attributes(self, path: str = "") -> dict[str, Any]:
        """The attributes of a group or an array: texts, numbers, and lists of texts."""
        return _attributes(self._file, _header(self._file, self._at(path)))

    def array(self, path: str) -> Tensor:
        """The numbers at a path, read-only.

        Raises:
            FormatError: there are none, or they are not in the file.
        """
        header = _header(self._file, self._at(path))
        if not _is_array(header):
            raise FormatError(f"{path!r} is no array")
        try:
            return _array(self._file, header)
        except FormatError as error:
            raise FormatError(f"{path!r} {error}") from error

    def walk(self) -> Iterator[tuple[str, bool]]:
        """Every path below, and whether it is an array; what is shared or cyclic is met once."""
        queue, seen = [("", self._address)], {self._address}
        while queue:
            path, here = queue.pop()
            for name, address in reversed(_links(self._file, here).items()):
                if address in seen:
                    continue
                seen.add(address)
                inner = f"{path}/{name}" if path else name
                if is_array := _is_array(_header(self._file, address)):
                    yield inner, is_array
                else:
                    queue.append((inner, address))

    def _at(self, path: str) -> int:
        here = self._address
        for name in path.split("/") if path else ():
            found = _links(self._file, here).get(name)
            if found is None:
                raise FormatError(f"it has no {path!r}")
            here = found
        return here


def _number(data: memoryview) -> int:
    return int.from_bytes(data, "little")


# --- Object headers --------------------------------------------------------------------------------------------------


def _header(file: _File, address: int) -> list[tuple[int, memoryview]]:
    """The messages of an object: kind and data."""
    if address in file.headers:
        return file.headers[address]
    new = bytes(file.at(address, 4)) == b"OHDR"
    if new:
        flags = _number(file.at(address + 5, 1))
        start = address + 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
        width = 1 << (flags & 3)
        blocks = [(start + width, _number(file.at(start, width)))]
        head = 6 if flags & 4 else 4
    else:
        file.node(address, b"\x01\x00", 16)
        blocks, head = [(address + 16, _number(file.at(address + 8, 4)))], 8
    messages: list[tuple[int, memoryview]] = []
    for start, length in blocks:  # grows
        block = file.at(start, length)
        place = 0
        while place + head <= len(block):
            kind = block[place] if new else _number(block[place : place + 2])
            size = _number(block[place + 1 : place + 3] if new else block[place + 2 : place + 4])
            shared = block[place + 3 if new else place + 4] & 2
            data = block[place + head : place + head + size]
            place += head + size
            if len(data) < size:
                raise FormatError(f"has a damaged object header at byte {address}")
            if shared and kind in (DATASPACE, DATATYPE, LAYOUT, FILTERS, ATTRIBUTE):
                raise FormatError("has types or shapes that are shared between arrays, which are not read here")
            if kind == CONTINUED:
                more, count = _number(data[:8]), _number(data[8:16])
                file.node(more, b"OCHK" if new else b"", 4)
                blocks.append((more + 4, count - 8) if new else (more, count))
            elif kind:
                messages.append((kind, data))
            file.nodes -= not place % 64
    file.headers[address] = messages
    return messages


def _first(messages: list[tuple[int, memoryview]], kind: int) -> memoryview | None:
    return next((data for one, data in messages if one == kind), None)


def _is_array(messages: list[tuple[int, memoryview]]) -> bool:
    return _first(messages, LAYOUT) is not None


def _links(file: _File, address: int) -> dict[str, int]:
    """The objects in a group: name and address of the header.

    Raises:
        FormatError: a link leads elsewhere, or the group is stored in a way that is not read here.
    """
    messages = _header(file, address)
    found: dict[str, int] = {}
    if (table := _first(messages, SYMBOLS)) is not None:
        tree, heap = _number(table[:8]), _number(file.node(_number(table[8:16]), b"HEAP", 32)[24:32])
        for node in _leaves(file, tree, 0, 8):
            start = _number(node)
            count = _number(file.node(start, b"SNOD", 8)[6:8])
            entries = file.at(start + 8, 40 * count)
            for place in range(0, 40 * count, 40):
                name = _text_at(file, heap + _number(entries[place : place + 8]))
                if _number(entries[place + 16 : place + 20]) == 2:
                    raise _elsewhere(name)
                found[name] = _number(entries[place + 8 : place + 16])
    if (info := _first(messages, LINK_INFO)) is not None:
        start = 10 if info[1:2] == b"\x01" or (len(info) > 1 and info[1] & 1) else 2
        if _number(info[start : start + 8]) != NOWHERE:
            raise FormatError(
                "has a group with its links in a heap, which is not read here; write it with h5py's defaults"
            )
    for kind, data in messages:
        if kind == LINK:
            name, address = _link(data)
            found[name] = address
    return found


def _link(data: memoryview) -> tuple[str, int]:
    flags = data[1] if len(data) > 1 else 0
    place = 2
    kind = data[place] if flags & 8 and len(data) > place else 0
    place += bool(flags & 8) + (8 if flags & 4 else 0) + bool(flags & 16)
    width = 1 << (flags & 3)
    count = _number(data[place : place + width])
    place += width
    name = bytes(data[place : place + count]).decode("utf-8", "replace")
    if kind:
        raise _elsewhere(name)
    return name, _number(data[place + count : place + count + 8])


def _elsewhere(name: str) -> FormatError:
    return FormatError(f"{name!r} is a link to elsewhere, which is not followed")


def _leaves(file: _File, address: int, kind: int, key: int) -> Iterator[memoryview]:
    """The children of the lowest nodes of a tree, each met once; a chunk's after its key."""
    queue, seen = [address], {address}
    while queue:
        head = file.node(here := queue.pop(), b"TREE", 24)
        level, count = head[5], _number(head[6:8])
        if head[4] != kind or (level and not count):
            raise FormatError(f"is damaged at byte {here}: its index has another kind")
        entries = file.at(here + 24, count * (key + 8))
        inner = []
        for place in range(0, len(entries), key + 8):
            child = entries[place + key : place + key + 8]
            if not level:
                yield child if not kind else entries[place : place + key + 8]
            elif _number(child) not in seen:
                seen.add(_number(child))
                inner.append(_number(child))
        queue += reversed(inner)


def _text_at(file: _File, start: int) -> str:
    data = bytes(file.at(start, min(1024, max(0, len(file.data) - start))))
    return data.partition(b"\0")[0].decode("utf-8", "replace")


# --- Numbers ---------------------------------------------------------------------------------------------------------


def _shape(data: memoryview | None) -> tuple[int, ...] | None:
    """The sizes of a dataspace; None for the null space."""
    if data is None or len(data) < 4 or data[0] not in (1, 2):
        raise FormatError("has no shape")
    if data[0] == 2 and data[3] == 2:
        return None
    start, rank = 8 if data[0] == 1 else 4, data[1]
    if rank > 32 or len(data) < start + 8 * rank:
        raise FormatError("has a damaged shape")
    return tuple(_number(data[start + 8 * axis : start + 8 * axis + 8]) for axis in range(rank))


def _dtype(data: memoryview | None) -> tuple[str, int]:
    """NumPy's name of a type, or "text", "texts elsewhere", or "" for any other; and the size of an element."""
    if data is None or len(data) < 8:
        raise FormatError("has no type")
    kind, bits, size = data[0] & 15, data[1], _number(data[4:8])
    order = ">" if bits & 1 else "<"
    more = data[8:20]
    if kind == 0 and size in (1, 2, 4, 8) and bytes(more[:4]) == bytes((0, 0, 8 * size, 0)):
        return f"{order}{'i' if bits & 8 else 'u'}{size}", size
    if kind == 1 and len(more) == 12 and not bits & 64:
        layout = size, more[7], _number(more[8:12])
        return (order + FLOATS[layout], size) if layout in FLOATS and not _number(more[:2]) else ("", size)
    if kind == 3:
        return "text", size
    if kind == 9 and bits & 15 == 1 and size == 16:
        return "texts elsewhere", size
    if kind == 5 and size == 2:
        return BFLOAT16, size  # as Keras stores it: two opaque bytes
    return "", size


def _array(file: _File, header: list[tuple[int, memoryview]]) -> Tensor:
    shape = _shape(_first(header, DATASPACE))
    dtype, size = _dtype(_first(header, DATATYPE))
    if shape is None or dtype in ("", "text", "texts elsewhere"):
        raise FormatError("holds no numbers")
    if _first(header, EXTERNAL) is not None:
        raise FormatError("has its numbers in another file, which is not read")
    if dtype == BFLOAT16:
        return Unread(BFLOAT16, shape)
    count = prod(shape)
    layout = _first(header, LAYOUT)
    assert layout is not None
    if layout[:1] not in (b"\x03", b"\x04") or len(layout) < 4:
        raise FormatError("is stored in a way that is not read here; write it with h5py's defaults")
    if layout[1] == 0:
        return _numbers(layout[4 : 4 + _number(layout[2:4])], dtype, count, shape)
    if layout[1] == 1:
        place, length = _number(layout[2:10]), _number(layout[10:18])
        if place == NOWHERE or length != count * size:
            stored = 0 if place == NOWHERE else length
            if count == 0:
                return _numbers(file.at(0, 0), dtype, 0, shape)
            raise FormatError(f"claims the shape {shape}, and has {stored} bytes")
        return _numbers(file.at(place, length), dtype, count, shape)
    if layout[1] == 2 and layout[0] == 3:
        return _chunked(file, header, layout, dtype, shape)
    if layout[1] == 3:
        raise FormatError("has its numbers in other arrays or files, which are not read")
    raise FormatError("is stored in a way that is not read here; write it with h5py's defaults")


def _numbers(data: memoryview, dtype: str, count: int, shape: tuple[int, ...]) -> Tensor:
    if len(data) != count * np.dtype(dtype).itemsize or max(shape, default=0) >= 1 << 62:
        raise FormatError(f"claims the shape {shape}, and has {len(data)} bytes")
    return np.frombuffer(data, dtype, count).reshape(shape) if count else np.zeros(shape, dtype)


def _chunked(
    file: _File, header: list[tuple[int, memoryview]], layout: memoryview, dtype: str, shape: tuple[int, ...]
) -> Tensor:
    """An array in chunks, compressed or not."""
    rank, size = len(shape), np.dtype(dtype).itemsize
    tree = _number(layout[3:11])
    chunk = tuple(_number(layout[11 + 4 * axis : 15 + 4 * axis]) for axis in range(rank + 1))
    if layout[2] != rank + 1 or chunk[-1] != size or 0 in chunk or len(layout) < 15 + 4 * rank:
        raise FormatError("has damaged chunks")
    whole = prod(chunk)
    filters = _filters(_first(header, FILTERS))
    file.spend(prod(shape) * size)
    found: dict[tuple[int, ...], Tensor] = {}
    for entry in _leaves(file, tree, 1, 16 + 8 * rank) if tree != NOWHERE else ():
        offset = tuple(_number(entry[8 + 8 * axis : 16 + 8 * axis]) for axis in range(rank))
        data = file.at(_number(entry[-8:]), _number(entry[:4]))
        if _number(entry[4:8]) or any(o % c or o >= n for o, c, n in zip(offset, chunk, shape, strict=False)):
            raise FormatError("has damaged chunks")
        file.spend(whole)
        for one in reversed(filters):
            data = _unshuffled(data, size) if one == 2 else _inflated(data, whole)
        found[offset] = _numbers(data, dtype, whole // size, chunk[:-1])
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
    found, place, new = [], 2 if data[:1] == b"\x02" else 8, data[:1] == b"\x02"
    for _ in range(data[1] if len(data) > 1 else 0):
        number = _number(data[place : place + 2])
        named = not new or number >= 256
        length = _number(data[place + 2 : place + 4]) if named else 0
        count = _number(data[place + 4 + 2 * named : place + 6 + 2 * named])
        place += 6 + 2 * named + length + 4 * (count + (count % 2 if not new else 0))
        if number not in (1, 2):
            raise FormatError(f"is compressed by the filter {number}, which is not read here; gzip and shuffle are")
        found.append(number)
    return found


def _inflated(data: memoryview, most: int) -> memoryview:
    try:
        return memoryview(zlib.decompressobj().decompress(data, most + 1))
    except zlib.error as error:
        raise FormatError(f"is compressed, and damaged: {error}") from error


def _unshuffled(data: memoryview, size: int) -> memoryview:
    if len(data) % size:
        raise FormatError("has damaged chunks")
    return memoryview(np.ascontiguousarray(np.frombuffer(data, np.uint8).reshape(size, -1).T).reshape(-1)).cast("B")


# --- Attributes ------------------------------------------------------------------------------------------------------


def _attributes(file: _File, header: list[tuple[int, memoryview]]) -> Mapping[str, Any] | dict[str, Any]:
    info = _first(header, ATTRIBUTE_INFO)
    if info is not None and _number(info[(4 if len(info) > 1 and info[1] & 1 else 2) :][:8]) != NOWHERE:
        raise FormatError("has its attributes in a heap, which is not read here; write it with h5py's defaults")
    found: dict[str, Any] = {}
    for kind, data in header:
        if kind != ATTRIBUTE:
            continue
        if len(data) < 8 or data[0] not in (1, 2, 3) or (data[0] > 1 and data[1]):
            raise FormatError("has a damaged attribute")
        lengths = [_number(data[place : place + 2]) for place in (2, 4, 6)]
        place, parts = 9 if data[0] == 3 else 8, []
        for length in lengths:
            parts.append(data[place : place + length])
            place += -(-length // 8) * 8 if data[0] == 1 else length
        name = bytes(parts[0]).partition(b"\0")[0].decode("utf-8", "replace")
        found[name] = _value(file, parts[1], parts[2], data[place:])
    return found


def _value(file: _File, kind: memoryview, space: memoryview, data: memoryview) -> Any:
    """An attribute's value: a text, a number, a list of either; None if it is anything else."""
    shape, (dtype, size) = _shape(space), _dtype(kind)
    if shape is None or dtype in ("", BFLOAT16):
        return None
    count = prod(shape)
    if count * size > len(data):
        raise FormatError("has a damaged attribute")
    pieces = [data[place : place + size] for place in range(0, count * size, size)] if size else []
    if dtype == "text":
        values: list[Any] = [bytes(piece).partition(b"\0")[0].decode("utf-8", "replace") for piece in pieces]
    elif dtype == "texts elsewhere":
        values = [_global(file, *(_number(piece[a:b]) for a, b in ((0, 4), (4, 12), (12, 16)))) for piece in pieces]
    else:
        values = np.frombuffer(data, dtype, count).tolist()
    return values if shape else next(iter(values), None)


def _global(file: _File, length: int, heap: int, index: int) -> str:
    """A text of variable length, in the global heap."""
    if not length:
        return ""
    size = _number(file.node(heap, b"GCOL", 16)[8:16])
    block = file.at(heap, size)
    place = 16
    while place + 16 <= size:
        number, count = _number(block[place : place + 2]), _number(block[place + 8 : place + 16])
        if not number:
            break
        if number == index:
            file.spend(length)
            return bytes(block[place + 16 : place + 16 + min(length, count)]).decode("utf-8", "replace")
        place += 16 + -(-count // 8) * 8
    raise FormatError(f"has no text {index} in its heap at byte {heap}")
