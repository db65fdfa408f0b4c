"""Whether an object computes the stack that its structure says: it is called once, and left as it was."""

import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import keras
import numpy as np

from multirnn import Output, State, Unrepresentable, Weights
from multirnn import build as build_layer
from multirnn.boundary import Inputs
from multirnn.comparison import widened
from multirnn.confirmation import confirmed, probe
from multirnn.weights import Array
from multirnn_keras.engine import ENGINE, float64_refused
from multirnn_keras.structure import directions_of, is_both_ways, returned

__all__ = ["confirm", "title_of"]


def title_of(native: Any) -> str:
    """An object at the beginning of a sentence."""
    kind = "model" if isinstance(native, keras.Model) else "layer"
    return f"{kind} {native.name!r}"


def confirm(native: Any, layers: Sequence[Any], weights: Weights) -> Weights:
    """The weights, after the object itself has computed what they describe, from its own input to its own outputs.

    Args:
        native: a built layer or model.
        layers: the stack that it is, by its structure.
        weights: read from them.

    Raises:
        Unrepresentable: it computes something else, or cannot be called.
    """
    if weights.spec.dtype == "float64" and (reason := float64_refused()):
        raise Unrepresentable(f"{title_of(native)} is of float64; {reason}")
    parts = returned(native, list(layers))
    batch, time = _sizes(native, layers)
    last = layers[-1]
    # There Keras returns zero as the last output of a row with padding, and not the last valid one.
    ragged = last.return_sequences or not any(each.zero_output_for_mask for each in directions_of(last))
    options: dict[str, Any] = {"ragged": ragged, "state": not isinstance(native, keras.Model)}
    options.update(batch=batch or 5, time=time or 7)
    inputs = probe(weights, **options)
    arrays = _called(native, layers, inputs)
    if len(arrays) != len(parts):
        raise Unrepresentable(f"{title_of(native)} returns {len(arrays)} arrays, and by its layers {len(parts)}")
    for output in _outputs(dict(zip(parts, arrays, strict=True)), layers, weights, inputs, title_of(native)):
        confirmed(weights, lambda _, output=output: output, title_of(native), **options)  # type: ignore[misc]
    return weights


def _sizes(native: Any, layers: Sequence[Any]) -> tuple[int | None, int | None]:
    """The batch and the time that an object is bound to; None where it is not."""
    if isinstance(native, keras.Model):
        batch, time, *_ = native.inputs[0].shape
        return batch, time
    states = [state for layer in layers for state in _states_kept(layer)]
    return (states[0].shape[0] if states else None), None


def _states_kept(layer: Any) -> list[Any]:
    """The variables of the states that a stateful layer goes on from."""
    parts = [layer, layer.forward_layer, layer.backward_layer] if is_both_ways(layer) else [layer]
    return [state for part in parts for state in keras.tree.flatten(getattr(part, "states", None) or [])]


# --- The call --------------------------------------------------------------------------------------------------------


def _called(native: Any, layers: Sequence[Any], inputs: Inputs) -> list[Array]:
    """What the object returns."""
    dtype = inputs.x.dtype.name
    arguments: dict[str, Any] = {"training": False}
    with _without_trace(native, layers):
        if inputs.lengths is not None:
            arguments["mask"] = keras.ops.convert_to_tensor(inputs.valid)
        if not isinstance(native, keras.Model):
            states = [part for part in inputs.state if part is not None]
            ordered = [state for both in zip(*states, strict=True) for state in both]
            arguments["initial_state"] = [keras.ops.convert_to_tensor(state, dtype=dtype) for state in ordered]
        try:
            result = native(keras.ops.convert_to_tensor(inputs.x, dtype=dtype), **arguments)
            return [np.asarray(keras.ops.convert_to_numpy(part)) for part in keras.tree.flatten(result)]
        except Exception as error:  # of the user's code, whatever it is: nothing is read then
            raise Unrepresentable(
                f"{title_of(native)} could not be called on x {inputs.x.shape}, so it is not known whether it computes "
                f"what its layers say: {type(error).__name__}, shown above"
            ) from error


@contextmanager
def _without_trace(native: Any, layers: Sequence[Any]) -> Iterator[None]:
    """Afterwards variables, losses and random streams are as before; meanwhile stateful layers begin at zero."""
    kept = [state for layer in layers for state in _states_kept(layer)]
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings(action="ignore"))  # of models, that they do not hand the mask on
        stack.enter_context(_own_losses(native._flatten_layers()))
        stack.enter_context(_own_randomness())
        stack.enter_context(_on_engine())
        stack.enter_context(_without_cudnn([part for layer in layers for part in directions_of(layer)]))
        stack.enter_context(keras.StatelessScope([(state, np.zeros(state.shape, state.dtype)) for state in kept]))
        yield


