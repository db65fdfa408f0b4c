"""safetensors: read and written without its package, held against it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from convention_stacks import stack

import multirnn as mr
from multirnn.cells import FORMS
from multirnn.formats import read
from multirnn.formats.npz import SPEC

LSTM = mr.RecurrentSpec("lstm", 5, 4, bias="double")
WEIGHTS = mr.initialise(LSTM, 1)
ARRAYS = mr.to_arrays(WEIGHTS, convention="torch")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bias", ["none", "single", "double"])
@pytest.mark.parametrize("form", FORMS)
def test_its_package_loads_what_is_written(tmp_path: Path, form: str, bias: str, dtype: str) -> None:
    package = pytest.importorskip("safetensors")
    numpy = pytest.importorskip("safetensors.numpy")
    weights = mr.initialise(stack(form, bias, dtype=dtype), 1)
    written = mr.save(weights, tmp_path / "a.safetensors")
    found = numpy.load_file(tmp_path / "a.safetensors")
    assert {name: array.tobytes() for name, array in found.items()} == {
        name: array.tobytes() for name, array in weights.arrays.items()
    }
    with package.safe_open(tmp_path / "a.safetensors", "np") as file:
        assert mr.RecurrentSpec.from_json(file.metadata()[SPEC]) == weights.spec
    assert written.convention == "canonical"
    assert mr.load(tmp_path / "a.safetensors") == weights


def test_torch_loads_what_is_written_by_its_names(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    package = pytest.importorskip("safetensors.torch")
    mr.save(WEIGHTS, tmp_path / "a.safetensors", convention="torch")
    module = torch.nn.LSTM(5, 4)
    module.load_state_dict(package.load_file(tmp_path / "a.safetensors"))
    for name, tensor in module.state_dict().items():
        assert tensor.numpy().tobytes() == ARRAYS[name].tobytes()


@pytest.mark.parametrize("stored", ["float64", "float32", "float16", "bfloat16"])
def test_files_of_torch_are_read(tmp_path: Path, stored: str) -> None:
    torch = pytest.importorskip("torch")
    package = pytest.importorskip("safetensors.torch")
    module = torch.nn.GRU(5, 4, 2, bidirectional=True).to(getattr(torch, stored))
    state = {f"model.rnn.{name}": tensor for name, tensor in module.state_dict().items()}
    others = {name: torch.zeros(3, 2).to(getattr(torch, name)) for name in ("int8", "bool", "float8_e4m3fn", "uint16")}
    package.save_file(state | others, tmp_path / "a.safetensors", {"format": "pt"})
    (only,) = mr.inspect(tmp_path / "a.safetensors")
    assert (only.name, only.stored) == ("model.rnn", stored)
    wide = torch.float64 if stored == "float64" else torch.float32
    expected = {name: tensor.to(wide).numpy() for name, tensor in module.state_dict().items()}
    assert mr.load(tmp_path / "a.safetensors") == mr.from_arrays(expected, convention="torch")


def test_arrays_are_views_of_the_file(tmp_path: Path) -> None:
    mr.save(WEIGHTS, tmp_path / "a.safetensors")
    arrays = read(tmp_path / "a.safetensors").arrays
    assert list(arrays) == list(WEIGHTS.arrays)
    for array in arrays.values():
        assert isinstance(array, np.ndarray)
        assert not array.flags.owndata
        assert not array.flags.writeable


# --- Damaged ---------------------------------------------------------------------------------------------------------


def made(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def one(**changes: Any) -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


TWO = {**one(), "b": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}
DAMAGED = {
    "empty": (b"", "is empty"),
    "short": (b"\x08\0\0", "its header would have 8 bytes"),
    "a header of terabytes": ((1 << 42).to_bytes(8, "little") + b"{}", "its header would have 4398046511104 bytes"),
    "no JSON": (made(b"nonsense"), "its header is damaged"),
    "no text": (made(b"\xff\xfe"), "its header is damaged"),
    "deep JSON": (made(b"[" * 100_000), "its header is damaged"),
    "no object": (made([]), "its header is no JSON object"),
    "metadata": (made({"__metadata__": 3}), "its header is no JSON object"),
    "a name twice": (made(b'{"a": {}, "a": {}}'), "it names something twice"),
    "no dtype": (made(one(dtype=None), b"12345678"), "'a' lacks its dtype, shape or data_offsets"),
    "terabytes": (made(one(shape=[1 << 40]), b"12345678"), "claims the shape .* and has 8 bytes"),
    "negative": (made(one(shape=[-2]), b"12345678"), "has an impossible shape"),
    "fractions": (made(one(shape=[2.0]), b"12345678"), "has an impossible shape"),
    "many axes": (made(one(shape=[1] * 65), b"12345678"), "has an impossible shape"),
    "nothing, largely": (made(one(shape=[0, 1 << 61, 8], data_offsets=[0, 0])), "has an impossible shape"),
    "outside": (made(one(data_offsets=[0, 9]), b"12345678"), "lies outside of the file"),
    "backward": (made(one(data_offsets=[8, 0]), b"12345678"), "does not begin where the one before it ends"),
    "overlapping": (made({**TWO, **one(data_offsets=[0, 16], shape=[4])}, b"12345678" * 2), "does not begin where"),
    "a hole": (made({"b": TWO["b"]}, b"12345678" * 2), "does not begin where"),
    "too long": (made(one(), b"123456789"), "its tensors have 8 bytes, and the file has 9"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damage_is_told(tmp_path: Path, what: str) -> None:
    data, sentence = DAMAGED[what]
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    with pytest.raises(mr.FormatError, match=sentence) as error:
        mr.load(path)
    assert str(error.value).startswith(str(path))
