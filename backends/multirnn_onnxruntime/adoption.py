"""An ONNX model of the user's own behind the calls of a `Layer`."""

from typing import Any

from multirnn import InvalidCall, RecurrentSpec, Weights
from multirnn.adoption import Adopted, AdoptedLayer, native_spec
from multirnn_onnxruntime.graph import inputs_of, outputs_of
from multirnn_onnxruntime.layer import OnnxRuntimeLayer
from multirnn_onnxruntime.session import OnnxStack
from multirnn_onnxruntime.weights import read

__all__ = ["AdoptedModel", "adopt"]


def adopt(native: Any, spec: RecurrentSpec | None, *, compiled: bool) -> Adopted:
    """Run a model as it is; see `multirnn.adoption.adopt`.

    Args:
        native: an `OnnxStack`; or an `onnx.ModelProto` with the inputs and outputs that `multirnn_onnxruntime.graph` names.
        spec: None, or the model's own.
        compiled: ONNX Runtime has no compiled form.

    Raises:
        InvalidCall: it is no such model, or of another spec, or its compiled form is asked for.
    """
    own, readable = native_spec(native, spec, read)
    if not readable:
        raise InvalidCall(
            f"the onnxruntime backend runs an onnx.ModelProto or an OnnxStack, not a {type(native).__qualname__}"
        )
    if compiled:
        raise InvalidCall("ONNX Runtime has no compiled form of a model beside its session; run it as it is")
    model = native.model if isinstance(native, OnnxStack) else native
    names = tuple(value.name for value in model.graph.input), tuple(value.name for value in model.graph.output)
    wanted = inputs_of(own), outputs_of(own)
    if names != wanted:
        there, right = (f"{', '.join(given)} and returns {', '.join(back)}" for given, back in (names, wanted))
        raise InvalidCall(
            f"nothing tells how this model is called: it takes {there}, and {right} would be right; "
            'run what it computes by multirnn.build(multirnn.read(model), "onnxruntime")'
        )
    return AdoptedModel(native, native if isinstance(native, OnnxStack) else OnnxStack(native))


class AdoptedModel(AdoptedLayer):
    """A model, which runs as the layer that it is the native of."""

    def __init__(self, native: Any, stack: OnnxStack) -> None:
        super().__init__(_Layer(read(native), stack), f"{type(native).__name__} (onnxruntime)")
        self.native = native

    @property
    def compilable(self) -> bool:
        """ONNX Runtime has no compiled form."""
        return False

    def weights(self) -> Weights:
        """What the model holds, in initialisers or elsewhere."""
        return read(self.native)


class _Layer(OnnxRuntimeLayer):
    """A layer of a model whose initialisers may have any names."""

    def weights(self) -> Weights:
        """See `OnnxRuntimeLayer.weights`."""
        return read(self.native)
