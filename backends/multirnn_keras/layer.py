"""A stack realised by Keras: what is refused, how it is built and run, and its gradients."""

import pickle
from copy import deepcopy
from functools import cached_property
from math import prod
from typing import Any

import keras

from multirnn import (
    CONVENTIONS,
    BoundaryLayer,
    Gradients,
    Inputs,
    Output,
    RecurrentSpec,
    State,
    Unrepresentable,
    Weights,
)
from multirnn.weights import Array
from multirnn_keras.compiled import Mask, compiled
from multirnn_keras.engine import ENGINE, ENGINES, device_named, float64_refused, on_device
from multirnn_keras.structure import recurrent_layers
from multirnn_keras.weights import current, from_variables, stack

__all__ = ["KerasLayer", "build", "engine_refuses", "mask_of", "parts_of", "refuses"]


def refuses(spec: RecurrentSpec) -> str | None:
    """None where Keras has layers for the spec, else why not."""
    return engine_refuses(spec) or CONVENTIONS["keras"].refuses(spec)


def engine_refuses(spec: RecurrentSpec) -> str | None:
    """None where the engine that Keras runs on can differentiate, and compute in the spec's dtype, else why not."""
    if ENGINE not in ENGINES:
        return (
            f"Keras runs on {ENGINE!r} here, which has no gradients; "
            f"set KERAS_BACKEND to one of {', '.join(ENGINES)} before it is imported"
        )
    return float64_refused() if spec.dtype == "float64" else None


def build(weights: Weights, device: str | None) -> "KerasLayer":
    """The layer of these weights.

    Raises:
        InvalidCall: Keras' engine has no such device here.
    """
    device = device_named(device)
    with on_device(device):
        return KerasLayer(weights.spec, stack(weights), device)


class KerasLayer(BoundaryLayer):
    """A stack realised by Keras' own recurrent layers.

    The model may be trained, saved and made a part of another: the layer runs with its variables as they are now. It
    runs the cells of the model's layers, by layers of its own that also take and return states, as those of the model
    would run them.

    Args:
        spec: what the model realises.
        native: the model, a stack of recurrent layers.
        device: where it was made, and runs.
    """

    _compiles = False
    """Whether its loops are compiled by XLA in a graph, and nowhere else."""

    def __init__(self, spec: RecurrentSpec, native: Any, device: str | None = None) -> None:
        super().__init__(spec)
        self._native = native
        self._device = device
        self._function, self._pullback = compiled(self.apply, native.weights, at_once=self._compiles)

    def __copy__(self) -> "KerasLayer":
        """The same variables."""
        return type(self)(self.spec, self._native, self._device)

    def __deepcopy__(self, memo: dict[int, Any]) -> "KerasLayer":
        """Variables of its own, with the values of now; the functions of a layer hold its variables, and are made again."""
        with on_device(self._device):
            native = deepcopy(self._native, memo)
        return _restored(type(self), self.spec, native, self._device, _unsaved(self._native))

    def __reduce__(self) -> Any:
        """See `__deepcopy__`."""
        arguments = (type(self), self.spec, pickle.dumps(self._native), self._device, _unsaved(self._native))
        return _unpickled, arguments

    @cached_property
    def _passes(self) -> list[list[Any]]:
        return [[_with_states(layer, self.spec) for layer in layers] for layers in recurrent_layers(self._native)]

    @property
    def native(self) -> Any:
        """The `keras.Sequential`: `native(x)`, or `native(x, mask=mask)`, is the sequence.

        Its layers do not use cuDNN, whose results are not the same for all lengths and engines; where speed is worth
        that, set `use_cudnn = "auto"` on them, which is also what a saved and loaded model has.
        """
        return self._native

    @property
    def parameter_count(self) -> int:
        """The numbers in `native.trainable_weights`."""
        return sum(prod(variable.shape) for variable in self._native.trainable_weights)

    def weights(self) -> Weights:
        """The parameters as they are now, copied; a model that was altered is called first, as by `read`.

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
            sequence, *state = self._function(mask_of(inputs), _primals(inputs))
        return Output(sequence, State(*state))

    def pull_back(self, inputs: Inputs, cotangent: Output) -> Gradients:
        """See `BoundaryLayer.pull_back`."""
        cotangents = [cotangent.sequence, *parts_of(cotangent.state)]
        with on_device(self._device):
            weights, (x, *state) = self._pullback(mask_of(inputs), _primals(inputs), cotangents)
        return Gradients(from_variables(weights, self.spec).arrays, x, State(*state))

    def apply(self, mask: Any, primals: list[Any]) -> list[Any]:
        """The sequence and the parts of the final state, in tensors, from x and the parts of the initial state.

        Args:
            mask: `(batch, time)`, bool; None where every row is full.
            primals: x, h, and c of an LSTM, as in a call.
        """
        sequence, *parts = primals
        initial = zip(*(keras.ops.unstack(part) for part in parts), strict=True)
        final = []
        for directions in self._passes:
            outputs = []
            for layer in directions:
                output, *end = layer(sequence, initial_state=list(next(initial)), mask=mask)
                outputs.append(keras.ops.flip(output, axis=1) if layer.go_backwards else output)
                final.append(end)
            sequence = keras.ops.concatenate(outputs, axis=-1) if len(outputs) > 1 else outputs[0]
        return [sequence, *(keras.ops.stack(part) for part in zip(*final, strict=True))]


def _unpickled(
    kind: type[KerasLayer], spec: RecurrentSpec, native: bytes, device: str | None, unsaved: Any
) -> KerasLayer:
    with on_device(device):
        return _restored(kind, spec, pickle.loads(native), device, unsaved)  # noqa: S301 - within what is unpickled anyway


def _unsaved(native: Any) -> list[dict[str, Any]]:
    """What Keras forgets of layers that it copies or saves."""
    layers = [layer for directions in recurrent_layers(native) for layer in directions]
    return [
        {name: getattr(layer, name) for name in ("use_cudnn", "use_kernel") if hasattr(layer, name)} for layer in layers
    ]


def _restored(kind: type[KerasLayer], spec: RecurrentSpec, native: Any, device: str | None, unsaved: Any) -> KerasLayer:
    native.supports_masking = True
    layers = [layer for directions in recurrent_layers(native) for layer in directions]
    for layer, settings in zip(layers, unsaved, strict=True):
        for name, value in settings.items():
            setattr(layer, name, value)
    with on_device(device):
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


def _primals(inputs: Inputs) -> list[Array]:
    return [inputs.x, *parts_of(inputs.state)]


def parts_of(state: State) -> list[Array]:
    """h, or h and c."""
    return [part for part in state if part is not None]
