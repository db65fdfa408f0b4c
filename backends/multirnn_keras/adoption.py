"""A layer or model of the user's own behind the calls of a `Layer`: Keras' own layers, and what is written by hand.

Keras hands states over one by one, `(batch, hidden_size)` each, direction after direction: h, or h and c.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from inspect import signature
from math import prod
from typing import Any

import keras
import numpy as np

from multirnn import Gradients, InvalidCall, Output, RecurrentSpec, State, Weights
from multirnn.adoption import AdoptedNative, native_spec, noting
from multirnn.boundary import Inputs
from multirnn.returned import arranged, output_of, states_of
from multirnn.weights import Array
from multirnn_keras.compiled import Mask
from multirnn_keras.engine import ENGINE, on_device
from multirnn_keras.layer import engine_refuses
from multirnn_keras.structure import directions_of, is_both_ways, recurrent_layers, stacked, variables_of
from multirnn_keras.weights import from_variables, read

__all__ = ["AdoptedKeras", "adopt"]

Apply = Callable[[Any, list[Any]], list[Any]]


def adopt(native: Any, spec: RecurrentSpec | None, *, compiled: bool) -> "AdoptedKeras":
    """Run a layer or a model as it is; see `multirnn.adoption.adopt`.

    Args:
        native: a `SimpleRNN`, `LSTM`, `GRU`, `RNN` of a cell, a `Bidirectional` one, or a stack of them in a model. Or
            a layer that is called as `layer(x)` or `layer(x, initial_state=…)` and returns y, or y and its states:
            both in the way of Keras, a tensor `(batch, hidden_size)` if there is one, else a list of them, direction
            after direction. With an argument `mask` it takes lengths.
        spec: what it is held to be.
        compiled: run it by what its engine has, `tf.function` or `jax.jit`. On PyTorch Keras compiles nothing unless
            told to, and `torch.compile` then takes minutes.

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
    if reason := engine_refuses(spec):
        raise InvalidCall(reason)
    if compiled and ENGINE == "torch":
        raise InvalidCall("Keras on PyTorch has no compiled form; run it as it is, or Keras on TensorFlow or JAX")
    if native.compute_dtype != spec.dtype:
        raise InvalidCall(
            f"this {kind} computes in {native.compute_dtype} and the spec in {spec.dtype}; pass a spec with "
            f"dtype={native.compute_dtype!r}, or make the layer with dtype={spec.dtype!r}"
        )
    adopted = AdoptedStack if _parts(native, readable) else AdoptedKeras
    with on_device(None):
        return adopted(native, spec, readable=readable, compiled=compiled)


def _parts(native: Any, readable: bool) -> list[Any]:
    """The layers of a stack, if it is one of Keras' recurrent layers and of nothing else, none of them called in its own way."""
    if readable:
        return stacked(native)
    layers = native.layers if isinstance(native, keras.Sequential) else [native]
    own = [native, *layers, *(part for layer in layers if is_both_ways(layer) for part in recurrent_layers(layer)[0])]
    recurrent = all(isinstance(layer, keras.layers.RNN | keras.layers.Bidirectional) for layer in layers)
    return list(layers) if recurrent and all(map(_is_called_as_keras_does, own)) else []


def _is_called_as_keras_does(layer: Any) -> bool:
    """Whether neither its class nor itself has a `call` that is not Keras' own."""
    return "call" not in vars(layer) and type(layer).call.__module__.startswith("keras.")


