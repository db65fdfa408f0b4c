"""Keras' layers with a loop of ours: the same functions, weights and gradients, on each of Keras' three engines.

On TensorFlow the conformance suite holds for the compiled recurrence; the loops, which run without it, on the other
engines, and for gradients of gradients, are held against the reference here, the other engines in processes of their own.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from keras_layers import (
    BACKEND,
    FAST,
    INPUT_SIZE,
    MEANS,
    ON_TENSORFLOW,
    assert_close,
    keras,
    multirnn_keras,
    numpy_of,
    spec_of,
    trained,
    use,
    widened,
)

import multirnn as mr
from multirnn import kernel
from multirnn.numerics import draw_call
from multirnn.protocol import MODES, SGD_RATE, Work
from multirnn.testing import cases

layers = keras.layers
only_tensorflow = pytest.mark.skipif(not ON_TENSORFLOW, reason="of TensorFlow's graphs and tapes")
FORMS = [
    {"cell": "simple_rnn", "activation": "relu"},
    {"cell": "lstm", "activation": mr.Activation("elu", 0.7)},
    {"cell": "gru"},
    {"cell": "gru", "reset_after": False, "recurrent_activation": mr.Activation("hard_sigmoid", 0.2, 0.5)},
]
KINDS = {
    "simple_rnn": multirnn_keras.FastSimpleRNN,
    "lstm": multirnn_keras.FastLSTM,
    "gru": multirnn_keras.FastGRU,
}


def layer_of(form: dict, **changes) -> multirnn_keras.FastKerasLayer:
    return FAST.build(mr.initialise(spec_of(form, **changes), seed=1))


@pytest.fixture(params=MEANS)
def means(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    return use(request.param, monkeypatch)


# --- The same function -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", [pytest.param(check, id=name) for name, check in cases()])
@pytest.mark.skipif(not ON_TENSORFLOW, reason="the other engines run a part of it, in processes of their own")
def test_the_suite_holds(check) -> None:
    check(FAST)


@pytest.mark.parametrize("form", FORMS)
def test_the_loops_agree_too(form: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """In graphs, for lengths that run without one elsewhere, and for others."""
    monkeypatch.setattr(kernel, "refuses", lambda: "not here")
    both_ways = {"bidirectional": True, "num_layers": 2}
    for steps, changes in ((19, {}), (7, both_ways), (7, {"bias": "none", "dtype": "float64"})):
        spec = spec_of(form, **changes)
        if BACKEND.refuses(spec):
            continue
        weights = mr.initialise(spec, seed=1)
        layer, numpy = FAST.build(weights), mr.build(weights.astype("float64"), "numpy")
        rng = np.random.default_rng(0)
        x = rng.standard_normal((3, steps, INPUT_SIZE)).astype(spec.dtype)
        lengths = np.array([steps, 0, steps - 2])
        output, expected = layer(x, lengths=lengths), numpy(x.astype("float64"), lengths=lengths)
        assert_close(output.sequence, expected.sequence, spec.dtype)
        gradients = layer.vjp(x, lengths=lengths, cotangent=output)
        wanted = numpy.vjp(x.astype("float64"), lengths=lengths, cotangent=expected)
        for name, array in wanted.weights.items():
            assert_close(gradients.weights[name], array, spec.dtype)
        assert_close(gradients.x, wanted.x, spec.dtype)


@pytest.mark.parametrize("go_backwards", [False, True])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("name", ["SimpleRNN", "LSTM", "GRU"])
def test_every_mask_and_option_of_keras(name: str, zero: bool, go_backwards: bool, means: str) -> None:
    """Interior and leading gaps too, which lengths do not have: as Keras' own layer."""
    options = {"return_state": True, "zero_output_for_mask": zero, "go_backwards": go_backwards}
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 9, INPUT_SIZE)).astype("float32")
    mask = rng.random((3, 9)) < 0.6
    mask[0, :2] = False
    for return_sequences in (False, True):
        theirs = getattr(layers, name)(4, return_sequences=return_sequences, **options)
        mine = getattr(multirnn_keras, f"Fast{name}")(4, return_sequences=return_sequences, **options)
        for layer in (theirs, mine):
            layer.build((None, None, INPUT_SIZE))
        theirs.set_weights([rng.uniform(-1, 1, array.shape) for array in theirs.get_weights()])
        mine.set_weights(theirs.get_weights())
        for given in (None, mask):
            for actual, expected in zip(mine(x, mask=given), theirs(x, mask=given), strict=True):
                assert_close(numpy_of(actual), numpy_of(expected))


