"""The operators of PyTorch: registered right, equal to PyTorch's layers, and safe to call with anything."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch
from multirnn_torch.fast import FastGRU, FastLSTM, FastRNN
from multirnn_torch.kernel import KernelLoop
from multirnn_torch.operators import OPERATORS
from torch import Tensor, nn
from torch.library import opcheck

import multirnn as mr
from multirnn import kernel
from multirnn.kernel.compiled import CompiledRecurrence, instruction_sets

if kernel.refuses() is not None:
    pytest.skip(str(kernel.refuses()), allow_module_level=True)

INPUT, HIDDEN, BATCH, TIME = 5, 7, 3, 6
LAYERS = {
    "simple_rnn": (nn.RNN, {}),
    "relu": (nn.RNN, {"nonlinearity": "relu"}),
    "lstm": (nn.LSTM, {}),
    "gru": (nn.GRU, {}),
}


class Call(NamedTuple):
    """The arguments of an operator for a forward pass, and the layer of `torch.nn` that computes the same."""

    operators: Any
    x: Tensor
    state: list[Tensor | None]
    weights: list[Tensor]
    lengths: Tensor | None
    stack: list[Any]
    native: nn.RNNBase

    @property
    def arguments(self) -> tuple[Any, ...]:
        return (self.x, *self.state, self.weights, self.lengths, *self.stack)

    @property
    def leaves(self) -> list[Tensor]:
        return [self.x, *(part for part in self.state if part is not None), *self.weights]


def drawn(
    cell: str,
    *,
    layers: int = 1,
    both: bool = False,
    bias: bool = True,
    batch_first: bool = True,
    state: bool = True,
    lengths: bool = False,
    strided: bool = False,
    gradients: bool = True,
    dtype: torch.dtype = torch.float64,
    batch: int = BATCH,
    time: int = TIME,
) -> Call:
    torch.manual_seed(2)
    kind, more = LAYERS[cell]
    native = kind(
        INPUT, HIDDEN, layers, bias=bias, batch_first=batch_first, bidirectional=both, dtype=dtype, **more
    ).requires_grad_(gradients)
    size = (batch, time) if batch_first else (time, batch)
    x = torch.randn(*size, 2 * INPUT, dtype=dtype)[..., ::2] if strided else torch.randn(*size, INPUT, dtype=dtype)
    shape = layers * (1 + both), batch, HIDDEN
    parts: list[Any] = [torch.randn(shape, dtype=dtype) if state else None for _ in range(1 + (cell == "lstm"))]
    for part in (x, *parts):
        if part is not None:
            part.requires_grad_(gradients)
    ends = torch.tensor([time, 0, *[2] * (batch - 2)]) if lengths else None
    stack: list[Any] = [batch_first, layers, both, bias]
    if kind is nn.RNN:
        stack.append(native.nonlinearity)
    name: Any = "simple_rnn" if kind is nn.RNN else cell
    return Call(OPERATORS[name], x, parts, list(native._flat_weights), ends, stack, native)  # type: ignore[arg-type]


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "a stack": {"layers": 2, "both": True, "batch_first": False},
    "no bias, no state": {"bias": False, "state": False, "layers": 2},
    "ragged": {"lengths": True, "both": True},
    "strided x": {"strided": True},
    "float32": {"dtype": torch.float32, "layers": 2},
}
every_cell = pytest.mark.parametrize("cell", LAYERS)
every_setting = pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)


# --- Registered right ------------------------------------------------------------------------------------------------


@every_cell
@every_setting
@pytest.mark.parametrize("gradients", [True, False])
def test_opcheck(cell: str, setting: dict[str, Any], gradients: bool) -> None:
    call = drawn(cell, **setting, gradients=gradients)
    for operator in (call.operators.forward, call.operators.training):
        opcheck(operator, call.arguments)


@every_cell
@every_setting
def test_opcheck_of_the_backward_operator(cell: str, setting: dict[str, Any]) -> None:
    call = drawn(cell, **setting, gradients=False)
    y, *final, reserve = call.operators.training(*call.arguments)
    cotangents = torch.randn_like(y), *map(torch.randn_like, final)
    count = 1 + len(call.state) + len(call.weights)
    present = [True, *(part is not None for part in call.state), *[True] * len(call.weights)]
    for wanted in (present, [False] * count, [place % 2 == 0 and present[place] for place in range(count)]):
        opcheck(
            call.operators.backward,
            (call.x, *call.state, call.weights, y, reserve, *cotangents, *call.stack, wanted),
        )


@every_cell
@every_setting
def test_fake_results_are_like_the_real_ones(cell: str, setting: dict[str, Any]) -> None:
    """Shapes, dtypes and strides: compiled code relies on them."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    call = drawn(cell, **setting, gradients=False)
    for operator in (call.operators.forward, call.operators.training):
        real = operator(*call.arguments)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake = operator(mode.from_tensor(call.x), *call.arguments[1:])
        for one, other in zip(fake, real, strict=True):
            assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())


# --- Right -----------------------------------------------------------------------------------------------------------


