"""`multirnn explain`: why 45 here and 42 there, and which array is which.

Reads the tables of cells and conventions; loads no framework.
"""

from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import Any

import click

from multirnn.cells import Bias
from multirnn.cli import options
from multirnn.cli.console import heading, show, show_json, table
from multirnn.conventions import CONVENTIONS, Convention
from multirnn.packing import layout
from multirnn.spec import BIASES, RecurrentSpec
from multirnn.tables import Column, Content, Styled, Table

__all__ = ["command"]


@click.command(
    "explain",
    epilog="""
    \b
    Examples:
      multirnn explain --cell simple_rnn --input 10 --hidden 3
      multirnn explain --cell gru --input 10 --hidden 3 --reset-before
      multirnn explain --cell lstm --input 10 --hidden 3 --bias double --json
    """,
)
@options.one_stack
@options.json_output
@options.debug
def command(as_json: bool, **fields: Any) -> None:
    """Say why frameworks count differently, and which array is which.

    Shows the equations, the number of parameters with one bias, with two and without, what each framework does by
    default, the order of its gates, and the names and shapes of its arrays. With --bias, arrays are shown in that form
    of the bias where the framework has it. Needs no framework.
    """
    spec = RecurrentSpec(**fields)
    counts = [_count(spec, bias) for bias in BIASES]
    frameworks = [_framework(convention, spec, bool(fields["bias"])) for convention in _holding(spec)]
    if as_json:
        cell = {"title": spec.form.title, "gates": spec.form.gates, "equations": spec.form.equations}
        show_json({"spec": spec.to_dict(), "cell": cell, "counts": counts, "frameworks": frameworks})
        return
    parts = [_equations(spec), _counts(spec, counts), _gates(spec), _arrays(spec, frameworks)]
    if len(spec.form.gates) == 1:
        del parts[2]
    show(*(line for part in parts for line in (*part, "")))


def _holding(spec: RecurrentSpec) -> list[Convention]:
    """The conventions that have the cell, in one form or another."""
    return [convention for convention in CONVENTIONS.values() if spec.cell in convention.gates]


# --- As JSON ---------------------------------------------------------------------------------------------------------


def _count(spec: RecurrentSpec, bias: Bias) -> dict[str, Any]:
    """The parameter count for one form of the biases, and the frameworks whose default it is."""
    form, passes = spec.form, spec.num_layers * len(spec.directions)
    biases = {"none": [], "single": [len(form.gates)], "double": [2, len(form.gates)]}[bias]
    terms = [_product(passes, *biases, spec.hidden_size)] if biases else []
    if bias == "single" and form.recurrent_candidate_bias:
        terms.append(_product(passes, spec.hidden_size))
    by_default = [
        convention.name
        for convention in _holding(spec)
        if (default := convention.by_default(spec)).bias == bias
        and not convention.refuses(default)
        and spec.form.form not in convention.zero
    ]
    return {
        "bias": bias,
        "weights": " + ".join(_weights(spec)),
        "biases": " + ".join(terms),
        "parameters": replace(spec, bias=bias).parameter_count,
        "default_of": [*(["multirnn"] if form.default_bias == bias else []), *by_default],
    }


def _weights(spec: RecurrentSpec) -> Iterator[str]:
    """The number of weights as products: the lowest layer, then the layers above it."""
    gates, hidden, directions = len(spec.form.gates), spec.hidden_size, len(spec.directions)
    yield _product(directions, gates, hidden, f"({spec.input_size} + {hidden})")
    if spec.num_layers > 1:
        yield _product((spec.num_layers - 1) * directions, gates, hidden, f"({spec.output_size} + {hidden})")


def _product(passes: int, *factors: int | str) -> str:
    """Factors joined by ×; a single pass is left out."""
    return " × ".join(str(factor) for factor in ((passes, *factors) if passes > 1 else factors))


def _framework(convention: Convention, spec: RecurrentSpec, bias_given: bool) -> dict[str, Any]:
    """How a framework stores the stack, with the given form of the biases or its own default."""
    held = spec if bias_given else convention.by_default(spec)
    refused = convention.refuses(held)
    places = () if refused else layout(held, convention=convention)
    return {
        "name": convention.name,
        "title": convention.title,
        "bias": held.bias,
        "parameters": None if refused else sum(prod(place.shape) for place in places),
        "reason": refused,
        "gates": dict(convention.gates[spec.cell]),
        "arrays": [
            {
                **{field: getattr(place, field) for field in ("name", "layer", "direction", "axes", "shape")},
                "holds": [name for names in place.holds for name in names],
                "gates": place.gates,
            }
            for place in places
        ],
    }


