"""Weights as the arrays of a framework and back, exactly, by the table of `conventions`: `to_arrays`, `unpacked`."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from multirnn.conventions import Convention, convention_named
from multirnn.errors import Unrepresentable, an
from multirnn.spec import DIRECTIONS, RecurrentSpec
from multirnn.weights import Array, Owned, Weights

__all__ = ["Key", "Place", "groups_of", "layout", "shapes_of", "to_arrays", "unpacked"]


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
    places = layout(spec, convention=convention)
    for name in convention.zero.get(spec.form.form, ()):
        if any(array.any() for full, array in weights.arrays.items() if full.endswith(name)):
            raise Unrepresentable(
                f"{convention.title} has no {name} in {an(spec.cell)}, and this stack has one that is not zero"
            )
    arrays = _shifted(weights.arrays, spec, -convention.forget_offset)
    packed: dict[str, Array] = {}
    for place in places:
        parts = [[_gates_of(arrays, spec, name, place.gates) for name in row] for row in place.holds]
        if len(parts) == len(parts[0]) == 1:  # one array, of which a copy would be one more pass over the memory
            full = parts[0][0][None, None]
        else:
            full = np.array([[np.concatenate(row, -1)] for row in parts] if place.joined else parts)
        packed[place.name] = _join(_turned(full, convention, spec, place.gates), place)
    return packed


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
        raveled: as in `Entry`.
    """

    layer: int
    direction: str
    own: str
    name: str
    shape: tuple[int, ...]
    axes: str
    holds: tuple[tuple[str, ...], ...]
    gates: tuple[str, ...]
    raveled: bool = False

    @property
    def joined(self) -> bool:
        """Whether it holds both weights, one after the other along `source`."""
        return len(self.holds[0]) == 2 and self.holds[0][0].endswith("weight_ih")

    @property
    def key(self) -> "Key":
        """Identifies it independently of its full name."""
        return self.layer, self.direction, self.own


Key = tuple[int, str, str]
"""Layer, direction and own name: identifies a `Place` independently of its full name."""


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
                            cell=convention.modules.get(spec.cell, spec.cell),
                        ),
                        shape=tuple(prod(full[axis] for axis in group) for group in groups_of(entry.axes)),
                        axes=entry.axes,
                        holds=holds,
                        gates=inside,
                        raveled=entry.raveled,
                    )


_AXES = ("direction", "bias", "gate", "unit", "source")


def groups_of(axes: str) -> list[list[str]]:
    """The axes of an array in groups, as in einops: `(gate unit) source` is `[[gate, unit], [source]]`."""
    return [group.split() for group in re.findall(r"\(([^)]*)\)|(\w+)", axes) for group in group if group]


BLOCK = 64
"""Columns that are transposed at a time: 11 ms for a kernel of 1300 by 5200, where NumPy takes 27 for all at once."""


def _join(full: Array, place: Place) -> Array:
    """From an array over `_AXES` (without `source` for a bias) to a native one."""
    if place.raveled:
        full = np.ascontiguousarray(full).reshape(*full.shape[:-2], full.shape[-1], full.shape[-2]).swapaxes(-1, -2)
    groups = groups_of(place.axes)
    order = [_AXES.index(axis) for group in groups for axis in group]
    rest = [axis for axis in range(full.ndim) if axis not in order]  # of size one
    turned = full.transpose(*rest, *order)
    made = np.empty(turned.shape, turned.dtype)
    for start in range(0, turned.shape[-1], BLOCK):
        made[..., start : start + BLOCK] = turned[..., start : start + BLOCK]
    return made.reshape(place.shape)


def _split(array: Array, place: Place, full_shape: tuple[int, ...]) -> Array:
    """The inverse of `_join`."""
    order = [_AXES.index(axis) for group in groups_of(place.axes) for axis in group]
    rest = [axis for axis in range(len(full_shape)) if axis not in order]
    permutation = [*rest, *order]
    full = array.reshape([full_shape[axis] for axis in permutation]).transpose(np.argsort(permutation))
    return np.ascontiguousarray(full.swapaxes(-1, -2)).reshape(full.shape) if place.raveled else full


def _shifted(arrays: Mapping[str, Array], spec: RecurrentSpec, offset: float) -> Mapping[str, Array]:
    """The arrays with an offset added to the bias of the forget gate, which a framework adds while it runs."""
    if not offset or spec.cell != "lstm":
        return arrays
    shifted = {name: array.copy() if name.endswith("bias_ih") else array for name, array in arrays.items()}
    for name, array in shifted.items():
        if name.endswith("bias_ih"):
            array[spec.form.gates.index("f")] += np.asarray(offset, array.dtype)
    return shifted


def _gates_present(spec: RecurrentSpec, name: str) -> tuple[str, ...]:
    """The gates along the leading axis of a canonical array: all of them, or the candidate's alone."""
    gates = spec.form.gates
    return gates if spec.shapes[name][0] == len(gates) else (spec.form.candidate,)


def _gates_of(arrays: Mapping[str, Array], spec: RecurrentSpec, name: str, gates: tuple[str, ...]) -> Array:
    present = _gates_present(spec, name)
    return arrays[name] if gates == present else arrays[name][[present.index(gate) for gate in gates]]


def _full_shape(spec: RecurrentSpec, holds: tuple[tuple[str, ...], ...], gates: tuple[str, ...]) -> tuple[int, ...]:
    shapes = [spec.shapes[name][1:] for name in holds[0]]
    if (len(shapes) == 2 and shapes[0] != shapes[1]) or (holds[0][0].endswith("weight_ih") and len(shapes) == 2):
        return len(holds), 1, len(gates), spec.hidden_size, sum(source for _, source in shapes)
    return (len(holds), len(shapes), len(gates), *shapes[0])


def shapes_of(spec: RecurrentSpec, convention: Convention) -> dict[Key, tuple[int, ...]]:
    """The shapes of a framework's arrays."""
    return {place.key: place.shape for place in layout(spec, convention=convention)}


def unpacked(convention: Convention, spec: RecurrentSpec, found: Mapping[Key, Array]) -> Owned:
    """The canonical arrays of those that `found` has at every place of the layout."""
    arrays = {name: np.zeros(shape, spec.dtype) for name, shape in spec.shapes.items()}
    for place in layout(spec, convention=convention):
        full_shape = _full_shape(spec, place.holds, place.gates)
        full = _turned(_split(found[place.key], place, full_shape), convention, spec, place.gates)
        for row, names in zip(full, place.holds, strict=True):
            if place.joined:
                row = np.split(row[0], [spec.shapes[names[0]][-1]], axis=-1)
            for part, name in zip(row, names, strict=True):
                present = _gates_present(spec, name)
                arrays[name][[present.index(gate) for gate in place.gates]] = part
    return Owned(_shifted(arrays, spec, convention.forget_offset))


def _turned(full: Array, convention: Convention, spec: RecurrentSpec, gates: tuple[str, ...]) -> Array:
    """The array with z's block negated if z weighs the new state: sigmoid(-v) = 1 - sigmoid(v). Its own inverse."""
    if convention.update == "old" or spec.cell != "gru" or "z" not in gates:
        return full
    turned = full.copy()
    turned[:, :, gates.index("z")] *= -1
    return turned
