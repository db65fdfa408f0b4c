"""PyTorch's fast layers under what PyTorch does with functions: transformed, traced, compiled, intercepted."""

import copy
import warnings
from collections.abc import Callable

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch_fast_pairs import (  # noqa: E402
    STACK,
    assert_all_close,
    assert_close,
    drawn_x,
    each_loop,  # noqa: F401
    every_cell,
    one_thread,  # noqa: F401
    pair,
    what_ran,  # noqa: F401
)


def by_func(module, x):
    weights = {name: parameter.detach() for name, parameter in module.named_parameters()}

    def loss(weights, x):
        return torch.func.functional_call(module, weights, (x,))[0].square().sum()

    return torch.func.grad(loss)(weights, x.detach()).values()


def by_jacrev(module, x):
    return [torch.func.jacrev(lambda x: module(x)[0].sum((0, 1)))(x.detach())]


def by_jvp(module, x):
    return torch.func.jvp(lambda x: module(x)[0], (x.detach(),), (drawn_x(seed=9).detach(),))


def by_dual(module, x):
    with torch.autograd.forward_ad.dual_level():
        y = module(torch.autograd.forward_ad.make_dual(x.detach(), drawn_x(seed=9).detach()))[0]
        return torch.autograd.forward_ad.unpack_dual(y)


def by_batched_gradients(module, x):
    return [torch.autograd.functional.jacobian(lambda x: module(x)[0].sum((0, 1)), x, vectorize=True)]


def by_autocast(module, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return [copy.deepcopy(module).float()(x.float())[0].float()]


def by_export(module, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [torch.export.export(module, (x.detach(),)).module()(x)[0]]


def by_trace(module, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [torch.jit.trace(module, (x.detach(),), check_trace=False)(x)[0]]


def by_bfloat16(module, x):
    return [copy.deepcopy(module).bfloat16()(x.bfloat16())[0].float()]


def by_fake(module, x):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        return [np.array(module(mode.from_tensor(x.detach()))[0].shape, float)]


NATIVE_WAYS = [by_jvp, by_dual, by_autocast, by_export, by_trace, by_bfloat16, by_fake]


@pytest.mark.parametrize("way", [*NATIVE_WAYS, by_func, by_jacrev, by_batched_gradients], ids=lambda way: way.__name__)
@every_cell
def test_under_what_pytorch_does_with_functions(cell: str, way: Callable, loop: str, ran: list[str]) -> None:
    """Where PyTorch has to see operations of its own, the layer is PyTorch's own."""
    if way is by_jvp and cell == "lstm":
        pytest.skip("PyTorch's own has no forward derivative of an LSTM")
    quick, native = pair(cell, loop, **STACK)
    x = drawn_x()
    try:
        expected = list(way(native, x))
    except (NotImplementedError, RuntimeError) as error:
        with pytest.raises(type(error)):
            way(quick, x)
        return
    for one, other in zip(way(quick, x), expected, strict=True):
        assert_close(one, other)
    if way is by_export and loop == "kernel":
        assert ran == ["forward"]  # by an operator
    elif way in NATIVE_WAYS:
        assert not ran


# With `allow_rnn` PyTorch's own LSTM fails: aot_autograd asserts that what it saves for the way back are tensors.
@pytest.mark.parametrize(
    ("cell", "allow_rnn"),
    [("simple_rnn", False), ("simple_rnn", True), ("lstm", False), ("gru", False), ("gru", True)],
)
def test_compiled(cell: str, allow_rnn: bool, loop: str, ran: list[str]) -> None:
    """The graph has an operator for the compiled kernel, and is broken for the loop of tensors; `allow_rnn` is for PyTorch's."""
    found = []
    for module in pair(cell, loop, **STACK):
        model = torch.nn.Sequential(torch.nn.Tanh(), module)
        x = drawn_x()[:, :3]
        torch.compiler.reset()
        with torch._dynamo.config.patch(allow_rnn=allow_rnn):
            y = torch.compile(model, backend="aot_eager")(x)[0]
            found.append([y, *torch.autograd.grad(y.square().sum(), list(module.parameters()))])
    assert_all_close(*found)
    assert ran == ["forward", "backward"]
