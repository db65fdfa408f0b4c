"""`multirnn backends`: installed backends with versions, devices and refusals. Loads the frameworks."""

import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import click

from multirnn.cells import CELLS, FORMS
from multirnn.cli import options
from multirnn.cli.console import heading, progress, show, show_json, table
from multirnn.protocol import abilities
from multirnn.registry import Absent, present
from multirnn.spec import BIASES, RecurrentSpec
from multirnn.support import AXES, Support, ask, axis_value
from multirnn.support_table import summarise
from multirnn.tables import Content, Styled, Table

__all__ = ["command"]


@click.command(
    "backends",
    epilog="""
    \b
    Examples:
      multirnn backends
      multirnn backends --support
      multirnn backends --support --cell gru --backend keras --backend torch
      multirnn backends --json

    \b
    Exit status:
      0  all that is installed was asked
      2  used wrongly, or could not run
      3  a backend named with --backend is missing or broken
    """,
)
@click.option("--support", "whole", is_flag=True, help="Show all that each one takes, and every reason for a refusal.")
@options.cell_names("Ask about this cell only")
@options.backends
@options.json_output
@options.debug
@click.pass_context
def command(ctx: click.Context, /, whole: bool, cells: tuple[str, ...], names: tuple[str, ...], as_json: bool) -> None:
    """Show what is installed, and what each backend refuses.

    A missing framework is shown with the command that installs it. Each backend is asked about every combination of
    cell, bias, layers, directions, activations and dtype. --support shows all answers; the default shows refusals that
    depend on one field of a spec.
    """
    with progress() as say:
        found = [_found(ctx, name, cells or tuple(CELLS), say) for name in options.chosen(names)]
    if whole and as_json:
        show_json(_support_data(found))
    elif whole:
        show(*_support_report(found))
    elif as_json:
        show_json({"backends": _rows(found)})
    else:
        show(*_report(_rows(found)))
    absent = [row["reason"] for row, _ in found if names and row["reason"]]
    for reason in absent:
        click.echo(f"Error: {reason}", err=True)
    ctx.exit(3 if absent else 0)


# --- As JSON ---------------------------------------------------------------------------------------------------------


Found = tuple[dict[str, Any], Support | None]
"""A backend as JSON values, and its answers unless it could not be asked."""


def _found(ctx: click.Context, name: str, cells: tuple[str, ...], say: Callable[[str], None]) -> Found:
    say(f"loading {name}")
    backend = present(name)
    if isinstance(backend, Absent):
        broken = backend.verdict == "broken"
        if broken and options.wants_traceback(ctx):
            traceback.print_exception(backend.error)
        reason = f"{name}: {backend.reason}" if broken else backend.reason
        return {"name": name, "title": name, "status": backend.verdict, "reason": reason}, None
    say(f"asking {name}")
    support = ask(backend, cells)
    row = {"name": name, "title": support.title, "status": "installed", "reason": None}
    about = {"versions": dict(backend.versions()), "devices": list(abilities(backend).devices())}
    return {**row, **about, "differentiable": support.differentiable}, support


def _rows(found: list[Found]) -> list[dict[str, Any]]:
    return [{**row, "refuses": list(_refusals(support))} if support else row for row, support in found]


def _refusals(support: Support) -> Iterator[dict[str, Any]]:
    """The refused values of each cell: the field, its values, and the reason for the first of them."""
    for name in support.axes["form"]:
        form = FORMS[name]
        base = RecurrentSpec(form.name, 5, 3, reset_after=form.reset_after)
        accepted = [bias for bias in BIASES if not support.refuses(replace(base, bias=bias))]
        if not accepted:
            yield {"cell": form.title, "field": None, "reason": support.refuses(base)}
            continue
        if base.bias not in accepted:
            base = replace(base, bias=accepted[0])
        for axis, values in list(AXES.items())[1:]:
            if axis == "recurrent_activation" and len(form.gates) == 1:
                continue
            reasons = {str(value): support.refuses(replace(base, **{axis: value})) for value in values}
            if refused := {value: reason for value, reason in reasons.items() if reason}:
                yield {
                    "cell": form.title,
                    "field": axis,
                    "values": list(refused),
                    "accepted": [value for value in reasons if value not in refused],
                    "reason": next(iter(refused.values())),
                }


def _support_data(found: list[Found]) -> dict[str, Any]:
    """All answers: a spec of the axes is refused if it fits a rule, for the reason of the first one, else accepted."""
    axes = next((support.axes for _, support in found if support), AXES)
    return {
        "axes": {axis: [axis_value(value) for value in values] for axis, values in axes.items()},
        "forms": {name: {"cell": form.name, "reset_after": form.reset_after} for name, form in FORMS.items()},
        "backends": [{**row, **(support.to_dict() if support else {})} for row, support in found],
    }


# --- How it is shown -------------------------------------------------------------------------------------------------


def _report(rows: list[dict[str, Any]]) -> Iterator[Content]:
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


def _shown_refusals(rows: list[dict[str, Any]]) -> Table:
    made = table("backend", "cell", "refuses")
    for row in rows:
        made.add_section()
        for place, refusal in enumerate(row["refuses"]):
            made.add_row("" if place else row["title"], refusal["cell"], _words(refusal))
        if not row["refuses"]:
            made.add_row(row["title"], "all", "nothing")
    return made


def _words(refusal: dict[str, Any]) -> str:
    """The refused values, or "every … but" the accepted ones; for a whole cell, the reason."""
    field = refusal["field"]
    if field is None:
        return str(refusal["reason"])
    if 0 < len(refusal["accepted"]) < len(refusal["values"]):
        return f"every {field} but {', '.join(refusal['accepted'])}"
    return f"{field} {', '.join(refusal['values'])}"


def _support_report(found: list[Found]) -> Iterator[Content]:
    supports = [support for _, support in found if support]
    if supports:
        summary = summarise(supports)
        made = Table("cell", "bias", *summary.titles, keys=2)
        for lines in (summary.cells, summary.fields):
            before = ""
            for line in lines:
                answers = (Styled(one, "yellow" if one.notes or one.text == "no" else "") for one in line.answers)
                made.add_row("" if line.label == before else line.label, line.of, *answers)
                before = line.label
            made.add_section()
        yield heading("What each backend takes")
        yield made
        yield ""
        yield f"all activations: {', '.join(map(str, AXES['activation']))}"
        if summary.notes:
            yield ""
            yield heading("Why not the rest")
            rows = ((f"[{note.number}]", note.backend, note) for note in summary.notes)
            yield table("", "backend", "reason", rows=rows)
    if absent := [row for row, _ in found if row["reason"]]:
        yield ""
        yield heading("What could not be asked")
        missing = table("backend", "status", "reason")
        for one in absent:
            missing.add_row(one["name"], one["status"], one["reason"], style="yellow")
        yield missing
