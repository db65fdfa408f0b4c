"""The structure of a user's object: the recurrent layers it stacks, and which of their outputs it returns."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import keras

from multirnn import Unrepresentable
from multirnn.cells import CellName

__all__ = [
    "CELLS", "directions_of", "is_as_made", "is_both_ways", "recurrent_layers", "replaced_methods", "returned", "stacked",
    "variables_of", "with_directions", "with_settings",
]  # fmt: skip

CELLS: dict[Any, CellName] = {keras.layers.SimpleRNN: "simple_rnn", keras.layers.LSTM: "lstm", keras.layers.GRU: "gru"}
"""The cell of each class that is read; `multirnn_keras.fast` adds its own classes."""


def recurrent_layers(native: Any) -> list[tuple[Any, ...]]:
    """The stacked layers of a layer or model, each as its directions: (forward,) or (forward, backward)."""
    layers = native.layers if isinstance(native, keras.Model) else [native]
    return [(layer.forward_layer, layer.backward_layer) if is_both_ways(layer) else (layer,) for layer in layers]


def with_directions(layers: Iterable[Any]) -> list[Any]:
    """The layers, and of each `Bidirectional` its two directions as well."""
    return [
        part
        for layer in layers
        for part in ((layer, layer.forward_layer, layer.backward_layer) if is_both_ways(layer) else (layer,))
    ]


def is_both_ways(layer: Any) -> bool:
    """Whether a layer is a `Bidirectional`."""
    return isinstance(layer, keras.layers.Bidirectional)


def is_as_made(native: Any, layers: Sequence[Any]) -> bool:
    """Whether a model, its layers and their cells run only methods of Keras' classes or of ours."""
    directions = list(chain(*map(directions_of, layers)))
    parts = [native, *layers, *directions, *(direction.cell for direction in directions)]
    return all(
        type(part).__module__.partition(".")[0] in ("keras", "multirnn_keras") and not replaced_methods(part)
        for part in parts
    )


def replaced_methods(part: Any) -> set[str]:
    """The methods replaced on the object itself, but for the two that Keras wraps in every layer."""
    own = {name for name, value in vars(part).items() if callable(value) and callable(getattr(type(part), name, None))}
    return own - {"build", "quantize"}


def variables_of(layer: Any) -> list[Any]:
    """The variables of a layer of one direction, in the order of Keras' weights."""
    cell = layer.cell
    return [cell.kernel, cell.recurrent_kernel, *([cell.bias] if cell.use_bias else [])]


@contextmanager
def with_settings(layers: Iterable[Any], **settings: Any) -> Iterator[None]:
    """Sets attributes of the layers that have them; afterwards they are as before."""
    before = [(layer, name, getattr(layer, name)) for layer in layers for name in settings if hasattr(layer, name)]
    try:
        for layer, name, _ in before:
            setattr(layer, name, settings[name])
        yield
    finally:
        for layer, name, value in before:
            setattr(layer, name, value)


def stacked(native: Any) -> list[Any]:
    """The layers of a stack, first to last; `Unrepresentable` if they are not one, or one of them runs twice."""
    if not isinstance(native, keras.Model):
        return [native]
    if not (layers := [layer for layer in native.layers if not isinstance(layer, keras.layers.InputLayer)]):
        raise Unrepresentable(f"model {native.name!r} has no layers")
    if isinstance(native, keras.Sequential) and not native.built:
        raise Unrepresentable(f"model {native.name!r} has no weights yet: call it, or build((None, None, input_size))")
    nodes = _chain(native)
    if not nodes or {id(node.operation) for node in nodes} != set(map(id, layers)):
        raise Unrepresentable(
            f"the layers of model {native.name!r} are not one stack, each fed by the one below and by nothing else, and "
            "nothing after them; read them one by one, or as keras.Sequential of those that are"
        )
    if len(nodes) > len(layers):
        again = next(layer for layer in layers if sum(node.operation is layer for node in nodes) > 1)
        raise Unrepresentable(
            f"layer {again.name!r} runs more than once in model {native.name!r}, and every layer of a spec has weights "
            "of its own; read that layer alone"
        )
    return [node.operation for node in nodes]


def returned(native: Any, layers: list[Any]) -> list[tuple[int, int]]:
    """The outputs of an object as pairs: the index of a layer, and 0 for its sequence, 1 and more for its states.

    `Unrepresentable` if it returns the output of a layer below the last.
    """
    if not isinstance(native, keras.Model):
        states = len(keras.tree.flatten(directions_of(native)[0].cell.state_size)) * len(directions_of(native))
        return [(0, index) for index in range(1 + (states if native.return_state else 0))]
    places = {id(layer): place for place, layer in enumerate(layers)}
    found = []
    for tensor in keras.tree.flatten(_functional(native).outputs):
        layer, _, index = tensor._keras_history
        place = places.get(id(layer), -1)
        if index == 0 and place < len(layers) - 1:
            raise Unrepresentable(
                f"model {native.name!r} returns what layer {layer.name!r} does too, and a stack returns the output of "
                "its last layer alone; read the layers one by one"
            )
        found.append((place, index))
    return found


def _functional(model: Any) -> Any:
    """The graph of a model; a model of the user's own class has none."""
    return model._functional if isinstance(model, keras.Sequential) else model


def _chain(model: Any) -> list[Any]:
    """A model's calls of layers, first to last, if each is fed by the one before alone; else none.

    Keras has no public way to list them: a layer knows the inputs of its first call only, and operations are no layers.
    """
    depths = getattr(_functional(model), "_nodes_by_depth", None)
    if depths is None or any(len(nodes) > 1 for nodes in depths.values()):
        return []
    first, *above = (depths[depth][0] for depth in sorted(depths, reverse=True))
    below = first
    for node in above:
        if len(node.input_tensors) != 1 or node.input_tensors[0] is not below.outputs[0]:
            return []
        below = node
    return above if first.is_input else []


def directions_of(layer: Any) -> tuple[Any, ...]:
    """The forward layer, and the backward one of a `Bidirectional`; `Unrepresentable` if no spec describes them so."""
    if is_both_ways(layer):
        if layer.merge_mode != "concat":
            raise Unrepresentable(
                f"layer {layer.name!r} merges its directions by {layer.merge_mode!r}, and a spec concatenates them"
            )
        directions: tuple[Any, ...] = (layer.forward_layer, layer.backward_layer)
        if layer.compute_dtype != directions[0].compute_dtype:
            raise Unrepresentable(
                f"layer {layer.name!r} is a Bidirectional of {layer.compute_dtype} around layers of "
                f"{directions[0].compute_dtype}, and a spec has one dtype; give it their dtype too"
            )
    else:
        directions = (layer,)
    for direction in directions:
        if not isinstance(direction, keras.layers.Layer):
            raise Unrepresentable(f"an object of the class {type(direction).__name__} is no layer of Keras")
        if type(direction) not in CELLS:
            raise Unrepresentable(
                f"layer {direction.name!r} is of the class {type(direction).__name__}; "
                "a spec is read of SimpleRNN, LSTM and GRU, and of Bidirectional and stacks of them"
            )
    if directions[0].go_backwards:
        raise Unrepresentable(
            f"layer {layer.name!r} goes backwards, and a spec does so only beside going forwards, as Bidirectional"
        )
    return directions
