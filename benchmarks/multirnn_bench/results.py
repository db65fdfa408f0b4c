"""The file of results: JSON lines, a header and then a row a measurement, each on the disk before the next begins.

Limits that were measured again may stand between rows; on reading, the highest count for every row. A run may end at
any moment: every finished line is read back, and `resume` continues where the file ends.
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
READ = (1, 2)  # the first has no limits besides those of the header
DONE = ("timed", "wrong", "refused", "slow")  # `--resume` does not try these again, except with `--disturbed`
SHARED = {"table": "is", "machine": "is", "settings": "are"}  # what a resumed run must share, and the verb
Key = tuple[str, str, int, str]  # problem, mode, threads and contender
IN_USE = "{} exists; --resume goes on with it, or name another file with --out"


@dataclass(frozen=True)
class Results:
    """The content of a file of results."""

    header: dict[str, Any]  # table, machine, limits, settings; of limits measured several times, the highest
    rows: list[dict[str, Any]]  # in the order of the file; of two with one `key`, the later
    again: int = 0  # the number of such later ones

    @property
    def processor(self) -> str:
        """The processor in words."""
        return str(self.header.get("machine", {}).get("processor") or "an unknown processor")


def key(row: Mapping[str, Any]) -> Key:
    """The identity of a row."""
    return row["problem"]["name"], row["mode"], row["threads"], row["contender"]["name"]


def read(path: Path | str) -> Results:
    """Read a file of results, without an unfinished last line; `InvalidData` names the line at fault."""
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
            if rows.pop(key(line), None):  # so that the later one stands in its own place
                again.add(key(line))
            rows[key(line)] = number, line
    if fault := fault_of_header(header):
        raise InvalidData(f"{path}, line 1: not the header of a file of results: {fault}")
    if measured and header["limits"]:
        limits = reduce(Limits.highest, measured, Limits.from_dict(header["limits"]))
        header |= {"limits": limits.to_dict()}
        for number, row in rows.values():
            if row["status"] == "timed" and row.get("limit_s") is not None:
                with _told(path, number):
                    problem = Problem.from_dict(row["problem"])
                    row["limit_s"] = limits.seconds(problem, row["mode"], row["threads"])
                    row["share"] = row["limit_s"] / row["median"]
    return Results(header, [row for _, row in rows.values()], len(again))


@contextmanager
def _told(path: Path | str, number: int) -> Iterator[None]:
    try:
        yield
    except (InvalidData, InvalidCall, InvalidSpec) as error:
        raise InvalidData(f"{path}, line {number}: {error}") from None


def taken(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], float]:
    """By problem and mode, the mean interference over the rows that know it."""
    shares = defaultdict[tuple[str, str], list[float]](list)
    for row in rows:
        if (share := row.get("taken", row.get("steal"))) is not None:  # older files have the reported steal time alone
            shares[row["problem"]["name"], row["mode"]].append(share)
    return {where: fmean(values) for where, values in shares.items()}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise InvalidData(f"{path} cannot be read: {error.strerror}") from None
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise InvalidData(f"{path}, line {number}: not JSON: {error}") from None
        if not isinstance(value, dict):
            raise InvalidData(f"{path}, line {number}: not an object but {type(value).__name__}")
        yield value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


class NotSaved(InvalidData):
    """A row could not be written: the disk is full, or the file may not grow. Earlier rows are whole."""


class Writer:
    """Appends rows to a file of results; a context manager that locks the file and closes it.

    A new file that never got a header is removed. An existing one (`found`) raises `InvalidCall` unless `resume`, or
    while another run is writing to it.
    """

    def __init__(self, path: Path, *, resume: bool = False) -> None:
        self.path = path
        if path.exists() and not resume:
            raise InvalidCall(IN_USE.format(path))
        self._file = _locked(path)
        try:
            text = path.read_bytes()
            if text and not resume:  # another run was faster
                raise InvalidCall(IN_USE.format(path))
            self._size = text.rfind(b"\n") + 1  # finished lines
            self.found = read(path) if self._size else None
        except BaseException:
            self._file.close()
            raise
        self.rows = [] if self.found is None else self.found.rows

    def begin(self, header: Mapping[str, Any]) -> None:
        """Write the header, or raise `InvalidCall` if a resumed file is of another machine, versions, or table."""
        if self.found is None:
            self._append({"kind": "header", "version": VERSION, **header})
            return
        for name, verb in SHARED.items():
            wanted = json.loads(json.dumps(header[name]))
            if different := _first_difference(self.found.header.get(name), wanted):
                raise InvalidCall(
                    f"{self.path} cannot be resumed: its {name} {verb} not the same, {different}; "
                    "results of two are not put into one file, so name another with --out"
                )

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row; it is on the disk when this returns. Raises `NotSaved`."""
        self._append({"kind": "row", **row})
        self.rows.append({"kind": "row", **row})

    def write_limits(self, limits: Limits) -> None:
        """Append limits that were measured again; the highest ceilings count for every row. Raises `NotSaved`."""
        self._append({"kind": "limits", **limits.to_dict()})

    def _append(self, value: Mapping[str, Any]) -> None:
        """Append a whole line, or nothing."""
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
        """The message of a run that ends early, and why."""
        if not self._size:
            return f"{why}; nothing is saved"
        rows = f"{self.saved} {'row is' if self.saved == 1 else 'rows are'} saved in {self.path}"
        return f"{why}; {rows}, and --resume goes on from there"

    @property
    def saved(self) -> int:
        """The number of rows in the file, counted there: an interrupt may come between a row and its count."""
        return len(read(self.path).rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._file.closed:
            return
        if not self._size:
            with suppress(OSError):
                self.path.unlink()
        self._file.close()  # releases the lock too


def _locked(path: Path) -> FileIO:
    """The file, created if missing, and locked against other runs until it is closed; not on Windows."""
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
            with suppress(FileNotFoundError):
                if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                    return file
            file.close()  # the run with the lock has removed it
        except BaseException as error:
            file.close()
            if not isinstance(error, OSError):
                raise
            why = f"{path} cannot be locked: {error.strerror}; name a file on another disk with --out"
            if isinstance(error, BlockingIOError):
                why = f"another run is writing to {path}; wait until it is over, or name another file with --out"
            raise InvalidCall(why) from None


def _first_difference(found: Any, wanted: Any, where: str = "") -> str:
    """The first difference between two JSON values, in words; empty if they are equal."""
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