@pytest.mark.parametrize("name", ["SimpleRNN", "LSTM", "GRU"])
def test_inputs_and_states_of_other_dtypes_and_shapes(name: str, means: str) -> None:
    """Integers, and a state and a mask of one row for all: as Keras' own layer on TensorFlow. What it refuses is refused."""
    rng = np.random.default_rng(0)
    theirs, mine = getattr(layers, name)(4), getattr(multirnn_keras, f"Fast{name}")(4)
    for layer in (theirs, mine):
        layer.build((None, None, INPUT_SIZE))
    mine.set_weights(theirs.get_weights())
    x = rng.integers(-2, 3, (3, 7, INPUT_SIZE))
    parts = len(mine.cell.state_size) if name == "LSTM" else 1
    state = [rng.integers(0, 2, (1, 4)) for _ in range(parts)]
    mask = rng.random((1, 7)) < 0.6
    whole = [np.repeat(part, 3, axis=0).astype("float32") for part in state]
    expected = theirs(x.astype("float32"), initial_state=whole, mask=np.repeat(mask, 3, axis=0))
    assert_close(numpy_of(mine(x, initial_state=state, mask=mask)), numpy_of(expected))
    for shape in ((3, 5), (2, 4), (4,)):
        with pytest.raises(Exception, match=r"shape|Incompatible|broadcast|expand"):
            mine(x, initial_state=[np.zeros(shape, "float32")] * parts)
    with pytest.raises(mr.InvalidCall, match="was built for 5 features, and is given 4"):
        mine(x[:, :, :4])


@only_tensorflow
def test_a_graph_of_any_size_refuses_what_does_not_fit(means: str) -> None:
    import tensorflow as tf

    layer = multirnn_keras.FastGRU(4)
    layer.build((None, None, INPUT_SIZE))
    any_size = [tf.TensorSpec((None, None, None)), tf.TensorSpec((None, 4))]
    graph = tf.function(lambda x, h: layer(x, initial_state=h), input_signature=any_size)
    x = np.random.default_rng(0).standard_normal((3, 7, INPUT_SIZE)).astype("float32")
    h = np.full((3, 4), 0.5, "float32")
    assert_close(graph(x, h).numpy(), layer(x, initial_state=h).numpy())
    assert_close(graph(x, h[:1]).numpy(), layer(x, initial_state=h).numpy())
    for wrong in ((x[:, :, :4], h), (x, h[:2])):
        with pytest.raises(tf.errors.InvalidArgumentError):
            graph(*wrong)


@pytest.mark.parametrize("implementation", BACKEND.implementations)
@pytest.mark.parametrize("form", FORMS)
def test_outputs_are_the_callers_own(form: dict, implementation: str) -> None:
    """Their memory may be TensorFlow's. What is written there changes no other output, no input and no later call."""
    spec = spec_of(form)
    layer = BACKEND.build(mr.initialise(spec, seed=1), implementation=implementation)
    rng = np.random.default_rng(0)
    for shape in ((1, 1, INPUT_SIZE), (3, 19, INPUT_SIZE)):
        x = rng.standard_normal(shape).astype("float32")
        expected = mr.build(layer.weights(), "numpy")(x)
        given = x.copy()
        for _ in range(3):  # without a graph, and in one
            output = layer(x)
            assert_close(output.sequence, expected.sequence)
            output.sequence[...] = np.nan
            assert_close(output.state.h, expected.state.h)
            assert np.array_equal(x, given)


def test_what_no_spec_has_is_run_by_keras() -> None:
    x = np.random.default_rng(0).standard_normal((3, 7, INPUT_SIZE)).astype("float32")
    for options in ({"activation": "swish"}, {"unroll": True}, {"dropout": 0.5}):
        theirs, mine = layers.LSTM(4, seed=1, **options), multirnn_keras.FastLSTM(4, seed=1, **options)
        for layer in (theirs, mine):
            layer.build((None, 7, INPUT_SIZE))
        mine.set_weights(theirs.get_weights())
        assert_close(numpy_of(mine(x)), numpy_of(theirs(x)))
        if "dropout" in options:
            assert mr.difference(numpy_of(mine(x, training=True)), numpy_of(mine(x))).normwise > mr.tolerance("float32")


# --- A citizen of Keras ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_counts_trains_saves_and_loads(form: dict, tmp_path: Path) -> None:
    layer = layer_of(form, num_layers=2, bidirectional=True)
    lines: list[str] = []
    layer.native.summary(print_fn=lines.append)
    assert f"Trainable params: {layer.spec.parameter_count:,} " in "\n".join(lines)
    own = BACKEND.build(mr.initialise(layer.spec, seed=1)).native
    assert [v.shape for v in layer.native.weights] == [v.shape for v in own.weights]

    inputs = keras.Input((None, INPUT_SIZE))
    model = keras.Model(inputs, layers.Dense(2)(layers.Dropout(0.0)(layer.native(inputs))))
    before = layer.weights()
    x, _, _ = draw_call(layer.spec, 3)
    untrained = layer(x)
    trained(model)
    assert layer.weights() != before
    assert mr.difference(layer(x).sequence, untrained.sequence).normwise > mr.tolerance("float32")
    assert_close(numpy_of(layer.native(x)), layer(x).sequence)

    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert_close(numpy_of(loaded(x)), numpy_of(model(x)))
    stack = loaded.get_layer(layer.native.name)
    assert {type(part.forward_layer) for part in stack.layers} == {KINDS[form["cell"]]}
    assert mr.read(stack) == layer.weights() == mr.read(layer.native)


