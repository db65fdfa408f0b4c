"""`multirnn verify`: whether two files hold the same function. Loads no framework."""

from pathlib import Path

import click

from multirnn.cli import options
from multirnn.cli.console import progress, show, show_json
from multirnn.formats import verify

__all__ = ["command"]


@click.command(
    "verify",
    epilog="""
    \b
    Examples:
      multirnn verify model.pt model.keras
      multirnn verify both.npz encoder.safetensors --name-a encoder

    \b
    Exit status:
      0  both are the same function
      1  they differ
      2  a file cannot be read, or holds several stacks and none was named
    """,
)
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--name-a", metavar="NAME", help="Of the stack in A, if it holds several; `inspect` names them.")
@click.option("--name-b", metavar="NAME", help="Of the stack in B.")
@options.known("--known-a", "A")
@options.known("--known-b", "B")
@options.json_output
@options.debug
@click.pass_context
def command(
    ctx: click.Context,
    a: Path,
    b: Path,
    name_a: str | None,
    name_b: str | None,
    known_a: dict[str, str | bool],
    known_b: dict[str, str | bool],
    as_json: bool,
) -> None:
    """Say whether the recurrent layers of two files are the same function.

    Compares the canonical arrays, then outputs and gradients on drawn inputs. If they differ, says how far, where, and
    which known mistake explains it. Needs no framework.
    """
    with progress() as say:
        say(f"comparing {a} and {b}")
        found = verify(a, b, name_a=name_a, name_b=name_b, known_a=known_a, known_b=known_b)
    if as_json:
        show_json(found.to_dict())
    else:
        show(str(found))
    ctx.exit(0 if found.ok else 1)
