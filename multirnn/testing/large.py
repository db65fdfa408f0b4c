"""Problems of sizes at which fast implementations take other paths: few steps of large weights, wide units, many rows.

The small layers of `cases` find wrong conventions. Fast implementations pack weights, split rows or units among threads,
or multiply several steps at once only from some size on, and may be wrong only there. These problems lie on both sides
of such thresholds, for any number of threads:

    @pytest.mark.parametrize("check", [pytest.param(check, id=name) for name, check in large_cases()])
    def test_large_sizes(check):
        check(MY_BACKEND)
"""

from __future__ import annotations  # or naming np.random.Generator loads numpy.random

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from multirnn.cells import FORMS, Cell
from multirnn.comparison import compare
from multirnn.layer import Lengths, State
from multirnn.numerics import draw_state
from multirnn.protocol import Backend
from multirnn.spec import RecurrentSpec
from multirnn.testing.laws import hold
from multirnn.testing.suite import Check
from multirnn.weights import Array, Weights, initialise

__all__ = ["LargeProblem", "large_cases", "large_problems"]


# Batch, time, whether rows differ in length, and fields of the spec.
SIZES: dict[str, tuple[int, int, bool, dict[str, Any]]] = {
    "a few steps of many features": (1, 6, False, {"input_size": 1201, "hidden_size": 67}),
    "a few steps of wide units": (1, 8, False, {"input_size": 509, "hidden_size": 521}),
    "one step of wide units": (1, 1, False, {"input_size": 401, "hidden_size": 809}),
    "one step of several rows": (11, 1, False, {"input_size": 257, "hidden_size": 397}),
    "many steps of wide units": (2, 29, False, {"input_size": 307, "hidden_size": 503}),
    "many steps of wide units in float64": (3, 23, False, {"input_size": 211, "hidden_size": 307, "dtype": "float64"}),
    "many rows": (37, 19, True, {"input_size": 97, "hidden_size": 149}),
    "two layers both ways": (
        *(5, 41, True),
        {"input_size": 61, "hidden_size": 131, "num_layers": 2, "bidirectional": True},
    ),
    "many steps of few units": (3, 307, False, {"input_size": 5, "hidden_size": 19}),
}


class LargeProblem(NamedTuple):
    """A stack and a call of it."""

    name: str  # what is large, and the cell
    weights: Weights  # of the stack
    x: Array  # `(batch, time, input_size)`
    state: State  # the initial state
    lengths: Lengths | None  # `(batch,)`, or None: every row is full


def large_problems() -> Iterator[LargeProblem]:
    """Every size with every cell."""
    return (_problem(name, form) for name in SIZES for form in FORMS.values())


def large_cases() -> list[tuple[str, Check]]:
    """A check for every problem, by name: the backend agrees with the reference, or refuses the spec.

    A check is a function of a backend that raises `AssertionError` with a sentence, as in `cases`.
    """
    return [(f"{size}: {form.form}", partial(_agrees, size, form)) for size in SIZES for form in FORMS.values()]


def _agrees(name: str, form: Cell, backend: Backend) -> None:
    _, weights, x, state, lengths = _problem(name, form)
    if backend.refuses(weights.spec) is None:
        row = compare(weights, x, state, lengths=lengths, backends=[backend]).rows[0]
        hold(row.verdict == "equal", row.reason)


def _problem(name: str, form: Cell) -> LargeProblem:
    batch, time, ragged, fields = SIZES[name]
    spec = RecurrentSpec(form.name, reset_after=form.reset_after, **fields)
    rng = np.random.default_rng(6)
    x = rng.standard_normal((batch, time, spec.input_size)).astype(spec.dtype)
    lengths = None
    if ragged:
        lengths = rng.integers(0, time + 1, batch)
        lengths[0], lengths[-1] = time, 0
    return LargeProblem(f"{name}: {form.form}", initialise(spec, seed=6), x, draw_state(spec, batch, rng), lengths)
