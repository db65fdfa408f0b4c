"""`first_divergence`: two layers and a call in, a `Divergence` out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from multirnn.adoption import adopt, known_spec
from multirnn.divergence.calls import outputs_part
from multirnn.divergence.gradients import gradients
from multirnn.divergence.measures import Call, Pair
from multirnn.divergence.record import Divergence
from multirnn.divergence.report import report
from multirnn.divergence.stepping import Seen, Side
from multirnn.errors import InvalidCall
from multirnn.layer import Output, State
from multirnn.numerics import TOLERANCE, coarser, draw_call, tolerance
from multirnn.spec import DType, RecurrentSpec

__all__ = ["first_divergence"]


@np.errstate(all="ignore")  # overflow is compared as it is, whatever error state the caller set
def first_divergence(
    a: Any,
    b: Any,
    x: ArrayLike | None = None,
    state: State | None = None,
    *,
    lengths: ArrayLike | None = None,
    cotangent: Output | None = None,
    seed: int = 0,
) -> Divergence:
    """Locate the first place where B parts from A; `diagnose` names the cause.

    Args:
        a: a Layer, or anything that `adopt` takes. If it computes what its readable weights say, those are run in float64
            as the reference. If not, and B computes what its own say, B is taken as right and A as the suspect.
        b: likewise; its calls are enough.
        x: `(batch, time, input_size)`, or `(time, input_size)`. Unless given, `draw_call(spec, seed)` draws a call, without
            state or lengths if one of the two takes none.
        state: the initial state; none unless given.
        lengths: `(batch,)` integers; every row is full unless given.
        cotangent: pulled back to compare gradients; drawn unless given.
        seed: seeds all drawing.

    Raises:
        InvalidCall: the two do not take the same input and states, or the call does not fit A.
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
    seen = None if cotangent is None else _seen(cotangent)
    pair = Pair(right, suspect, call, dtype, seed, cotangent=seen)
    try:
        pair.outputs  # noqa: B018
    except InvalidCall as error:
        pair.a(*call)  # raises if the call is wrong; if B alone refuses it, that is the finding
        return report(pair, probe="call", blank=True, says=f"A runs, and B does not: {error}.")
    if suspect.layer.readable and not pair.faithful:
        other = Pair(suspect, right, call, dtype, seed, letters=("B", "A"), cotangent=seen)
        pair = other if other.faithful else pair
    return _found(pair)


def _size(dtype: str) -> int:
    return np.dtype(dtype).itemsize


def _comparable(a: RecurrentSpec, b: RecurrentSpec) -> None:
    for name in ("cell", "input_size", "hidden_size", "num_layers", "bidirectional"):
        if getattr(a, name) != getattr(b, name):
            raise InvalidCall(
                f"two layers need the same input and states to be compared; A has {name}={getattr(a, name)!r} and B "
                f"{getattr(b, name)!r}"
            )


def _drawn(a: Side, b: Side, dtype: DType, seed: int) -> Call:
    x, state, lengths = draw_call(replace(a.spec, dtype=dtype), seed)
    call = _given(
        x,
        state if a.layer.takes_state and b.layer.takes_state else None,
        lengths if a.layer.takes_lengths and b.layer.takes_lengths else None,
        dtype,
    )
    try:
        b(*call)
    except InvalidCall:  # with batch and time swapped, the initial state fits a square batch only
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


def _seen(cotangent: Output) -> Seen:
    sequence, final = np.asarray(cotangent.sequence), np.stack([p for p in cotangent.state if p is not None])
    if sequence.ndim == 2:
        sequence, final = sequence[None], final[:, :, None]
    return Seen(sequence.astype(np.float64), final.astype(np.float64))


def _found(pair: Pair) -> Divergence:
    if not pair.far <= pair.limit:
        return outputs_part(pair) or _rounding(
            pair,
            f"Single steps of A and B agree given the same states. Over the whole sequence they are no further apart than "
            f"{pair.A} alone moves if its input and weights are moved by {TOLERANCE[pair.dtype]} eps.",
        )
    if found := gradients(pair):
        return found
    if pair.far > tolerance(max((pair.a.spec.dtype, pair.b.spec.dtype), key=_size)):
        return _rounding(pair, f"One of the two computes in {pair.dtype}, and they agree to that precision.")
    says = "Outputs and final states agree."
    if pair.own_parted.any():
        says += f" But single steps of {pair.B} from non-zero states part: pass an initial state to see it."
    return report(pair, kind="none", eps=pair.far / pair.eps, says=says)


def _rounding(pair: Pair, says: str) -> Divergence:
    """Measured against the side of the wider dtype, which has the smaller errors."""
    if _size(pair.b.spec.dtype) > _size(pair.a.spec.dtype):
        letters = pair.B, pair.A
        pair = Pair(pair.b, pair.a, pair.call, pair.dtype, pair.seed, letters, pair.cotangent)
    return report(pair, kind="rounding", eps=pair.far / pair.eps, says=says)
