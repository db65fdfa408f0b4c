"""What type checkers and editors make of a user's script: strict pyright passes a right one, and refuses wrong words."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import multirnn as mr

ROOT = Path(mr.__file__).parent.parent
BEGIN = """\
import numpy as np

import multirnn as mr

"""
RIGHT = """\
from multirnn.protocol import Abilities

spec = mr.RecurrentSpec("lstm", input_size=10, hidden_size=3, num_layers=2, bias="double", dtype="float64")
layer = mr.build(spec, backend="torch", seed=0, implementation="fast")
x = np.zeros((2, 5, 10))
output = layer(x, lengths=[5, 2])
print(output.sequence.shape, output.state.h.mean(), layer.native, repr(layer))
gradients = layer.vjp(x, cotangent=mr.Output(np.ones((2, 5, 3)), output.state))
print({name: array.sum() for name, array in gradients.weights.items()}, gradients.x, gradients.state.h)
weights: mr.Weights = layer.weights()
print(weights.spec.cell, weights.arrays["layers.0.forward.weight_ih"].shape, weights.astype("float32"))
arrays = mr.to_arrays(weights, convention="torch")
print(mr.from_arrays(arrays, convention="torch", cell="lstm") == weights)
comparison = mr.compare(spec, backends=["numpy", "a third party's"])
print(comparison.ok, [row.verdict for row in comparison.rows], comparison.to_json())
print(mr.compare(weights, backends="jax"), mr.backend("third").refuses(spec), mr.backends())
print(mr.diagnose(layer, layer).equal, mr.first_divergence(layer, layer), mr.train_parity(spec, steps=2).ok)
replacement = mr.replace_layers(layer.native, "fast")
print([one.path for one in replacement.replaced], [one.reason for one in replacement.kept], replacement.to_json())
replacement.restore()
stream = mr.build(mr.RecurrentSpec("gru", 10, 3), "numpy").stream()
print(stream(x[:, :2]).state.h)


class Mine(Abilities):
    takes_lengths = False
    implementations = ("native", "fast")


print(Mine().devices())
"""
WRONG = {
    "mr.RecurrentSpec('LSTM', 10, 3)": "Literal['LSTM']",
    "mr.RecurrentSpec('gru', 10, 3, bias='doubled')": "Literal['doubled']",
    "mr.RecurrentSpec('gru', 10, 3, dtype='float16')": "Literal['float16']",
    "mr.RecurrentSpec('gru', 10, '3')": "Literal['3']",
    "mr.build(mr.RecurrentSpec('gru', 10, 3), 'torch', implementation='quick')": "Literal['quick']",
    "mr.build(mr.RecurrentSpec('gru', 10, 3), 7)": "Literal[7]",
    "mr.compare(mr.RecurrentSpec('gru', 10, 3), implementation='quick')": "Literal['quick']",
    "mr.replace_layers(None, 'quick')": "Literal['quick']",
    "mr.bild": '"bild"',
}


def test_strict_pyright_passes_a_right_script_and_refuses_each_wrong_line(tmp_path: Path) -> None:
    if find_spec("pyright") is None:
        pytest.skip("pyright is not installed")
    (tmp_path / "right.py").write_text(BEGIN + RIGHT)
    (tmp_path / "wrong.py").write_text(BEGIN + "\n".join(WRONG) + "\n")
    settings = {"typeCheckingMode": "strict", "extraPaths": [str(ROOT)], "reportUnusedExpression": False}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "--project", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    if not done.stdout.startswith("{"):
        pytest.skip(f"pyright cannot run here: {done.stderr.strip()[-200:]}")  # it fetches Node.js when it first runs
    found = json.loads(done.stdout)["generalDiagnostics"]
    assert [said(one) for one in found if one["file"].endswith("right.py")] == []
    lines = {one["range"]["start"]["line"]: one["message"] for one in found if one["file"].endswith("wrong.py")}
    first = BEGIN.count("\n")
    for place, (source, words) in enumerate(WRONG.items(), first):
        assert words in lines.get(place, ""), source


def said(one: dict[str, Any]) -> str:
    return f"line {one['range']['start']['line']}: {one['message']}"
