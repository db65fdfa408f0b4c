"""Zip archives of arrays, read without trusting them: bounded in memory, checked against their checksums."""

import mmap
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from multirnn.errors import FormatError

__all__ = ["Archive", "opened"]

RATIO, SMALL = 20, 1 << 24
"""An entry that unpacks to more than `SMALL` bytes and more than `RATIO` times the whole file is refused as a zip bomb."""


class Archive:
    """The entries of a zip file by name.

    Stored entries are views of the mapped file and cost no memory of their own; compressed ones are unpacked.
    """

    def __init__(self, path: Path, mapped: mmap.mmap, archive: zipfile.ZipFile) -> None:
        self._path, self._mapped, self._archive = path, memoryview(mapped), archive
        self._entries: dict[str, zipfile.ZipInfo] = {}
        for entry in archive.infolist():
            if entry.filename in self._entries:
                raise FormatError(f"{path} has two entries named {entry.filename[:80]!r}")
            self._entries[entry.filename] = entry
        largest = max(SMALL, RATIO * len(mapped))
        if sum(entry.file_size for entry in self._entries.values()) > largest:
            raise FormatError(f"{path} would unpack to more than {RATIO} times its size")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all entries, in the order of the file."""
        return tuple(self._entries)

    def read(self, name: str) -> memoryview:
        """The bytes of an entry.

        Raises:
            FormatError: there is no such entry, or it is damaged, encrypted or compressed in an unknown way.
        """
        if (entry := self._entries.get(name)) is None:
            raise FormatError(f"{self._path} has no entry {name[:80]!r}")
        if entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & 1:
            return self._stored(entry)
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise FormatError(f"{self._path}: the entry {name[:80]!r} is packed in a way that is not read here")
        try:
            return memoryview(self._archive.read(entry))
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError) as error:
            raise FormatError(f"{self._path}: the entry {name[:80]!r} cannot be read: {error}") from error

    def _stored(self, entry: zipfile.ZipInfo) -> memoryview:
        start = entry.header_offset
        header = self._mapped[start : start + 30]
        if len(header) < 30 or bytes(header[:4]) != b"PK\x03\x04":
            raise FormatError(f"{self._path}: the entry {entry.filename[:80]!r} has no header at byte {start}")
        start += 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        found = self._mapped[start : start + entry.file_size]
        if len(found) != entry.file_size or zlib.crc32(found) != entry.CRC:
            raise FormatError(
                f"{self._path}: the entry {entry.filename[:80]!r} is damaged: its checksum does not match"
            )
        return found


@contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """Open a zip archive. Views of stored entries keep the mapping alive after it is closed.

    Raises:
        FormatError: the file is no zip archive, or damaged.
    """
    with path.open("rb") as file:
        try:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            with zipfile.ZipFile(file) as archive:
                yield Archive(path, mapped, archive)
        except FormatError:
            raise
        except (zipfile.BadZipFile, ValueError, NotImplementedError, UnicodeDecodeError) as error:
            raise FormatError(f"{path} is no zip archive, or damaged: {error}") from error
