"""ONNX files that are damaged or made to harm: a `FormatError` in a sentence, soon, and with little memory."""

import random
import re
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_graphs import SPEC, arrays_of, graph, model, node, operator, value

import multirnn as mr
from multirnn import formats

onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")

WEIGHTS = mr.initialise(SPEC, 1)
ARRAYS = arrays_of(WEIGHTS)


def refused(data: bytes, path: Path) -> str:
    """The sentence with which a file is refused, within 2 s and 64 MB."""
    (path / "a.onnx").write_bytes(data)
    tracemalloc.start()
    start = time.monotonic()
    try:
        with pytest.raises(mr.FormatError) as caught:
            formats.load(path / "a.onnx")
        assert time.monotonic() - start < 2
        assert tracemalloc.get_traced_memory()[1] < 64e6
    finally:
        tracemalloc.stop()
    assert [one.name for one in path.iterdir()] == ["a.onnx"]
    return str(caught.value)


def outside(location: str) -> bytes:
    made = model([operator()], ARRAYS)
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return bytes(made.SerializeToString())


@pytest.mark.parametrize("location", ["../../secret", "/etc/passwd", "weights.bin", ""])
def test_data_in_another_file_is_never_read(location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    before = Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode: opened.append(self.name) or before(self, mode))
    said = refused(outside(location), tmp_path)
    assert "the tensor 'W' lies in another file (external data), which is not read; save the model as one file" in said
    assert {name for name in opened if not name.endswith((".py", ".pyc"))} == {"a.onnx"}


def external_in_constant() -> Any:
    made = model([node("Constant", [], ["W"], value=onnx.numpy_helper.from_array(ARRAYS["W"])), operator()], {})
    tensor = made.graph.node[0].attribute[0].t
    tensor.external_data.add(key="location", value="/etc/passwd")
    return made


def dims(*sizes: int, place: int = 0) -> Callable[[], Any]:
    def make() -> Any:
        made = model([operator()], ARRAYS)
        made.graph.initializer[place].dims[:] = sizes
        return made

    return make


def doubling() -> Any:
    """Each node joins the last one's output with itself: 33 MB after 20, and 2**60 numbers in the end."""
    nodes = [node("Concat", [f"w{k}", f"w{k}"], [f"w{k + 1}"], axis=1) for k in range(60)]
    return model([*nodes, operator(inputs=("x", "w60", "R"))], {"w0": ARRAYS["W"], "R": ARRAYS["R"]})


def calling_itself() -> Any:
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("own", 1)]
    calls = [node("F", ["a"], [name], domain="own") for name in ("b", "c")]
    function = onnx.helper.make_function("own", "F", ["a"], ["b"], calls, opsets)
    return model([node("F", ["x"], ["Y"], domain="own")], {}, functions=[function], opset_imports=opsets)


def of_itself() -> Any:
    return model(
        [node("Identity", ["b"], ["a"]), node("Identity", ["a"], ["b"]), operator(inputs=("x", "a", "R"))], ARRAYS
    )


def long_chain() -> Any:
    nodes = [node("Identity", [f"w{k}"], [f"w{k + 1}"]) for k in range(3000)]
    return model([*nodes, operator(inputs=("x", "w3000", "R"))], {"w0": ARRAYS["W"], "R": ARRAYS["R"]})


def large_sizes() -> Any:
    state = value("h", 1, 10**9, 11)
    return model([operator(inputs=("x", "W", "R", "B", "", "h"))], ARRAYS, inputs=[value("x", "t", "b", 5), state])


def many(operators: int, nodes: int) -> Any:
    made = [operator(inputs=("x", f"W{k}", "R", "B"), outputs=(f"Y{k}",)) for k in range(operators)]
    made += [node("Identity", [f"Y{k % operators}"], [f"out{k}"]) for k in range(nodes)]
    arrays = {f"W{k}": ARRAYS["W"] + np.float32(k) for k in range(operators)}
    inputs = [value("x", 100, 200, 5)]
    return model(made, ARRAYS | arrays, inputs=inputs, outputs=[f"out{k}" for k in range(nodes)])


