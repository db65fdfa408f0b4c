"""`multirnn backends`: what is installed, on which versions and devices, and what each refuses. Loads the frameworks."""

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from multirnn.activations import ACTIVATIONS, Activation
from multirnn.backend import Backend
from multirnn.cli import options
from multirnn.cli.console import heading, progress, show, show_json, table
from multirnn.errors import MissingFramework, MultirnnError
from multirnn.registry import backend as load
from multirnn.spec import BIASES, DTYPES, RecurrentSpec
from multirnn.testing import FORMS

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["command"]


@click.command(
    "backends",
    epilog="""
    \b
    Examples:
      multirnn backends
      multirnn backends --backend torch
      multirnn backends --json
    """,
)
@options.backends
@options.json_output
@options.debug
@click.pass_context
def command(ctx: click.Context, /, names: tuple[str, ...], as_json: bool) -> None:
    """Show what is installed, and what each backend refuses.

    A backend whose framework is not installed is shown with what to install. What a backend refuses is asked of itself,
    one field of a spec at a time.
    """
    with progress() as say:
        rows = [_row(ctx, name, say) for name in options.chosen(names)]
    if as_json:
        show_json({"backends": rows})
    else:
        show(*_report(rows))
    absent = [row["reason"] for row in rows if names and row["status"] != "installed"]
    for reason in absent:
        click.echo(f"Error: {reason}", err=True)
    ctx.exit(3 if absent else 0)


# --- What there is to say, in values that JSON has -------------------------------------------------------------------


# What an installed framework raises on import when it is broken: a module or library that it lacks, another version of one.
BROKEN = (ImportError, OSError, RuntimeError, AttributeError, MultirnnError)


def _row(ctx: click.Context, name: str, say: Callable[[str], None]) -> dict[str, Any]:
    say(f"loading {name}")
    try:
        backend = load(name)
    except MissingFramework as error:
        return {"name": name, "title": name, "status": "missing", "reason": str(error)}
    except BROKEN as error:
        if options.wants_traceback(ctx):
            traceback.print_exc()
        return {"name": name, "title": name, "status": "broken", "reason": f"{name}: {type(error).__name__}: {error}"}
    engine, devices = getattr(backend, "engine", None), getattr(backend, "devices", None)
    return {
        "name": name,
        "title": f"{name} ({engine})" if engine else name,
        "status": "installed",
        "reason": None,
        "versions": dict(backend.versions()),
        "devices": list(devices()) if devices else [],
        "differentiable": backend.differentiable,
        "refuses": list(_refusals(backend)),
    }


VALUES: Mapping[str, Sequence[Any]] = {
    "activation": [
        *(name for name in ACTIVATIONS if name != "hard_sigmoid"),
        *(Activation("hard_sigmoid", alpha=slope, beta=0.5) for slope in (0.2, 1 / 6)),
    ],
    "bias": BIASES,
    "num_layers": (2,),
    "bidirectional": (True,),
    "dtype": DTYPES,
}


def _refusals(backend: Backend) -> Iterator[dict[str, Any]]:
    """What it refuses of each cell: the field, its values, and the reason that it gives for the first of them."""
    for cell, reset_after in FORMS:
        base = RecurrentSpec(cell, 5, 3, reset_after=reset_after)
        form = base.form
        accepted = [bias for bias in BIASES if not backend.refuses(replace(base, bias=bias))]
        if not accepted:
            yield {"cell": form.title, "field": None, "reason": backend.refuses(base)}
            continue
        if base.bias not in accepted:
            base = replace(base, bias=accepted[0])
        gates = {"recurrent_activation": VALUES["activation"]} if len(form.gates) > 1 else {}
        for field, values in {**VALUES, **gates}.items():
            reasons = {str(value): backend.refuses(replace(base, **{field: value})) for value in values}
            if refused := {value: reason for value, reason in reasons.items() if reason}:
                yield {
                    "cell": form.title,
                    "field": field,
                    "values": list(refused),
                    "accepted": [value for value in reasons if value not in refused],
                    "reason": next(iter(refused.values())),
                }


# --- How it is shown -------------------------------------------------------------------------------------------------


def _report(rows: list[dict[str, Any]]) -> Iterator["RenderableType"]:
    made = table("backend", "status", "versions", "devices", "gradients")
    for row in rows:
        if row["status"] == "installed":
            versions = ", ".join(f"{package} {version}" for package, version in row["versions"].items())
            gradients = "yes" if row["differentiable"] else "no"
            made.add_row(row["title"], "installed", versions, ", ".join(row["devices"]) or "–", gradients)
        else:
            made.add_row(row["title"], row["status"], "–", "–", "–", style="yellow")
    yield heading("What is installed")
    yield made
    if reasons := [row["reason"] for row in rows if row["reason"]]:
        yield ""
        yield from reasons
    if running := [row for row in rows if row["status"] == "installed"]:
        yield ""
        yield heading("What they refuse")
        yield _shown_refusals(running)


def _shown_refusals(rows: list[dict[str, Any]]) -> "RenderableType":
    made = table("backend", "cell", "refuses")
    for row in rows:
        made.add_section()
        for place, refusal in enumerate(row["refuses"]):
            made.add_row("" if place else row["title"], refusal["cell"], _words(refusal))
        if not row["refuses"]:
            made.add_row(row["title"], "all", "nothing")
    return made


def _words(refusal: dict[str, Any]) -> str:
    """The values that are refused, or all but those that are accepted, whichever is shorter; of a whole cell the reason."""
    field = refusal["field"]
    if field is None:
        return str(refusal["reason"])
    if 0 < len(refusal["accepted"]) < len(refusal["values"]):
        return f"every {field} but {', '.join(refusal['accepted'])}"
    return f"{field} {', '.join(refusal['values'])}"
