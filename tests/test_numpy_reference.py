"""Why the NumPy backend may be the reference: worked by hand, by complex step, and by the documented formulas.

Everything else is held against it, so nothing else is used here: neither another backend nor a framework.
"""

import warnings

import numpy as np
import pytest
from multirnn_numpy import Stack, build

import multirnn as mr
from multirnn import cells
from multirnn.boundary import BoundaryLayer
from multirnn.numerics import difference, draw_call, tolerance
from multirnn.spec import BIASES

FORMS = [(form.name, form.reset_after) for form in cells.FORMS.values()]
HALF = mr.Activation("hard_sigmoid", alpha=0.5, beta=0.5)  # clip(v / 2 + 1/2, 0, 1)

every_form = pytest.mark.parametrize(("cell", "reset_after"), FORMS, ids=list(cells.FORMS))


def close(actual, expected, dtype="float64") -> bool:
    return difference(np.asarray(actual), np.asarray(expected)).normwise <= tolerance(dtype)


def stack_spec(cell: str, reset_after: bool, **fields) -> mr.RecurrentSpec:
    """Two layers, both directions, float64: small, since every number in it is moved on its own."""
    sizes = {"input_size": 2, "hidden_size": 3, "num_layers": 2, "bidirectional": True, "dtype": "float64"}
    return mr.RecurrentSpec(cell, reset_after=reset_after, **(sizes | fields))


def random_cotangent(output: mr.Output, seed: int = 5) -> mr.Output:
    rng = np.random.default_rng(seed)
    state = (rng.standard_normal(part.shape) for part in output.state if part is not None)
    return mr.Output(rng.standard_normal(output.sequence.shape), mr.State(*state))


# --- Worked by hand --------------------------------------------------------------------------------------------------
# Every number is a small sum of powers of two, so that results are exact and compared as such.


def layer_of(spec: mr.RecurrentSpec, **arrays) -> BoundaryLayer:
    named = {f"layers.0.forward.{name}": np.array(array, spec.dtype) for name, array in arrays.items()}
    return build(mr.Weights(spec, {name: array.reshape(spec.shapes[name]) for name, array in named.items()}))


