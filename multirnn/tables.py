"""Records for people: as text that fits the terminal, as HTML in a notebook, and as JSON.

Text breaks at spaces alone, and a number never breaks. A table that is too wide first drops its spare columns, then breaks
words and heads over lines, and at last continues below itself, its key columns repeated. So every table fits a terminal as
wide as its keys and one more column. Width is in terminal cells: a Hangul syllable takes two.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

__all__ = ["Column", "Content", "Shown", "Styled", "Table", "encodable", "html", "json_value", "lines"]
__all__ += ["terminal_width"]


def terminal_width() -> int:
    """Columns of the terminal or of `COLUMNS`; 80 if neither is known."""
    return shutil.get_terminal_size((80, 24)).columns


class Styled(str):
    """Text with a style of rich's, as "bold" or "green"."""

    style: str

    def __new__(cls, text: object, style: str = "") -> Styled:
        """`str(text)` in this style."""
        made = super().__new__(cls, text)
        made.style = style
        return made


class Column(NamedTuple):
    """The head of a column."""

    name: str
    number: bool = False  # aligned to the right; a cell with a digit is not broken
    whole: bool = False  # no cell is broken
    spare: bool = False  # dropped if there is no room for it


class _Row(NamedTuple):
    cells: tuple[Styled, ...]
    style: str


class Table:
    """Rows under columns, shown by `str`, by rich, and in a notebook.

    A string is the head of a column of words; the first `keys` columns identify a row.
    """

    def __init__(self, *columns: str | Column, keys: int = 1) -> None:
        self.columns = tuple(Column(c) if isinstance(c, str) else c for c in columns)
        self.keys = keys
        self._rows: list[_Row | None] = []

    def add_row(self, *cells: object, style: str = "") -> None:
        """A row. A cell with a `style`, such as `Styled`, is shown in it; missing cells are empty."""
        texts = tuple(Styled(str(cell), str(getattr(cell, "style", ""))) for cell in cells)
        self._rows.append(_Row((*texts, *[Styled("")] * (len(self.columns) - len(texts))), style))

    def add_section(self) -> None:
        """An empty line, unless it would be the first, the last, or the second."""
        if self._rows and self._rows[-1] is not None:
            self._rows.append(None)

    @property
    def rows(self) -> list[tuple[Styled, ...]]:
        """The cells."""
        return [row.cells for row in self._rows if row is not None]

    def fits(self, name: str, width: int) -> bool:
        """Whether a spare column is shown in this width."""
        return any(self.columns[place].name == name for block in self._blocks(width) for place in block)

    def lines(self, width: int) -> Iterator[list[Styled]]:
        """The lines, each a list of styled pieces."""
        rows = self._rows[: -1 if self._rows and self._rows[-1] is None else None]
        for number, block in enumerate(self._blocks(width)):
            if number:
                yield []
            widths = self._widths(block, width)
            head = tuple(Styled(column.name) for column in self.columns)
            yield from self._set(_Row(head, ""), block, widths, bottom=True)
            yield [Styled("─" * (sum(widths) + len(_GAP) * (len(widths) - 1)))]
            for row in rows:
                yield from [[]] if row is None else self._set(row, block, widths)

    def html(self) -> str:
        """A `<table>` of all columns."""
        from html import escape

        def row(cells: Iterable[str], tag: str) -> str:
            right = ' style="text-align: right"'
            made = (
                f"<{tag}{right if column.number else ''}>{escape(cell)}</{tag}>"
                for cell, column in zip(cells, self.columns, strict=True)
            )
            return f"<tr>{''.join(made)}</tr>"

        head, body = row([column.name for column in self.columns], "th"), (row(cells, "td") for cells in self.rows)
        return f"<table><thead>{head}</thead><tbody>{''.join(body)}</tbody></table>"

    _repr_html_ = html

    def __str__(self) -> str:
        return text([self])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from _rendered(self.lines(options.max_width))

    # --- Layout ------------------------------------------------------------------------------------------------------

    def _blocks(self, width: int) -> list[list[int]]:
        """The columns of each part: one, or several below each other if the table is too wide."""
        shown = list(range(len(self.columns)))
        widest, narrowest = self._extents(math.inf), self._extents(0)
        for place in reversed(shown):
            if self.columns[place].spare and _total(widest, shown) > width:
                shown.remove(place)
        keys, blocks = shown[: self.keys], [shown[: self.keys]]
        for place in shown[self.keys :]:
            if len(blocks[-1]) > len(keys) and _total(narrowest, [*blocks[-1], place]) > width:
                blocks.append(list(keys))
            blocks[-1].append(place)
        return blocks

    def _widths(self, block: Sequence[int], width: int) -> list[int]:
        """The width of each column of a block: its text's, the widest narrowed until the line fits."""
        widths, narrowest = self._extents(math.inf), self._extents(0)
        while _total(widths, block) > width:
            loose = [place for place in block if widths[place] > narrowest[place]]
            if not loose:
                break
            widths[max(loose, key=lambda place: widths[place])] -= 1
        return [self._extent(place, widths[place]) for place in block]

    def _extents(self, width: float) -> list[int]:
        return [self._extent(place, width) for place in range(len(self.columns))]

    def _extent(self, place: int, width: float) -> int:
        """The width that a column takes if its lines are broken at this one."""
        cells = (line for row in self.rows for line in self._broken(row, place, width))
        return max(map(_cells, [*_wrapped(self.columns[place].name, width), *cells]))

    def _broken(self, cells: Sequence[str], place: int, width: float) -> list[str]:
        cell, column = cells[place], self.columns[place]
        unbroken = column.whole or (column.number and any(map(str.isdigit, cell)))
        return cell.split("\n") if unbroken else _wrapped(cell, width)

    def _set(
        self, row: _Row, block: Sequence[int], widths: Sequence[int], *, bottom: bool = False
    ) -> Iterator[list[Styled]]:
        """The lines of a row, or of the head, which is aligned to the bottom."""
        broken = [
            _wrapped(row.cells[place], width) if bottom else self._broken(row.cells, place, width)
            for place, width in zip(block, widths, strict=True)
        ]
        height = max(map(len, broken))
        filled = [[""] * (height - len(b)) + b if bottom else b + [""] * (height - len(b)) for b in broken]
        for line in zip(*filled, strict=True):
            pieces: list[Styled] = []
            for place, piece, width in zip(block, line, widths, strict=True):
                space = " " * (width - _cells(piece))
                padded = space + piece if self.columns[place].number else piece + space
                pieces += [Styled(_GAP)] * bool(pieces)
                pieces.append(Styled(padded, " ".join(filter(None, (row.style, row.cells[place].style)))))
            yield pieces