class AdoptedKeras(AdoptedNative):
    """A layer or model that is called as a whole.

    Args:
        native: the layer or model.
        spec: what it is held to be.
        readable: whether it is one of Keras' own, or a stack of them.
        compiled: run it by what its engine has for that.
    """

    differentiable = True

    def __init__(self, native: Any, spec: RecurrentSpec, *, readable: bool, compiled: bool) -> None:
        super().__init__(native, spec, f"{type(native).__name__} (keras on {ENGINE})", compiled=compiled)
        self.readable = readable
        self._find_arguments()
        self._variables = self._read_variables() if readable else []
        self._forward, self._backward = _ENGINES[ENGINE](self._apply, self._variables, compiled)

    def __reduce__(self) -> Any:
        """A copy adopts the copy of the object: the functions of this one hold its variables."""
        return partial(adopt, compiled=self.compiled), (self.native, self.spec)

    @property
    def compilable(self) -> bool:
        """By `tf.function` or `jax.jit`."""
        return ENGINE != "torch"

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
            found = self._forward(_mask(inputs), [inputs.x, *states_of(inputs.state)])
        return output_of(found, self.spec, self.title)

    def pull_back(self, inputs: Inputs, cotangent: Output) -> Gradients:
        """See `BoundaryLayer.pull_back`."""
        cotangents = [cotangent.sequence, *states_of(cotangent.state)]
        with noting(self.title, inputs), on_device(None):
            weights, (x, *state) = self._backward(_mask(inputs), [inputs.x, *states_of(inputs.state)], cotangents)
        named = from_variables(weights, self.spec).arrays if self.readable else {}
        return Gradients(named, x, State(*state))

    def _find_arguments(self) -> None:
        """What `call` takes beside x: an initial state, by whatever name, and a mask."""
        _, *names = signature(self.native.call).parameters.values()
        known = [argument.name for argument in names if argument.kind is not argument.VAR_KEYWORD]
        states = [name for name in known if name not in ("mask", "training")]
        self._state_name = states[0] if states else ""
        self.takes_state = bool(states)
        self.takes_lengths = "mask" in known and not isinstance(self.native, keras.Model)

    def _read_variables(self) -> list[Any]:
        """The variables in the order of Keras' weights."""
        directions = [direction for layer in stacked(self.native) for direction in directions_of(layer)]
        return [variable for direction in directions for variable in variables_of(direction)]

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


class AdoptedStack(AdoptedKeras):
    """Keras' own recurrent layers, one upon another, each called as it is; they hand back their states meanwhile."""

    def _find_arguments(self) -> None:
        self._layers = _parts(self.native, self.readable)
        self.takes_state = self.takes_lengths = True
        for layer in self._layers:
            if layer.stateful:
                raise InvalidCall(
                    f"layer {layer.name!r} is stateful, and would go on from what it is run on here; "
                    "make it with stateful=False"
                )

    def _called(self, mask: Any, x: Any, parts: list[Any]) -> Any:
        states = _one_by_one(parts)
        size = len(states) // len(self._layers)
        ends = []
        with _handing_back(self._layers):
            for place, layer in enumerate(self._layers):
                x, *end = layer(x, initial_state=states[place * size : (place + 1) * size], mask=mask)
                ends += end
        return (x, *_together(ends, self.spec))


def _one_by_one(parts: Sequence[Any]) -> list[Any]:
    """The states as Keras has them, of `(num_layers * directions, batch, hidden_size)` each."""
    return [state for both in zip(*(keras.ops.unstack(part) for part in parts), strict=True) for state in both]


def _together(ends: Sequence[Any], spec: RecurrentSpec) -> list[Any]:
    """The inverse of `_one_by_one`."""
    count = len(spec.form.states)
    return [keras.ops.stack(ends[place::count]) for place in range(count)]


@contextmanager
def _handing_back(layers: Sequence[Any]) -> Iterator[None]:
    """Recurrent layers that return their sequences and their states; afterwards they are as they were."""
    all_of_them = []
    for layer in layers:
        all_of_them.append(layer)
        if isinstance(layer, keras.layers.Bidirectional):
            all_of_them += [layer.forward_layer, layer.backward_layer]
    before = [(layer, layer.return_sequences, layer.return_state) for layer in all_of_them]
    try:
        for layer in all_of_them:
            layer.return_sequences = layer.return_state = True
        yield
    finally:
        for layer, sequences, state in before:
            layer.return_sequences, layer.return_state = sequences, state


def _mask(inputs: Inputs) -> Mask:
    return None if inputs.lengths is None else inputs.valid


# --- The engines -----------------------------------------------------------------------------------------------------

Forward = Callable[[Mask, Sequence[Array]], list[Array]]
Backward = Callable[[Mask, Sequence[Array], Sequence[Array]], tuple[list[Array], list[Array]]]


