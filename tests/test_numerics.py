"""The distance between arrays, the table of tolerances, and drawn calls."""

import re

import numpy as np
import pytest
from changed_backends import EPS, GRU, LSTM

import multirnn as mr
from multirnn.diagnosis.calls import distance
from multirnn.numerics import TOLERANCE, draw_call, normwise

# --- Difference ------------------------------------------------------------------------------------------------------------


def test_the_measure_by_hand() -> None:
    expected = np.array([[1.0, -8.0, 2.0], [0.0, 4.0, 1.0]])
    actual = expected.copy()
    actual[0, 0] += 1  # a large part of a small element
    actual[1, 2] -= 2  # and the largest difference: 2 of 8
    found = mr.difference(actual, expected)
    assert (found.normwise, found.where, found.eps) == (0.25, (1, 2), 0.25 / EPS["float64"])


def test_eps_are_those_of_what_is_measured() -> None:
    expected = np.array([1.0, 2.0])
    found = mr.difference((expected * (1 + EPS["float32"])).astype("float32"), expected)
    assert found.eps == 1
    assert found.normwise == EPS["float32"]


def test_wide_arithmetic_for_narrow_arrays() -> None:
    """The difference to a float64 is not rounded away in float32."""
    assert mr.difference(np.ones(1, "float32"), np.ones(1) + EPS["float32"] / 4).normwise > 0


@pytest.mark.parametrize(
    ("actual", "expected", "normwise", "where"),
    [
        ([], [], 0, ()),
        ([[]], [[]], 0, ()),
        ([1.0, 2.0], [1.0, 2.0], 0, ()),
        ([0.0, 0.0], [0.0, -0.0], 0, ()),
        ([0.0, 1e-30], [0.0, 0.0], np.inf, (1,)),
        ([1.0, np.nan], [1.0, 2.0], np.inf, (1,)),
        ([1.0, np.inf], [1.0, 2.0], np.inf, (1,)),
        ([1.0, 2.0], [1.0, np.nan], np.inf, (1,)),
        ([1.0, 2.0], [1.0, np.inf], np.inf, (1,)),
        ([1.0, np.nan], [1.0, np.nan], 0, ()),
        ([1.0, np.inf, -np.inf], [1.0, np.inf, -np.inf], 0, ()),
        ([1.0, np.inf], [1.0, -np.inf], np.inf, (1,)),
        ([1.0, np.nan], [1.0, np.inf], np.inf, (1,)),
        ([1.0, np.inf], [1.0, np.nan], np.inf, (1,)),
        ([np.nan, 1.0], [1.0, np.nan], np.inf, (0,)),
        ([1.0, np.inf], [1.0, 1e39], 0, ()),  # which is infinite in float32
        ([1.0, np.inf], [1.0, -1e39], np.inf, (1,)),
        ([np.nan, np.inf], [np.nan, np.inf], 0, ()),
    ],
)
@pytest.mark.filterwarnings("error")
def test_what_is_empty_zero_or_not_finite(
    actual: list[float], expected: list[float], normwise: float, where: tuple[int, ...]
) -> None:
    found = mr.difference(np.array(actual, "float32"), np.array(expected))
    assert (found.normwise, found.where) == (normwise, where)
    assert (found.normwise <= mr.tolerance("float32")) == (normwise == 0)


@pytest.mark.parametrize("beside", [np.nan, np.inf, -np.inf, 1e300])
def test_the_scale_is_of_finite_numbers(beside: float) -> None:
    with np.errstate(over="ignore"):
        actual = np.array([4.5, beside], "float32")
    found = mr.difference(actual, np.array([4.0, beside]))
    assert (found.normwise, found.where) == (0.125, (0,))


@pytest.mark.parametrize(
    ("actual", "expected", "sentence"),
    [
        (np.ones((2, 3)), np.ones((3, 2)), "arrays of the shapes (2, 3) and (3, 2) cannot be compared"),
        (np.ones((1, 3)), np.ones(3), "arrays of the shapes (1, 3) and (3,) cannot be compared"),
        (np.ones(3), np.ones(3, "float32"), "an array of float64 cannot be held against one of float32"),
        (np.ones(3, int), np.ones(3), "an array of int64 cannot be held against one of float64"),
    ],
)
def test_what_cannot_be_compared(actual: np.ndarray, expected: np.ndarray, sentence: str) -> None:
    with pytest.raises(mr.InvalidCall, match=f"^{re.escape(sentence)}$"):
        mr.difference(actual, expected)


def test_the_table_of_tolerances() -> None:
    for dtype, units in TOLERANCE.items():
        assert mr.tolerance(dtype) == mr.tolerance(np.dtype(dtype)) == units * EPS[dtype]


def test_a_distance_relative_to_a_size() -> None:
    """Zero is zero even of nothing, and what is not zero is infinitely far from zero."""
    found = normwise(np.array([0, 0, 1, 2, np.inf, np.nan]), np.array([0, 3, 0, 4, 1, 1]))
    np.testing.assert_array_equal(found, [0, 0, np.inf, 0.5, np.inf, np.nan])
    equal = np.array([np.inf, -np.inf, np.nan, 1.0])
    assert mr.difference(equal, equal.copy()).normwise == distance(equal, equal.copy()) == 0


# --- Drawn calls ---------------------------------------------------------------------------------------------------------------


def test_a_drawn_call_can_show_a_mistake() -> None:
    x, state, lengths = draw_call(LSTM, 3)
    assert x.shape == (5, 7, 5)
    assert state.h.shape == (4, 5, 4)
    assert state.c is not None
    assert state.c.shape == (4, 5, 4)
    assert sorted(lengths) == [0, 1, 4, 7, 7]
    assert all(array.all() for array in (x, state.h, state.c))
    assert {str(array.dtype) for array in (x, state.h, state.c)} == {"float32"}
    assert draw_call(GRU, 3)[1].c is None
    again = draw_call(LSTM, np.random.default_rng(3))
    assert np.array_equal(again[0], x)
    assert not np.array_equal(draw_call(LSTM, 4)[0], x)
