"""Weights as the arrays of a framework and back, exactly: `to_arrays`, `from_arrays`, by the table of `conventions`."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from multirnn.activations import Activation
from multirnn.arrays import as_array
from multirnn.cells import FORMS, CellName
from multirnn.conventions import FLAX_LINEN, TORCH, Convention, convention_named
from multirnn.errors import InvalidWeights, Unrepresentable, an, kind_of
from multirnn.names import numbered_cells, of_a_cell, prefixes, unprefixed
from multirnn.spec import BIASES, DIRECTIONS, DTYPES, RecurrentSpec
from multirnn.weights import Array, Weights

__all__ = ["Place", "from_arrays", "layout", "to_arrays"]


def to_arrays(weights: Weights, *, convention: str | Convention) -> dict[str, Array]:
    """The arrays of a framework by its own names, in its own order.

    Args:
        weights: canonical.
        convention: a name out of `CONVENTIONS`, or a `Convention`.

    Raises:
        Unrepresentable: there is no such convention, or it cannot hold these weights exactly; the sentence says what helps.
    """
    convention = convention_named(convention)
    spec = weights.spec
    packed: dict[str, Array] = {}
    for place in layout(spec, convention=convention):
        parts = [[_gates_of(weights.arrays, spec, name, place.gates) for name in row] for row in place.holds]
        packed[place.name] = _join(_turned(np.array(parts), convention, spec, place.gates), place.axes)
    return packed


def from_arrays(
    arrays: Mapping[str, Any],
    *,
    convention: str | Convention,
    cell: CellName | None = None,
    reset_after: bool | None = None,
    activation: str | Activation = "tanh",
    recurrent_activation: str | Activation = "sigmoid",
) -> Weights:
    """The weights in a framework's arrays, exactly; the spec is read from names and shapes.

    Args:
        arrays: by the framework's names, of this stack alone; a common prefix ("module.") is ignored. Nested dictionaries
            (Flax) are joined with "/".
        convention: a name out of `CONVENTIONS`, or a `Convention`.
        cell, reset_after: needed only if names and shapes leave two possibilities.
        activation, recurrent_activation: as of the layer; the arrays do not show them.

    Raises:
        Unrepresentable: there is no such convention, a name is not of it, or names and shapes fit no cell or several.
        InvalidWeights: dtypes are mixed, or neither float32 nor float64.
    """
    convention = convention_named(convention)
    flat = unprefixed(_flatten(arrays), convention.pattern)
    found = _read_names(convention, numbered_cells(flat) if convention is FLAX_LINEN else flat)
    sizes = _sizes(convention, found)
    candidates = []
    for form in FORMS.values():
        for bias in BIASES:
            if cell in (None, form.name) and (form.name != "gru" or reset_after in (None, form.reset_after)):
                candidate = RecurrentSpec(
                    form.name,
                    **sizes,
                    bias=bias,
                    reset_after=form.reset_after,
                    activation=activation,
                    recurrent_activation="sigmoid" if len(form.gates) == 1 else recurrent_activation,
                )
                if convention.refuses(candidate) is None:
                    candidates.append(candidate)
    shapes = {key: array.shape for key, array in found.items()}
    fitting = [spec for spec in candidates if _shapes(spec, convention) == shapes]
    if len(fitting) > 1:
        raise Unrepresentable(
            f"names and shapes do not tell {' from '.join(spec.form.form for spec in fitting)}; "
            f"pass {'reset_after=True or reset_after=False' if len({s.cell for s in fitting}) == 1 else 'cell='}"
        )
    if not fitting:
        raise Unrepresentable(_why_none_fits(convention, candidates, shapes))
    return Weights(fitting[0], _unpack(convention, fitting[0], found))


@dataclass(frozen=True, slots=True)
class Place:
    """One native array of a stack: its name, shape and contents.

    Attributes:
        layer: from 0.
        direction: "forward" or "backward"; empty if the array has an axis of directions.
        own: its name within the layer and direction.
        name: its full name.
        shape: its shape.
        axes: the axes of the shape, as in `Entry`.
        holds: the names of the canonical arrays in it, (direction, bias).
        gates: the canonical names of the gates in it, in the order of its blocks.
    """

    layer: int
    direction: str
    own: str
    name: str
    shape: tuple[int, ...]
    axes: str
    holds: tuple[tuple[str, ...], ...]
    gates: tuple[str, ...]

    @property
    def key(self) -> "Key":
        """Identifies it independently of its full name."""
        return self.layer, self.direction, self.own


Key = tuple[int, str, str]


def layout(spec: RecurrentSpec, *, convention: str | Convention) -> tuple[Place, ...]:
    """Descriptions of the arrays of a framework, in its own order.

    Raises:
        Unrepresentable: there is no such convention, or it cannot hold the spec exactly; the sentence says what helps.
    """
    convention = convention_named(convention)
    if reason := convention.refuses(spec):
        raise Unrepresentable(reason)
    return tuple(_places(convention, spec))


def _places(convention: Convention, spec: RecurrentSpec) -> Iterator[Place]:
    gates = convention.gates[spec.cell]
    entries = convention.arrays[spec.form.form][spec.bias]
    stacked = "direction" in entries[0].axes
    template = convention.place_bidirectional if spec.bidirectional else convention.place
    for layer in range(spec.num_layers):
        for directions in [spec.directions] if stacked else [(direction,) for direction in spec.directions]:
            for entry in entries:
                for gate in (entry.gates or tuple(gates)) if "{gate}" in entry.name else ("",):
                    own = entry.name.format(gate=gates.get(gate, ""))
                    holds = tuple(tuple(f"layers.{layer}.{d}.{name}" for name in entry.holds) for d in directions)
                    inside = (gate,) if gate else entry.gates or tuple(gates)
                    sizes = _full_shape(spec, holds, inside)
                    full: dict[str, int] = dict(zip(_AXES, sizes, strict=False))  # a bias has no source
                    yield Place(
                        layer=layer,
                        direction="" if stacked else directions[0],
                        own=own,
                        name=template.format(
                            name=own,
                            layer=convention.number(layer, spec.num_layers),
                            direction=convention.directions[DIRECTIONS.index(directions[0])],
                            cell=spec.cell,
                        ),
                        shape=tuple(prod(full[axis] for axis in group) for group in _groups(entry.axes)),
                        axes=entry.axes,
                        holds=holds,
                        gates=inside,
                    )


_AXES = ("direction", "bias", "gate", "unit", "source")


def _groups(axes: str) -> list[list[str]]:
    return [group.split() for group in re.findall(r"\(([^)]*)\)|(\w+)", axes) for group in group if group]


def _join(full: Array, axes: str) -> Array:
    """From an array over `_AXES` (without `source` for a bias) to one over the named axes."""
    groups = _groups(axes)
    order = [_AXES.index(axis) for group in groups for axis in group]
    rest = [axis for axis in range(full.ndim) if axis not in order]  # of size one
    shape = [prod(full.shape[_AXES.index(axis)] for axis in group) for group in groups]
    return np.ascontiguousarray(full.transpose(*rest, *order).reshape(shape))


def _split(array: Array, axes: str, full_shape: tuple[int, ...]) -> Array:
    """The inverse of `_join`."""
    order = [_AXES.index(axis) for group in _groups(axes) for axis in group]
    rest = [axis for axis in range(len(full_shape)) if axis not in order]
    permutation = [*rest, *order]
    return array.reshape([full_shape[axis] for axis in permutation]).transpose(np.argsort(permutation))


def _gates_present(spec: RecurrentSpec, name: str) -> tuple[str, ...]:
    """The gates along the leading axis of a canonical array: all of them, or the candidate's alone."""
    gates = spec.form.gates
    return gates if spec.shapes[name][0] == len(gates) else (spec.form.candidate,)


