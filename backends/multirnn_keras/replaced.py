"""The classes that `replace_layers` gives to Keras' layers: fast, under the names of Keras' own classes.

`model.summary()` shows those names, and files of weights have them in their paths.
"""

import keras

from multirnn_keras import fast

__all__ = ["GRU", "LSTM", "RNN", "SimpleRNN"]


@keras.saving.register_keras_serializable("multirnn", "ReplacedSimpleRNN")
class SimpleRNN(fast.FastSimpleRNN):
    """A `keras.layers.SimpleRNN` that was replaced."""


@keras.saving.register_keras_serializable("multirnn", "ReplacedLSTM")
class LSTM(fast.FastLSTM):
    """A `keras.layers.LSTM` that was replaced."""


@keras.saving.register_keras_serializable("multirnn", "ReplacedGRU")
class GRU(fast.FastGRU):
    """A `keras.layers.GRU` that was replaced."""


@keras.saving.register_keras_serializable("multirnn", "ReplacedRNN")
class RNN(fast.FastRNN):
    """A `keras.layers.RNN` of one of Keras' own cells that was replaced."""
