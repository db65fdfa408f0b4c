"""Dropout between the layers of PyTorch's fast layers: through the loops, with the random numbers of PyTorch's own."""

import io
from copy import deepcopy
from typing import Any

import pytest

import multirnn as mr

torch = pytest.importorskip("torch")

from multirnn_torch import facts  # noqa: E402
from multirnn_torch.fast import FastGRU, FastLSTM, FastRNN  # noqa: E402
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402
from torch_fast_pairs import (  # noqa: E402
    BATCH,
    HIDDEN,
    INPUT,
    STACK,
    TIME,
    assert_all_close,
    assert_close,
    drawn,
    drawn_x,
    each_loop,  # noqa: F401
    every_cell,
    one_thread,  # noqa: F401
    pair,
    parts,
    pulled,
    what_ran,  # noqa: F401
)

RATE = 0.4
LENGTHS = [4, 11, 7]


def seeded(call: Any, *arguments: Any) -> list[Any]:
    """What a call returns under one seed, then the next random number."""
    torch.manual_seed(6)
    return [*call(*arguments), torch.rand(1)]


def assert_same(found: list[Any], expected: list[Any]) -> None:
    """Up to rounding; as many numbers were drawn."""
    assert torch.equal(found[-1], expected[-1])
    assert_all_close(found, expected)


def state(cell: str, passes: int = 4, *batch: int) -> Any:
    h, c = (drawn(passes, *(batch or (BATCH,)), HIDDEN, seed=seed) for seed in (5, 6))
    return (h, c) if cell == "lstm" else h


def packed(module: Any, x: Any, hx: Any = None, lengths: tuple[int, ...] = tuple(LENGTHS)) -> list[Any]:
    """Outputs by way of a PackedSequence."""
    sequence, final = module(pack_padded_sequence(x, torch.tensor(lengths), True, enforce_sorted=False), hx)
    return [pad_packed_sequence(sequence, batch_first=True, total_length=x.shape[1])[0], *parts(final)]


def differentiated(outputs: list[Any], leaves: list[Any]) -> list[Any]:
    """The outputs, the gradients, and gradients of these."""
    gradients = torch.autograd.grad(sum(output.square().sum() for output in outputs), leaves, create_graph=True)
    again = torch.autograd.grad(sum(one.square().sum() for one in gradients), leaves)
    return [*outputs, *gradients, *again]


# --- The same numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [RATE, 1.0])
@pytest.mark.parametrize("stack", [STACK, {"num_layers": 3}], ids=["batch first", "time first"])
@every_cell
def test_the_same_as_pytorchs(cell: str, stack: dict, rate: float, loop: str, ran: list[str]) -> None:
    quick, native = pair(cell, loop, dropout=rate, **stack)
    x = drawn_x() if "batch_first" in stack else drawn(TIME, BATCH, INPUT)
    hx = state(cell, 4 if "bidirectional" in stack else 3)
    assert_same(seeded(pulled, quick, x, hx), seeded(pulled, native, x, hx))
    layers = stack["num_layers"]
    assert ran == ["forward"] * layers + ["backward"] * layers
    with torch.no_grad():
        assert_same(seeded(lambda m: m(x)[:1], quick), seeded(lambda m: m(x)[:1], native))
        assert quick(x)[0].stride() == quick(x)[0].contiguous().stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_cell
def test_unbatched_and_strided(cell: str, dtype: Any, loop: str, ran: list[str]) -> None:
    quick, native = pair(cell, loop, dtype, num_layers=2, dropout=RATE)
    for x in (
        drawn(TIME, INPUT, dtype=dtype),
        drawn(BATCH, TIME, INPUT, dtype=dtype).transpose(0, 1),
        drawn(TIME, BATCH, 2 * INPUT, dtype=dtype)[..., ::2],
        drawn(TIME, 1, INPUT, dtype=dtype).expand(TIME, BATCH, INPUT),
    ):
        assert_same(seeded(pulled, quick, x), seeded(pulled, native, x))
    assert len(ran) == 4 * 4