def _gates_of(arrays: Mapping[str, Array], spec: RecurrentSpec, name: str, gates: tuple[str, ...]) -> Array:
    present = _gates_present(spec, name)
    return arrays[name][[present.index(gate) for gate in gates]]


def _full_shape(spec: RecurrentSpec, holds: tuple[tuple[str, ...], ...], gates: tuple[str, ...]) -> tuple[int, ...]:
    return (len(holds), len(holds[0]), len(gates), *spec.shapes[holds[0][0]][1:])


def _shapes(spec: RecurrentSpec, convention: Convention) -> dict[Key, tuple[int, ...]]:
    return {place.key: place.shape for place in layout(spec, convention=convention)}


def _unpack(convention: Convention, spec: RecurrentSpec, found: Mapping[Key, Array]) -> dict[str, Array]:
    arrays = {name: np.empty(shape, spec.dtype) for name, shape in spec.shapes.items()}
    for place in layout(spec, convention=convention):
        full_shape = _full_shape(spec, place.holds, place.gates)
        full = _turned(_split(found[place.key], place.axes, full_shape), convention, spec, place.gates)
        for row, names in zip(full, place.holds, strict=True):
            for part, name in zip(row, names, strict=True):
                present = _gates_present(spec, name)
                arrays[name][[present.index(gate) for gate in place.gates]] = part
    return arrays


def _turned(full: Array, convention: Convention, spec: RecurrentSpec, gates: tuple[str, ...]) -> Array:
    """The array with z's block negated if z weighs the new state: sigmoid(-v) = 1 - sigmoid(v). Its own inverse."""
    if convention.update == "old" or spec.cell != "gru" or "z" not in gates:
        return full
    turned = full.copy()
    turned[:, :, gates.index("z")] *= -1
    return turned


# --- Reading names ---------------------------------------------------------------------------------------------------


def _flatten(arrays: Mapping[str, Any]) -> dict[str, Array]:
    if not isinstance(arrays, Mapping):
        raise InvalidWeights(f"arrays must be a mapping from names to arrays, not {kind_of(arrays)}")
    flat: dict[str, Array] = {}
    for name, value in arrays.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}/{inner}": array for inner, array in _flatten(value).items()}
        else:
            flat[str(name)] = as_array(repr(name), value, error=InvalidWeights)
    return flat


