"""The NumPy backend against the documented formulas, row by row and step by step."""

from dataclasses import replace

import numpy as np
import pytest

import multirnn as mr
from multirnn import cells
from multirnn.numerics import difference, draw_call, tolerance

FORMS = [(form.name, form.reset_after) for form in cells.FORMS.values()]

every_form = pytest.mark.parametrize(("cell", "reset_after"), FORMS, ids=list(cells.FORMS))


def close(actual, expected, dtype="float64") -> bool:
    return difference(np.asarray(actual), np.asarray(expected)).normwise <= tolerance(dtype)


def random_cotangent(output: mr.Output, seed: int = 5) -> mr.Output:
    rng = np.random.default_rng(seed)
    state = (rng.standard_normal(part.shape) for part in output.state if part is not None)
    return mr.Output(rng.standard_normal(output.sequence.shape), mr.State(*state))


# --- The documented formulas -----------------------------------------------------------------------------------------
# Row by row and step by step, as https://docs.pytorch.org/docs/stable/generated/torch.nn.{RNN,LSTM,GRU}.html has them,
# in float64 with PyTorch's own shapes: (gates * hidden_size, features), gates i f g o and r z n. The GRU that resets
# before is the one of https://keras.io/api/layers/recurrent_layers/gru/ with reset_after=False.


def sigmoid(v):
    return np.where(v < 0, np.exp(np.minimum(v, 0)) / (1 + np.exp(-np.abs(v))), 1 / (1 + np.exp(-np.abs(v))))


def rnn_cell(x, h, w_ih, w_hh, b_ih, b_hh):
    return (np.tanh(x @ w_ih.T + b_ih + h @ w_hh.T + b_hh),)


def lstm_cell(x, h, c, w_ih, w_hh, b_ih, b_hh):
    (w_ii, w_if, w_ig, w_io), (w_hi, w_hf, w_hg, w_ho) = np.split(w_ih, 4), np.split(w_hh, 4)
    (b_ii, b_if, b_ig, b_io), (b_hi, b_hf, b_hg, b_ho) = np.split(b_ih, 4), np.split(b_hh, 4)
    i = sigmoid(w_ii @ x + b_ii + w_hi @ h + b_hi)
    f = sigmoid(w_if @ x + b_if + w_hf @ h + b_hf)
    g = np.tanh(w_ig @ x + b_ig + w_hg @ h + b_hg)
    o = sigmoid(w_io @ x + b_io + w_ho @ h + b_ho)
    c = f * c + i * g
    return o * np.tanh(c), c


def gru_cell(x, h, w_ih, w_hh, b_ih, b_hh):
    (w_ir, w_iz, w_in), (w_hr, w_hz, w_hn) = np.split(w_ih, 3), np.split(w_hh, 3)
    (b_ir, b_iz, b_in), (b_hr, b_hz, b_hn) = np.split(b_ih, 3), np.split(b_hh, 3)
    r = sigmoid(w_ir @ x + b_ir + w_hr @ h + b_hr)
    z = sigmoid(w_iz @ x + b_iz + w_hz @ h + b_hz)
    n = np.tanh(w_in @ x + b_in + r * (w_hn @ h + b_hn))
    return ((1 - z) * n + z * h,)


def gru_cell_resetting_before(x, h, w_ih, w_hh, b_ih, b_hh):
    (w_ir, w_iz, w_in), (w_hr, w_hz, w_hn) = np.split(w_ih, 3), np.split(w_hh, 3)
    (b_ir, b_iz, b_in), (b_hr, b_hz, b_hn) = np.split(b_ih, 3), np.split(b_hh, 3)
    r = sigmoid(w_ir @ x + b_ir + w_hr @ h + b_hr)
    z = sigmoid(w_iz @ x + b_iz + w_hz @ h + b_hz)
    n = np.tanh(w_in @ x + b_in + w_hn @ (r * h) + b_hn)
    return (z * h + (1 - z) * n,)


FORMULAS = dict(zip(FORMS, [rnn_cell, lstm_cell, gru_cell, gru_cell_resetting_before], strict=True))


