"""Every format converted to every other where no framework is installed, and read by its framework where one is."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import FRAMEWORKS

import multirnn as mr
from multirnn.formats import FORMATS

for package in ("h5py", "onnx", "safetensors", "msgpack"):
    pytest.importorskip(package)

NAMES = [
    f"a{suffix}" for one in FORMATS.values() if one.convention for suffix in one.suffixes[: 3 if one.several else 1]
]
SPECS = [
    mr.RecurrentSpec("lstm", 4, 3, num_layers=2, bias="single"),
    mr.RecurrentSpec("gru", 4, 3),
    mr.RecurrentSpec("gru", 4, 3, bias="single", reset_after=False),
    mr.RecurrentSpec("simple_rnn", 4, 3, bidirectional=True),
]
PROGRAM = f"""
import itertools, json, sys
for name in {FRAMEWORKS!r}:
    sys.modules[name] = None  # an import of it fails
import multirnn as mr
spec, *names = json.loads(sys.argv[1])
spec = mr.RecurrentSpec.from_dict(spec)
weights = mr.initialise(spec, 1)
refused, others = {{}}, {{}}
for name in names:
    try:
        mr.save(weights, name)
    except mr.Unrepresentable as error:
        refused[name] = str(error)
there = [name for name in names if name not in refused]
for source, target in itertools.product(there, there):
    made = "from_" + source.replace(".", "_") + "_" + target
    known = {{"reset_after": spec.reset_after}} if spec.cell == "gru" else {{}}
    mr.save(mr.load(source, **known), made)
    verified = mr.verify(source, made) if spec.cell != "gru" or spec.bias == "double" else None
    loaded = mr.load(made, **known), mr.load(source, **known)
    if loaded[0] != loaded[1] and not (verified and verified.ok):
        others[made] = str(verified)
assert not [name for name in {FRAMEWORKS!r} if sys.modules[name] is not None]
print(json.dumps([refused, others]))
"""


@pytest.fixture(scope="module", params=SPECS, ids=str)
def converted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[mr.RecurrentSpec, Path, Any]:
    folder = tmp_path_factory.mktemp("converted")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([request.param.to_dict(), *NAMES])],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return request.param, folder, json.loads(done.stdout.splitlines()[-1])


def test_every_format_becomes_every_other(converted: tuple[mr.RecurrentSpec, Path, Any]) -> None:
    spec, _, (refused, others) = converted
    expected = {
        "lstm": set(),
        "gru": set() if spec.reset_after else {"a.pt", "a.msgpack", "a.json"},
        "simple_rnn": {"a.json"},
    }[spec.cell]
    assert set(refused) == expected, refused
    assert not others


def test_each_file_is_read_by_its_framework(converted: tuple[mr.RecurrentSpec, Path, Any]) -> None:
    spec, folder, (refused, _) = converted
    x = np.random.default_rng(0).standard_normal((2, 5, 4)).astype("float32")
    expected = mr.build(mr.initialise(spec, 1), "numpy")(x).sequence
    found = []
    for path in sorted(folder.glob("from_*")):
        if path.name.endswith(".pt"):
            torch = pytest.importorskip("torch")
            kind = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "simple_rnn": torch.nn.RNN}[spec.cell]
            module = kind(4, 3, num_layers=spec.num_layers, bidirectional=spec.bidirectional, batch_first=True)
            state = torch.load(path, weights_only=True)
            with torch.no_grad():
                for name, value in module.named_parameters():
                    if name not in state:  # a single bias is PyTorch's two, the second zero
                        value.zero_()
                module.load_state_dict(state, strict="bias_hh_l0" in state)
                y = module(torch.from_numpy(x))[0].numpy()
        elif path.name.endswith(".keras"):
            keras = pytest.importorskip("keras")
            y = keras.ops.convert_to_numpy(keras.saving.load_model(path)(x))
        elif path.name.endswith(".onnx"):
            runtime = pytest.importorskip("onnxruntime")
            session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            y = session.run(["y"], {"x": np.ascontiguousarray(x.swapaxes(0, 1))})[0].swapaxes(0, 1)
        else:
            continue
        assert mr.difference(y, expected).normwise <= mr.tolerance("float32"), path.name
        found.append(path.name)
    assert len(found) >= 2 * (len(NAMES) - len(refused))
