"""`multirnn diagnose`: names the mistake that makes two layers differ, and the fix."""

import os
import sys
from collections.abc import Iterable
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any

import click

from multirnn import formats
from multirnn.adoption import AdoptedLayer, adopt, known_spec
from multirnn.cells import CELLS
from multirnn.cli import options
from multirnn.cli.console import heading, progress, show, show_json, table
from multirnn.diagnosis import Diagnosis, diagnose, first_divergence
from multirnn.errors import InvalidCall, Unsupported, meant
from multirnn.mistakes import MISTAKES, mistakes_for
from multirnn.mistakes.change import Mistake
from multirnn.mistakes.plumbing import Plumbing
from multirnn.plot import picture_format, plot_divergence, write_figure
from multirnn.registry import backend
from multirnn.samples import seattle_weather
from multirnn.spec import RecurrentSpec
from multirnn.testing.mutation import Mutant
from multirnn.weights import Weights, initialise

__all__ = ["command"]


@click.command(
    "diagnose",
    epilog="""
    \b
    Examples:
      multirnn diagnose numpy torch --cell gru --hidden 8
      multirnn diagnose numpy torch --cell gru --hidden 8 --mistake "gates z r n"
      multirnn diagnose --list --cell lstm --input 4 --hidden 8

    \b
    Of your own, in model.py of this folder (an import path, as web servers take them):
      $ multirnn diagnose model:right model:port

    \b
    Exit status:
      0  the two are the same function
      1  they differ
      2  used wrongly, or could not run
      3  a backend that was asked for is missing or refuses
    """,
)
@click.argument("a", required=False)
@click.argument("b", required=False)
@options.one_cell(help="The recurrent cell; of a backend, which has to build one.")
@options.count(
    "--input",
    "input_size",
    default=4,
    help="Features of the input; 4 is the weather of Seattle, on which the two are compared then, too.",
)
@options.hidden()
@options.stack
@click.option(
    "--mistake",
    "names",
    multiple=True,
    metavar="NAME",
    help="Plant this mistake in B, a backend, to see it found; may be repeated. --list names them.",
)
@options.seed("weights and calls")
@click.option("--list", "list_them", is_flag=True, help="List the known mistakes; with --cell, those of that stack.")
@options.file("--plot", "Write a picture of where they part.")
@options.file("--save", "Write weights with which B is right; the suffix tells the format, as in fixed.safetensors.")
@options.json_output
@options.debug
@click.pass_context
def command(
    ctx: click.Context,
    /,
    a: str | None,
    b: str | None,
    cell: str | None,
    hidden_size: int | None,
    names: tuple[str, ...],
    seed: int,
    list_them: bool,
    plot: Path | None,
    save: Path | None,
    as_json: bool,
    **fields: Any,
) -> None:
    """Name the mistake that makes two layers differ.

    A is the right side, B the suspect. Each is a backend, which builds the stack of the options (as B, with A's weights),
    or module:object: a multirnn layer, a framework's own layer or, as B, a function f(x, h0) -> (y, h) on NumPy arrays.
    The module is imported, from the current folder first, and so runs.
    """
    spec = _spec(cell, hidden_size, fields)
    if list_them:
        _list(MISTAKES.values() if spec is None else mistakes_for(spec), as_json)
        return
    if a is None or b is None:
        raise click.UsageError("name two sides, A and B, or ask for the --list of mistakes.")
    _check_files(plot, save)
    with progress() as say:
        say(f"loading {a} and {b}")
        right, wrong = _sides(a, b, spec, names, seed)
        say("asking B")
        spec = None if known_spec(wrong) else spec
        found = diagnose(right, wrong, spec=spec, seed=seed, **_weather(right, wrong, spec, seed))
        if plot:
            say("looking for where they part")
            write_figure(plot_divergence(found.divergence or first_divergence(right, wrong, seed=seed)), plot)
    saved = bool(save and found.corrected)
    if save and found.corrected:
        formats.save(found.corrected, save)
    if as_json:
        show_json({**found.to_dict(), "saved": str(save) if saved else None, "picture": str(plot) if plot else None})
    else:
        show(found, *_written(found, plot, save, saved))
    ctx.exit(0 if found.equal else 1)


def _spec(cell: str | None, hidden_size: int | None, fields: dict[str, Any]) -> RecurrentSpec | None:
    """The stack that the options describe; None where they name no cell."""
    if (cell is None) != (hidden_size is None):
        raise click.UsageError(
            f"--cell and --hidden belong together; --{'cell' if cell is None else 'hidden'} is missing."
        )
    if cell is None or hidden_size is None:
        return None
    return RecurrentSpec(CELLS[cell].name, hidden_size=hidden_size, **fields)


