"""How the frameworks store the arrays of a recurrent layer: a table of facts. `packing` converts by it.

Sources: `torch.nn.RNN`/`LSTM`/`GRU` under "Variables"; `keras/src/layers/rnn/{simple_rnn,lstm,gru}.py`, `build` and
`call`; `tf_keras/src/saving/legacy/hdf5_format.py` for CuDNN's layers; the ONNX operators RNN, GRU and LSTM, inputs W, R
and B; the cells of `flax/linen/recurrent.py`, `flax/nnx/nn/recurrent.py`, `haiku/_src/recurrent.py` and
`equinox/nn/_rnn.py`; `tensorflow/python/ops/rnn_cell_impl.py` of TensorFlow 1.
"""

from collections.abc import Mapping
from types import MappingProxyType

from multirnn.cells import FORMS
from multirnn.convention import Convention, Entry, Held
from multirnn.errors import Unrepresentable, meant
from multirnn.spec import DIRECTIONS

__all__ = ["CONVENTIONS", "FLAX_LINEN", "TORCH", "Convention", "Entry", "convention_named"]

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
    # nn.RNNCell, LSTMCell and GRUCell have the same names without a number.
    pattern=r"(?P<name>weight_ih|weight_hh|bias_ih|bias_hh)(?:_l(?P<layer>\d+)(?P<direction>|_reverse))?",
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
    pattern=r"(?P<layer>(?!forward_|backward_)[^/]+)/(?:(?P<direction>forward|backward)_[^/]+/)?\w+_cell/(?P<name>kernel|recurrent_kernel|bias)(?::0)?",
    gaps=True,
)


def _cudnn_arrays() -> dict[str, Held]:
    arrays = (
        Entry("kernel", ("weight_ih",), "source (gate unit)", raveled=True),
        Entry("recurrent_kernel", ("weight_hh",), "unit (gate source)"),
        Entry("bias", ("bias_ih", "bias_hh"), "(bias gate unit)"),
    )
    return {"lstm": {"double": arrays}, "gru reset after": {"double": arrays}}


KERAS_CUDNN = Convention(
    name="keras-cudnn",
    title="Keras' CuDNN layers",
    gates=KERAS.gates,
    arrays=_cudnn_arrays(),
    default_bias=dict.fromkeys(FORMS, "double"),
    place="{cell}{layer}/{name}",
    place_bidirectional="bidirectional{layer}/{direction}_{cell}{layer}/{name}",
    directions=DIRECTIONS,
    number=KERAS.number,
    pattern=r"(?P<layer>(?!forward_|backward_)[^/]+)/(?:(?P<direction>forward|backward)_[^/]+/)?(?P<name>kernel|recurrent_kernel|bias)(?::0)?",
    gaps=True,
    modules={"lstm": "cu_dnnlstm", "gru": "cu_dnngru"},
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
    pattern=r"(?:layers_(?P<layer>\d+)/)?(?:(?P<direction>forward|backward)_rnn/)?cell/(?P<name>[ih][a-z]?/(?:kernel|bias))",
    gaps=True,
)


def _fused(*biases: Entry) -> tuple[Entry, ...]:
    """The kernels of Flax NNX's cells, all gates in one; and biases."""
    return (
        Entry("dense_i/kernel", ("weight_ih",), "source (gate unit)"),
        Entry("dense_h/kernel", ("weight_hh",), "source (gate unit)"),
        *biases,
    )


FLAX_NNX = Convention(
    name="flax-nnx",
    title="Flax NNX",
    gates=_CANONICAL_GATES,
    arrays={
        "simple_rnn": {"single": _fused(Entry("dense_i/bias", ("bias_ih",), "(gate unit)"))},
        "lstm": {"single": _fused(Entry("dense_h/bias", ("bias_ih",), "(gate unit)"))},  # OptimizedLSTMCell
        "gru reset after": {"single": _fused(Entry("dense_i/bias", ("bias_ih",), "(gate unit)"))},
    },
    default_bias=dict.fromkeys(FORMS, "single"),
    place="{layer}cell/{name}",
    place_bidirectional="{layer}{direction}_rnn/cell/{name}",
    directions=DIRECTIONS,
    number=lambda layer, layers: f"layers/{layer}/" if layers > 1 else "",
    pattern=r"(?:layers/(?P<layer>\d+)/)?(?:(?P<direction>forward|backward)_rnn/)?(?:cell/)?(?P<name>dense_[ih]/(?:kernel|bias))",
    gaps=True,
    zero={"gru reset after": ("bias_hh",)},  # google/flax#5594: its docstring has one, its code none
)


def _haiku_arrays() -> dict[str, Held]:
    rnn = (
        Entry("linear/w", ("weight_ih",), "source (gate unit)"),
        Entry("linear_1/w", ("weight_hh",), "source (gate unit)"),
        Entry("linear/b", ("bias_ih",), "(gate unit)"),
    )
    return {
        "simple_rnn": {"single": rnn, "double": (*rnn, Entry("linear_1/b", ("bias_hh",), "(gate unit)"))},
        "lstm": {
            "single": (
                Entry("linear/w", ("weight_ih", "weight_hh"), "source (gate unit)"),
                Entry("linear/b", ("bias_ih",), "(gate unit)"),
            )
        },
        "gru reset before": {
            "single": (
                Entry("w_i", ("weight_ih",), "source (gate unit)"),
                Entry("w_h", ("weight_hh",), "source (gate unit)"),
                Entry("b", ("bias_ih",), "(gate unit)"),
            )
        },
    }


