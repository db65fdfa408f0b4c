"""The recurrent stacks of a file: found by names and shapes, or by what the file says of its layers."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np

from multirnn.activations import Activation
from multirnn.conventions import CONVENTIONS, TEXTBOOK, TEXTBOOK_ROWS, Convention
from multirnn.errors import FormatError, InvalidSpec, InvalidWeights, Unrepresentable
from multirnn.formats.contents import Contents, Tensor, Unread, numbers_of, stored_as
from multirnn.formats.found import Found, Stack
from multirnn.formats.keras_layers import of_layers
from multirnn.formats.onnx import Operator
from multirnn.names import by_prefix, fused_gates, numbered_cells, one_stack
from multirnn.recognition import from_arrays
from multirnn.spec import RecurrentSpec
from multirnn.weights import Array, Weights

__all__ = ["stacks"]


def stacks(contents: Contents, **known: Any) -> Iterator[Stack]:
    """Every stack of a file.

    Args:
        contents: of the file.
        known: arguments of `from_arrays` that the file may not tell: `cell`, `reset_after`, `activation`, …
    """
    if "spec" in contents.facts:
        yield _canonical(contents)
    elif "layers" in contents.facts:
        yield from of_layers(contents.facts["layers"], contents.facts.get("version"), known)
    elif "operators" in contents.facts:
        yield from _of_onnx(contents, known)
    else:
        about = contents.facts.get("about", ())
        for stack in _by_names(contents.arrays, {**contents.facts.get("settings", {}), **known}):
            yield replace(stack, found=replace(stack.found, about=(*stack.found.about, *about)))


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
    return numbers_of(name, array), stored_as(array)


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
        if stack.loaded() not in seen:
            seen.append(stack.loaded())
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