def gradients_of(outputs: Sequence[Tensor], leaves: Sequence[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    cotangents = [torch.randn(each.shape, generator=generator, dtype=torch.float64).to(each.dtype) for each in outputs]
    return list(torch.autograd.grad(outputs, leaves, cotangents))


def assert_all_close(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for one, other in zip(actual, expected, strict=True):
        found = mr.difference(one.detach().numpy(), other.detach().numpy())
        assert found.normwise <= mr.tolerance(str(one.dtype).removeprefix("torch.")), found


@every_cell
@pytest.mark.parametrize("name", [name for name, setting in SETTINGS.items() if not setting.get("lengths")])
@pytest.mark.parametrize("which", ["forward", "training"])
def test_an_operator_is_the_layer_of_pytorch(cell: str, name: str, which: str) -> None:
    call = drawn(cell, **SETTINGS[name])
    y, *final = getattr(call.operators, which)(*call.arguments)
    final = final[: len(call.state)]
    given: Any = None
    if call.state[0] is not None:
        given = tuple(call.state) if len(call.state) == 2 else call.state[0]
    expected_y, ends = call.native(call.x, given)
    expected = [expected_y, *(ends if isinstance(ends, tuple) else [ends])]
    assert_all_close([y, *final], expected)
    assert_all_close(gradients_of([y, *final], call.leaves), gradients_of(expected, call.leaves))


@every_cell
def test_ragged_it_is_the_fast_layer(cell: str) -> None:
    call = drawn(cell, lengths=True, both=True, layers=2)
    kind: Any = {nn.RNN: FastRNN, nn.LSTM: FastLSTM, nn.GRU: FastGRU}[type(call.native)]
    more = {"nonlinearity": call.native.nonlinearity} if kind is FastRNN else {}
    fast = kind(INPUT, HIDDEN, 2, batch_first=True, bidirectional=True, dtype=torch.float64, **more)
    fast.load_state_dict(call.native.state_dict())
    hx = tuple(call.state) if len(call.state) == 2 else call.state[0]
    expected_y, ends = fast(call.x, hx, call.lengths)
    expected = [expected_y, *(ends if isinstance(ends, tuple) else [ends])]
    actual = call.operators.training(*call.arguments)[: 1 + len(call.state)]
    leaves = call.leaves[: 1 + len(call.state)]
    assert_all_close(actual, expected)
    assert_all_close(gradients_of(actual, leaves), gradients_of(expected, leaves))


@every_cell
@pytest.mark.parametrize("batch_first", [True, False])
def test_no_rows(cell: str, batch_first: bool) -> None:
    call = drawn(cell, batch=0, batch_first=batch_first, layers=2)
    y, *final = call.operators.training(*call.arguments)
    assert y.shape == (*call.x.shape[:2], HIDDEN)
    assert final[0].shape == (2, 0, HIDDEN)
    found = gradients_of([y, *final[: len(call.state)]], call.leaves)
    assert all(
        not gradient.any() and gradient.shape == leaf.shape for gradient, leaf in zip(found, call.leaves, strict=True)
    )


def test_lengths_that_change_after_the_call_change_no_gradient() -> None:
    call = drawn("gru", lengths=True)
    assert call.lengths is not None
    expected = gradients_of(call.operators.training(*call.arguments)[:2], call.leaves)
    outputs = call.operators.training(*call.arguments)[:2]
    call.lengths.fill_(10**6)
    assert_all_close(gradients_of(outputs, call.leaves), expected)


def test_what_was_written_to_after_the_call_has_no_gradient() -> None:
    call = drawn("lstm")
    x = call.x.detach().clone().requires_grad_()
    moved = x * 1
    y = call.operators.training(moved, *call.arguments[1:])[0]
    with torch.no_grad():
        moved.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_second_derivatives_are_refused() -> None:
    call = drawn("gru")
    y = call.operators.training(*call.arguments)[0]
    (dx,) = torch.autograd.grad(y.square().sum(), [call.x], create_graph=True)
    with pytest.raises(mr.InvalidCall, match="first derivatives alone"):
        dx.sum().backward()


@every_cell
def test_gradients_lie_in_memory_as_the_fake_kernel_says_however_x_lies(cell: str) -> None:
    for strided in (False, True):
        call = drawn(cell, strided=strided, layers=2)
        outputs = call.operators.training(*call.arguments)[: 1 + len(call.state)]
        assert all(gradient.is_contiguous() for gradient in gradients_of(outputs, call.leaves))


@every_cell
def test_the_reserve_space_depends_on_the_arguments_alone(cell: str) -> None:
    call = drawn(cell, lengths=True, layers=2, both=True, gradients=False)
    reserve = call.operators.training(*call.arguments)[-1]
    torch.empty(len(reserve), dtype=torch.uint8).fill_(255)  # memory that may be given out next
    assert torch.equal(call.operators.training(*call.arguments)[-1], reserve)


# --- The reserve space -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cell", OPERATORS)
def test_the_size_of_the_reserve_space_is_a_bound(cell: Any, dtype: Any) -> None:
    """On every instruction set, for the sizes of a compiled graph: linear in batch, time and their product."""
    for hidden in (1, 7, 8, 16, 17, 100):
        for layers, both in ((1, False), (3, True)):
            spec = mr.RecurrentSpec(cell, 5, hidden, num_layers=layers, bidirectional=both, dtype=dtype)
            size = KernelLoop(spec).reserve_size
            for batch, time in ((0, 0), (1, 0), (1, 1), (3, 1), (1, 64), (64, 1), (5, 37), (1000, 3)):
                for instructions in instruction_sets():
                    assert CompiledRecurrence(spec, instructions).stash_size(batch, time) <= size(batch, time)
            constant, row, step = size(0, 0), size(1, 0), size(1, 1)
            assert size(3, 7) == constant + 3 * (row - constant) + 21 * (step - row)


# --- Safe ------------------------------------------------------------------------------------------------------------


def without(call: Call, place: int, value: Any) -> tuple[Any, ...]:
    arguments = list(call.arguments)
    arguments[place] = value
    return tuple(arguments)


WRONG = {
    "features": (lambda c: without(c, 0, torch.zeros(BATCH, TIME, INPUT + 1, dtype=torch.float64)), "x has the shape"),
    "axes": (lambda c: without(c, 0, torch.zeros(TIME, INPUT, dtype=torch.float64)), "x has three axes"),
    "no steps": (lambda c: without(c, 0, torch.zeros(BATCH, 0, INPUT, dtype=torch.float64)), "at least one time step"),
    "whole numbers": (
        lambda c: without(c, 0, torch.zeros(BATCH, TIME, INPUT, dtype=torch.int64)),
        "float32 or float64",
    ),
    "half": (lambda c: without(c, 0, torch.zeros(BATCH, TIME, INPUT).half()), "float32 or float64"),
    "other dtype": (lambda c: without(c, 0, torch.zeros(BATCH, TIME, INPUT)), "a state has the shape"),
    "state": (lambda c: without(c, 1, torch.zeros(1, BATCH + 1, HIDDEN, dtype=torch.float64)), "a state has the shape"),
    "fewer weights": (lambda c: without(c, 3, c.weights[:-1]), "its two matrices and two biases"),
    "a flat matrix": (lambda c: without(c, 3, [c.weights[0][0], *c.weights[1:]]), "its two matrices and two biases"),
    "a weight": (lambda c: without(c, 3, [*c.weights[:-1], c.weights[-1][1:]]), "a weight has the shape"),
    "long": (lambda c: without(c, 4, torch.tensor([1, TIME + 1, 1])), f"lengths are {BATCH} integers from 0 to {TIME}"),
    "negative": (lambda c: without(c, 4, torch.tensor([1, -1, 1])), f"lengths are {BATCH} integers from 0 to {TIME}"),
    "few lengths": (lambda c: without(c, 4, torch.tensor([1, 1])), f"lengths are {BATCH} integers from 0 to {TIME}"),
    "int32 lengths": (lambda c: without(c, 4, torch.ones(BATCH, dtype=torch.int32)), "int64 on the CPU"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_refused_before_its_memory_is_read(what: str) -> None:
    call = drawn("lstm", gradients=False)
    make, sentence = WRONG[what]
    for operator in (call.operators.forward, call.operators.training):
        with pytest.raises(mr.InvalidCall, match=sentence):
            operator(*make(call))


@pytest.mark.parametrize("place", [1, 3, 4])
def test_a_tensor_without_memory_is_refused(place: int) -> None:
    """With one on meta, PyTorch runs the fake kernel: its results on the CPU would be whatever the memory held."""
    call = drawn("lstm", gradients=False, lengths=True)
    given = call.arguments[place]
    moved = [given[0].to("meta"), *given[1:]] if isinstance(given, list) else given.to("meta")
    for operator in (call.operators.forward, call.operators.training):
        with pytest.raises(mr.InvalidCall, match="not on meta"):
            operator(*without(call, place, moved))


def test_a_reserve_space_without_memory_is_refused() -> None:
    call = drawn("gru", gradients=False)
    y, final, reserve = call.operators.training(*call.arguments)
    with pytest.raises(mr.InvalidCall, match="not on meta"):
        call.operators.backward(
            call.x,
            *call.state,
            call.weights,
            y,
            reserve.to("meta"),
            y,
            final,
            *call.stack,
            [True] * (2 + len(call.weights)),
        )


def test_all_on_meta_gives_shapes() -> None:
    call = drawn("gru", gradients=False, lengths=True)
    x, h, *weights = (part.to("meta") for part in call.leaves)
    y, final = call.operators.forward(x, h, weights, call.lengths, *call.stack)
    assert (y.device.type, y.shape, final.shape) == ("meta", (BATCH, TIME, HIDDEN), (1, BATCH, HIDDEN))


def test_a_reserve_space_of_another_call_is_refused() -> None:
    call = drawn("gru", gradients=False)
    y, final, reserve = call.operators.training(*call.arguments)
    for other in (reserve[:-1], reserve.float()):
        with pytest.raises(mr.InvalidCall, match="not the one that the forward pass made"):
            call.operators.backward(
                call.x, *call.state, call.weights, y, other, y, final, *call.stack, [True] * (2 + len(call.weights))
            )
