"""The options that commands share: the fields of a `RecurrentSpec`, `--backend`, `--json` and `--debug`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

import multirnn as mr
from multirnn.activations import ACTIVATIONS, Activation
from multirnn.cells import CELLS
from multirnn.convention import UNTOLD
from multirnn.errors import InvalidSpec
from multirnn.spec import BIASES, DTYPES

__all__ = [
    "POSITIVE", "backends", "cell_names", "chosen", "count", "debug", "file", "hidden", "json_output", "known",
    "one_cell", "one_stack", "seed", "stack", "wants_traceback",
]  # fmt: skip

Command = TypeVar("Command", bound=Callable[..., Any])

POSITIVE = click.IntRange(min=1)


def count(*names: str, least: int = 1, **settings: Any) -> Callable[[Command], Command]:
    """An option that takes a whole number."""
    return click.option(*names, type=click.IntRange(min=least), metavar="N", show_default=True, **settings)


def hidden(**settings: Any) -> Callable[[Command], Command]:
    """The size of the layers."""
    return count("--hidden", "hidden_size", help="Units of each layer and direction.", **settings)


def seed(of: str) -> Callable[[Command], Command]:
    """The seed of what is drawn."""
    return count("--seed", least=0, default=0, help=f"Of {of}.")


def file(name: str, text: str) -> Callable[[Command], Command]:
    """A file to read or write."""
    return click.option(name, type=click.Path(path_type=Path), metavar="FILE", help=text)


def one_cell(**settings: Any) -> Callable[[Command], Command]:
    """A cell by its name."""
    return click.option("--cell", type=click.Choice(list(CELLS)), **settings)


def cell_names(what: str) -> Callable[[Command], Command]:
    """Cells, all of them unless named."""
    return click.option(
        "--cell",
        "cells",
        type=click.Choice(list(CELLS)),
        multiple=True,
        help=f"{what}; may be repeated.  [default: all]",
    )


def one_stack(command: Command) -> Command:
    """All fields of one spec."""
    return _with(
        stack(command),
        one_cell(required=True, help="The recurrent cell."),
        count("--input", "input_size", required=True, help="Features of the input."),
        hidden(required=True),
    )


def stack(command: Command) -> Command:
    """The fields of a spec that are optional in every command."""
    return _with(
        command,
        count("--layers", "num_layers", default=1, help="Stacked layers."),
        click.option("--bidirectional", is_flag=True, help="Run forward and backward in time."),
        click.option(
            "--bias",
            type=click.Choice(BIASES),
            callback=lambda ctx, param, value: value or "",
            help="None, one or two for every gate.  [default: the cell's own]",
        ),
        click.option(
            "--reset-after/--reset-before",
            default=True,
            help="GRU: the reset gate acts after or before the recurrent product.  [default: after]",
        ),
        _an_activation(
            "--activation",
            "tanh",
            f"Of the candidate: {', '.join(ACTIVATIONS)}. hard_sigmoid needs slope and offset: hard_sigmoid:1/6,0.5.",
        ),
        _an_activation("--recurrent-activation", "sigmoid", "Of the gates of an LSTM or GRU."),
        click.option(
            "--dtype", type=click.Choice(DTYPES), default="float32", show_default=True, help="Of all numbers."
        ),
    )


def _an_activation(name: str, default: str, text: str) -> Callable[[Command], Command]:
    shape = "NAME[:ALPHA[,BETA]]"
    return click.option(name, metavar=shape, callback=_activation, default=default, show_default=True, help=text)


def _activation(ctx: click.Context, param: click.Parameter, value: str) -> str | Activation:
    """The activation that `NAME`, `NAME:ALPHA` or `NAME:ALPHA,BETA` stands for; a number may be 0.2 or 1/6."""
    name, colon, numbers = value.partition(":")
    example = "as in hard_sigmoid:1/6,0.5"
    try:
        parameters = [_number(number) for number in numbers.split(",")] if colon else []
        return Activation(name, *parameters).short
    except InvalidSpec as error:
        needs_numbers = not colon and name in ACTIVATIONS
        raise click.BadParameter(
            f"{error}; here it is written with them, {example}" if needs_numbers else str(error)
        ) from None
    except (TypeError, ValueError, ZeroDivisionError):
        raise click.BadParameter(f"after {name!r} come one or two numbers, {example}, not {numbers!r}") from None


def _number(text: str) -> float:
    numerator, _, denominator = text.partition("/")
    return float(numerator) / float(denominator or 1)


backends = click.option(
    "--backend",
    "names",
    multiple=True,
    metavar="NAME",
    help="Only this backend; may be repeated.  [default: all that are installed]",
)
"""A selection of backends, by name."""


def chosen(names: tuple[str, ...]) -> tuple[str, ...]:
    """The backends that were named, or all that are installed; loads none."""
    for name in names:
        if name not in mr.backends():
            mr.backend(name)  # has the sentence
    return tuple(dict.fromkeys(names)) or mr.backends()


def known(option: str, of: str) -> Callable[[Command], Command]:
    """What a file does not say of its stack, as `NAME=VALUE`."""
    return click.option(
        option,
        multiple=True,
        metavar="NAME=VALUE",
        callback=_known,
        help=f"What {of} does not say: {', '.join(UNTOLD)}, as in reset_after=false; may be repeated.",
    )


def _known(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str | Activation | bool]:
    found: dict[str, str | Activation | bool] = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not equals or name not in UNTOLD:
            raise click.BadParameter(f"write NAME=VALUE with a NAME out of {', '.join(UNTOLD)}, not {value!r}")
        if name.endswith("activation"):
            found[name] = _activation(ctx, param, text)
        elif name in ("reset_after", "transposed"):
            if text not in ("true", "false"):
                raise click.BadParameter(f"{name} is true or false, not {text!r}")
            found[name] = text == "true"
        else:
            found[name] = text
    return found


json_output = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")

_DEBUG = "multirnn.debug"


def _remember(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta[_DEBUG] = True  # shared by the contexts of the group and of the command


debug = click.option("--debug", is_flag=True, expose_value=False, callback=_remember, help="Show tracebacks.")
"""Accepted before and after the command."""


def wants_traceback(ctx: click.Context) -> bool:
    """Whether `--debug` was given."""
    return bool(ctx.meta.get(_DEBUG))


def _with(command: Command, *options: Callable[[Command], Command]) -> Command:
    """The command with these options, in the order of `--help`."""
    for option in reversed(options):
        command = option(command)
    return command
