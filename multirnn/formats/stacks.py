"""The recurrent stacks of a file: found by names and shapes, or by what the file says of its layers."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from multirnn.activations import ACTIVATIONS, Activation
from multirnn.conventions import CONVENTIONS, TEXTBOOK, TEXTBOOK_ROWS, Convention
from multirnn.errors import FormatError, InvalidSpec, InvalidWeights, Unrepresentable
from multirnn.formats.contents import Contents, Tensor, Unread
from multirnn.formats.found import Found, Stack
from multirnn.formats.keras import RecurrentLayer
from multirnn.formats.onnx_stacks import of_model
from multirnn.names import by_prefix, fused_gates, numbered_cells, one_stack
from multirnn.recognition import from_arrays
from multirnn.spec import RecurrentSpec
from multirnn.weights import Array, Weights

__all__ = ["Found", "Stack", "stacks"]


def stacks(contents: Contents, **known: Any) -> Iterator[Stack]:
    """Every stack of a file.

    Args:
        contents: of the file.
        known: arguments of `from_arrays` that the file may not tell: `cell`, `reset_after`, `activation`, …
    """
    if "spec" in contents.facts:
        yield _canonical(contents)
    elif "layers" in contents.facts:
        yield from _of_keras(contents, known)
    elif "model" in contents.facts:
        yield from of_model(contents.facts["model"], known)
    else:
        yield from _by_names(contents.arrays, known)


def _canonical(contents: Contents) -> Stack:
    """A file of our own: canonical names, and the spec beside them."""
    try:
        spec = RecurrentSpec.from_dict(json.loads(contents.facts["spec"]))
        arrays = {name: _numbers(name, array)[0] for name, array in contents.arrays.items()}
        weights = Weights(spec, arrays)
    except (InvalidSpec, InvalidWeights, ValueError, TypeError, RecursionError) as error:
        raise FormatError(f"its spec and its arrays do not agree: {error}") from error
    return Stack(Found("", spec, "canonical", spec.dtype), weights)


def _numbers(name: str, array: Tensor) -> tuple[Array, str]:
    """The array in float32 or float64, and the dtype it had."""
    if isinstance(array, Unread):
        raise FormatError(f"the array {name!r} is {array.dtype}, which is not read here; convert it to float32")
    if array.dtype == np.float16:
        return array.astype(np.float32), "float16"
    return np.asarray(array, array.dtype.newbyteorder("=")), array.dtype.name


def _by_names(arrays: Mapping[str, Tensor], known: Mapping[str, Any]) -> Iterator[Stack]:
    for convention in CONVENTIONS.values():
        if convention in (TEXTBOOK, TEXTBOOK_ROWS) and not {"Wx", "Wh"} <= set(arrays):
            continue
        named: Mapping[str, Any] = arrays
        if convention.name == "flax-linen":
            named = _or_as_it_is(numbered_cells, arrays)
        elif convention.name == "flax-nnx":
            named = _or_as_it_is(fused_gates, arrays)
        for prefix in by_prefix(named, convention.pattern):
            if (stack := _read(convention, prefix, named, known)) is not None:
                yield stack


def _or_as_it_is(rename: Callable[[Any], Any], arrays: Mapping[str, Any]) -> Mapping[str, Any]:
    numbers = {name: array for name, array in arrays.items() if not isinstance(array, Unread)}
    try:
        renamed: Mapping[str, Any] = rename(numbers)
    except Unrepresentable:
        return arrays
    return renamed


def _read(convention: Convention, prefix: str, arrays: Mapping[str, Any], known: Mapping[str, Any]) -> Stack | None:
    """The stack with this prefix; None where its arrays are not one in this convention."""
    try:
        own = one_stack(arrays, convention, prefix)
        if any(isinstance(array, Unread) or array.dtype.kind != "f" for array in own.values()):
            return None
        read = {name: _numbers(name, array) for name, array in own.items()}
        weights = from_arrays({name: array for name, (array, _) in read.items()}, convention=convention, **known)
    except (Unrepresentable, InvalidWeights):
        return None
    stored = next(iter(read.values()))[1]
    about = () if {"activation", "recurrent_activation"} <= known.keys() else ("its activations are not in the file",)
    return Stack(Found(prefix.rstrip("./"), weights.spec, convention.name, stored, about), weights)


# --- Keras' layers ---------------------------------------------------------------------------------------------------


def _of_keras(contents: Contents, known: Mapping[str, Any]) -> Iterator[Stack]:
    layers: Sequence[RecurrentLayer] = contents.facts["layers"]
    version = contents.facts.get("version")
    for chain in _chains(layers):
        yield _chain(chain, version, known)


def _chains(layers: Sequence[RecurrentLayer]) -> Iterator[list[RecurrentLayer]]:
    """Layers that follow one another, of one kind and size: a stack."""
    by_name = {layer.name: layer for layer in layers}
    followed = {layer.follows for layer in layers if layer.follows}
    chains: dict[str, list[RecurrentLayer]] = {}
    for layer in layers:
        before = by_name.get(layer.follows)
        if before is not None and before.name in chains and _alike(before, layer) and layer.follows in followed:
            chains[layer.name] = chains.pop(before.name)
            chains[layer.name].append(layer)
        else:
            chains[layer.name] = [layer]
    yield from chains.values()


def _alike(a: RecurrentLayer, b: RecurrentLayer) -> bool:
    """Whether two layers have one cell, one size and one configuration, so that one spec describes both."""
    fields = ("activation", "recurrent_activation", "reset_after", "use_bias", "merge_mode", "units", "go_backwards")
    shapes = [next(iter(layer.arrays.values()))[1].shape for layer in (a, b)]
    first, second = a.config or {}, b.config or {}
    return (
        (a.cell, a.cudnn, set(a.arrays), shapes[0]) == (b.cell, b.cudnn, set(b.arrays), shapes[1])
        and all(first.get(field) == second.get(field) for field in fields)
        and first.get("return_sequences", True) is not False
    )


def _chain(chain: Sequence[RecurrentLayer], version: str | None, known: Mapping[str, Any]) -> Stack:
    name = " ".join(layer.name for layer in chain)
    named: dict[str, Array] = {}
    stored = ""
    for number, layer in enumerate(chain):
        for direction, arrays in layer.arrays.items():
            inner = f"{direction}_layer/" if len(layer.arrays) > 1 else ""
            cell = "" if layer.cudnn else "layer_cell/"
            for own, array in zip(("kernel", "recurrent_kernel", "bias"), arrays, strict=False):
                named[f"layer_{number}/{inner}{cell}{own}"], stored = _numbers(f"{layer.name}/{own}", array)
    settings, about = _settings(chain[0], version)
    convention = "keras-cudnn" if chain[0].cudnn else "keras"
    try:
        weights = from_arrays(named, convention=convention, **{**settings, **known})
    except (Unrepresentable, InvalidWeights, InvalidSpec) as error:
        raise FormatError(f"the layer {name!r} cannot be read: {error}") from error
    return Stack(Found(name, weights.spec, convention, stored, about), weights)


def _settings(layer: RecurrentLayer, version: str | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The arguments of `from_arrays` that the configuration gives, and what it leaves open."""
    config = layer.config
    old = _before(version, (2, 3))
    gate: str | Activation = HARD_SIGMOID if old and not layer.cudnn else "sigmoid"
    settings: dict[str, Any] = {"cell": layer.cell, "recurrent_activation": gate}
    if config is None:
        taken = f"tanh and {gate}, the defaults of Keras {version}" if version else "tanh and sigmoid"
        return settings, (f"its activations are not in the file; taken are {taken}",)
    for field, value, why in (
        ("go_backwards", True, "it runs backward in time"),
        ("stateful", True, ""),
        ("merge_mode", None, ""),
    ):
        if why and config.get(field) == value:
            raise FormatError(f"the layer {layer.name!r} cannot be read: {why}, which no spec describes")
    if config.get("merge_mode", "concat") != "concat":
        raise FormatError(
            f"the layer {layer.name!r} cannot be read: it joins directions by {config['merge_mode']!r}, and a spec by 'concat'"
        )
    for name in ("activation", "recurrent_activation"):
        if name in config and not layer.cudnn:
            settings[name] = _activation(layer.name, config[name], version)
    if layer.cell == "gru" and not layer.cudnn:
        settings["reset_after"] = bool(config.get("reset_after", False))
    rates = [f"{name} {config[name]}" for name in ("dropout", "recurrent_dropout") if config.get(name)]
    return settings, tuple(f"in training it has {rate}" for rate in rates)


HARD_SIGMOID = Activation("hard_sigmoid", alpha=0.2, beta=0.5)


def _activation(layer: str, value: Any, version: str | None) -> str | Activation:
    """An activation by the name in a configuration."""
    if value == "hard_sigmoid":
        return HARD_SIGMOID if _before(version, (3,)) else Activation("hard_sigmoid", alpha=1 / 6, beta=0.5)
    if isinstance(value, str) and value in ACTIVATIONS and not ACTIVATIONS[value].parameters:
        return value
    if value == "elu":
        return Activation("elu", alpha=1.0)
    raise FormatError(f"the layer {layer!r} cannot be read: its activation {str(value)[:60]!r} is in no spec")


def _before(version: str | None, limit: tuple[int, ...]) -> bool:
    parts = tuple(int(part) for part in (version or "").split(".")[: len(limit)] if part.isdigit())
    return bool(parts) and parts < limit