@pytest.mark.parametrize("enforce", [True, False], ids=["sorted", "unsorted"])
@every_cell
def test_packed(cell: str, enforce: bool, loop: str, ran: list[str]) -> None:
    quick, native = pair(cell, loop, dropout=RATE, **STACK)
    lengths = tuple(sorted(LENGTHS, reverse=True)) if enforce else tuple(LENGTHS)
    x, hx = drawn_x(), state(cell)
    found = [
        seeded(lambda m: differentiated(packed(m, x, hx, lengths), [x, *parts(hx), *m.parameters()]), module)
        for module in (quick, native)
    ]
    assert_same(*found)
    assert bool(ran) == (loop == "kernel")


def test_the_masks_are_bit_for_bit_those_of_pytorch(loop: str) -> None:
    """Where the lower layer gives ones, and the upper one passes on what it gets."""
    for layout in ({}, {"batch_first": True}):
        found = []
        for module in pair("relu", loop, torch.float32, num_layers=2, dropout=0.3, **layout):
            for parameter in module.parameters():
                torch.nn.init.zeros_(parameter)
            torch.nn.init.ones_(module.bias_ih_l0)
            torch.nn.init.eye_(module.weight_ih_l1)
            torch.manual_seed(3)
            found.append([module(torch.zeros(61, 17, INPUT))[0] for _ in range(2)])
        for one, other in zip(*found, strict=True):
            assert torch.equal(one, other)
            assert one.unique().tolist() == [0, pytest.approx(1 / 0.7)]


def test_nothing_is_drawn_where_nothing_is_dropped(loop: str, ran: list[str]) -> None:
    for dropout, layers, training in ((0.0, 2, True), (RATE, 1, True), (RATE, 2, False)):
        quick, native = pair("gru", loop, num_layers=layers)
        ran.clear()
        for module in (quick, native):
            module.train(training).dropout = dropout
        x = drawn(TIME, BATCH, INPUT)
        before = torch.get_rng_state()
        assert_all_close(pulled(quick, x), pulled(native, x))
        assert torch.equal(torch.get_rng_state(), before)
        assert ran == ["forward", "backward"]  # the whole stack at once


@every_cell
def test_trains_to_the_same_losses(cell: str, loop: str) -> None:
    found = []
    for module in pair(cell, loop, dropout=RATE, **STACK):
        torch.manual_seed(6)
        optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
        losses = []
        for _ in range(5):
            optimiser.zero_grad()
            loss = module(drawn_x())[0].square().mean()
            loss.backward()
            optimiser.step()
            losses.append(loss.detach())
        found.append(losses)
    assert_all_close(*found)


# --- Lengths ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_first", [True, False], ids=["batch first", "time first"])
@every_cell
def test_lengths_are_packed_rows_without_the_empty_ones(cell: str, batch_first: bool, loop: str, ran) -> None:
    stack = {**STACK, "batch_first": batch_first}
    quick, native = pair(cell, loop, dropout=RATE, **stack)
    native.batch_first = True
    x, hx = drawn(4, TIME, INPUT), state(cell, 4, 4)
    rows = torch.tensor([0, 1, 3])

    def by_lengths() -> list[Any]:
        turned = x if batch_first else x.transpose(0, 1)
        y, final = quick(turned, hx, torch.tensor([4, 11, 0, 7]))
        y = y if batch_first else y.transpose(0, 1)
        assert not y[2].any()
        assert not y[0, 4:].any()
        for part, first in zip(parts(final), parts(hx), strict=True):
            assert torch.equal(part[:, 2], first[:, 2])
        outputs = [y[rows], *(part[:, rows] for part in parts(final))]
        return differentiated(outputs, [x, *parts(hx), *quick.parameters()])

    def by_packing() -> list[Any]:
        given = [part[:, rows] for part in parts(hx)]
        outputs = packed(native, x[rows], tuple(given) if cell == "lstm" else given[0])
        return differentiated(outputs, [x, *parts(hx), *native.parameters()])

    assert_same(seeded(by_lengths), seeded(by_packing))
    assert bool(ran) == (loop == "kernel")