def check_by_hand(layer, x, state, sequence, last, cotangent, gradients, dx, dstate) -> None:
    def array(value):
        return np.array(value, layer.spec.dtype)

    def states(value):
        return mr.State(*(array(part).reshape(1, -1) for part in value))

    output = layer(array(x), states(state))
    assert np.array_equal(output.sequence, array(sequence))
    assert all(np.array_equal(a, b) for a, b in zip(output.state, states(last), strict=True) if a is not None)
    found = layer.vjp(array(x), states(state), cotangent=mr.Output(array(cotangent[0]), states(cotangent[1])))
    for name, expected in gradients.items():
        full = f"layers.0.forward.{name}"
        assert np.array_equal(found.weights[full], array(expected).reshape(layer.spec.shapes[full])), name
    assert np.array_equal(found.x, array(dx))
    assert all(np.array_equal(a, b) for a, b in zip(found.state, states(dstate), strict=True) if a is not None)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_simple_rnn_by_hand(dtype: str) -> None:
    # W = [1 2; 0 -1], U = [1 -1; 2 0], b + d = (1, -3), h0 = (1, -1), x1 = (1, 1), x2 = (2, 0); relu.
    #   h1 = relu((3, -1) + (2, 2) + (1, -3)) = relu(6, -2) = (6, 0)
    #   h2 = relu((2, 0) + (6, 12) + (1, -3)) = relu(9, 9)  = (9, 9)
    # Cotangents (1, 3) and (0, 1) of the outputs and (1, 0) of the last state:
    #   dz2 = (1, 1);  dh1 = (1, 3) + Uᵀ (1, 1) = (1, 3) + (3, -1) = (4, 2);  dz1 = (4, 0), for relu'(-2) = 0
    #   dh0 = Uᵀ (4, 0) = (4, -4);  dx1 = Wᵀ (4, 0) = (4, 8);  dx2 = Wᵀ (1, 1) = (1, 1);  db = dd = (5, 1)
    #   dW = dz1 x1ᵀ + dz2 x2ᵀ = [4 4; 0 0] + [2 0; 2 0];  dU = dz1 h0ᵀ + dz2 h1ᵀ = [4 -4; 0 0] + [6 0; 6 0]
    spec = mr.RecurrentSpec("simple_rnn", 2, 2, bias="double", activation="relu", dtype=dtype)
    layer = layer_of(spec, weight_ih=[[1, 2], [0, -1]], weight_hh=[[1, -1], [2, 0]], bias_ih=[1, 0], bias_hh=[0, -3])
    check_by_hand(
        layer,
        x=[[1, 1], [2, 0]],
        state=[[1, -1]],
        sequence=[[6, 0], [9, 9]],
        last=[[9, 9]],
        cotangent=([[1, 3], [0, 1]], [[1, 0]]),
        gradients={
            "weight_ih": [[6, 4], [2, 0]],
            "weight_hh": [[10, -4], [6, 0]],
            "bias_ih": [5, 1],
            "bias_hh": [5, 1],
        },
        dx=[[4, 8], [1, 1]],
        dstate=[[4, -4]],
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_lstm_by_hand(dtype: str) -> None:
    # One unit; W = (1, -1/4, 3, -2), U = (-1, 1, -1, 1), b = (1/2, -5/4, 1, 0) of i f g o; h0 = c0 = 2, x = 1, -1.
    #   step 1   i = s(1 - 2 + 1/2) = s(-1/2) = 1/4      step 2   i = s(-1 - 1 + 1/2) = s(-3/2) = 0
    #            f = s(-1/4 + 2 - 5/4) = s(1/2) = 3/4             f = s(1/4 + 1 - 5/4) = s(0) = 1/2
    #            g = 3 - 2 + 1 = 2                                g = -3 - 1 + 1 = -3
    #            o = s(-2 + 2) = s(0) = 1/2                       o = s(2 + 1) = s(3) = 1
    #            c1 = 3/4 * 2 + 1/4 * 2 = 2, h1 = 1               c2 = 1/2 * 2 + 0 = 1, h2 = 1
    # Cotangents 1 and 2 of the outputs, 1 and 4 of the last h and c; s' = 1/2 inside of (0, 1) and 0 at its ends:
    #   step 2   dh = 3, dc = 4 + 3 * 1 = 7;  df = 7 * c1 * 1/2 = 7, di = dg = do = 0
    #   step 1   dh = 1 + U_f * 7 = 8, dc = 7 * 1/2 + 8 * 1/2 = 15/2
    #            di = 15/2 * 2 * 1/2 = 15/2, df = 15/2 * 2 * 1/2 = 15/2, dg = 15/2 * 1/4 = 15/8, do = 8 * 2 * 1/2 = 8
    #            dc0 = 15/2 * 3/4 = 45/8, dh0 = -15/2 + 15/2 - 15/8 + 8 = 49/8
    #   dW = dz1 - dz2, dU = 2 dz1 + dz2, db = dz1 + dz2
    #   dx1 = 15/2 - 15/8 + 45/8 - 16 = -19/4, dx2 = -1/4 * 7 = -7/4
    spec = mr.RecurrentSpec("lstm", 1, 1, activation="linear", recurrent_activation=HALF, dtype=dtype)
    layer = layer_of(spec, weight_ih=[1, -1 / 4, 3, -2], weight_hh=[-1, 1, -1, 1], bias_ih=[1 / 2, -5 / 4, 1, 0])
    check_by_hand(
        layer,
        x=[[1], [-1]],
        state=[[2], [2]],
        sequence=[[1], [1]],
        last=[[1], [1]],
        cotangent=([[1], [2]], [[1], [4]]),
        gradients={
            "weight_ih": [15 / 2, 1 / 2, 15 / 8, 8],
            "weight_hh": [15, 22, 15 / 4, 16],
            "bias_ih": [15 / 2, 29 / 2, 15 / 8, 8],
        },
        dx=[[-19 / 4], [-7 / 4]],
        dstate=[[49 / 8], [45 / 8]],
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gru_reset_after_by_hand(dtype: str) -> None:
    # One unit; W = (-1, 1/2, 2), U = (1, 1/2, 1), b = (1, -3, 2), d = (-2, 2, 2) of r z n; h0 = 2, x = 1, -1.
    #   step 1   r = s(-1 + 2 - 1) = s(0) = 1/2          step 2   r = s(1 + 3 - 1) = s(3) = 1
    #            z = s(1/2 + 1 - 1) = s(1/2) = 3/4                z = s(-1/2 + 3/2 - 1) = s(0) = 1/2
    #            m = 2 + 2 = 4, n = 2 + 2 + 1/2 * 4 = 6           m = 3 + 2 = 5, n = -2 + 2 + 5 = 5
    #            h1 = 1/4 * 6 + 3/4 * 2 = 3                       h2 = 1/2 * 5 + 1/2 * 3 = 4
    # Cotangents 1 and 1 of the outputs and 1 of the last state:
    #   step 2   dh = 2;  dn = 2 * 1/2 = 1, dm = 1, dr = 0, dz = 2 * (3 - 5) * 1/2 = -2
    #   step 1   dh = 1 + 2 * 1/2 + 1/2 * -2 + 1 = 2
    #            dn = 2 * 1/4 = 1/2, dm = 1/4, dr = 1/2 * 4 * 1/2 = 1, dz = 2 * (2 - 6) * 1/2 = -4
    #            dh0 = 2 * 3/4 + 1 + 1/2 * -4 + 1/4 = 3/4
    #   dW = dz1 - dz2 and db = dz1 + dz2 over (dr, dz, dn);  dU = 2 dz1 + 3 dz2 and dd = dz1 + dz2 over (dr, dz, dm)
    #   dx1 = -1 - 2 + 1 = -2, dx2 = -1 + 2 = 1
    spec = mr.RecurrentSpec("gru", 1, 1, bias="double", activation="linear", recurrent_activation=HALF, dtype=dtype)
    layer = layer_of(spec, weight_ih=[-1, 1 / 2, 2], weight_hh=[1, 1 / 2, 1], bias_ih=[1, -3, 2], bias_hh=[-2, 2, 2])
    check_by_hand(
        layer,
        x=[[1], [-1]],
        state=[[2]],
        sequence=[[3], [4]],
        last=[[4]],
        cotangent=([[1], [1]], [[1]]),
        gradients={
            "weight_ih": [1, -2, -1 / 2],
            "weight_hh": [2, -14, 7 / 2],
            "bias_ih": [1, -6, 3 / 2],
            "bias_hh": [1, -6, 5 / 4],
        },
        dx=[[-2], [1]],
        dstate=[[3 / 4]],
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gru_reset_before_by_hand(dtype: str) -> None:
    # As above, but U_n = 2, b_n = 1, d_n = 1, and the reset gate multiplies h instead of h U_n + d_n.
    #   step 1   r = 1/2, z = 3/4, n = 2 + 1 + 2 * (1/2 * 2) + 1 = 6, h1 = 3
    #   step 2   r = 1,   z = 1/2, n = -2 + 1 + 2 * (1 * 3) + 1 = 6,  h2 = 1/2 * 6 + 1/2 * 3 = 9/2
    # Cotangents as above:
    #   step 2   dh = 2;  dn = 1, d(rh) = 2, dr = 0, dz = 2 * (3 - 6) * 1/2 = -3
    #   step 1   dh = 1 + 2 * 1/2 + 2 * 1 + 1/2 * -3 = 5/2
    #            dn = 5/8, d(rh) = 5/4, dr = 5/4 * 2 * 1/2 = 5/4, dz = 5/2 * (2 - 6) * 1/2 = -5
    #            dh0 = 5/2 * 3/4 + 5/4 * 1/2 + 5/4 + 1/2 * -5 = 5/4
    #   dW = dz1 - dz2, db = dd = dz1 + dz2;  dU = 2 dz1 + 3 dz2 of r and z, and 1 dn1 + 3 dn2 of n
    #   dx1 = -5/4 - 5/2 + 5/4 = -5/2, dx2 = -3/2 + 2 = 1/2
    fields = {"bias": "double", "activation": "linear", "recurrent_activation": HALF, "dtype": dtype}
    spec = mr.RecurrentSpec("gru", 1, 1, reset_after=False, **fields)
    layer = layer_of(spec, weight_ih=[-1, 1 / 2, 2], weight_hh=[1, 1 / 2, 2], bias_ih=[1, -3, 1], bias_hh=[-2, 2, 1])
    check_by_hand(
        layer,
        x=[[1], [-1]],
        state=[[2]],
        sequence=[[3], [9 / 2]],
        last=[[9 / 2]],
        cotangent=([[1], [1]], [[1]]),
        gradients={
            "weight_ih": [5 / 4, -2, -3 / 8],
            "weight_hh": [5 / 2, -19, 29 / 8],
            "bias_ih": [5 / 4, -8, 13 / 8],
            "bias_hh": [5 / 4, -8, 13 / 8],
        },
        dx=[[-5 / 2], [1 / 2]],
        dstate=[[5 / 4]],
    )


# --- Gradients by complex step ---------------------------------------------------------------------------------------
# f(a + ih) = f(a) + ih f'(a) + O(h²): with h = 1e-100 the imaginary part is the derivative to the last digit, since
# nothing is subtracted (Squire & Trapp 1998).


class Call:
    """A ragged call of a stack, and sum(cotangent * output) as a function of every number that enters."""

    def __init__(self, spec: mr.RecurrentSpec, of_length: int | None = None) -> None:
        self.layer = mr.build(spec, "numpy", seed=2)
        x, state, lengths = draw_call(spec, seed=3)
        rows = np.flatnonzero((lengths == of_length) | (of_length is None))
        self.x, self.lengths = x[rows], lengths[rows]
        self.state = mr.State(*(part[:, rows] for part in state if part is not None))
        self.cotangent = random_cotangent(self.layer(self.x, self.state, lengths=self.lengths))
        self.gradients = self.layer.vjp(self.x, self.state, lengths=self.lengths, cotangent=self.cotangent)

    def entries(self, dtype: str) -> dict[str, np.ndarray]:
        parts = {f"state.{k}": part for k, part in enumerate(self.state) if part is not None}
        return {k: v.astype(dtype) for k, v in (dict(self.layer.weights().arrays) | {"x": self.x} | parts).items()}

    def analytic(self) -> dict[str, np.ndarray]:
        parts = {f"state.{k}": part for k, part in enumerate(self.gradients.state) if part is not None}
        return dict(self.gradients.weights) | {"x": self.gradients.x} | parts

    def value(self, entries: dict[str, np.ndarray]) -> complex:
        padded = np.arange(self.x.shape[1])[:, None, None] >= self.lengths[:, None]
        stack = Stack(self.layer.spec, {name: entries[name] for name in self.layer.spec.shapes})
        x = np.where(padded, 0, entries["x"].swapaxes(0, 1))
        state = [entries[name] for name in entries if name.startswith("state")]
        y, last, _ = stack.forward(x, state, padded)
        total = (y.swapaxes(0, 1) * self.cotangent.sequence).sum()
        return total + sum((a * b).sum() for a, b in zip(last, self.cotangent.state, strict=False))

    def by_complex_step(self) -> dict[str, np.ndarray]:
        entries, step = self.entries("complex128"), 1e-100
        return {name: self._each(entries, name, step * 1j, lambda value: value().imag / step) for name in entries}

    def by_central_difference(self) -> dict[str, np.ndarray]:
        # Of a step h the error is of the order h² + eps / h, the least at the cube root of eps.
        entries, step = self.entries("float64"), float(np.cbrt(np.finfo("float64").eps))
        found = {}
        for name in entries:
            above = self._each(entries, name, step, lambda value: value())
            below = self._each(entries, name, -step, lambda value: value())
            found[name] = (above - below) / (2 * step)
        return found

    def _each(self, entries, name, step, read) -> np.ndarray:
        """What is read off when each number of one array, one after another, is moved by a step."""
        array, found = entries[name], np.empty(entries[name].shape)
        for index in np.ndindex(array.shape):
            kept = array[index]
            array[index] = kept + step
            found[index] = read(lambda: self.value(entries))
            array[index] = kept
        return found


@pytest.mark.parametrize("bias", BIASES)
@every_form
def test_gradients_by_complex_step(cell: str, reset_after: bool, bias: str) -> None:
    call = Call(stack_spec(cell, reset_after, bias=bias))
    assert set(call.lengths) >= {0, 7}
    expected = call.by_complex_step()
    for name, gradient in call.analytic().items():
        assert close(gradient, expected[name]), name


@every_form
def test_gradients_of_a_batch_of_one_by_complex_step(cell: str, reset_after: bool) -> None:
    """A layer runs a batch of one without a batch axis; `Call.value` runs it with one."""
    call = Call(stack_spec(cell, reset_after, bias="double"), of_length=4)
    expected = call.by_complex_step()
    assert call.x.shape[0] == 1
    for name, gradient in call.analytic().items():
        assert close(gradient, expected[name]), name


PIECEWISE = ["relu", mr.Activation("elu", 0.7), mr.Activation("hard_sigmoid", 0.2, 0.5), "linear", "sigmoid"]


@pytest.mark.parametrize("activation", PIECEWISE, ids=str)
@every_form
def test_gradients_of_other_activations_by_complex_step(cell: str, reset_after: bool, activation) -> None:
    """Away from its kinks each of them is analytic, and NumPy orders complex numbers by their real parts."""
    gates = "sigmoid" if cell == "simple_rnn" else HALF
    fields = {"activation": activation, "recurrent_activation": gates, "num_layers": 1, "bias": "double"}
    call = Call(stack_spec(cell, reset_after, **fields))
    expected = call.by_complex_step()
    for name, gradient in call.analytic().items():
        assert close(gradient, expected[name]), name


@pytest.mark.parametrize("activation", ["softsign", *PIECEWISE[:3]], ids=str)
@every_form
def test_gradients_by_central_difference(cell: str, reset_after: bool, activation) -> None:
    gates = "sigmoid" if cell == "simple_rnn" else "softsign"
    fields = {"activation": activation, "recurrent_activation": gates, "num_layers": 1, "bias": "double"}
    call = Call(stack_spec(cell, reset_after, **fields))
    expected = call.by_central_difference()
    for name, gradient in call.analytic().items():
        # Two thirds of the digits of float64 are left: more than float32 has.
        assert close(gradient, expected[name], "float32"), name


@pytest.mark.parametrize(
    ("activation", "at", "value", "slope"),
    [
        ("relu", 0, 0, 0),
        (mr.Activation("elu", 0.5), 0, 0, 0.5),
        (mr.Activation("hard_sigmoid", 0.5, 0.5), -1, 0, 0),
        (mr.Activation("hard_sigmoid", 0.5, 0.5), 1, 1, 0),
        ("softsign", 0, 0, 1),
    ],
    ids=str,
)
def test_slopes_at_kinks(activation, at: float, value: float, slope: float) -> None:
    spec = mr.RecurrentSpec("simple_rnn", 1, 1, bias="none", activation=activation, dtype="float64")
    layer = layer_of(spec, weight_ih=1, weight_hh=0)
    assert layer([[at]]).sequence == value
    ones = mr.Output(np.ones((1, 1)), mr.State(np.zeros((1, 1))))
    assert layer.vjp([[at]], cotangent=ones).x == slope


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sigmoid_far_out(dtype: str) -> None:
    """Without a warning, and small gates with all their digits: exp(-x) where 1 does not count beside it."""
    spec = mr.RecurrentSpec("simple_rnn", 1, 1, bias="none", activation="sigmoid", dtype=dtype)
    layer = layer_of(spec, weight_ih=1, weight_hh=0)
    x = np.array([[-1000], [-40], [40], [1000]], dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sequence = layer(x).sequence
    assert sequence[0] == 0
    assert close(sequence[1], np.exp(np.array([-40.0])), dtype)
    assert np.array_equal(sequence[2:], np.ones((2, 1), dtype))
