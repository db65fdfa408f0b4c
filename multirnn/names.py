"""What surrounds the names of a convention: the prefix of a module in a model, and Flax's automatic numbers."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from multirnn.arrays import as_array
from multirnn.conventions import Convention
from multirnn.errors import InvalidWeights, Unrepresentable
from multirnn.spec import DIRECTIONS
from multirnn.weights import Array

__all__ = ["by_prefix", "fused_gates", "listed", "numbered_cells", "one_stack"]

COMPACT = re.compile(
    r"(?P<prefix>.*?/)??(?P<kind>(?:Scan|Optimized)*(?:LSTM|GRU|Simple)Cell)_(?P<number>\d+)/(?P<own>.+)"
)
"""A cell made inside a method with `nn.compact`; Flax leaves out the `nn.RNN` around it."""


PER_GATE = re.compile(r"(?P<folder>.*?)(?P<side>[ih])(?P<gate>i|f_|f|g|o)/(?P<kind>kernel|bias)")


def one_stack(arrays: Mapping[str, Array], convention: Convention, prefix: str | None = None) -> dict[str, Array]:
    """The arrays of the one stack among a model's, without their common prefix, such as "module." or "encoder.lstm.".

    Arrays elsewhere in the model are left out; an unknown array beside those of the stack is refused, for it may be a
    projection, or a bias with a name that is misspelt.

    Raises:
        Unrepresentable: no array has a name of the convention, an unknown one is beside the stack, or there are several
            stacks and `prefix` chooses none of them.
    """
    found = by_prefix(arrays, convention.pattern)
    if prefix is not None:
        if prefix not in found:
            among = f"; there are {' and '.join(map(repr, found))}" if found else ""
            raise Unrepresentable(f"no array of the {convention.name} convention has the prefix {prefix!r}{among}")
        found = {prefix: found[prefix]}
    if not found and arrays:
        name = next(iter(arrays))
        raise Unrepresentable(f"{name!r} is not the name of an array of the {convention.name} convention")
    if len(found) > 1:
        raise Unrepresentable(
            f"the arrays hold {len(found)} stacks of the {convention.name} convention; pass prefix= one of "
            f"{', '.join(map(repr, found))}"
        )
    for start, own in found.items():
        folders = {_folder(start + name) for name in own}
        for name in arrays:
            if name.removeprefix(start) not in own and _folder(name) in folders:
                raise Unrepresentable(
                    f"{name!r} is beside the arrays of the stack, and not the name of an array of the "
                    f"{convention.name} convention"
                )
    return next(iter(found.values()), {})


def by_prefix(arrays: Mapping[str, Array], pattern: str) -> dict[str, dict[str, Array]]:
    """The arrays that a convention has names for, by what stands before the name."""
    found: dict[str, dict[str, Array]] = {}
    for name, array in arrays.items():
        if match := re.fullmatch(rf"(?P<prefix>(?:.*?[./])??)(?P<own>{pattern})", name):
            found.setdefault(match["prefix"], {})[match["own"]] = array
    return found


def _folder(name: str) -> str:
    return name[: max(name.rfind("."), name.rfind("/")) + 1]


def listed(arrays: Sequence[Any]) -> dict[str, Array]:
    """The arrays of Keras' `get_weights()`, by the names that Keras gives them.

    Raises:
        Unrepresentable: they are no kernels, recurrent kernels and biases in turn, or may be layers as well as directions.
    """
    found = [as_array(f"arrays[{place}]", value, error=InvalidWeights) for place, value in enumerate(arrays)]
    width = next((width for width in (3, 2) if _are_layers(found, width)), 0)
    if not width:
        raise Unrepresentable(
            "a list of arrays must have a kernel, a recurrent kernel and perhaps a bias for each layer"
        )
    starts = range(0, len(found), width)
    kernels = [found[start].shape for start in starts]
    hidden = found[1].shape[0]
    both = len(starts) % 2 == 0 and kernels[1] == kernels[0]
    if both and kernels[0][0] == hidden and len(starts) == 2:
        raise Unrepresentable(
            "the arrays may be two layers or two directions, for x has as many features as there are units; "
            "pass a mapping with Keras' names"
        )
    places = [divmod(k, 2) for k in range(len(starts))] if both else [(k, -1) for k in range(len(starts))]
    named: dict[str, Array] = {}
    for start, (layer, direction) in zip(starts, places, strict=True):
        inner = "" if direction < 0 else f"{DIRECTIONS[direction]}_layer/"
        for name, array in zip(("kernel", "recurrent_kernel", "bias"), found[start : start + width], strict=False):
            named[f"layer_{layer}/{inner}layer_cell/{name}"] = array
    return named


def _are_layers(arrays: Sequence[Array], width: int) -> bool:
    """Whether every `width` arrays have the shapes of a Keras layer's."""

    def is_layer(kernel: Array, recurrent: Array, *bias: Array) -> bool:
        columns = recurrent.shape[-1:]
        return (
            kernel.ndim == recurrent.ndim == 2
            and kernel.shape[1:] == columns
            and recurrent.shape[0] > 0
            and columns[0] % recurrent.shape[0] == 0
            and all(one.shape in (columns, (2, *columns)) for one in bias)
        )

    groups = [arrays[start : start + width] for start in range(0, len(arrays), width)]
    return bool(groups) and all(len(group) == width and is_layer(*group) for group in groups)