def test_full_rows_are_as_without_lengths() -> None:
    quick, _ = pair("lstm", "kernel", dropout=RATE, **STACK)
    for x, lengths in ((drawn_x(), [TIME] * BATCH), (drawn(TIME, INPUT), [TIME])):
        found = []
        for given in (None, torch.tensor(lengths)):
            torch.manual_seed(6)
            y, final = quick(x, None, given)
            found.append([y, *final, torch.rand(1)])
        assert_same(*found)


@pytest.mark.usefixtures("loop")
def test_rows_without_steps_draw_nothing() -> None:
    quick, _ = pair("gru", "kernel", dropout=RATE, **STACK)
    hx = state("gru")
    before = torch.get_rng_state()
    y, final = quick(drawn_x(), hx, torch.zeros(BATCH, dtype=torch.int64))
    assert torch.equal(torch.get_rng_state(), before)
    assert not y.any()
    assert torch.equal(final, hx)
    (gradient,) = torch.autograd.grad(final.sum(), [hx])
    assert torch.equal(gradient, torch.ones_like(hx))


def test_padding_is_not_read() -> None:
    quick, _ = pair("gru", "kernel", dropout=RATE, **STACK)
    clean, dirty = drawn_x(), drawn_x().detach()
    for row, length in enumerate(LENGTHS):
        dirty[row, length:] = torch.nan
    dirty.requires_grad_()

    def through(x: Any) -> list[Any]:
        y, final = quick(x, None, torch.tensor(LENGTHS))
        return [y, final, *torch.autograd.grad(y.sum() + final.sum(), [x, *quick.parameters()])]

    assert_same(seeded(through, dirty), seeded(through, clean))


# --- Gradients -------------------------------------------------------------------------------------------------------


@every_cell
def test_second_derivatives_keep_the_masks(cell: str, loop: str) -> None:
    quick, native = pair(cell, loop, dropout=RATE, **STACK)
    x, found = drawn_x(), []
    for module in (quick, native):
        torch.manual_seed(6)
        outputs = [module(x)[0]]
        before = torch.get_rng_state()
        found.append(differentiated(outputs, [x, *module.parameters()]))
        assert torch.equal(torch.get_rng_state(), before)
    assert_all_close(*found)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints(reentrant: bool, loop: str) -> None:
    quick, _ = pair("gru", loop, dropout=RATE, **STACK)
    x = drawn_x()
    torch.manual_seed(6)
    plain = torch.autograd.grad(quick(x)[0].square().sum(), [*quick.parameters()])
    torch.manual_seed(6)
    checkpoint(quick, x, use_reentrant=reentrant)[0].square().sum().backward()
    for parameter, gradient in zip(quick.parameters(), plain, strict=True):
        assert torch.equal(parameter.grad, gradient)


@every_cell
def test_writes_to_the_outputs_before_the_backward_pass(cell: str, loop: str) -> None:
    found = []
    for module in pair(cell, loop, dropout=RATE, **STACK):
        torch.manual_seed(6)
        y, final = module(drawn_x())
        loss = y.sum() + parts(final)[0].square().sum()
        y.mul_(3)
        for part in parts(final)[1:]:  # the loss needs the first
            part.add_(1)
        loss.backward()
        found.append([parameter.grad for parameter in module.parameters()])
    assert_all_close(*found)


@pytest.mark.parametrize("trained", ["weight_hh_l1", "bias_ih_l0_reverse", None])
def test_what_is_not_asked_for(trained: str | None, loop: str) -> None:
    """One parameter alone, or x alone."""
    found = []
    for module in pair("gru", loop, dropout=RATE, **STACK):
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name == trained)
        x = drawn_x().requires_grad_(trained is None)
        found.append(seeded(pulled, module, x))
    assert_same(*found)
    assert len(found[0]) == 4


def test_gradients_of_several_losses_at_once(loop: str) -> None:
    found = []
    for module in pair("gru", loop, dropout=RATE, **STACK):
        torch.manual_seed(6)
        y = module(drawn_x())[0]
        cotangents = drawn(3, *y.shape, seed=9).detach()
        found.append(torch.autograd.grad(y, [*module.parameters()], cotangents, is_grads_batched=True))
    assert_all_close(*found)


# --- The module ------------------------------------------------------------------------------------------------------


