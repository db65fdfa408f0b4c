"""The Keras backend's native model is Keras' own: counted, trained, saved, composed and read as such."""

from pathlib import Path

import numpy as np
import pytest
from keras_layers import (
    BACKEND,
    HIDDEN_SIZE,
    INPUT_SIZE,
    assert_close,
    in_a_process,
    keras,
    mask_of,
    multirnn_keras,
    numpy_of,
    spec_of,
    trained,
    widened,
)

import multirnn as mr
from multirnn.numerics import draw_call

layers = keras.layers
FORMS = [
    {"cell": "simple_rnn"},
    {"cell": "lstm"},
    {"cell": "gru"},
    {"cell": "gru", "reset_after": False},
]


def layer_of(form: dict, **changes) -> multirnn_keras.KerasLayer:
    return BACKEND.build(mr.initialise(spec_of(form, **changes), seed=1))


def reference(layer: mr.Layer) -> mr.Layer:
    return mr.build(layer.weights().astype("float64"), "numpy")


# --- Counting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "count"),
    [
        ({"cell": "simple_rnn"}, 42),
        ({"cell": "simple_rnn", "bias": "none"}, 39),
        ({"cell": "lstm"}, 168),
        ({"cell": "lstm", "bias": "none"}, 156),
        ({"cell": "gru"}, 135),
        ({"cell": "gru", "bias": "none"}, 117),
        ({"cell": "gru", "reset_after": False}, 126),
    ],
)
def test_keras_counts_as_the_spec_does(form: dict, count: int) -> None:
    layer = layer_of(form, input_size=10, hidden_size=3)
    assert layer.spec.parameter_count == layer.native.count_params() == layer.parameter_count == count
    lines: list[str] = []
    layer.native.summary(print_fn=lines.append)
    assert f"Trainable params: {count} " in "\n".join(lines)


def test_frozen_variables_are_not_counted_and_still_have_gradients() -> None:
    layer = layer_of({"cell": "lstm"})
    x, state, lengths = draw_call(layer.spec, 3)
    cotangent = layer(x, state, lengths=lengths)
    expected = layer.vjp(x, state, lengths=lengths, cotangent=cotangent)
    layer.native.trainable = False
    assert layer.parameter_count == 0
    gradients = layer.vjp(x, state, lengths=lengths, cotangent=cotangent)
    for name, array in expected.weights.items():
        assert_close(gradients.weights[name], array, layer.spec.dtype)


# --- Graphs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_a_second_call_agrees_too(form: dict, ragged: bool) -> None:
    """The first call runs without a graph where that is quicker; from the second on there is one."""
    layer = layer_of(form, bidirectional=ragged)
    x, state, lengths = draw_call(layer.spec, 3)
    lengths = lengths if ragged else None
    first = layer(x, state, lengths=lengths)
    layer.vjp(x, state, lengths=lengths, cotangent=first)

    output = layer(x, state, lengths=lengths)
    gradients = layer.vjp(x, state, lengths=lengths, cotangent=first)

    numpy = reference(layer)
    wide = x.astype("float64"), widened(state)
    expected = numpy(*wide, lengths=lengths)
    cotangent = mr.Output(first.sequence.astype("float64"), widened(first.state))
    wanted = numpy.vjp(*wide, lengths=lengths, cotangent=cotangent)
    pairs = [(output.sequence, expected.sequence), (gradients.x, wanted.x)]
    pairs += [*zip(output.state, expected.state, strict=True), *zip(gradients.state, wanted.state, strict=True)]
    pairs += [(gradients.weights[name], array) for name, array in wanted.weights.items()]
    for actual, right in pairs:
        if right is not None:
            assert_close(actual, right, layer.spec.dtype)


