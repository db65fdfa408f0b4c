"""What a command writes: tables and JSON on stdout, what it is waiting for on stderr."""

import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

__all__ = ["heading", "progress", "show", "show_json", "table"]

PIPED_WIDTH = 150  # columns, where there is no terminal to ask


def show(*renderables: "RenderableType") -> None:
    """Print to stdout: in colour on a terminal, plain when piped."""
    from rich.console import Console

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that has no '×' shows a '?'
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPED_WIDTH
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    # Captured and written here, because rich answers a closed pipe by ending the process with status 1.
    with console.capture() as capture:
        for renderable in renderables:
            console.print(renderable)
    text = capture.get()
    if not console.is_terminal:
        text = "".join(f"{line.rstrip()}\n" for line in text.splitlines())
    sys.stdout.write(text)
    sys.stdout.flush()


def show_json(value: Any) -> None:
    """Print a value to stdout as JSON."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """What is being waited for, in one line of stderr that goes away; nothing unless stderr is a terminal.

    Yields:
        A function that takes what to say now.
    """
    from rich.console import Console

    if not sys.stderr.isatty():
        yield lambda text: None
        return
    with Console(stderr=True).status("") as status:
        yield status.update


def heading(text: str) -> "Text":
    """The line above a table."""
    from rich.text import Text

    return Text(text, style="bold")


def table(*columns: str, right: tuple[str, ...] = ()) -> "Table":
    """An empty table in the one style of all commands.

    Args:
        columns: their heads.
        right: those of numbers.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    made = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made
