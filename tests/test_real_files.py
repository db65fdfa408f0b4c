"""Weights that people have: files out of public packages, fetched by pip, and held against an explicit loop.

None of them is part of this project. Without a network the tests are skipped: `pytest -m "not network"` leaves them out.
"""

import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import multirnn as mr

pytestmark = pytest.mark.network

PACKAGES = {
    "silero-vad": "6.2.3",
    "faster-whisper": "1.2.1",
    "Resemblyzer": "0.1.4",
    "g2p-en": "2.1.0",
    "textgenrnn": "2.0.0",
}
ROOT = Path(__file__).parents[1] / ".cache" / "packages"  # kept between runs; ignored by git
Arrays = Mapping[str, np.ndarray]


@pytest.fixture(scope="module")
def package(request: pytest.FixtureRequest) -> Path:
    """The unpacked files of the package that is the parameter; it is not installed, and none of it is imported here."""
    name = request.param
    folder = ROOT / f"{name}-{PACKAGES[name]}"
    if not folder.exists():
        unfinished = folder.with_name(
            f".{folder.name}.{request.config.workerinput['workerid'] if hasattr(request.config, 'workerinput') else 0}"
        )
        unfinished.mkdir(parents=True, exist_ok=True)
        # textgenrnn is an sdist alone, which pip asks for its metadata.
        how = "--no-build-isolation" if name == "textgenrnn" else "--only-binary=:all:"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", how, "--dest", unfinished]
        try:
            done = subprocess.run(
                [*command, f"{name}=={PACKAGES[name]}"], capture_output=True, text=True, timeout=120, check=False
            )
        except subprocess.TimeoutExpired:
            pytest.skip(f"pip does not fetch {name} {PACKAGES[name]} here within two minutes")
        if not (archives := [*unfinished.glob("*.whl"), *unfinished.glob("*.tar.gz")]):
            pytest.skip(f"pip cannot fetch {name} {PACKAGES[name]} here: {done.stderr.strip().splitlines()[-1:]}")
        (archive,) = archives
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as file:
                file.extractall(unfinished)
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(unfinished, filter="data")
        archive.unlink()
        with suppress(OSError):  # another process was faster
            unfinished.rename(folder)
    return folder


def in_package(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("package", [name], indirect=True)


def sigmoid(v: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-v))


