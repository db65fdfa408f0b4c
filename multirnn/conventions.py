"""How the frameworks store the arrays of a recurrent layer: a table of facts. `packing` converts by it.

A `Convention` lists, for each form of a cell and of its biases, the arrays (`Entry`), how the axes of an array are composed
of the canonical ones, and the order of its gates. Axes are written as in einops, out of

    direction   forward, backward
    bias        input bias, recurrent bias
    gate        the blocks, in the order of `gates`
    unit        hidden_size
    source      the size of the multiplied vector: the input's features, or hidden_size

so PyTorch's `weight_ih_l0`, gates stacked along the rows, is `(gate unit) source`, and a Keras kernel, its transpose,
is `source (gate unit)`. An axis in neither the array nor its name has size one.

Sources: `torch.nn.RNN`/`LSTM`/`GRU` under "Variables"; `keras/src/layers/rnn/{simple_rnn,lstm,gru}.py`, `build` and
`call`; the ONNX operators RNN, GRU and LSTM, inputs W, R and B; `flax/linen/recurrent.py`, the cells' docstrings.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from multirnn.activations import Activation
from multirnn.cells import FORMS, Bias
from multirnn.errors import Unrepresentable, an, meant
from multirnn.spec import DIRECTIONS, RecurrentSpec

__all__ = ["CONVENTIONS", "FLAX_LINEN", "TORCH", "Convention", "Entry", "convention_named"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One native array.

    Attributes:
        name: its own name; with `{gate}` if there is one array per gate.
        holds: the canonical arrays in it; two are stacked along the axis `bias`.
        axes: its axes in terms of the canonical ones.
        gates: the gates in it; empty for all.
    """

    name: str
    holds: tuple[str, ...]
    axes: str
    gates: tuple[str, ...] = ()


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
        place_bidirectional: the same in a bidirectional stack.
        directions: the names of the directions.
        number: the spelling of a layer's number.
        pattern: matches a full name, with the groups `name`, `layer` and `direction`.
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

    def by_default(self, spec: RecurrentSpec) -> RecurrentSpec:
        """The stack with the biases it has there by default; unchanged if there is no such cell."""
        return replace(spec, bias=self.default_bias[spec.form.form]) if spec.form.form in self.arrays else spec

    def refuses(self, spec: RecurrentSpec) -> str | None:
        """None: this convention holds the arrays of the spec exactly. A string: why not."""
        form = spec.form.form
        if form not in self.arrays:
            return f"{self.title} has no GRU whose reset gate acts {'after' if spec.reset_after else 'before'} the recurrent product"
        if spec.bias not in self.arrays[form]:
            held = " or ".join(f'bias="{bias}"' for bias in self.arrays[form])
            return f'{self.title} holds {an(spec.cell)} with {held}, not bias="{spec.bias}"; {_CURES[spec.bias]}'
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

# --- The table -------------------------------------------------------------------------------------------------------

_CANONICAL_GATES = {"simple_rnn": {"h": "h"}, "lstm": {g: g for g in "ifgo"}, "gru": {g: g for g in "rzn"}}


def _held(weights: tuple[Entry, ...], **biases: tuple[Entry, ...]) -> Held:
    """The weights alone, and with each form of the biases."""
    return {"none": weights} | {bias: (*weights, *entries) for bias, entries in biases.items()}


_WEIGHTS = tuple(Entry(name, (name,), "(gate unit) source") for name in ("weight_ih", "weight_hh"))
_BIAS_IH, _BIAS_HH = (Entry(name, (name,), "(gate unit)") for name in ("bias_ih", "bias_hh"))
# A single bias is PyTorch's two with a constant zero bias_hh. The reset-after GRU would need a third of a bias_hh.
_TORCH_HELD = _held(_WEIGHTS, single=(_BIAS_IH,), double=(_BIAS_IH, _BIAS_HH))

TORCH = Convention(
    name="torch",
    title="PyTorch",
    gates=_CANONICAL_GATES,
    arrays={
        "simple_rnn": _TORCH_HELD,
        "lstm": _TORCH_HELD,
        "gru reset after": _held(_WEIGHTS, double=(_BIAS_IH, _BIAS_HH)),
    },
    default_bias=dict.fromkeys(FORMS, "double"),
    place="{name}_l{layer}",
    place_bidirectional="{name}_l{layer}{direction}",
    directions=("", "_reverse"),
    number=lambda layer, layers: str(layer),
    pattern=r"(?P<name>weight_ih|weight_hh|bias_ih|bias_hh)_l(?P<layer>\d+)(?P<direction>|_reverse)",
)

_KERNELS = (
    Entry("kernel", ("weight_ih",), "source (gate unit)"),
    Entry("recurrent_kernel", ("weight_hh",), "source (gate unit)"),
)
_KERAS_ONE = _held(_KERNELS, single=(Entry("bias", ("bias_ih",), "(gate unit)"),))

