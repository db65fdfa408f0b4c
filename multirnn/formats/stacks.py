"""The recurrent stacks of a file: found by names and shapes, or by what the file says of its layers."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from multirnn.conventions import Convention, convention_named
from multirnn.errors import FormatError, InvalidSpec, InvalidWeights
from multirnn.formats.by_names import stacks_by_names
from multirnn.formats.contents import Contents, numbers_of, stored_as
from multirnn.formats.found import FileStack, Found
from multirnn.formats.keras_layers import of_layers
from multirnn.formats.onnx_stacks import of_model
from multirnn.spec import RecurrentSpec
from multirnn.weights import Weights

__all__ = ["stacks"]


def stacks(contents: Contents, convention: str | None = None, **known: Any) -> Iterator[FileStack]:
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


def _found(contents: Contents, chosen: Convention | None, known: Mapping[str, Any]) -> Iterator[FileStack]:
    if "spec" in contents.facts:
        yield _canonical(contents, known)
    elif "layers" in contents.facts:
        yield from of_layers(contents.facts["layers"], contents.facts.get("version"), known)
    elif "model" in contents.facts:
        yield from of_model(contents.facts["model"], known)
    else:
        about = contents.facts.get("about", ())
        for stack in stacks_by_names(contents.arrays, chosen, {**contents.facts.get("settings", {}), **known}):
            yield replace(stack, found=replace(stack.found, about=(*stack.found.about, *about)))


def _canonical(contents: Contents, known: Mapping[str, Any]) -> FileStack:
    """A file of our own: canonical names, and the spec beside them, which `known` may repeat and not contradict."""
    try:
        spec = RecurrentSpec.from_dict(json.loads(contents.facts["spec"]))
        if spec.num_layers * len(spec.directions) > len(contents.arrays):  # before each parameter is named
            raise FormatError(f"its spec has {spec.num_layers} layers, and there are {len(contents.arrays)} arrays")
        arrays = {name: numbers_of(name, array) for name, array in contents.arrays.items()}
        weights = Weights(spec, arrays)
    except (InvalidSpec, InvalidWeights, ValueError, TypeError, RecursionError) as error:
        raise FormatError(f"its spec and its arrays do not agree: {error}") from error
    for name in ("cell", "reset_after", "activation", "recurrent_activation"):
        if name in known and replace(spec, **{name: known[name]}) != spec:
            raise FormatError(f"it says {name}={getattr(spec, name)!r}, not {known[name]!r}")
    stored = stored_as(next(iter(contents.arrays.values())))
    return FileStack(Found("", spec, "canonical", stored), weights)
