"""A user's own ONNX model, called as a `Layer`."""

from typing import Any

from onnx import ModelProto

from multirnn import InvalidCall, RecurrentSpec, Weights
from multirnn.adoption import Adopted, AdoptedLayer, native_spec
from multirnn.formats.onnx_graph import inputs_of, outputs_of
from multirnn_onnxruntime.confirmation import Trial
from multirnn_onnxruntime.layer import OnnxRuntimeLayer
from multirnn_onnxruntime.session import OnnxStack
from multirnn_onnxruntime.weights import tried

__all__ = ["AdoptedModel", "adopt"]


def adopt(native: Any, spec: RecurrentSpec | None, *, compiled: bool) -> Adopted:
    """Run a model as it is; see `multirnn.adoption.adopt`.

    Args:
        native: an `OnnxStack`; or an `onnx.ModelProto` with the signature of `multirnn.formats.onnx_graph`.
        spec: None, or the model's own.
        compiled: ONNX Runtime has no compiled form.

    Raises:
        InvalidCall: it is no such model, or of another spec, or its compiled form is asked for.
    """
    trials: list[Trial] = []

    def read(one: Any) -> Weights:
        trials.append(tried(one))
        return trials[0].weights

    _, readable = native_spec(native, spec, read)
    if not readable:
        raise InvalidCall(
            "the onnxruntime backend runs models that it can read, and multirnn.read(model) tells why it cannot read this"
            if isinstance(native, ModelProto | OnnxStack)
            else f"the onnxruntime backend runs an onnx.ModelProto or an OnnxStack, not a {type(native).__qualname__}"
        )
    if compiled:
        raise InvalidCall("ONNX Runtime has no compiled form of a model beside its session; run it as it is")
    if reason := _signature_refuses(trials[0]):
        raise InvalidCall(f'{reason}; run what it computes by multirnn.build(multirnn.read(model), "onnxruntime")')
    stack = native if isinstance(native, OnnxStack) else OnnxStack(native)
    return AdoptedModel(native, _ForeignLayer(trials[0].weights, stack))


def _signature_refuses(trial: Trial) -> str | None:
    """None if a model has the names, layout and sizes of `multirnn.formats.onnx_graph`, else the difference."""
    call, returned = trial.signature, trial.returned
    taken = (call.x, *filter(None, [call.lengths]), *(name for names in call.states for name in names))
    right = inputs_of(trial.weights.spec), outputs_of(trial.weights.spec)
    if (taken, tuple(returned)) != right:
        found, wanted = (
            f"{', '.join(inputs)} and returns {', '.join(outputs)}" for inputs, outputs in ((taken, returned), right)
        )
        return f"nothing tells how this model is called: it takes {found}, and {wanted} would be right"
    if call.layout != "time first" or any(call.fixed()):
        given = "of one size alone" if any(call.fixed()) else call.layout
        return f"this model takes x {given}, and x time first, of any size, would be right"
    if call.lengths_dtype != "int32":
        return f"this model takes lengths in {call.lengths_dtype}, and int32 would be right"
    for name, what in zip(returned, ("sequence", "h", "c"), strict=False):
        if returned[name] != what:
            return f"this model returns as {name} the {returned[name]}, and the {what} would be right"
    return None


class AdoptedModel(AdoptedLayer):
    """A model, run by a layer of it."""

    def __init__(self, native: Any, layer: OnnxRuntimeLayer) -> None:
        super().__init__(layer, f"{type(native).__name__} (onnxruntime)")
        self.native = native

    @property
    def compilable(self) -> bool:
        """ONNX Runtime has no compiled form."""
        return False


class _ForeignLayer(OnnxRuntimeLayer):
    """A layer of a model whose weights may be any constants, among other constants."""

    def __init__(self, weights: Weights, native: OnnxStack) -> None:
        super().__init__(weights, native)
        self._weights = weights

    @property
    def parameter_count(self) -> int:
        """The sizes of the weights, added up."""
        return sum(array.size for array in self._weights.arrays.values())

    def weights(self) -> Weights:
        """The weights that the session was made with."""
        return self._weights