def _on_tensorflow(apply: Apply, variables: Sequence[Any], compiled: bool) -> tuple[Forward, Backward]:
    import tensorflow as tf

    values = [variable.value for variable in variables]

    def gradients(mask: Any, primals: list[Any], cotangents: list[Any]) -> Any:
        with tf.GradientTape() as tape:
            tape.watch([values, primals])
            outputs = apply(mask, primals)
        return tape.gradient(
            outputs, (values, primals), cotangents[: len(outputs)], unconnected_gradients=tf.UnconnectedGradients.ZERO
        )

    def graph(function: Callable[..., Any]) -> Callable[..., Any]:
        """One for every shape: to choose among them, a tf.function warns of what it takes for a mistake."""
        graphs: dict[tuple[Any, ...], Any] = {}

        def call(mask: Any, *groups: list[Any]) -> Any:
            key = (mask is None, *(tensor.shape for group in groups for tensor in group))
            if key not in graphs:
                graphs[key] = tf.function(function).get_concrete_function(mask, *groups)
            return graphs[key](mask, *groups)

        return call

    forward, backward = (graph(apply), graph(gradients)) if compiled else (apply, gradients)

    def tensors(arrays: Sequence[Any]) -> list[Any]:
        return [tf.convert_to_tensor(array) for array in arrays]

    def mask_of(mask: Mask) -> Any:
        return None if mask is None else tf.convert_to_tensor(mask)

    def function(mask: Mask, primals: Sequence[Array]) -> list[Array]:
        return [tensor.numpy() for tensor in forward(mask_of(mask), tensors(primals))]

    def pullback(mask: Mask, primals: Sequence[Array], cotangents: Sequence[Array]) -> Any:
        found = backward(mask_of(mask), tensors(primals), tensors(cotangents))
        return tuple([tensor.numpy() for tensor in group] for group in found)

    return function, pullback


def _on_jax(apply: Apply, variables: Sequence[Any], compiled: bool) -> tuple[Forward, Backward]:
    import jax

    def pure(values: list[Any], mask: Any, primals: list[Any]) -> list[Any]:
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return apply(mask, primals)

    def gradients(values: list[Any], mask: Any, primals: list[Any], cotangents: list[Any]) -> Any:
        outputs, pull = jax.vjp(lambda values, primals: pure(values, mask, primals), values, primals)
        return pull(cotangents[: len(outputs)])

    forward, backward = (jax.jit(pure), jax.jit(gradients)) if compiled else (pure, gradients)

    def tensors(arrays: Sequence[Any]) -> list[Any]:
        return [jax.numpy.asarray(array) for array in arrays]

    def function(mask: Mask, primals: Sequence[Array]) -> list[Array]:
        return [np.asarray(array) for array in forward([v.value for v in variables], mask, tensors(primals))]

    def pullback(mask: Mask, primals: Sequence[Array], cotangents: Sequence[Array]) -> Any:
        found = backward([v.value for v in variables], mask, tensors(primals), tensors(cotangents))
        return tuple([np.asarray(array) for array in group] for group in found)

    return function, pullback


def _on_torch(apply: Apply, variables: Sequence[Any], compiled: bool) -> tuple[Forward, Backward]:
    """Run as it stands; `adopt` refuses its compiled form."""
    import torch

    def tensors(arrays: Sequence[Any]) -> list[Any]:
        return [keras.ops.convert_to_tensor(array.copy()) for array in arrays]

    def mask_of(mask: Mask) -> Any:
        return None if mask is None else keras.ops.convert_to_tensor(mask)

    def function(mask: Mask, primals: Sequence[Array]) -> list[Array]:
        with torch.no_grad():
            return [tensor.cpu().numpy() for tensor in apply(mask_of(mask), tensors(primals))]

    def pullback(mask: Mask, primals: Sequence[Array], cotangents: Sequence[Array]) -> Any:
        # Copies of the variables: what they hold in .grad stays as it is, and frozen ones have gradients too.
        values = [variable.value.detach().requires_grad_() for variable in variables]
        inputs = [tensor.requires_grad_() for tensor in tensors(primals)]
        with torch.enable_grad(), keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            outputs = apply(mask_of(mask), inputs)
        reached = [(y, dy) for y, dy in zip(outputs, tensors(cotangents), strict=False) if y.requires_grad]
        found: Sequence[Any] = [torch.zeros_like(tensor) for tensor in (*values, *inputs)]
        if reached:
            ys, dys = zip(*reached, strict=True)
            found = torch.autograd.grad(ys, [*values, *inputs], dys, allow_unused=True, materialize_grads=True)
        arrays = [tensor.cpu().numpy() for tensor in found]
        return arrays[: len(values)], arrays[len(values) :]

    return function, pullback


_ENGINES = {"tensorflow": _on_tensorflow, "jax": _on_jax, "torch": _on_torch}
