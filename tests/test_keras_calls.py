"""What a call of Keras' layers gives whatever is around it and in it: the same bits each time, NaN where it belongs."""

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import multirnn as mr
from multirnn import kernel
from multirnn.numerics import draw_call
from multirnn.protocol import with_implementation

multirnn_keras = pytest.importorskip("multirnn_keras")
keras = pytest.importorskip("keras")
BACKEND = multirnn_keras.BACKEND
FORMS: list[dict[str, Any]] = [
    {"cell": "simple_rnn"},
    {"cell": "lstm"},
    {"cell": "gru"},
    {"cell": "gru", "reset_after": False},
]
INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]


def built(form: dict[str, Any], implementation: str, **changes: Any) -> Any:
    spec = mr.RecurrentSpec(**{"input_size": 5, "hidden_size": 11, **form, **changes})
    return with_implementation(BACKEND, implementation).build(mr.initialise(spec, seed=1))


def arrays_of(output: mr.Output) -> list[np.ndarray]:
    return [part for part in (output.sequence, *output.state) if part is not None]


# --- Again -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", BACKEND.implementations)
@pytest.mark.parametrize("form", FORMS)
def test_a_call_gives_the_same_bits_again(form: dict[str, Any], implementation: str) -> None:
    """Whether it is the first of its kind or has been made into a graph meanwhile; of a single row too."""
    layer = built(form, implementation)
    rng = np.random.default_rng(0)
    for batch, time in ((1, 1), (1, 7), (3, 8), (1, 9), (2, 19)):
        x = rng.standard_normal((batch, time, 5)).astype("float32")
        lengths = np.arange(batch) % time + (time > batch)
        found = [layer(x, lengths=lengths) for _ in range(3)]
        gradients = [layer.vjp(x, lengths=lengths, cotangent=found[0]) for _ in range(3)]
        for again, pulled in zip(found[1:], gradients[1:], strict=True):
            for actual, expected in zip(arrays_of(again), arrays_of(found[0]), strict=True):
                assert np.array_equal(actual, expected)
            for name, expected in gradients[0].weights.items():
                assert np.array_equal(pulled.weights[name], expected)
            assert np.array_equal(pulled.x, gradients[0].x)


# --- Lengths ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", BACKEND.implementations)
@pytest.mark.parametrize("dtype", INTEGERS)
def test_lengths_of_every_integer_dtype(dtype: str, implementation: str) -> None:
    """Where the number of steps is beyond the maximum of some of them."""
    layer, time = built({"cell": "gru"}, implementation), 300
    x = np.random.default_rng(0).standard_normal((3, time, 5)).astype("float32")
    lengths = np.array([100, 0, 127])
    expected = mr.build(layer.weights().astype("float64"), "numpy")(x.astype("float64"), lengths=lengths)
    output = layer(x, lengths=lengths.astype(dtype))
    assert mr.difference(output.sequence, expected.sequence).normwise <= mr.tolerance("float32")
    if dtype.startswith("int"):
        with pytest.raises(mr.InvalidCall, match="lengths must be from 0 to 300"):
            layer(x, lengths=np.array([100, -1, 127], dtype))
    if dtype not in ("int8", "uint8"):
        with pytest.raises(mr.InvalidCall, match="lengths must be from 0 to 300"):
            layer(x, lengths=np.array([100, 0, 301], dtype))


@pytest.mark.parametrize("dtype", ["bool", *INTEGERS, "float32"])
@pytest.mark.parametrize("name", ["FastSimpleRNN", "FastLSTM", "FastGRU"])
def test_masks_of_every_dtype(name: str, dtype: str) -> None:
    """As numbers that are not zero; a mask of another time is refused."""
    layer = getattr(multirnn_keras, name)(11, return_sequences=True, zero_output_for_mask=True)
    layer.build((None, None, 5))
    x = np.random.default_rng(0).standard_normal((3, 130, 5)).astype("float32")
    mask = np.arange(130) < np.array([130, 0, 17])[:, None]
    expected = keras.ops.convert_to_numpy(layer(x, mask=mask))
    assert np.array_equal(
        keras.ops.convert_to_numpy(layer(x, mask=keras.ops.convert_to_tensor(mask.astype(dtype)))), expected
    )
    for wrong in (np.ones((3, 131), bool), np.ones((2, 130), bool)):
        with pytest.raises(Exception, match=r"shape|[Bb]roadcast|dimension|size"):
            layer(x, mask=keras.ops.convert_to_tensor(wrong))


