"""PyTorch's layers made fast: the same function through either loop, there, back and back again."""

import pytest

import multirnn as mr
from multirnn.numerics import draw_call
from multirnn.testing import cases

torch = pytest.importorskip("torch")

from torch_fast_pairs import (  # noqa: E402
    BATCH,
    FAST,
    HIDDEN,
    INPUT,
    STACK,
    TIME,
    Through,
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

# --- The same function -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", [pytest.param(check, id=name) for name, check in cases()])
def test_conformance(check, loop: str) -> None:
    check(Through(loop))


def test_conformance_of_what_is_chosen() -> None:
    for _, check in cases()[::9]:
        check(FAST)


@pytest.mark.parametrize("bias", ["none", "single", "double"])
@pytest.mark.parametrize("cell", ["simple_rnn", "lstm", "gru"])
def test_every_form_runs_through_the_loop(cell: str, bias: str, loop: str, ran: list[str]) -> None:
    if (cell, loop) == ("lstm", "tensors"):
        pytest.skip("the loop of tensors has no LSTM")
    layer = Through(loop).build(mr.initialise(mr.RecurrentSpec(cell, 5, 11, bias=bias), seed=3))
    x, state, _ = draw_call(layer.spec)
    layer(x, state)
    layer.vjp(x, state, cotangent=layer(x, state))
    assert ran == ["forward", "forward", "forward", "backward"]
    assert sum(p.numel() for p in layer.native.parameters()) == layer.parameter_count == layer.spec.parameter_count


@pytest.mark.parametrize("given", [False, True], ids=["zero state", "state"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch first"])
@pytest.mark.parametrize(
    "stack", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}], ids=["one", "stack", "no bias"]
)
@every_cell
def test_gradients_are_those_of_pytorch(cell: str, stack: dict, batch_first: bool, given: bool, loop: str, ran) -> None:
    quick, native = pair(cell, loop, batch_first=batch_first, **stack)
    x = drawn_x() if batch_first else drawn(TIME, BATCH, INPUT)
    passes = 4 if "bidirectional" in stack else 1
    hx = tuple(drawn(passes, BATCH, HIDDEN, seed=seed) for seed in (5, 6)[: 1 + (cell == "lstm")])
    hx = None if not given else hx if cell == "lstm" else hx[0]
    assert_all_close(pulled(quick, x, hx), pulled(native, x, hx))
    assert ran == ["forward", "backward"]
    with torch.no_grad():
        assert_close(quick(x, hx)[0], native(x, hx)[0])
        assert quick(x, hx)[0].stride() == quick(x, hx)[0].contiguous().stride()


@every_cell
def test_unbatched_and_strided(cell: str, loop: str, ran: list[str]) -> None:
    quick, native = pair(cell, loop)
    assert_all_close(pulled(quick, drawn(TIME, INPUT)), pulled(native, drawn(TIME, INPUT)))
    for x in (
        drawn(BATCH, TIME, INPUT).transpose(0, 1),
        drawn(TIME, BATCH, 2 * INPUT)[..., ::2],
        drawn(TIME, 1, INPUT).expand(TIME, BATCH, INPUT),
        torch.view_as_complex(drawn(TIME, BATCH, INPUT, 2)).conj().imag,
    ):
        assert_all_close(pulled(quick, x), pulled(native, x))
    assert len(ran) == 2 * 4  # the last is negated when it is read, and left to PyTorch


@every_cell
def test_what_is_not_asked_for(cell: str, loop: str) -> None:
    """Gradients of some outputs, to some inputs."""
    quick, native = pair(cell, loop, **STACK)
    for module in (quick, native):
        module.weight_ih_l0.requires_grad_(False)
        module.bias_hh_l1_reverse.requires_grad_(False)
    x = drawn_x().detach()
    for choose in (lambda y, final: y.sum(), lambda y, final: parts(final)[-1].square().sum()):
        for module in (quick, native):
            module.zero_grad()
            choose(*module(x)).backward()
        for (name, one), (_, other) in zip(quick.named_parameters(), native.named_parameters(), strict=True):
            assert (one.grad is None) == (other.grad is None), name
            if other.grad is not None and other.grad.any():
                assert_close(one.grad, other.grad)


@every_cell
def test_packed(cell: str, loop: str, ran: list[str]) -> None:
    quick, native = pair(cell, loop, **STACK)
    x = drawn_x()
    hx = tuple(drawn(4, BATCH, HIDDEN, seed=seed) for seed in (5, 6))
    found = []
    for module in (quick, native):
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor([4, 11, 7]), True, enforce_sorted=False)
        y, final = module(packed, hx if cell == "lstm" else hx[0])
        assert torch.equal(y.batch_sizes, packed.batch_sizes)
        padded, lengths = torch.nn.utils.rnn.pad_packed_sequence(y, batch_first=True)
        assert lengths.tolist() == [4, 11, 7]
        outputs = [padded, *parts(final)]
        leaves = [x, *hx[: 1 + (cell == "lstm")], *module.parameters()]
        loss = sum(output.square().sum() for output in outputs)
        gradients = torch.autograd.grad(loss, leaves, create_graph=True)
        found.append([*outputs, *gradients, *torch.autograd.grad(gradients[0].square().sum(), leaves)])
    assert_all_close(*found)
    assert bool(ran) == (loop == "kernel")


