"""The file of results: JSON lines, a header and then a row a measurement, each safe on the disk before the next begins.

Between rows there may be limits that were measured again. What is read back is held against the highest of all.

A run may end at any moment: what is read back is every line that was finished. `resume` goes on where the file ends.
"""

import json
import os
import stat
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import reduce
from io import FileIO
from pathlib import Path
from statistics import fmean
from typing import Any, Self

from multirnn.errors import InvalidCall, InvalidData, InvalidSpec
from multirnn_bench.fields import fault_of_header, fault_of_row
from multirnn_bench.limits import Limits
from multirnn_bench.problems import Problem

if sys.platform != "win32":
    import fcntl

__all__ = ["DONE", "VERSION", "NotSaved", "Results", "Writer", "key", "read", "taken"]

VERSION = 2
READ = (1, 2)
"""Versions that are read: in the first there are no limits beyond those of the header."""

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
        header: the table, the machine, its limits, the settings; of limits that were measured several times the highest.
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
    if header.get("version") not in READ:
        raise InvalidData(f"{path} has results of version {header.get('version')!r}; this multirnn reads {VERSION}")
    rows: dict[Key, tuple[int, dict[str, Any]]] = {}
    again: set[Key] = set()
    measured: list[Limits] = []
    for number, line in enumerate(lines[1:], start=2):
        with _told(path, number):
            if line.get("kind") == "limits":
                measured.append(Limits.from_dict(line))
                continue
            if fault := "its kind is another" if line.get("kind") != "row" else fault_of_row(line):
                raise InvalidData(f"not a row of results: {fault}")
            if rows.pop(key(line), None):  # so that the later one stands where it was written
                again.add(key(line))
            rows[key(line)] = number, line
    if fault := fault_of_header(header):
        raise InvalidData(f"{path}, line 1: not the header of a file of results: {fault}")
    if measured and header["limits"]:
        limits = reduce(Limits.highest, measured, Limits.from_dict(header["limits"]))
        header |= {"limits": limits.to_dict()}
        for number, row in rows.values():
            with _told(path, number):
                _hold_against(limits, row)
    return Results(header, [row for _, row in rows.values()], len(again))


@contextmanager
def _told(path: Path | str, number: int) -> Iterator[None]:
    """The line is told in what is raised."""
    try:
        yield
    except (InvalidData, InvalidCall, InvalidSpec) as error:
        raise InvalidData(f"{path}, line {number}: {error}") from None


def _hold_against(limits: Limits, row: dict[str, Any]) -> None:
    """The limit and the share of a row by the highest ceilings of a run, which may have been found after it was timed."""
    if row["status"] == "timed" and row.get("limit_s") is not None:
        row["limit_s"] = limits.seconds(Problem.from_dict(row["problem"]), row["mode"], row["threads"])
        row["share"] = row["limit_s"] / row["median"]