_GAP = "  "
_COMMAND = "pip install "
_GLUED = _COMMAND.replace(" ", "\0")


def _total(widths: Sequence[int], block: Sequence[int]) -> int:
    return sum(widths[place] for place in block) + len(_GAP) * (len(block) - 1)


def _cells(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)


def _wrapped(text: str, width: float) -> list[str]:
    """Text broken at its spaces, except inside a command to copy; each line keeps its paragraph's indent."""
    made = []
    for paragraph in text.split("\n"):
        indent = paragraph[: len(paragraph) - len(paragraph.lstrip(" "))]
        line = ""
        for word in paragraph.strip(" ").replace(_COMMAND, _GLUED).split(" "):
            word = word.replace("\0", " ")
            if line and _cells(indent) + _cells(line) + 1 + _cells(word) > width:
                made.append(indent + line)
                line = word
            else:
                line = f"{line} {word}" if line else word
        made.append(indent + line)
    return made


# --- Records ---------------------------------------------------------------------------------------------------------


class Shown(ABC):
    """A record that shows itself: as text by `str` and `print`, in colour by rich, in a notebook, and as JSON."""

    __slots__ = ()

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The record in JSON's values."""

    @abstractmethod
    def _contents(self) -> Iterator[Content]:
        """Prose and tables, from top to bottom."""

    def to_json(self, indent: int | None = 2) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False, allow_nan=False)

    def __str__(self) -> str:
        return text(self._contents())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html(self._contents())

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from _rendered(lines(self._contents(), options.max_width))


Content = str | Table | Shown
"""Prose, broken at its spaces; a table; or another record."""


def lines(contents: Iterable[Content], width: int) -> Iterator[list[Styled]]:
    """The lines in this width, each a list of styled pieces."""
    for content in contents:
        if isinstance(content, Table):
            yield from content.lines(width)
        elif isinstance(content, Shown):
            yield from lines(content._contents(), width)
        else:
            style = str(getattr(content, "style", ""))
            yield from ([Styled(line, style)] for line in _wrapped(str(content), width))


def text(contents: Iterable[Content]) -> str:
    """Plain text that fits the terminal, in characters of its encoding."""
    plain = "\n".join("".join(line).rstrip() for line in lines(contents, terminal_width())).rstrip()
    return encodable(plain, getattr(sys.stdout, "encoding", None))


def html(contents: Iterable[Content]) -> str:
    """One `<div>`."""
    from html import escape

    def made(content: Content) -> str:
        if isinstance(content, Table):
            return content.html()
        if isinstance(content, Shown):
            return content._repr_html_()
        tag = "b" if "bold" in str(getattr(content, "style", "")) else "span"
        return f"<p><{tag}>{escape(content)}</{tag}></p>" if content.strip() else ""

    return f"<div>{''.join(map(made, contents))}</div>"


def _rendered(pieces: Iterable[list[Styled]]) -> RenderResult:
    from rich.text import Text

    for line in pieces:
        yield Text.assemble(*((str(piece), piece.style) for piece in line), no_wrap=True, overflow="ignore")


_PLAIN = str.maketrans({"–": "-", "─": "-", "−": "-", "×": "x", "²": "^2", "…": "...", "‖": "||"}) | {
    ord(block): str(height) for height, block in enumerate("▁▂▃▄▅▆▇█", 1)
}


def encodable(text: str, encoding: str | None) -> str:
    """Text with our tables' symbols in ASCII if the encoding lacks one of them, as the Korean cp949 lacks "–"."""
    try:
        text.encode(encoding or "utf-8")
    except UnicodeEncodeError:
        return text.translate(_PLAIN)
    return text


def json_value(value: Any) -> Any:
    """A value in JSON's: arrays as lists, infinities and NaN as null."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: json_value(entry) for key, entry in value.items()}
    return [json_value(entry) for entry in value] if isinstance(value, list | tuple) else value
