"""A user's own layer or model, Keras' own or written by hand, called as a `Layer`.

Keras takes and returns states one by one, `(batch, hidden_size)` each, direction after direction: h, or h and c.
"""

from collections.abc import Sequence
from functools import partial
from inspect import signature
from itertools import chain
from math import prod
from typing import Any

import keras

from multirnn import Gradients, InvalidCall, Output, RecurrentSpec, State, Weights
from multirnn.adoption import AdoptedNative, native_spec, noting
from multirnn.boundary import Inputs
from multirnn.returned import arranged, output_of
from multirnn_keras import engines
from multirnn_keras.engines import ENGINE, engine, on_device
from multirnn_keras.layer import mask_of
from multirnn_keras.structure import directions_of, stacked, variables_of, with_directions, with_settings
from multirnn_keras.weights import from_variables, read

__all__ = ["AdoptedKeras", "adopt"]


def adopt(native: Any, spec: RecurrentSpec | None, *, compiled: bool) -> "AdoptedKeras":
    """Run a layer or a model as it is; see `multirnn.adoption.adopt`.

    It is a `SimpleRNN`, `LSTM`, `GRU`, `RNN` of a cell, a `Bidirectional` one, or a stack of them in a model. Or a
    layer called as `layer(x)` or `layer(x, initial_state=…)` that returns y, or y and its states. It takes and returns
    states as Keras does: one tensor `(batch, hidden_size)`, or a list of them, direction after direction. With an
    argument `mask` it takes lengths. `compiled` runs it by `tf.function` or `jax.jit`; on PyTorch Keras compiles
    nothing unless told to, and `torch.compile` then takes minutes.

    Raises:
        InvalidCall: it is no layer, has no weights yet, is stateful, or computes in another dtype than the spec's; or
            no spec is known.
    """
    if not isinstance(native, keras.layers.Layer):
        raise InvalidCall(
            f"the keras backend runs a layer or a model of Keras, not an object of the class {type(native).__qualname__}"
        )
    kind = type(native).__name__
    if not native.built:
        raise InvalidCall(f"this {kind} has no weights yet: call it, or build((None, None, input_size))")
    spec, readable = native_spec(native, spec, read)
    if reason := engines.refuses(spec.dtype):
        raise InvalidCall(reason)
    if compiled and not engine.compiles:
        raise InvalidCall("Keras on PyTorch has no compiled form; run it as it is, or Keras on TensorFlow or JAX")
    if native.compute_dtype != spec.dtype:
        raise InvalidCall(
            f"this {kind} computes in {native.compute_dtype} and the spec in {spec.dtype}; pass a spec with "
            f"dtype={native.compute_dtype!r}, or make the layer with dtype={spec.dtype!r}"
        )
    adopted = AdoptedKerasStack if _parts(native, readable) else AdoptedKeras
    with on_device(None):
        return adopted(native, spec, readable=readable, compiled=compiled)


def _parts(native: Any, readable: bool) -> list[Any]:
    """The layers of a stack of Keras' recurrent layers; none if anything else is in it, or has a `call` of its own."""
    if readable:
        return stacked(native)
    layers = native.layers if isinstance(native, keras.Sequential) else [native]
    recurrent = all(isinstance(layer, keras.layers.RNN | keras.layers.Bidirectional) for layer in layers)
    keras_calls = all(
        "call" not in vars(part) and type(part).call.__module__.startswith("keras.")
        for part in [native, *with_directions(layers)]
    )
    return list(layers) if recurrent and keras_calls else []


