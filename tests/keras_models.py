"""Whole models of Keras, as people write them, without multirnn: it is not installed where they are loaded."""

from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers

__all__ = ["MODELS", "Forecaster", "Made", "made"]

TOKENS = 20


class Made(NamedTuple):
    """A model, what it is called with, and what it learns."""

    model: Any
    x: Any
    y: Any


def _sentences(rows: int = 6, time: int = 7) -> Any:
    """Tokens `(rows, time)`, padded with 0 at the end."""
    rng = np.random.default_rng(3)
    tokens = rng.integers(1, TOKENS, (rows, time)).astype("int32")
    tokens[np.arange(time) >= rng.integers(2, time + 1, (rows, 1))] = 0
    return tokens


def language_model() -> Made:
    """Two layers with dropout between them, in a `Sequential`; the next token."""
    parts = [
        layers.Embedding(TOKENS, 5),
        layers.LSTM(11, return_sequences=True),
        layers.Dropout(0.2, seed=1),
        layers.LSTM(7, return_sequences=True, dropout=0.1, seed=2),
        layers.Dense(TOKENS),
    ]
    tokens = _sentences()
    return Made(keras.Sequential([keras.Input((None,), dtype="int32"), *parts]), tokens, np.roll(tokens, -1, 1))


def tagger() -> Made:
    """Both directions over sentences of unequal lengths, in a nested model, and a layer that is used twice."""
    inner = [
        keras.Input((None,), dtype="int32"),
        layers.Embedding(TOKENS, 5, mask_zero=True),
        layers.Bidirectional(layers.LSTM(5, return_sequences=True), name="both"),
    ]
    tokens = keras.Input((None,), dtype="int32")
    again = layers.GRU(10, return_sequences=True, name="again")
    hidden = again(again(keras.Sequential(inner, name="inner")(tokens)))
    sentences = _sentences()
    return Made(keras.Model(tokens, layers.Dense(TOKENS)(hidden)), sentences, np.roll(sentences, -1, 1))


def translator() -> Made:
    """An encoder whose last state starts the decoder."""
    source, target = (
        keras.Input((None,), dtype="int32", name="source"),
        keras.Input((None,), dtype="int32", name="target"),
    )
    embedded = layers.Embedding(TOKENS, 5, mask_zero=True)
    _, *state = layers.LSTM(11, return_state=True, name="encoder")(embedded(source))
    hidden = layers.RNN(layers.LSTMCell(11), return_sequences=True, name="decoder")(
        embedded(target), initial_state=state
    )
    model = keras.Model([source, target], layers.Dense(TOKENS)(hidden))
    sentences = _sentences()
    return Made(model, [sentences, sentences[:, ::-1].copy()], sentences)


@keras.saving.register_keras_serializable("keras_models")
class Forecaster(keras.Model):
    """A model of one's own: what the decoder returns is its next input."""

    def __init__(self, steps: int = 3, **options: Any) -> None:
        super().__init__(**options)
        self.steps = steps
        self.encoder = layers.GRU(11, return_state=True)
        self.decoder = [layers.GRU(11, return_state=True)]
        self.head = layers.Dense(5)

    def call(self, x: Any) -> Any:
        """`(batch, time, 5)` to `(batch, steps, 5)`."""
        hidden, state = self.encoder(x)
        found = []
        for _ in range(self.steps):
            last = self.head(hidden)
            found.append(last)
            hidden, state = self.decoder[0](last[:, None], initial_state=state)
        return keras.ops.stack(found, axis=1)

    def get_config(self) -> dict[str, Any]:
        """See `keras.Model.get_config`."""
        return {**super().get_config(), "steps": self.steps}


def forecaster() -> Made:
    """A series, and what comes next."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((6, 7, 5)).astype("float32")
    model = Forecaster()
    model(x)
    return Made(model, x, rng.standard_normal((6, 3, 5)).astype("float32"))


MODELS = {one.__name__: one for one in (language_model, tagger, translator, forecaster)}


def made(name: str) -> Made:
    """The same every time."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(3)
    found = MODELS[name]()
    of_tokens = found.y.dtype.kind == "i"
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True) if of_tokens else "mse"
    found.model.compile(keras.optimizers.Adam(0.01), loss)
    return found
