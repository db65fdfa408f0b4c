"""The recurrent stacks of a file: found by names and shapes, or by what the file says of its layers."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np

from multirnn.activations import ACTIVATIONS, Activation
from multirnn.conventions import Convention, convention_named
from multirnn.errors import FormatError, InvalidSpec, InvalidWeights, Unrepresentable
from multirnn.formats.by_names import stacks_by_names
from multirnn.formats.contents import Contents, Tensor, numbers_of, stored_as
from multirnn.formats.found import Found, Stack
from multirnn.formats.keras import RecurrentLayer
from multirnn.formats.onnx import Operator
from multirnn.recognition import from_arrays
from multirnn.spec import RecurrentSpec
from multirnn.weights import Array, Weights

__all__ = ["Found", "Stack", "stacks"]


def stacks(contents: Contents, convention: str | None = None, **known: Any) -> Iterator[Stack]:
    """Every stack of a file.

    Args:
        contents: of the file.
        convention: how the arrays lie, if names and shapes leave several possibilities.
        known: arguments of `from_arrays` that the file may not tell: `cell`, `reset_after`, `activation`, …

    Raises:
        FormatError: a stack cannot be read, or lies in another convention.
        Unrepresentable: there is no such convention.
    """
    chosen = None if convention in (None, "canonical") else convention_named(convention or "")
    for stack in _found(contents, chosen, known):
        if convention not in (None, stack.found.convention):
            raise FormatError(f"its arrays lie as {stack.found.convention!r} says, not as {convention!r}")
        yield stack


def _found(contents: Contents, chosen: Convention | None, known: Mapping[str, Any]) -> Iterator[Stack]:
    if "spec" in contents.facts:
        yield _canonical(contents)
    elif "layers" in contents.facts:
        yield from _of_keras(contents, known)
    elif "operators" in contents.facts:
        yield from _of_onnx(contents, known)
    else:
        about = contents.facts.get("about", ())
        for stack in stacks_by_names(contents.arrays, chosen, {**contents.facts.get("settings", {}), **known}):
            yield replace(stack, found=replace(stack.found, about=(*stack.found.about, *about)))


def _canonical(contents: Contents) -> Stack:
    """A file of our own: canonical names, and the spec beside them."""
    try:
        spec = RecurrentSpec.from_dict(json.loads(contents.facts["spec"]))
        if spec.num_layers * len(spec.directions) > len(contents.arrays):  # before each parameter is named
            raise FormatError(f"its spec has {spec.num_layers} layers, and there are {len(contents.arrays)} arrays")
        arrays = {name: numbers_of(name, array) for name, array in contents.arrays.items()}
        weights = Weights(spec, arrays)
    except (InvalidSpec, InvalidWeights, ValueError, TypeError, RecursionError) as error:
        raise FormatError(f"its spec and its arrays do not agree: {error}") from error
    stored = stored_as(next(iter(contents.arrays.values())))
    return Stack(Found("", spec, "canonical", stored), weights)


def _numbers(name: str, array: Tensor) -> tuple[Array, str]:
    """The array in float32 or float64, and the dtype it had."""
    return numbers_of(name, array), stored_as(array)


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


# --- ONNX's operators ------------------------------------------------------------------------------------------------

ONNX_ACTIVATIONS: dict[str, tuple[str, dict[str, float]]] = {
    "Tanh": ("tanh", {}),
    "Sigmoid": ("sigmoid", {}),
    "Relu": ("relu", {}),
    "Softsign": ("softsign", {}),
    "Elu": ("elu", {"alpha": 1.0}),
    "HardSigmoid": ("hard_sigmoid", {"alpha": 0.2, "beta": 0.5}),
}


def _of_onnx(contents: Contents, known: Mapping[str, Any]) -> Iterator[Stack]:
    """A stack for each operator; those that share their weights are one."""
    seen: list[Weights] = []
    for operator in contents.facts["operators"]:
        if operator.reason:
            raise FormatError(f"the operator {operator.name[:80]!r} cannot be read: {operator.reason}")
        stack = _operator(operator, known)
        if stack.weights not in seen:
            seen.append(stack.weights)
            yield stack


def _operator(operator: Operator, known: Mapping[str, Any]) -> Stack:
    read = {name: _numbers(name, array) for name, array in operator.arrays.items()}
    activation, gate = _of_operator(operator)
    settings: dict[str, Any] = {
        "cell": operator.cell,
        "reset_after": operator.cell != "gru" or bool(operator.attributes.get("linear_before_reset", 0)),
        "activation": activation,
    }
    if operator.cell != "simple_rnn":
        settings["recurrent_activation"] = gate
    try:
        weights = from_arrays(
            {name: array for name, (array, _) in read.items()}, convention="onnx", **{**settings, **known}
        )
    except (Unrepresentable, InvalidWeights, InvalidSpec) as error:
        raise FormatError(f"the operator {operator.name[:80]!r} cannot be read: {error}") from error
    return Stack(Found(operator.name, weights.spec, "onnx", next(iter(read.values()))[1]), weights)


def _of_operator(operator: Operator) -> tuple[str | Activation, str | Activation]:
    """The activation and the recurrent activation of an operator; the sigmoid where a cell has no gates."""
    default = {"simple_rnn": ["Tanh"], "gru": ["Sigmoid", "Tanh"], "lstm": ["Sigmoid", "Tanh", "Tanh"]}[operator.cell]
    names = [name.decode() for name in operator.attributes.get("activations", [])] or default
    numbers = {key: iter(operator.attributes.get(f"activation_{key}", [])) for key in ("alpha", "beta")}
    used: list[Activation] = []
    for name in names:
        if name not in ONNX_ACTIVATIONS:
            raise FormatError(
                f"the operator {operator.name[:80]!r} cannot be read: no spec has the activation {name[:40]!r}"
            )
        ours, defaults = ONNX_ACTIVATIONS[name]
        used.append(Activation(ours, **{key: _shortest(next(numbers[key], value)) for key, value in defaults.items()}))
    directions = [used[start : start + len(default)] for start in range(0, len(used), len(default))]
    *gates, activation = directions[0]
    if any(direction != directions[0] for direction in directions) or (len(gates) == 2 and gates[1] != activation):
        raise FormatError(
            f"the operator {operator.name[:80]!r} cannot be read: its activations differ, and a spec has one pair"
        )
    return activation.short, gates[0].short if gates else "sigmoid"


def _shortest(value: float) -> float:
    """The number meant by a float32: 0.2 and 1/6 are none."""
    fraction = float(Fraction(value).limit_denominator(64))
    return fraction if np.float32(fraction) == np.float32(value) else float(str(np.float32(value)))
