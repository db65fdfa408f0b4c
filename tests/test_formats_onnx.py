"""ONNX files as they are written: checked by onnx, run by ONNX Runtime at any length, and read again bit for bit."""

import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import multirnn as mr
from multirnn import cells, formats
from multirnn.activations import Activation
from multirnn.numerics import difference, draw_call, tolerance
from multirnn.support import ACTIVATIONS_ASKED
from multirnn.weights import Array

onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")

CELLS = [(form.name, form.reset_after) for form in cells.FORMS.values()]
STACKS = [
    mr.RecurrentSpec(cell, 5, 11, layers, both, bias, reset_after)
    for (cell, reset_after), layers, both, bias in product(CELLS, (1, 2), (False, True), ("none", "single", "double"))
]


def weights_of(spec: mr.RecurrentSpec, scale: float = 1.0) -> mr.Weights:
    drawn = mr.initialise(spec, seed=3)
    return mr.Weights(spec, {name: array * array.dtype.type(scale) for name, array in drawn.arrays.items()})


def session(path: Path) -> Any:
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns that inputs with values are no constants, which is their purpose
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def assert_same(found: list[Array], wanted: mr.Output) -> None:
    y, *states = found
    for actual, array in zip((y.swapaxes(0, 1), *states), (wanted.sequence, *wanted.state.parts), strict=True):
        assert difference(actual, array).normwise <= tolerance("float32")


def named(spec: mr.RecurrentSpec, state: Any, lengths: Any = None) -> dict[str, Any]:
    given = {f"{name}_0": part for name, part in zip(spec.form.states, state.parts, strict=True)}
    return given if lengths is None else given | {"lengths": lengths.astype(np.int32)}


@pytest.mark.parametrize("spec", STACKS, ids=str)
def test_every_stack_runs_at_lengths_it_was_not_written_with(spec: mr.RecurrentSpec, tmp_path: Path) -> None:
    weights = weights_of(spec)
    written = formats.save(weights, tmp_path / "a.onnx")
    assert (written.format, written.convention, written.spec, written.changes) == ("onnx", "onnx", spec, ())
    assert formats.load(tmp_path / "a.onnx") == weights
    model, layer = session(tmp_path / "a.onnx"), mr.build(weights, "numpy")
    rng = np.random.default_rng(0)
    for time, batch in ((1, 1), (4, 3), (23, 2)):
        x = rng.standard_normal((batch, time, 5)).astype("float32")
        assert_same(model.run(None, {"x": x.swapaxes(0, 1)}), layer(x))
        lengths = rng.integers(1, time + 1, batch)
        _, state, _ = draw_call(spec, rng)
        state = mr.State(*(part[:, np.arange(batch)] for part in state.parts))
        given = named(spec, state, lengths)
        assert_same(model.run(None, {"x": x.swapaxes(0, 1), **given}), layer(x, state, lengths=lengths))


@pytest.mark.parametrize(("cell", "reset_after"), CELLS)
def test_streaming_in_chunks_equals_the_whole(cell: str, reset_after: bool, tmp_path: Path) -> None:
    weights = weights_of(mr.RecurrentSpec(cell, 5, 11, num_layers=2, reset_after=reset_after))
    formats.save(weights, tmp_path / "a.onnx")
    model = session(tmp_path / "a.onnx")
    x = np.random.default_rng(0).standard_normal((19, 3, 5)).astype("float32")
    whole, chunks, state = model.run(None, {"x": x}), [], {}
    for start, end in ((0, 1), (1, 8), (8, 19)):
        y, *final = model.run(None, {"x": x[start:end], **state})
        chunks.append(y)
        state = {f"{name}_0": part for name, part in zip(weights.spec.form.states, final, strict=True)}
    for actual, array in zip((np.concatenate(chunks), *final), whole, strict=True):
        assert difference(actual, array).normwise <= tolerance("float32")


