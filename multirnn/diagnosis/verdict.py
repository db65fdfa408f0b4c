"""`diagnose`: examines A against its own weights, then B against A."""

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
        b: the suspect: a `Layer`, a framework's own layer, or a function `f(x, h0) -> (y, h)` on NumPy arrays.
        spec: the spec of B, if it cannot be read from B; A's unless given.
        x: `(batch, time, input_size)`; a call of your own, beside the drawn ones.
        state: the initial state of that call.
        lengths: `(batch,)` integers of that call.
        seed: seeds the drawn calls.

    Raises:
        InvalidCall: A has no readable weights, or B does not take the calls.
    """
    right = adopt(a)
    if not right.readable:
        raise InvalidCall(
            f"A, {right.title}, has no readable weights; pass the right side as A, a Layer or a framework's own layer"
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
    """Two stacks whose sizes, cell or directions differ."""
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
