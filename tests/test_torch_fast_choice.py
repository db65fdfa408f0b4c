"""What a fast layer of PyTorch runs: a loop, or PyTorch's own layer where that is as fast or alone can do it."""

import ctypes
import multiprocessing
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import multirnn as mr
from multirnn import kernel
from multirnn.weights import Array

torch = pytest.importorskip("torch")

from multirnn_torch import facts  # noqa: E402
from multirnn_torch import kernel as loop_by_kernel  # noqa: E402
from multirnn_torch.fast import FastLSTM, FastRNN  # noqa: E402
from torch_fast_pairs import (  # noqa: E402
    BATCH,
    FAST,
    HIDDEN,
    INPUT,
    STACK,
    TIME,
    assert_all_close,
    drawn,
    drawn_x,
    each_loop,  # noqa: F401
    every_cell,
    every_shape_is_fast,
    one_thread,  # noqa: F401
    pair,
    pulled,
    what_ran,  # noqa: F401
)


def test_an_unknown_loop_is_refused() -> None:
    with pytest.raises(mr.InvalidCall, match=r"'kernel', 'tensors'.*not 'Kernel'"):
        FastRNN(INPUT, HIDDEN, loop="Kernel")


def test_without_the_kernel_tensors_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "refuses", lambda: "no compiler")
    monkeypatch.setattr(facts, "refuses", every_shape_is_fast)
    native = FastRNN(INPUT, HIDDEN)
    assert "PyTorch's operations" in native.plan(BATCH, TIME, gradients=True).sentence
    assert native(drawn(TIME, BATCH, INPUT, dtype=torch.float32))[0].shape == (TIME, BATCH, HIDDEN)


def test_a_plan_says_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = mr.build(mr.RecurrentSpec("lstm", 5, 11), FAST)
    monkeypatch.setattr(facts, "refuses", lambda *_: "measured")
    plan = layer.plan(BATCH, TIME)
    assert plan.implementation == "native"
    assert plan.sentence == "torch.nn.LSTM itself: measured"
    y, _ = layer.native(drawn(BATCH, TIME, 5, dtype=torch.float32))
    assert "Recurrence" not in type(y.grad_fn).__name__
    monkeypatch.setattr(facts, "refuses", every_shape_is_fast)
    assert layer.plan(BATCH, TIME).implementation == "fast"
    layer.native.bfloat16()
    assert "bfloat16" in layer.plan(BATCH, TIME).sentence


def test_projections_are_those_of_pytorch(loop: str, ran: list[str]) -> None:
    projecting = FastLSTM(INPUT, HIDDEN, proj_size=3, loop=loop)
    assert projecting(drawn(TIME, INPUT, dtype=torch.float32))[0].shape == (TIME, 3)
    assert not ran
    assert "proj_size=3" in projecting.plan(BATCH, TIME).sentence


@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch has no CUDA device here")
@every_cell
def test_on_cuda_it_is_cudnn(cell: str, loop: str, ran: list[str]) -> None:
    quick, native = pair(cell, loop, **STACK)
    x = drawn_x().cuda()
    assert_all_close([t.cpu() for t in pulled(quick.cuda(), x)], [t.cpu() for t in pulled(native.cuda(), x)])
    assert not ran
    assert "cuda" in quick.plan(BATCH, TIME).sentence


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


SHARED = mr.RecurrentSpec("lstm", 53, 67, num_layers=2, bidirectional=True, bias="double")  # by two threads, of 7 rows


def shared_call() -> tuple[mr.Layer, Array, Array]:
    """A layer, x, and what comes out of it."""
    weights = mr.initialise(SHARED, seed=3)
    x = np.random.default_rng(0).standard_normal((7, 41, 53)).astype("float32")
    wanted = mr.build(weights.astype("float64"), "numpy")(x.astype("float64"))
    return mr.build(weights, "torch", implementation="fast"), x, wanted.sequence


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch comes with an OpenMP that has GOMP_parallel on Linux only")
@pytest.mark.usefixtures("two_threads")
def test_the_threads_of_pytorch_do_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = loop_by_kernel.lent_pool(os.getpid())
    assert pool
    form = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    lent: list[int] = []

    @form
    def lend(run: int, argument: int, threads: int, flags: int) -> None:
        lent.append(threads)
        form(pool)(run, argument, threads, flags)

    monkeypatch.setattr(loop_by_kernel, "lent_pool", lambda process: ctypes.cast(lend, ctypes.c_void_p).value)
    layer, x, wanted = shared_call()
    large = torch.ones(1_000_000)
    for _ in range(3):
        assert mr.difference(layer(x).sequence, wanted).normwise <= mr.tolerance("float32")
        layer.vjp(x, cotangent=mr.Output(wanted.astype("float32"), None))
        assert float((large + 1).sum()) == 2_000_000
    assert lent == [0] * 9  # all of them, or some would be ended


def in_a_child(queue: Any, layer: mr.Layer, x: Array, wanted: Array) -> None:
    queue.put((loop_by_kernel.lent_pool(os.getpid()), mr.difference(layer(x).sequence, wanted).normwise))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.usefixtures("two_threads")
def test_a_child_after_fork_has_no_threads_of_pytorch_and_does_without() -> None:
    """In which PyTorch's own layer, with two threads, waits for them for ever."""
    layer, x, wanted = shared_call()
    layer(x)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=in_a_child, args=(queue, layer, x, wanted))
    process.start()
    try:
        lent, off = queue.get(timeout=60)
    finally:
        process.kill()
        process.join()
    assert lent is None
    assert off <= mr.tolerance("float32")


def test_where_the_kernel_is_known_to_be_faster() -> None:
    """Few steps of all rows, where the weights are not packed, or enough of them to win the packing back."""
    large, small = mr.RecurrentSpec("gru", 512, 512), mr.RecurrentSpec("gru", 64, 64)

    def known(spec: mr.RecurrentSpec, batch: int, time: int) -> bool:
        return facts.refuses("kernel", spec, batch, time, gradients=False) is None

    assert known(large, 1, 1)
    assert known(large, 8, 1)
    assert known(large, 1, 40)
    assert not known(large, 9, 1)
    assert known(large, 9, 2)
    assert all(known(small, batch, time) for batch in (1, 128) for time in (1, 40))
    assert known(mr.RecurrentSpec("lstm", 512, 512), 128, 1)
    reason = facts.refuses("kernel", large, 128, 1, gradients=False)
    assert reason is not None
    assert "from 2 steps on, or up to 8 steps of all rows" in reason
