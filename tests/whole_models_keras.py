"""Four models with recurrent layers inside, as their users write them in Keras. Nothing here imports multirnn."""

from typing import Any

import keras
from keras import layers, ops


def language_model(vocabulary: int = 17, units: int = 8, dropout: float = 0.2) -> keras.Model:
    """From (batch, time) to the logits of the next word, (batch, time, vocabulary): a sequential model."""
    return keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            layers.Embedding(vocabulary, units),
            layers.Dropout(dropout),
            layers.LSTM(units, return_sequences=True),
            layers.Dropout(dropout),
            layers.LSTM(units, return_sequences=True),
            layers.Dropout(dropout),
            layers.Dense(vocabulary),
        ]
    )


def tagger(vocabulary: int = 17, tags: int = 5, units: int = 6) -> keras.Model:
    """From words (batch, time), 0 where a sentence has ended, to logits (batch, time, tags): a functional model."""
    words = keras.Input((None,), dtype="int32")
    embedded = layers.Embedding(vocabulary, units, mask_zero=True)(words)
    outputs = layers.Bidirectional(layers.LSTM(units, return_sequences=True))(embedded)
    return keras.Model(words, layers.Dense(tags)(outputs))


def translator(vocabulary: int = 17, units: int = 8) -> keras.Model:
    """From (batch, time) and the words before each target (batch, other time) to (batch, other time, vocabulary)."""
    source, target = (keras.Input((None,), dtype="int32") for _ in range(2))
    _, *meaning = layers.LSTM(units, return_state=True)(layers.Embedding(vocabulary, units)(source))
    decoder = layers.LSTM(units, return_sequences=True)
    outputs = decoder(layers.Embedding(vocabulary, units)(target), initial_state=meaning)
    return keras.Model([source, target], layers.Dense(vocabulary)(outputs))


@keras.saving.register_keras_serializable(package="whole_models")
class Forecaster(keras.Model):
    """From (batch, time, features) to the next `horizon` values: a subclass whose decoder reads its own forecasts."""

    def __init__(self, features: int = 3, units: int = 8, horizon: int = 4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.features, self.units, self.horizon = features, units, horizon
        self.encoder = layers.GRU(units, return_state=True)
        self.decoder = layers.GRU(units, return_state=True)
        self.head = layers.Dense(features)

    def build(self, shape: Any) -> None:
        """Make the weights."""
        self.encoder.build(shape)
        self.decoder.build((shape[0], 1, self.features))
        self.head.build((shape[0], self.units))

    def call(self, history: Any) -> Any:
        """See the class."""
        _, state = self.encoder(history)
        value, forecasts = history[:, -1:], []
        for _ in range(self.horizon):
            output, state = self.decoder(value, initial_state=state)
            value = value + self.head(output)[:, None]
            forecasts.append(value)
        return ops.concatenate(forecasts, axis=1)

    def get_config(self) -> dict[str, Any]:
        """For saving."""
        sizes = {"features": self.features, "units": self.units, "horizon": self.horizon}
        return {**super().get_config(), **sizes}


def forecaster() -> keras.Model:
    """A built `Forecaster`."""
    model = Forecaster()
    model.build((None, None, model.features))
    return model
