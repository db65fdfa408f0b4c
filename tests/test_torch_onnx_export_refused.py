"""What `multirnn_torch.export_onnx` cannot export, and what it says then."""

from pathlib import Path
from typing import Any

import pytest
import torch
from multirnn_torch import export_onnx
from multirnn_torch.fast import FastLSTM
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import multirnn as mr
from multirnn import kernel

if kernel.refuses() is not None:
    pytest.skip(str(kernel.refuses()), allow_module_level=True)

INPUT, HIDDEN = 3, 4


class Own(nn.LSTM):
    def forward(self, x: Tensor, hx: Any = None) -> Any:
        return super().forward(x + 1, hx)


class Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(INPUT, HIDDEN, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(x.reshape(2, 5, INPUT))[0]


class Packing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(INPUT, HIDDEN, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(pack_padded_sequence(x, torch.tensor([5, 3]), batch_first=True))[1]


class Again(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(INPUT, INPUT, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(self.gru(x)[0])[0]


REFUSED = {
    "projection": (
        lambda: nn.Sequential(nn.LSTM(INPUT, 4, proj_size=2)),
        {},
        r"layer '0' \(LSTM\) cannot be exported: it proj",
    ),
    "own forward": (
        lambda: Own(INPUT, HIDDEN),
        {},
        r"the layer \(Own\) cannot be exported: its class overrides forward",
    ),
    "projection of a fast layer": (lambda: FastLSTM(INPUT, 4, proj_size=2), {}, "it projects its state"),
    "a fast layer in half": (lambda: FastLSTM(INPUT, 4).half(), {}, "its weights are of float16"),
    "half": (lambda: nn.GRU(INPUT, HIDDEN).half(), {}, "its weights are of float16"),
    "fixed": (Frozen, {}, r"layer 'gru' has a batch of 2 whatever the arguments are"),
    "packed": (Packing, {}, r"layer\(x, lengths=\.\.\.\)"),
    "both ways": (
        lambda: nn.GRU(INPUT, 4, bidirectional=True),
        {"streaming": True},
        "the layer also reads from the end",
    ),
    "again": (Again, {"streaming": True}, "layer 'gru' is called several times, each time from zero"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_exported(what: str, tmp_path: Path) -> None:
    make, more, sentence = REFUSED[what]
    with pytest.raises(mr.InvalidCall, match=sentence):
        export_onnx(make(), torch.randn(2, 5, INPUT), tmp_path / "model.onnx", **more)
    assert not list(tmp_path.iterdir())


def test_a_program_whose_steps_were_traced_one_by_one(tmp_path: Path) -> None:
    program = torch.export.export(
        nn.Sequential(nn.GRU(INPUT, HIDDEN)), (torch.randn(2, 5, INPUT),)
    ).run_decompositions()
    with pytest.raises(mr.InvalidCall, match=r"layer '0' \(GRU\) is no operator any more in this program"):
        export_onnx(program, (), tmp_path / "model.onnx")
    projecting = torch.export.export(nn.LSTM(INPUT, 4, proj_size=2), (torch.randn(2, 5, INPUT),))
    with pytest.raises(mr.InvalidCall, match=r"the layer projects its state \(proj_size\)"):
        export_onnx(projecting, (), tmp_path / "model.onnx")
    training = torch.export.export(nn.GRU(INPUT, HIDDEN, 2, dropout=0.5), (torch.randn(2, 5, INPUT),))
    with pytest.raises(mr.InvalidCall, match=r"drops outputs between its layers in this program"):
        export_onnx(training, (), tmp_path / "model.onnx")


def test_what_is_no_model_and_where_no_file_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(mr.InvalidCall, match="is exported, not a function"):
        export_onnx(lambda x: x, torch.zeros(1), tmp_path / "model.onnx")  # type: ignore[arg-type]
    with pytest.raises(mr.InvalidCall, match="cannot be written: No such file or directory"):
        export_onnx(nn.GRU(INPUT, HIDDEN), torch.randn(2, 5, INPUT), tmp_path / "missing" / "model.onnx")
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(mr.MissingFramework, match=r'export_onnx needs the package .onnxscript.*"multirnn\[export\]"'):
        export_onnx(nn.GRU(INPUT, HIDDEN), torch.randn(2, 5, INPUT), tmp_path / "model.onnx")