def _list(mistakes: Iterable[Mistake], as_json: bool) -> None:
    found = list(mistakes)
    if as_json:
        plain = ("name", "family", "shows", "says", "fix")
        show_json({"mistakes": [{field: getattr(mistake, field) for field in plain} for mistake in found]})
        return
    rows = ((mistake.name, mistake.family, f"{mistake.says}.") for mistake in found)
    show(heading(f"{len(found)} known mistakes"), table("mistake", "of a family", "B", rows=rows))


# --- What is compared ------------------------------------------------------------------------------------------------


def _sides(a: str, b: str, spec: RecurrentSpec | None, names: tuple[str, ...], seed: int) -> tuple[Any, Any]:
    """The right side and the suspect."""
    if names and ":" in b:
        raise click.UsageError(f"--mistake is planted in a backend, and B is {b}.")
    if ":" in a:
        right = _imported(a)
    elif spec is None:
        raise click.UsageError(f"the backend {a!r} builds the stack of --cell and --hidden; give both.")
    else:
        right = AdoptedLayer(backend(a).build(initialise(spec, seed)), a)
    return right, _imported(b) if ":" in b else _planted(b, names, adopt(right).weights())


def _planted(name: str, mistakes: tuple[str, ...], weights: Weights) -> AdoptedLayer:
    """A backend's layer of these weights, with mistakes in it."""
    # Mistakes in the plumbing are innermost, nearest to the framework.
    made = sorted((_mistake(m, weights.spec) for m in mistakes), key=lambda m: not isinstance(m.realise, Plumbing))
    wrong = backend(name)
    for mistake in made:
        wrong = Mutant(wrong, mistake)
    layer = wrong.build(weights)
    while isinstance(wrong, Mutant):
        if weights.spec not in wrong.built:
            raise Unsupported(f"backend {name!r} cannot be made wrong by {wrong.mistake.name!r} here: it refuses that")
        wrong = wrong.inner
    return AdoptedLayer(layer, f"{name} made wrong ({', '.join(m.name for m in made)})" if made else name)


def _mistake(name: str, spec: RecurrentSpec) -> Mistake:
    if name not in MISTAKES:
        raise InvalidCall(f"no mistake is named {name!r}{meant(name, MISTAKES) or '; --list names them all'}")
    if not MISTAKES[name].applies(spec):
        raise InvalidCall(f"the mistake {name!r} makes no difference to {spec!r}")
    return MISTAKES[name]


def _imported(path: str) -> Any:
    """The object at `module:object`."""
    module, _, attributes = path.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = import_module(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there, and something that it needs is not
        raise InvalidCall(f"{path}: there is no module {error.name!r}, neither in this folder nor installed") from error
    except ValueError as error:
        raise InvalidCall(f"{path}: write module:object, as in model:port") from error
    try:
        return attrgetter(attributes)(found)
    except AttributeError as error:
        raise InvalidCall(f"{path}: {module} has no {attributes!r}; write module:object, as in model:port") from error


def _weather(right: Any, wrong: Any, spec: RecurrentSpec | None, seed: int) -> dict[str, Any]:
    """A call on real data, if the number of features fits; else none."""
    known = known_spec(wrong) or spec or adopt(right).spec
    series = seattle_weather().standardised()
    if known.input_size != len(series.names):
        return {}
    x, lengths = series.windows(5, longest=12, seed=seed)
    takes_lengths = adopt(wrong, spec=None if known_spec(wrong) else known).takes_lengths
    return {"x": x, "lengths": lengths if takes_lengths else None}


# --- What is written -------------------------------------------------------------------------------------------------


def _check_files(plot: Path | None, save: Path | None) -> None:
    """Refuse files that cannot be written, before anything is computed."""
    if plot:
        picture_format(plot)
    if save:
        formats.writable(save)
    if save and not save.parent.is_dir():
        raise InvalidCall(f"{save}: there is no folder {save.parent}; make it first")


def _written(found: Diagnosis, plot: Path | None, save: Path | None, saved: bool) -> Iterable[str]:
    if plot:
        yield f"picture: {plot}"
    if saved:
        yield f"weights with which B is right: {save}"
    elif save:
        yield "no weights are written: " + ("B is right as it is" if found.equal else "none make B right")
