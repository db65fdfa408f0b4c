"""Confirms by one call, which leaves no trace, that an object computes the stack that its structure describes."""

import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any

import keras
import numpy as np

from multirnn import Output, State, Unrepresentable, Weights
from multirnn import build as build_layer
from multirnn.boundary import Inputs
from multirnn.comparison import widened
from multirnn.confirmation import confirmed, probe
from multirnn.weights import Array
from multirnn_keras.engines import dtype_refuses, engine
from multirnn_keras.structure import directions_of, returned, with_directions, with_settings

__all__ = ["confirm", "title_of"]


def title_of(native: Any) -> str:
    """An object's name at the beginning of a sentence."""
    kind = "model" if isinstance(native, keras.Model) else "layer"
    return f"{kind} {native.name!r}"


def confirm(native: Any, layers: Sequence[Any], weights: Weights) -> Weights:
    """The weights read from the layers of a built object's stack, if the object itself computes that stack.

    `Unrepresentable` if it computes something else, or cannot be called.
    """
    if reason := dtype_refuses(weights.spec.dtype):
        raise Unrepresentable(f"{title_of(native)} is of float64; {reason}")
    parts = returned(native, list(layers))
    # What the object is fixed to; None where it is open.
    states = _states_kept(layers)
    batch, time = (states[0].shape[0] if states else None), None
    if isinstance(native, keras.Model):
        batch, time, *_ = native.inputs[0].shape
    last = layers[-1]
    # With zero_output_for_mask Keras returns zero as the last output of a row with padding, not its last valid output.
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


def _states_kept(layers: Sequence[Any]) -> list[Any]:
    """The variables in which stateful layers keep their states between calls."""
    return keras.tree.flatten([getattr(part, "states", None) or [] for part in with_directions(layers)])  # type: ignore[no-any-return]


# --- The call --------------------------------------------------------------------------------------------------------


def _called(native: Any, layers: Sequence[Any], inputs: Inputs) -> list[Array]:
    """The arrays that the object returns."""
    dtype = inputs.x.dtype.name
    arguments: dict[str, Any] = {"training": False}
    with _without_trace(native, layers):
        if inputs.lengths is not None:
            arguments["mask"] = keras.ops.convert_to_tensor(inputs.valid)
        if not isinstance(native, keras.Model):
            ordered = [state for both in zip(*inputs.state.parts, strict=True) for state in both]
            arguments["initial_state"] = [keras.ops.convert_to_tensor(state, dtype=dtype) for state in ordered]
        try:
            result = native(keras.ops.convert_to_tensor(inputs.x, dtype=dtype), **arguments)
            return [np.asarray(keras.ops.convert_to_numpy(part)) for part in keras.tree.flatten(result)]
        except Exception as error:  # whatever the user's code raises
            raise Unrepresentable(
                f"{title_of(native)} could not be called on x {inputs.x.shape}, so it is not known whether it computes "
                f"what its layers say: {type(error).__name__}, shown above"
            ) from error


@contextmanager
def _without_trace(native: Any, layers: Sequence[Any]) -> Iterator[None]:
    """Afterwards variables, losses and random generators are as before; meanwhile stateful layers begin at zero."""
    kept = _states_kept(layers)
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings(action="ignore"))  # models warn that they lose the mask
        stack.enter_context(_own_losses(native._flatten_layers()))
        stack.enter_context(_own_randomness())
        stack.enter_context(engine.confirming())
        # cuDNN refuses rows of length 0, and rounds to TF32.
        stack.enter_context(with_settings(chain(*map(directions_of, layers)), use_cudnn=False))
        stack.enter_context(keras.StatelessScope([(state, np.zeros(state.shape, state.dtype)) for state in kept]))
        yield


@contextmanager
def _own_losses(layers: Sequence[Any]) -> Iterator[None]:
    """A call forgets the losses of the call before, which the user may still want."""
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
    """A user's layer draws from generators that are reset afterwards."""
    # There is no public way to the generator of layers without a seed.
    from keras.src.backend.common import global_state

    name = "global_seed_generator"
    generator, of_numpy, of_python = global_state.get_global_attribute(name), np.random.get_state(), random.getstate()  # noqa: NPY002
    global_state.set_global_attribute(name, None)
    try:
        yield
    finally:
        global_state.set_global_attribute(name, generator)
        np.random.set_state(of_numpy)  # noqa: NPY002
        random.setstate(of_python)


# --- The result ------------------------------------------------------------------------------------------------------


def _outputs(
    found: dict[tuple[int, int], Array], layers: Sequence[Any], weights: Weights, inputs: Inputs, title: str
) -> Iterator[Output]:
    """The result as outputs of the whole stack, completed by the states of the reference; the last outputs are states too."""
    spec = weights.spec
    size, both, kinds = spec.hidden_size, len(spec.directions), spec.form.states
    batch, top = len(inputs.x), len(layers) - 1
    reference = build_layer(weights.astype("float64"), "numpy")
    expected = reference(inputs.x.astype("float64"), widened(inputs.state), lengths=inputs.lengths).state
    states, last = ([part.astype(spec.dtype) for part in expected.parts] for _ in range(2))
    sequence: Any = None

    def put(state: list[Array], kind: int, row: int, part: Array) -> None:
        if part.shape != (batch, size):
            raise Unrepresentable(f"{title} returns {kinds[kind]} {row} of the shape {part.shape}, not {(batch, size)}")
        state[kind][row] = part

    for (place, index), array in found.items():
        if index:
            direction, kind = divmod(index - 1, len(kinds))
            put(states, kind, place * both + direction, array)
        elif layers[top].return_sequences:
            sequence = array
            if inputs.lengths is not None and array.shape[:2] == inputs.x.shape[:2]:
                # Keras may repeat the last valid output at padding.
                sequence = np.where(inputs.valid[:, :, None], array, array.dtype.type(0))
        elif array.shape != (batch, both * size):
            raise Unrepresentable(f"{title} returns an output of the shape {array.shape}, not {(batch, both * size)}")
        else:
            for row, part in enumerate(np.split(array, both, axis=1), top * both):
                # For a row of length 0 Keras returns zero here, or the initial state.
                valid = np.ones(batch, bool) if inputs.lengths is None else inputs.lengths > 0
                put(last, 0, row, np.where(valid[:, None], part, inputs.state.h[row]))
    yield Output(sequence, State(*states))
    nothing: Any = None
    yield Output(nothing, State(*last))
