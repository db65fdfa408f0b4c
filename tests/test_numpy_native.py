"""What NumPy users do with `layer.native`: read it, train it in place, copy it, call it; and what a layer leaves alone."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from multirnn_numpy import BACKEND, NumpyLayer, Stack
from multirnn_numpy import build as build_numpy

import multirnn as mr
from multirnn.numerics import difference, draw_call, tolerance

STACK = {"input_size": 5, "hidden_size": 11, "num_layers": 2, "bidirectional": True}
FORMS = [
    mr.RecurrentSpec("simple_rnn", bias="double", **STACK),
    mr.RecurrentSpec("simple_rnn", 5, 11, bias="none", dtype="float64"),
    mr.RecurrentSpec("lstm", bias="single", dtype="float64", **STACK),
    mr.RecurrentSpec("gru", bias="single", **STACK),
    mr.RecurrentSpec("gru", 5, 11, bias="double", dtype="float64"),
    mr.RecurrentSpec("gru", bias="double", reset_after=False, **STACK),
]
every_form = pytest.mark.parametrize(
    "spec", FORMS, ids=lambda spec: f"{spec.cell}-{spec.bias}-{'after' if spec.reset_after else 'before'}"
)


def build(spec: mr.RecurrentSpec) -> NumpyLayer:
    return build_numpy(mr.Weights(spec, mr.build(spec, "numpy", seed=3).weights().arrays))


def arrays_of(output: mr.Output) -> list[np.ndarray]:
    return [output.sequence, *(part for part in output.state if part is not None)]


def equal(a: mr.Output, b: mr.Output) -> bool:
    return all(np.array_equal(left, right) for left, right in zip(arrays_of(a), arrays_of(b), strict=True))


def close(a: mr.Output, b: mr.Output) -> bool:
    """Equal but for rounding: of weights in another order of memory BLAS adds up in another order."""
    pairs = zip(arrays_of(a), arrays_of(b), strict=True)
    return all(difference(left, right).normwise <= tolerance(left.dtype) for left, right in pairs)


@every_form
def test_the_native_object_has_the_parameters(spec: mr.RecurrentSpec) -> None:
    layer = build(spec)
    stack = layer.native
    assert isinstance(stack, Stack)
    assert stack.spec == spec
    assert {name: array.shape for name, array in stack.parameters.items()} == dict(spec.shapes)
    assert all(array.flags.writeable for array in stack.parameters.values())
    assert layer.parameter_count == spec.parameter_count
    assert repr(spec) in repr(stack)


@every_form
def test_weights_are_copied_in_and_out(spec: mr.RecurrentSpec) -> None:
    weights = build(spec).weights()
    layer = build_numpy(weights)
    before = layer.weights()
    for array in layer.native.parameters.values():
        array += 1
    assert before == weights
    assert all(np.array_equal(array, weights.arrays[name] + 1) for name, array in layer.weights().arrays.items())


@every_form
def test_training_in_place(spec: mr.RecurrentSpec) -> None:
    """A gradient has the name and shape of its parameter, and a step down it is a step down the loss."""
    layer = build(spec)
    x, state, lengths = draw_call(spec, seed=1)
    losses = []
    for _ in range(3):
        output = layer(x, state, lengths=lengths)
        losses.append(sum(float((array**2).sum()) for array in arrays_of(output)) / 2)
        gradients = layer.vjp(x, state, lengths=lengths, cotangent=output)
        for name, parameter in layer.native.parameters.items():
            parameter -= 0.01 * gradients.weights[name]
    assert losses[0] > losses[1] > losses[2]
    assert equal(layer(x, state), build_numpy(layer.weights())(x, state))


@every_form
def test_a_parameter_may_be_replaced(spec: mr.RecurrentSpec) -> None:
    """By an array in any order of memory."""
    layer, other = build(spec), mr.build(spec, "numpy", seed=4)
    x, state, lengths = draw_call(spec, seed=1)
    for name, array in other.weights().arrays.items():
        layer.native.parameters[name] = np.asfortranarray(array) if "forward" in name else array.copy()
    assert close(layer(x, state, lengths=lengths), other(x, state, lengths=lengths))
    assert layer.weights() == other.weights()


def test_a_replaced_parameter_has_to_fit() -> None:
    layer = build(FORMS[0])
    layer.native.parameters["layers.0.forward.bias_ih"] = np.zeros((1, 11))
    with pytest.raises(mr.InvalidWeights, match=r"layers\.0\.forward\.bias_ih must be float32"):
        layer.weights()


@every_form
def test_read(spec: mr.RecurrentSpec) -> None:
    layer = build(spec)
    assert mr.read(layer.native) == BACKEND.read(layer.native) == layer.weights()


def test_read_refuses_what_is_no_stack() -> None:
    with pytest.raises(mr.Unrepresentable, match=r"reads a multirnn_numpy\.Stack, not a builtins\.dict"):
        BACKEND.read({})


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda stack: pickle.loads(pickle.dumps(stack))], ids=["copy", "pickle"]
)
@every_form
def test_a_copy_is_a_stack_of_its_own(spec: mr.RecurrentSpec, copied) -> None:
    layer = build(spec)
    x, state, lengths = draw_call(spec, seed=1)
    before = layer(x, state, lengths=lengths)
    other = NumpyLayer(copied(layer.native))
    assert close(other(x, state, lengths=lengths), before)
    for array in other.native.parameters.values():
        array += 1
    assert equal(layer(x, state, lengths=lengths), before)
    assert not close(other(x, state, lengths=lengths), before)


def test_devices() -> None:
    weights = build(FORMS[0]).weights()
    assert mr.build(weights, "numpy", device="cpu").weights() == weights
    for device in ("cuda", "CPU", "cpu:0", ""):
        with pytest.raises(mr.InvalidCall, match=f"on the device 'cpu' alone, not on {device!r}"):
            mr.build(weights, "numpy", device=device)


def test_versions() -> None:
    assert BACKEND.versions() == {"numpy": np.__version__}


@every_form
@pytest.mark.parametrize("batch", [1, 5])
def test_results_stay_when_the_layer_is_called_again(spec: mr.RecurrentSpec, batch: int) -> None:
    layer = build(spec)
    x, state, _ = draw_call(spec, seed=1)
    x, state = x[:batch], mr.State(*(part[:, :batch] for part in state if part is not None))
    output = layer(x, state)
    gradients = layer.vjp(x, state, cotangent=output)
    kept = copy.deepcopy((output, gradients))
    layer(x + 1, output.state)
    layer.vjp(x + 1, output.state, cotangent=output)
    assert equal(output, kept[0])
    assert np.array_equal(gradients.x, kept[1].x)
    assert all(np.array_equal(array, kept[1].weights[name]) for name, array in gradients.weights.items())


@every_form
@pytest.mark.parametrize("batch", [1, 5])
def test_no_two_results_share_memory(spec: mr.RecurrentSpec, batch: int) -> None:
    """Nor do they with what was given: each may be written into."""
    layer = build(spec)
    x, state, _ = draw_call(spec, seed=1)
    x, state = x[:batch], mr.State(*(part[:, :batch] for part in state if part is not None))
    output = layer(x, state)
    gradients = layer.vjp(x, state, cotangent=output)
    given = [x, *(part for part in state if part is not None), *layer.native.parameters.values()]
    results = [*arrays_of(output), *gradients.weights.values(), gradients.x]
    results += [part for part in gradients.state if part is not None]
    for k, result in enumerate(results):
        assert result.flags.writeable
        assert not any(np.shares_memory(result, other) for other in given + results[k + 1 :])


@every_form
@pytest.mark.parametrize("batch", [1, 5])
def test_read_only_and_askew_inputs(spec: mr.RecurrentSpec, batch: int) -> None:
    layer = build(spec)
    x, state, lengths = draw_call(spec, seed=1)
    x, lengths = x[:batch], lengths[:batch]
    state = mr.State(*(part[:, :batch] for part in state if part is not None))
    output = layer(x, state, lengths=lengths)
    gradients = layer.vjp(x, state, lengths=lengths, cotangent=output)

    def askew(array):
        wide = np.full((*array.shape[:-1], 2 * array.shape[-1]), np.nan, array.dtype)
        wide[..., ::2] = array
        wide.flags.writeable = False
        return wide[..., ::2]

    def skewed(given: mr.State) -> mr.State:
        return mr.State(*(askew(part) for part in given if part is not None))

    same = layer(askew(x), skewed(state), lengths=lengths)
    cotangent = mr.Output(askew(output.sequence), skewed(output.state))
    again = layer.vjp(askew(x), skewed(state), lengths=lengths, cotangent=cotangent)
    assert equal(same, output)
    assert np.array_equal(again.x, gradients.x)
    assert all(np.array_equal(array, gradients.weights[name]) for name, array in again.weights.items())


@every_form
def test_the_stack_itself(spec: mr.RecurrentSpec) -> None:
    """Time first, with a batch axis or without; there and back."""
    layer = build(spec)
    x, state, _ = draw_call(spec, seed=1)
    parts = [part for part in state if part is not None]
    expected = layer(x, state)
    gradients = layer.vjp(x, state, cotangent=expected)
    y, last, passes = layer.native.forward(x.swapaxes(0, 1), parts)
    assert np.array_equal(y, expected.sequence.swapaxes(0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(last, arrays_of(expected)[1:], strict=True))
    dparameters, dx, dfirst = layer.native.backward(passes, y, last)
    assert np.array_equal(dx, gradients.x.swapaxes(0, 1))
    assert all(np.array_equal(dparameters[name], array) for name, array in gradients.weights.items())
    assert len(dfirst) == len(parts)
    alone = layer(x[:1], mr.State(*(part[:, :1] for part in parts)))
    y, last, _ = layer.native.forward(x[0], [part[:, 0] for part in parts])
    assert np.array_equal(y, alone.sequence[0])
    assert all(np.array_equal(a, b[:, 0]) for a, b in zip(last, arrays_of(alone)[1:], strict=True))


def test_memory_that_is_kept_from_call_to_call_is_never_handed_out() -> None:
    spec = mr.RecurrentSpec("lstm", 3, 5, num_layers=2, bidirectional=True)
    layer = mr.build(spec, "numpy")
    calls = [draw_call(spec, seed) for seed in range(8)]

    def gradients(seed: int) -> list[np.ndarray]:
        x, state, lengths = calls[seed]
        output = layer(x, state, lengths=lengths)
        found = layer.vjp(x, state, lengths=lengths, cotangent=output)
        return [*found.weights.values(), found.x, *found.state]

    expected = [[array.copy() for array in gradients(seed)] for seed in range(8)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(gradients, [*range(8)] * 5))
    for seed, arrays in zip([*range(8)] * 5, found, strict=True):
        for array, there in zip(arrays, expected[seed], strict=True):
            np.testing.assert_array_equal(array, there)
