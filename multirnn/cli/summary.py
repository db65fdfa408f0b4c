"""`multirnn summary`: layers, output shapes and parameters, as users of `model.summary()` expect. Loads no framework."""

from math import prod
from typing import Any

import click
import numpy as np

from multirnn.cli import options
from multirnn.cli.console import heading, show, show_json, table
from multirnn.spec import RecurrentSpec

__all__ = ["command"]


@click.command(
    "summary",
    epilog="""
    \b
    Examples:
      multirnn summary --cell simple_rnn --input 10 --hidden 3 --time 2
      multirnn summary --cell lstm --input 10 --hidden 3 --layers 2 --bidirectional
      multirnn summary --cell gru --input 10 --hidden 3 --bias single --json
    """,
)
@options.one_stack
@options.count("--time", help="Time steps of the input.  [default: any number]")
@options.json_output
@options.debug
def command(time: int | None, as_json: bool, **fields: Any) -> None:
    """Show layers, output shapes and parameters.

    In shapes, None stands for the batch size. The sequence is the output at every step; the last state is the state at
    the end. Needs no framework.
    """
    spec = RecurrentSpec(**fields)
    layers = [_layer(spec, layer, time) for layer in range(spec.num_layers)]
    size = spec.parameter_count * np.dtype(spec.dtype).itemsize
    if as_json:
        show_json({"spec": spec.to_dict(), "layers": layers, "parameters": spec.parameter_count, "bytes": size})
        return
    made = table("layer", "sequence", "last state", "parameters", right=("parameters",))
    for found in layers:
        made.add_row(
            f"{found['name']} ({spec.cell})",
            str(tuple(found["sequence"])),
            "\n".join(f"{name} {tuple(shape)}" for name, shape in found["last_state"].items()),
            f"{found['parameters']:,}",
        )
    show(heading(repr(spec)), made, "", f"parameters: {spec.parameter_count:,} ({size:,} bytes of {spec.dtype})")


def _layer(spec: RecurrentSpec, layer: int, time: int | None) -> dict[str, Any]:
    """One layer as JSON values; None stands for any size."""
    suffixes = [f" {direction}" for direction in spec.directions] if spec.bidirectional else [""]
    return {
        "name": f"layers.{layer}",
        "sequence": [None, time, spec.output_size],
        "last_state": {f"{name}{suffix}": [None, spec.hidden_size] for suffix in suffixes for name in spec.form.states},
        "parameters": sum(prod(shape) for name, shape in spec.shapes.items() if name.startswith(f"layers.{layer}.")),
    }