def _read_names(convention: Convention, arrays: Mapping[str, Array]) -> dict[Key, Array]:
    parsed = {}
    for name, array in arrays.items():
        match = re.fullmatch(convention.pattern, name)
        if match is None:
            odd = next((other for other in arrays if not prefixes({other: array}, convention.pattern)), name)
            raise Unrepresentable(
                f"{odd!r} is not the name of an array of the {convention.name} convention{_hint(convention, odd, arrays)}"
            )
        parts = match.groupdict()
        parsed[name] = (parts["layer"] or "", parts.get("direction") or "", parts["name"], array)
    layers = _in_order([layer for layer, *_ in parsed.values()])
    if not convention.gaps and layers not in ([""], [str(number) for number in range(len(layers))]):
        raise Unrepresentable(
            f"the arrays are of the layers {', '.join(map(repr, layers))}; "
            f"the {convention.name} convention numbers them from 0 without gaps"
        )
    stacked = "direction" in next(iter(convention.arrays["lstm"].values()))[0].axes
    found: dict[Key, Array] = {}
    for name, (layer, direction, own, array) in parsed.items():
        word = direction or convention.directions[0]
        key = (layers.index(layer), "" if stacked else DIRECTIONS[convention.directions.index(word)], own)
        if key in found:
            raise Unrepresentable(f"two arrays stand for {own} of layer {key[0]}; the second is {name!r}")
        found[key] = array
    return found


def _hint(convention: Convention, name: str, arrays: Mapping[str, Array]) -> str:
    if convention is TORCH and of_a_cell(name):
        return f"; it is a cell's, whose arrays are those of a layer as {name.rpartition('.')[2] + '_l0'!r}"
    found = [prefix for prefix in prefixes(arrays, convention.pattern) if prefix]
    return f"; pass those alone that begin with {' or with '.join(map(repr, found))}" if found else ""


def _in_order(layers: list[str]) -> list[str]:
    """The layers' names without repetition: sorted by number if they differ in nothing else, else in the given order.

    Keras numbers the layers of a class in the order of creation over the whole process: lstm, lstm_1, … lstm_10.
    """
    names = list(dict.fromkeys(layers))
    numbers = {name: int(re.sub(r"\D", "", name[len(name.rstrip("0123456789")) :]) or 0) for name in names}
    stems = {name.rstrip("0123456789").rstrip("_") for name in names}
    return sorted(names, key=lambda name: numbers[name]) if len(stems) == 1 else names


def _sizes(convention: Convention, found: Mapping[Key, Array]) -> dict[str, Any]:
    """The fields of a spec that do not depend on the cell."""
    if not found:
        raise Unrepresentable(f"there are no arrays here; the {convention.name} convention has some for every layer")
    dtypes = sorted({str(array.dtype) for array in found.values()})
    if len(dtypes) > 1 or dtypes[0] not in DTYPES:
        raise InvalidWeights(f"the arrays must all be float32 or all float64, not {' and '.join(dtypes)}")
    sizes: dict[str, int] = {}
    directions = {direction for _, direction, _ in found}
    for entry in next(iter(convention.arrays["lstm"].values()))[:2]:
        own = re.compile(re.escape(entry.name).replace(r"\{gate\}", "[a-z]?"))
        array = next((a for (layer, _, name), a in found.items() if not layer and own.fullmatch(name)), None)
        if array is None:
            raise Unrepresentable(f"layer 0 has no array {entry.name}, which the {convention.name} convention has")
        groups = _groups(entry.axes)
        if array.ndim != len(groups) or 0 in array.shape:
            raise Unrepresentable(
                f"{entry.name} of layer 0 must have the axes {entry.axes}, not the shape {array.shape}"
            )
        sizes[entry.holds[0]] = array.shape[groups.index(["source"])]
        if ["direction"] in groups:
            directions = set(DIRECTIONS[: array.shape[groups.index(["direction"])]])
    return {
        "input_size": sizes["weight_ih"],
        "hidden_size": sizes["weight_hh"],
        "num_layers": 1 + max(layer for layer, _, _ in found),
        "bidirectional": "backward" in directions,
        "dtype": dtypes[0],
    }


def _why_none_fits(
    convention: Convention, candidates: list[RecurrentSpec], shapes: Mapping[Key, tuple[int, ...]]
) -> str:
    """The first mismatch with the candidate that fits the most arrays."""
    if not candidates:
        return f"the {convention.name} convention has no such cell"
    best = max(candidates, key=lambda spec: len(_shapes(spec, convention).items() & shapes.items()))
    wanted = _shapes(best, convention)
    what = f"as {an(best.form.form)} with {best.input_size} inputs and {best.hidden_size} units"
    for (layer, direction, name), shape in shapes.items():
        where = f"{name} of layer {layer}{' ' + direction if direction else ''}"
        expected = wanted.get((layer, direction, name))
        if expected is None:
            return f"the arrays fit no cell: read {what}, there is no place for {where}"
        if expected != shape:
            return f"the arrays fit no cell: read {what}, {where} must have the shape {expected}, not {shape}"
    layer, direction, name = next(key for key in wanted if key not in shapes)
    return (
        f"the arrays fit no cell: read {what}, {name} of layer {layer}{' ' + direction if direction else ''} is missing"
    )