class AdoptedKeras(AdoptedNative):
    """A layer or model that is called as a whole; `readable`: whether it is of Keras' own layers alone."""

    differentiable = True

    def __init__(self, native: Any, spec: RecurrentSpec, *, readable: bool, compiled: bool) -> None:
        super().__init__(native, spec, f"{type(native).__name__} (keras on {ENGINE})", compiled=compiled)
        self.readable = readable
        self._find_arguments()
        directions = chain(*map(directions_of, stacked(native) if readable else ()))
        variables = list(chain(*map(variables_of, directions)))  # in the order of Keras' weights
        self._forward, self._backward = engine.calls(self._apply, variables, "shape" if compiled else "call")

    def __reduce__(self) -> Any:
        """A copy adopts the copy of the object: the functions of this one hold its variables."""
        return partial(adopt, compiled=self.compiled), (self.native, self.spec)

    @property
    def compilable(self) -> bool:
        """Whether the engine compiles."""
        return engine.compiles

    @property
    def parameter_count(self) -> int:
        """The numbers in `native.trainable_weights`."""
        return sum(prod(variable.shape) for variable in self.native.trainable_weights)

    def weights(self) -> Weights:
        """The parameters as they are now; see `Adopted.weights`."""
        return read(self.native) if self.readable else super().weights()

    def run(self, inputs: Inputs) -> Output:
        """See `BoundaryLayer.run`."""
        with noting(self.title, inputs), on_device(None):
            found = self._forward(mask_of(inputs), [inputs.x, *inputs.state.parts])
        return output_of(found, self.spec, self.title)

    def pull_back(self, inputs: Inputs, cotangent: Output) -> Gradients:
        """See `BoundaryLayer.pull_back`."""
        cotangents = [cotangent.sequence, *cotangent.state.parts]
        with noting(self.title, inputs), on_device(None):
            weights, (x, *state) = self._backward(mask_of(inputs), [inputs.x, *inputs.state.parts], cotangents)
        named = from_variables(weights, self.spec).arrays if self.readable else {}
        return Gradients(named, x, State(*state))

    def _find_arguments(self) -> None:
        """Finds out whether `call` takes an initial state, and by which name, and a mask."""
        _, *names = signature(self.native.call).parameters.values()
        known = [argument.name for argument in names if argument.kind is not argument.VAR_KEYWORD]
        states = [name for name in known if name not in ("mask", "training")]
        self._state_name = states[0] if states else ""
        self.takes_state = bool(states)
        self.takes_lengths = "mask" in known and not isinstance(self.native, keras.Model)

    def _apply(self, mask: Any, primals: list[Any]) -> list[Any]:
        """The sequence and the parts of the final state, in tensors, from x and the parts of the initial state."""
        x, *parts = primals
        sequence, *state = arranged(self._called(mask, x, parts), tuple(x.shape), self.spec, self.title)
        if mask is not None:
            sequence = keras.ops.where(mask[:, :, None], sequence, keras.ops.zeros_like(sequence))
        return [sequence, *state]

    def _called(self, mask: Any, x: Any, parts: list[Any]) -> Any:
        arguments: dict[str, Any] = {} if mask is None else {"mask": mask}
        if self.takes_state:
            states = _one_by_one(parts)
            arguments[self._state_name] = states if len(states) > 1 else states[0]
        result = self.native(x, **arguments)
        if not isinstance(result, tuple | list):
            return result
        y, *ends = keras.tree.flatten(result)
        count = len(self.spec.form.states) * self.spec.num_layers * len(self.spec.directions)
        if len(ends) == count and all(len(end.shape) == 2 for end in ends):
            return (y, *_together(ends, self.spec))
        return (y, *ends)


class AdoptedKerasStack(AdoptedKeras):
    """A stack of Keras' own recurrent layers, each called as it is, except that it returns its states."""

    def _find_arguments(self) -> None:
        self._layers = _parts(self.native, self.readable)
        self.takes_state = self.takes_lengths = True
        for layer in self._layers:
            if layer.stateful:
                raise InvalidCall(
                    f"layer {layer.name!r} is stateful, and would carry its state on from the calls made here; "
                    "make it with stateful=False"
                )

    def _called(self, mask: Any, x: Any, parts: list[Any]) -> Any:
        states = _one_by_one(parts)
        size = len(states) // len(self._layers)
        ends = []
        with with_settings(with_directions(self._layers), return_sequences=True, return_state=True):
            for place, layer in enumerate(self._layers):
                x, *end = layer(x, initial_state=states[place * size : (place + 1) * size], mask=mask)
                ends += end
        return (x, *_together(ends, self.spec))


def _one_by_one(parts: Sequence[Any]) -> list[Any]:
    """The states one by one, from parts `(num_layers * directions, batch, hidden_size)`."""
    return [state for both in zip(*(keras.ops.unstack(part) for part in parts), strict=True) for state in both]


def _together(ends: Sequence[Any], spec: RecurrentSpec) -> list[Any]:
    """The inverse of `_one_by_one`."""
    count = len(spec.form.states)
    return [keras.ops.stack(ends[place::count]) for place in range(count)]
