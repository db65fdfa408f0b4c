"""`multirnn backends`: what is installed, on which versions and devices, and what each refuses. Loads the frameworks."""

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import click

from multirnn.cells import CELLS, FORMS
from multirnn.cli import options
from multirnn.cli.console import heading, progress, show, show_json, table
from multirnn.protocol import abilities
from multirnn.registry import Absent, present
from multirnn.spec import BIASES, RecurrentSpec
from multirnn.support import AXES, Support, ask, axis_value
from multirnn.support_table import Entry, Row, summarise
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
@click.option(
    "--support", "whole", is_flag=True, help="The table of all that each one takes, with every reason why not."
)
@click.option(
    "--cell",
    "cells",
    type=click.Choice(list(CELLS)),
    multiple=True,
    help="Ask about this cell only; may be repeated.  [default: all]",
)
@options.backends
@options.json_output
@options.debug
@click.pass_context
def command(ctx: click.Context, /, whole: bool, cells: tuple[str, ...], names: tuple[str, ...], as_json: bool) -> None:
    """Show what is installed, and what each backend refuses.

    A backend whose framework is not installed is shown with what to install. What a backend refuses is asked of itself,
    about every combination of cell, bias, layers, directions, activations and dtype: --support shows all its answers,
    otherwise one field of a spec at a time is shown.
    """
    with progress() as say:
        found = [_found(ctx, name, cells or tuple(CELLS), say) for name in options.chosen(names)]
    if whole and as_json:
        show_json(_support_data(found))
    elif whole:
        show(*_support_report(found))
    elif as_json:
        show_json({"backends": [_row(one) for one in found]})
    else:
        show(*_report([_row(one) for one in found]))
    absent = [one.reason for one in found if names and one.reason]
    for reason in absent:
        click.echo(f"Error: {reason}", err=True)
    ctx.exit(3 if absent else 0)


# --- What there is to say, in values that JSON has -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Found:
    """A backend by its name: what it answered, or the reason why it could not be asked."""

    name: str
    status: str
    reason: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    devices: tuple[str, ...] = ()
    support: Support | None = None

    def to_dict(self) -> dict[str, Any]:
        """What is there, without what it refuses."""
        values = {"name": self.name, "title": self.name, "status": self.status, "reason": self.reason}
        if self.support is None:
            return values
        about = {"versions": dict(self.versions), "devices": list(self.devices)}
        return {**values, "title": self.support.title, **about, "differentiable": self.support.differentiable}


def _found(ctx: click.Context, name: str, cells: tuple[str, ...], say: Callable[[str], None]) -> Found:
    say(f"loading {name}")
    backend = present(name)
    if isinstance(backend, Absent):
        if backend.verdict == "broken" and options.wants_traceback(ctx):
            traceback.print_exception(backend.error)
        broken = backend.verdict == "broken"
        return Found(name, backend.verdict, f"{name}: {backend.reason}" if broken else backend.reason)
    say(f"asking {name}")
    return Found(name, "installed", None, backend.versions(), tuple(abilities(backend).devices()), ask(backend, cells))


def _row(one: Found) -> dict[str, Any]:
    return one.to_dict() if one.support is None else {**one.to_dict(), "refuses": list(_refusals(one.support))}


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
    axes = next((one.support.axes for one in found if one.support), AXES)
    return {
        "axes": {axis: [axis_value(value) for value in values] for axis, values in axes.items()},
        "forms": {name: {"cell": form.name, "reset_after": form.reset_after} for name, form in FORMS.items()},
        "backends": [{**one.to_dict(), **(one.support.to_dict() if one.support else {})} for one in found],
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
    """The values that are refused, or all but those that are accepted, whichever is shorter; of a whole cell the reason."""
    field = refusal["field"]
    if field is None:
        return str(refusal["reason"])
    if 0 < len(refusal["accepted"]) < len(refusal["values"]):
        return f"every {field} but {', '.join(refusal['accepted'])}"
    return f"{field} {', '.join(refusal['values'])}"


def _support_report(found: list[Found]) -> Iterator[Content]:
    supports = [one.support for one in found if one.support]
    if supports:
        summary = summarise(supports)
        made = Table("cell", "bias", *summary.titles, keys=2)
        _add_rows(made, summary.cells)
        _add_rows(made, summary.fields)
        yield heading("What each backend takes")
        yield made
        yield ""
        yield f"all activations: {', '.join(map(str, AXES['activation']))}"
        if summary.notes:
            yield ""
            yield heading("Why not the rest")
            reasons = table("", "backend", "reason")
            for note in summary.notes:
                reasons.add_row(f"[{note.number}]", note.backend, str(note))
            yield reasons
    if absent := [one for one in found if one.reason]:
        yield ""
        yield heading("What could not be asked")
        missing = table("backend", "status", "reason")
        for one in absent:
            missing.add_row(one.name, one.status, one.reason, style="yellow")
        yield missing


def _add_rows(made: Table, rows: Sequence[Row]) -> None:
    before = ""
    for row in rows:
        again, before = row.label == before, row.label
        made.add_row("" if again else row.label, row.of, *map(_entry, row.entries))
    made.add_section()


def _entry(entry: Entry) -> Styled:
    return Styled(entry, "yellow" if entry.notes or entry.text == "no" else "")