@pytest.mark.skipif(BACKEND.engine != "tensorflow", reason="only TensorFlow has graphs that fit any length")
def test_one_graph_fits_every_length(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layer_of({"cell": "gru"})
    x = np.zeros((3, 40, INPUT_SIZE), "float32")
    layer(x)
    traced = []
    call = layers.RNN.call
    monkeypatch.setattr(
        layers.RNN, "call", lambda self, *args, **kwargs: traced.append(1) or call(self, *args, **kwargs)
    )
    for time in (1, 7, 31, 40):
        assert layer(x[:, :time]).sequence.shape == (3, time, HIDDEN_SIZE)
    assert not traced
    layer(x[:2])
    assert traced


# --- Training, saving, composing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [{"cell": "simple_rnn"}, {"cell": "gru", "num_layers": 2, "bidirectional": True}])
def test_the_layer_sees_what_fit_trains(form: dict) -> None:
    layer = layer_of(form)
    x, _, lengths = draw_call(layer.spec, 3)
    before, weights = [layer(x, lengths=lengths).sequence for _ in range(2)][-1], layer.weights()
    trained(layer.native)
    after = layer(x, lengths=lengths).sequence
    assert mr.difference(after, before).normwise > mr.tolerance("float32")
    assert_close(after, numpy_of(layer.native(x, mask=mask_of(lengths, x.shape[1]))), "float32")
    now = layer.weights()
    for name, array in weights.arrays.items():
        assert not np.array_equal(now.arrays[name], array)
    for mine, theirs in zip(mr.to_arrays(now, convention="keras").values(), layer.native.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("form", FORMS)
def test_native_is_the_same_function(form: dict, dtype: str) -> None:
    """From a zero state, also for rows of length 0, whatever the user's dtype policy is."""
    spec = spec_of(form, dtype=dtype, num_layers=2, bidirectional=True)
    if BACKEND.refuses(spec):
        pytest.skip(BACKEND.refuses(spec))
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        layer = BACKEND.build(mr.initialise(spec, seed=1))
        x, _, lengths = draw_call(spec, 3)
        x[~mask_of(lengths, x.shape[1])] = 0
        native = numpy_of(layer.native(x, mask=mask_of(lengths, x.shape[1])))
        output = layer(x, lengths=lengths)
    finally:
        keras.config.set_dtype_policy(policy)
    assert 0 in lengths
    assert native.dtype == dtype
    assert_close(native, reference(layer)(x.astype("float64"), lengths=lengths).sequence, dtype)
    assert_close(output.sequence, native, dtype)
    assert not native[~mask_of(lengths, x.shape[1])].any()


def test_native_is_a_layer_of_a_larger_model() -> None:
    layer = layer_of({"cell": "lstm", "num_layers": 2, "bidirectional": True})
    inputs = keras.Input((7, INPUT_SIZE))
    hidden = layer.native(layers.Masking()(inputs))
    model = keras.Model(inputs, layers.Dense(1)(layers.GlobalAveragePooling1D()(hidden)))
    before = layer.weights()
    trained(model)
    assert layer.weights() != before
    x, _, lengths = draw_call(layer.spec, 3)
    x[~mask_of(lengths, x.shape[1])] = 0  # what Masking looks for
    sequence = layer(x, lengths=lengths).sequence
    expected = sequence.sum(axis=1) / np.maximum(lengths, 1)[:, None]
    kernel, bias = model.layers[-1].get_weights()
    valid = lengths > 0
    actual = numpy_of(model(x))[valid]
    assert_close(actual, (expected @ kernel + bias)[valid].astype("float32"), "float32")


WITHOUT_MULTIRNN = """
import sys
import keras, numpy as np
folder = sys.argv[1]
model = keras.saving.load_model(folder + "/model.keras")
given = np.load(folder + "/given.npz")
np.save(folder + "/found.npy", keras.ops.convert_to_numpy(model(given["x"], mask=given["mask"])))
assert not [name for name in sys.modules if name.startswith("multirnn")]
"""


def test_a_saved_model_needs_nothing_of_ours(tmp_path: Path) -> None:
    layer = layer_of({"cell": "gru", "num_layers": 2, "bidirectional": True, "activation": mr.Activation("elu", 0.7)})
    x, _, lengths = draw_call(layer.spec, 3)
    layer.native.save(tmp_path / "model.keras")
    mask = mask_of(lengths, x.shape[1])
    np.savez(tmp_path / "given.npz", x=x, mask=mask)
    done = in_a_process(WITHOUT_MULTIRNN, tmp_path, KERAS_BACKEND=BACKEND.engine)
    assert done.returncode == 0, done.stderr
    assert_close(np.load(tmp_path / "found.npy"), layer(x, lengths=lengths).sequence, "float32")


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_slope_of_the_users_own_is_saved_too(tmp_path: Path, bidirectional: bool) -> None:
    gate = mr.Activation("hard_sigmoid", alpha=0.2, beta=0.5)
    layer = layer_of({"cell": "lstm", "recurrent_activation": gate, "bidirectional": bidirectional})
    layer.native.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert mr.read(loaded) == layer.weights()
    x, _, _ = draw_call(layer.spec, 3)
    assert_close(numpy_of(loaded(x)), layer(x).sequence, "float32")


# --- Reading ---------------------------------------------------------------------------------------------------------


def built(layer):
    layer.build((None, None, INPUT_SIZE))
    return layer


def stacked(*parts):
    return built(keras.Sequential(list(parts)))


READ = {
    "SimpleRNN": (lambda: built(layers.SimpleRNN(4)), spec_of({"cell": "simple_rnn", "hidden_size": 4})),
    "GRU": (lambda: built(layers.GRU(4)), spec_of({"cell": "gru", "hidden_size": 4})),
    "GRU, reset before, of Keras 3's hard_sigmoid": (
        lambda: built(layers.GRU(4, reset_after=False, recurrent_activation="hard_sigmoid", activation=None)),
        spec_of(
            {"cell": "gru", "hidden_size": 4},
            reset_after=False,
            activation="linear",
            recurrent_activation=mr.Activation("hard_sigmoid", alpha=1 / 6, beta=0.5),
        ),
    ),
    "what is no part of a spec": (
        lambda: built(
            layers.LSTM(4, use_bias=False, unroll=True, return_state=True, kernel_regularizer="l2", trainable=False)
        ),
        spec_of({"cell": "lstm", "hidden_size": 4, "bias": "none"}),
    ),
    "Bidirectional, of float64": (
        lambda: built(layers.Bidirectional(layers.LSTM(4, dtype="float64"), dtype="float64", name="encoder")),
        spec_of({"cell": "lstm", "hidden_size": 4, "bidirectional": True, "dtype": "float64"}),
    ),
    "Sequential, named against its order": (
        lambda: stacked(layers.GRU(5, return_sequences=True, name="layer_2"), layers.GRU(5, name="layer_1")),
        spec_of({"cell": "gru", "hidden_size": 5, "num_layers": 2}),
    ),
    "functional": (
        lambda: functional(),
        spec_of({"cell": "lstm", "hidden_size": 4, "num_layers": 2, "bidirectional": True}),
    ),
}


def functional():
    inputs = keras.Input((None, INPUT_SIZE))
    hidden, *_ = layers.Bidirectional(layers.LSTM(4, return_sequences=True, return_state=True))(inputs)
    return keras.Model(inputs, layers.Bidirectional(layers.LSTM(4))(hidden))


@pytest.mark.parametrize("name", READ)
def test_reads_the_users_own(name: str) -> None:
    make, spec = READ[name]
    if spec.dtype == "float64" and BACKEND.refuses(spec):
        pytest.skip(BACKEND.refuses(spec))
    native = make()
    rng = np.random.default_rng(0)
    native.set_weights([rng.uniform(-1, 1, array.shape).astype(array.dtype) for array in native.get_weights()])
    weights = mr.read(native)
    assert weights.spec == spec
    x = rng.standard_normal((3, 7, INPUT_SIZE)).astype(spec.dtype)
    output = native(x)
    last = numpy_of(output[0] if isinstance(output, list | tuple) else output)
    expected = mr.build(weights.astype("float64"), "numpy")(x.astype("float64")).state.h[-len(spec.directions) :]
    assert_close(last, np.concatenate(list(expected), axis=-1), spec.dtype)


def test_reads_what_it_built() -> None:
    for form in FORMS:
        weights = mr.initialise(spec_of(form, num_layers=3, bidirectional=True), seed=2)
        assert mr.read(BACKEND.build(weights).native) == weights


class OfTheUsersOwn(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.recurrent = layers.LSTM(4)

    def call(self, x):
        return self.recurrent(x)


def side_by_side():
    inputs = keras.Input((None, INPUT_SIZE))
    return keras.Model(inputs, [layers.GRU(5)(inputs), layers.GRU(5)(inputs)])


def from_a_state_of_its_own():
    inputs, state = keras.Input((None, INPUT_SIZE)), keras.Input((4,))
    return keras.Model([inputs, state], layers.GRU(4)(inputs, initial_state=state))


def called(model):
    model(np.zeros((1, 2, INPUT_SIZE), "float32"))
    return model


UNREADABLE = {
    "layer 'new' has no weights yet: call it, or build((None, None, input_size))": lambda: layers.LSTM(4, name="new"),
    "model 'empty' has no layers": lambda: keras.Sequential(name="empty"),
    "layer 'back' goes backwards, and a spec does so only beside going forwards": lambda: built(
        layers.LSTM(4, go_backwards=True, name="back")
    ),
    "layer 'sum' merges its directions by 'sum', and a spec concatenates them": lambda: built(
        layers.Bidirectional(layers.LSTM(4), merge_mode="sum", name="sum")
    ),
    "layer 'narrow' is a Bidirectional of float32 around layers of float64": lambda: built(
        layers.Bidirectional(layers.LSTM(4, dtype="float64"), name="narrow")
    ),
    "layer 'apart' merges its directions by None": lambda: built(
        layers.Bidirectional(layers.LSTM(4), merge_mode=None, name="apart")
    ),
    "layer 'drop' has dropout=0.1, which no spec has": lambda: built(layers.GRU(4, dropout=0.1, name="drop")),
    "layer 'drop' has recurrent_dropout=0.1": lambda: built(layers.GRU(4, recurrent_dropout=0.1, name="drop")),
    "no spec has the activation 'silu'; there are elu, hard_sigmoid": lambda: built(layers.LSTM(4, activation="silu")),
    "layer 'mixed' has the dtype policy 'mixed_float16', and a spec has float32 or float64 for all": lambda: built(
        layers.LSTM(4, dtype="mixed_float16", name="mixed")
    ),
    "the layers differ in hidden_size, 4 and 6": lambda: stacked(layers.LSTM(4, return_sequences=True), layers.LSTM(6)),
    "the layers differ in cell, 'lstm' and 'gru'": lambda: stacked(
        layers.LSTM(4, return_sequences=True), layers.GRU(4)
    ),
    "the layers differ in bias, 'single' and 'none'": lambda: built(
        layers.Bidirectional(layers.LSTM(4), backward_layer=layers.LSTM(4, use_bias=False, go_backwards=True))
    ),
    "some of the layers are bidirectional and some are not": lambda: stacked(
        layers.LSTM(4, return_sequences=True), layers.Bidirectional(layers.LSTM(4))
    ),
    "layer 'head' is of the class Dense; a spec is read of SimpleRNN, LSTM and GRU": lambda: stacked(
        layers.LSTM(4), layers.Dense(1, name="head")
    ),
    "layer 'loop' is of the class RNN": lambda: built(layers.RNN(layers.LSTMCell(4), name="loop")),
    "the layers of model 'parallel' are not one stack": lambda: renamed(side_by_side(), "parallel"),
    "the layers of model 'stateful' are not one stack": lambda: renamed(from_a_state_of_its_own(), "stateful"),
    "the layers of model 'own' are not one stack": lambda: renamed(called(OfTheUsersOwn()), "own"),
    "an object of the class SGD is no layer of Keras": lambda: keras.optimizers.SGD(),
}


def renamed(model, name: str):
    model.name = name
    return model


@pytest.mark.parametrize("sentence", UNREADABLE)
def test_says_what_no_spec_has(sentence: str) -> None:
    native = UNREADABLE[sentence]()
    with pytest.raises(mr.Unrepresentable) as refusal:
        mr.read(native)
    assert str(refusal.value).startswith(sentence)


# --- Refusing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "cure"),
    [
        ({"cell": "simple_rnn", "bias": "double"}, mr.fold_biases),
        ({"cell": "lstm", "bias": "double"}, mr.fold_biases),
        ({"cell": "gru", "bias": "double", "reset_after": False}, mr.fold_biases),
        ({"cell": "gru", "bias": "single"}, mr.split_biases),
    ],
)
def test_refuses_the_biases_that_keras_does_not_hold(form: dict, cure) -> None:
    spec = spec_of(form)
    reason = BACKEND.refuses(spec)
    assert reason is not None
    assert f'not bias="{spec.bias}"' in reason
    assert cure.__name__ in reason
    weights = mr.initialise(spec, seed=1)
    with pytest.raises(mr.Unsupported, match=cure.__name__):
        BACKEND.build(weights)
    cured = BACKEND.build(cure(weights))
    x, state, lengths = draw_call(spec, 3)
    expected = mr.build(weights.astype("float64"), "numpy")(x.astype("float64"), widened(state), lengths=lengths)
    assert_close(cured(x, state, lengths=lengths).sequence, expected.sequence, spec.dtype)


def test_refuses_what_an_engine_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of({"cell": "lstm"}, dtype="float64")
    for engine in ("jax", "torch"):
        monkeypatch.setattr("multirnn_keras.engines.ENGINE", engine)
        assert f"use the backend '{engine}' itself" in BACKEND.refuses(spec)
    monkeypatch.setattr("multirnn_keras.engines.ENGINE", "openvino")
    assert "KERAS_BACKEND to one of tensorflow, jax, torch" in BACKEND.refuses(spec)
