"""Modules of PyTorch whose function is changed by hooks, another forward or a subclass: `read` refuses them or tells by their numbers."""

import functools
import random
import re
import types

import numpy as np
import pytest

import multirnn as mr
from multirnn.adoption import adopt
from multirnn.numerics import draw_call

torch = pytest.importorskip("torch")

from adopted_layers import assert_right  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.utils import parametrize  # noqa: E402
from torch_modules import (  # noqa: E402
    Halved,
    assert_read_is_what_runs,
    every_kind,
    made,
    read,
    seeded,  # noqa: F401
)


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
