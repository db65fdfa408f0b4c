"""Large tensors stay where they lie in the file; what is odd is left to Protocol Buffers."""

import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_graphs import SPEC, arrays_of, model, operator, stacks, value

import multirnn as mr
from multirnn import formats
from multirnn.formats.onnx_wire import LARGE, field, parted

onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")

BIG = np.random.default_rng(0).standard_normal((2, LARGE // 4)).astype("float32")


def message(*tensors: Any) -> bytes:
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"], name="n")], "g", [], [], list(tensors))
    return bytes(onnx.helper.make_model(graph, doc_string="after").SerializeToString())


def tensor(array: Any = BIG, name: str = "big", **more: Any) -> Any:
    made = onnx.numpy_helper.from_array(np.asarray(array), name)
    for key, given in more.items():
        setattr(made, key, given)
    return made


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_large_tensors_are_views_and_the_rest_is_the_message(dtype: str) -> None:
    small = tensor(np.arange(3), "small")
    data = message(tensor(BIG[0], "first"), small, tensor(BIG.astype(dtype), "big"), small)
    rest, arrays = parted(memoryview(data))
    assert list(arrays) == ["first", "big"]
    assert np.array_equal(arrays["big"], BIG.astype(dtype))
    assert not arrays["big"].flags.writeable
    assert arrays["big"].base is not None
    assert len(rest) < 1000
    found, wanted = onnx.ModelProto.FromString(rest), onnx.ModelProto.FromString(data)
    for one in wanted.graph.initializer:
        if one.name in arrays:
            one.ClearField("raw_data")
    assert found == wanted


def odd() -> dict[str, bytes]:
    two = onnx.ModelProto(graph=onnx.GraphProto(initializer=[tensor()])).SerializeToString() * 2
    longer, text = tensor(), tensor()
    longer.dims[1] += 1
    text.external_data.add(key="location", value="a")
    typed = onnx.helper.make_tensor("big", 1, BIG.shape, BIG.reshape(-1))
    return {
        "two graphs": two,
        "claims more": message(longer),
        "external": message(text),
        "other dtype": message(tensor(BIG.view("int32"))),
        "numbers typed": message(typed),
        "small": message(tensor(BIG[:, :4])),
        "documented": message(tensor(doc_string="text")),
        "truncated": message(tensor())[:-20_000],
        "no model": b"\x0f" * (LARGE + 1),
        "endless number": b"\xff" * (LARGE + 1),
        "empty": b"",
    }


@pytest.mark.parametrize("what", odd())
def test_what_is_odd_is_left_in_the_message(what: str) -> None:
    data = odd()[what]
    assert parted(memoryview(data)) == (data, {})


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(message(tensor(), tensor()))
    with pytest.raises(mr.FormatError, match="two values of one graph have the same name"):
        formats.inspect(tmp_path / "a.onnx")


def test_a_large_state_that_may_be_left_out_is_read(tmp_path: Path) -> None:
    state = np.ones((1, LARGE // 11, 11), "float32")
    made = model(
        [operator(inputs=("x", "W", "R", "B", "", "h"))],
        arrays_of(mr.initialise(SPEC)) | {"h": state},
        inputs=[value("x", "time", LARGE // 11, 5), value("h", *state.shape)],
    )
    (found,) = stacks(made, tmp_path)
    assert "its initial h is the model's input 'h', which is not zero if it is left out" in found.about


def test_a_field_is_encoded_as_protocol_buffers_do() -> None:
    for size in (0, 1, 127, 128, 300, 2**21, 2**31 - 1):
        assert field(7, size) == onnx.ModelProto(graph=onnx.GraphProto()).SerializeToString()[:1] + varint(size)


def varint(number: int) -> bytes:
    return bytes(onnx.ModelProto(ir_version=number or 1).SerializeToString()[1:]) if number else b"\x00"


def test_damaged_large_files_are_refused_or_read(tmp_path: Path) -> None:
    formats.save(mr.initialise(mr.RecurrentSpec("lstm", 64, 96, 2)), tmp_path / "a.onnx")
    data, rng = (tmp_path / "a.onnx").read_bytes(), random.Random(0)
    assert formats.load(tmp_path / "a.onnx") == mr.initialise(mr.RecurrentSpec("lstm", 64, 96, 2))
    heads = [place for place in range(len(data)) if data[place : place + 7] == b"layers."]
    for _ in range(300):
        bad = bytearray(data)
        for _ in range(rng.choice((1, 2, 4))):
            place = max(0, min(len(bad) - 1, rng.choice(heads) + rng.randrange(-20, 30)))
            bad[place] = rng.choice((bad[place] ^ 1 << rng.randrange(8), 0, 255, 127))
        (tmp_path / "b.onnx").write_bytes(bad)
        with suppress(mr.FormatError):
            formats.inspect(tmp_path / "b.onnx")
