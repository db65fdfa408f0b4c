"""The ONNX Runtime backend: the operators RNN, LSTM and GRU in a graph that is made in memory; for inference only."""

from collections.abc import Mapping

import onnx
import onnxruntime

from multirnn import Weights
from multirnn.protocol import Abilities, accept
from multirnn_onnxruntime import adoption, bench, layer, weights
from multirnn_onnxruntime.layer import OnnxRuntimeLayer
from multirnn_onnxruntime.session import OnnxStack

__all__ = ["BACKEND", "OnnxRuntimeLayer", "OnnxStack", "build"]


class OnnxRuntimeBackend(Abilities):
    """Refuses float64, and more weights than an ONNX model in memory can hold; its layers have no gradients."""

    name = "onnxruntime"
    differentiable = False
    refuses = staticmethod(layer.refuses)
    read = staticmethod(weights.read)
    adopt = staticmethod(adoption.adopt)
    prepare = staticmethod(bench.prepare)

    def build(self, weights: Weights, *, device: str | None = None, threads: int = 0) -> OnnxRuntimeLayer:
        """A layer of `weights.spec` in ONNX Runtime.

        Args:
            weights: copied into the constants of an ONNX model.
            device: "cpu", which is also the default; there is no other.
            threads: how many compute one call; unless given, as ONNX Runtime chooses, one a core.

        Raises:
            Unsupported: ONNX Runtime has no operator for the spec; the sentence has the reason.
            InvalidCall: another device.
        """
        accept(self, weights.spec)
        return layer.build(weights, device, threads)

    def versions(self) -> Mapping[str, str]:
        """The versions of ONNX Runtime and of ONNX."""
        return {"onnxruntime": onnxruntime.__version__, "onnx": onnx.__version__}

    def devices(self) -> tuple[str, ...]:
        """The CPU."""
        return ("cpu",)


BACKEND = OnnxRuntimeBackend()
build = BACKEND.build
