"""PyTorch's own samples of its recurrent modules, `torch.testing._internal.common_modules`, and its checks of all modules, on the fast ones.

PyTorch ships the samples, and not `test/test_modules.py`, whose checks are here.
"""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from multirnn_torch.fast import FastGRU, FastLSTM, FastRNN
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.testing._internal.common_modules import ModuleErrorEnum, module_db

FAST = {nn.RNN: FastRNN, nn.LSTM: FastLSTM, nn.GRU: FastGRU}
INFOS = {info.module_cls: info for info in module_db if info.module_cls in FAST}
every_module = pytest.mark.parametrize("kind", FAST)


def samples(kind: Any, dtype: torch.dtype = torch.float64, gradients: bool = False) -> list[tuple[Any, Any, Any, Any]]:
    """Of each sample the stock and the fast module, of equal weights, and the arguments."""
    info, found = INFOS[kind], []
    for training in (False, True):
        for sample in info.module_inputs_func(
            info, device="cpu", dtype=dtype, requires_grad=gradients, training=training
        ):
            made = sample.constructor_input
            stock = kind(*made.args, **made.kwargs).to(dtype).train(training)
            fast = FAST[kind](*made.args, **made.kwargs).to(dtype).train(training)
            fast.load_state_dict(stock.state_dict())
            found.append((stock, fast, sample.forward_input, sample))
    assert len(found) > 8
    return found


def flat(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, PackedSequence):
        return [outputs.data]
    return [outputs] if isinstance(outputs, Tensor) else [part for output in outputs for part in flat(output)]


def assert_same(actual: Any, expected: Any) -> None:
    assert type(actual) is type(expected)
    for one, other in zip(flat(actual), flat(expected), strict=True):
        torch.testing.assert_close(one, other)


@every_module
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forward(kind: Any, dtype: torch.dtype) -> None:
    for stock, fast, call, sample in samples(kind, dtype):
        assert_same(fast(*call.args, **call.kwargs), stock(*call.args, **call.kwargs))
        if sample.reference_fn is not None:
            expected = sample.reference_fn(fast, *call.args, **call.kwargs)
            assert_same(flat(fast(*call.args, **call.kwargs)), flat(expected))


@every_module
def test_the_representation_is_pytorchs_but_for_the_name(kind: Any) -> None:
    for stock, fast, _, _ in samples(kind):
        assert repr(fast).partition("(")[2] == repr(stock).partition("(")[2]


@every_module
def test_copied_pickled_saved_and_loaded(kind: Any) -> None:
    for _, fast, call, _ in samples(kind):
        expected = fast(*call.args, **call.kwargs)
        file = io.BytesIO()
        torch.save(fast, file)
        file.seek(0)
        for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast)), torch.load(file, weights_only=False)):
            assert other.training == fast.training
            assert_same(other(*call.args, **call.kwargs), expected)


@every_module
def test_made_in_a_dtype_on_meta_and_empty(kind: Any) -> None:
    info = INFOS[kind]
    for sample in info.module_inputs_func(info, device="cpu", dtype=torch.float64, requires_grad=False, training=False):
        made = sample.constructor_input
        layer = FAST[kind](*made.args, **made.kwargs, dtype=torch.float64)
        assert {parameter.dtype for parameter in layer.parameters()} == {torch.float64}
        layer = FAST[kind](*made.args, **made.kwargs, device="meta")
        assert {parameter.device.type for parameter in layer.parameters()} == {"meta"}
        assert {parameter.device.type for parameter in layer.to_empty(device="cpu").parameters()} == {"cpu"}


@every_module
def test_gradients(kind: Any) -> None:
    for _, fast, call, _ in samples(kind, gradients=True)[::3]:
        leaves = [part for part in flat([*call.args, *call.kwargs.values()]) if part.requires_grad]
        parameters = list(fast.parameters())

        def run(*_: Tensor, fast: Any = fast, call: Any = call) -> tuple[Tensor, ...]:
            return tuple(flat(fast(*call.args, **call.kwargs)))

        assert torch.autograd.gradcheck(run, (*leaves, *parameters), check_batched_grad=False)


@every_module
def test_inputs_that_lie_otherwise_in_memory(kind: Any) -> None:
    for stock, fast, call, _ in samples(kind, gradients=False):
        x, *others = call.args
        if isinstance(x, PackedSequence):
            continue
        strided = torch.stack([x, x], dim=-1)[..., 0]
        turned = x.transpose(0, 1).contiguous().transpose(0, 1)
        for other in (strided, turned):
            assert_same(fast(other, *others), stock(x, *others))


@every_module
def test_the_gradients_of_a_second_call_add_up_and_are_set_to_none(kind: Any) -> None:
    for stock, fast, call, _ in samples(kind)[:6]:
        for module in (stock, fast):
            for _ in range(2):
                sum(part.sum() for part in flat(module(*call.args, **call.kwargs))).backward()
        for one, other in zip(fast.parameters(), stock.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad)
        fast.zero_grad()
        assert all(parameter.grad is None for parameter in fast.parameters())


@every_module
def test_wrong_calls_raise_what_pytorch_raises(kind: Any) -> None:
    info = INFOS[kind]
    wrong = info.module_error_inputs_func(info, device="cpu", dtype=torch.float64, requires_grad=False, training=False)
    assert wrong
    for sample in wrong:
        made, call = sample.module_error_input.constructor_input, sample.module_error_input.forward_input
        if sample.error_on is ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(sample.error_type, match=sample.error_regex):
                FAST[kind](*made.args, **made.kwargs)
        else:
            layer = FAST[kind](*made.args, **made.kwargs).to(torch.float64)
            with pytest.raises(sample.error_type, match=sample.error_regex):
                layer(*call.args, **call.kwargs)


@every_module
def test_hooks(kind: Any) -> None:
    for _, fast, call, _ in samples(kind)[:4]:
        seen: list[str] = []
        fast.register_forward_pre_hook(lambda *_, seen=seen: seen.append("before"))
        fast.register_forward_hook(lambda *_, seen=seen: seen.append("after"))
        fast.register_full_backward_hook(lambda *_, seen=seen: seen.append("backward"))
        flat(fast(*call.args, **call.kwargs))[0].sum().backward()
        assert seen == ["before", "after", "backward"]
