"""HDF5, read without libhdf5: the part that Keras and h5py write by default.

A damaged file can hold the C library in an endless loop or make it allocate gigabytes, which Python cannot interrupt. Here
every address is checked, every node is met once, and links and numbers never leave the file. Contiguous arrays are views.
Format: the HDF5 File Format Specification, version 3.
"""

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np

from multirnn.errors import FormatError
from multirnn.formats.archive import RATIO, SMALL
from multirnn.formats.contents import BFLOAT16, Tensor
from multirnn.formats.keras_hdf5_arrays import dataset
from multirnn.formats.keras_hdf5_nodes import (
    ATTRIBUTE,
    ATTRIBUTE_INFO,
    NOWHERE,
    STEPS,
    File,
    Messages,
    first,
    header_of,
    is_array,
    links,
    number,
    shape_of,
    type_of,
)

__all__ = ["Group", "opened"]


def opened(data: memoryview) -> "Group":
    """The root group of a file.

    Raises:
        FormatError: it is no HDF5 file, damaged, or of a kind that is not read here.
    """
    file = File(data, STEPS + len(data) // 8, max(SMALL, RATIO * len(data)))
    if bytes(data[:8]) != b"\x89HDF\r\n\x1a\n":
        raise FormatError("is no HDF5 file")
    version = number(file.at(8, 1))
    sizes, root, base, end = {0: (13, 64, 24, 40), 1: (13, 68, 28, 44), 2: (9, 36, 12, 28), 3: (9, 36, 12, 28)}.get(
        version, (0, 0, 0, 0)
    )
    if not sizes or bytes(file.at(sizes, 2)) != b"\x08\x08" or number(file.at(base, 8)):
        raise FormatError(
            "is HDF5 of a kind that is not read here: its superblock has another version, sizes or base address"
        )
    if (claimed := number(file.at(end, 8))) > len(data):
        raise FormatError(f"is cut off: it has {len(data)} of {claimed} bytes")
    return Group(file, number(file.at(root, 8)))


class Group:
    """A group of a file, all of whose links stay in the file.

    Args:
        file: the whole.
        address: of its object header.
    """

    def __init__(self, file: File, address: int) -> None:
        self._file, self._address = file, address

    def names(self, path: str = "") -> tuple[str, ...]:
        """The names in a group below; none in an array."""
        found: dict[str, int] = links(self._file, self._at(path))
        return tuple(found)

    def open(self, path: str) -> "Group":
        """The group below.

        Raises:
            FormatError: there is none.
        """
        address = self._at(path)
        if is_array(header_of(self._file, address)):
            raise FormatError(f"{path!r} is no group")
        return Group(self._file, address)

    def attributes(self, path: str = "") -> dict[str, Any]:
        """The attributes of a group or an array: texts, numbers, and lists of texts."""
        return _attributes(self._file, header_of(self._file, self._at(path)))

    def array(self, path: str) -> Tensor:
        """The numbers at a path, read-only.

        Raises:
            FormatError: there are none, or they are not in the file.
        """
        header = header_of(self._file, self._at(path))
        if not is_array(header):
            raise FormatError(f"{path!r} is no array")
        try:
            return dataset(self._file, header)
        except FormatError as error:
            raise FormatError(f"{path!r} {error}") from error

    def walk(self) -> Iterator[str]:
        """The path of every array below; what is shared or cyclic is met once."""
        queue, seen = [("", self._address)], {self._address}
        while queue:
            path, here = queue.pop()
            for name, address in reversed(links(self._file, here).items()):
                if address in seen:
                    continue
                seen.add(address)
                inner = f"{path}/{name}" if path else name
                if is_array(header_of(self._file, address)):
                    yield inner
                else:
                    queue.append((inner, address))

    def _at(self, path: str) -> int:
        here = self._address
        for name in path.split("/") if path else ():
            found = links(self._file, here).get(name)
            if found is None:
                raise FormatError(f"it has no {path!r}")
            here = found
        return here


# --- Attributes ------------------------------------------------------------------------------------------------------


def _attributes(file: File, header: Messages) -> dict[str, Any]:
    info = first(header, ATTRIBUTE_INFO)
    if info is not None and number(info[(4 if len(info) > 1 and info[1] & 1 else 2) :][:8]) != NOWHERE:
        raise FormatError("has its attributes in a heap, which is not read here; write it with h5py's defaults")
    found: dict[str, Any] = {}
    for kind, data in header:
        if kind != ATTRIBUTE:
            continue
        if len(data) < 8 or data[0] not in (1, 2, 3) or (data[0] > 1 and data[1]):
            raise FormatError("has a damaged attribute")
        lengths = [number(data[place : place + 2]) for place in (2, 4, 6)]
        place, parts = 9 if data[0] == 3 else 8, []
        for length in lengths:
            parts.append(data[place : place + length])
            place += -(-length // 8) * 8 if data[0] == 1 else length
        name = bytes(parts[0]).partition(b"\0")[0].decode("utf-8", "replace")
        found[name] = _value(file, parts[1], parts[2], data[place:])
    return found


def _value(file: File, kind: memoryview, space: memoryview, data: memoryview) -> Any:
    """An attribute's value: a text, a number, a list of either; None if it is anything else."""
    shape, (dtype, size) = shape_of(space), type_of(kind)
    if shape is None or dtype in ("", BFLOAT16):
        return None
    count = prod(shape)
    if count * size > len(data):
        raise FormatError("has a damaged attribute")
    pieces = [data[place : place + size] for place in range(0, count * size, size)] if size else []
    if dtype == "text":
        values: list[Any] = [bytes(piece).partition(b"\0")[0].decode("utf-8", "replace") for piece in pieces]
    elif dtype == "texts elsewhere":
        values = [_global(file, *(number(piece[a:b]) for a, b in ((0, 4), (4, 12), (12, 16)))) for piece in pieces]
    else:
        values = np.frombuffer(data, dtype, count).tolist()
    return values if shape else next(iter(values), None)


def _global(file: File, length: int, heap: int, index: int) -> str:
    """A text of variable length, in the global heap."""
    if not length:
        return ""
    if heap not in file.heaps:
        file.heaps[heap] = _heap(file, heap)
    if index in file.heaps[heap]:
        file.spend(length)
        return bytes(file.heaps[heap][index][:length]).decode("utf-8", "replace")
    raise FormatError(f"has no text {index} in its heap at byte {heap}")


def _heap(file: File, start: int) -> dict[int, memoryview]:
    """The objects of a global heap by their numbers."""
    size = number(file.node(start, b"GCOL", 16)[8:16])
    block = file.at(start, size)
    found: dict[int, memoryview] = {}
    place = 16
    while place + 16 <= size:
        own, count = number(block[place : place + 2]), number(block[place + 8 : place + 16])
        if not own:
            break
        file.step()
        found.setdefault(own, block[place + 16 : place + 16 + count])
        place += 16 + -(-count // 8) * 8
    return found
