"""The nodes of an HDF5 file: object headers, links, indices, shapes and types; see `keras_hdf5`."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from multirnn.errors import FormatError
from multirnn.formats.archive import RATIO
from multirnn.formats.contents import BFLOAT16

__all__ = ["File", "Messages", "first", "header_of", "is_array", "leaves", "links", "number", "shape_of", "type_of"]

Messages = list[tuple[int, memoryview]]
"""Of an object header: kind and data."""
NOWHERE = (1 << 64) - 1
STEPS = 50_000
"""What a file may have of nodes, messages, links and texts, beside one in eight of its bytes; each is met once."""
FLOATS = {(2, 10, 15): "f2", (4, 23, 127): "f4", (8, 52, 1023): "f8"}
"""By size, bits of the fraction and exponent bias."""
DATASPACE, LINK_INFO, DATATYPE, LINK, EXTERNAL, LAYOUT, FILTERS, ATTRIBUTE, CONTINUED, SYMBOLS, ATTRIBUTE_INFO = (
    *(0x01, 0x02, 0x03, 0x06, 0x07, 0x08, 0x0B, 0x0C, 0x10, 0x11, 0x15),
)


@dataclass
class File:
    """The bytes of a file, with a limit to what may be made of them."""

    data: memoryview
    steps: int
    budget: int
    headers: dict[int, Messages] = field(default_factory=dict)
    tables: dict[int, dict[str, int]] = field(default_factory=dict)
    heaps: dict[int, dict[int, memoryview]] = field(default_factory=dict)

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
        self.step()
        found = self.at(start, count)
        if bytes(found[: len(magic)]) != magic:
            raise FormatError(f"is damaged at byte {start}: there is no {magic.decode()!r}")
        return found

    def step(self) -> None:
        """Count a part of the file that is read."""
        self.steps -= 1
        if self.steps < 0:
            raise FormatError("has more parts than its size allows: some are in each other")

    def spend(self, count: int) -> None:
        """Count bytes that are allocated."""
        self.budget -= count
        if self.budget < 0:
            raise FormatError(f"would unpack to more than {RATIO} times its size")


def number(data: memoryview) -> int:
    """The unsigned number in these bytes."""
    return int.from_bytes(data, "little")


# --- Object headers --------------------------------------------------------------------------------------------------


def header_of(file: File, address: int) -> Messages:
    """The messages of an object: kind and data."""
    if address in file.headers:
        return file.headers[address]
    new = bytes(file.at(address, 4)) == b"OHDR"
    if new:
        flags = number(file.at(address + 5, 1))
        start = address + 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
        width = 1 << (flags & 3)
        blocks = [(start + width, number(file.at(start, width)))]
        head = 6 if flags & 4 else 4
    else:
        file.node(address, b"\x01\x00", 16)
        blocks, head = [(address + 16, number(file.at(address + 8, 4)))], 8
    messages: Messages = []
    for start, length in blocks:  # grows
        block = file.at(start, length)
        place = 0
        while place + head <= len(block):
            kind = block[place] if new else number(block[place : place + 2])
            size = number(block[place + 1 : place + 3] if new else block[place + 2 : place + 4])
            shared = block[place + 3 if new else place + 4] & 2
            data = block[place + head : place + head + size]
            place += head + size
            if len(data) < size:
                raise FormatError(f"has a damaged object header at byte {address}")
            if shared and kind in (DATASPACE, DATATYPE, LAYOUT, FILTERS, ATTRIBUTE):
                raise FormatError("has types or shapes that are shared between arrays, which are not read here")
            if kind == CONTINUED:
                more, count = number(data[:8]), number(data[8:16])
                file.node(more, b"OCHK" if new else b"", 4)
                blocks.append((more + 4, count - 8) if new else (more, count))
            elif kind:
                messages.append((kind, data))
            file.step()
    file.headers[address] = messages
    return messages


def first(messages: Messages, kind: int) -> memoryview | None:
    """The data of the first message of a kind."""
    return next((data for one, data in messages if one == kind), None)


def is_array(messages: Messages) -> bool:
    """Whether an object is an array."""
    return first(messages, LAYOUT) is not None


def links(file: File, address: int) -> dict[str, int]:
    """The objects in a group: name and address of the header.

    Raises:
        FormatError: a link leads elsewhere, or the group is stored in a way that is not read here.
    """
    if address in file.tables:
        return file.tables[address]
    messages = header_of(file, address)
    found: dict[str, int] = {}
    if (table := first(messages, SYMBOLS)) is not None:
        tree, heap = number(table[:8]), number(file.node(number(table[8:16]), b"HEAP", 32)[24:32])
        for node in leaves(file, tree, 0, 8):
            start = number(node)
            count = number(file.node(start, b"SNOD", 8)[6:8])
            entries = file.at(start + 8, 40 * count)
            for place in range(0, 40 * count, 40):
                file.step()
                name = _text_at(file, heap + number(entries[place : place + 8]))
                if number(entries[place + 16 : place + 20]) == 2:
                    raise _elsewhere(name)
                found[name] = number(entries[place + 8 : place + 16])
    if (info := first(messages, LINK_INFO)) is not None:
        start = 10 if len(info) > 1 and info[1] & 1 else 2
        if number(info[start : start + 8]) != NOWHERE:
            raise FormatError(
                "has a group with its links in a heap, which is not read here; write it with h5py's defaults"
            )
    for kind, data in messages:
        if kind == LINK:
            name, target = _link(data)
            found[name] = target
    file.tables[address] = found
    return found


def _link(data: memoryview) -> tuple[str, int]:
    flags = data[1] if len(data) > 1 else 0
    place = 2
    kind = data[place] if flags & 8 and len(data) > place else 0
    place += bool(flags & 8) + (8 if flags & 4 else 0) + bool(flags & 16)
    width = 1 << (flags & 3)
    count = number(data[place : place + width])
    place += width
    name = bytes(data[place : place + count]).decode("utf-8", "replace")
    if kind:
        raise _elsewhere(name)
    return name, number(data[place + count : place + count + 8])


def _elsewhere(name: str) -> FormatError:
    return FormatError(f"{name!r} is a link to elsewhere, which is not followed")


def leaves(file: File, address: int, kind: int, key: int) -> Iterator[memoryview]:
    """The children of the lowest nodes of a tree, each met once; a chunk's after its key."""
    queue, seen = [address], {address}
    while queue:
        head = file.node(here := queue.pop(), b"TREE", 24)
        level, count = head[5], number(head[6:8])
        if head[4] != kind or (level and not count):
            raise FormatError(f"is damaged at byte {here}: its index has another kind")
        entries = file.at(here + 24, count * (key + 8))
        inner = []
        for place in range(0, len(entries), key + 8):
            child = entries[place + key : place + key + 8]
            if not level:
                yield child if not kind else entries[place : place + key + 8]
            elif number(child) not in seen:
                seen.add(number(child))
                inner.append(number(child))
        queue += reversed(inner)