# --- NaN and infinity ------------------------------------------------------------------------------------------------


def assert_nan_as_the_reference(layer: Any) -> None:
    reference = mr.build(layer.weights(), "numpy")
    for value in (np.nan, np.inf, -np.inf, 3e38):
        x, state, _ = draw_call(layer.spec, 3)
        x[0, 2, 1] = x[1, 4, 0] = value
        with np.errstate(all="ignore"):
            expected = reference(x, state)
        for actual, right in zip(arrays_of(layer(x, state)), arrays_of(expected), strict=True):
            assert np.array_equal(np.isnan(actual), np.isnan(right))
            assert np.array_equal(np.isinf(actual), np.isinf(right))


ACTIVATIONS = ["tanh", "relu", "elu", "softsign", "linear", mr.Activation("hard_sigmoid", 0.2, 0.5)]
CLOSED = {"recurrent_activation": mr.Activation("hard_sigmoid", 0.2, 0.5)}
"""Gates that close entirely, so that infinity may meet zero."""


@pytest.mark.parametrize("implementation", BACKEND.implementations)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("form", FORMS)
def test_nan_and_infinity_are_where_the_reference_has_them(
    form: dict[str, Any], activation: Any, implementation: str
) -> None:
    """Those that are given, and those that arise inside: `inf - inf`, `0 * inf`."""
    if implementation == "native" and form["cell"] == "gru" and activation in ("relu", "elu", "linear"):
        # Keras' own step is z h + (1 - z) n, the reference's n + z (h - n): they differ where a candidate is infinite.
        form = {**form, "activation": "tanh"}
    options = {} if form["cell"] == "simple_rnn" else CLOSED
    assert_nan_as_the_reference(built({"activation": activation, **form}, implementation, **options))


@pytest.mark.parametrize("activation", ["relu", "softsign"])
@pytest.mark.parametrize("form", FORMS)
def test_nan_and_infinity_in_the_loops(form: dict[str, Any], activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the compiled recurrence."""
    monkeypatch.setattr(kernel, "refuses", lambda: "not here")
    assert_nan_as_the_reference(built({"activation": activation, **form}, "fast"))


# --- TensorFlow's settings that cannot be taken back -----------------------------------------------------------------

SETTING = """
import sys
import numpy as np
import multirnn as mr
import multirnn_keras
import tensorflow as tf
from multirnn.numerics import draw_call
setting = sys.argv[1]
if setting == "deterministic":
    tf.config.experimental.enable_op_determinism()
elif setting == "numpy behaviour":
    tf.experimental.numpy.experimental_enable_numpy_behavior(prefer_float32=True)
elif setting == "two processors":
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    tf.device("CPU:1").__enter__()
for implementation in ("native", "fast"):
    for cell in ("simple_rnn", "lstm", "gru"):
        spec = mr.RecurrentSpec(cell, 5, 11, bidirectional=cell == "gru")
        layer = mr.build(mr.initialise(spec, seed=1), "keras", implementation=implementation)
        x, state, lengths = draw_call(spec)
        for _ in range(2):
            output = layer(x, state, lengths=lengths)
            print(output.sequence.tobytes().hex()[:4000])
            print(layer.vjp(x, state, lengths=lengths, cotangent=output).x.tobytes().hex())
        assert layer.weights() == mr.initialise(spec, seed=1)
        print(layer.native(x, mask=np.arange(x.shape[1]) < lengths[:, None]).numpy().tobytes().hex())
"""


def printed(setting: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SETTING, setting],
        env={**os.environ, "KERAS_BACKEND": "tensorflow"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.skipif(BACKEND.engine != "tensorflow", reason="of TensorFlow")
def test_settings_of_tensorflow_change_no_bit() -> None:
    expected = printed("none")
    for setting in ("deterministic", "numpy behaviour", "two processors"):
        assert printed(setting) == expected, setting