def test_the_signature_is_that_of_the_documentation(tmp_path: Path) -> None:
    formats.save(weights_of(mr.RecurrentSpec("lstm", 5, 11, 2, True)), tmp_path / "a.onnx")
    model = onnx.load(tmp_path / "a.onnx")

    def shapes(values: Any) -> dict[str, list[Any]]:
        return {one.name: [dim.dim_value or dim.dim_param for dim in one.type.tensor_type.shape.dim] for one in values}

    state = [4, "batch", 11]
    assert shapes(model.graph.input) == {"x": ["time", "batch", 5], "lengths": ["batch"], "h_0": state, "c_0": state}
    assert shapes(model.graph.output) == {"y": ["time", "batch", 22], "h_n": state, "c_n": state}
    ran = session(tmp_path / "a.onnx")
    assert [one.name for one in ran.get_inputs()] == ["x"]
    assert [one.name for one in ran.get_overridable_initializers()] == ["lengths", "h_0", "c_0"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("spec", STACKS[::5], ids=str)
def test_onnx_checks_it(spec: mr.RecurrentSpec, dtype: Any, tmp_path: Path) -> None:
    weights = weights_of(spec).astype(dtype)
    formats.save(weights, tmp_path / "a.onnx")
    model = onnx.load(tmp_path / "a.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert formats.load(tmp_path / "a.onnx") == weights
    (found,) = formats.inspect(tmp_path / "a.onnx")
    assert (found.name, found.convention, found.stored, found.spec) == ("", "onnx", dtype, weights.spec)
    # What protocol buffers make of the same message is what was written by hand.
    again = tmp_path / "again.onnx"
    onnx.save(model, again)
    assert formats.load(again) == weights


@pytest.mark.parametrize("spec", STACKS[::3], ids=str)
def test_float64_runs_in_the_reference_evaluator(spec: mr.RecurrentSpec, tmp_path: Path) -> None:
    """ONNX Runtime has no kernels in float64. This evaluator has, but takes no account of lengths."""
    from onnx.reference import ReferenceEvaluator

    weights = weights_of(spec).astype("float64")
    formats.save(weights, tmp_path / "a.onnx")
    model, layer = ReferenceEvaluator(str(tmp_path / "a.onnx")), mr.build(weights, "numpy")
    x, state, _ = draw_call(weights.spec)
    for given in (mr.State(*(0 * part for part in state.parts)), state):
        found = model.run(None, {"x": x.swapaxes(0, 1), **(named(spec, given) if given is state else {})})
        wanted = layer(x, given)
        for actual, array in zip(
            (found[0].swapaxes(0, 1), *found[1:]), (wanted.sequence, *wanted.state.parts), strict=True
        ):
            assert difference(actual, array).normwise <= tolerance("float64")


def activations(dtype: str) -> Iterator[tuple[Any, Any]]:
    exact = [
        one
        for one in ACTIVATIONS_ASKED
        if not (parameters := Activation.of(one).parameters)
        or dtype == "float32"
        or all(float(np.float32(value)) == value for value in parameters.values())
    ]
    return product(exact, exact)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("cell", "reset_after"), CELLS)
def test_every_activation_comes_back(cell: str, reset_after: bool, dtype: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    for activation, gate in activations(dtype):
        gates = {} if cell == "simple_rnn" else {"recurrent_activation": gate}
        spec = mr.RecurrentSpec(
            cell, 2, 3, 2, True, reset_after=reset_after, activation=activation, dtype=dtype, **gates
        )
        weights = weights_of(spec, 0.5)
        formats.save(weights, path)
        assert formats.load(path) == weights
        if dtype == "float32":
            x, state, lengths = draw_call(spec)
            lengths = np.maximum(lengths, 1)
            found = session(path).run(None, {"x": x.swapaxes(0, 1), **named(spec, state, lengths)})
            assert_same(found, mr.build(weights, "numpy")(x, state, lengths=lengths))


@pytest.mark.parametrize(
    ("activation", "dtype", "reason"),
    [
        (Activation("hard_sigmoid", alpha=0.2, beta=0.5), "float64", "float64 stack would compute another function"),
        (Activation("elu", alpha=0.1234567890123), "float32", r"cannot be told; take 0\.12345679, or another format"),
        (Activation("elu", alpha=1e300), "float32", r"in float32, and 1e\+300 is larger; take another format"),
    ],
)
def test_a_parameter_that_float32_does_not_hold_is_refused(
    activation: Activation, dtype: Any, reason: str, tmp_path: Path
) -> None:
    weights = mr.initialise(mr.RecurrentSpec("lstm", 2, 3, activation=activation, dtype=dtype))
    with pytest.raises(mr.Unrepresentable, match=reason):
        formats.save(weights, tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


def test_more_weights_than_one_file_holds_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multirnn.formats.onnx.LARGEST", 1000)
    with pytest.raises(mr.Unrepresentable, match="in one file holds at most 2 GB, and 660 parameters are more"):
        formats.save(mr.initialise(mr.RecurrentSpec("lstm", 4, 11, bias="none")), tmp_path / "a.onnx")


def test_the_weights_are_written_and_not_copied_into_a_model(tmp_path: Path) -> None:
    """The numbers of a file are its initialisers', little endian and one after the other."""
    weights = mr.initialise(mr.RecurrentSpec("gru", 3, 4))
    formats.save(weights, tmp_path / "a.onnx")
    arrays = mr.to_arrays(weights, convention="onnx")
    data = (tmp_path / "a.onnx").read_bytes()
    assert all(array.tobytes() in data for array in arrays.values())
    assert [one.name for one in onnx.load(tmp_path / "a.onnx").graph.initializer][-3:] == list(arrays)


@pytest.mark.parametrize("spec", STACKS[::5], ids=str)
def test_the_backend_reads_and_runs_the_model_of_a_file(spec: mr.RecurrentSpec, tmp_path: Path) -> None:
    backend = pytest.importorskip("multirnn_onnxruntime", reason="ONNX Runtime is not installed").BACKEND
    weights = weights_of(spec)
    formats.save(weights, tmp_path / "a.onnx")
    model = onnx.load(tmp_path / "a.onnx")
    assert mr.read(model) == weights
    x, state, lengths = draw_call(spec)
    found = backend.adopt(model, None, compiled=False)(x, state, lengths=lengths)
    wanted = mr.build(weights, "numpy")(x, state, lengths=lengths)
    for actual, array in zip((found.sequence, *found.state.parts), (wanted.sequence, *wanted.state.parts), strict=True):
        assert difference(actual, array).normwise <= tolerance("float32")


def test_lengths_beyond_time_are_all_steps(tmp_path: Path) -> None:
    weights = weights_of(mr.RecurrentSpec("lstm", 5, 11))
    formats.save(weights, tmp_path / "a.onnx")
    x = np.random.default_rng(0).standard_normal((4, 2, 5)).astype("float32")
    model = session(tmp_path / "a.onnx")
    longer = model.run(None, {"x": x, "lengths": np.array([9, 4], np.int32)})
    assert all(np.array_equal(*pair) for pair in zip(longer, model.run(None, {"x": x}), strict=True))


def test_the_package_onnx_is_needed_and_loaded_for_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = weights_of(mr.RecurrentSpec("lstm", 5, 11))
    formats.save(weights, tmp_path / "a.onnx")
    for name in [
        name for name in sys.modules if name.partition(".")[0] == "onnx" or name.endswith("formats.onnx_graph")
    ]:
        monkeypatch.delitem(sys.modules, name)
    formats.save(weights, tmp_path / "a.npz")
    assert "onnx" not in sys.modules
    monkeypatch.setitem(sys.modules, "onnx", None)
    for use in (lambda: formats.load(tmp_path / "a.onnx"), lambda: formats.save(weights, tmp_path / "b.onnx")):
        with pytest.raises(mr.MissingFramework, match=r"needs the package 'onnx', which is not installed: pip install"):
            use()
    assert {one.name for one in tmp_path.iterdir()} == {"a.onnx", "a.npz"}