def _text_at(file: File, start: int) -> str:
    data = bytes(file.at(start, min(1024, max(0, len(file.data) - start))))
    return data.partition(b"\0")[0].decode("utf-8", "replace")


# --- Shapes and types --------------------------------------------------------------------------------------------------


def shape_of(data: memoryview | None) -> tuple[int, ...] | None:
    """The sizes of a dataspace; None for the null space."""
    if data is None or len(data) < 4 or data[0] not in (1, 2):
        raise FormatError("has no shape")
    if data[0] == 2 and data[3] == 2:
        return None
    start, rank = 8 if data[0] == 1 else 4, data[1]
    if rank > 32 or len(data) < start + 8 * rank:
        raise FormatError("has a damaged shape")
    return tuple(number(data[start + 8 * axis : start + 8 * axis + 8]) for axis in range(rank))


def type_of(data: memoryview | None) -> tuple[str, int]:
    """NumPy's name of a type, or "text", "texts elsewhere", or "" for any other; and the size of an element."""
    if data is None or len(data) < 8:
        raise FormatError("has no type")
    kind, bits, size = data[0] & 15, data[1], number(data[4:8])
    order = ">" if bits & 1 else "<"
    more = data[8:20]
    if kind == 0 and size in (1, 2, 4, 8) and bytes(more[:4]) == bytes((0, 0, 8 * size, 0)):
        return f"{order}{'i' if bits & 8 else 'u'}{size}", size
    if kind == 1 and len(more) == 12 and not bits & 64:
        layout = size, more[7], number(more[8:12])
        return (order + FLOATS[layout], size) if layout in FLOATS and not number(more[:2]) else ("", size)
    if kind == 3:
        return "text", size
    if kind == 9 and bits & 15 == 1 and size == 16:
        return "texts elsewhere", size
    if kind == 5 and size == 2:
        return BFLOAT16, size  # as Keras stores it: two opaque bytes
    return "", size
