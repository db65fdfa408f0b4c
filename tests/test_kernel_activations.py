"""The activations of the compiled recurrence: each in each cell, and each alone to a few ulp."""

from dataclasses import replace

import numpy as np
import pytest
from kernel_calls import CELLS, SETS, Call, gradients_close, needs_kernel, outputs_close

from multirnn import Activation, RecurrentSpec

pytestmark = needs_kernel

ACTIVATIONS = [
    Activation("elu", alpha=0.7),
    Activation("hard_sigmoid", alpha=0.2, beta=0.4),
    "linear",
    "relu",
    "sigmoid",
    "softsign",
    "tanh",
]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize(("cell", "reset_after"), CELLS)
@pytest.mark.parametrize("instructions", SETS)
def test_every_activation(instructions, cell, reset_after, activation):
    spec = RecurrentSpec(cell, 5, 11, reset_after=reset_after, activation=activation)
    if cell != "simple_rnn":
        spec = replace(spec, recurrent_activation=activation)
    call = Call(spec, 3, 5, instructions=instructions)
    outputs_close(call)
    gradients_close(call)


def applied(activation, x, instructions):
    """An activation of every number in x, as a simple RNN of one unit that remembers nothing has it."""
    spec = RecurrentSpec("simple_rnn", 1, 1, bias="none", activation=activation, dtype=str(x.dtype))
    call = Call(spec, 1, len(x), instructions=instructions)
    call.arrays = {"layers.0.forward.weight_ih": np.ones((1, 1, 1), x.dtype)} | {
        "layers.0.forward.weight_hh": np.zeros((1, 1, 1), x.dtype)
    }
    call.x = x.reshape(1, -1, 1)
    return call.forward().sequence.ravel()


EXACT = {
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
}


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("instructions", SETS)
def test_activations_are_exact_to_a_few_ulp(instructions, dtype, name):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(-30, 30, 4000), rng.uniform(-1, 1, 4000), rng.standard_normal(4000) * 1e-4])
    x = x.astype(dtype)
    expected = EXACT[name](x.astype(np.longdouble))
    ulps = np.abs(applied(name, x, instructions) - expected) / np.spacing(np.abs(expected).astype(dtype))
    assert ulps.max() <= 4


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("instructions", SETS)
def test_activations_saturate_and_keep_nan(instructions, dtype):
    x = np.array([-np.inf, -1e30, -1000, 0, 1000, 1e30, np.inf, np.nan], dtype)
    np.testing.assert_array_equal(applied("tanh", x, instructions), [-1, -1, -1, 0, 1, 1, 1, np.nan])
    np.testing.assert_array_equal(applied("sigmoid", x, instructions), [0, 0, 0, 0.5, 1, 1, 1, np.nan])
    np.testing.assert_array_equal(applied("relu", x, instructions), np.maximum(x, 0))
    np.testing.assert_array_equal(applied("elu", x, instructions), [-1, -1, -1, 0, 1000, x[5], np.inf, np.nan])


@pytest.mark.parametrize("name", ["elu", "linear", "relu", "softsign", "tanh"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("instructions", SETS)
def test_zero_keeps_its_sign_where_the_function_is_odd(instructions, dtype, name):
    """A sum that begins at +0 is never -0, so the input -0 arrives as +0; its neighbours keep their sign."""
    tiny = np.finfo(dtype).smallest_subnormal
    found = applied(Activation(name, alpha=1.0) if name == "elu" else name, np.array([0, tiny], dtype), instructions)
    assert not np.signbit(found).any()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("instructions", SETS)
def test_sigmoid_falls_to_zero_without_a_step_up(instructions, dtype):
    x = np.linspace(-800, -30, 20_001).astype(dtype)
    found = applied("sigmoid", x, instructions)
    assert (np.diff(found) >= 0).all()
    np.testing.assert_array_equal(found[x < np.log(np.finfo(dtype).tiny) - 1], 0)


@pytest.mark.parametrize("strange", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("hidden", [4, 16, 19])
@pytest.mark.parametrize(("cell", "reset_after"), CELLS)
@pytest.mark.parametrize("instructions", SETS)
def test_gradients_are_not_finite_where_those_of_the_reference_are_not(
    instructions, cell, reset_after, hidden, strange
):
    """Units that fill the last vector are multiplied by zero, which does not stop a NaN."""
    call = Call(RecurrentSpec(cell, 5, hidden, reset_after=reset_after), 3, 6, instructions=instructions)
    call.x[1, 2, 1] = strange
    found, expected = call.backward(), call.expected_gradients()
    for array, right in zip(
        (found.x, *found.state.parts, *found.weights.values()),
        (expected.x, *expected.state.parts, *expected.weights.values()),
        strict=True,
    ):
        np.testing.assert_array_equal(np.isfinite(array), np.isfinite(right))


@pytest.mark.parametrize(("cell", "reset_after"), CELLS)
def test_nan_of_a_valid_input_comes_out(cell, reset_after):
    call = Call(RecurrentSpec(cell, 5, 11, reset_after=reset_after), 3, 7)
    call.x[1, 3, 2] = np.nan
    output = call.forward().sequence
    assert np.isnan(output[1, 3:]).all()
    assert np.isfinite(output[1, :3]).all()
    assert np.isfinite(output[[0, 2]]).all()