HAIKU = Convention(
    name="haiku",
    title="Haiku",
    gates={
        "simple_rnn": {"h": "h"},
        "lstm": {"i": "i", "g": "g", "f": "f", "o": "o"},
        "gru": {"z": "z", "r": "r", "n": "a"},
    },
    arrays=_haiku_arrays(),
    default_bias={form: "double" if form == "simple_rnn" else "single" for form in FORMS},
    default_reset_after=False,
    update="new",
    forget_offset=1,
    place="{cell}{layer}/{name}",
    place_bidirectional="",
    directions=DIRECTIONS,
    number=lambda layer, layers: f"_{layer}" if layer else "",
    pattern=r"(?P<layer>(?P<cell>lstm|gru|vanilla_rnn)(?:_\d+)?)/(?P<name>linear/w|linear/b|linear_1/w|linear_1/b|w_i|w_h|b)",
    gaps=True,
    modules={"simple_rnn": "vanilla_rnn"},
)


def _equinox_arrays() -> dict[str, Held]:
    weights = (
        Entry("weight_ih", ("weight_ih",), "(gate unit) source"),
        Entry("weight_hh", ("weight_hh",), "(gate unit) source"),
    )
    bias = Entry("bias", ("bias_ih",), "(gate unit)")
    return {
        "lstm": {"none": weights, "single": (*weights, bias)},
        "gru reset after": {
            "none": weights,
            "single": (*weights, bias, Entry("bias_n", ("bias_hh",), "(gate unit)", gates=("n",))),
        },
    }


EQUINOX = Convention(
    name="equinox",
    title="Equinox",
    gates=_CANONICAL_GATES,
    arrays=_equinox_arrays(),
    default_bias=dict.fromkeys(FORMS, "single"),
    place="{layer}{name}",
    place_bidirectional="{layer}{direction}/{name}",
    directions=DIRECTIONS,
    number=lambda layer, layers: f"layers/{layer}/" if layers > 1 else "",
    pattern=r"(?:layers/(?P<layer>\d+)/)?(?:(?P<direction>forward|backward)/)?(?P<name>weight_ih|weight_hh|bias_n|bias)",
)


def _tensorflow_arrays() -> dict[str, Held]:
    one = (
        Entry("kernel", ("weight_ih", "weight_hh"), "source (gate unit)"),
        Entry("bias", ("bias_ih",), "(gate unit)"),
    )
    two = tuple(
        entry
        for name, gates in (("gates", ("r", "z")), ("candidate", ("n",)))
        for entry in (
            Entry(f"{name}/kernel", ("weight_ih", "weight_hh"), "source (gate unit)", gates),
            Entry(f"{name}/bias", ("bias_ih",), "(gate unit)", gates),
        )
    )
    return {"simple_rnn": {"single": one}, "lstm": {"single": one}, "gru reset before": {"single": two}}


TENSORFLOW_V1 = Convention(
    name="tensorflow-v1",
    title="TensorFlow 1",
    gates={
        "simple_rnn": {"h": "h"},
        "lstm": {"i": "i", "g": "j", "f": "f", "o": "o"},
        "gru": {"r": "r", "z": "u", "n": "c"},
    },
    arrays=_tensorflow_arrays(),
    default_bias=dict.fromkeys(FORMS, "single"),
    default_reset_after=False,
    forget_offset=1,
    place="rnn/{layer}{cell}/{name}",
    place_bidirectional="{layer}bidirectional_rnn/{direction}/{cell}/{name}",
    directions=("fw", "bw"),
    number=lambda layer, layers: f"multi_rnn_cell/cell_{layer}/" if layers > 1 else "",
    pattern=r"(?:multi_rnn_cell/)?(?:cell_(?P<layer>\d+)/)?(?:bidirectional_rnn/)?(?:(?P<direction>fw|bw)/)?(?P<cell>basic_lstm_cell|lstm_cell|gru_cell|basic_rnn_cell)/(?P<name>(?:gates/|candidate/)?(?:kernel|bias))(?::0)?",
    modules={"simple_rnn": "basic_rnn_cell", "lstm": "basic_lstm_cell", "gru": "gru_cell"},
)


def _textbook(name: str, title: str, axes: str) -> Convention:
    weights = (Entry("Wx", ("weight_ih",), axes), Entry("Wh", ("weight_hh",), axes))
    return Convention(
        name=name,
        title=title,
        gates={"simple_rnn": {"h": "h"}},
        arrays={"simple_rnn": {"none": weights, "single": (*weights, Entry("b", ("bias_ih",), "unit"))}},
        default_bias=dict.fromkeys(FORMS, "single"),
        place="{name}{layer}",
        place_bidirectional="",
        directions=DIRECTIONS,
        number=lambda layer, layers: f"{layer + 1}" if layers > 1 else "",
        pattern=r"(?P<name>Wx|Wh|b)(?P<layer>\d*)",
        gaps=True,
    )


TEXTBOOK = _textbook("textbook", "the textbook's W x", "unit source")
TEXTBOOK_ROWS = _textbook("textbook-rows", "the textbook's x W", "source unit")

CONVENTIONS: Mapping[str, Convention] = MappingProxyType(
    {
        convention.name: convention
        for convention in (
            TORCH,
            KERAS,
            KERAS_CUDNN,
            ONNX,
            FLAX_LINEN,
            FLAX_NNX,
            HAIKU,
            EQUINOX,
            TENSORFLOW_V1,
            TEXTBOOK,
            TEXTBOOK_ROWS,
        )
    }
)


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