# --- As text ---------------------------------------------------------------------------------------------------------

Parts = Iterator[Content]


def _equations(spec: RecurrentSpec) -> Parts:
    yield heading(f"One step of the {spec.form.title}")
    yield Styled("".join(f"  {equation}\n" for equation in spec.form.equations), "cyan")
    letters = ["W, U: weight_ih, weight_hh", "b, d: bias_ih, bias_hh", f"a: {spec.activation}"]
    if len(spec.form.gates) > 1:
        letters.append(f"s: {spec.recurrent_activation}")
    yield f"{'; '.join(letters)}; *: elementwise. A bias that is not there is zero."


def _counts(spec: RecurrentSpec, counts: list[dict[str, Any]]) -> Parts:
    products = (Column("weights", whole=True), Column("biases", whole=True))
    made = Table("bias", *products, Column("parameters", number=True), "the default of")
    for count in counts:
        titles = [CONVENTIONS[name].title if name in CONVENTIONS else name for name in count["default_of"]]
        row = count["bias"], "\n+ ".join(_weights(spec)), count["biases"] or "–", f"{count['parameters']:,}"
        made.add_row(*row, ", ".join(titles) or "–", style="bold" if count["bias"] == spec.bias else "")
    yield heading("How many parameters")
    yield made
    yield ""
    yield "Weights: gates × units × (inputs + units), in every layer and direction. A bias: gates × units."
    if spec.form.recurrent_candidate_bias:
        n = spec.form.candidate
        yield (
            f"In {n} the reset gate multiplies d_{n} and not b_{n}, so both are needed. In the other gates the equations "
            'only add b and d, so one of them computes the same function: that is "single".'
        )
    else:
        yield "The equations only add b and d, so one of them computes the same function."
    yield "In training two biases differ from one: each gets the whole gradient, so a step of SGD moves their sum twice as far."
    if spec.cell == "gru":
        for after, words in ((True, "after"), (False, "before")):
            titles = [c.title for c in _holding(spec) if c.default_reset_after == after]
            yield f"Reset {words} the recurrent product is the default of {', '.join(titles)}."


def _gates(spec: RecurrentSpec) -> Parts:
    gates = spec.form.gates
    made = table("", *gates, "blocks")
    made.add_row("multirnn", *gates, " ".join(gates))
    for convention in _holding(spec):
        names = convention.gates[spec.cell]
        entries = next(iter(convention.arrays["lstm"].values()))  # named alike for every cell
        blocks = "an array each" if "{gate}" in entries[0].name else " ".join(names.values())
        made.add_row(convention.title, *(names[gate] for gate in gates), blocks)
    yield heading("What the gates are called, and the order of their blocks")
    yield made
    if "z" in gates and (titles := [c.title for c in _holding(spec) if c.update == "new"]):
        yield f"In {', '.join(titles)} the update gate weighs the new state, so its blocks have the opposite sign."
    if "f" in gates and (titles := [c.title for c in _holding(spec) if c.forget_offset]):
        yield f"{', '.join(titles)} add 1 to the pre-activation of the forget gate, so its bias is stored less 1."


def _arrays(spec: RecurrentSpec, frameworks: list[dict[str, Any]]) -> Parts:
    yield heading("Which array is which")
    for framework in frameworks:
        yield ""
        if framework["reason"]:
            yield f"{framework['reason']}."
            continue
        yield heading(f'{framework["title"]}: {framework["parameters"]:,} parameters, bias="{framework["bias"]}"')
        yield from _lowest(spec, framework["arrays"])
    yield ""
    yield (
        "Axes: (gate unit) is one axis, the gates' blocks one after the other; source is what the matrix is multiplied "
        "with, the input's features or the units."
    )


def _lowest(spec: RecurrentSpec, arrays: list[dict[str, Any]]) -> Parts:
    """The arrays of the lowest layer's first direction, and the names of their repetitions."""
    first = [array for array in arrays if array["layer"] == 0 and array["direction"] != "backward"]
    made = table("array", "axes", "shape", "size", "holds", right=("size",))
    for array in first:
        part = "" if set(array["gates"]) == set(spec.form.gates) else f"[{', '.join(array['gates'])}]"
        holds = dict.fromkeys(name.rpartition(".")[2] + part for name in array["holds"])
        made.add_row(array["name"], array["axes"], str(array["shape"]), f"{prod(array['shape']):,}", ", ".join(holds))
    yield made
    others = [array["name"] for array in arrays[len(first) :: len(first)]]
    if others:
        yield f"and again in the other layers and directions: {', '.join(others)}, …"