def test_computed_weights(loop: str, ran: list[str]) -> None:
    found = []
    for module in pair("gru", loop, dropout=RATE, **STACK):
        for name in ("weight_hh_l0", "weight_ih_l1_reverse"):
            torch.nn.utils.parametrizations.weight_norm(module, name)
        found.append(seeded(pulled, module, drawn_x()))
    assert_same(*found)
    assert ran


@pytest.mark.parametrize("bias", ["none", "single", "double"])
@pytest.mark.parametrize("cell", ["simple_rnn", "lstm", "gru"])
def test_every_form_of_bias(cell: Any, bias: Any) -> None:
    spec = mr.RecurrentSpec(cell, INPUT, HIDDEN, num_layers=2, bias=bias, dtype="float64")
    weights = mr.initialise(spec, seed=3)
    found = []
    for implementation in ("fast", "native"):
        module = mr.build(weights, "torch", implementation=implementation).native
        module.dropout = RATE
        found.append(seeded(pulled, module.train(), drawn_x()))
    assert_same(*found)


def test_copies(loop: str, ran: list[str]) -> None:
    quick, _ = pair("gru", loop, dropout=RATE, **STACK)
    expected = seeded(pulled, quick, drawn_x())
    file = io.BytesIO()
    torch.save(quick, file)
    file.seek(0)
    ran.clear()
    for other in (deepcopy(quick), torch.load(file, weights_only=False)):
        assert_same(seeded(pulled, other, drawn_x()), expected)
    assert len(ran) == 8


def test_of_a_frozen_layer() -> None:
    """Its constants are of the whole stack; with dropout they are only checked."""
    quick, native = pair("lstm", "kernel", dropout=RATE, **STACK)
    quick.freeze()
    with torch.no_grad():
        assert_same(seeded(lambda m: m(drawn_x())[:1], quick), seeded(lambda m: m(drawn_x())[:1], native))
        assert quick.plan(BATCH, TIME).implementation == "fast"
        assert quick.eval().plan(BATCH, TIME).implementation == "frozen"
        assert_close(quick(drawn_x())[0], native.eval()(drawn_x())[0])
        quick.train().weight_hh_l1.mul_(2)
        with pytest.raises(mr.InvalidCall, match="weight_hh_l1 has changed"):
            quick(drawn_x())


def test_a_plan_says_what_runs(loop: str) -> None:
    quick, _ = pair("gru", loop, dropout=RATE, **STACK)
    plan = quick.plan(BATCH, TIME, gradients=True)
    assert plan.implementation == "fast"
    assert "for each layer, and PyTorch's dropout between them" in plan.sentence
    assert "dropout" not in quick.eval().plan(BATCH, TIME, gradients=True).sentence


def test_where_pytorchs_own_is_faster_it_runs() -> None:
    """A call for each layer is dear where there are few steps."""
    for kind, steps in ((FastRNN, 4), (FastGRU, 2), (FastLSTM, 1)):
        module = kind(64, 64, num_layers=2, dropout=RATE, loop="kernel")
        for gradients in (True, False):
            chosen = [module.plan(20, time, gradients=gradients).implementation for time in range(1, 6)]
            assert chosen == ["native"] * (steps - 1) + ["fast"] * (6 - steps)
    assert "with dropout between layers something faster is known from 4 steps on" in str(
        facts.refuses("kernel", mr.RecurrentSpec("simple_rnn", 64, 64), 20, 3, True, True)
    )
    quick, native = pair("simple_rnn", "kernel", dropout=RATE, **STACK)
    for steps in (3, 4):
        x = drawn(BATCH, steps, INPUT)
        assert_same(seeded(pulled, quick, x), seeded(pulled, native, x))


def test_what_pytorch_transforms_is_its_own(ran: list[str]) -> None:
    quick, native = pair("gru", "kernel", dropout=RATE, **STACK)
    x = drawn_x().detach()
    found = []
    for module in (quick, native):
        torch.manual_seed(6)
        found.append([torch.func.grad(lambda x, m=module: m(x)[0].sum())(x), torch.rand(1)])
    assert_same(*found)
    assert not ran
