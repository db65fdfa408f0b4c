"""What surrounds the names of a convention: the prefix of a module in a model, and Flax's automatic numbers."""

import re
from collections.abc import Mapping

from multirnn.errors import Unrepresentable
from multirnn.weights import Array

__all__ = ["numbered_cells", "of_a_cell", "prefixes", "unprefixed"]

COMPACT = re.compile(
    r"(?P<prefix>.*?/)??(?P<kind>(?:Scan|Optimized)*(?:LSTM|GRU|Simple)Cell)_(?P<number>\d+)/(?P<own>.+)"
)
"""A cell made inside a method with `nn.compact`; Flax leaves out the `nn.RNN` around it."""


def unprefixed(arrays: Mapping[str, Array], pattern: str) -> Mapping[str, Array]:
    """The arrays without the prefix that all their names share, such as "module." or "encoder.lstm."."""
    matches = [re.fullmatch(rf"(?P<prefix>.*?)(?:{pattern})", name) for name in arrays]
    found = {match["prefix"] if match else None for match in matches}
    if len(found) != 1 or (prefix := found.pop()) is None or (prefix and prefix[-1] not in "./"):
        return arrays
    return {name.removeprefix(prefix): array for name, array in arrays.items()}


def prefixes(arrays: Mapping[str, Array], pattern: str) -> list[str]:
    """The distinct prefixes of the names of a convention, in the order of the arrays."""
    matches = (re.fullmatch(rf"(?P<prefix>(?:.*?[./])?)(?:{pattern})", name) for name in arrays)
    return list(dict.fromkeys(match["prefix"] for match in matches if match))


def of_a_cell(name: str) -> bool:
    """Whether it is a name of `torch.nn.RNNCell`, `LSTMCell` or `GRUCell`."""
    return re.fullmatch(r"(?:.*\.)?(?:weight|bias)_[ih]h", name) is not None


def numbered_cells(arrays: Mapping[str, Array]) -> Mapping[str, Array]:
    """The arrays of cells that Flax numbered, `LSTMCell_0`, by their names in `nn.Sequential`; others unchanged.

    Flax numbers layers and directions alike in order of creation, so sizes tell them apart: the backward direction of the
    first layer takes x, and a second layer takes `hidden_size` features.

    Raises:
        Unrepresentable: they are of several kinds or modules, or may be layers as well as directions.
    """
    parsed = {name: match for name in arrays if (match := COMPACT.fullmatch(name))}
    if len(parsed) != len(arrays) or not arrays:
        return arrays
    kinds = list(dict.fromkeys(f"{match['prefix'] or ''}{match['kind']}" for match in parsed.values()))
    if len(kinds) > 1:
        raise Unrepresentable(f"the arrays are of {' and '.join(kinds)}; pass those of one kind of cell in one module")
    numbers = sorted({int(match["number"]) for match in parsed.values()})
    sizes = {int(m["number"]): arrays[name].shape for name, m in parsed.items() if re.fullmatch("i.*kernel", m["own"])}
    both = _directions(kinds[0], [sizes.get(number, ()) for number in numbers])
    renamed: dict[str, Array] = {}
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