def fused_gates(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The arrays of Flax NNX's `LSTMCell`, one per gate, as those of its `OptimizedLSTMCell`, all gates in one."""
    parsed = {name: match for name in arrays if (match := PER_GATE.fullmatch(name))}
    made: dict[str, dict[str, Array]] = {}
    for name, match in parsed.items():
        made.setdefault(f"{match['folder']}dense_{match['side']}/{match['kind']}", {})[match["gate"]] = arrays[name]
    if not all(set(gates) == {"i", "f_", "g", "o"} or set(gates) == {"i", "f", "g", "o"} for gates in made.values()):
        return dict(arrays)
    fused = {
        name: np.concatenate([gates[gate] if gate in gates else gates["f_"] for gate in "ifgo"], axis=-1)
        for name, gates in made.items()
        if len({array.shape for array in gates.values()}) == 1 and next(iter(gates.values())).ndim
    }
    return {name: array for name, array in arrays.items() if name not in parsed} | fused


def numbered_cells(arrays: Mapping[str, Array]) -> Mapping[str, Array]:
    """The arrays of cells that Flax numbered, `LSTMCell_0`, by their names in `nn.Sequential`; others unchanged.

    Flax numbers layers and directions alike in order of creation, so sizes tell them apart: the backward direction of the
    first layer takes x, and a second layer takes `hidden_size` features.

    Raises:
        Unrepresentable: they are of several kinds or modules, or may be layers as well as directions.
    """
    parsed = {name: match for name in arrays if (match := COMPACT.fullmatch(name))}
    if not parsed:
        return arrays
    kinds = list(dict.fromkeys(f"{match['prefix'] or ''}{match['kind']}" for match in parsed.values()))
    if len(kinds) > 1:
        raise Unrepresentable(f"the arrays are of {' and '.join(kinds)}; pass those of one kind of cell in one module")
    numbers = sorted({int(match["number"]) for match in parsed.values()})
    sizes = {int(m["number"]): arrays[name].shape for name, m in parsed.items() if re.fullmatch("i.*kernel", m["own"])}
    both = _directions(kinds[0], [sizes.get(number, ()) for number in numbers])
    renamed = {name: array for name, array in arrays.items() if name not in parsed}
    for name, match in parsed.items():
        place = numbers.index(int(match["number"]))
        layer, direction = (place // 2, ("forward_rnn/", "backward_rnn/")[place % 2]) if both else (place, "")
        renamed[f"layers_{layer}/{direction}cell/{match['own']}"] = arrays[name]
    return renamed


def _directions(kind: str, shapes: list[tuple[int, ...]]) -> bool:
    """Whether the cells are directions in turn, and not layers; by the shapes `(features, hidden_size)` of their kernels."""
    if len(shapes) < 2 or any(len(shape) != 2 for shape in shapes):
        return False
    features, hidden = shapes[0]
    if len(shapes) % 2 or shapes[1][0] != features:
        return False
    if features != hidden:
        return True
    if len(shapes) > 2 and shapes[2][0] != hidden:
        return True
    if len(shapes) > 2:
        return False
    raise Unrepresentable(
        f"{kind}_0 and {kind}_1 may be two layers or two directions, for x has as many features as there are units; name "
        "them layers_0/cell and layers_1/cell, or forward_rnn/cell and backward_rnn/cell"
    )
