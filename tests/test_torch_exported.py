"""Models with fast layers under `torch.export`: strict and not, saved, loaded elsewhere, decomposed, compiled ahead of time."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import multirnn_torch
import pytest
import torch
from multirnn_torch.fast import FastGRU, FastLSTM, FastRNN
from torch import Tensor, nn
from torch.export import Dim
from torch.nn.utils.rnn import pack_padded_sequence

import multirnn as mr
from multirnn import kernel

if kernel.refuses() is not None:
    pytest.skip(str(kernel.refuses()), allow_module_level=True)

INPUT, HIDDEN = 3, 5
LAYERS = {"rnn": FastRNN, "lstm": FastLSTM, "gru": FastGRU}
OTHERS = ((1, 1), (4, 9), (6, 2))
AXES = {0: Dim("rows"), 1: Dim("steps")}


class Model(nn.Module):
    def __init__(self, kind: Any = FastGRU, **settings: Any) -> None:
        super().__init__()
        self.layer = kind(INPUT, HIDDEN, num_layers=2, batch_first=True, **settings)
        self.head = nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.head(self.layer(x, lengths=lengths)[0])


def drawn(batch: int, time: int) -> Tensor:
    return torch.randn(batch, time, INPUT)


def assert_close(actual: Any, expected: Any) -> None:
    found = mr.difference(actual.detach().numpy(), expected.detach().numpy())
    assert found.normwise <= mr.tolerance("float32"), found


def operators(program: torch.export.ExportedProgram) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if "multirnn" in str(node.target)]


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("strict", [False, True])
def test_any_batch_and_time(kind: str, strict: bool) -> None:
    model = Model(LAYERS[kind])
    for axes in (AXES, {0: Dim.AUTO, 1: Dim.AUTO}):
        program = torch.export.export(model, (drawn(2, 5),), dynamic_shapes=(axes,), strict=strict)
        assert operators(program) == [f"multirnn.{kind}_v1.default"]
        for decomposed in (program, program.run_decompositions()):
            assert operators(decomposed) == [f"multirnn.{kind}_v1.default"]
            for batch, time in OTHERS:
                x = drawn(batch, time)
                assert_close(decomposed.module()(x), model(x))


def test_an_exported_model_can_be_trained() -> None:
    model = Model()
    module = torch.export.export(model, (drawn(2, 5),), dynamic_shapes=(AXES,)).module()
    x = drawn(4, 9)
    module(x).square().sum().backward()
    model(x).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert_close(parameter.grad, model.get_parameter(name).grad)


def test_lengths() -> None:
    model = Model(FastLSTM)
    rows = Dim("rows")
    program = torch.export.export(
        model, (drawn(2, 5), torch.tensor([5, 2])), dynamic_shapes=({0: rows, 1: Dim("steps")}, {0: rows})
    )
    for batch, time in OTHERS:
        x, lengths = drawn(batch, time), torch.randint(0, time + 1, (batch,))
        assert_close(program.module()(x, lengths), model(x, lengths))
    with pytest.raises(mr.InvalidCall, match="integers from 0 to 5"):
        program.module()(drawn(2, 5), torch.tensor([5, 6]))


LOAD = """
import sys, torch
{first}
x, expected = torch.load(sys.argv[1] + "/calls.pt")
try:
    program = torch.export.load(sys.argv[1] + "/model.pt2")
except RuntimeError as error:
    sys.exit(str(error))
print(float((program.module()(x) - expected).abs().max() / expected.abs().max()) < 1e-5)
"""


@pytest.fixture(name="saved", scope="module")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, model = tmp_path_factory.mktemp("saved"), Model(FastLSTM)
    torch.export.save(torch.export.export(model, (drawn(2, 5),), dynamic_shapes=(AXES,)), folder / "model.pt2")
    x = drawn(4, 9)
    torch.save((x, model(x).detach()), folder / "calls.pt")
    return folder


def loaded(folder: Path, first: str) -> subprocess.CompletedProcess[str]:
    code = LOAD.format(first=first)
    return subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False)


def test_loaded_in_another_process(saved: Path) -> None:
    found = loaded(saved, "import multirnn_torch")
    assert found.stdout.strip() == "True", found.stderr


def test_loaded_where_multirnn_is_missing(saved: Path) -> None:
    """PyTorch says which operators it does not know, and what to do."""
    found = loaded(saved, "sys.modules['multirnn'] = None")
    assert found.returncode == 1
    assert "failed to resolve torch.ops.multirnn.lstm_v1.default to an operator" in found.stderr
    assert "Please import the custom op to register it before deserializing" in found.stderr


def test_compiled_ahead_of_time(tmp_path: Path) -> None:
    model = Model(FastLSTM).eval()
    with torch.no_grad():
        program = torch.export.export(model, (drawn(2, 5),), dynamic_shapes=(AXES,))
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
        run = torch._inductor.aoti_load_package(package)
        for batch, time in OTHERS:
            x = drawn(batch, time)
            assert_close(run(x), model(x))


def test_dropout_of_a_program_that_is_trained() -> None:
    model = Model(FastGRU, dropout=0.5)
    module = torch.export.export(model, (drawn(2, 5),), dynamic_shapes=(AXES,)).module()
    x = drawn(4, 9)
    assert not torch.equal(module(x), module(x))
    plain = torch.export.export(model.eval(), (drawn(2, 5),), dynamic_shapes=(AXES,)).module()
    assert_close(plain(x), model(x))


# --- Told in a sentence ----------------------------------------------------------------------------------------------


class Packing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = FastGRU(INPUT, HIDDEN, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(pack_padded_sequence(x, torch.tensor([5, 3]), batch_first=True))[1]


@pytest.mark.parametrize("strict", [False, True])
def test_packed_sequences(strict: bool) -> None:
    with pytest.raises(Exception, match=r"pack_padded_sequence|layer\(x, lengths=\.\.\.\)"):
        torch.export.export(Packing(), (drawn(2, 5),), strict=strict)


def test_lengths_without_the_kernel() -> None:
    model = Model()
    model.layer.loop = "tensors"
    with pytest.raises(mr.InvalidCall, match="set its loop to None"):
        torch.export.export(model, (drawn(2, 5), torch.tensor([5, 2])))


def test_the_operators_are_registered_by_the_import_of_the_backend() -> None:
    assert multirnn_torch.BACKEND.name == "torch"
    assert torch.ops.multirnn.gru_v1.default.name() == "multirnn::gru_v1"
