"""The Keras backend: `keras.layers.SimpleRNN`, `LSTM`, `GRU` and `Bidirectional` themselves.

Keras runs on TensorFlow, JAX or PyTorch: on the engine that it was imported with, else on the one that the user chose
by KERAS_BACKEND or `keras.json`, else on TensorFlow.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from multirnn import InvalidCall, RecurrentSpec, Weights, accept
from multirnn.parity import Batch, Optimiser
from multirnn.weights import Array
from multirnn_keras import engines as engine  # before all that imports Keras: it loads what Keras runs on, quietly

# isort: split
from multirnn_keras import adoption, fast, layer, training
from multirnn_keras import weights as conversion
from multirnn_keras.activations import HardSigmoid
from multirnn_keras.adoption import AdoptedKeras
from multirnn_keras.fast import FastGRU, FastKerasLayer, FastLSTM, FastSimpleRNN
from multirnn_keras.layer import KerasLayer

if TYPE_CHECKING:
    from multirnn.protocol import Prepared, Work

__all__ = [
    "BACKEND",
    "FastGRU",
    "FastKerasLayer",
    "FastLSTM",
    "FastSimpleRNN",
    "HardSigmoid",
    "KerasLayer",
    "build",
]


class KerasBackend:
    """Realises what Keras has layers for: see `refuses`.

    Attributes:
        engine: what Keras runs on, "tensorflow", "jax" or "torch".
    """

    name = "keras"
    differentiable = True
    implementations = ("native", "fast")
    engine = engine.ENGINE

    def refuses(self, spec: RecurrentSpec) -> str | None:
        """Refuses forms of the biases that Keras does not hold, and float64 on engines other than TensorFlow."""
        return layer.refuses(spec)

    def build(self, weights: Weights, *, device: str | None = None, implementation: str = "native") -> KerasLayer:
        """Realise `weights.spec` with these weights, on a device as `keras.device` names it; see `build`."""
        accept(self, weights.spec)
        if implementation not in self.implementations:
            raise InvalidCall(f"implementation must be 'native' or 'fast', not {implementation!r}")
        return fast.build(weights, device) if implementation == "fast" else layer.build(weights, device)

    def read(self, native: Any) -> Weights:
        """The spec and the weights of a recurrent layer of Keras, or of a stack of them; see `weights.read`."""
        return conversion.read(native)

    def adopt(self, native: Any, spec: RecurrentSpec | None, *, compiled: bool = False) -> AdoptedKeras:
        """Run a layer or a model of the user's own as it is; see `adoption.adopt`."""
        return adoption.adopt(native, spec, compiled=compiled)

    def train(self, layer: KerasLayer, batch: Batch, optimiser: Optimiser, steps: int) -> Array:
        """Train a layer in place, by `keras.optimizers`; see `training.train`."""
        return training.train(layer, batch, optimiser, steps)

    def prepare(self, layer: KerasLayer, work: "Work", threads: int) -> "Prepared":
        """See `multirnn.protocol.Timed`."""
        from multirnn_keras import bench  # here, since only benchmarks need it

        return bench.prepare(layer, work, threads)

    def default_epsilon(self) -> float:
        """Of `keras.optimizers.Adam`."""
        return training.default_epsilon()

    def versions(self) -> Mapping[str, str]:
        """The versions of Keras and of its engine."""
        return engine.versions()

    def devices(self) -> tuple[str, ...]:
        """The devices that `build` takes here."""
        return engine.devices()


BACKEND = KerasBackend()


def build(weights: Weights, *, device: str | None = None, implementation: str = "native") -> KerasLayer:
    """Realise `weights.spec` in Keras.

    Args:
        weights: copied into the variables of the layers.
        device: as `keras.device` names it ("cpu", "gpu", "gpu:1"), "cuda" meaning "gpu"; the engine's default unless
            given.
        implementation: "native", Keras' own layers, or "fast", ours, which are the same functions.

    Raises:
        Unsupported: Keras has no layer for the spec; the sentence has the reason.
        InvalidCall: Keras' engine has no such device here, or there is no such implementation.
    """
    return BACKEND.build(weights, device=device, implementation=implementation)
