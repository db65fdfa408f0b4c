"""The rows of the table for Flax NNX, Haiku, Equinox, TensorFlow 1 and CuDNN's layers, held against those themselves.

Weights differ in every gate and no bias is zero, so equal outputs leave no other order. `tf_keras` has the cells of
TensorFlow 1, and the code by which Keras 2 read the files of CuDNN's layers.
"""

from typing import Any

import numpy as np
import pytest
from convention_stacks import stack
from test_conventions import assert_reference, drawn_input

import multirnn as mr
from multirnn.conventions import CONVENTIONS


def drawn(form: str, bias: str, zero: str = "", **changes: Any) -> mr.Weights:
    weights = mr.initialise(stack(form, bias, **changes), 1)
    return mr.Weights(
        weights.spec, {name: a * (not zero or not name.endswith(zero)) for name, a in weights.arrays.items()}
    )


# --- Flax NNX ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", ["SimpleCell", "LSTMCell", "OptimizedLSTMCell", "GRUCell"])
def test_flax_nnx(cell: str, bidirectional: bool) -> None:
    nnx = pytest.importorskip("flax.nnx")
    form = {"SimpleCell": "simple_rnn", "GRUCell": "gru reset after"}.get(cell, "lstm")
    weights = drawn(form, "single", "bias_hh", num_layers=1, bidirectional=bidirectional)
    x = drawn_input(weights.spec)

    def one() -> Any:
        return nnx.RNN(getattr(nnx, cell)(5, 4, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))

    module = nnx.Bidirectional(one(), one(), rngs=nnx.Rngs(0)) if bidirectional else one()
    flat = {
        "/".join(map(str, path)): np.asarray(value[...])
        for path, value in nnx.to_flat_state(nnx.state(module, nnx.Param))
    }
    drawn_biases = {name: np.full_like(a, 0.3) if name.endswith("bias") else a for name, a in flat.items()}
    read = mr.from_arrays(drawn_biases, convention="flax-nnx")
    assert read.spec == weights.spec
    for path, value in nnx.to_flat_state(nnx.state(module, nnx.Param)):
        value[...] = drawn_biases["/".join(map(str, path))]
    assert_reference(np.asarray(module(x)), read, x)

    if cell == "LSTMCell":  # an array for each gate, which is only read
        return
    arrays = mr.to_arrays(weights, convention="flax-nnx")
    assert {name: a.shape for name, a in arrays.items()} == {name: a.shape for name, a in flat.items()}
    for path, value in nnx.to_flat_state(nnx.state(module, nnx.Param)):
        value[...] = arrays["/".join(map(str, path))]
    assert_reference(np.asarray(module(x)), weights, x)
    assert mr.from_arrays(arrays, convention="flax-nnx") == weights


def test_flax_nnx_has_no_recurrent_bias_of_the_candidate() -> None:
    weights = drawn("gru reset after", "single")
    with pytest.raises(
        mr.Unrepresentable, match=r"^Flax NNX has no bias_hh in a gru, and this stack has one that is not"
    ):
        mr.to_arrays(weights, convention="flax-nnx")


# --- Haiku ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize(
    ("form", "bias"),
    [("simple_rnn", "single"), ("simple_rnn", "double"), ("lstm", "single"), ("gru reset before", "single")],
)
def test_haiku(form: str, bias: str, num_layers: int) -> None:
    haiku = pytest.importorskip("haiku")
    jax = pytest.importorskip("jax")
    relu = {"activation": "relu"} if form == "simple_rnn" else {}  # that of hk.VanillaRNN
    weights = drawn(form, bias, num_layers=num_layers, bidirectional=False, **relu)
    x = drawn_input(weights.spec)

    def run(sequence: Any) -> Any:
        options = {"double_bias": bias == "double"} if form == "simple_rnn" else {}
        kind = {"simple_rnn": haiku.VanillaRNN, "lstm": haiku.LSTM, "gru reset before": haiku.GRU}[form]
        core = haiku.DeepRNN([kind(4, **options) for _ in range(num_layers)])
        return haiku.dynamic_unroll(core, sequence, core.initial_state(len(sequence)), time_major=False)[0]

    transformed = haiku.without_apply_rng(haiku.transform(run))
    shapes = jax.eval_shape(transformed.init, jax.random.key(0), x)
    arrays = mr.to_arrays(weights, convention="haiku")
    native = {f"{module}/{name}": leaf.shape for module, leaves in shapes.items() for name, leaf in leaves.items()}
    assert {name: a.shape for name, a in arrays.items()} == native

    params: dict[str, dict[str, Any]] = {}
    for name, array in arrays.items():
        module, _, own = name.rpartition("/")
        params.setdefault(module, {})[own] = array
    assert_reference(np.asarray(transformed.apply(params, x)), weights, x)
    read = mr.from_arrays(params, convention="haiku", **relu)
    assert read.spec == weights.spec
    for name, array in weights.arrays.items():  # the forget bias is kept less the 1 that runs beside it, rounded
        assert np.allclose(read.arrays[name], array, rtol=0, atol=np.finfo("f4").eps)


