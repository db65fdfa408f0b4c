"""What a user's own function or module returned, as an `Output`."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from multirnn.errors import InvalidCall
from multirnn.layer import Output, State
from multirnn.spec import RecurrentSpec
from multirnn.weights import Array

__all__ = ["arranged", "output_of"]


def arranged(result: Any, shape: tuple[int, ...], spec: RecurrentSpec, title: str) -> list[Any]:
    """The result as `[sequence, h, c]`; c for an LSTM only, and the sequence alone if there is no state.

    Of the result `y`, `(y, h)`, `(y, (h, c))` or `(y, h, c)`, in tuples or lists, None is skipped. The shape is that of x,
    `(batch, time, input_size)`. Works on any framework's arrays or tensors, without copies or conversions. Raises
    InvalidCall on another structure or other shapes.
    """
    names = ("y", *spec.form.states)
    right = f"({', '.join(names)})" if len(names) == 2 else "(y, (h, c))"
    returned = list(_flat(result))
    if not returned:
        raise InvalidCall(f"{title} returned nothing; {right} would be right, or y alone")
    sequence, *state = returned
    if state and len(state) != len(names) - 1:
        raise InvalidCall(
            f"{title} returned y and {len(state)} part{'s' * (len(state) > 1)} of a state; {right} would be right, "
            "or y alone"
        )
    batch, time, _ = shape
    expected = (batch, time, spec.output_size)
    found = tuple(np.shape(sequence))
    if found != expected:
        hint = "; it has time before batch" if found == (time, batch, spec.output_size) else ""
        hint = hint or ("; it is the last step alone" if found == (batch, spec.output_size) else "")
        raise InvalidCall(
            f"{title} returned y of the shape {found}; of x {shape} it must be "
            f"(batch, time, directions * hidden_size) = {expected}{hint}"
        )
    passes = spec.num_layers * len(spec.directions)
    expected = (passes, batch, spec.hidden_size)
    for place, (name, part) in enumerate(zip(spec.form.states, state, strict=False)):
        found = tuple(np.shape(part))
        if passes == 1 and found == expected[1:]:
            state[place] = part[None]
        elif found != expected:
            raise InvalidCall(
                f"{title} returned {name} of the shape {found}; it must be "
                f"(num_layers * directions, batch, hidden_size) = {expected}"
            )
    return [sequence, *state]


def _flat(result: Any) -> Iterator[Any]:
    """The arrays of nested groups in order, without None."""
    if isinstance(result, tuple | list):
        for part in result:
            yield from _flat(part)
    elif result is not None:
        yield result


def output_of(arrays: Sequence[Array], spec: RecurrentSpec, title: str) -> Output:
    """The output in the spec's dtype, from the arrays that `arranged` returns; InvalidCall if one is not floating."""
    if wrong := [array.dtype for array in arrays if array.dtype.kind != "f"]:
        raise InvalidCall(f"{title} returned an array of {wrong[0]}; it must be of {spec.dtype}")
    sequence, *state = (np.array(array, spec.dtype) for array in arrays)
    return Output(sequence, State(*state) if state else State(None))  # type: ignore[arg-type]  # unknown
