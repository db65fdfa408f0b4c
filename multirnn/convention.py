"""What a `Convention` is: the facts that place the parameters of a stack in a framework's arrays.

A `Convention` lists, for each form of a cell and of its biases, the arrays (`Entry`), how the axes of an array are composed
of the canonical ones, and the order of its gates. Axes are written as in einops, out of

    direction   forward, backward
    bias        input bias, recurrent bias
    gate        the blocks, in the order of `gates`
    unit        hidden_size
    source      the size of the multiplied vector: the input's features, or hidden_size

so PyTorch's `weight_ih_l0`, gates stacked along the rows, is `(gate unit) source`, and a Keras kernel, its transpose,
is `source (gate unit)`. An axis in neither the array nor its name has size one. An array that holds both weights has them
one after the other along `source`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from multirnn.activations import Activation
from multirnn.cells import CELLS, Bias
from multirnn.errors import an
from multirnn.spec import RecurrentSpec

__all__ = ["UNTOLD", "Convention", "Entry", "Held"]

UNTOLD = ("convention", "cell", "reset_after", "activation", "recurrent_activation", "transposed")
"""What names and shapes may not tell of a stack: arguments of `from_arrays` and `load`."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One native array.

    Attributes:
        name: its own name; with `{gate}` if there is one array per gate.
        holds: the canonical arrays in it; two are stacked along the axis `bias`.
        axes: its axes in terms of the canonical ones.
        gates: the gates in it; empty for all.
        raveled: whether the numbers of a gate's `(unit, source)` lie in memory as in the canonical array, and only the
            sizes of the two axes are exchanged; CuDNN's layers in Keras keep their kernels so.
    """

    name: str
    holds: tuple[str, ...]
    axes: str
    gates: tuple[str, ...] = ()
    raveled: bool = False


Held = Mapping[str, tuple[Entry, ...]]


@dataclass(frozen=True, slots=True)
class Convention:
    """The facts of one framework.

    Attributes:
        name: its name in `CONVENTIONS`.
        title: the name of the framework.
        gates: by cell, the framework's name of each canonical gate, in the order of the blocks.
        arrays: the arrays, by the cell's form and by the form of the biases. It cannot hold a form that is missing.
        default_bias: by the cell's form, the form of the biases by default.
        default_reset_after: the default form of the GRU.
        update: what z weighs in the GRU's `h' = (1 - z) * n + z * h`: the "old" state, or the "new" candidate.
        gaps: whether layer numbers may have gaps: other layers share the numbering.
        place: the full name of an array in a unidirectional stack; `{layer}` is `number(layer, layers)`.
        place_bidirectional: the same in a bidirectional stack; empty if there are none.
        directions: the names of the directions.
        number: the spelling of a layer's number.
        pattern: matches a full name, with the groups `name`, `layer`, `direction` and perhaps `cell`, the module's name.
        modules: by cell, what `{cell}` stands for in a name; the cell's own name unless given.
        forget_offset: what the framework adds to the forget gate while it runs.
        zero: by the cell's form, canonical arrays that the framework does not have, and which have to be zero.
    """

    name: str
    title: str
    gates: Mapping[str, Mapping[str, str]]
    arrays: Mapping[str, Held]
    default_bias: Mapping[str, Bias]
    place: str
    place_bidirectional: str
    directions: tuple[str, str]
    number: Callable[[int, int], str]
    pattern: str
    update: Literal["old", "new"] = "old"
    default_reset_after: bool = True
    gaps: bool = False
    modules: Mapping[str, str] = field(default_factory=dict)
    forget_offset: float = 0
    zero: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def by_default(self, spec: RecurrentSpec) -> RecurrentSpec:
        """The stack with the biases it has there by default; unchanged if there is no such cell."""
        return replace(spec, bias=self.default_bias[spec.form.form]) if spec.form.form in self.arrays else spec

    def refuses(self, spec: RecurrentSpec) -> str | None:
        """None: this convention holds the arrays of the spec exactly. A string: why not."""
        form = spec.form.form
        if form not in self.arrays and spec.cell != "gru":
            return f"{self.title} has no {CELLS[spec.cell].title}"
        if form not in self.arrays:
            return f"{self.title} has no GRU whose reset gate acts {'after' if spec.reset_after else 'before'} the recurrent product"
        if spec.bias not in self.arrays[form]:
            held = " or ".join(f'bias="{bias}"' for bias in self.arrays[form])
            return f'{self.title} holds {an(spec.cell)} with {held}, not bias="{spec.bias}"; {_CURES[spec.bias]}'
        if spec.bidirectional and not self.place_bidirectional:
            return f"{self.title} has no bidirectional layers; read each direction by itself"
        if self.update == "new" and spec.cell == "gru" and not _odd_about_half(spec):
            return (
                f"{self.title} lets z weigh the new state, which negating z's block turns into ours only for a sigmoid, "
                f"not for recurrent_activation={spec.recurrent_activation!r}"
            )
        return None


_CURES = {
    "none": "split_biases adds zero biases",
    "single": "split_biases makes them double, exactly",
    "double": "fold_biases makes them single, the same function",
}


def _odd_about_half(spec: RecurrentSpec) -> bool:
    gate = Activation.of(spec.recurrent_activation)
    return gate.name == "sigmoid" or (gate.name == "hard_sigmoid" and gate.beta == 0.5)