def by_formula(weights: mr.Weights, x, state: mr.State, lengths) -> mr.Output:
    """The output of a stack with double biases: one row at a time, only its valid steps, the backward one reversed."""
    spec = weights.spec
    cell = FORMULAS[spec.cell, spec.reset_after]
    sequence = np.zeros((*x.shape[:2], spec.output_size))
    last = [np.array(part) for part in state if part is not None]
    for row, length in enumerate(lengths):
        inputs = list(x[row, :length])
        for layer in range(spec.num_layers):
            outputs = []
            for d, direction in enumerate(spec.directions):
                k = layer * len(spec.directions) + d
                arrays = [weights.at(layer, direction)[n] for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
                stacked = [array.reshape(-1, *array.shape[2:]) for array in arrays]
                carried, steps = [part[k, row] for part in last], []
                for step in inputs if direction == "forward" else reversed(inputs):
                    carried = cell(step, *carried, *stacked)
                    steps.append(carried[0])
                outputs.append(steps if direction == "forward" else steps[::-1])
                for part, value in zip(last, carried, strict=True):
                    part[k, row] = value
            inputs = [np.concatenate(parts) for parts in zip(*outputs, strict=True)]
        sequence[row, :length] = inputs if length else 0
    return mr.Output(sequence, mr.State(*last))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "bidirectional"])
@every_form
def test_outputs_by_formula(cell: str, reset_after: bool, bidirectional: bool, dtype: str) -> None:
    fields = {"num_layers": 3, "bidirectional": bidirectional, "bias": "double", "reset_after": reset_after}
    spec = mr.RecurrentSpec(cell, 5, 11, dtype=dtype, **fields)
    x, state, lengths = draw_call(spec, seed=8)
    layer = mr.build(spec, "numpy", seed=9)
    output = layer(x, state, lengths=lengths)
    expected = by_formula(layer.weights().astype("float64"), x, state, lengths)
    assert close(output.sequence, expected.sequence, dtype)
    for part, name in zip(output.state, ("h", "c"), strict=True):
        if part is not None:
            assert close(part, getattr(expected.state, name), dtype), name


@every_form
def test_a_step_too_large_for_one_thread(cell: str, reset_after: bool) -> None:
    """The projection of large steps is done in one product for all steps; small ones, row by row here, step by step."""
    spec = mr.RecurrentSpec(cell, 89, 97, reset_after=reset_after, bidirectional=True, dtype="float64")
    layer = mr.build(spec, "numpy", seed=4)
    rng = np.random.default_rng(6)
    x = rng.standard_normal((31, 3, 89))
    cotangent = random_cotangent(layer(x))
    together = layer.vjp(x, cotangent=cotangent)
    alone = [
        layer.vjp(
            x[row : row + 1],
            cotangent=mr.Output(
                cotangent.sequence[row : row + 1],
                mr.State(*(part[:, row : row + 1] for part in cotangent.state if part is not None)),
            ),
        )
        for row in range(len(x))
    ]
    assert close(layer(x).sequence, np.concatenate([layer(row[None]).sequence for row in x]))
    assert close(together.x, np.concatenate([gradients.x for gradients in alone]))
    for name, gradient in together.weights.items():
        assert close(gradient, sum(gradients.weights[name] for gradients in alone)), name


def test_a_narrow_layer_is_a_rounded_wide_one() -> None:
    """float32 is computed in float32 all the way, and comes back as float32."""
    spec = mr.RecurrentSpec("lstm", 5, 11, num_layers=2, bidirectional=True)
    x, state, lengths = draw_call(spec, seed=1)
    layer = mr.build(spec, "numpy", seed=1)
    output = layer(x, state, lengths=lengths)
    gradients = layer.vjp(x, state, lengths=lengths, cotangent=mr.Output(output.sequence, output.state))
    arrays = [output.sequence, *output.state, *gradients.weights.values(), gradients.x, *gradients.state]
    assert {array.dtype for array in arrays} == {np.dtype("float32")}
    assert layer.weights().astype("float64").spec == replace(spec, dtype="float64")
