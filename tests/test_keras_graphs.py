"""Keras' fast layers in the engines' graphs and tapes: traced once, differentiated twice, compiled by XLA."""

import numpy as np
import pytest
from keras_layers import (
    BACKEND,
    FAST,
    HIDDEN_SIZE,
    INPUT_SIZE,
    MEANS,
    ON_TENSORFLOW,
    assert_close,
    keras,
    mask_of,
    multirnn_keras,
    spec_of,
    trained,
    use,
)

import multirnn as mr
from multirnn import kernel
from multirnn.numerics import draw_call

layers = keras.layers
only_tensorflow = pytest.mark.skipif(not ON_TENSORFLOW, reason="of TensorFlow's graphs and tapes")


def layer_of(form: dict, **changes) -> multirnn_keras.FastKerasLayer:
    return FAST.build(mr.initialise(spec_of(form, **changes), seed=1))


@pytest.fixture(params=MEANS)
def means(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    return use(request.param, monkeypatch)


@only_tensorflow
def test_a_repeated_shape_is_not_traced_again(means: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from multirnn_keras import fast, loop, reverse

    layer = layer_of({"cell": "simple_rnn"})
    x = np.zeros((3, 20, INPUT_SIZE), "float32")
    cotangent = layer(x)
    layer.vjp(x, cotangent=cotangent)
    for module in (loop, reverse):
        monkeypatch.setattr(module, "cell_of", None)
    monkeypatch.setattr(fast, "recurrence", None)
    for _ in range(3):
        layer(x)
        layer.vjp(x, cotangent=cotangent)


@only_tensorflow
@pytest.mark.parametrize("go_backwards", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_a_tape_of_eager_calls(masked: bool, go_backwards: bool, means: str) -> None:
    """As TensorFlow's own of Keras' own layer; a persistent tape may be asked twice."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    x = tf.constant(rng.standard_normal((3, 7, INPUT_SIZE)).astype("float32"))
    mask = rng.random((3, 7)) < 0.6 if masked else None
    options = {"return_sequences": True, "go_backwards": go_backwards}
    theirs, mine = layers.LSTM(4, **options), multirnn_keras.FastLSTM(4, **options)
    for layer in (theirs, mine):
        layer.build((None, None, INPUT_SIZE))
    mine.set_weights(theirs.get_weights())
    found = []
    for layer in (theirs, mine, mine):
        values = [x, *(variable.value for variable in layer.trainable_weights)]
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            loss = tf.reduce_sum(layer(x, mask=mask) ** 2)
        found.append(tape.gradient(loss, values))
        for first, second in zip(found[-1], tape.gradient(loss, values), strict=True):
            assert np.array_equal(first, second)
    for expected, actual, again in zip(*found, strict=True):
        assert_close(actual, expected)
        assert np.array_equal(actual, again)


@only_tensorflow
def test_tensors_have_the_memory_that_the_compiled_loop_wrote() -> None:
    """Where no tape watches, nothing is copied: neither on the way in nor out."""
    if kernel.refuses():
        pytest.skip(kernel.refuses())
    import tensorflow as tf
    from multirnn_keras import kernel as keras_kernel
    from multirnn_keras import memory

    layer = layer_of({"cell": "lstm"})
    made: list[int] = []
    x = memory.copied(np.zeros((3, 7, INPUT_SIZE), "float32"))
    state = [tf.zeros((1, 3, HIDDEN_SIZE))] * 2

    def call_record(**given) -> kernel.CallRecord:
        made.extend((given["x"][0], given["y"][0]))
        return kernel.call_record(**given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras_kernel, "call_record", call_record)
        sequence, *_ = layer.apply(None, [x, *state])
    assert made == [kernel.address(np.asarray(x)), kernel.address(np.asarray(sequence))]


@only_tensorflow
@pytest.mark.parametrize("graph", [False, True])
def test_gradients_of_gradients(graph: bool, means: str) -> None:
    """As TensorFlow's own of Keras' own layer."""
    import tensorflow as tf

    spec = spec_of({"cell": "gru" if graph else "lstm"}, dtype="float64", hidden_size=3)
    weights = mr.initialise(spec, seed=1)
    x, _, lengths = draw_call(spec, 3)
    mask = mask_of(lengths, x.shape[1])

    def second(native):
        values = [variable.value for variable in native.weights]
        given = tf.constant(x)
        with tf.GradientTape() as outer:
            outer.watch([given, *values])
            with tf.GradientTape() as inner:
                inner.watch([given, *values])
                loss = tf.reduce_sum(native(given, mask=mask) ** 2)
            gradients = inner.gradient(loss, [given, *values])
            total = tf.add_n([tf.reduce_sum(tf.square(gradient)) for gradient in gradients])
        return outer.gradient(total, [given, *values])

    fast, native = FAST.build(weights).native, BACKEND.build(weights).native
    found = tf.function(lambda: second(fast))() if graph else second(fast)
    for actual, expected in zip(found, second(native), strict=True):
        assert_close(actual.numpy(), expected.numpy(), "float64")


@only_tensorflow
def test_what_xla_compiles_needs_no_call_back() -> None:
    import tensorflow as tf

    layer = layer_of({"cell": "lstm"}, bidirectional=True)
    x, _, _ = draw_call(layer.spec, 3)
    compiled = tf.function(layer.native, jit_compile=True)
    assert_close(compiled(tf.constant(x)).numpy(), layer(x).sequence)
    trained(layer.native, jit_compile=True)


@only_tensorflow
def test_any_batch_and_time_in_one_graph(means: str) -> None:
    import tensorflow as tf

    layer = layer_of({"cell": "gru"}, bidirectional=True)
    graph = tf.function(layer.native, input_signature=[tf.TensorSpec((None, None, INPUT_SIZE))])
    for batch, time in ((3, 7), (1, 2), (5, 19)):
        x = np.random.default_rng(0).standard_normal((batch, time, INPUT_SIZE)).astype("float32")
        assert_close(graph(tf.constant(x)).numpy(), layer(x).sequence)


@pytest.mark.skipif(BACKEND.engine != "torch", reason="of PyTorch's tapes")
def test_second_derivatives_on_torch() -> None:
    import torch

    spec = spec_of({"cell": "gru"}, hidden_size=3)
    weights = mr.initialise(spec, seed=1)
    x, _, _ = draw_call(spec, 3)

    def second(native):
        given = torch.tensor(x, requires_grad=True)
        (gradient,) = torch.autograd.grad((native(given) ** 2).sum(), given, create_graph=True)
        return torch.autograd.grad((gradient**2).sum(), given)[0].numpy()

    assert_close(second(FAST.build(weights).native), second(BACKEND.build(weights).native))


@pytest.mark.skipif(BACKEND.engine != "jax", reason="of JAX's transformations")
def test_second_derivatives_on_jax() -> None:
    import jax

    spec = spec_of({"cell": "gru"}, hidden_size=3)
    weights = mr.initialise(spec, seed=1)
    x, _, _ = draw_call(spec, 3)

    def second(native):
        values = [variable.value for variable in native.trainable_variables]
        others = [variable.value for variable in native.non_trainable_variables]

        def loss(x):
            return (native.stateless_call(values, others, x)[0] ** 2).sum()

        return jax.grad(lambda x: (jax.grad(loss)(x) ** 2).sum())(x)

    assert_close(second(FAST.build(weights).native), second(BACKEND.build(weights).native))
