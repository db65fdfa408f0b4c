"""Problems of sizes at which fast implementations take other paths: few steps of large weights, wide units, many rows.

The grid of `cases` has small layers, which find wrong conventions. Fast implementations pack weights, split rows or units
among threads, or multiply several steps at once only from some size on, and may be wrong only there. These problems lie on
both sides of such thresholds, for any number of threads:

    @pytest.mark.parametrize("check", [pytest.param(check, id=name) for name, check in large_cases()])
    def test_large_sizes(check):
        check(MY_BACKEND)
"""

from __future__ import annotations  # or naming np.random.Generator loads numpy.random

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from multirnn.cells import FORMS, Cell
from multirnn.comparison import compare
from multirnn.layer import Lengths, State
from multirnn.numerics import draw_state
from multirnn.protocol import Backend
from multirnn.spec import DType, RecurrentSpec
from multirnn.testing.suite import Check
from multirnn.weights import Array, Weights, initialise

__all__ = ["LargeProblem", "large_cases", "large_problems"]


class _Size(NamedTuple):
    batch: int
    time: int
    input_size: int
    hidden_size: int
    num_layers: int = 1
    bidirectional: bool = False
    ragged: bool = False
    dtype: DType = "float32"


SIZES = {
    "a few steps of many features": _Size(1, 6, 1201, 67),
    "a few steps of wide units": _Size(1, 8, 509, 521),
    "one step of wide units": _Size(1, 1, 401, 809),
    "one step of several rows": _Size(11, 1, 257, 397),
    "many steps of wide units": _Size(2, 29, 307, 503),
    "many steps of wide units in float64": _Size(3, 23, 211, 307, dtype="float64"),
    "many rows": _Size(37, 19, 97, 149, ragged=True),
    "two layers both ways": _Size(5, 41, 61, 131, num_layers=2, bidirectional=True, ragged=True),
    "many steps of few units": _Size(3, 307, 5, 19),
}


class LargeProblem(NamedTuple):
    """A stack and a call of it.

    Attributes:
        name: what is large, and the cell.
        weights: of the stack.
        x: `(batch, time, input_size)`.
        state: the initial state.
        lengths: `(batch,)`, or None: every row is full.
    """

    name: str
    weights: Weights
    x: Array
    state: State
    lengths: Lengths | None


def large_problems() -> Iterator[LargeProblem]:
    """Every size with every cell."""
    for name in SIZES:
        for form in FORMS.values():
            yield _problem(name, form)


def large_cases() -> list[tuple[str, Check]]:
    """A check for every problem, by name: the backend agrees with the reference, or refuses the spec.

    A check is a function of a backend that raises `AssertionError` with a sentence, as in `cases`.
    """
    return [(f"{size}: {form.form}", _check(size, form)) for size in SIZES for form in FORMS.values()]


def _check(name: str, form: Cell) -> Check:
    def check(backend: Backend) -> None:
        problem = _problem(name, form)
        if backend.refuses(problem.weights.spec) is not None:
            return
        row = compare(problem.weights, problem.x, problem.state, lengths=problem.lengths, backends=[backend]).rows[0]
        if row.verdict != "equal":
            raise AssertionError(row.reason)

    return check


def _problem(name: str, form: Cell) -> LargeProblem:
    size = SIZES[name]
    spec = RecurrentSpec(
        form.name,
        size.input_size,
        size.hidden_size,
        num_layers=size.num_layers,
        bidirectional=size.bidirectional,
        reset_after=form.reset_after,
        dtype=size.dtype,
    )
    rng = np.random.default_rng(6)
    x = rng.standard_normal((size.batch, size.time, size.input_size)).astype(size.dtype)
    lengths = None
    if size.ragged:
        lengths = rng.integers(0, size.time + 1, size.batch)
        lengths[0], lengths[-1] = size.time, 0
    return LargeProblem(f"{name}: {form.form}", initialise(spec, seed=6), x, draw_state(spec, size.batch, rng), lengths)
