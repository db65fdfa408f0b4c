"""Memory that a call of PyTorch's fast layers reads again: the caller, a hook or another thread may have changed it."""

import pytest

import multirnn as mr
from multirnn import kernel

torch = pytest.importorskip("torch")

from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence  # noqa: E402
from torch_fast_pairs import (  # noqa: E402
    BATCH,
    HIDDEN,
    INPUT,
    STACK,
    TIME,
    assert_all_close,
    drawn,
    drawn_x,
    each_loop,  # noqa: F401
    every_cell,
    one_thread,  # noqa: F401
    pair,
    parts,
    what_ran,  # noqa: F401
)

LENGTHS = [9, 4, 2]


def gradients(module, outputs):
    return torch.autograd.grad(sum(output.square().sum() for output in outputs), list(module.parameters()))


def ragged(module, x, lengths):
    y, final = module(x, None, lengths)
    return [y, *parts(final)]


# --- The caller's memory -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [[2, 9, 9], [10**6] * 3, [-1, 0, 0]])
@every_cell
def test_lengths_may_be_written_over(cell: str, after: list[int], loop: str) -> None:
    quick, _ = pair(cell, loop, **STACK)
    x, lengths = drawn_x(), torch.tensor(LENGTHS)
    expected = gradients(quick, ragged(quick, x, torch.tensor(LENGTHS)))
    outputs = ragged(quick, x, lengths)
    lengths.copy_(torch.tensor(after))
    assert_all_close(gradients(quick, outputs), expected)


@every_cell
def test_one_buffer_of_lengths_for_two_halves_of_a_batch(cell: str, loop: str) -> None:
    """Through the memory of a NumPy array, which has no version that PyTorch could count."""
    quick, _ = pair(cell, loop, **STACK)
    x, halves = drawn_x(), ([9, 4, 2], [1, 11, 0])
    expected = gradients(quick, [y for half in halves for y in ragged(quick, x, torch.tensor(half))])
    buffer = torch.tensor(halves[0]).numpy()
    outputs = []
    for half in halves:
        buffer[:] = half
        outputs += ragged(quick, x, torch.from_numpy(buffer))
    assert_all_close(gradients(quick, outputs), expected)


@every_cell
def test_the_sizes_of_packed_rows_may_be_written_over(cell: str, loop: str) -> None:
    """The gradient's own gradient packs the rows again."""
    quick, _ = pair(cell, loop, **STACK)
    found = []
    for spoil in (False, True):
        x = drawn_x()
        packed = pack_padded_sequence(x, torch.tensor(LENGTHS), batch_first=True)
        sizes = packed.batch_sizes.clone()
        y, final = quick(PackedSequence(packed.data, sizes))
        if spoil:
            sizes.fill_(1)
        loss = sum(output.square().sum() for output in (y.data, *parts(final)))
        (first,) = torch.autograd.grad(loss, x, create_graph=True)
        found.append([first, *torch.autograd.grad(first.square().sum(), list(quick.parameters()))])
    assert_all_close(*found)


@pytest.mark.parametrize("written", ["x", "h", "weight_hh_l1"])
@every_cell
def test_a_tensor_of_the_callers_that_was_written_over_is_an_error(cell: str, written: str, loop: str) -> None:
    quick, _ = pair(cell, loop, **STACK)
    x, h = drawn_x(), [drawn(4, BATCH, HIDDEN, seed=seed) for seed in (5, 6)[: 1 + (cell == "lstm")]]
    loss = quick(x, tuple(h) if len(h) == 2 else h[0])[0].sum()
    with torch.no_grad():
        {"x": x, "h": h[0]}.get(written, quick.weight_hh_l1).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_lengths_of_any_strides(loop: str) -> None:
    quick, _ = pair("gru", loop, batch_first=True)
    x, every_other = drawn_x(), torch.tensor([9, 77, 4, 77, 2, 77])[::2]
    assert_all_close(ragged(quick, x, every_other), ragged(quick, x, torch.tensor(LENGTHS)))
    with pytest.raises(mr.InvalidCall, match="int64 on the CPU"):
        quick(x, None, torch.tensor(LENGTHS, dtype=torch.int32))


# --- Hooks on what is saved ----------------------------------------------------------------------------------------


def through_numpy(tensor):
    return tensor.detach().numpy().copy()


def one_byte_on(tensor):
    """At an address that is aligned to the elements and to nothing more."""
    size = tensor.element_size()
    memory = torch.empty(tensor.numel() * size + 64 + size, dtype=torch.uint8)
    start = -memory.data_ptr() % 64 + size
    return memory[start : start + tensor.numel() * size].view(tensor.dtype).view(tensor.shape).copy_(tensor)


