"""A series of measurements from a file, and ragged windows cut out of it.

    from multirnn.series import read_series
    x, lengths = read_series("weather.csv").standardised().windows(16, longest=60, seed=0)

A `.csv` file is UTF-8, with commas between its columns. Its first row is a header if none of its cells is a number.
A column without any number (dates, labels) is left out and named in `Series.dropped`; in a column with numbers every
cell has to be one. A `.npy` file holds `(time, features)` or `(time,)`, and is read without pickle.
"""

import csv
import math
from dataclasses import dataclass, replace
from io import StringIO
from os import PathLike
from pathlib import Path
from tokenize import TokenError

import numpy as np

from multirnn.errors import InvalidCall, InvalidData
from multirnn.layer import Lengths
from multirnn.weights import Array

__all__ = ["Series", "read_series"]


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """Measurements at equal steps of time.

    Attributes:
        values: `(time, features)`, float64, finite, at least two rows.
        names: of the features.
        dropped: the columns of the file that hold no number, and so are not features.
    """

    values: Array
    names: tuple[str, ...]
    dropped: tuple[str, ...] = ()

    @property
    def constant(self) -> tuple[str, ...]:
        """The features that never change."""
        return tuple(name for name, column in zip(self.names, self.values.T, strict=True) if np.ptp(column) == 0)

    def standardised(self) -> "Series":
        """The same series with mean 0 and standard deviation 1 in every feature; a constant one is zero."""
        scale = np.abs(self.values).max(axis=0)
        scaled = self.values / np.where(scale > 0, scale, 1)  # so that no square overflows
        varies = np.ptp(self.values, axis=0) > 0
        deviation = np.where(varies, scaled.std(axis=0), 1)  # rounding leaves a constant feature a deviation near eps
        return replace(self, values=np.where(varies, (scaled - scaled.mean(axis=0)) / deviation, 0.0))

    def windows(self, count: int, *, longest: int, seed: int = 0) -> tuple[Array, Lengths]:
        """Cut ragged windows at random places.

        Args:
            count: how many.
            longest: time steps of the longest, which is there; of two or more windows at least one is shorter.
            seed: of their places and lengths.

        Returns:
            x `(count, longest, features)`, float64, zero at the padding on the right, and the lengths `(count,)`.

        Raises:
            InvalidCall: no window, or one longer than the series.
        """
        time, features = self.values.shape
        if count < 1 or longest < 1:
            raise InvalidCall(f"at least one window of one step is cut, not {count} of {longest}")
        if longest > time:
            raise InvalidCall(f"no window of {longest} steps fits into a series of {time}; ask for at most {time}")
        rng = np.random.default_rng(seed)
        lengths = rng.integers(1, longest, size=count, endpoint=True)
        lengths[0] = longest
        lengths[1:2] = rng.integers(1, max(longest, 2))
        lengths = rng.permutation(lengths)
        x = np.zeros((count, longest, features))
        for row, length in enumerate(lengths):
            start = rng.integers(0, time - length, endpoint=True)
            x[row, :length] = self.values[start : start + length]
        return x, lengths


def read_series(path: str | PathLike[str]) -> Series:
    """The series in a `.csv` or `.npy` file.

    Raises:
        InvalidData: the file is not there, is neither, or holds something else than at least two rows of finite numbers;
            the sentence names the place.
    """
    path = Path(path)
    if path.is_dir():
        raise InvalidData(f"{path} is a folder; a series is read from a .csv or .npy file")
    read = {".csv": _read_csv, ".npy": _read_npy}.get(path.suffix.lower())
    if read is None:
        raise InvalidData(f"{path}: a series is read from a .csv or .npy file, and the name has to end so")
    try:
        series = read(path)
    except FileNotFoundError as error:
        raise InvalidData(f"there is no file {path}") from error
    except OSError as error:
        raise InvalidData(f"{path} cannot be read: {error.strerror or error}") from error
    if len(series.values) < 2:
        raise InvalidData(f"{path} holds {len(series.values) or 'no'} row of numbers; a series needs at least two")
    return series


# --- CSV -------------------------------------------------------------------------------------------------------------

_MISSING = ("na", "n/a", "nan", "null", "none", "?")


