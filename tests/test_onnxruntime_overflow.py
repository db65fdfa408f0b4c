"""NaN and infinity in ONNX Runtime: it loses them in many kernels, and its layers have them where the reference has."""

from typing import Any

import numpy as np
import pytest
from multirnn_onnxruntime import BACKEND
from multirnn_onnxruntime.overflow import LIMITS, Guard

import multirnn as mr
from multirnn import cells
from multirnn.numerics import difference, draw_call, tolerance
from multirnn.weights import Array

BOTH = {"num_layers": 2, "bidirectional": True}
FORMS = [(form.name, form.reset_after) for form in cells.FORMS.values()]
HARD = mr.Activation("hard_sigmoid", 0.2, 0.5)


def parts(output: mr.Output) -> list[Array]:
    return [output.sequence, *output.state.parts]


def assert_same(layer: mr.Layer, x: Array, state: mr.State | None = None, lengths: Any = None) -> int:
    """Equal NaN and equal infinities at equal places, and equal numbers; how many are NaN."""
    with np.errstate(all="raise"):
        found = parts(layer(x, state, lengths=lengths))
    with np.errstate(all="ignore"):
        wanted = parts(mr.build(layer.weights(), "numpy")(x, state, lengths=lengths))
    for actual, array in zip(found, wanted, strict=True):
        assert np.array_equal(np.isnan(actual), np.isnan(array))
        ordinary = np.isfinite(array)
        assert np.array_equal(actual[~ordinary], array[~ordinary], equal_nan=True)
        if ordinary.any():
            assert difference(actual[ordinary], array[ordinary]).normwise <= tolerance("float32")
    return sum(int(np.isnan(array).sum()) for array in wanted)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("cell", ["simple_rnn", "lstm", "gru"])
@pytest.mark.parametrize("stack", [{}, {"num_layers": 2}, {"bidirectional": True}, BOTH])
def test_nan_in_a_call(cell: str, activation: str, stack: dict[str, Any]) -> None:
    layer = mr.build(mr.RecurrentSpec(cell, 5, 11, activation=activation, **stack), BACKEND, seed=2)
    x, state, _ = draw_call(layer.spec, 1)
    for lengths in (None, [5, 7, 3, 0, 1]):
        for place in ("x", "h"):
            given, start = x.copy(), mr.State(*(part.copy() for part in state.parts))
            if place == "x":
                given[1, 2, 0] = given[0, 4, 1] = np.nan
            else:
                start.h[-1, 0, 1] = start.h[0, 2, 3] = start.h[0, 3, 0] = np.nan
            for first in (start, None):
                assert_same(layer, given, first, lengths)


def test_relu_of_infinity_minus_infinity() -> None:
    """ONNX Runtime alone has no NaN here."""
    layer = mr.build(mr.RecurrentSpec("simple_rnn", 5, 3, activation="relu"), BACKEND)
    x = draw_call(layer.spec)[0]
    x[0, 2, :2] = np.inf
    assert assert_same(layer, x)
    lengths = np.full(5, 7, "int32")
    given = {"x": x.swapaxes(0, 1), "lengths": lengths, "h_0": np.zeros((1, 5, 3), "float32")}
    assert not np.isnan(layer.native.session.run(None, given)[0]).any()


