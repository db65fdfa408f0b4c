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
      0  the file holds at least one recurrent stack that can be loaded
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
            made.add_row(one.name or "–", *_row(one), one.convention, one.stored)
        notes = ((one.name, (*one.about, *([one.refused] if one.refused else []))) for one in found)
        show(made, *(f"\n{name + ': ' if name else ''}{'; '.join(texts)}." for name, texts in notes if texts))
    ctx.exit(0 if any(one.spec for one in found) else 1)


def _row(found: Found) -> tuple[str, str, str, str]:
    """Cell, sizes, bias and number of parameters of a stack; dashes where no spec describes it."""
    if (spec := found.spec) is None:
        return "refused", "–", "–", "–"
    layers = f", {spec.num_layers} layers" if spec.num_layers > 1 else ""
    both = ", both directions" if spec.bidirectional else ""
    sizes = f"{spec.input_size} → {spec.hidden_size}{layers}{both}"
    return spec.form.form, sizes, spec.bias, f"{spec.parameter_count:,}"
