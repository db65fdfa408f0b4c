"""The layers of Keras that `replace_layers` keeps, each with its reason; and what it refuses."""

from typing import Any

import pytest

import multirnn as mr

multirnn_keras = pytest.importorskip("multirnn_keras")
keras = pytest.importorskip("keras")

from multirnn_keras import FastLSTM  # noqa: E402

layers = keras.layers


@keras.saving.register_keras_serializable("test_replacement_keras_kept")
class Doubled(layers.LSTM):
    def call(self, sequences, initial_state=None, mask=None, training=False):
        return super().call(sequences, initial_state, mask, training) * 2


class OwnCell(layers.GRUCell):
    def call(self, inputs, states, training=False):
        return super().call(inputs, states, training)


class Loop(layers.Layer):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.cells = [layers.GRUCell(4, name="step")]


def patched() -> Any:
    layer = layers.LSTM(4)
    object.__setattr__(layer, "inner_loop", lambda *arguments: arguments)
    return layer


def patched_cell() -> Any:
    layer = layers.LSTM(4)
    object.__setattr__(layer.cell, "call", lambda *arguments: arguments)
    return layer


KEPT = {
    "subclass": (Doubled, (4,), {}, "its class Doubled is not Keras' own, and may compute something else"),
    "fast": (FastLSTM, (4,), {}, "it is fast already"),
    "stacked": (
        layers.RNN, ([layers.LSTMCell(4), layers.LSTMCell(3)],), {}, "it runs a StackedRNNCells, and fast layers run one cell"
    ),
    "own cell": (layers.RNN, (OwnCell(4),), {}, "it runs an OwnCell, and fast layers run one cell of Keras' own: SimpleRNNCell"),
    "unrolled": (layers.LSTM, (4,), {"unroll": True}, "it is unrolled, and a fast layer is a loop; make it with unroll=False"),
    "activation": (layers.GRU, (4,), {"activation": "swish"}, "no spec has the activation 'silu'; there are"),
    "gate": (layers.LSTM, (4,), {"recurrent_activation": "gelu"}, "no spec has the activation 'gelu'"),
    "mixed": (layers.LSTM, (4,), {"dtype": "mixed_float16"}, "its dtype policy is 'mixed_float16', and fast layers compute"),
    "half": (layers.SimpleRNN, (4,), {"dtype": "bfloat16"}, "its dtype policy is 'bfloat16', and fast layers compute in float32"),
    "cudnn": (layers.LSTM, (4,), {"use_cudnn": True}, "it asks for cuDNN; make it with use_cudnn=False"),
    "cell's dtype": (
        layers.RNN, (layers.GRUCell(4, dtype="float64"),), {"dtype": "float32"}, "it computes in float32 and its cell in float64"
    ),
    "convolution": (layers.ConvLSTM1D, (4, 3), {}, "no spec has a ConvLSTM1D"),
    "method": (patched, (), {}, "its method 'inner_loop' was replaced on the object"),
    "cell's method": (patched_cell, (), {}, "its method 'call' was replaced on the object"),
}  # fmt: skip


@pytest.mark.parametrize("what", KEPT)
def test_a_layer_is_kept_with_its_reason(what: str) -> None:
    kind, arguments, options, reason = KEPT[what]
    if multirnn_keras.BACKEND.refuses(mr.RecurrentSpec("gru", 2, 3, dtype="float64")) and what == "cell's dtype":
        pytest.skip("this engine has no float64")
    layer = kind(*arguments, **options)
    before = type(layer), dict(vars(layer))
    model = keras.Sequential([layer, layers.GRU(3, name="other")])
    replacement = mr.replace_layers(model)
    assert [path for path, *_ in replacement.replaced] == ["other"]
    ((path, title, said),) = replacement.kept
    assert (path, title) == (layer.name, type(layer).__name__)
    assert said.startswith(reason)
    assert type(layer) is before[0]
    assert vars(layer) == before[1]


def test_cells_in_a_loop_of_the_models_own_and_layers_in_both_directions() -> None:
    model = keras.Sequential([Loop(name="loop"), layers.Bidirectional(Doubled(3, name="own")), layers.GRU(2, name="a")])
    replacement = mr.replace_layers(model)
    loop, *both = replacement.kept
    assert loop == (
        "loop/step",
        "GRUCell",
        "it is a cell in a loop of the model's own; put it in a layer of Keras, such as keras.layers.RNN(cell)",
    )
    name = model.layers[1].name
    assert [path for path, *_ in both] == [f"{name}/forward_own", f"{name}/backward_own"]


def test_a_layer_inside_a_kept_layer_is_found() -> None:
    outer = Doubled(3, name="outer")
    outer.inner = layers.GRU(2, name="inner")
    replacement = mr.replace_layers(keras.Sequential([outer]))
    assert [path for path, *_ in replacement.kept] == ["outer"]
    assert replacement.replaced == (("outer/inner", "GRU", "FastGRU"),)


def test_what_has_nothing_to_replace() -> None:
    with pytest.raises(mr.InvalidCall, match="this Sequential has no recurrent layer to replace"):
        mr.replace_layers(keras.Sequential([layers.Dense(3)]))
    with pytest.raises(mr.InvalidCall, match=r"can be replaced: odd \(Doubled\): its class Doubled is not Keras' own"):
        mr.replace_layers(keras.Sequential([Doubled(3, name="odd")]))
    with pytest.raises(mr.InvalidCall, match="the layers of a model are 'fast' or 'native', not 'quick'"):
        mr.replace_layers(layers.LSTM(3), "quick")  # type: ignore[arg-type]
    with pytest.raises(mr.InvalidCall, match="inside a model or a layer of Keras, not inside"):
        multirnn_keras.BACKEND.replace_layers(layers.LSTMCell, "fast")


def test_native_leaves_what_derives_from_a_fast_layer() -> None:
    own = type("Own", (FastLSTM,), {})
    model = keras.Sequential([own(3, name="own"), FastLSTM(3, name="fast"), layers.GRU(2, name="stock")])
    replacement = mr.replace_layers(model, "native")
    assert replacement.replaced == (("fast", "FastLSTM", "LSTM"),)
    assert replacement.kept == (
        ("own", "Own", "its class derives from a fast layer, and Keras has none like it"),
        ("stock", "GRU", "it is not a fast layer"),
    )
