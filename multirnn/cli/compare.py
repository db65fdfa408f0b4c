"""`multirnn compare`: are they the same function? The cells on real data, on every backend, outputs and gradients."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from multirnn.cells import CELLS, cell_form
from multirnn.cli import options
from multirnn.cli.console import heading, progress, show, show_json
from multirnn.compare import Comparison, Row, compare
from multirnn.errors import MissingFramework
from multirnn.layer import Lengths
from multirnn.plot import picture_format, plot_errors, write_figure
from multirnn.registry import backend as load
from multirnn.samples import seattle_weather
from multirnn.series import Series, read_series
from multirnn.spec import RecurrentSpec
from multirnn.weights import Array

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["command"]

LONGEST = 60  # steps of a window, where the series has as many


@click.command(
    "compare",
    epilog="""
    \b
    Examples:
      multirnn compare --plot errors.png
      multirnn compare --cell gru --reset-before --bias single --backend numpy --backend jax
      multirnn compare --data weather.csv --window 30 --hidden 32 --dtype float64 --json

    \b
    Exit status:
      0  every backend that realises a stack is equal to the reference
      1  one differs
      2  used wrongly, or could not run
      3  a backend named with --backend is missing or refuses; 1 comes first
    """,
)
@click.option(
    "--cell",
    "cells",
    type=click.Choice(list(CELLS)),
    multiple=True,
    help="Only this cell; may be repeated.  [default: all]",
)
@click.option(
    "--hidden",
    "hidden_size",
    type=options.POSITIVE,
    metavar="N",
    default=16,
    show_default=True,
    help="Units of each layer and direction.",
)
@options.stack
@options.backends
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A series, .csv or .npy.  [default: weather of Seattle]",
)
@click.option(
    "--window", type=options.POSITIVE, metavar="N", help=f"Steps of the longest window.  [default: {LONGEST}]"
)
@click.option(
    "--windows", type=options.POSITIVE, metavar="N", default=16, show_default=True, help="How many windows: the batch."
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    metavar="N",
    default=0,
    show_default=True,
    help="Of weights, windows, cotangents.",
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write a picture of the errors over time, .png, .svg, …",
)
@options.json_output
@options.debug
@click.pass_context
def command(
    ctx: click.Context,
    /,
    cells: tuple[str, ...],
    names: tuple[str, ...],
    data: Path | None,
    window: int | None,
    windows: int,
    seed: int,
    plot: Path | None,
    as_json: bool,
    **fields: Any,
) -> None:
    """Hold every backend against the reference, on real data.

    The reference is NumPy in float64. The series is standardised and cut into windows of unequal lengths. Compared are
    outputs, last states, the gradients of weights, input and initial state, and the number of parameters. A backend
    that refuses a stack, or whose framework is not installed, is shown with the reason.
    """
    if plot:
        picture_format(plot)
    chosen = options.chosen(names)
    series = read_series(data) if data else seattle_weather()
    standardised = series.standardised()
    x, lengths = standardised.windows(windows, longest=window or min(LONGEST, len(series.values)), seed=seed)
    specs = list(_specs(cells or tuple(CELLS), input_size=len(series.names), **fields))
    comparisons = _compare(specs, x, lengths, chosen, seed)
    if plot:
        write_figure(plot_errors({comparison.spec.form.title: comparison for comparison in comparisons}), plot)
    if as_json:
        about = _about(series, data, lengths, seed)
        ok = all(comparison.ok for comparison in comparisons)
        show_json({"ok": ok, "data": about, "comparisons": [comparison.to_dict() for comparison in comparisons]})
    else:
        show(*_report(series, data, lengths, comparisons, plot))
    ctx.exit(_status(comparisons, names))


def _specs(cells: tuple[str, ...], **fields: Any) -> Iterator[RecurrentSpec]:
    """A spec a cell. A field that only some of the cells have goes to those; if none has it, the spec refuses it."""
    has_field = {
        "reset_after": [cell for cell in cells if cell_form(cell, False) is not cell_form(cell, True)],
        "recurrent_activation": [cell for cell in cells if len(CELLS[cell].gates) > 1],
    }
    for cell in dict.fromkeys(cells):
        foreign = {field for field, having in has_field.items() if having and cell not in having}
        yield RecurrentSpec(cell, **{field: value for field, value in fields.items() if field not in foreign})


def _compare(
    specs: list[RecurrentSpec], x: Array, lengths: Lengths, names: tuple[str, ...], seed: int
) -> list[Comparison]:
    """One comparison a spec, on the same windows."""
    with progress() as say:
        for name in names:
            say(f"loading {name}")
            with suppress(MissingFramework):  # `compare` makes a row of it
                load(name)
        comparisons = []
        for spec in specs:
            say(f"comparing {spec.form.title}")
            comparisons.append(compare(spec, x.astype(spec.dtype), lengths=lengths, backends=names, seed=seed))
    return comparisons


def _status(comparisons: list[Comparison], names: tuple[str, ...]) -> int:
    """The exit status; what was asked for by name and did not run is said on stderr."""
    rows = [row for comparison in comparisons for row in comparison.rows]
    absent = [row for row in rows if names and row.verdict in ("missing", "refuses")]
    for reason in dict.fromkeys(_reason(row) for row in absent):
        click.echo(f"Error: {reason}", err=True)
    return 1 if any(row.verdict == "differs" for row in rows) else 3 if absent else 0


def _reason(row: Row) -> str:
    return row.reason if row.verdict == "missing" else f"backend {row.backend!r} refuses: {row.reason}"


# --- How it is shown -------------------------------------------------------------------------------------------------


def _report(
    series: Series, data: Path | None, lengths: Lengths, comparisons: list[Comparison], plot: Path | None
) -> Iterator["RenderableType"]:
    from rich.text import Text

    yield heading(str(data) if data else "Weather of Seattle, 2012 to 2015")
    yield (
        f"{len(lengths)} windows of {lengths.min()} to {lengths.max()} steps out of {len(series.values)}; "
        f"standardised features: {', '.join(series.names)}"
    )
    if series.dropped:
        yield f"left out, since they hold no numbers: {', '.join(series.dropped)}"
    if series.constant:
        yield f"zero, since they never change: {', '.join(series.constant)}"
    yield ""
    yield from comparisons
    rows = [(comparison.spec.cell, row) for comparison in comparisons for row in comparison.rows]
    if different := [f"{cell} on {row.title}" for cell, row in rows if row.verdict == "differs"]:
        yield Text(f"different: {', '.join(different)}", style="bold red")
    elif equal := dict.fromkeys(row.title for _, row in rows if row.verdict == "equal"):
        yield Text(f"equal: outputs, states, gradients and counts, on {', '.join(equal)}", style="bold green")
    if plot:
        yield f"picture: {plot}"


def _about(series: Series, data: Path | None, lengths: Lengths, seed: int) -> dict[str, Any]:
    """The data, in values that JSON has."""
    return {
        "source": str(data) if data else "seattle-weather",
        "steps": len(series.values),
        "features": series.names,
        "left_out": series.dropped,
        "constant": series.constant,
        "lengths": lengths.tolist(),
        "seed": seed,
    }
