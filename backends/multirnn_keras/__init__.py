"""The Keras backend: `keras.layers.SimpleRNN`, `LSTM`, `GRU` and `Bidirectional` themselves.

Keras runs on TensorFlow, JAX or PyTorch: on the engine that it was imported with, else on the one that the user chose
by KERAS_BACKEND or `keras.json`, else on TensorFlow.
"""

from multirnn import Weights
from multirnn.layer import Implementation
from multirnn.protocol import Abilities, Prepared, Work, accept
from multirnn_keras import engines  # before all that imports Keras: it loads what Keras runs on, quietly

# isort: split
from multirnn_keras import adoption, fast, layer, replacement, training, weights
from multirnn_keras.activations import HardSigmoid
from multirnn_keras.fast import FastGRU, FastKerasLayer, FastLSTM, FastRNN, FastSimpleRNN
from multirnn_keras.layer import KerasLayer

__all__ = ["BACKEND", "FastGRU", "FastKerasLayer", "FastLSTM", "FastRNN", "FastSimpleRNN", "HardSigmoid"]
__all__ += ["KerasLayer", "build"]


class KerasBackend(Abilities):
    """Refuses bias forms that Keras does not hold, and float64 on engines other than TensorFlow."""

    name = "keras"
    differentiable = True
    implementations = ("native", "fast")
    refuses = staticmethod(layer.refuses)
    read = staticmethod(weights.read)
    adopt = staticmethod(adoption.adopt)
    replace_layers = staticmethod(replacement.replace_layers)
    train = staticmethod(training.train)
    default_epsilon = staticmethod(training.default_epsilon)
    versions = staticmethod(engines.versions)
    engine = engines.ENGINE

    def build(
        self, weights: Weights, *, device: str | None = None, implementation: Implementation = "native"
    ) -> KerasLayer:
        """A layer of `weights.spec` in Keras.

        Args:
            weights: copied into the variables of the layers.
            device: as `keras.device` names it ("cpu", "gpu", "gpu:1"), "cuda" meaning "gpu"; defaults to the engine's.
            implementation: "native", Keras' own layers, or "fast", ours, which are the same functions.

        Raises:
            Unsupported: Keras has no layer for the spec; the sentence has the reason.
            InvalidCall: Keras' engine has no such device here, or there is no such implementation.
        """
        accept(self, weights.spec, implementation)
        if implementation == "fast":
            return layer.build(weights, device, FastKerasLayer, fast.LAYERS)
        return layer.build(weights, device)

    def prepare(self, layer: KerasLayer, work: Work, threads: int) -> Prepared:
        """See `multirnn.protocol.Timed`."""
        from multirnn_keras.bench import prepare  # only benchmarks need it

        return prepare(layer, work, threads)

    def devices(self) -> tuple[str, ...]:
        """The engine's devices."""
        return engines.devices()


BACKEND = KerasBackend()
build = BACKEND.build
