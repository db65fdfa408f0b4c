"""What PyTorch users do with `layer.native`: save, copy, convert, train, compile, wrap."""

import copy
import io
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import multirnn as mr
from multirnn.numerics import draw_call

torch = pytest.importorskip("torch")

from torch_layers import (  # noqa: E402
    assert_close,
    assert_is_spec,
    build,
    every_single,
    one_thread,  # noqa: F401
    states,
    tensor,
)


def saved_and_loaded(native):
    file = io.BytesIO()
    torch.save(native, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def state_carried_over(native):
    spec = mr.read(native).spec
    other = mr.build(spec, "torch", seed=4).native
    other.load_state_dict(native.state_dict())
    return other


def converted_there_and_back(native):
    dtype = native.weight_ih_l0.dtype
    return native.double().to(dtype)


COPIES = [
    copy.deepcopy,
    lambda native: pickle.loads(pickle.dumps(native)),
    saved_and_loaded,
    state_carried_over,
    converted_there_and_back,
]


@pytest.mark.parametrize("copied", COPIES, ids=["deepcopy", "pickle", "save", "state_dict", "double"])
@every_single
def test_a_single_bias_survives(spec: mr.RecurrentSpec, copied) -> None:
    native, x = build(spec).native, tensor(spec)
    expected, _ = native(x)
    expected.sum().backward()  # what a call leaves behind must not hinder the copy
    other = copied(native)
    assert torch.equal(other(x)[0], expected)
    assert_is_spec(other, spec)
    other(x)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in other.parameters())


@every_single
def test_a_single_bias_converts_to_float64(spec: mr.RecurrentSpec) -> None:
    native = build(replace(spec, dtype="float32")).native.double()
    assert {buffer.dtype for buffer in native.buffers()} <= {torch.float64}
    wide = replace(spec, dtype="float64")
    assert_is_spec(native, wide)
    x = tensor(wide)
    assert_close(native(x)[0].detach(), mr.build(mr.read(native), "numpy")(x.numpy()).sequence)


@every_single
def test_a_single_bias_in_functional_call(spec: mr.RecurrentSpec) -> None:
    native, x = build(spec).native, tensor(spec)
    expected = native(x)[0]
    other = mr.build(spec, "torch", seed=4).native
    assert torch.equal(torch.func.functional_call(other, dict(native.named_parameters()), (x,))[0], expected)
    assert not torch.equal(other(x)[0], expected)


@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.Adam])
@every_single
def test_a_step_of_training_is_that_of_a_single_bias(spec: mr.RecurrentSpec, optimiser) -> None:
    """The reference's gradient, in a plain tensor a canonical parameter, gives the step that the module has to make."""
    weights = mr.initialise(spec, seed=3)
    layer, reference = mr.build(weights, "torch"), mr.build(weights.astype("float64"), "numpy")
    x = draw_call(spec)[0]

    wide = x.astype("float64")
    cotangent = mr.Output(2 * reference(wide).sequence, mr.State(*(0 * s for s in states(reference(wide)))))
    gradients = reference.vjp(wide, cotangent=cotangent).weights
    plain = {name: torch.tensor(array).double() for name, array in weights.arrays.items()}
    for array_name, parameter in plain.items():
        parameter.grad = torch.tensor(gradients[array_name])

    layer.native(torch.tensor(x))[0].square().sum().backward()
    for parameters in (layer.native.parameters(), plain.values()):
        optimiser(parameters, lr=0.1, weight_decay=0.1).step()

    moved = layer.weights()
    for array_name, parameter in plain.items():
        assert_close(moved.arrays[array_name], parameter)
        assert not np.array_equal(moved.arrays[array_name], weights.arrays[array_name])
    assert_is_spec(layer.native, spec)