def last_axis_first(tensor):
    """The same numbers with other strides."""
    return tensor.detach().movedim(-1, 0).contiguous().movedim(0, -1) if tensor.dim() else tensor.detach()


HOOKS = {
    "NumPy": (through_numpy, torch.from_numpy),
    "no alignment": (one_byte_on, lambda tensor: tensor),
    "other strides": (last_axis_first, lambda tensor: tensor),
    "double": (lambda tensor: (tensor.dtype, tensor.double()), lambda kept: kept[1].to(kept[0])),
}


@pytest.mark.parametrize("hooks", HOOKS.values(), ids=HOOKS)
@every_cell
def test_saved_tensors_may_be_kept_elsewhere(cell: str, hooks: tuple, loop: str, ran: list[str]) -> None:
    quick, native = pair(cell, loop, **STACK)
    found = []
    for module in (quick, native):
        x = drawn_x()
        with torch.autograd.graph.saved_tensors_hooks(*hooks):
            y, final = module(x)
        found.append(torch.autograd.grad(y.sum() + parts(final)[-1].sum(), [x, *module.parameters()]))
    assert_all_close(*found)
    assert ran == ["forward", "backward"]


@every_cell
def test_saved_on_the_cpu_and_on_disk(cell: str, loop: str, tmp_path) -> None:
    quick, native = pair(cell, loop, **STACK)

    def to_file(tensor):
        path = tmp_path / str(len(list(tmp_path.iterdir())))
        torch.save(tensor, path)
        return path

    found = []
    for module in (quick, native):
        x = drawn_x()
        with torch.autograd.graph.save_on_cpu(), torch.autograd.graph.saved_tensors_hooks(to_file, torch.load):
            y = module(x)[0]
        found.append(torch.autograd.grad(y.sum(), [x, *module.parameters()]))
    assert_all_close(*found)


@pytest.mark.parametrize("unpack", [lambda tensor: tensor.float(), lambda tensor: tensor[:1]], ids=["dtype", "shape"])
@every_cell
def test_saved_tensors_that_come_back_as_others_are_refused(cell: str, unpack, loop: str) -> None:
    quick, _ = pair(cell, loop, **STACK)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.detach(), unpack):
        y = quick(drawn_x())[0]
    with pytest.raises(mr.InvalidCall, match=r"^hooks on saved tensors .* returned another dtype, shape or device"):
        y.sum().backward()


# --- Other threads -------------------------------------------------------------------------------------------------


def overwritten(module) -> list:
    """Give every weight other memory, as `module.half()` does, and write to what may have been its memory before."""
    sizes = [parameter.shape for parameter in module.parameters()]
    for parameter in module.parameters():
        parameter.data = torch.zeros(1, dtype=parameter.dtype)
    return [torch.full(size, float("nan"), dtype=torch.float64) for size in sizes for _ in range(4)]


@pytest.mark.skipif(kernel.refuses() is not None, reason=str(kernel.refuses()))
@pytest.mark.parametrize("direction", ["forward", "backward"])
@every_cell
def test_weights_that_are_replaced_during_a_call_stay_there(cell: str, direction: str, monkeypatch) -> None:
    """What another thread does while the compiled loop runs without the lock of the interpreter."""
    quick, _ = pair(cell, "kernel", **STACK)
    monkeypatch.setattr("multirnn_torch.facts.refuses", lambda *_: None)
    x = drawn_x()
    expected = torch.autograd.grad(quick(x)[0].sum(), x)
    run, held = getattr(kernel.CompiledRecurrence, direction), []

    def meanwhile(self, *args):
        held.extend(overwritten(quick))
        run(self, *args)

    y = quick(x)[0] if direction == "backward" else None
    monkeypatch.setattr(kernel.CompiledRecurrence, direction, meanwhile)
    y = quick(x)[0] if y is None else y
    if direction == "forward":
        assert not y.isnan().any()
    else:
        assert_all_close(torch.autograd.grad(y.sum(), x), expected)
    assert held


@pytest.mark.skipif(kernel.refuses() is not None, reason=str(kernel.refuses()))
def test_unfrozen_by_another_thread_during_a_call(monkeypatch) -> None:
    quick, _ = pair("gru", "kernel", **STACK)
    x = drawn(BATCH, TIME, INPUT).detach()
    expected = quick(x)[0]
    quick.freeze()
    monkeypatch.setattr("multirnn_torch.recurrence.Constants.check", lambda *_: quick.unfreeze())
    with torch.no_grad():
        assert_all_close([quick(x)[0]], [expected])
