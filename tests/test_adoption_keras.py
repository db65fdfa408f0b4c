"""The user's own layers of Keras behind the calls of a layer: held against the reference, and left as they were."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from adopted_layers import GRU, LSTM, assert_right

import multirnn as mr
from multirnn.adoption import adopt


@pytest.fixture
def keras() -> Any:
    pytest.importorskip("multirnn_keras")
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(0)
    return keras


def built(layer: Any, features: int = 5) -> Any:
    layer.build((None, None, features))
    for variable in layer.weights:  # Keras' own start has zero biases
        variable.assign(np.random.default_rng(sum(variable.shape)).uniform(-0.5, 0.5, variable.shape))
    return layer


def stateful(layers: Any) -> Any:
    layer = layers.GRU(11, stateful=True)
    layer(np.zeros((5, 7, 5), "float32"))
    return layer


KERAS: dict[str, Callable[[Any], Any]] = {
    "SimpleRNN": lambda layers: layers.SimpleRNN(11, activation="relu"),
    "LSTM in float64": lambda layers: layers.LSTM(11, return_sequences=True, dtype="float64"),
    "GRU that resets before": lambda layers: layers.GRU(11, reset_after=False, return_state=True),
    "GRU, unrolled": lambda layers: layers.GRU(11, unroll=True, return_sequences=True),
    "Bidirectional": lambda layers: layers.Bidirectional(layers.LSTM(11)),
}


@contextmanager
def as_keras_was(layer: Any) -> Iterator[None]:
    def seen() -> Any:
        parts = [part for part in layer._flatten_layers() if hasattr(part, "return_sequences")]
        flags = [(part.return_sequences, part.return_state) for part in parts]
        return flags, [array.tobytes() for array in layer.get_weights()], [v.trainable for v in layer.weights]

    before = seen()
    yield
    assert seen() == before


@pytest.mark.parametrize("name", KERAS)
def test_a_layer_of_keras(keras: Any, name: str) -> None:
    layer = built(KERAS[name](keras.layers))
    layer.trainable = False
    if layer.compute_dtype == "float64" and keras.config.backend() != "tensorflow":
        pytest.skip("Keras computes in float64 on TensorFlow alone")
    with as_keras_was(layer):
        adopted = adopt(layer)
        assert adopted.native is layer
        assert_right(adopted, mr.read(layer))
    assert (adopted.parameter_count, adopted.readable, adopted.takes_lengths) == (0, True, True)


def test_a_stack_of_keras(keras: Any) -> None:
    both = [keras.layers.Bidirectional(keras.layers.GRU(11, return_sequences=again)) for again in (True, False)]
    model = keras.Sequential([keras.Input((None, 5)), *both])
    with as_keras_was(model):
        adopted = adopt(model)
        assert_right(adopted, mr.read(model))
    assert adopted.parameter_count == model.count_params() == adopted.spec.parameter_count
    assert adopted.weights() == mr.read(model)


def lstm_by_hand(keras: Any) -> Any:
    """An LSTM as it is written by hand, i f g o, of the weights of a keras.layers.LSTM, which are i f c o."""

    class HandWritten(keras.layers.Layer):
        def build(self, shape: Any) -> None:
            self.kernel = self.add_weight(shape=(shape[-1], 44), name="kernel")
            self.recurrent = self.add_weight(shape=(11, 44), name="recurrent")
            self.bias = self.add_weight(shape=(44,), name="bias")

        def call(self, x: Any, initial_state: Any = None) -> Any:
            h, c = initial_state
            outputs = []
            for t in range(x.shape[1]):
                gates = keras.ops.matmul(x[:, t], self.kernel) + keras.ops.matmul(h, self.recurrent) + self.bias
                i, f, g, o = keras.ops.split(gates, 4, axis=1)
                c = keras.ops.sigmoid(f) * c + keras.ops.sigmoid(i) * keras.ops.tanh(g)
                h = keras.ops.sigmoid(o) * keras.ops.tanh(c)
                outputs.append(h)
            return keras.ops.stack(outputs, axis=1), h, c

    return HandWritten()


@pytest.mark.parametrize("compiled", [False, True])
def test_a_layer_of_keras_written_by_hand(keras: Any, compiled: bool) -> None:
    if compiled and keras.config.backend() == "torch":
        pytest.skip("Keras on PyTorch has no compiled form")
    model = built(keras.layers.LSTM(11))
    layer = built(lstm_by_hand(keras))
    layer.set_weights(model.get_weights())
    with as_keras_was(layer):
        adopted = adopt(layer, spec=LSTM, compiled=compiled)
        assert (adopted.readable, adopted.takes_lengths, adopted.takes_state) == (False, False, True)
        assert_right(adopted, mr.read(model), weight_gradients=False)
    assert adopted.parameter_count == LSTM.parameter_count


def test_a_cell_of_keras_in_its_layer(keras: Any) -> None:
    class Cell(keras.layers.GRUCell):
        """A GRU cell of the user's own class."""

    layer, same = built(keras.layers.RNN(Cell(11))), built(keras.layers.GRU(11))
    same.set_weights(layer.get_weights())
    with as_keras_was(layer):
        adopted = adopt(layer, spec=GRU)
        assert adopted.takes_lengths
        assert_right(adopted, mr.read(same), weight_gradients=False)


def test_a_layer_of_keras_that_takes_a_mask_takes_lengths(keras: Any) -> None:
    gru = built(keras.layers.GRU(11, return_sequences=True, return_state=True))

    class Masked(keras.layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.gru = gru

        def call(self, x: Any, h: Any = None, mask: Any = None) -> Any:
            return self.gru(x, initial_state=h, mask=mask)

    layer = Masked()
    layer.built = layer.supports_masking = True
    adopted = adopt(layer, spec=GRU)
    assert adopted.takes_lengths
    assert_right(adopted, mr.read(gru), weight_gradients=False)


@pytest.mark.parametrize(
    ("make", "options", "sentence"),
    [
        (lambda layers: layers.GRU(11), {}, "this GRU has no weights yet: call it, or build((None, None, input_size))"),
        (lambda layers: built(layers.GRU(11, dropout=0.5)), {}, "has dropout=0.5, which no spec has. To run it as it is, pass spec="),
        (lambda layers: built(layers.GRU(11)), {"spec": LSTM}, "this GRU is RecurrentSpec('gru', input_size=5, hidden_size=11), and spec= says RecurrentSpec('lstm'"),
        (lambda layers: built(layers.Dense(11, dtype="float16")), {"spec": GRU}, "this Dense computes in float16 and the spec in float32; pass a spec with dtype='float16', or make the layer with dtype='float32'"),
        (lambda layers: stateful(layers), {}, "is stateful, and would carry its state on from the calls made here; make it with stateful=False"),
    ],
)  # fmt: skip
def test_a_layer_of_keras_that_cannot_be_run(keras: Any, make: Any, options: Any, sentence: str) -> None:
    with pytest.raises(mr.InvalidCall, match=re.escape(sentence)):
        adopt(make(keras.layers), **options)
