"""Output of the commands: tables and JSON on stdout, progress on stderr."""

import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from multirnn.tables import Column, Content, Styled, Table, encodable, lines, terminal_width

__all__ = ["heading", "progress", "show", "show_json", "table"]


def show(*contents: Content) -> None:
    """Print to stdout: in colour on a terminal, plain when piped; as wide as the terminal, or 80 columns."""
    from rich.console import Console
    from rich.text import Text

    encoding = getattr(sys.stdout, "encoding", None)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # characters of a user's own that the terminal lacks become '?'
    width = terminal_width()
    console = Console(width=width, highlight=False, markup=False, emoji=False, force_jupyter=False)
    # Captured and written here: on a closed pipe, rich would end the process with status 1.
    with console.capture() as capture:
        for line in lines(contents, width):
            made = Text.assemble(*((str(piece), piece.style) for piece in line))
            made.rstrip()
            console.print(made, soft_wrap=True)  # lines are broken already; a word without spaces stays whole
    sys.stdout.write(encodable(capture.get(), encoding))
    sys.stdout.flush()


def show_json(value: Any) -> None:
    """Print a value to stdout as JSON."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """Yields a function that shows its text as one transient line on stderr; it does nothing unless stderr is a terminal."""
    from rich.console import Console

    if not sys.stderr.isatty():
        yield lambda text: None
        return
    with Console(stderr=True).status("") as status:
        yield status.update


def heading(text: str) -> Styled:
    """A heading above a table."""
    return Styled(text, "bold")


def table(*columns: str, right: tuple[str, ...] = (), rows: Iterable[Sequence[object]] = ()) -> Table:
    """A table of these columns and rows, in the one style of all commands; on the right are numbers."""
    made = Table(*(Column(name, number=name in right) for name in columns))
    for row in rows:
        made.add_row(*row)
    return made