def test_weights_that_are_changed_in_place_count_at_once() -> None:
    """Also those whose gates are put in another order, and kept so."""
    for form in FORMS:
        layer = layer_of(form)
        x, state, lengths = draw_call(layer.spec, 3)
        layer(x, state, lengths=lengths)
        for variable in layer.native.weights:
            variable.assign_add(keras.ops.full(variable.shape, 0.25))
            numpy = mr.build(layer.weights().astype("float64"), "numpy")
            expected = numpy(x.astype("float64"), widened(state), lengths=lengths)
            assert_close(layer(x, state, lengths=lengths).sequence, expected.sequence)


def test_says_what_runs() -> None:
    layer = layer_of({"cell": "gru"})
    plan = layer.plan(32, 100, lengths=True, gradients=True)
    assert plan.implementation == "fast"
    assert plan.sentence
    with pytest.raises(mr.InvalidCall, match="'native', 'fast', not the implementation 'quick'"):
        multirnn_keras.build(layer.weights(), implementation="quick")


@only_tensorflow
def test_one_step_of_many_rows_with_many_weights_is_left_to_the_loop() -> None:
    layer = layer_of({"cell": "lstm"}, hidden_size=389)
    if kernel.refuses() is None:
        assert layer.plan(8, 1) == layer.plan(9, 2) != layer.plan(9, 1)
    x = np.random.default_rng(0).standard_normal((9, 1, INPUT_SIZE)).astype("float32")
    expected = mr.build(layer.weights().astype("float64"), "numpy")(x.astype("float64"))
    for _ in range(2):
        assert_close(layer(x).sequence, expected.sequence)


# --- What is timed ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", BACKEND.implementations)
@pytest.mark.parametrize("mode", MODES)
def test_what_is_timed_is_right(mode: str, implementation: str) -> None:
    spec = spec_of({"cell": "lstm"})
    weights = mr.initialise(spec, seed=1)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 1 if mode == "streaming" else 7, INPUT_SIZE)).astype("float32")
    lengths = None if mode == "streaming" else np.array([7, 2, 5])
    numpy = mr.build(weights, "numpy")
    output = numpy(x, lengths=lengths)
    target = np.ones_like(output.sequence)
    work = Work(weights, x, lengths, mode, output if mode == "gradients" else None, target)
    prepared = BACKEND.prepare(BACKEND.build(weights, implementation=implementation), work, 1)
    found = prepared.result()
    assert prepared.plan
    for _ in range(2):
        prepared.call()
        if prepared.boundary:
            prepared.boundary()
    if mode in ("inference", "streaming"):
        assert_close(found.sequence, output.sequence)
        assert_close(found.state.c, output.state.c)
        return
    cotangent = output
    if mode == "training":
        cotangent = mr.Output(2 * (output.sequence - target) / target.size, mr.State(*map(np.zeros_like, output.state)))
    for name, gradient in numpy.vjp(x, lengths=lengths, cotangent=cotangent).weights.items():
        if mode == "training":
            assert_close(found[name], weights.arrays[name] - SGD_RATE * gradient)
        else:
            assert_close(found.weights[name], gradient)


# --- The other engines -----------------------------------------------------------------------------------------------

ELSEWHERE = """
import sys, pytest
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *sys.argv[2:], "-k", sys.argv[1]]))
"""
GRAPHS = str(Path(__file__).with_name("test_keras_graphs.py"))


@pytest.mark.parametrize("engine", ["jax", "torch"])
@pytest.mark.skipif(not ON_TENSORFLOW, reason="these are the tests in the other engines' processes")
def test_on_the_other_engines(engine: str) -> None:
    """What holds on every engine, some of it on each of the others."""
    pytest.importorskip(engine)
    one_mask, one_model = "every_mask_and_option_of_keras[loops-LSTM-False-False]", "saves_and_loads[form3]"
    some = "form1 or form3"
    wanted = f"loops_agree and ({some}) or {one_mask} or {one_model} or in_place or other_dtypes or second or is_timed and fast"
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, wanted, __file__, GRAPHS],
        env={**os.environ, "KERAS_BACKEND": engine},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