def _read_csv(path: Path) -> Series:
    lines = _lines(path)
    header = not any(math.isfinite(_number(cell)) for cell in lines[0][1])
    columns = [name.strip() for name in lines[0][1]] if header else [""] * len(lines[0][1])
    columns = [name or f"column {place}" for place, name in enumerate(columns, 1)]
    rows = lines[1:] if header else lines
    if not rows:
        raise InvalidData(f"{path} holds a header and no rows of numbers below it")
    values: dict[int, list[float]] = {}
    for place, name in enumerate(columns):
        column = [_number(cells[place]) for _, cells in rows]
        if all(math.isnan(value) for value in column):
            continue
        for value, (line, cells) in zip(column, rows, strict=True):
            if not math.isfinite(value):
                raise InvalidData(f"{path}, line {line}, column {name!r}: {_complaint(cells[place].strip())}")
        values[place] = column
    if not values:
        raise InvalidData(f"{path} has no column of numbers, only {', '.join(map(repr, columns))}")
    return Series(
        np.array(list(values.values()), dtype=np.float64).T.copy(),
        tuple(columns[place] for place in values),
        tuple(name for place, name in enumerate(columns) if place not in values),
    )


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """The lines that are not blank, all of one length: the number of each in the file, from 1, and its cells."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidData(f"{path} is not UTF-8 text: byte {error.start} is not; save it as UTF-8") from error
    reader = csv.reader(StringIO(text, newline=""), strict=True)
    try:
        lines = [(reader.line_num, cells) for cells in reader if len(cells) > 1 or "".join(cells).strip()]
    except csv.Error as error:
        raise InvalidData(f"{path}, line {reader.line_num}, is not CSV: {error}") from error
    if not lines:
        raise InvalidData(f"{path} is empty; a series needs at least two rows of numbers")
    for mark, called in {";": "semicolons", "\t": "tabs", "|": "bars"}.items():
        if len(counts := {line.count(mark) for line in text.splitlines() if line.strip()}) == 1 and counts != {0}:
            raise InvalidData(f"{path} has {called} between its columns; save it with commas")
    width = len(lines[0][1])
    for line, cells in lines:
        if len(cells) != width:
            raise InvalidData(
                f"{path}, line {line}: every line must have the {width} cells of the first, not {len(cells)}"
            )
    return lines


def _number(cell: str) -> float:
    """The number in a cell; NaN where there is none."""
    try:
        return math.nan if "_" in cell else float(cell)  # Python reads 2012_01 as a number, nobody else does
    except ValueError:
        return math.nan


def _complaint(cell: str) -> str:
    if not cell:
        return "the cell is empty; fill it in or leave the row out"
    if cell.lower() in _MISSING:
        return f"{cell!r} is no measurement; fill it in or leave the row out"
    return f"{cell!r} is not a finite number, as others in the column are; correct it or leave the column out"


# --- NPY -------------------------------------------------------------------------------------------------------------


def _read_npy(path: Path) -> Series:
    try:
        # Mapped, not read: a header that lies about the size is refused instead of allocated. Objects cannot be mapped.
        array = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, TokenError) as error:
        raise InvalidData(f"{path} holds no array of numbers as numpy.save writes it: {error}") from error
    if array.dtype.kind not in "biuf":
        raise InvalidData(f"{path} holds an array of {array.dtype}; a series is of real numbers")
    if array.ndim not in (1, 2):
        raise InvalidData(f"{path} holds an array of the shape {array.shape}; a series has (time, features) or (time,)")
    with np.errstate(over="ignore"):  # of a longdouble; an overflow is refused below
        values = np.array(array if array.ndim == 2 else array[:, None], dtype=np.float64)
    if values.shape[1] == 0:
        raise InvalidData(
            f"{path} holds an array of the shape {array.shape}, without a feature; a series has at least one"
        )
    if not (finite := np.isfinite(values)).all():
        row, column = np.argwhere(~finite)[0]
        raise InvalidData(
            f"{path}: the element [{row}, {column}] is {values[row, column]}; a series is of finite numbers, fill it in or "
            "leave the row out"
        )
    return Series(values, tuple(f"column {place}" for place in range(1, values.shape[1] + 1)))
