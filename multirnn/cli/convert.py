"""`multirnn convert`: writes the recurrent layers of a file in another format. Loads no framework."""

from pathlib import Path

import click

from multirnn.cli import options
from multirnn.cli.console import progress, show, show_json
from multirnn.conventions import CONVENTIONS
from multirnn.formats import convert, verify

__all__ = ["command"]


@click.command(
    "convert",
    epilog="""
    \b
    Examples:
      multirnn convert model.pt model.keras --verify
      multirnn convert both.npz encoder.safetensors --name encoder
      multirnn convert model.keras model.npz --to torch
      multirnn convert model.pt model.keras --known activation=relu

    \b
    Exit status:
      0  written
      1  written, and --verify found a difference
      2  a file cannot be read or written, or the target cannot hold the weights
    """,
)
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--name", metavar="NAME", help="Of the stack in SOURCE, if it holds several; `inspect` names them.")
@click.option(
    "--to",
    "convention",
    type=click.Choice(["canonical", *CONVENTIONS]),
    metavar="CONVENTION",
    help=f"How the arrays lie in TARGET: canonical, {', '.join(CONVENTIONS)}.  [default: as its format has them]",
)
@options.known("--known", "SOURCE")
@click.option("--verify", "check", is_flag=True, help="Read TARGET again and compare it with SOURCE.")
@options.json_output
@options.debug
@click.pass_context
def command(
    ctx: click.Context,
    source: Path,
    target: Path,
    name: str | None,
    convention: str | None,
    known: dict[str, str | bool],
    check: bool,
    as_json: bool,
) -> None:
    """Write the recurrent layers of a file in another format.

    The suffix of TARGET tells the format. What the target cannot hold is refused with the reason; a change in the form
    of the biases is said. TARGET appears whole or not at all. Needs no framework.
    """
    with progress() as say:
        say(f"converting {source}")
        written = convert(source, target, name=name, to=convention, **known)
        verified = None
        if check:
            say(f"comparing {source} and {target}")
            spec = written.spec
            form = {"reset_after": spec.reset_after} if spec.cell == "gru" else {}
            verified = verify(source, target, name_a=name, known_a=known, known_b=form)
    if as_json:
        show_json({**written.to_dict(), "verification": verified.to_dict() if verified else None})
    else:
        show(
            f"{target}: {written.spec!r}, {written.spec.parameter_count:,} parameters, convention {written.convention}",
            *(f"{change}." for change in written.changes),
            *([str(verified)] if verified else []),
        )
    ctx.exit(0 if verified is None or verified.ok else 1)
