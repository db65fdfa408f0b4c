"""The search: from two layers and a call to what is found."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from multirnn.adoption import adopt, known_spec
from multirnn.divergence.calls import mixed_rows, repetition, whole_calls
from multirnn.divergence.gradients import gradients
from multirnn.divergence.lengths import lengths as calls_with_lengths
from multirnn.divergence.lengths import lengths_too
from multirnn.divergence.measures import Call, Pair
from multirnn.divergence.record import Divergence
from multirnn.divergence.report import report
from multirnn.divergence.stepping import Side
from multirnn.divergence.steps import single_steps
from multirnn.errors import InvalidCall
from multirnn.layer import State
from multirnn.numerics import TOLERANCE, coarser, draw_call, tolerance
from multirnn.spec import RecurrentSpec

__all__ = ["first_divergence"]

SEARCH = (repetition, calls_with_lengths, mixed_rows, single_steps, whole_calls)
"""What the outputs may part for, in the order in which it has to be asked: each takes for granted what stands before it."""


@np.errstate(all="ignore")  # what a user set for code of his own, and what overflows is compared as it is
def first_divergence(
    a: Any,
    b: Any,
    x: ArrayLike | None = None,
    state: State | None = None,
    *,
    lengths: ArrayLike | None = None,
    seed: int = 0,
) -> Divergence:
    """Find where B parts from A.

    Args:
        a: a Layer, or whatever `adopt` takes. Where its weights can be read, and it does what they say, it is run by
            them in float64. If not, and B does what its own say, B is held to be right and A to part from it.
        b: likewise; no more than its calls needs to be known.
        x: `(batch, time, input_size)`, or `(time, input_size)`. Unless given, a call is drawn: `draw_call(spec, seed)`,
            without state or lengths where one of the two takes none.
        state: the initial state; zero unless given.
        lengths: `(batch,)` integers; every row is full unless given.
        seed: of what is drawn.

    Raises:
        InvalidCall: the two do not take the same input and states, or x, state or lengths do not fit A.
    """
    spec = known_spec(a) or known_spec(b)
    right = Side(adopt(a, spec=None if known_spec(a) else spec))
    suspect = Side(adopt(b, spec=None if known_spec(b) else spec))
    _comparable(right.spec, suspect.spec)
    dtype = coarser(right.spec.dtype, suspect.spec.dtype)
    if x is None:
        if state is not None or lengths is not None:
            raise InvalidCall("a state or lengths belong to an x: pass x too")
        call = _drawn(right, suspect, dtype, seed)
    else:
        call = _given(x, state, lengths, dtype)
    pair = Pair(right, suspect, call, dtype, seed)
    try:
        pair.outputs  # noqa: B018
    except InvalidCall as error:
        pair.a(*call)  # what A refuses is the caller's mistake; what B alone refuses is a finding
        return report(pair, pattern="call", blank=True, says=f"A runs, and B does not: {error}.")
    if suspect.layer.readable and not pair.faithful:
        other = Pair(suspect, right, call, dtype, seed, letters=("B", "A"))
        pair = other if other.faithful else pair
    return _found(pair)


def _size(dtype: str) -> int:
    return np.dtype(dtype).itemsize


def _comparable(a: RecurrentSpec, b: RecurrentSpec) -> None:
    for name in ("cell", "input_size", "hidden_size", "num_layers", "bidirectional"):
        if getattr(a, name) != getattr(b, name):
            raise InvalidCall(
                f"two layers are compared on the same input and states; A has {name}={getattr(a, name)!r} and B "
                f"{getattr(b, name)!r}"
            )


def _drawn(a: Side, b: Side, dtype: str, seed: int) -> Call:
    x, state, lengths = draw_call(replace(a.spec, dtype=dtype), seed)
    call = _given(
        x,
        state if a.layer.takes_state and b.layer.takes_state else None,
        lengths if a.layer.takes_lengths and b.layer.takes_lengths else None,
        dtype,
    )
    try:
        b(*call)
    except InvalidCall:  # as where batch and time are swapped, and the initial state fits only a square
        return call._replace(x=call.x[:, : len(x)], lengths=None)
    return call


def _given(x: ArrayLike, state: State | None, lengths: ArrayLike | None, dtype: str) -> Call:
    array = np.asarray(x).astype(dtype).astype(np.float64)
    parts = None if state is None else [part for part in state if part is not None]
    states = None if parts is None else np.stack(parts).astype(dtype).astype(np.float64)
    if array.ndim == 2:
        array = array[None]
        states = None if states is None else states[:, :, None]
        lengths = None if lengths is None else np.reshape(lengths, 1)
    if lengths is None:
        return Call(array, states, None)
    steps = np.asarray(lengths, np.int64)
    return Call(np.where((np.arange(array.shape[1]) < steps[:, None])[:, :, None], array, 0), states, steps)


def _found(pair: Pair) -> Divergence:
    if not pair.far <= pair.limit:
        for ask in SEARCH:
            if found := ask(pair):
                also = lengths_too(pair) if ask in (single_steps, whole_calls) else None
                return found if also is None else min((found, also), key=pair.order)
        return _rounding(
            pair,
            f"Given the same states, all steps of A and B agree, and over the whole sequence they are no further apart than "
            f"{pair.A} alone moves when its input and weights are moved by {TOLERANCE[pair.dtype]} eps.",
        )
    if found := gradients(pair):
        return found
    if pair.far > tolerance(max((pair.a.spec.dtype, pair.b.spec.dtype), key=_size)):
        return _rounding(pair, f"One of the two computes in {pair.dtype}, and they agree as far as that goes.")
    says = "Outputs and final states agree."
    if pair.own_parted.any():
        says += (
            f" But from states that are not zero a step of {pair.B} is another than of {pair.A}; an initial state would "
            "show it."
        )
    return report(pair, kind="none", eps=pair.far / pair.eps, says=says)


def _rounding(pair: Pair, says: str) -> Divergence:
    """Against the wider of the two: the errors are those of the narrower one."""
    if _size(pair.b.spec.dtype) > _size(pair.a.spec.dtype):
        pair = Pair(pair.b, pair.a, pair.call, pair.dtype, pair.seed, letters=(pair.B, pair.A))
    return report(pair, kind="rounding", eps=pair.far / pair.eps, says=says)