def made_by(kind: str, *inputs: str, arrays: Any = (), **more: Any) -> Callable[[], Any]:
    nodes = [node(kind, list(inputs), ["W"], **more), operator()]
    return lambda: model(nodes, {"R": ARRAYS["R"], "B": ARRAYS["B"], "w": ARRAYS["W"], **dict(arrays)})


HUGE = np.array([2**20, 2**20, 8])
HOSTILE: dict[str, tuple[Callable[[], Any], str]] = {
    "external constant": (external_in_constant, "lies in another file"),
    "terabytes": (dims(1, 2**40, 5), "the tensor 'W' is damaged: cannot reshape"),
    "overflowing dims": (dims(2**62, 2**62, 2**62), "the tensor 'W' is damaged"),
    "negative dims": (dims(1, -1, 5), r"the tensor 'W' claims the shape \(1, -1, 5\) and has 165 numbers"),
    "fewer": (dims(1, 33, 4), "the tensor 'W' is damaged"),
    "empty": (dims(0, 33, 5), "the tensor 'W' is damaged"),
    "wrong axes": (dims(33, 5), r"its W must have the shape \(1, 33, 1\), none of it empty, not \(33, 5\)"),
    "expanded": (made_by("Expand", "w", "s", arrays={"s": HUGE}), "takes more numbers than a model of this size"),
    "filled": (made_by("ConstantOfShape", "s", arrays={"s": HUGE}), "takes more numbers than a model of this size"),
    "gathered": (
        made_by("Gather", "w", "s", arrays={"s": np.zeros(100_000, "int64")}, axis=0),
        "takes more numbers than a model of this size",
    ),
    "doubling": (doubling, "takes more numbers than a model of this size"),
    "calling itself": (calling_itself, "graphs more than 40 deep in each other"),
    "of itself": (of_itself, "nothing in the file makes"),
    "long chain": (long_chain, "its W is computed by a node Identity, and no constant"),
    "reshaped": (made_by("Reshape", "w", "s", arrays={"s": np.array([7, -1])}), "a node Reshape cannot be computed"),
    "reshaped by reals": (made_by("Reshape", "w", "s", arrays={"s": np.ones(3)}), "are a list of integers"),
    "transposed": (made_by("Transpose", "w", perm=[0, 0, 1]), "a node Transpose cannot be computed"),
    "perm of text": (made_by("Transpose", "w", perm="abc"), "a node Transpose cannot be computed"),
    "split": (made_by("Split", "w", "s", arrays={"s": np.array([-5, 38])}, axis=1), "a node Split cannot be computed"),
    "sliced": (
        made_by("Slice", "w", "s", "t", arrays={"s": np.array([0]), "t": np.array([1, 2])}),
        "a node Slice cannot",
    ),
    "no input": (made_by("Concat", axis=0), "a node Concat cannot be computed"),
    "cast to nothing": (made_by("Cast", "w", to=99), "casts to a type 99 that ONNX has not"),
    "large state": (large_sizes, "its operators and sizes are too many for trying how they are joined"),
    "many outputs": (lambda: many(40, 3000), "its operators and sizes are too many for trying how they are joined"),
    "empty constant": (made_by("Constant"), "a node Constant cannot be computed"),
    "twice": (lambda: model([node("Identity", ["R"], ["W"]), operator()], ARRAYS), "two values have the name 'W'"),
    "two makers": (
        lambda: model([node("Relu", ["x"], ["a"]), node("Relu", ["x"], ["a"]), operator()], ARRAYS),
        "two values of one graph have the same name",
    ),
    "attribute twice": (
        lambda: _twice(model([operator()], ARRAYS)),
        "the node 'layer' has the attribute 'hidden_size' twice",
    ),
    "no nodes": (lambda: model([], ARRAYS), "is no ONNX model, or has no nodes"),
    "text": (
        lambda: model([operator()], ARRAYS | {"W": np.array([["a"]], dtype=object)}),
        "its weights are of several dtypes, float32, object",
    ),
}


def _twice(made: Any) -> Any:
    made.graph.node[0].attribute.append(onnx.helper.make_attribute("hidden_size", 12))
    return made