KERAS = Convention(
    name="keras",
    title="Keras",
    gates={
        "simple_rnn": {"h": "h"},
        "lstm": {"i": "i", "f": "f", "g": "c", "o": "o"},
        "gru": {"z": "z", "r": "r", "n": "h"},
    },
    arrays=dict.fromkeys(FORMS, _KERAS_ONE)
    | {"gru reset after": _held(_KERNELS, double=(Entry("bias", ("bias_ih", "bias_hh"), "bias (gate unit)"),))},
    default_bias={form: cell.default_bias for form, cell in FORMS.items()},
    place="{cell}{layer}/{cell}_cell/{name}",
    place_bidirectional="bidirectional{layer}/{direction}_{cell}{layer}/{cell}_cell/{name}",
    directions=DIRECTIONS,
    number=lambda layer, layers: f"_{layer}" if layer else "",
    pattern=r"(?:.*/)?(?P<layer>(?!forward_|backward_)[^/]+)/(?:(?P<direction>forward|backward)_[^/]+/)?\w+_cell/(?P<name>kernel|recurrent_kernel|bias)",
    gaps=True,
)

_ONNX_WEIGHTS = tuple(
    Entry(name, (held,), "direction (gate unit) source") for name, held in (("W", "weight_ih"), ("R", "weight_hh"))
)

ONNX = Convention(
    name="onnx",
    title="ONNX",
    gates={
        "simple_rnn": {"h": "h"},
        "lstm": {"i": "i", "o": "o", "f": "f", "g": "c"},
        "gru": {"z": "z", "r": "r", "n": "h"},
    },
    # B is an optional input of the operators; if present, it is both biases.
    arrays=dict.fromkeys(
        FORMS, _held(_ONNX_WEIGHTS, double=(Entry("B", ("bias_ih", "bias_hh"), "direction (bias gate unit)"),))
    ),
    default_bias=dict.fromkeys(FORMS, "double"),
    default_reset_after=False,
    place="layers.{layer}.{name}",
    place_bidirectional="layers.{layer}.{name}",
    directions=DIRECTIONS,
    number=lambda layer, layers: str(layer),
    pattern=r"(?:layers\.(?P<layer>\d+)\.)?(?P<name>W|R|B)",
)

_FLAX_WEIGHTS = tuple(
    Entry(name, (held,), "source unit")
    for name, held in (("i{gate}/kernel", "weight_ih"), ("h{gate}/kernel", "weight_hh"))
)
_FLAX_BIAS = Entry("i{gate}/bias", ("bias_ih",), "unit")

FLAX_LINEN = Convention(
    name="flax-linen",
    title="Flax Linen",
    gates={**_CANONICAL_GATES, "simple_rnn": {"h": ""}},
    arrays={
        "simple_rnn": {"single": (*_FLAX_WEIGHTS, _FLAX_BIAS)},
        # The LSTM's one bias is added to the recurrent product, so it has a recurrent name; the sum is the same.
        "lstm": {"single": (*_FLAX_WEIGHTS, Entry("h{gate}/bias", ("bias_ih",), "unit"))},
        "gru reset after": {
            "single": (*_FLAX_WEIGHTS, _FLAX_BIAS, Entry("h{gate}/bias", ("bias_hh",), "unit", gates=("n",)))
        },
    },
    default_bias=dict.fromkeys(FORMS, "single"),
    place="{layer}cell/{name}",
    place_bidirectional="{layer}{direction}_rnn/cell/{name}",
    directions=DIRECTIONS,
    number=lambda layer, layers: f"layers_{layer}/" if layers > 1 else "",
    pattern=r"(?:.*?/)??(?:layers_(?P<layer>\d+)/)?(?:(?P<direction>forward|backward)_rnn/)?cell/(?P<name>[ih][a-z]?/(?:kernel|bias))",
    gaps=True,
)

CONVENTIONS: Mapping[str, Convention] = MappingProxyType({c.name: c for c in (TORCH, KERAS, ONNX, FLAX_LINEN)})


def convention_named(convention: str | Convention) -> Convention:
    """The convention of this name; a Convention is returned as it is.

    Raises:
        Unrepresentable: there is no convention of this name.
    """
    if isinstance(convention, Convention):
        return convention
    if convention not in CONVENTIONS:
        hint = meant(convention, CONVENTIONS)
        raise Unrepresentable(f"no convention named {convention!r}; there are {', '.join(CONVENTIONS)}{hint}")
    return CONVENTIONS[convention]


def _odd_about_half(spec: RecurrentSpec) -> bool:
    gate = Activation.of(spec.recurrent_activation)
    return gate.name == "sigmoid" or (gate.name == "hard_sigmoid" and gate.beta == 0.5)
