"""NaN where there has to be NaN: ONNX Runtime's kernels compare before they compute, and take it for a large number."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from multirnn import Inputs, RecurrentSpec
from multirnn.weights import Array

__all__ = ["has_nan", "spread"]

Flags = NDArray[np.bool_]


def has_nan(array: Array) -> bool:
    """Whether it, which is not empty, holds a NaN."""
    numbers = array.ravel("K")  # in the order in memory, so that there is nothing to copy
    largest = numbers.item(numbers.argmax())  # the first NaN; of 256 numbers 1.1 µs, where `max` takes 2.9
    return bool(largest != largest)


def spread(spec: RecurrentSpec, inputs: Inputs, y: Array, final: Sequence[Array]) -> None:
    """Put NaN wherever one of x or of the initial state leads, in place.

    A matrix mixes all units, so one of them is enough for a step, and for all those that come after it.

    Args:
        spec: of the stack.
        inputs: the call.
        y: its outputs, `(time, batch, directions * hidden_size)`.
        final: its final states, `(num_layers * directions, batch, hidden_size)` each.
    """
    valid = inputs.valid
    start = _any(np.stack([np.isnan(part) for part in inputs.state if part is not None]), (0, 3))
    bad = _any(np.isnan(inputs.x), 2)
    outputs = y.reshape(*y.shape[:2], len(spec.directions), spec.hidden_size)
    reached: list[Flags] = []
    for layer in range(spec.num_layers):
        reached.clear()
        for place, direction in enumerate(spec.directions, layer * len(spec.directions)):
            order = slice(None) if direction == "forward" else slice(None, None, -1)
            after = np.logical_or.accumulate(bad[:, order], axis=1)[:, order]
            reached.append((after | start[place, :, None]) & valid)
            for part in final:
                part[place, _any(bad, 1) | start[place]] = np.nan
        bad = _any(np.stack(reached), 0)
    for place, steps in enumerate(reached):
        outputs[:, :, place][steps.T] = np.nan


def _any(flags: Flags, axis: int | tuple[int, ...]) -> Flags:
    return np.asarray(flags.any(axis=axis))
