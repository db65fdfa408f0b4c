"""The file of results: JSON lines, a header and then a row a measurement, each safe on the disk before the next begins.

A run may end at any moment: what is read back is every line that was finished. `resume` goes on where the file ends.
"""

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Self

from multirnn.errors import InvalidCall, InvalidData

__all__ = ["DONE", "STATUSES", "VERSION", "Results", "Writer", "check", "finished_lines", "key", "read", "taken"]

VERSION = 1

STATUSES = ("timed", "wrong", "refused", "failed", "killed", "slow")
"""What became of a contender on a problem; only "timed" has times."""

DONE = ("timed", "wrong", "refused", "slow")
"""What `--resume` does not try again, unless `--disturbed` says so."""

NOT_THE_SAME = {
    "table": "its table is not the same",
    "machine": "its machine is not the same",
    "settings": "its settings are not the same",
}
"""What has to be the same to go on with a file, and the words if it is not."""

Key = tuple[str, str, int, str]


@dataclass(frozen=True)
class Results:
    """What a file of results holds.

    Attributes:
        header: the table, the machine, its limits, the settings.
        rows: in the order in which they were written; of two of one `key`, the later.
        again: how many of them are such a later one.
    """

    header: dict[str, Any]
    rows: list[dict[str, Any]]
    again: int = 0


def key(row: Mapping[str, Any]) -> Key:
    """What there is one row of: problem, mode, threads, contender."""
    return row["problem"]["name"], row["mode"], row["threads"], row["contender"]["name"]


def read(path: Path | str) -> Results:
    """Read a file of results; a last line that was never finished is left out.

    Raises:
        InvalidData: there is no such file, or it is no file of results; names the line.
    """
    lines = list(_lines(Path(path)))
    header = lines[0] if lines else {}
    if header.get("kind") != "header":
        raise InvalidData(
            f"{path} is no file of results: its first line is not the header that `multirnn bench` writes"
        )
    if header.get("version") != VERSION:
        raise InvalidData(f"{path} has results of version {header.get('version')!r}; this multirnn reads {VERSION}")
    rows: dict[Key, dict[str, Any]] = {}
    again: set[Key] = set()
    for number, row in enumerate(lines[1:], start=2):
        if row.get("kind") != "row" or row.get("status") not in STATUSES:
            raise InvalidData(f"{path}, line {number}: not a row of results")
        if rows.pop(key(row), None):  # so that the later one stands where it was written
            again.add(key(row))
        rows[key(row)] = row
    return Results(header, list(rows.values()), len(again))


def taken(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], float]:
    """Which part of the cores the host took in the rows of a problem and a mode, in the mean; of those where it is known."""
    shares = defaultdict[tuple[str, str], list[float]](list)
    for row in rows:
        if (share := row.get("taken", row.get("steal"))) is not None:  # older files have only what the host told
            shares[row["problem"]["name"], row["mode"]].append(share)
    return {where: fmean(values) for where, values in shares.items()}


def finished_lines(path: Path) -> int:
    """How many lines of the file are finished."""
    return path.read_bytes().count(b"\n")


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InvalidData(f"{path} cannot be read: {error.strerror}") from None
    for number, line in enumerate(text[: _finished(text)].splitlines(), start=1):
        try:
            value = json.loads(line)
        except ValueError as error:
            raise InvalidData(f"{path}, line {number}: not JSON: {error}") from None
        if not isinstance(value, dict):
            raise InvalidData(f"{path}, line {number}: not an object but {type(value).__name__}")
        yield value


def _finished(text: bytes) -> int:
    """How many bytes are finished lines."""
    return text.rfind(b"\n") + 1


def check(path: Path, *, resume: bool) -> None:
    """Whether a run can write there, asked before anything is measured.

    Raises:
        InvalidCall: there is a file already that is not to be resumed, or no folder that can be written to.
    """
    if path.exists() and not resume:
        raise InvalidCall(f"{path} exists; --resume goes on with it, or name another file with --out")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        why = "it may not be written" if path.absolute().parent.is_dir() else f"there is no folder {path.parent}"
        raise InvalidCall(f"{path} cannot be written: {why}")


class Writer:
    """Appends rows to a file of results; a context manager that closes it.

    Attributes:
        rows: what the file held already.
    """

    def __init__(self, path: Path, rows: list[dict[str, Any]]) -> None:
        self.path, self.rows = path, rows
        self._file = path.open("ab")

    @classmethod
    def create(cls, path: Path, header: Mapping[str, Any]) -> Self:
        """Begin a new file.

        Raises:
            InvalidCall: there is one already, or the folder cannot be written to.
        """
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            raise InvalidCall(f"{path} exists; --resume goes on with it, or name another file with --out") from None
        except OSError as error:
            raise InvalidCall(f"{path} cannot be written: {error.strerror}") from None
        writer = cls(path, [])
        writer._append({"kind": "header", "version": VERSION, **header})
        return writer

    @classmethod
    def resume(cls, path: Path, header: Mapping[str, Any]) -> Self:
        """Go on with a file, or begin it where there is none or an interrupted run left it without a header.

        Raises:
            InvalidCall: it was written on another machine, with other versions, or of another table.
        """
        text = path.read_bytes() if path.exists() else b""
        if not _finished(text):
            path.unlink(missing_ok=True)
            return cls.create(path, header)
        found = read(path)
        wanted = json.loads(json.dumps({name: header[name] for name in NOT_THE_SAME}))
        for name in NOT_THE_SAME:
            if different := _first_difference(found.header.get(name), wanted[name]):
                raise InvalidCall(
                    f"{path} cannot be resumed: {NOT_THE_SAME[name]}, {different}; "
                    "results of two are not put into one file, so name another with --out"
                )
        os.truncate(path, _finished(text))
        return cls(path, found.rows)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row; on the disk when this returns."""
        self._append({"kind": "row", **row})
        self.rows.append({"kind": "row", **row})

    def _append(self, value: Mapping[str, Any]) -> None:
        line = json.dumps(value, ensure_ascii=False, allow_nan=False)
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def _first_difference(found: Any, wanted: Any, where: str = "") -> str:
    """The first place where two values of JSON differ, in words; empty where they are equal."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for name in {**found, **wanted}:
            if different := _first_difference(found.get(name), wanted.get(name), f"{where}.{name}" if where else name):
                return different
        return ""
    if isinstance(found, list) and isinstance(wanted, list):
        if len(found) != len(wanted):
            return f"{where} are {len(found)} there and {len(wanted)} here"
        pairs = enumerate(zip(found, wanted, strict=True))
        return next((said for n, pair in pairs if (said := _first_difference(*pair, f"{where}[{n}]"))), "")
    return "" if found == wanted else f"{where or 'it'} is {found!r} there and {wanted!r} here"
