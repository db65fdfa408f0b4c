"""What is adopted in tests, held against the reference."""

from typing import Any

import numpy as np

import multirnn as mr
from multirnn.adoption import Adopted
from multirnn.comparison import gradient_pairs, state_pairs, widened
from multirnn.numerics import draw_call, draw_state

SIZES = {"input_size": 5, "hidden_size": 11}
GRU = mr.RecurrentSpec("gru", **SIZES)
LSTM = mr.RecurrentSpec("lstm", **SIZES)
STACK = mr.RecurrentSpec("lstm", **SIZES, num_layers=2, bidirectional=True)


def reference(weights: mr.Weights) -> mr.Layer:
    return mr.build(weights.astype("float64"), "numpy")


def assert_equal(actual: Any, expected: Any, spec: mr.RecurrentSpec) -> None:
    found = mr.difference(np.asarray(actual), np.asarray(expected))
    assert actual.dtype == spec.dtype
    assert found.normwise <= mr.tolerance(spec.dtype), found


def assert_right(adopted: Adopted, weights: mr.Weights, *, weight_gradients: bool = True) -> None:
    """It gives the outputs, states and gradients of the reference, with lengths if it takes them, and unbatched."""
    spec = adopted.spec
    x, state, ragged = draw_call(spec, 3)
    rng = np.random.default_rng(4)
    right = reference(weights)
    for lengths in (None, ragged) if adopted.takes_lengths else (None,):
        cotangent = mr.Output(
            rng.standard_normal((*x.shape[:2], spec.output_size)).astype(spec.dtype), draw_state(spec, len(x), rng)
        )
        expected = right(x.astype("float64"), widened(state), lengths=lengths)
        output = adopted(x, state, lengths=lengths)
        assert_equal(output.sequence, expected.sequence, spec)
        for _, pair in state_pairs(output.state, expected.state):
            assert_equal(*pair, spec)
        if not adopted.differentiable:
            continue
        wide = mr.Output(cotangent.sequence.astype("float64"), widened(cotangent.state))
        expected = right.vjp(x.astype("float64"), widened(state), lengths=lengths, cotangent=wide)
        found = adopted.vjp(x, state, lengths=lengths, cotangent=cotangent)
        assert set(found.weights) == (set(expected.weights) if weight_gradients else set())
        for _, (actual, wanted) in gradient_pairs(found, expected):
            if actual is not None:
                assert_equal(actual, wanted, spec)
    row = adopted(x[1], mr.State._make(None if part is None else part[:, 1] for part in state))
    assert_equal(
        row.sequence,
        right(
            x[1].astype("float64"), mr.State._make(None if p is None else p[:, 1].astype("float64") for p in state)
        ).sequence,
        spec,
    )
