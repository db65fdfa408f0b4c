"""`multirnn inspect`: the recurrent stacks in a file. Loads no framework."""

from pathlib import Path

import click

from multirnn.cli import options
from multirnn.cli.console import progress, show, show_json, table
from multirnn.formats import Found, inspect

__all__ = ["command"]


@click.command(
    "inspect",
    epilog="""
    \b
    Examples:
      multirnn inspect checkpoint.pt
      multirnn inspect model.onnx --json

    \b
    Exit status:
      0  the file holds at least one recurrent stack
      1  it holds none that is known
      2  it cannot be read
    """,
)
@click.argument("file", type=click.Path(path_type=Path))
@options.json_output
@options.debug
@click.pass_context
def command(ctx: click.Context, file: Path, as_json: bool) -> None:
    """Show the recurrent stacks in a file.

    Reads safetensors, .npz, PyTorch's .pt and .pth, Keras' .keras, .weights.h5 and .h5, Flax' .msgpack, ONNX, and the
    JSON of RTNeural and NAM. Nothing in the file is executed. Needs no framework.
    """
    with progress() as say:
        say(f"reading {file}")
        found = inspect(file)
    if as_json:
        show_json({"file": str(file), "stacks": [one.to_dict() for one in found]})
    elif not found:
        show(f"{file} holds no recurrent stack that is known here.")
    else:
        made = table("name", "cell", "sizes", "bias", "parameters", "convention", "stored", right=("parameters",))
        for one in found:
            spec = one.spec
            made.add_row(
                one.name or "–",
                spec.form.form,
                sizes(one),
                spec.bias,
                f"{one.parameter_count:,}",
                one.convention,
                one.stored,
            )
        notes = dict.fromkeys(f"{one.name}: {text}" if one.name else text for one in found for text in one.about)
        show(made, *(f"\n{note}." for note in notes))
    ctx.exit(0 if found else 1)


def sizes(found: Found) -> str:
    """Of a stack, as in "40 → 256, 3 layers, both directions"."""
    spec = found.spec
    layers = f", {spec.num_layers} layers" if spec.num_layers > 1 else ""
    return f"{spec.input_size} → {spec.hidden_size}{layers}{', both directions' if spec.bidirectional else ''}"