def test_two_biases_move_twice_as_far() -> None:
    moved = {}
    for bias in ("single", "double"):
        spec = mr.RecurrentSpec("simple_rnn", 5, 11, bias=bias, dtype="float64")
        single = mr.initialise(replace(spec, bias="single"), seed=3)
        layer = mr.build(single if bias == "single" else mr.split_biases(single), "torch")
        layer.native(tensor(spec))[0].sum().backward()
        torch.optim.SGD(layer.native.parameters(), lr=0.1).step()
        after = layer.weights()
        folded = after if bias == "single" else mr.fold_biases(after)
        moved[bias] = folded.arrays["layers.0.forward.bias_ih"] - single.arrays["layers.0.forward.bias_ih"]
    assert_close(moved["double"], 2 * moved["single"])


# Traced, PyTorch's own LSTM fails too: aot_autograd asserts that what it saves for the way back are tensors.
@pytest.mark.parametrize(
    ("cell", "allow_rnn"),
    [("simple_rnn", False), ("simple_rnn", True), ("lstm", False), ("gru", False), ("gru", True)],
)
def test_compiles(cell: str, allow_rnn: bool) -> None:
    """By default torch.compile breaks its graph at a recurrent layer; with `allow_rnn` it traces into it."""
    spec = mr.RecurrentSpec(cell, 5, 11, bias="single")
    layer, x = build(spec), tensor(spec)[:, :3]
    expected, _ = layer.native(x)
    gradients = torch.autograd.grad(expected.sum(), list(layer.native.parameters()))
    torch.compiler.reset()
    with torch._dynamo.config.patch(allow_rnn=allow_rnn):
        # aot_eager traces forward and backward as inductor does, and needs no C++ compiler.
        compiled = torch.compile(layer.native, backend="aot_eager")
        actual, _ = compiled(x)
        found = torch.autograd.grad(actual.sum(), list(layer.native.parameters()))
    assert_close(actual.detach(), expected.detach())
    for one, other in zip(found, gradients, strict=True):
        assert_close(one, other)
    assert mr.read(compiled) == layer.weights()


RANK = """
import sys
import numpy as np
import torch
import multirnn as mr
from multirnn.numerics import draw_call

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
arrays = {}
for cell in ("simple_rnn", "lstm", "gru"):
    spec = mr.RecurrentSpec(cell, 5, 11, bias="single", dtype="float64")
    layer = mr.build(spec, "torch", seed=3)
    wrapped = torch.nn.parallel.DistributedDataParallel(layer.native)
    for step in range(2):
        layer.native.zero_grad()
        output, _ = wrapped(torch.tensor(draw_call(spec)[0][rank::2][:2]))
        output.square().sum().backward()
    assert mr.read(wrapped) == layer.weights()
    arrays |= {f"{cell}/{name}": p.grad.numpy() for name, p in layer.native.named_parameters()}
if not rank:
    np.savez(f"{folder}/gradients.npz", **arrays)
torch.distributed.destroy_process_group()
"""


def train_on_two_ranks(folder: Path) -> list[str]:
    """What the two processes wrote to stderr, if one of them failed."""
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(folder)], env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        errors = [rank.communicate(timeout=300)[1] for rank in ranks]
    except subprocess.TimeoutExpired:
        return ["timeout"]
    finally:
        for rank in ranks:
            rank.kill()
    return errors if any(rank.returncode for rank in ranks) else []


@pytest.mark.skipif(
    not (torch.distributed.is_available() and sys.platform == "linux"),
    reason="needs torch.distributed with gloo, and lo",
)
def test_trains_on_two_ranks(tmp_path: Path) -> None:
    for attempt in range(2):  # the loopback can be slow to come up: once more
        folder = tmp_path / str(attempt)
        folder.mkdir()
        if not (errors := train_on_two_ranks(folder)):
            break
    assert not errors, "\n".join(errors)
    with np.load(folder / "gradients.npz") as found:
        for cell in ("simple_rnn", "lstm", "gru"):
            spec = mr.RecurrentSpec(cell, 5, 11, bias="single", dtype="float64")
            native = build(spec).native
            native(tensor(spec)[:4])[0].square().sum().backward()
            for parameter_name, parameter in native.named_parameters():
                assert_close(2 * found[f"{cell}/{parameter_name}"], parameter.grad)  # DDP takes the mean of two
