"""The 18 node tests of the package onnx for RNN, GRU and LSTM: each read and run on every backend, or refused by name."""

import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import multirnn as mr
from multirnn import formats
from multirnn.numerics import difference, tolerance
from multirnn.weights import Array

onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")

REFUSED = {
    "test_gru_reverse": "it runs backward in time alone",
    "test_lstm_reverse": "it runs backward in time alone",
    "test_simple_rnn_reverse": "it runs backward in time alone",
    "test_lstm_with_peepholes": "it has peepholes",
}


def cases() -> dict[str, Any]:
    """By name. `collect_testcases` would import those of all operators: five seconds."""
    node = import_module("onnx.backend.test.case.node")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for operator in ("gru", "lstm", "rnn"):
            import_module(f"onnx.backend.test.case.node.{operator}")
    kinds = ("RNN", "GRU", "LSTM")
    return {case.name: case for case in node._NodeTestCases if case.model.graph.node[0].op_type in kinds}


CASES = cases()


def given(case: Any) -> dict[str, Array]:
    return dict(zip([one.name for one in case.model.graph.input], case.data_sets[0][0], strict=True))


def with_initialisers(case: Any) -> Any:
    """The same model, its weights in the file."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    for name, array in given(case).items():
        if name in ("W", "R", "B", "P"):
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
            for place, value in enumerate(model.graph.input):
                if value.name == name:
                    del model.graph.input[place]
                    break
    return model


def test_there_are_18() -> None:
    assert len(CASES) == 18
    assert REFUSED.keys() <= CASES.keys()


@pytest.mark.parametrize("name", sorted(CASES.keys() - REFUSED.keys()))
def test_a_case_is_read_in_both_forms_and_runs_on_every_backend(name: str, tmp_path: Path) -> None:
    case, path = CASES[name], tmp_path / "a.onnx"
    onnx.save(case.model, path)
    with pytest.raises(mr.FormatError, match=r"its W comes from the model's input 'W', .* pass inputs=\{'W': array\}"):
        formats.load(path)
    arrays = {name: array for name, array in given(case).items() if name in ("W", "R", "B")}
    weights = formats.load(path, inputs=arrays)
    onnx.save(with_initialisers(case), path)
    assert formats.load(path) == weights
    node = case.model.graph.node[0]
    batch_first = any(one.name == "layout" and one.i for one in node.attribute)
    x = given(case)["X"] if batch_first else given(case)["X"].swapaxes(0, 1)
    ran = 0
    for backend in ("numpy", "torch", "keras", "jax", "onnxruntime"):
        pytest.importorskip({"keras": "tensorflow"}.get(backend, backend))
        held = weights
        if mr.backend(backend).refuses(weights.spec) and weights.spec.bias == "double":
            held = mr.fold_biases(weights)  # Keras has one bias in an LSTM
        if mr.backend(backend).refuses(held.spec):
            assert not held.spec.reset_after, (backend, name)
            continue
        output = mr.build(held, backend)(x)
        wanted = dict(zip([one.name for one in case.model.graph.output], case.data_sets[0][1], strict=True))
        directions = len(weights.spec.directions)
        for key, array in wanted.items():
            if key in ("Y_h", "Y_c"):
                found = np.asarray(output.state[key == "Y_c"])
                found = found.swapaxes(0, 1) if batch_first else found
            else:
                batch, time, _ = np.shape(output.sequence)
                found = np.asarray(output.sequence).reshape(batch, time, directions, -1)
                found = found if batch_first else found.transpose(1, 2, 0, 3)
            assert difference(found, array).normwise <= tolerance("float32"), (backend, key)
        ran += 1
    assert ran >= 3


@pytest.mark.parametrize("name", REFUSED)
def test_a_case_that_no_spec_describes_is_refused_by_name(name: str, tmp_path: Path) -> None:
    case, path = CASES[name], tmp_path / "a.onnx"
    onnx.save(case.model, path)
    arrays = {key: array for key, array in given(case).items() if key in ("W", "R", "B", "P")}
    for read in (lambda: formats.load(path, inputs=arrays), lambda: formats.load(path)):
        with pytest.raises(mr.FormatError, match=REFUSED[name]):
            read()
    onnx.save(with_initialisers(case), path)
    with pytest.raises(mr.FormatError, match=REFUSED[name]):
        formats.load(path)


def test_inputs_that_the_model_has_not(tmp_path: Path) -> None:
    onnx.save(CASES["test_gru_defaults"].model, tmp_path / "a.onnx")
    with pytest.raises(mr.FormatError, match="the model has no input 'weights'; it has 'X', 'W', 'R'"):
        formats.load(tmp_path / "a.onnx", inputs={"weights": np.zeros(3, "float32")})
    formats.save(mr.initialise(mr.RecurrentSpec("gru", 2, 3)), tmp_path / "a.npz")
    with pytest.raises(mr.FormatError, match="takes no inputs=, which is for the inputs of an ONNX model"):
        formats.load(tmp_path / "a.npz", inputs={})
