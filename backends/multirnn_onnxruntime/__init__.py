"""The ONNX Runtime backend: the operators RNN, LSTM and GRU in a graph that is made in memory; for inference only."""

from collections.abc import Mapping
from typing import Any

import onnx
import onnxruntime

from multirnn import RecurrentSpec, Weights, accept
from multirnn.adoption import Adopted
from multirnn.protocol import Prepared, Work
from multirnn_onnxruntime import adoption, bench, layer
from multirnn_onnxruntime import weights as conversion
from multirnn_onnxruntime.layer import OnnxRuntimeLayer
from multirnn_onnxruntime.session import OnnxStack

__all__ = ["BACKEND", "OnnxRuntimeLayer", "OnnxStack", "build"]


class OnnxRuntimeBackend:
    """Realises every spec in float32; its layers have no gradients. See `refuses`."""

    name = "onnxruntime"
    differentiable = False

    def refuses(self, spec: RecurrentSpec) -> str | None:
        """Refuses float64, and more weights than an ONNX model in memory can hold."""
        return layer.refuses(spec)

    def build(self, weights: Weights, *, device: str | None = None) -> OnnxRuntimeLayer:
        """Realise `weights.spec` with these weights; see `build`."""
        accept(self, weights.spec)
        return layer.build(weights, device)

    def read(self, native: Any) -> Weights:
        """The spec and the weights of an `OnnxStack` or of an `onnx.ModelProto`; see `weights.read`."""
        return conversion.read(native)

    def adopt(self, native: Any, spec: RecurrentSpec | None, *, compiled: bool = False) -> Adopted:
        """Run an `OnnxStack` or an `onnx.ModelProto` as it is; see `adoption.adopt`."""
        return adoption.adopt(native, spec, compiled=compiled)

    def prepare(self, layer: OnnxRuntimeLayer, work: Work, threads: int) -> Prepared:
        """See `multirnn.protocol.Timed`."""
        return bench.prepare(layer, work, threads)

    def versions(self) -> Mapping[str, str]:
        """The versions of ONNX Runtime and of ONNX."""
        return {"onnxruntime": onnxruntime.__version__, "onnx": onnx.__version__}

    def devices(self) -> tuple[str, ...]:
        """The devices that `build` takes here."""
        return ("cpu",)


BACKEND = OnnxRuntimeBackend()


def build(weights: Weights, *, device: str | None = None, threads: int = 0) -> OnnxRuntimeLayer:
    """Realise `weights.spec` in ONNX Runtime.

    Args:
        weights: copied into the constants of an ONNX model.
        device: "cpu", which is also the default; there is no other.
        threads: how many compute one call; as ONNX Runtime chooses, one a core, unless given.

    Raises:
        Unsupported: ONNX Runtime has no operator for the spec; the sentence has the reason.
        InvalidCall: another device.
    """
    accept(BACKEND, weights.spec)
    return layer.build(weights, device, threads)