# --- Equinox -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", ["none", "single"])
@pytest.mark.parametrize("form", ["lstm", "gru reset after"])
def test_equinox(form: str, bias: str) -> None:
    equinox = pytest.importorskip("equinox")
    jax = pytest.importorskip("jax")
    weights = drawn(form, bias, num_layers=1, bidirectional=False)
    kind = equinox.nn.LSTMCell if form == "lstm" else equinox.nn.GRUCell
    cell = kind(5, 4, use_bias=bias == "single", key=jax.random.key(0))
    arrays = mr.to_arrays(weights, convention="equinox")
    native = {
        name: a.shape
        for name in ("weight_ih", "weight_hh", "bias", "bias_n")
        if (a := getattr(cell, name, None)) is not None
    }
    assert {name: a.shape for name, a in arrays.items()} == native
    for name, array in arrays.items():
        cell = equinox.tree_at(lambda c, name=name: getattr(c, name), cell, jax.numpy.asarray(array))
    x = drawn_input(weights.spec)
    rows = []
    for row in x:
        state = (np.zeros(4, "f4"), np.zeros(4, "f4")) if form == "lstm" else np.zeros(4, "f4")
        steps = []
        for step in row:
            state = cell(step, state)
            steps.append(np.asarray(state[0] if form == "lstm" else state))
        rows.append(np.stack(steps))
    assert_reference(np.stack(rows), weights, x)
    assert mr.from_arrays(arrays, convention="equinox") == weights


# --- TensorFlow 1 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("form", ["simple_rnn", "lstm", "gru reset before"])
def test_tensorflow_1(form: str, num_layers: int) -> None:
    tensorflow = pytest.importorskip("tensorflow")
    cells = pytest.importorskip("tf_keras.src.layers.rnn.legacy_cells")
    kind = {"simple_rnn": cells.BasicRNNCell, "lstm": cells.BasicLSTMCell, "gru reset before": cells.GRUCell}[form]
    weights = drawn(form, "single", num_layers=num_layers, bidirectional=False)
    x = drawn_input(weights.spec)
    v1 = tensorflow.compat.v1
    with tensorflow.Graph().as_default(), v1.Session() as session:
        made = [kind(4) for _ in range(num_layers)]
        y, _ = v1.nn.dynamic_rnn(made[0] if num_layers == 1 else cells.MultiRNNCell(made), x, dtype=tensorflow.float32)
        variables = {v.name: v for v in v1.global_variables()}
        arrays = mr.to_arrays(weights, convention="tensorflow-v1")
        assert {f"{name}:0": a.shape for name, a in arrays.items()} == {n: tuple(v.shape) for n, v in variables.items()}
        for name, array in arrays.items():
            variables[f"{name}:0"].load(array, session)
        assert_reference(session.run(y), weights, x)
        named = {name: session.run(variable) for name, variable in variables.items()}
    read = mr.from_arrays(named, convention="tensorflow-v1")
    assert read.spec == weights.spec
    for name, array in weights.arrays.items():
        assert np.allclose(read.arrays[name], array, rtol=0, atol=np.finfo("f4").eps)


# --- CuDNN's layers in Keras ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["lstm", "gru reset after"])
def test_keras_cudnn(form: str) -> None:
    """Keras 2 turns the arrays of CuDNNLSTM and CuDNNGRU into those of LSTM and GRU when it loads a file."""
    tf_keras = pytest.importorskip("tf_keras")
    hdf5 = pytest.importorskip("tf_keras.src.saving.legacy.hdf5_format")
    weights = drawn(form, "double", num_layers=1, bidirectional=False)
    arrays = mr.to_arrays(weights, convention="keras-cudnn")
    names = {"lstm": "cu_dnnlstm", "gru reset after": "cu_dnngru"}
    assert [*arrays] == [f"{names[form]}/{name}" for name in ("kernel", "recurrent_kernel", "bias")]
    layer = (
        tf_keras.layers.LSTM(4, return_sequences=True)
        if form == "lstm"
        else tf_keras.layers.GRU(4, return_sequences=True)
    )
    layer.build((None, None, 5))
    layer.set_weights(hdf5.preprocess_weights_for_loading(layer, list(arrays.values()), "2.1.5", "tensorflow"))
    x = drawn_input(weights.spec)
    assert_reference(np.asarray(layer(x)), weights, x)
    assert mr.from_arrays(arrays, convention="keras-cudnn") == weights


# --- Textbooks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transposed", [False, True])
def test_a_textbooks_arrays(transposed: bool) -> None:
    rng = np.random.default_rng(0)
    wx, wh, b = (rng.standard_normal(shape).astype("f4") for shape in ((4, 5), (4, 4), (4,)))
    x = rng.standard_normal((3, 7, 5)).astype("f4")
    h, steps = np.zeros((3, 4), "f4"), []
    for step in x.transpose(1, 0, 2):
        h = np.tanh(step @ wx.T + h @ wh.T + b)
        steps.append(h)
    given = {"Wx": wx.T if transposed else wx, "Wh": wh.T if transposed else wh, "b": b}
    weights = mr.from_arrays(given)  # the shape of Wx tells which of both
    assert_reference(np.stack(steps, 1), weights, x)
    assert mr.from_arrays(given, convention="textbook") == weights
    back = mr.to_arrays(weights, convention="textbook-rows" if transposed else "textbook")
    assert all(np.array_equal(back[name], array) for name, array in given.items())


def test_square_matrices_do_not_tell() -> None:
    square = {"Wx": np.eye(4, k=1, dtype="f4"), "Wh": np.eye(4, k=1, dtype="f4"), "b": np.zeros(4, "f4")}
    with pytest.raises(mr.Unrepresentable, match=r"square, .* pass transposed=False for W x, transposed=True for x W$"):
        mr.from_arrays(square)
    one, other = (mr.from_arrays(square, transposed=transposed) for transposed in (False, True))
    assert np.array_equal(one.arrays["layers.0.forward.weight_ih"][0], square["Wx"])
    assert np.array_equal(other.arrays["layers.0.forward.weight_ih"][0], square["Wx"].T)


def test_every_row_is_held_against_something() -> None:
    assert set(CONVENTIONS) == {
        "torch", "keras", "onnx", "flax-linen",  # test_conventions.py
        "flax-nnx", "haiku", "equinox", "tensorflow-v1", "keras-cudnn", "textbook", "textbook-rows",
    }  # fmt: skip
