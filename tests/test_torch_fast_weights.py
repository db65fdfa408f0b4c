"""The weights of PyTorch's fast layers are those of now: changed, copied, tied, trained."""

import copy
import io
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import multirnn as mr
from multirnn.numerics import draw_call

torch = pytest.importorskip("torch")

from multirnn_torch.fast import FastGRU, FastLSTM, FastRNN  # noqa: E402
from torch.nn.utils import prune  # noqa: E402
from torch_fast_pairs import (  # noqa: E402
    STACK,
    Through,
    assert_all_close,
    assert_close,
    drawn_x,
    each_loop,  # noqa: F401
    every_cell,
    one_thread,  # noqa: F401
    pair,
    pulled,
    what_ran,  # noqa: F401
)


def replaced(native) -> None:
    native.weight_hh_l0 = torch.nn.Parameter(native.weight_hh_l0.detach() * 2)


def moved(native) -> None:
    native.bias_ih_l0.data = native.bias_ih_l0.data * 3


def stepped(native) -> None:
    native.zero_grad()
    native(drawn_x(dtype=native.weight_hh_l0.dtype))[0].square().sum().backward()
    torch.optim.Adam(native.parameters(), lr=0.1).step()


CHANGES = {
    "in place": lambda native: native.weight_ih_l1.detach().mul_(2),
    "through data": lambda native: native.weight_hh_l0.data.mul_(2),
    "through NumPy": lambda native: native.weight_hh_l0_reverse.detach().numpy().__imul__(2),
    "a bias through data": lambda native: native.bias_hh_l1.data.add_(1),
    "moved": moved,
    "replaced": replaced,
    "a step": stepped,
    "state_dict": lambda native: native.load_state_dict({k: 2 * v for k, v in native.state_dict().items()}),
    "float": lambda native: native.float(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@every_cell
def test_weights_are_never_stale(cell: str, change: Callable, loop: str, ran: list[str]) -> None:
    quick, native = pair(cell, loop, **STACK)
    x = drawn_x()
    with torch.no_grad():
        before = quick(x)[0]
    change(quick)
    change(native)
    x = x.detach().to(quick.weight_hh_l0.dtype)
    with torch.no_grad():
        assert not torch.equal(quick(x)[0].double(), before)
    assert_all_close(pulled(quick, x), pulled(native, x))
    assert ran


@every_cell
def test_copies_stand_alone(cell: str, loop: str, ran: list[str]) -> None:
    quick, native = pair(cell, loop, **STACK)
    x = drawn_x()
    quick(x)[0].sum().backward()  # what a call leaves behind must not hinder the copy

    def saved(native):
        file = io.BytesIO()
        torch.save(native, file)
        file.seek(0)
        return torch.load(file, weights_only=False)

    for copied in (copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module)), saved):
        other = copied(quick)
        assert type(other) is type(quick)
        assert other.loop == loop
        assert torch.equal(other(x)[0], quick(x)[0])
        with torch.no_grad():
            other.weight_hh_l0.zero_()
        assert not torch.equal(other(x)[0], quick(x)[0])
        assert_close(quick(x)[0], native(x)[0])
    assert list(quick.state_dict()) == list(native.state_dict())


@every_cell
def test_tied_and_parametrised(cell: str, loop: str, ran: list[str]) -> None:
    quick, native = pair(cell, loop, **STACK)
    x = drawn_x()
    for module in (quick, native):
        torch.nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
        prune.random_unstructured(module, "weight_ih_l0", amount=0.0)
        module.weight_hh_l1 = module.weight_hh_l1_reverse
        module(x)[0].square().sum().backward()
    assert ran == ["forward", "backward"]
    for one, other in zip(quick.parameters(), native.parameters(), strict=True):
        assert_close(one.grad, other.grad)


def test_a_constant_in_the_place_of_a_bias(loop: str) -> None:
    layer = Through(loop).build(mr.initialise(mr.RecurrentSpec("lstm", 5, 11, bias="single"), seed=3))
    x, _, _ = draw_call(layer.spec)
    before = layer(x).sequence
    layer.native.bias_hh_l0.add_(1)
    assert not np.array_equal(layer(x).sequence, before)


@every_cell
def test_training_goes_the_same_way(cell: str, loop: str) -> None:
    losses = []
    for module in pair(cell, loop, **STACK):
        optimiser = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
        course = []
        for _ in range(5):
            optimiser.zero_grad()
            loss = module(drawn_x().detach())[0].square().mean()
            loss.backward()
            optimiser.step()
            course.append(loss.item())
        losses.append(np.array(course))
    assert losses[0][-1] < losses[0][0]
    assert_close(*losses)


RANK = """
import sys
import numpy as np
import torch
from multirnn_torch import facts
from multirnn_torch.fast import FastGRU, FastLSTM, FastRNN

facts.refuses = lambda *_: None
rank, folder, loop = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
arrays = {}
x = torch.randn(4, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
for kind in (FastRNN, FastGRU, *([FastLSTM] if loop == "kernel" else [])):
    torch.manual_seed(1)
    layer = kind(5, 11, batch_first=True, dtype=torch.float64, loop=loop)
    wrapped = torch.nn.parallel.DistributedDataParallel(layer)
    output, _ = wrapped(x[rank::2])
    assert "Recurrence" in type(output.grad_fn).__name__, output.grad_fn
    output.square().sum().backward()
    arrays |= {f"{kind.__name__}/{name}": p.grad.numpy() for name, p in layer.named_parameters()}
if not rank:
    np.savez(f"{folder}/gradients.npz", **arrays)
torch.distributed.destroy_process_group()
"""


@pytest.mark.skipif(
    not (torch.distributed.is_available() and sys.platform == "linux"),
    reason="needs torch.distributed with gloo, and lo",
)
def test_trains_on_two_ranks(tmp_path: Path, loop: str) -> None:
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RANK]
    for attempt in range(2):  # the loopback can be slow to come up: once more
        folder = tmp_path / str(attempt)
        folder.mkdir()
        ranks = [
            subprocess.Popen(
                [*command, str(rank), str(folder), loop], env=environment, stderr=subprocess.PIPE, text=True
            )
            for rank in range(2)
        ]
        try:
            errors = [rank.communicate(timeout=120)[1] for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
        if not any(rank.returncode for rank in ranks):
            break
    assert not any(rank.returncode for rank in ranks), "\n".join(errors)
    x = torch.randn(4, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with np.load(folder / "gradients.npz") as found:
        own_layers = {FastRNN: torch.nn.RNN, FastLSTM: torch.nn.LSTM, FastGRU: torch.nn.GRU}
        if loop == "tensors":  # it has no LSTM
            del own_layers[FastLSTM]
        for kind, own in own_layers.items():
            torch.manual_seed(1)
            native = own(5, 11, batch_first=True, dtype=torch.float64)
            native(x)[0].square().sum().backward()
            for name, parameter in native.named_parameters():
                assert_close(2 * found[f"{kind.__name__}/{name}"], parameter.grad)  # DDP takes the mean of two
