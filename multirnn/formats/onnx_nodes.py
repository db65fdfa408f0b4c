"""ONNX nodes that move numbers and change none, and the arithmetic of sizes, in NumPy.

Source: the operators of ONNX by these names, in all their versions.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from math import prod
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multirnn.errors import FormatError

__all__ = ["MOVING", "ORDERING", "SIZES", "Budget", "computed", "data_of"]

Numbers = NDArray[Any]
Given = Sequence[Numbers | None]
Attributes = Mapping[str, Any]


class Budget:
    """How much may be computed of a file, so that a small one cannot ask for much.

    Args:
        numbers: in all arrays together.
        nodes: that are computed.
    """

    def __init__(self, numbers: int, nodes: int = 20_000) -> None:
        self._numbers, self._nodes = numbers, nodes

    def spend(self, numbers: float, node: str) -> None:
        """Count a node and the numbers that it makes, before it does.

        Raises:
            FormatError: they are too many.
        """
        self._numbers -= int(min(numbers, 2.0**62))
        self._nodes -= 1
        if min(self._numbers, self._nodes) < 0:
            raise FormatError(f"computing the node {node} takes more numbers than a model of this size should need")


def computed(kind: str, given: Given, attributes: Attributes, outputs: int, budget: Budget) -> list[Numbers]:
    """The outputs of a node.

    Args:
        kind: the operator, out of `MOVING` or `SIZES`.
        given: its inputs; None for one that is left out.
        attributes: by name; a tensor as an array.
        outputs: their number.
        budget: what may be spent.

    Raises:
        FormatError: they do not fit each other, or a number would change, or the budget is spent.
    """
    try:
        budget.spend(_size(kind, given, attributes), kind)
        made = _TABLE[kind](given, attributes, outputs)
        if len(made) != outputs:
            raise ValueError(f"it makes {len(made)} arrays, and {outputs} are taken")
        return made
    except (ValueError, TypeError, IndexError, OverflowError, KeyError, AttributeError, MemoryError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"a node {kind} cannot be computed: {str(error)[:200]}") from error


def data_of(kind: str, inputs: Sequence[str]) -> Sequence[str]:
    """The inputs of a node whose numbers it moves; the others are sizes, places and axes."""
    if kind in ("Constant", "ConstantOfShape"):
        return ()
    return inputs if kind == "Concat" else inputs[:1]


def _size(kind: str, given: Given, attributes: Attributes) -> float:
    """An upper limit of the numbers that a node makes."""
    if kind == "ConstantOfShape":
        return prod(map(float, _ints(given, 0, attributes, "")), start=1.0)
    if kind == "Expand":
        sizes = _ints(given, 1, attributes, "")[::-1], _array(given, 0).shape[::-1]
        return prod(float(max(pair)) for pair in zip_longest(*sizes, fillvalue=1))
    if kind == "Gather":
        data = _array(given, 0)
        return float(data.size / max(1, data.shape[attributes.get("axis", 0)]) * _array(given, 1).size)
    return float(sum(array.size for array in given if array is not None))


def _array(given: Given, place: int) -> Numbers:
    array = given[place]
    if array is None:
        raise ValueError("an input is missing")
    return array


def _ints(given: Given, place: int, attributes: Attributes, name: str) -> list[int]:
    """A list of integers, which older versions have as an attribute and newer ones as an input."""
    if len(given) > place and (array := given[place]) is not None:
        if array.dtype.kind not in "iu" or array.ndim > 1 or array.size > 1000:
            raise ValueError("sizes, places and axes are a list of integers")
        return [int(number) for number in array.reshape(-1)]
    return [int(number) for number in attributes[name]]


def _optional(given: Given, place: int, attributes: Attributes, name: str) -> list[int] | None:
    there = len(given) > place and given[place] is not None
    return _ints(given, place, attributes, name) if there or name in attributes else None


def _constant(given: Given, attributes: Attributes, outputs: int) -> list[Numbers]:
    kinds = {
        "value": None,
        "value_int": np.int64,
        "value_ints": np.int64,
        "value_float": np.float32,
        "value_floats": np.float32,
    }
    (name,) = attributes
    return [np.asarray(attributes[name], kinds[name])]


def _constant_of_shape(given: Given, attributes: Attributes, outputs: int) -> list[Numbers]:
    value = attributes.get("value", np.zeros(1, np.float32))
    return [np.full(_ints(given, 0, attributes, ""), value.reshape(-1)[0], value.dtype)]


def _identity(given: Given, attributes: Attributes, outputs: int) -> list[Numbers]:
    return [_array(given, 0)]


def _exact_cast(given: Given, attributes: Attributes, outputs: int) -> list[Numbers]:
    """As it is where a cast changes no number."""
    array, kind = _array(given, 0), np.dtype(attributes["to"])
    with np.errstate(all="ignore"):
        cast = array.astype(kind)
        same = (cast.astype(array.dtype) == array) | (array != array)
    if array.dtype.kind == "O" or kind.kind == "O" or not np.all(same):
        raise ValueError(f"it casts {array.dtype} to {kind}, which changes numbers")
    return [cast]


def _concat(given: Given, attributes: Attributes, outputs: int) -> list[Numbers]:
    arrays = [_array(given, place) for place in range(len(given))]
    if len({array.dtype for array in arrays}) > 1:
        raise ValueError("it joins arrays of several dtypes")
    return [np.concatenate(arrays, attributes["axis"])]


def _expand(given: Given, attributes: Attributes, outputs: int) -> list[Numbers]:
    array = _array(given, 0)
    return [np.broadcast_to(array, np.broadcast_shapes(array.shape, tuple(_ints(given, 1, attributes, ""))))]


def _flatten(given: Given, attributes: Attributes, outputs: int) -> list[Numbers]:
    array, axis = _array(given, 0), attributes.get("axis", 1)
    return [array.reshape(prod(array.shape[:axis]), -1)]


def _gather(given: Given, attributes: Attributes, outputs: int) -> list[Numbers]:
    return [np.take(_array(given, 0), _array(given, 1), attributes.get("axis", 0))]


def _reshape(given: Given, attributes: Attributes, outputs: int) -> list[Numbers]:
    array, shape = _array(given, 0), _ints(given, 1, attributes, "shape")
    if not attributes.get("allowzero"):
        shape = [size or array.shape[axis] for axis, size in enumerate(shape)]
    return [array.reshape(shape)]


def _shape(given: Given, attributes: Attributes, outputs: int) -> list[Numbers]:
    return [np.array(_array(given, 0).shape[attributes.get("start", 0) : attributes.get("end")], np.int64)]


def _slice(given: Given, attributes: Attributes, outputs: int) -> list[Numbers]:
    array = _array(given, 0)
    starts, ends = _ints(given, 1, attributes, "starts"), _ints(given, 2, attributes, "ends")
    axes, steps = _optional(given, 3, attributes, "axes"), _optional(given, 4, attributes, "steps")
    taken = [slice(None)] * array.ndim
    for axis, *ends_of in zip(
        range(len(starts)) if axes is None else axes, starts, ends, steps or [1] * len(starts), strict=True
    ):
        taken[axis] = slice(*ends_of)
    return [array[tuple(taken)]]


def _split(given: Given, attributes: Attributes, outputs: int) -> list[Numbers]:
    array, axis = _array(given, 0), attributes.get("axis", 0)
    length = array.shape[axis]
    sizes = _optional(given, 1, attributes, "split")
    if sizes is None:
        size = -(-length // outputs)
        sizes = [size] * (outputs - 1) + [length - size * (outputs - 1)]
    if sum(sizes) != length or min(sizes) < 0 or len(sizes) != outputs:
        raise ValueError(f"parts of the sizes {sizes[:8]} are not {length}")
    return np.split(array, np.cumsum(sizes)[:-1], axis)


def _squeeze(given: Given, attributes: Attributes, outputs: int) -> list[Numbers]:
    axes = _optional(given, 1, attributes, "axes")
    return [np.squeeze(_array(given, 0), None if axes is None else tuple(axes))]


def _transpose(given: Given, attributes: Attributes, outputs: int) -> list[Numbers]:
    return [_array(given, 0).transpose(attributes.get("perm"))]


def _unsqueeze(given: Given, attributes: Attributes, outputs: int) -> list[Numbers]:
    return [np.expand_dims(_array(given, 0), tuple(_ints(given, 1, attributes, "axes")))]


def _arithmetic(function: Any) -> Callable[[Given, Attributes, int], list[Numbers]]:
    def compute(given: Given, attributes: Attributes, outputs: int) -> list[Numbers]:
        a, *rest = (_array(given, place) for place in range(len(given)))
        for b in rest:
            if a.dtype.kind not in "iu" or a.dtype != b.dtype or max(a.size, b.size) > 1000:
                raise ValueError("it changes numbers that are no sizes")
            a = np.asarray(function(a, b))
        return [a]

    return compute


_TABLE: Mapping[str, Callable[[Given, Attributes, int], list[Numbers]]] = MappingProxyType(
    {
        "Add": _arithmetic(np.add),
        "Cast": _exact_cast,
        "Concat": _concat,
        "Constant": _constant,
        "ConstantOfShape": _constant_of_shape,
        "Expand": _expand,
        "Flatten": _flatten,
        "Gather": _gather,
        "Identity": _identity,
        "Max": _arithmetic(np.maximum),
        "Min": _arithmetic(np.minimum),
        "Mul": _arithmetic(np.multiply),
        "Reshape": _reshape,
        "Shape": _shape,
        "Slice": _slice,
        "Split": _split,
        "Squeeze": _squeeze,
        "Sub": _arithmetic(np.subtract),
        "Transpose": _transpose,
        "Unsqueeze": _unsqueeze,
    }
)
SIZES = frozenset(("Add", "Max", "Min", "Mul", "Shape", "Sub"))
"""Of sizes and lengths, which are integers."""
MOVING = frozenset(_TABLE) - SIZES
"""Through which weights and sequences are followed."""
ORDERING = frozenset(("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"))
"""Those of them that keep every number, once."""
