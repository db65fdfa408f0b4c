"""`diagnose`: the right side is examined, then the one in question."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from multirnn.adoption import adopt, known_spec
from multirnn.diagnosis.examination import Examination
from multirnn.diagnosis.probes import given_probe
from multirnn.diagnosis.record import Diagnosis, Explanation
from multirnn.errors import InvalidCall, an
from multirnn.layer import State
from multirnn.numerics import coarser
from multirnn.spec import RecurrentSpec

__all__ = ["diagnose"]


@np.errstate(all="ignore")
def diagnose(
    a: Any,
    b: Any,
    *,
    spec: RecurrentSpec | None = None,
    x: ArrayLike | None = None,
    state: State | None = None,
    lengths: ArrayLike | None = None,
    seed: int = 0,
) -> Diagnosis:
    """Name the mistake that makes B differ from A.

    Args:
        a: the right side: a `Layer`, or a framework's own layer whose weights can be read.
        b: the side in question: a `Layer`, a framework's own layer, or a function `f(x, h0) -> (y, h)` on NumPy arrays.
        spec: what B is meant to be, where it does not say so itself; A's unless given.
        x: `(batch, time, input_size)`; a call of your own beside those that are drawn.
        state: the initial state of that call.
        lengths: `(batch,)` integers, of that call.
        seed: of the calls that are drawn.

    Raises:
        InvalidCall: A has no weights that can be read; or B cannot be called, or not with x, state and lengths.
    """
    right = adopt(a)
    if not right.readable:
        raise InvalidCall(
            f"A, {right.title}, has no weights that can be read; pass the side that is right as A, a Layer or a "
            "framework's own layer"
        )
    weights = right.weights()
    wrong = adopt(b, spec=None if known_spec(b) else spec or weights.spec)
    titles = right.title, wrong.title
    dtype = coarser(weights.spec.dtype, wrong.spec.dtype)
    if unlike := _unlike(weights.spec, wrong.spec):
        return Diagnosis(weights.spec, titles, False, causes=(unlike,), eps=float("inf"), dtype=dtype)
    given = [] if x is None else [given_probe(wrong.spec, x, state, lengths)]
    itself = Examination(right, weights, np.random.default_rng(seed))
    if not itself.explains(itself.layer, itself.probes[:1], itself.bound):
        return itself.diagnosis("A", titles)
    return Examination(wrong, weights, np.random.default_rng(seed), given).diagnosis("B", titles, right)


def _unlike(a: RecurrentSpec, b: RecurrentSpec) -> Explanation | None:
    """Two stacks that cannot be the same function, by what they take and hand out."""
    words = {
        "cell": "is {}, and A {}",
        "input_size": "takes {} features, and A {}",
        "hidden_size": "has {} units, and A {}",
        "num_layers": "has {} layers, and A {}",
        "bidirectional": "has bidirectional={}, and A {}",
    }
    found = [
        text.format(*(an(getattr(side, name)) if name == "cell" else getattr(side, name) for side in (b, a)))
        for name, text in words.items()
        if getattr(a, name) != getattr(b, name)
    ]
    if not found:
        return None
    wanted = ", ".join(f"{name}={getattr(a, name)!r}" for name in words if getattr(a, name) != getattr(b, name))
    return Explanation((), f"B {'; it '.join(found)}.", f"Fix: build B with {wanted}.")