@pytest.mark.parametrize("what", HOSTILE)
def test_what_is_made_to_harm(what: str, tmp_path: Path) -> None:
    make, reason = HOSTILE[what]
    assert re.search(reason, refused(make().SerializeToString(), tmp_path))


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    data = (
        model([operator(name="layer_name")], ARRAYS)
        .SerializeToString()
        .replace(b"layer_name", b"layer\xff\xfe\xfd\xfc\xfb")
    )
    assert "in it is no text" in refused(data, tmp_path)


def test_nan_and_infinity_are_read(tmp_path: Path) -> None:
    """They are numbers; a backend that cannot compute with them says so."""
    odd = ARRAYS["W"].copy()
    odd.reshape(-1)[:3] = np.nan, np.inf, -np.inf
    onnx.save(model([operator()], ARRAYS | {"W": odd}), tmp_path / "a.onnx")
    assert arrays_of(formats.load(tmp_path / "a.onnx"))["W"].tobytes() == odd.tobytes()


@pytest.mark.parametrize("data", [b"", b"\x00" * 100, b"PK\x03\x04", b"not a model", b"\xff" * 1000])
def test_what_is_no_model(data: bytes, tmp_path: Path) -> None:
    assert "is no ONNX model" in refused(data, tmp_path)


def test_operators_out_of_order_and_states_of_several_sizes_do_no_harm(tmp_path: Path) -> None:
    lower, squeeze = operator(outputs=("Y",)), node("Squeeze", ["Y", "one"], ["s"])
    upper = operator(inputs=("s", "W", "R", "B"), outputs=("Z",), name="upper")
    arrays = {name: array for name, array in ARRAYS.items() if name != "W"} | {"one": np.array([1]), "W": ARRAYS["R"]}
    inputs = [value("x", "t", "b", 11)]
    for nodes in ([upper, squeeze, lower], [node("Squeeze", ["Y", "one"], ["x"]), operator(outputs=("Y",))]):
        harmless(model(nodes, arrays, inputs=inputs, outputs=["Y"]).SerializeToString(), tmp_path)
    states = [value("x", "t", "b", 5), value("h", 1, "b", 11), value("g", 1, 3, 7)]
    nodes = [node("Concat", ["h", "g"], ["k"], axis=0), operator(inputs=("x", "W", "R", "B", "", "k"))]
    harmless(model(nodes, ARRAYS, inputs=states).SerializeToString(), tmp_path)


def seeds(path: Path) -> list[bytes]:
    formats.save(mr.initialise(mr.RecurrentSpec("gru", 2, 3, 2, True, "single")), path / "seed.onnx")
    written = (path / "seed.onnx").read_bytes()
    (path / "seed.onnx").unlink()
    body = graph([operator()], ["Y"])
    flag = [value("x", "t", "b", 5), value("flag", kind=9)]
    branch = model([node("If", ["flag"], ["Y"], then_branch=body, else_branch=body)], ARRAYS, inputs=flag)
    moved = model(
        [node("Transpose", ["w"], ["W"], perm=[0, 2, 1]), operator()], ARRAYS | {"w": ARRAYS["W"].swapaxes(1, 2)}
    )
    del moved.graph.initializer[0]
    return [written, branch.SerializeToString(), moved.SerializeToString()]


def test_every_truncated_file_is_refused_or_read(tmp_path: Path) -> None:
    for data in seeds(tmp_path):
        for end in range(0, len(data), max(1, len(data) // 150)):
            harmless(data[:end], tmp_path)


def test_flipped_bits(tmp_path: Path) -> None:
    rng = random.Random(0)
    for data in seeds(tmp_path):
        for _ in range(250):
            bad = bytearray(data)
            for _ in range(rng.choice((1, 2, 8))):
                place = rng.randrange(len(bad))
                bad[place] = rng.choice((bad[place] ^ 1 << rng.randrange(8), 0, 255, 127))
            harmless(bytes(bad), tmp_path)


def harmless(data: bytes, path: Path) -> None:
    """Read, or refused with a `FormatError`; any other exception passes through."""
    (path / "a.onnx").write_bytes(data)
    start = time.monotonic()
    with suppress(mr.FormatError):
        formats.inspect(path / "a.onnx")
    assert time.monotonic() - start < 2
