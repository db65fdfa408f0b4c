"""`first_divergence`: where B parts from A. It names no cause; `diagnose` does.

Both are stepped from the states of A, so that no error is carried to later steps and layers. The first divergence is in the
lowest layer that makes other states from the same input and states; there in the direction that had run fewer steps, forward
before backward; and at the first such step in running order. Steps are counted in original time: backward runs from the
last step to 0.

If single steps agree and calls do not, the first step is the last one of the shortest beginning of the call that parts.
If only outputs or only final states differ, it is the first output that does, or the end of the row. Gradients run back:
the highest layer and the last step come first.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from multirnn.adoption import Adopted, adopt, known_spec
from multirnn.diagnosis.calls import Probe, given_call, unlike
from multirnn.diagnosis.divergence import Divergence
from multirnn.diagnosis.pair import Pair
from multirnn.diagnosis.parting import gradients_part, outputs_part
from multirnn.diagnosis.stepping import Side
from multirnn.errors import InvalidCall
from multirnn.layer import Output, State
from multirnn.numerics import TOLERANCE, coarser, draw_call, tolerance
from multirnn.spec import DType

__all__ = ["first_divergence", "located"]


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
        b: as A, or an object known by its calls alone.
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
    right = adopt(a, spec=None if known_spec(a) else spec)
    suspect = adopt(b, spec=None if known_spec(b) else spec)
    for name in unlike(right.spec, suspect.spec):
        raise InvalidCall(
            f"two layers need the same input and states to be compared; A has {name}={getattr(right.spec, name)!r} and B "
            f"{getattr(suspect.spec, name)!r}"
        )
    dtype = coarser(right.spec.dtype, suspect.spec.dtype)
    if x is None:
        if state is not None or lengths is not None:
            raise InvalidCall("a state or lengths belong to an x: pass x too")
        call = _drawn(right, suspect, dtype, seed, cotangent)
    else:
        call = given_call(x, state, lengths, dtype, cotangent)
    return located(right, suspect, call, seed)


def _drawn(a: Adopted, b: Adopted, dtype: DType, seed: int, cotangent: Output | None) -> Probe:
    x, state, lengths = draw_call(replace(a.spec, dtype=dtype), seed)
    taken = state if a.takes_state and b.takes_state else None
    call = given_call(x, taken, lengths if a.takes_lengths and b.takes_lengths else None, dtype, cotangent)
    try:
        Side(b)(replace(call, cotangent=None))
    except InvalidCall:  # with batch and time swapped, the initial state fits a square batch only
        return replace(call, x=call.x[:, : len(x)], lengths=None)
    return call


def located(right: Adopted, suspect: Adopted, call: Probe, seed: int = 0) -> Divergence:
    """The first divergence of two layers of one shape in a call; see `first_divergence`."""
    pair = Pair(Side(right), Side(suspect), call, seed)
    try:
        pair.outputs  # noqa: B018
    except InvalidCall as error:
        pair.a(pair.call)  # raises if the call is wrong; if B alone refuses it, that is the finding
        return pair.report(probe="call", measured="", says=f"A runs, and B does not: {error}.")
    if suspect.readable and not pair.faithful and (swapped := pair.swapped()).faithful:
        pair = swapped
    if not pair.far <= pair.limit:
        return outputs_part(pair) or _rounding(
            pair,
            f"Single steps of A and B agree given the same states. Over the whole sequence they are no further apart than "
            f"{pair.A} alone moves if its input and weights are moved by {TOLERANCE[pair.dtype]} eps.",
        )
    if found := gradients_part(pair):
        return found
    if pair.far > min(tolerance(side.spec.dtype) for side in (pair.a, pair.b)):
        return _rounding(pair, f"One of the two computes in {pair.dtype}, and they agree to that precision.")
    says = "Outputs and final states agree."
    if pair.own_parted.any():
        says += f" But single steps of {pair.B} from non-zero states part: pass an initial state to see it."
    return pair.report(kind="none", eps=pair.far / pair.eps, says=says)


def _rounding(pair: Pair, says: str) -> Divergence:
    """Measured against the side of the wider dtype, which has the smaller errors."""
    if pair.b.spec.dtype == "float64" != pair.a.spec.dtype:
        pair = pair.swapped()
    return pair.report(kind="rounding", eps=pair.far / pair.eps, says=says)