def lstm(x: np.ndarray, w_ih: np.ndarray, w_hh: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """An LSTM in float64 with PyTorch's arrays, gates i f g o; x `(batch, time, features)`."""
    h = c = np.zeros((len(x), w_hh.shape[1]))
    steps = []
    for step in x.swapaxes(0, 1):
        i, f, g, o = np.split(step @ w_ih.T + h @ w_hh.T + bias, 4, axis=-1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        steps.append(h)
    return np.stack(steps, 1)


def gru(x: np.ndarray, w_ih: np.ndarray, w_hh: np.ndarray, b_ih: np.ndarray, b_hh: np.ndarray) -> np.ndarray:
    """A GRU in float64 with PyTorch's arrays, gates r z n."""
    h = np.zeros((len(x), w_hh.shape[1]))
    steps = []
    for step in x.swapaxes(0, 1):
        (r, z, n), (r_h, z_h, n_h) = np.split(step @ w_ih.T + b_ih, 3, -1), np.split(h @ w_hh.T + b_hh, 3, -1)
        r, z = sigmoid(r + r_h), sigmoid(z + z_h)
        n = np.tanh(n + r * n_h)
        h = (1 - z) * n + z * h
        steps.append(h)
    return np.stack(steps, 1)


def drawn(weights: mr.Weights) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((3, 9, weights.spec.input_size)).astype("float32")


AMPLIFIED = 4  # tolerances: weights that were trained amplify rounding, textgenrnn's by 2.3 on JAX


def assert_every_backend(weights: mr.Weights, expected: np.ndarray) -> None:
    x = drawn(weights)
    ran = []
    for name in mr.backends():
        try:
            backend = mr.backend(name)
            held = mr.fold_biases(weights) if backend.refuses(weights.spec) else weights  # Keras' LSTM has one bias
            layer = backend.build(held)
        except mr.MissingFramework:
            continue
        assert mr.difference(layer(x).sequence, expected).normwise <= AMPLIFIED * mr.tolerance("float32"), name
        ran.append(name)
    assert "numpy" in ran


def torch_loop(weights: mr.Weights, arrays: Arrays, prefix: str = "") -> np.ndarray:
    sequence = drawn(weights).astype("float64")
    for layer in range(weights.spec.num_layers):
        own = {
            name: arrays[f"{prefix}{name}_l{layer}"].astype("float64")
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        }
        sequence = lstm(sequence, own["weight_ih"], own["weight_hh"], own["bias_ih"] + own["bias_hh"])
    return sequence


# --- silero-vad: one detector in several files, and two that are not the same --------------------------------------------

SILERO = "silero_vad/data"
SAME = ("silero_vad_16k_op15.onnx", "silero_vad_16k_sequence.onnx", "silero_vad_openvino_16k.onnx")
OTHER = {"silero_vad_16k.safetensors": 0.48, "silero_vad_half.onnx": 0.92}


def sixteen(path: Path) -> str | None:
    """The name of the stack for 16 kHz, where a file has one for 8 kHz too."""
    names = [found.name for found in mr.inspect(path)]
    return None if len(names) == 1 else next(name for name in names if "8k" not in name and "else" not in name)


@in_package("silero-vad")
def test_silero_holds_one_lstm_in_each_file(package: Path) -> None:
    for name in ("silero_vad.jit", "silero_vad.onnx", *SAME, *OTHER):
        pytest.importorskip(
            "onnx" if name.endswith("onnx") else "safetensors" if name.endswith("safetensors") else "numpy"
        )
        found = mr.inspect(package / SILERO / name)
        assert found
        assert {one.spec for one in found} == {mr.RecurrentSpec("lstm", 128, 128, bias="double")}


@in_package("silero-vad")
@pytest.mark.parametrize("name", ["silero_vad.onnx", *SAME])
def test_silero_files_that_are_the_same(package: Path, name: str) -> None:
    pytest.importorskip("onnx")
    a, b = package / SILERO / "silero_vad.jit", package / SILERO / name
    found = mr.verify(a, b, name_a=sixteen(a), name_b=sixteen(b))
    assert found.ok
    assert found.exact
    assert str(found) == "the same 132,096 numbers, bit for bit"


@in_package("silero-vad")
@pytest.mark.parametrize("name", OTHER)
def test_silero_files_that_are_not(package: Path, name: str) -> None:
    pytest.importorskip("onnx" if name.endswith("onnx") else "safetensors")
    a, b = package / SILERO / "silero_vad.jit", package / SILERO / name
    found = mr.verify(a, b, name_a=sixteen(a))
    assert not found.ok
    assert found.sorted_difference == pytest.approx(OTHER[name], abs=0.005)
    assert str(found).startswith("not the same: ")
    assert f"the numbers still differ by {OTHER[name]}" in str(found)
    assert "no other order of gates or axes explains it" in str(found)
    assert "\n" not in str(found)


@in_package("silero-vad")
def test_silero_runs_on_every_backend(package: Path) -> None:
    path = package / SILERO / "silero_vad.jit"
    weights = mr.load(path, sixteen(path))
    assert_every_backend(weights, torch_loop(weights, mr.to_arrays(weights, convention="torch")))


# --- The others ----------------------------------------------------------------------------------------------------------


@in_package("faster-whisper")
def test_faster_whisper(package: Path) -> None:
    onnx = pytest.importorskip("onnx")
    path = package / "faster_whisper/assets/silero_vad_v6.onnx"
    (found,) = mr.inspect(path)
    assert found.spec == mr.RecurrentSpec("lstm", 128, 128, bias="double")
    assert {"its initial h is the model's input 'h'", "its initial c is the model's input 'c'"} <= set(found.about)
    weights = mr.load(path)
    node = next(node for node in onnx.load(path).graph.node if node.op_type == "LSTM")
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    constants = {
        node.output[0]: onnx.numpy_helper.to_array(node.attribute[0].t)
        for node in onnx.load(path).graph.node
        if node.op_type == "Constant" and node.attribute[0].name == "value"
    }
    if all(name in held | constants for name in node.input[1:4]):
        w, r, b = ((held | constants)[name][0] for name in node.input[1:4])
        w_ih, w_hh = (np.concatenate([np.split(a, 4)[k] for k in (0, 2, 3, 1)]).astype("f8") for a in (w, r))  # i o f g
        both = np.split(b, 2)
        bias = np.concatenate([np.split(both[0] + both[1], 4)[k] for k in (0, 2, 3, 1)]).astype("f8")
        assert_every_backend(weights, lstm(drawn(weights).astype("f8"), w_ih, w_hh, bias))
    else:  # reached through nodes, which the tests of the reader hold
        assert_every_backend(weights, torch_loop(weights, mr.to_arrays(weights, convention="torch")))


@in_package("Resemblyzer")
def test_resemblyzer(package: Path) -> None:
    torch = pytest.importorskip("torch")
    path = package / "resemblyzer/pretrained.pt"
    (found,) = mr.inspect(path)
    assert found.name == "model_state.lstm"
    assert found.spec == mr.RecurrentSpec("lstm", 40, 256, num_layers=3, bias="double")
    weights = mr.load(path)
    state = torch.load(path, weights_only=True, map_location="cpu")["model_state"]
    arrays = {name: value.numpy() for name, value in state.items()}
    assert_every_backend(weights, torch_loop(weights, arrays, "lstm."))


@in_package("g2p-en")
@pytest.mark.parametrize("name", ["enc", "dec"])
def test_g2p(package: Path, name: str) -> None:
    path = package / "g2p_en/checkpoint20.npz"
    own = {f"{name}_{short}": full for short, full in
           (("w_ih", "weight_ih_l0"), ("w_hh", "weight_hh_l0"), ("b_ih", "bias_ih_l0"), ("b_hh", "bias_hh_l0"))}  # fmt: skip
    weights = mr.load(path, names=own)
    assert (weights.spec.cell, weights.spec.bias, weights.spec.hidden_size) == ("gru", "double", 256)
    assert weights.arrays["layers.0.forward.bias_hh"][2].any()  # of the candidate
    with np.load(path) as file:
        arrays = [file[key].astype("f8") for key in own]
    assert_every_backend(weights, gru(drawn(weights).astype("f8"), *arrays))


@in_package("textgenrnn")
@pytest.mark.parametrize(("name", "features"), [("rnn_1", 100), ("rnn_2", 128)])
def test_textgenrnn(package: Path, name: str, features: int) -> None:
    h5py = pytest.importorskip("h5py")
    path = package / "textgenrnn-2.0.0/textgenrnn/textgenrnn_weights.hdf5"
    assert [found.name for found in mr.inspect(path)] == ["rnn_1", "rnn_2"]
    weights = mr.load(path, name)
    assert weights.spec == mr.RecurrentSpec("lstm", features, 128, bias="double")
    with h5py.File(path) as file:
        group = file[name]
        kernel, recurrent, bias = (group[own][()].astype("f8") for own in group.attrs["weight_names"])
    # As Keras 2 turned these into the arrays of an LSTM: each gate's kernel transposed, its memory kept.
    w_ih = np.concatenate([k.T.reshape(k.shape, order="F").T for k in np.split(kernel, 4, 1)])
    w_hh = np.concatenate(np.split(recurrent, 4, 1))
    expected = lstm(drawn(weights).astype("f8"), w_ih, w_hh, bias[:512] + bias[512:])
    assert_every_backend(weights, expected)
