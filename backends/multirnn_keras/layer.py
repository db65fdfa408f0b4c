"""A stack of Keras' own recurrent layers: what is refused, how it is built and run, and its gradients."""

import pickle
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import cached_property
from itertools import chain
from math import prod
from typing import Any

import keras

from multirnn import Gradients, Output, RecurrentSpec, State, Unrepresentable, Weights
from multirnn.boundary import BoundaryLayer, Inputs
from multirnn.cells import CellName
from multirnn.conventions import CONVENTIONS
from multirnn_keras import engines
from multirnn_keras.engines import device_named, engine, on_device
from multirnn_keras.engines.interface import Mask
from multirnn_keras.structure import recurrent_layers
from multirnn_keras.weights import LAYERS, current, from_variables, stack

__all__ = ["KerasLayer", "build", "mask_of", "refuses", "through"]


def refuses(spec: RecurrentSpec) -> str | None:
    """None where Keras has layers for the spec, else the reason why not."""
    return engines.refuses(spec.dtype) or CONVENTIONS["keras"].refuses(spec)


class KerasLayer(BoundaryLayer):
    """A stack realised by Keras' own recurrent layers.

    The model may be trained, saved and made a part of another: the layer runs with its variables as they are now. The
    layer wraps the model's cells in layers of its own, which also take and return states. `device` is where the model
    was made, and runs.
    """

    _eager_first = True  # short calls outside of a graph give the same bits as in one

    def __init__(self, spec: RecurrentSpec, native: Any, device: str | None = None) -> None:
        super().__init__(spec)
        self._native = native
        self._device = device
        self._forward, self._backward = engine.calls(self.apply, native.weights, "batch", eager_first=self._eager_first)

    def __copy__(self) -> "KerasLayer":
        """A layer that shares the variables."""
        return type(self)(self.spec, self._native, self._device)

    def __deepcopy__(self, memo: dict[int, Any]) -> "KerasLayer":
        """A layer with variables of its own; the compiled functions hold variables, and are made anew."""
        with on_device(self._device):
            native = deepcopy(self._native, memo)
        return _restored(type(self), self.spec, native, self._device, _unsaved(self._native))

    def __reduce__(self) -> Any:
        """See `__deepcopy__`."""
        native = pickle.dumps(self._native)
        return _restored, (type(self), self.spec, native, self._device, _unsaved(self._native))

    @cached_property
    def _passes(self) -> list[list[Any]]:
        return [[_with_states(layer, self.spec) for layer in layers] for layers in recurrent_layers(self._native)]

    @property
    def native(self) -> Any:
        """The `keras.Sequential`: `native(x)`, or `native(x, mask=mask)`, is the sequence.

        Its layers do not use cuDNN, whose results differ between lengths and engines. For its speed, set
        `use_cudnn = "auto"` on them; a model that was saved and loaded has this too.
        """
        return self._native

    @property
    def parameter_count(self) -> int:
        """The numbers in `native.trainable_weights`."""
        return sum(prod(variable.shape) for variable in self._native.trainable_weights)

    def weights(self) -> Weights:
        """The parameters as they are now, copied; a model with replaced methods is called first, as by `read`.

        Raises:
            Unrepresentable: the model has been changed, and is no longer what was built.
        """
        weights = current(self._native)
        if weights.spec != self.spec:
            raise Unrepresentable(f"the model of this layer was {self.spec!r}, and is now {weights.spec!r}")
        return weights

    def run(self, inputs: Inputs) -> Output:
        """See `BoundaryLayer.run`."""
        with on_device(self._device):
            sequence, *state = self._forward(mask_of(inputs), [inputs.x, *inputs.state.parts])
        return Output(sequence, State(*state))

    def pull_back(self, inputs: Inputs, cotangent: Output) -> Gradients:
        """See `BoundaryLayer.pull_back`."""
        cotangents = [cotangent.sequence, *cotangent.state.parts]
        with on_device(self._device):
            weights, (x, *state) = self._backward(mask_of(inputs), [inputs.x, *inputs.state.parts], cotangents)
        return Gradients(from_variables(weights, self.spec).arrays, x, State(*state))

    def apply(self, mask: Any, primals: list[Any]) -> list[Any]:
        """The sequence and the parts of the final state, in tensors, from x and the parts of the initial state."""

        def run(layer: Any, sequence: Any, initial: list[Any]) -> list[Any]:
            output, *final = layer(sequence, initial_state=initial, mask=mask)
            return [keras.ops.flip(output, axis=1) if layer.go_backwards else output, *final]

        return through(self._passes, run, primals)


def build(
    weights: Weights, device: str | None, kind: type[KerasLayer] = KerasLayer, layers: Mapping[CellName, Any] = LAYERS
) -> KerasLayer:
    """A layer of these weights, of this class, on a stack of these classes of Keras; see `multirnn_keras.build`."""
    device = device_named(device)
    with on_device(device):
        return kind(weights.spec, stack(weights, layers), device)


def through(stack: Sequence[Sequence[Any]], run: Callable[..., list[Any]], primals: Sequence[Any]) -> list[Any]:
    """The sequence and the parts of the final state of a stack, layer after layer the layer of each direction.

    `run` maps a layer, its input and its initial states to its output and its final states.
    """
    sequence, *parts = primals
    initial = zip(*(keras.ops.unstack(part) for part in parts), strict=True)
    final = []
    for directions in stack:
        outputs = []
        for layer in directions:
            output, *end = run(layer, sequence, list(next(initial)))
            outputs.append(output)
            final.append(end)
        sequence = keras.ops.concatenate(outputs, axis=-1) if len(outputs) > 1 else outputs[0]
    return [sequence, *(keras.ops.stack(part) for part in zip(*final, strict=True))]


def _unsaved(native: Any) -> list[dict[str, Any]]:
    """Settings of layers that Keras neither copies nor saves."""
    layers = chain(*recurrent_layers(native))
    return [
        {name: getattr(layer, name) for name in ("use_cudnn", "use_kernel") if hasattr(layer, name)} for layer in layers
    ]


def _restored(kind: type[KerasLayer], spec: RecurrentSpec, native: Any, device: str | None, unsaved: Any) -> KerasLayer:
    """A layer around a model, or a pickled one, with the settings that `_unsaved` found."""
    with on_device(device):
        if isinstance(native, bytes):
            native = pickle.loads(native)  # noqa: S301 - within a pickle that is being loaded anyway
        native.supports_masking = True
        for layer, settings in zip(chain(*recurrent_layers(native)), unsaved, strict=True):
            for name, value in settings.items():
                setattr(layer, name, value)
        return kind(spec, native, device)


def _with_states(layer: Any, spec: RecurrentSpec) -> Any:
    """A layer that runs the same cell over the same variables, and takes and returns states."""
    native = keras.layers.RNN(
        layer.cell,
        return_sequences=True,
        return_state=True,
        go_backwards=layer.go_backwards,  # then its outputs stand in the order in which they were computed
        zero_output_for_mask=True,
        dtype=spec.dtype,
    )
    native.build((None, None, layer.cell.kernel.shape[0]))
    return native


def mask_of(inputs: Inputs) -> Mask:
    """Which steps are not padding, `(batch, time)`; None where every row is full."""
    return None if inputs.lengths is None else inputs.valid