@pytest.mark.parametrize("sizes", [[3, 2, 2], [2, 3, 1], [3, 3, 0], [3, 2]])
def test_packed_rows_that_do_not_add_up_are_left_to_pytorch(sizes: list[int]) -> None:
    """Their memory would be read beyond its end."""
    quick, native = pair("gru", "kernel")
    packed = torch.nn.utils.rnn.PackedSequence(drawn(6, INPUT), torch.tensor(sizes))
    results = []
    for module in (quick, native):
        try:
            results.append(module(packed)[0].data.shape)
        except RuntimeError as error:
            results.append(str(error))
    assert results[0] == results[1]


@every_cell
@pytest.mark.parametrize("batch_first", [False, True])
def test_lengths(cell: str, batch_first: bool, loop: str) -> None:
    quick, _ = pair(cell, loop, batch_first=batch_first)
    x = drawn_x()
    y, final = quick(x if batch_first else x.transpose(0, 1), None, torch.tensor([4, 0, 11]))
    alone, state = quick(x[:1, :4] if batch_first else x[:1, :4].transpose(0, 1))
    rows = y if batch_first else y.transpose(0, 1)
    assert_close(rows[:1, :4], alone if batch_first else alone.transpose(0, 1))
    assert_close(parts(final)[0][:, :1], parts(state)[0])
    assert not rows[0, 4:].any()
    assert not rows[1].any()
    for wrong in ([4, 0, 12], [4, -1, 3], [4, 3]):
        with pytest.raises(mr.InvalidCall, match="lengths"):
            quick(x if batch_first else x.transpose(0, 1), None, torch.tensor(wrong))


@every_cell
def test_says_what_is_wrong_as_pytorch_does(cell: str, loop: str) -> None:
    quick, native = pair(cell, loop, **STACK)
    x = drawn_x()
    for arguments in (
        (x.float(),), (x[..., :2],), (x[:, :0],), (x[:0],), (x[0, 0],), (x, drawn(1, 1, 1)), (x[0], drawn(4, BATCH, HIDDEN)),
    ):  # fmt: skip
        said = []
        for module in (quick, native):
            try:
                said.append(module(*arguments)[0].shape)
            except Exception as error:  # noqa: BLE001  # whatever it is, it has to be the same
                said.append((type(error), str(error)))
        assert said[0] == said[1]
    quick.weight_hh_l0.data = quick.weight_hh_l0.data[:3]
    with pytest.raises(RuntimeError):
        quick(x)


# --- Back again ------------------------------------------------------------------------------------------------------


@every_cell
def test_second_derivatives(cell: str, loop: str, ran: list[str]) -> None:
    quick, _ = pair(cell, loop, batch_first=True)
    x, h = drawn(2, 3, INPUT), [drawn(1, 2, HIDDEN, seed=seed) for seed in (5, 6)[: 1 + (cell == "lstm")]]
    names = [name for name, _ in quick.named_parameters()]

    def run(x, *others):
        hx, weights = others[: len(h)], others[len(h) :]
        y, final = torch.func.functional_call(
            quick, dict(zip(names, weights, strict=True)), (x, tuple(hx) if len(hx) == 2 else hx[0])
        )
        return (y, *parts(final))

    inputs = (x, *h, *(parameter.detach().clone().requires_grad_() for parameter in quick.parameters()))
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)
    assert set(ran) == {"forward", "backward"}


@every_cell
def test_a_weight_that_depends_on_the_input(cell: str, loop: str) -> None:
    """Each path of the gradient is followed once."""
    found = []
    for module in pair(cell, loop, **STACK):
        x = drawn_x()
        weights = {name: parameter * (1 + x.mean()) for name, parameter in module.named_parameters()}
        (first,) = torch.autograd.grad(
            torch.func.functional_call(module, weights, (x,))[0].square().sum(), x, create_graph=True
        )
        found.append([first, *torch.autograd.grad(first.square().sum(), [x, *module.parameters()])])
    assert_all_close(*found)


@every_cell
def test_the_output_may_be_written_over(cell: str, loop: str) -> None:
    found = []
    for module in pair(cell, loop, **STACK):
        x = drawn_x()
        y = module(x)[0].relu_()
        found.append([y, *torch.autograd.grad(y.sum(), [x, *module.parameters()])])
    assert_all_close(*found)


@every_cell
def test_back_twice(cell: str, loop: str) -> None:
    quick, _ = pair(cell, loop, **STACK)
    x = drawn_x()
    loss = quick(x)[0].square().sum()
    once = torch.autograd.grad(loss, [x, *quick.parameters()], retain_graph=True)
    assert all(
        torch.equal(a, b) for a, b in zip(once, torch.autograd.grad(loss, [x, *quick.parameters()]), strict=True)
    )


def test_a_weight_changed_in_between_is_an_error(loop: str) -> None:
    quick, _ = pair("gru", loop)
    loss = quick(drawn(TIME, BATCH, INPUT))[0].sum()
    with torch.no_grad():
        quick.weight_hh_l0.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@every_cell
def test_checkpointed(cell: str, loop: str) -> None:
    found = []
    for module in pair(cell, loop, **STACK):
        x = drawn_x()
        y = torch.utils.checkpoint.checkpoint(lambda x, m=module: m(x)[0], x, use_reentrant=False)
        found.append([y, *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])])
    assert_all_close(*found)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes(mode, loop: str) -> None:
    quick, native = pair("lstm", loop, **STACK)
    with mode():
        y, (h, _) = quick(drawn_x())
        again, _ = quick(drawn_x(), (h, h))
        assert_close(again, native(drawn_x(), (h, h))[0])
    assert not y.requires_grad
    quick(drawn_x())[0].sum().backward()
