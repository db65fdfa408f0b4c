"""`multirnn compare`: outputs and gradients of every backend on real data, against the reference.

With `--train`: losses and weights, each framework trained by its own optimisers.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from traceback import print_exception
from typing import Any

import click

from multirnn.cells import CELLS, cell_form
from multirnn.cli import options
from multirnn.cli.console import heading, progress, show, show_json
from multirnn.comparison import Comparison, Row, compare
from multirnn.layer import FAST, FROZEN, NATIVE, Implementation, Lengths
from multirnn.parity import OPTIMISERS, STEPS, Parity, Trained, train_parity
from multirnn.plot import picture_format, plot_curves, plot_errors, write_figure
from multirnn.registry import Absent, present
from multirnn.samples import seattle_weather
from multirnn.series import Series, read_series
from multirnn.spec import RecurrentSpec
from multirnn.tables import Content, Styled

__all__ = ["command"]

LONGEST = 60  # steps of a window, where the series has as many

Found = Comparison | Parity


@click.command(
    "compare",
    epilog="""
    \b
    Examples:
      multirnn compare --plot errors.png
      multirnn compare --cell gru --reset-before --bias single --backend numpy --backend jax
      multirnn compare --data weather.csv --window 30 --hidden 32 --dtype float64 --json
      multirnn compare --train --window 14 --cell gru --optimiser sgd --optimiser adam

    \b
    Exit status:
      0  every backend that realises a stack is equal to the reference, or explained (--train)
      1  one differs
      2  used wrongly, or could not run
      3  a backend named with --backend is missing, broken or refuses; 1 comes first
    """,
)
@options.cell_names("Only this cell")
@options.hidden(default=16)
@options.stack
@options.backends
@options.file("--data", "A series, .csv or .npy.  [default: weather of Seattle]")
@options.count("--window", help=f"Steps of the longest window.  [default: {LONGEST}]")
@options.count("--windows", default=16, help="How many windows: the batch.")
@options.seed("weights, windows, cotangents")
@click.option(
    "--implementation",
    type=click.Choice([NATIVE, FAST, FROZEN]),
    default=NATIVE,
    show_default=True,
    help="The frameworks' own layers, fast ones, or fast ones with constant weights.",
)
@click.option("--train", is_flag=True, help="Train instead: each framework by its own optimisers, losses and weights.")
@options.count("--steps", help=f"Of --train.  [default: {STEPS}]")
@click.option(
    "--optimiser",
    "optimisers",
    type=click.Choice(list(OPTIMISERS)),
    multiple=True,
    help="Of --train: only this one; may be repeated.  [default: all]",
)
@click.option("--defaults", is_flag=True, help="Of --train: give each framework its default biases and epsilon.")
@options.file("--plot", "Write a picture of the errors over time or of the losses, .png, .svg, …")
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
    implementation: Implementation,
    train: bool,
    steps: int | None,
    optimisers: tuple[str, ...],
    defaults: bool,
    plot: Path | None,
    as_json: bool,
    **fields: Any,
) -> None:
    """Hold every backend against the reference, on real data.

    The reference is NumPy in float64. The series is standardised and cut into windows of unequal lengths. Compared are
    outputs, last states, the gradients of weights, input and initial state, and parameter counts. A backend that
    refuses a stack, is broken, or lacks its framework, is shown with the reason.

    With --train every framework trains the stack by its own optimisers, from the same start and towards the outputs of
    the same stack with other weights. Compared are the losses and the final weights; differences that come from a
    convention of the framework are explained.
    """
    if not train and (steps or optimisers or defaults):
        raise click.UsageError("--steps, --optimiser and --defaults belong to --train: give it too")
    if train and implementation != NATIVE:
        raise click.UsageError("--train trains the frameworks' own layers: leave --implementation out")
    if plot:
        picture_format(plot)
    chosen = options.chosen(names)
    series = read_series(data) if data else seattle_weather()
    standardised = series.standardised()
    x, lengths = standardised.windows(windows, longest=window or min(LONGEST, len(series.values)), seed=seed)
    specs = list(_specs(cells or tuple(CELLS), input_size=len(series.names), **fields))
    run: Callable[..., Found] = train_parity if train else compare
    call: dict[str, Any] = {"lengths": lengths, "backends": chosen, "seed": seed}
    if train:
        call |= {"steps": steps or STEPS, "optimisers": optimisers or tuple(OPTIMISERS), "defaults": defaults}
    else:
        call["implementation"] = implementation
    found: list[Found] = []
    with progress() as say:
        for name in chosen:
            say(f"loading {name}")
            backend = present(name)
            if options.wants_traceback(ctx) and isinstance(backend, Absent) and backend.verdict == "broken":
                print_exception(backend.error)
        for spec in specs:
            say(f"{'training' if train else 'comparing'} {spec.form.title}")
            found.append(run(spec, x=x.astype(spec.dtype), **call))
    if plot:
        by_title: dict[str, Any] = {one.spec.form.title: one for one in found}
        write_figure(plot_curves(by_title) if train else plot_errors(by_title), plot)
    if as_json:
        about = {
            "source": str(data) if data else "seattle-weather",
            "steps": len(series.values),
            "features": series.names,
            "left_out": series.dropped,
            "constant": series.constant,
            "lengths": lengths.tolist(),
            "seed": seed,
        }
        kind = "trainings" if train else "comparisons"
        show_json({"ok": all(one.ok for one in found), "data": about, kind: [one.to_dict() for one in found]})
    else:
        show(*_report(series, data, lengths, found, plot))
    ctx.exit(_status(found, names))


def _specs(cells: tuple[str, ...], **fields: Any) -> Iterator[RecurrentSpec]:
    """One spec per cell. A field goes to the cells that have it; if none has it, the spec refuses it."""
    has_field = {
        "reset_after": [cell for cell in cells if cell_form(cell, False) is not cell_form(cell, True)],
        "recurrent_activation": [cell for cell in cells if len(CELLS[cell].gates) > 1],
    }
    for cell in dict.fromkeys(cells):
        foreign = {field for field, having in has_field.items() if having and cell not in having}
        yield RecurrentSpec(
            CELLS[cell].name, **{field: value for field, value in fields.items() if field not in foreign}
        )


def _status(found: list[Found], names: tuple[str, ...]) -> int:
    """The exit status; backends named by the user that did not run are reported on stderr."""
    rows = [row for one in found for row in one.rows]
    absent = [row for row in rows if names and row.verdict in ("missing", "broken", "refuses")]
    for reason in dict.fromkeys(_reason(row) for row in absent):
        click.echo(f"Error: {reason}", err=True)
    return 1 if any(row.verdict == "differs" for row in rows) else 3 if absent else 0


def _reason(row: Row | Trained) -> str:
    """The reason for a missing row, as a sentence."""
    if row.verdict == "missing":
        return row.reason
    return f"backend {row.backend!r} {'refuses' if row.verdict == 'refuses' else 'is broken'}: {row.reason}"


# --- As text ---------------------------------------------------------------------------------------------------------


def _report(
    series: Series, data: Path | None, lengths: Lengths, found: list[Found], plot: Path | None
) -> Iterator[Content]:
    yield heading(str(data) if data else "Weather of Seattle, 2012 to 2015")
    yield (
        f"{len(lengths)} windows of {lengths.min()} to {lengths.max()} steps out of {len(series.values)}; "
        f"standardised features: {', '.join(series.names)}"
    )
    if series.dropped:
        yield f"left out, since they hold no numbers: {', '.join(series.dropped)}"
    if series.constant:
        yield f"zero, since they never change: {', '.join(series.constant)}"
    for one in found:
        yield ""
        yield one
    yield ""
    rows = [(one.spec.cell, row) for one in found for row in one.rows]
    if different := dict.fromkeys(f"{cell} on {row.title}" for cell, row in rows if row.verdict == "differs"):
        yield Styled(f"different: {', '.join(different)}", "bold red")
    elif equal := dict.fromkeys(_held(row) for _, row in rows if row.verdict in ("equal", "explained")):
        what = "outputs, states, gradients and counts"
        if isinstance(found[0], Parity):
            what = "losses and final weights, but for what is explained above"
        yield Styled(f"equal: {what}, on {', '.join(equal)}", "bold green")
    if plot:
        yield f"picture: {plot}"


def _held(row: Row | Trained) -> str:
    """The backend's title; without gradients it says so."""
    return f"{row.title} (inference only)" if isinstance(row, Row) and row.gradient is None else row.title
