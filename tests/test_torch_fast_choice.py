"""What a fast layer of PyTorch runs: a loop, or PyTorch's own layer where that is as fast or alone can do it."""

import numpy as np
import pytest

import multirnn as mr
from multirnn import kernel

torch = pytest.importorskip("torch")

from multirnn_torch import facts, fast  # noqa: E402
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
    assert_close,
    drawn,
    drawn_x,
    each_loop,  # noqa: F401
    every_cell,
    one_thread,  # noqa: F401
    pair,
    pulled,
    what_ran,  # noqa: F401
)


def test_an_unknown_loop_is_refused() -> None:
    with pytest.raises(mr.InvalidCall, match=r"'kernel', 'tensors'.*not 'Kernel'"):
        FastRNN(INPUT, HIDDEN, loop="Kernel")


def test_without_the_kernel_tensors_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "missing", lambda: "no compiler")
    monkeypatch.setattr(fast, "slower", lambda *_: None)
    native = FastRNN(INPUT, HIDDEN)
    assert "PyTorch's operations" in native.plan(BATCH, TIME, gradients=True).sentence
    assert native(drawn(TIME, BATCH, INPUT, dtype=torch.float32))[0].shape == (TIME, BATCH, HIDDEN)


def test_a_plan_says_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = mr.build(mr.RecurrentSpec("lstm", 5, 11), FAST)
    monkeypatch.setattr(fast, "slower", lambda *_: "measured")
    plan = layer.plan(BATCH, TIME)
    assert plan.implementation == "native"
    assert plan.sentence == "torch.nn.LSTM itself: measured"
    y, _ = layer.native(drawn(BATCH, TIME, 5, dtype=torch.float32))
    assert "Recurrence" not in type(y.grad_fn).__name__
    monkeypatch.setattr(fast, "slower", lambda *_: None)
    assert layer.plan(BATCH, TIME).implementation == "fast"
    layer.native.bfloat16()
    assert "bfloat16" in layer.plan(BATCH, TIME).sentence


def test_dropout_and_projections_are_those_of_pytorch(loop: str, ran: list[str]) -> None:
    quick, native = pair("gru", loop, dropout=0.5, **STACK)
    for module in (quick, native):
        torch.manual_seed(5)
        module.dropped = module(drawn_x())[0]
    assert torch.equal(quick.dropped, native.dropped)
    assert not ran
    assert "dropout=0.5" in quick.plan(BATCH, TIME).sentence
    assert quick.eval().plan(BATCH, TIME).implementation == "fast"
    assert_close(quick(drawn_x())[0], native.eval()(drawn_x())[0])
    assert ran == ["forward"]
    projecting = FastLSTM(INPUT, HIDDEN, proj_size=3, loop=loop)
    assert projecting(drawn(TIME, INPUT, dtype=torch.float32))[0].shape == (TIME, 3)
    assert "proj_size=3" in projecting.plan(BATCH, TIME).sentence


@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch has no CUDA device here")
@every_cell
def test_on_cuda_it_is_cudnn(cell: str, loop: str, ran: list[str]) -> None:
    quick, native = pair(cell, loop, **STACK)
    x = drawn_x().cuda()
    assert_all_close([t.cpu() for t in pulled(quick.cuda(), x)], [t.cpu() for t in pulled(native.cuda(), x)])
    assert not ran
    assert "cuda" in quick.plan(BATCH, TIME).sentence


def test_the_threads_of_pytorch_are_sent_home_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        monkeypatch.setattr(loop_by_kernel, "LARGE", 0)
        pauses: list[int] = []
        pause = loop_by_kernel._pause()
        if pause is None:
            pytest.skip("the OpenMP of this PyTorch has no omp_pause_resource_all")
        monkeypatch.setattr(loop_by_kernel, "_pause", lambda: lambda kind: pauses.append(pause(kind)))
        weights = mr.initialise(mr.RecurrentSpec("lstm", 5, 11, bias="double"), seed=3)
        layer, large = mr.build(weights, "torch", implementation="fast"), torch.ones(1_000_000)
        x = np.random.default_rng(0).standard_normal((3, 7, 5)).astype("float32")
        wanted = mr.build(weights.astype("float64"), "numpy")(x.astype("float64"))
        for _ in range(3):
            output = layer(x)
            assert mr.difference(output.sequence, wanted.sequence).normwise <= mr.tolerance("float32")
            assert float((large + 1).sum()) == 2_000_000
        assert pauses == [0, 0, 0]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_where_the_kernel_is_known_to_be_faster() -> None:
    """Few steps of all rows, where the weights are not packed, or enough of them to win the packing back."""
    large, small = mr.RecurrentSpec("gru", 512, 512), mr.RecurrentSpec("gru", 64, 64)

    def known(spec: mr.RecurrentSpec, batch: int, time: int) -> bool:
        return facts.slower("kernel", spec, batch, time, gradients=False) is None

    assert known(large, 1, 1)
    assert known(large, 8, 1)
    assert known(large, 1, 40)
    assert not known(large, 9, 1)
    assert known(large, 9, 2)
    assert all(known(small, batch, time) for batch in (1, 128) for time in (1, 40))
    assert known(mr.RecurrentSpec("lstm", 512, 512), 128, 1)
    reason = facts.slower("kernel", large, 128, 1, gradients=False)
    assert reason is not None
    assert "from 2 steps on, or up to 8 steps of all rows" in reason