@pytest.mark.parametrize("time", [1, 6])
@pytest.mark.parametrize("stack", [{}, BOTH, {"num_layers": 3}])
@pytest.mark.parametrize(("cell", "reset_after"), FORMS)
def test_infinity_in_a_call_and_numbers_that_overflow(
    cell: str, reset_after: bool, stack: dict[str, Any], time: int
) -> None:
    """A sum of two infinities, one infinity, an infinite state; and finite numbers that become infinite inside."""
    gates = ["sigmoid"] if cell == "simple_rnn" else ["sigmoid", HARD, "tanh"]
    rng = np.random.default_rng(0)
    lost = 0
    for activation in ("elu", HARD, "linear", "relu", "softsign", "tanh"):
        for gate in gates:
            spec = mr.RecurrentSpec(
                cell, 5, 3, reset_after=reset_after, activation=activation, recurrent_activation=gate, **stack
            )
            weights = mr.initialise(spec, 0)
            layer = BACKEND.build(weights)
            x = rng.standard_normal((4, time, 5)).astype("float32")
            x[0, time // 2, :2], x[1, -1, 1], x[2] = np.inf, -np.inf, 3e37 * x[2]
            state = mr.State(
                *(np.ones((spec.num_layers * len(spec.directions), 4, 3), "float32") for _ in spec.form.states)
            )
            state.parts[-1][0, 3] = np.inf, -np.inf, np.inf
            for lengths in (None, [time, max(1, time - 1), 0, time]):
                lost += assert_same(layer, x, None, lengths) + assert_same(layer, x, state, lengths)
            if cell == "simple_rnn":  # gates would turn one rounding of theirs into numbers as large as these
                huge = mr.Weights(spec, {name: array * np.float32(1e20) for name, array in weights.arrays.items()})
                lost += assert_same(BACKEND.build(huge), x[3:])
    assert lost


def test_rows_beside_keep_their_numbers() -> None:
    """Those of ONNX Runtime, to the bit."""
    for activation in ("tanh", "relu"):
        layer = mr.build(mr.RecurrentSpec("gru", 5, 11, activation=activation, **BOTH), BACKEND)
        x, state, lengths = draw_call(layer.spec)
        alone = parts(layer(x, state, lengths=lengths))
        row = int(lengths.argmax())
        x[row, 0, 0] = np.nan
        found = parts(layer(x, state, lengths=lengths))
        assert np.isnan(found[0][row]).any()
        assert np.array_equal(np.delete(found[0], row, 0), np.delete(alone[0], row, 0))
        assert np.array_equal(np.delete(found[1], row, 1), np.delete(alone[1], row, 1))


def test_large_numbers_that_overflow_nothing() -> None:
    """Outputs of relu may grow as long as they stay finite: ONNX Runtime computes them."""
    layer = mr.build(mr.RecurrentSpec("simple_rnn", 5, 3, activation="relu", num_layers=2), BACKEND, seed=1)
    x = np.float32(1e20) * draw_call(layer.spec)[0]
    assert assert_same(layer, x) == 0
    steps = np.full(5, 7, "int32")
    given = {"x": x.swapaxes(0, 1), "lengths": steps, "h_0": np.zeros((2, 5, 3), "float32")}
    assert np.array_equal(layer(x).sequence.swapaxes(0, 1), layer.native.session.run(None, given)[0])


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(number: float) -> None:
    weights = mr.initialise(mr.RecurrentSpec("gru", 5, 11))
    arrays = {name: array.copy() for name, array in weights.arrays.items()}
    arrays["layers.0.forward.bias_hh"][2, 3] = number
    with pytest.raises(mr.InvalidWeights, match=r"layers.0.forward.bias_hh holds NaN or infinity.*must be finite"):
        BACKEND.build(mr.Weights(weights.spec, arrays))


@pytest.mark.parametrize("size", [1, 256, 20_011])
def test_what_passes_the_guard(size: int) -> None:
    guard = Guard(mr.initialise(mr.RecurrentSpec("gru", 5, 11)))
    array = np.random.default_rng(0).standard_normal((1, 2, size)).astype("float32")
    layouts = array, array.swapaxes(0, 1), np.asfortranarray(array), array[:, ::2, ::3]
    assert guard.passes(*layouts)
    with np.errstate(all="raise"):
        for number, passes in ((1e-45, True), (0.9 * LIMITS[0], True), (3e38, False), (np.inf, False), (np.nan, False)):
            for sign in (1, -1):
                array[0, 1, size // 3] = sign * number
                assert guard.passes(array) == passes


def test_weights_so_large_that_nothing_passes() -> None:
    weights = mr.initialise(mr.RecurrentSpec("gru", 5, 11))
    huge = mr.Weights(weights.spec, {name: array * np.float32(1e32) for name, array in weights.arrays.items()})
    assert not Guard(huge).passes(np.zeros((1, 2, 5), "float32"))
    assert Guard(weights).passes(np.zeros((1, 2, 5), "float32"))
