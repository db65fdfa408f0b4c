"""The distance between arrays, its tolerance, and drawn calls that can show a mistake."""

from __future__ import annotations  # or naming np.random.Generator loads numpy.random

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from multirnn.errors import InvalidCall
from multirnn.layer import Output, State
from multirnn.spec import DType, RecurrentSpec
from multirnn.weights import Array

__all__ = ["TOLERANCE", "Difference", "by_step", "coarser", "difference", "distances", "draw_call", "draw_cotangent"]
__all__ += ["draw_state", "magnitude", "normwise", "tolerance"]

# The worst seen over drawn specs of up to 3 layers both ways: 25.9 in float32, Keras; 20.2 in float64, PyTorch.
TOLERANCE: Mapping[str, int] = MappingProxyType({"float32": 64, "float64": 256})
"""The largest normwise difference from the reference that counts as rounding, in units of eps of the dtype."""


def tolerance(dtype: str | np.dtype[Any]) -> float:
    """The normwise bound under which two arrays of this dtype count as equal: `TOLERANCE` times eps."""
    return TOLERANCE[str(dtype)] * float(np.finfo(dtype).eps)


def coarser(*dtypes: DType) -> DType:
    """The dtype with the largest eps: arrays of these dtypes agree no better than that."""
    return max(dtypes, key=lambda dtype: float(np.finfo(dtype).eps))


@dataclass(frozen=True, slots=True)
class Difference:
    """The difference of an array from the expected one.

    Attributes:
        normwise: max|actual - expected| / max|expected|, the latter of finite numbers. Equal NaN and equal infinities have
            the distance 0; otherwise it is infinite if either number is not finite.
        where: the index of the worst element; empty for an array that is empty or equal.
        eps: `normwise` in units of eps of the dtype of `actual`.
    """

    normwise: float
    where: tuple[int, ...]
    eps: float


def difference(actual: Array, expected: Array) -> Difference:
    """The normwise difference of two arrays of one shape, and where it is largest.

    Args:
        actual: float32 or float64, of any shape.
        expected: of the same shape; float64, or of the dtype of `actual`. A value that overflows in the dtype of `actual`
            is expected to be infinite.

    Raises:
        InvalidCall: the shapes differ, or `actual` is not of a floating dtype, or wider than `expected`.
    """
    if actual.shape != expected.shape:
        raise InvalidCall(f"arrays of the shapes {actual.shape} and {expected.shape} cannot be compared")
    if actual.dtype.kind != "f" or np.promote_types(actual.dtype, expected.dtype) != expected.dtype:
        raise InvalidCall(f"an array of {actual.dtype} cannot be held against one of {expected.dtype}")
    distance = distances(actual, expected)
    if not distance.any():
        return Difference(0.0, (), 0.0)
    worst = tuple(map(int, np.unravel_index(int(np.argmax(distance)), distance.shape)))
    relative = float(normwise(distance[worst], magnitude(expected, actual.dtype)))
    return Difference(relative, worst, relative / float(np.finfo(actual.dtype).eps))


def distances(actual: Array, expected: Array) -> Array:
    """|actual - expected| by element, in float64: 0 for equal NaN and infinities, else infinite if either is not finite."""
    with np.errstate(all="ignore"):
        rounded = expected.astype(actual.dtype)
        distance = np.abs(np.subtract(actual, expected, dtype=np.float64))
        alike = (actual == rounded) & ~np.isfinite(rounded) | np.isnan(actual) & np.isnan(expected)
        return np.where(alike, 0.0, np.where(np.isnan(distance), np.inf, distance))


def by_step(actual: Array, expected: Array) -> Array:
    """The normwise difference of two sequences at each time step, relative to |expected| of all steps: `(time,)`."""
    return normwise(distances(actual, expected).max(axis=(0, 2), initial=0), magnitude(expected, actual.dtype))


def normwise(distance: ArrayLike, size: ArrayLike) -> Array:
    """Distances in terms of sizes, element by element: 0 if the distance is 0, infinite if only the size is 0."""
    with np.errstate(all="ignore"):
        return np.where(np.equal(distance, 0), 0.0, np.divide(distance, size))


def magnitude(array: Array, dtype: str | np.dtype[Any]) -> float:
    """The largest finite |array| in this dtype; 0 if none is finite."""
    largest = np.abs(array)
    return float(np.max(largest, where=largest <= np.finfo(dtype).max, initial=0))


def draw_call(spec: RecurrentSpec, seed: int | np.random.Generator = 0) -> tuple[Array, State, Array]:
    """An input, an initial state and lengths that can show a mistake: prime sizes, unequal lengths, no zeros.

    x is `(5, 7, input_size)`; one of the lengths is 0 and two are full.
    """
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((5, 7, spec.input_size)).astype(spec.dtype)
    lengths = rng.permutation([0, 7, 7, 1, 4])
    return x, draw_state(spec, 5, rng), lengths


def draw_state(spec: RecurrentSpec, batch: int, rng: np.random.Generator) -> State:
    """A state drawn from U(-1, 1): no element is zero, none saturates a gate."""
    shape = (spec.num_layers * len(spec.directions), batch, spec.hidden_size)
    return State(*(rng.uniform(-1, 1, shape).astype(spec.dtype) for _ in spec.form.states))


def draw_cotangent(spec: RecurrentSpec, batch: int, time: int, rng: np.random.Generator) -> Output:
    """A cotangent of an output: standard normal on the sequence, `draw_state` on the final state."""
    sequence = rng.standard_normal((batch, time, spec.output_size)).astype(spec.dtype)
    return Output(sequence, draw_state(spec, batch, rng))
