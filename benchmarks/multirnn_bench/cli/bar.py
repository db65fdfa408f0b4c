"""Progress of a benchmark on stderr: a bar with the remaining time; off a terminal, a line a problem."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from multirnn_bench.run import Progress

__all__ = ["progress_bar"]


@contextmanager
def progress_bar() -> Iterator[Callable[[Progress], None]]:
    """Yields a function that shows the progress."""
    if not sys.stderr.isatty():
        told: set[str] = set()

        def tell(progress: Progress) -> None:
            doing = progress.doing.partition(":")[0]
            if doing not in told:
                told.add(doing)
                click.echo(f"{progress.done}/{progress.total} {doing}", err=True)

        yield tell
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    with Bar(*columns, TextColumn("{task.description}", markup=False), console=console, transient=True) as shown:
        task = shown.add_task("", total=None)
        yield lambda progress: shown.update(
            task, completed=progress.done, total=progress.total, description=progress.doing
        )