@contextmanager
def _own_losses(layers: Sequence[Any]) -> Iterator[None]:
    """A call forgets the losses of the one before, which the user may not have asked for yet."""
    before = [(layer, layer._losses[:], layer._loss_ids.copy()) for layer in layers]
    try:
        yield
    finally:
        for layer, losses, names in before:
            layer._losses[:] = losses
            layer._loss_ids.clear()
            layer._loss_ids.update(names)


@contextmanager
def _own_randomness() -> Iterator[None]:
    """What a layer of the user's own draws is drawn from no stream that goes on afterwards."""
    from keras.src.backend.common import (
        global_state,
    )  # there is no public way to the generator of layers without a seed

    name = "global_seed_generator"
    generator, of_numpy, of_python = global_state.get_global_attribute(name), np.random.get_state(), random.getstate()  # noqa: NPY002
    global_state.set_global_attribute(name, None)
    try:
        yield
    finally:
        global_state.set_global_attribute(name, generator)
        np.random.set_state(of_numpy)  # noqa: NPY002
        random.setstate(of_python)


@contextmanager
def _on_engine() -> Iterator[None]:
    """As exact as the engine is, watched by no tape, drawing from no stream of its own that goes on afterwards."""
    if ENGINE == "tensorflow":
        from tensorflow.python.eager import context
        from tensorflow.python.eager.record import stop_recording

        eager: Any = context.context()
        seeds = getattr(eager, "_rng", None)  # of the operations of the seed that the user set, if there is one
        eager._rng = random.Random(str(seeds and seeds.getstate()))  # noqa: S311
        try:
            with stop_recording(), keras.device("cpu"):  # a GPU rounds to TF32
                yield
        finally:
            eager._rng = seeds
    elif ENGINE == "jax":
        import jax

        with jax.default_matmul_precision("highest"):
            yield
    else:
        import torch

        with torch.no_grad(), torch.random.fork_rng():
            yield


@contextmanager
def _without_cudnn(layers: Sequence[Any]) -> Iterator[None]:
    """CuDNN refuses rows of length 0, and rounds to TF32."""
    before = [(layer, layer.use_cudnn) for layer in layers if hasattr(layer, "use_cudnn")]
    try:
        for layer, _ in before:
            layer.use_cudnn = False
        yield
    finally:
        for layer, use in before:
            layer.use_cudnn = use


# --- What was returned -----------------------------------------------------------------------------------------------


def _outputs(
    found: dict[tuple[int, int], Array], layers: Sequence[Any], weights: Weights, inputs: Inputs, title: str
) -> Iterator[Output]:
    """What was returned as outputs of the whole stack; a part that was not is None, or of a state the reference's."""
    spec = weights.spec
    size, both, kinds = spec.hidden_size, len(spec.directions), spec.form.states
    batch, top = len(inputs.x), len(layers) - 1
    sequence: Any = None
    states: dict[tuple[str, int], Array] = {}
    last: dict[tuple[str, int], Array] = {}
    for (place, index), array in found.items():
        if index:
            states[kinds[(index - 1) % len(kinds)], place * both + (index - 1) // len(kinds)] = array
        elif layers[top].return_sequences:
            sequence = array
            if (
                inputs.lengths is not None and array.shape[:2] == inputs.x.shape[:2]
            ):  # Keras repeats the last at padding
                sequence = np.where(inputs.valid[:, :, None], array, array.dtype.type(0))
        elif array.shape != (batch, both * size):
            raise Unrepresentable(f"{title} returns an output of the shape {array.shape}, not {(batch, both * size)}")
        else:
            for direction, part in enumerate(np.split(array, both, axis=1)):
                row = top * both + direction
                # Of a row without a step Keras returns zero here, or the initial state.
                valid = np.ones(batch, bool) if inputs.lengths is None else inputs.lengths > 0
                last["h", row] = np.where(valid[:, None], part, inputs.state.h[row])
    for state in (states, last):
        for (kind, row), array in state.items():
            if array.shape != (batch, size):
                raise Unrepresentable(f"{title} returns {kind} {row} of the shape {array.shape}, not {(batch, size)}")
    yield Output(sequence, _state(states, weights, inputs))
    if last:
        nothing: Any = None
        yield Output(nothing, _state(last, weights, inputs))


def _state(rows: dict[tuple[str, int], Array], weights: Weights, inputs: Inputs) -> State:
    """The state of the whole stack from some of its rows; the others are the reference's, and None where there are none."""
    parts: dict[str, Any] = {"h": None, "c": None}
    if rows:
        reference = build_layer(weights.astype("float64"), "numpy")
        whole = reference(inputs.x.astype("float64"), widened(inputs.state), lengths=inputs.lengths).state
        for kind in {kind for kind, _ in rows}:
            known = dict(enumerate(getattr(whole, kind).astype(weights.spec.dtype)))
            known.update({row: array for (name, row), array in rows.items() if name == kind})
            parts[kind] = np.stack(list(known.values()))
    return State(**parts)
