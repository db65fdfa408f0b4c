"""What `read` returns is what a module of PyTorch computes when it is called next, or it is refused; and nothing tells that it was called."""

import copy

import numpy as np
import pytest

import multirnn as mr
from multirnn.adoption import adopt
from multirnn.numerics import draw_call

torch = pytest.importorskip("torch")

from adopted_layers import assert_equal, assert_right  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations, parametrize, prune  # noqa: E402
from torch_modules import (  # noqa: E402
    CELLS,
    KINDS,
    Halved,
    assert_read_is_what_runs,
    every_kind,
    made,
    read,
    seeded,  # noqa: F401
)

# --- What computes weights -------------------------------------------------------------------------------------------


def stepped(module):
    """After a step of an optimiser, before the next call."""
    y = module(torch.randn(2, 3, 5))[0] if isinstance(module, nn.RNNBase) else module(torch.randn(2, 5))
    (y[0] if isinstance(y, tuple) else y).square().sum().backward()
    torch.optim.SGD(module.parameters(), lr=0.5).step()
    module.zero_grad(set_to_none=True)


def hh(module):
    return "weight_hh_l0" if isinstance(module, nn.RNNBase) else "weight_hh"


def dropped(module):
    """Weight drop as it is often written: another tensor is put into the list that the forward computes with."""
    if not isinstance(module, nn.RNNBase):
        pytest.skip("a cell has no list of weights")
    weight = module._flat_weights[1].detach()
    module._flat_weights[1] = torch.where(torch.rand_like(weight) < 0.5, 0, 2 * weight)


def set_by_name(module):
    raw = getattr(module, hh(module))
    del module._parameters[hh(module)]
    module.register_parameter("raw", nn.Parameter(raw.detach()))
    setattr(module, hh(module), module.raw * 2)


MECHANISMS = {
    "weight_norm": lambda module: nn.utils.weight_norm(module, hh(module)),
    "weight_norm of a bias": lambda module: nn.utils.weight_norm(module, hh(module).replace("weight_hh", "bias_ih")),
    "spectral_norm": lambda module: nn.utils.spectral_norm(module, hh(module)),
    "parametrizations.weight_norm": lambda module: parametrizations.weight_norm(module, hh(module)),
    "parametrizations.spectral_norm": lambda module: parametrizations.spectral_norm(module, hh(module)),
    "parametrizations.orthogonal": lambda module: parametrizations.orthogonal(module, hh(module).replace("hh", "ih")),
    "a parametrization": lambda module: parametrize.register_parametrization(module, hh(module), Halved()),
    "pruned": lambda module: prune.l1_unstructured(module, hh(module), amount=0.3),
    "pruned twice": lambda module: [prune.random_unstructured(module, hh(module), amount=0.3) for _ in range(2)],
    "a pruned bias": lambda module: prune.l1_unstructured(module, hh(module).replace("weight_hh", "bias_ih"), amount=3),
    "in the list": dropped,
    "by name": set_by_name,
}


@pytest.mark.filterwarnings("ignore:.*is deprecated in favor of:FutureWarning")
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("kind", [*KINDS, *CELLS], ids=lambda kind: kind.__name__)
def test_computed_weights_are_those_of_the_next_call(kind, mechanism: str, mode: str) -> None:
    module = made(kind)
    MECHANISMS[mechanism](module)
    if mechanism == "spectral_norm" and mode == "eval":
        for _ in range(5):  # it begins with any vector, and huge weights
            stepped(module)
    getattr(module, mode)()
    if not isinstance(module, nn.RNNBase) and mechanism == "spectral_norm" and mode == "train":
        with pytest.raises(mr.Unrepresentable, match="does not compute the stack"):  # another weight at every step
            read(module)
        return
    assert_read_is_what_runs(copy.deepcopy(module) if mechanism == "parametrizations.weight_norm" else module)
    if mechanism != "by name":
        stepped(module)
    read(module)
    assert_read_is_what_runs(module)
    if mode == "eval":
        adopted = adopt(module)
        assert_right(adopted, mr.read(module))


