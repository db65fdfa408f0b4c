"""What `read` returns is what a module of PyTorch computes when it is called next, or it is refused; and nothing tells that it was called."""

import copy
import functools
import random
import re
import types

import numpy as np
import pytest
from adopted_layers import assert_equal, assert_right, reference

import multirnn as mr
from multirnn.adoption import adopt
from multirnn.comparison import widened
from multirnn.numerics import draw_call

torch = pytest.importorskip("torch")

from multirnn_torch import CandidateBiasGRU  # noqa: E402
from multirnn_torch.fast import FastCandidateBiasGRU, FastGRU, FastLSTM, FastRNN  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations, parametrize, prune  # noqa: E402

KINDS = [nn.RNN, nn.LSTM, nn.GRU, CandidateBiasGRU, FastRNN, FastLSTM, FastGRU, FastCandidateBiasGRU]
CELLS = [nn.RNNCell, nn.LSTMCell, nn.GRUCell]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


@pytest.fixture(autouse=True)
def seeded():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def made(kind, **options):
    return kind(5, 11, batch_first=True, **options) if issubclass(kind, nn.RNNBase) else kind(5, 11)


def everything(module):
    """Whatever a call could leave behind, as what can be compared."""
    attributes = []
    for part in module.modules():
        for name, value in vars(part).items():
            held = value if isinstance(value, list) else value.items() if isinstance(value, dict) else [value]
            attributes.append((name, id(value), list(map(id, held)) if isinstance(value, list) else str(held)))
    tensors = [*module.parameters(), *module.buffers()]
    numbers = [
        (tensor.detach().numpy().tobytes(), tensor._version, tensor.requires_grad, tensor.grad) for tensor in tensors
    ]
    states = torch.get_rng_state().numpy().tobytes(), random.getstate(), np.random.get_state()[1].tobytes()  # noqa: NPY002
    return attributes, numbers, states, dict(parametrize._cache), parametrize._cache_enabled


def read(module):
    """`mr.read`, which leaves no trace."""
    before = everything(module)
    try:
        return mr.read(module)
    finally:
        assert everything(module) == before


def assert_read_is_what_runs(module) -> None:
    weights = read(module)
    x, state, _ = draw_call(weights.spec)
    expected = reference(weights)(x.astype("float64"), widened(state))
    hx = tuple(map(torch.from_numpy, state)) if state.c is not None else torch.from_numpy(state.h)
    with torch.no_grad():
        if isinstance(module, nn.RNNCellBase):
            hx = tuple(part[0] for part in hx) if isinstance(hx, tuple) else hx[0]
            for step in torch.from_numpy(x).unbind(1):
                hx = module(step, hx)
            assert_equal(hx[0].numpy() if isinstance(hx, tuple) else hx.numpy(), expected.state.h[0], weights.spec)
        else:
            assert_equal(module(torch.from_numpy(x), hx)[0].numpy(), expected.sequence, weights.spec)


# --- What computes weights -------------------------------------------------------------------------------------------


def stepped(module):
    """After a step of an optimiser, before the next call."""
    y = module(torch.randn(2, 3, 5))[0] if isinstance(module, nn.RNNBase) else module(torch.randn(2, 5))
    (y[0] if isinstance(y, tuple) else y).square().sum().backward()
    torch.optim.SGD(module.parameters(), lr=0.5).step()
    module.zero_grad(set_to_none=True)


def hh(module):
    return "weight_hh_l0" if isinstance(module, nn.RNNBase) else "weight_hh"


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2


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


# --- What changes the function -----------------------------------------------------------------------------------


def doubling(module, inputs):
    return (2 * inputs[0], *inputs[1:])


def tripling(module, inputs, output):
    return 3 * output[0], output[1]


def pre_hook(module):
    return module.register_forward_pre_hook(doubling)


def forward_hook(module):
    return module.register_forward_hook(tripling)


def hook_with_kwargs(module):
    return module.register_forward_hook(lambda module, args, kwargs, output: None, with_kwargs=True)


def global_pre_hook(module):
    return nn.modules.module.register_module_forward_pre_hook(doubling)


def global_hook(module):
    return nn.modules.module.register_module_forward_hook(tripling)


HOOKS = {
    pre_hook: "it has a forward pre-hook (doubling)",
    forward_hook: "it has a forward hook (tripling)",
    hook_with_kwargs: "it has a forward hook (hook_with_kwargs.<locals>.<lambda>)",
    global_pre_hook: "torch.nn.modules.module has a global forward pre-hook (doubling)",
    global_hook: "torch.nn.modules.module has a global forward hook (tripling)",
}


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.__name__)
@every_kind
def test_a_module_with_a_hook_is_refused_and_not_called(kind, hook, monkeypatch) -> None:
    module = made(kind)
    for name in ("doubling", "tripling"):
        monkeypatch.setitem(globals(), name, pytest.fail)
    handle = hook(module)
    try:
        with pytest.raises(
            mr.Unrepresentable, match=r"is not read, since .*, which may change what it computes; take it"
        ):
            read(module)
        with pytest.raises(mr.InvalidCall, match="which may change what it computes"):
            adopt(module)
    finally:
        handle.remove()
    read(module)


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.__name__)
def test_the_sentence_names_the_hook(hook) -> None:
    module = made(nn.GRU)
    handle = hook(module)
    try:
        with pytest.raises(mr.Unrepresentable, match=re.escape(f"this GRU is not read, since {HOOKS[hook]}, which")):
            read(module)
    finally:
        handle.remove()


