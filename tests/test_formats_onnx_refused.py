"""ONNX models that no spec describes are refused, with the name of what it is."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_graphs import SPEC, arrays_of, graph, model, node, operator, read, stacks, value

import multirnn as mr

onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")

WEIGHTS = mr.initialise(SPEC, 1)
ARRAYS = arrays_of(WEIGHTS)
W = ARRAYS["W"]

PEEPHOLE = np.ones((1, 33), "float32")


def lstm(**more: Any) -> Any:
    weights = arrays_of(mr.initialise(mr.RecurrentSpec("lstm", 5, 11, bias="double"), 1))
    inputs = ("x", "W", "R", "B", "", "", "", "P") if more.pop("peepholes", False) else ("x", "W", "R", "B")
    return model([operator("LSTM", inputs, **more)], weights | {"P": PEEPHOLE})


REFUSED: dict[str, tuple[Any, str]] = {
    "peepholes": (
        lambda: lstm(peepholes=True),
        r"'layer' cannot be read: it has peepholes \(input P\), which no spec has",
    ),
    "clip": (lambda: lstm(clip=3.0), r"it clips what goes into its activations at 3.0 \(clip\), which no spec does"),
    "clip at zero": (lambda: lstm(clip=0.0), "it clips what goes into its activations at 0.0"),
    "input_forget": (lambda: lstm(input_forget=1), r"it has one gate for input and forgetting \(input_forget\)"),
    "reverse": (lambda: model([operator(direction="reverse")], ARRAYS), "it runs backward in time alone"),
    "direction": (lambda: model([operator(direction="up")], ARRAYS), "it has the direction 'up', which ONNX has not"),
    "layout": (lambda: model([operator(layout=2)], ARRAYS), "its layout is neither 0 nor 1"),
    "linear_before_reset": (lambda: model([operator(linear_before_reset=2)], ARRAYS), "neither 0 nor 1"),
    "attribute": (lambda: model([operator(speed=2)], ARRAYS), "it has the attribute 'speed', which ONNX has not"),
    "type": (lambda: model([operator(clip=3)], ARRAYS), "its attribute clip is of another type than in ONNX"),
    "activation": (
        lambda: model([operator(activations=["Sigmoid", "Softplus"])], ARRAYS),
        "no spec has the activation 'Softplus' of ONNX",
    ),
    "two activations": (lambda: lstm(activations=["Sigmoid", "Tanh", "Relu"]), "for its candidate and its output"),
    "few activations": (
        lambda: lstm(activations=["Sigmoid", "Tanh"]),
        "has 3 activations for each direction, and this",
    ),
    "projection": (
        lambda: model(
            [operator("LSTM", ("x", "W", "R"))],
            {"W": np.ones((1, 44, 5), "float32"), "R": np.ones((1, 44, 3), "float32")},
        ),
        r"its R must have the shape \(1, 44, 11\), none of it empty, not \(1, 44, 3\); a projection of the state",
    ),
    "hidden_size": (lambda: model([operator(hidden_size=10)], ARRAYS), r"its W must have the shape \(1, 30, 5\)"),
    "quantised": (
        lambda: model(
            [operator("DynamicQuantizeLSTM", domain="com.microsoft")],
            ARRAYS,
            opset_imports=[onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("com.microsoft", 1)],
        ),
        "com.microsoft.DynamicQuantizeLSTM: its weights are quantised",
    ),
    "quantised weights": (
        lambda: model(
            [node("DequantizeLinear", ["q", "s"], ["W"]), operator()],
            {"q": np.ones((1, 33, 5), "int8"), "s": np.float32(0.1), "R": ARRAYS["R"], "B": ARRAYS["B"]},
        ),
        "its W is computed by a node DequantizeLinear, and no constant",
    ),
    "rounded weights": (
        lambda: model(
            [node("Cast", ["w"], ["half"], to=10), node("Cast", ["half"], ["W"], to=1), operator()],
            {"w": W, "R": ARRAYS["R"], "B": ARRAYS["B"]},
        ),
        "it casts float32 to float16, which changes numbers",
    ),
    "no weights": (lambda: model([operator(inputs=("x", "", "R"))], ARRAYS), "it has no weights W and R"),
    "integers": (
        lambda: model([operator()], {name: array.astype("int32") for name, array in ARRAYS.items()}),
        "its weights are int32, and those of a layer real numbers",
    ),
    "mixed": (
        lambda: model([operator()], ARRAYS | {"R": ARRAYS["R"].astype("float64")}),
        "its weights are of several dtypes, float32, float64",
    ),
    "nothing": (lambda: model([operator(inputs=("x", "no", "R"))], ARRAYS), "nothing in the file makes 'no'"),
    "loop": (
        lambda: model(
            [
                node(
                    "Loop",
                    ["n", "", "x"],
                    ["Y"],
                    body=graph(
                        [node("Identity", ["c"], ["d"]), node("Tanh", ["a"], ["b"])],
                        ["d", "b"],
                        [value("i", kind=7), value("c", kind=9), value("a", 5)],
                    ),
                )
            ],
            {"n": np.array(3)},
        ),
        r"it has no operator RNN, GRU or LSTM; a recurrence that is written out in other nodes \(Loop\) is not read",
    ),
    "elementary": (
        lambda: model(
            [
                node("MatMul", ["x", "M"], ["a"]),
                node("Sigmoid", ["a"], ["b"]),
                node("Tanh", ["a"], ["c"]),
                node("Mul", ["b", "c"], ["Y"]),
            ],
            {"M": np.ones((5, 5), "float32")},
        ),
        r"written out in other nodes \(Mul, Sigmoid, Tanh\) is not read",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_no_spec_describes_is_refused_by_name(what: str, tmp_path: Path) -> None:
    make, reason = REFUSED[what]
    with pytest.raises(mr.FormatError, match=reason) as caught:
        read(make(), tmp_path)
    assert str(tmp_path / "a.onnx") in str(caught.value)


def test_a_model_without_recurrence_has_no_stacks(tmp_path: Path) -> None:
    made = model([node("Relu", ["x"], ["Y"])], {})
    assert stacks(made, tmp_path) == []
    with pytest.raises(mr.FormatError, match="holds no recurrent stack"):
        read(made, tmp_path)


def test_the_arrays_of_a_recurrence_in_other_nodes_are_read_by_their_names(tmp_path: Path) -> None:
    own = mr.to_arrays(WEIGHTS, convention="torch")
    arrays = {f"enc_{name}": array for name, array in own.items()}
    nodes = [node("Sigmoid", ["x"], ["a"]), node("Tanh", ["a"], ["b"]), node("Mul", ["a", "b"], ["c"])]
    made = model([*nodes, node("MatMul", ["c", "enc_weight_ih_l0"], ["Y"])], arrays)
    with pytest.raises(mr.FormatError, match="dynamo=False; or pass names= for the arrays of the model"):
        read(made, tmp_path)
    names = {f"enc_{name}": name for name in own}
    assert read(made, tmp_path, names=names, reset_after=True) == WEIGHTS


@pytest.mark.parametrize("clip", [float("inf"), float(np.finfo(np.float32).max)])
def test_a_clip_that_clips_nothing_is_read(clip: float, tmp_path: Path) -> None:
    assert read(lstm(clip=clip), tmp_path).spec.cell == "lstm"


def test_a_refused_operator_beside_a_readable_one_is_shown(tmp_path: Path) -> None:
    nodes = [operator(direction="reverse", outputs=("Z",), name="back"), operator()]
    made = model(nodes, ARRAYS, outputs=["Y", "Z"])
    readable, refused = stacks(made, tmp_path)
    assert (readable.name, readable.refused) == ("layer", "")
    assert (refused.name, refused.spec, refused.stored) == ("back", None, "")
    assert refused.refused.startswith("it runs backward in time alone")
    assert read(made, tmp_path, name="layer") == WEIGHTS
    with pytest.raises(mr.FormatError, match="holds the stacks 'layer', 'back'; pass name="):
        read(made, tmp_path)
    with pytest.raises(mr.FormatError, match="'back' cannot be read: it runs backward in time alone"):
        read(made, tmp_path, name="back")


def test_what_the_file_says_is_not_overruled(tmp_path: Path) -> None:
    made = model([operator()], ARRAYS)
    assert read(made, tmp_path, reset_after=True, activation="tanh", cell="gru") == WEIGHTS
    with pytest.raises(
        mr.FormatError, match=r"'layer' says reset_after=True, and the call False; leave reset_after= out"
    ):
        read(made, tmp_path, reset_after=False)


def test_parameters_in_float64_are_those_that_run(tmp_path: Path) -> None:
    arrays = {name: array.astype("float64") for name, array in ARRAYS.items()}
    made = model([operator(activations=["HardSigmoid", "Tanh"])], arrays)
    made.graph.node[0].attribute.append(onnx.helper.make_attribute("activation_alpha", [0.2]))
    gate = read(made, tmp_path).spec.recurrent_activation
    assert (gate.alpha, gate.beta) == (float(np.float32(0.2)), 0.5)
