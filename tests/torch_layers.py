"""Specs of every form that PyTorch has, their layers, and comparisons."""

import numpy as np
import pytest
import torch

import multirnn as mr
from multirnn.numerics import draw_call

STACK = {"input_size": 5, "hidden_size": 11, "num_layers": 2, "bidirectional": True}
FORMS = [
    mr.RecurrentSpec("simple_rnn", bias="single", activation="relu", **STACK),
    mr.RecurrentSpec("simple_rnn", 5, 11, bias="double"),
    mr.RecurrentSpec("lstm", bias="single", dtype="float64", **STACK),
    mr.RecurrentSpec("lstm", 5, 11, bias="none"),
    mr.RecurrentSpec("gru", bias="single", **STACK),
    mr.RecurrentSpec("gru", bias="double", dtype="float64", **STACK),
]
SINGLE = [spec for spec in FORMS if spec.bias == "single"]


@pytest.fixture(autouse=True)
def one_thread():
    """Layers as small as these are no faster on several threads, which wait for each other where tests run side by side."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def name(spec: mr.RecurrentSpec) -> str:
    return f"{spec.cell}-{spec.bias}"


every_form = pytest.mark.parametrize("spec", FORMS, ids=name)
every_single = pytest.mark.parametrize("spec", SINGLE, ids=name)


def build(spec: mr.RecurrentSpec):
    return mr.build(spec, "torch", seed=3)


def tensor(spec: mr.RecurrentSpec):
    return torch.tensor(draw_call(spec)[0])


def random_cotangent(output: mr.Output) -> mr.Output:
    rng = np.random.default_rng(7)
    sequence, *state = (
        rng.standard_normal(part.shape).astype(part.dtype) for part in (output.sequence, *states(output))
    )
    return mr.Output(sequence, mr.State(*state))


def states(output: mr.Output) -> list[np.ndarray]:
    return [part for part in output.state if part is not None]


def assert_close(actual, expected) -> None:
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert mr.difference(actual, expected).normwise <= mr.tolerance(actual.dtype)


def assert_is_spec(native, spec: mr.RecurrentSpec) -> None:
    """It has the spec's parameters and no others; what stands for a missing bias is zero."""
    assert sum(parameter.numel() for parameter in native.parameters()) == spec.parameter_count
    assert sum(array.numel() for array in native.state_dict().values()) == spec.parameter_count
    listed = [weight for weights in native.all_weights for weight in weights]
    assert sum(weight.numel() for weight in listed if weight.requires_grad) == spec.parameter_count
    assert not any(buffer.any() or buffer.requires_grad for buffer in native.buffers())
    assert mr.read(native).spec == spec


def assert_outputs_close(actual: mr.Output, expected: mr.Output) -> None:
    assert_close(actual.sequence, expected.sequence)
    for one, other in zip(states(actual), states(expected), strict=True):
        assert_close(one, other)