@every_kind
def test_a_module_of_two_tied_matrices_has_a_gradient_for_each_place(kind) -> None:
    module = made(kind, num_layers=2)
    module.weight_hh_l1 = module.weight_hh_l0
    module.bias_ih_l0 = module.bias_ih_l1
    adopted, weights = adopt(module), read(module)
    assert (weights.arrays["layers.0.forward.weight_hh"] == weights.arrays["layers.1.forward.weight_hh"]).all()
    assert_right(adopted, weights)
    x, state, _ = draw_call(weights.spec)
    cotangent = adopted(x, state)
    found = adopted.vjp(x, state, cotangent=cotangent).weights
    hx = tuple(map(torch.from_numpy, state)) if state.c is not None else torch.from_numpy(state.h)
    y, final = module(torch.from_numpy(x), hx)
    outputs = [y, *(final if isinstance(final, tuple) else [final])]
    parts = [cotangent.sequence, *(part for part in cotangent.state if part is not None)]
    torch.autograd.backward(outputs, list(map(torch.from_numpy, parts)))
    both = sum(found[f"layers.{layer}.forward.weight_hh"] for layer in (0, 1))
    assert_equal(module.weight_hh_l0.grad.numpy().reshape(both.shape), both, weights.spec)
    assert adopted.parameter_count < weights.spec.parameter_count


@pytest.mark.parametrize("cell", ["simple_rnn", "lstm", "gru"])
@pytest.mark.parametrize("implementation", ["native", "fast"])
def test_gradients_of_a_layer_whose_weights_are_computed(cell: str, implementation: str) -> None:
    layer = mr.build(mr.RecurrentSpec(cell, 5, 11), "torch", implementation=implementation)
    parametrizations.weight_norm(layer.native, "weight_hh_l0")
    prune.l1_unstructured(layer.native, "weight_ih_l0", amount=0.3)
    layer.native.eval()
    stepped(layer.native)
    x, state, lengths = draw_call(layer.spec)
    cotangent = layer(x, state, lengths=lengths)
    found = layer.vjp(x, state, lengths=lengths, cotangent=cotangent)
    exact = mr.build(layer.weights(), "numpy")
    assert_equal(cotangent.sequence, exact(x, state, lengths=lengths).sequence, layer.spec)
    expected = exact.vjp(x, state, lengths=lengths, cotangent=cotangent)
    for name, gradient in expected.weights.items():
        assert_equal(found.weights[name], gradient, layer.spec)


def test_inside_of_a_cache_of_parametrizations() -> None:
    module = made(nn.GRU)
    parametrizations.weight_norm(module, "weight_hh_l0")
    with parametrize.cached():
        read(module)
        module(torch.randn(2, 3, 5))[0].sum().backward()
        read(module)
    assert module.parametrizations.weight_hh_l0.original0.grad is not None


# --- What cannot be called -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*KINDS, *CELLS], ids=lambda kind: kind.__name__)
def test_nothing_is_read_on_the_device_meta(kind) -> None:
    with pytest.raises(mr.Unrepresentable, match=r"is on the device 'meta', which holds no numbers"):
        mr.read(made(kind).to("meta"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_quantised_modules(kind) -> None:
    model = nn.Sequential(made(kind))
    quantised = torch.ao.quantization.quantize_dynamic(model, {kind})[0]
    with pytest.raises(
        mr.Unrepresentable,
        match=r"^a module of the type torch\.ao\..* holds quantised weights, which no spec describes",
    ):
        mr.read(quantised)
    with pytest.raises(mr.InvalidCall, match="holds quantised weights"):
        adopt(quantised)


@every_kind
def test_a_weight_that_was_deleted(kind) -> None:
    module = made(kind)
    module._flat_weights[1] = None
    with pytest.raises(mr.Unrepresentable, match="has no weight_hh_l0"):
        read(module)


@every_kind
def test_wrapped(kind) -> None:
    module = made(kind)
    expected = read(module)
    module.compile(backend=lambda *_: pytest.fail("it was compiled"))
    assert read(module) == expected
    assert mr.read(torch.compile(module)) == expected
    assert mr.read(nn.DataParallel(torch.compile(module))) == expected


def test_what_is_not_in_its_mode() -> None:
    """Reading asks for no mode, no gradients, and no precision."""
    module = made(nn.LSTM).eval()
    expected = read(module)
    for setting in (
        torch.no_grad(),
        torch.inference_mode(),
        torch.autocast("cpu", torch.bfloat16),
        torch.device("meta"),
    ):
        with setting:
            assert mr.read(module) == expected
            x, state, lengths = draw_call(expected.spec)
            adopted = adopt(module)
            output = adopted(x, state, lengths=lengths)
            adopted.vjp(x, state, lengths=lengths, cotangent=output)
        assert (output.sequence == adopt(module)(x, state, lengths=lengths).sequence).all()
    assert not module.training


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_weights_that_training_has_lost_are_read(kind, value: float) -> None:
    module = made(kind)
    with torch.no_grad():
        module.weight_hh_l0[0, 0] = value
    assert np.isclose(read(module).arrays["layers.0.forward.weight_hh"][0, 0, 0], value, equal_nan=True)