def taken(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], float]:
    """Which part of the cores the host took in the rows of a problem and a mode, in the mean; of those where it is known."""
    shares = defaultdict[tuple[str, str], list[float]](list)
    for row in rows:
        if (share := row.get("taken", row.get("steal"))) is not None:  # older files have only what the host told
            shares[row["problem"]["name"], row["mode"]].append(share)
    return {where: fmean(values) for where, values in shares.items()}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InvalidData(f"{path} cannot be read: {error.strerror}") from None
    for number, line in enumerate(text[: _finished(text)].split(b"\n")[:-1], start=1):
        try:
            value = json.loads(line, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise InvalidData(f"{path}, line {number}: not JSON: {error}") from None
        if not isinstance(value, dict):
            raise InvalidData(f"{path}, line {number}: not an object but {type(value).__name__}")
        yield value


def _finished(text: bytes) -> int:
    """How many bytes are finished lines."""
    return text.rfind(b"\n") + 1


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


class NotSaved(InvalidData):
    """A row could not be written: the disk is full, or the file may not grow. What was written before is whole."""


class Writer:
    """Appends rows to a file of results; a context manager that closes it, and the only one that writes to it meanwhile.

    A file that is begun and left without a header is removed.

    Args:
        path: of the file.
        resume: whether to go on with a file that is there; without it there must be none.

    Attributes:
        found: what the file holds already; None if it is to be begun.
        rows: what it holds, with what was written since.

    Raises:
        InvalidCall: there is a file that is not to be resumed, or somebody else is writing to it, or it cannot be written to.
        InvalidData: it is no file of results.
    """

    def __init__(self, path: Path, *, resume: bool = False) -> None:
        self.path = path
        if path.exists() and not resume:
            raise InvalidCall(f"{path} exists; --resume goes on with it, or name another file with --out")
        self._file = _locked(path)
        try:
            text = path.read_bytes()
            if text and not resume:  # somebody was faster
                raise InvalidCall(f"{path} exists; --resume goes on with it, or name another file with --out")
            self._size = _finished(text)
            self.found = read(path) if self._size else None
        except BaseException:
            self._file.close()
            raise
        self.rows = [] if self.found is None else self.found.rows

    @classmethod
    def create(cls, path: Path, header: Mapping[str, Any]) -> Self:
        """Begin a new file; see `begin`."""
        return cls(path)._begun(header)

    @classmethod
    def resume(cls, path: Path, header: Mapping[str, Any]) -> Self:
        """Go on with a file, or begin it where there is none or an interrupted run left it without a header; see `begin`."""
        return cls(path, resume=True)._begun(header)

    def _begun(self, header: Mapping[str, Any]) -> Self:
        try:
            self.begin(header)
        except BaseException:
            self.__exit__()
            raise
        return self

    def begin(self, header: Mapping[str, Any]) -> None:
        """Write the header, or see that the run is the one that the file is of.

        Raises:
            InvalidCall: it was written on another machine, with other versions, or of another table.
            NotSaved: it cannot be written.
        """
        if self.found is None:
            self._append({"kind": "header", "version": VERSION, **header})
            return
        wanted = json.loads(json.dumps({name: header[name] for name in NOT_THE_SAME}))
        for name in NOT_THE_SAME:
            if different := _first_difference(self.found.header.get(name), wanted[name]):
                raise InvalidCall(
                    f"{self.path} cannot be resumed: {NOT_THE_SAME[name]}, {different}; "
                    "results of two are not put into one file, so name another with --out"
                )

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row; on the disk when this returns.

        Raises:
            NotSaved: it cannot be written.
        """
        self._append({"kind": "row", **row})
        self.rows.append({"kind": "row", **row})

    def write_limits(self, limits: Limits) -> None:
        """Append limits that were measured again; of all that a file has the highest ceilings count, for every row.

        Raises:
            NotSaved: they cannot be written.
        """
        self._append({"kind": "limits", **limits.to_dict()})

    def _append(self, value: Mapping[str, Any]) -> None:
        """Write a line after those that are finished, or leave no part of it."""
        line = json.dumps(value, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        try:
            self._file.truncate(self._size)
            self._file.seek(self._size)
            written = 0
            while written < len(line):
                written += self._file.write(line[written:])
            os.fsync(self._file.fileno())
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(self._size)
            raise NotSaved(self.what_is_saved(f"{self.path} cannot be written: {error.strerror or error}")) from None
        self._size += len(line)

    def what_is_saved(self, why: str) -> str:
        """The sentences that end a run early.

        Args:
            why: it ends.
        """
        if not self._size:
            return f"{why}; nothing is saved"
        rows = f"{self.saved} {'row is' if self.saved == 1 else 'rows are'} saved in {self.path}"
        return f"{why}; {rows}, and --resume goes on from there"

    @property
    def saved(self) -> int:
        """How many rows the file holds; who interrupts may do so between a row and its count."""
        return len(read(self.path).rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._file.closed:
            return
        if not self._size:
            with suppress(OSError):
                self.path.unlink()
        self._file.close()  # and lets go of the lock


def _locked(path: Path) -> FileIO:
    """The file, made if it is not there, which no other run writes to until it is closed; on Windows any may.

    Raises:
        InvalidCall: another does, or it cannot be opened.
    """
    while True:
        try:
            file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+")
        except OSError as error:
            why = error.strerror if path.absolute().parent.is_dir() else f"there is no folder {path.parent}"
            raise InvalidCall(f"{path} cannot be written: {why}") from None
        try:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InvalidCall(f"{path} is no file that rows can be appended to; name another with --out")
            if sys.platform != "win32":
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(path, file):
                return file
            file.close()  # the run that had the lock has removed it
        except BlockingIOError:
            file.close()
            raise InvalidCall(
                f"another run is writing to {path}; wait until it is over, or name another file with --out"
            ) from None
        except OSError as error:
            file.close()
            raise InvalidCall(
                f"{path} cannot be locked: {error.strerror}; name a file on another disk with --out"
            ) from None
        except BaseException:
            file.close()
            raise


def _is_still(path: Path, file: FileIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


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