def test_hooks_on_what_is_around_and_inside() -> None:
    module = made(nn.GRU)
    wrapped = nn.DataParallel(module)
    read(wrapped)
    wrapped.register_forward_hook(tripling)
    with pytest.raises(mr.Unrepresentable, match="it has a forward hook"):
        read(wrapped)
    parametrize.register_parametrization(module, "weight_hh_l0", Halved())
    module.parametrizations.weight_hh_l0[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    with pytest.raises(mr.Unrepresentable, match=r"its 'parametrizations.weight_hh_l0.0' has a forward hook"):
        read(module)


def test_a_layer_of_ours_with_a_hook() -> None:
    layer = mr.build(mr.RecurrentSpec("gru", 5, 11), "torch")
    layer.native.register_forward_hook(tripling)
    with pytest.raises(mr.Unrepresentable, match=r"^this GRU is not read, since it has a forward hook"):
        layer.weights()


def test_a_layer_of_ours_with_another_forward() -> None:
    layer = mr.build(mr.RecurrentSpec("lstm", 5, 11), "torch", implementation="fast")
    expected = layer.weights()
    counted(layer.native)
    assert layer.weights() == expected
    replaced(layer.native)
    with pytest.raises(mr.Unrepresentable, match=r"^this FastLSTM does not compute the stack"):
        layer.weights()


def test_hooks_on_the_backward_pass_change_nothing_that_is_read() -> None:
    module = made(nn.GRU)
    module.register_full_backward_hook(lambda module, inputs, outputs: pytest.fail("it was called"))
    assert_read_is_what_runs(module)


def replaced(module):
    forward = module.forward
    module.forward = lambda x, hx=None: forward(2 * x, hx) if torch.is_tensor(x) else forward(x, hx)


def replaced_by_a_method(module):
    def forward(self, x, hx=None):
        y, final = type(self).forward(self, x, hx)
        return y + 1, final

    module.forward = types.MethodType(forward, module)


@pytest.mark.parametrize("replace", [replaced, replaced_by_a_method])
@every_kind
def test_a_replaced_forward_is_told_by_its_numbers(kind, replace) -> None:
    module = made(kind)
    replace(module)
    with pytest.raises(mr.Unrepresentable, match="does not compute the stack that its weights describe"):
        read(module)


def counted(module):
    """As libraries wrap a forward for its side effects."""
    forward, module.calls = module.forward, 0

    @functools.wraps(forward)
    def wrapper(*args, **kwargs):
        module.calls += 1
        return forward(*args, **kwargs)

    module.forward = wrapper


@every_kind
def test_a_replaced_forward_that_computes_the_same_is_read(kind) -> None:
    module = made(kind)
    counted(module)
    assert_read_is_what_runs(module)
    adopted = adopt(module)
    x, state, _ = draw_call(adopted.spec)
    output = adopted(x, state)
    with pytest.raises(
        mr.InvalidCall, match=r"no gradient reaches weight_ih_l0 of .*: its forward computes with another"
    ):
        adopted.vjp(x, state, cotangent=output)


class Noisy(nn.GRU):
    """A subclass: it counts, draws, and keeps its last state."""

    calls = 0

    def __init__(self, *args, scale=1.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.scale = scale
        self.register_buffer("last", torch.full((1,), float("nan")))
        self.seen = []

    def forward(self, x, hx=None):
        self.calls += 1
        self.seen.append(torch.rand(1))
        random.random()
        np.random.rand()  # noqa: NPY002
        y, final = super().forward(self.scale * x, hx)
        self.last = final.detach()
        return y, final


def test_a_subclass_is_told_by_its_numbers() -> None:
    module = Noisy(5, 11)
    assert_read_is_what_runs(Noisy(5, 11, batch_first=True))
    read(module)
    assert_right(adopt(module), mr.read(module))
    assert (module.calls, module.seen) == (0, [])
    with pytest.raises(mr.Unrepresentable, match="this Noisy does not compute the stack"):
        read(Noisy(5, 11, scale=1.5))


class LastStep(nn.LSTM):
    def forward(self, x, hx=None):
        return super().forward(x, hx)[0][:, -1]


class NeedsMore(nn.LSTM):
    def forward(self, x, hx, mask):
        return super().forward(x, hx)


@pytest.mark.parametrize(
    ("kind", "reason"), [(LastStep, "returned y of the shape"), (NeedsMore, "it must be callable as")]
)
def test_a_subclass_that_is_not_called_as_a_layer(kind, reason: str) -> None:
    with pytest.raises(mr.Unrepresentable, match=rf"^this {kind.__name__} cannot be called as a layer.*{reason}"):
        read(made(kind))


def test_dropout_of_a_subclass_in_evaluation_has_the_gradients_of_evaluation() -> None:
    class Dropping(nn.GRU):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.drop = nn.Dropout(0.5)

        def forward(self, x, hx=None):
            y, final = super().forward(x, hx)
            return self.drop(y), final

    module = made(Dropping).eval()
    assert_right(adopt(module), mr.read(module))
    with pytest.raises(mr.Unrepresentable, match="does not compute"):
        read(module.train())


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
