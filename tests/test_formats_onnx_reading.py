"""ONNX models of others: where operators stand, how weights are reached, what is one stack, what surrounds it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_graphs import SPEC, arrays_of, graph, model, node, operator, read, stacks, value

import multirnn as mr
from multirnn import formats
from multirnn.formats.contents import numbers_of

onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")

WEIGHTS = mr.initialise(SPEC, 1)
ARRAYS = arrays_of(WEIGHTS)


# --- Where operators stand ---------------------------------------------------------------------------------------------


def in_branch() -> Any:
    branch = graph([operator()], ["Y"])
    other = graph([node("Identity", ["x"], ["same"])], ["same"])
    nodes = [node("If", ["flag"], ["out"], then_branch=branch, else_branch=other, name="choice")]
    inputs = [value("x", "time", "batch", 5), value("flag", kind=onnx.TensorProto.BOOL)]
    return model(nodes, ARRAYS, inputs=inputs, outputs=["out"])


def in_loop() -> Any:
    body = graph(
        [node("Identity", ["go"], ["still"]), operator(), node("Identity", ["h"], ["next"])],
        ["still", "next", "Y"],
        [value("count", kind=7), value("go", kind=9), value("h", 3)],
        ARRAYS,
    )
    nodes = [node("Loop", ["times", "", "h_0"], ["last", "all"], body=body, name="loop")]
    inputs = [value("x", "time", "batch", 5), value("times", kind=7), value("h_0", 3)]
    return model(nodes, {}, inputs=inputs, outputs=["all"])


def in_scan() -> Any:
    body = graph([operator(inputs=("part", "W", "R", "B"))], ["Y"], [value("part", "time", "batch", 5)])
    nodes = [node("Scan", ["x"], ["all"], body=body, num_scan_inputs=1, name="scan")]
    return model(nodes, ARRAYS, inputs=[value("x", 3, "time", "batch", 5)], outputs=["all"])


def in_function() -> Any:
    """Weights are arguments of the function, and its attribute is that of the call."""
    inside = operator(inputs=("a", "w", "r", "b"), outputs=("y",))
    for one in inside.attribute:
        if one.name == "hidden_size":
            one.ClearField("i")
            one.ref_attr_name = "units"
    function = onnx.helper.make_function(
        "own", "Layer", ["a", "w", "r", "b"], ["y"], [inside], [onnx.helper.make_opsetid("", 18)], ["units"]
    )
    call = node("Layer", ["x", "W", "R", "B"], ["Y"], domain="own", units=11, name="call")
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("own", 1)]
    return model([call], ARRAYS, functions=[function], opset_imports=opsets)


@pytest.mark.parametrize(
    ("made", "name", "around"),
    [
        (in_branch, "choice/layer", "it is inside of If"),
        (in_loop, "loop/layer", "it is inside of Loop"),
        (in_scan, "scan/layer", "it is inside of Scan"),
        (in_function, "call/layer", "it takes the model's input 'x' as (time, batch, features)"),
    ],
)
def test_operators_inside_of_other_nodes(made: Any, name: str, around: str, tmp_path: Path) -> None:
    (stack,) = stacks(made(), tmp_path)
    assert (stack.name, stack.spec) == (name, SPEC)
    assert around in stack.about
    assert read(made(), tmp_path) == WEIGHTS


def test_several_operators_have_names_of_their_own(tmp_path: Path) -> None:
    other = arrays_of(mr.initialise(SPEC, 2))
    nodes = [
        operator(name=""),
        operator(inputs=("x", "W2", "R2", "B2"), outputs=("Z",), name=""),
        operator(outputs=("same",), name=""),
    ]
    made = model(nodes, ARRAYS | {f"{name}2": array for name, array in other.items()}, outputs=["Y", "Z", "same"])
    assert [stack.name for stack in stacks(made, tmp_path)] == ["GRU", "GRU_1"]  # the third shares its weights
    assert read(made, tmp_path, name="GRU_1") == mr.initialise(SPEC, 2)
    with pytest.raises(mr.FormatError, match="holds the stacks 'GRU', 'GRU_1'; pass name="):
        read(made, tmp_path)


def test_two_stacks_are_each_named(tmp_path: Path) -> None:
    other = arrays_of(mr.initialise(mr.RecurrentSpec("lstm", 5, 11, bias="double")))
    nodes = [operator(), operator("LSTM", ("x", "W2", "R2", "B2"), ("Z",), name="other")]
    made = model(nodes, ARRAYS | {f"{name}2": array for name, array in other.items()}, outputs=["Y", "Z"])
    assert [stack.name for stack in stacks(made, tmp_path)] == ["layer", "other"]
    nodes = [operator(), node("Identity", ["x"], ["same"])]
    assert [stack.name for stack in stacks(model(nodes, ARRAYS, outputs=["Y", "same"]), tmp_path)] == ["layer"]


# --- How weights are reached -------------------------------------------------------------------------------------------


def constant(name: str, array: Any) -> Any:
    return node("Constant", [], [name], value=onnx.numpy_helper.from_array(np.asarray(array)))


W = ARRAYS["W"]
REACHED: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "constant": ([constant("W", W)], {}),
    "identity": ([node("Identity", ["w"], ["W"])], {"w": W}),
    "transposed": ([node("Transpose", ["w"], ["W"], perm=[2, 0, 1])], {"w": W.transpose(1, 2, 0)}),
    "reshaped": ([node("Reshape", ["w", "shape"], ["W"])], {"w": W.reshape(3, -1), "shape": np.array([1, -1, 5])}),
    "unsqueezed": ([node("Unsqueeze", ["w", "axes"], ["W"])], {"w": W[0], "axes": np.array([0])}),
    "squeezed": ([node("Squeeze", ["w", "axes"], ["W"])], {"w": W[None], "axes": np.array([0])}),
    "sliced and joined": (
        [
            node("Slice", ["w", "zero", "ten", "one"], ["a"]),
            node("Slice", ["w", "ten", "all", "one"], ["b"]),
            node("Concat", ["b", "a"], ["W"], axis=1),
        ],
        {
            "w": np.roll(W, 10, 1),
            "zero": np.array([0]),
            "ten": np.array([10]),
            "one": np.array([1]),
            "all": np.array([2**62]),
        },
    ),
    "split": (
        [node("Split", ["w", "sizes"], ["W", "rest"], axis=1)],
        {"w": np.concatenate([W, W[:, :2]], 1), "sizes": np.array([33, 2])},
    ),
    "gathered": (
        [node("Gather", ["w", "places"], ["W"], axis=1)],
        {"w": W[:, ::-1].copy(), "places": np.arange(33)[::-1].copy()},
    ),
    "widened": ([node("Cast", ["w"], ["W"], to=1)], {"w": W.astype("float16")}),
}


@pytest.mark.parametrize("how", REACHED)
def test_weights_through_nodes_that_move_numbers(how: str, tmp_path: Path) -> None:
    nodes, arrays = REACHED[how]
    made = model([*nodes, operator()], {name: ARRAYS[name] for name in ("R", "B")} | arrays)
    wanted = dict(ARRAYS)
    if how == "widened":
        wanted["W"] = W.astype("float16").astype("float32")
    weights = read(made, tmp_path)
    (stack,) = formats.inspect(tmp_path / "a.onnx")
    assert (stack.stored, stack.name) == ("float16" if how == "widened" else "float32", "")
    assert {name: array.tobytes() for name, array in arrays_of(weights).items()} == {
        name: array.tobytes() for name, array in wanted.items()
    }


def test_weights_that_a_function_moves(tmp_path: Path) -> None:
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("own", 1)]
    turned = [node("Transpose", ["a"], ["b"], perm=[0, 2, 1]), node("Identity", ["b"], ["c"])]
    function = onnx.helper.make_function("own", "Turned", ["a"], ["c"], turned, opsets[:1])
    nodes = [node("Turned", ["w"], ["W"], domain="own"), operator()]
    arrays = ARRAYS | {"w": W.swapaxes(1, 2)}
    made = model(nodes, {name: arrays[name] for name in "wRB"}, functions=[function], opset_imports=opsets)
    assert read(made, tmp_path) == WEIGHTS


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_dtype_in_the_file_is_said(dtype: str, tmp_path: Path) -> None:
    made = model([operator()], {name: array.astype(dtype) for name, array in ARRAYS.items()})
    (stack,) = stacks(made, tmp_path)
    assert stack.stored == dtype
    assert stack.spec.dtype == ("float64" if dtype == "float64" else "float32")


def test_bfloat16_is_widened(tmp_path: Path) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    made = model([operator()], {name: array.astype(ml_dtypes.bfloat16) for name, array in ARRAYS.items()})
    (stack,) = stacks(made, tmp_path)
    assert (stack.stored, stack.spec.dtype) == ("bfloat16", "float32")
    wanted = W.astype(ml_dtypes.bfloat16).astype("float32")
    assert np.array_equal(arrays_of(read(made, tmp_path))["W"], wanted)
    assert np.array_equal(numbers_of("W", formats.read(tmp_path / "a.onnx").arrays["W"]), wanted)


# --- What is one stack -------------------------------------------------------------------------------------------------

BOTH = mr.RecurrentSpec("gru", 5, 11, 2, True, "double")
TWO = mr.initialise(BOTH, 4)
LOWER, UPPER = arrays_of(TWO), arrays_of(TWO, 1)


def two(between: list[Any], *, x: str = "x", **more: Any) -> Any:
    """Two bidirectional layers; nodes from Y to `above`, and around them."""
    nodes = [
        operator(inputs=(x, "W", "R", "B"), direction="bidirectional"),
        *between,
        operator(inputs=("above", "W1", "R1", "B1"), outputs=("Z", "Z_h"), direction="bidirectional", name="upper"),
    ]
    arrays = LOWER | {f"{name}1": array for name, array in UPPER.items()}
    arrays |= {"shape": np.array([0, 0, 22]), "flat": np.array([0, 0, -1]), "one": np.array([1])}
    return model(nodes, arrays, **{"outputs": ["Z"], **more})


RIGHT = [node("Transpose", ["Y"], ["turned"], perm=[0, 2, 1, 3]), node("Reshape", ["turned", "shape"], ["above"])]
WRONG = {
    "not transposed": [node("Reshape", ["Y", "shape"], ["above"])],
    "transposed too far": [
        node("Transpose", ["Y"], ["turned"], perm=[2, 0, 1, 3]),
        node("Reshape", ["turned", "flat"], ["above"]),
    ],
    "units before directions": [
        node("Transpose", ["Y"], ["turned"], perm=[0, 2, 3, 1]),
        node("Reshape", ["turned", "flat"], ["above"]),
    ],
}


def test_layers_in_the_right_order_are_one_stack(tmp_path: Path) -> None:
    (stack,) = stacks(two(RIGHT), tmp_path)
    assert (stack.name, stack.spec) == ("", BOTH)
    assert read(two(RIGHT), tmp_path) == TWO
    inputs = [value("x", 7, 3, 5)]
    assert read(two(RIGHT, inputs=inputs), tmp_path) == TWO
    turned = two([node("Transpose", ["a"], ["x_"], perm=[1, 0, 2]), *RIGHT], x="x_", inputs=[value("a", "b", "t", 5)])
    turned.graph.node.insert(0, turned.graph.node[1])
    del turned.graph.node[2]
    (stack,) = stacks(turned, tmp_path)
    assert "it takes the model's input 'a' as (batch, time, features)" in stack.about
    assert stack.name == ""


@pytest.mark.parametrize("how", WRONG)
def test_layers_in_a_wrong_order_are_refused(how: str, tmp_path: Path) -> None:
    with pytest.raises(
        mr.FormatError, match=r"from the operator 'layer' to 'upper' the numbers go through .*Reshape, which is not"
    ):
        stacks(two(WRONG[how]), tmp_path)


def test_layers_with_something_between_them_are_stacks_of_their_own(tmp_path: Path) -> None:
    between = [*RIGHT[:1], node("Reshape", ["turned", "shape"], ["y"]), node("Relu", ["y"], ["above"])]
    lower, upper = stacks(two(between), tmp_path)
    assert (lower.name, upper.name) == ("layer", "upper")
    assert "after it: Transpose, Reshape, Relu, GRU" in lower.about
    assert "before it: GRU, Transpose, Reshape, Relu" in upper.about


def test_layers_that_no_spec_describes_together_are_stacks_of_their_own(tmp_path: Path) -> None:
    made = two(RIGHT)
    made.graph.node[-1].attribute.append(onnx.helper.make_attribute("activations", ["Sigmoid", "Relu"] * 2))
    assert [stack.spec.activation for stack in stacks(made, tmp_path)] == ["tanh", "relu"]


def test_layers_with_other_lengths_biases_or_sizes_are_stacks_of_their_own(tmp_path: Path) -> None:
    inputs = [value("x", "t", "b", 5), value("n", "b", kind=6), value("m", "b", kind=6)]
    for given, together in ((("n", "n"), True), (("n", ""), False), (("n", "m"), False)):
        made = two(RIGHT, inputs=inputs)
        for place, name in zip((0, -1), given, strict=True):
            made.graph.node[place].input.append(name)
        assert len(stacks(made, tmp_path)) == 2 - together
    made = two(RIGHT)
    made.graph.node[-1].input.pop()
    assert [stack.spec.bias for stack in stacks(made, tmp_path)] == ["double", "none"]
    small = arrays_of(mr.initialise(mr.RecurrentSpec("gru", 22, 7, 1, True, "double")))
    made = two(RIGHT)
    next(one for one in made.graph.node[-1].attribute if one.name == "hidden_size").i = 7
    for tensor in made.graph.initializer:
        if tensor.name in ("W1", "R1", "B1"):
            tensor.CopyFrom(onnx.numpy_helper.from_array(small[tensor.name[0]], tensor.name))
    assert [stack.spec.hidden_size for stack in stacks(made, tmp_path)] == [11, 7]


@pytest.mark.parametrize(
    ("zeros", "as_constant", "bias"), [(0.0, True, "single"), (0.5, True, "double"), (0.0, False, "double")]
)
def test_a_bias_joined_with_constant_zeros_is_single(
    zeros: float, as_constant: bool, bias: str, tmp_path: Path
) -> None:
    """Zeros that are initialisers may be parameters that have not been trained."""
    weights = mr.initialise(mr.RecurrentSpec("lstm", 5, 11, bias="double"), 1)
    arrays = arrays_of(weights)
    first, second = arrays.pop("B")[:, :44], np.full((1, 44), zeros, "float32")
    nodes = [node("Concat", ["first", "second"], ["B"], axis=1), operator("LSTM")]
    if as_constant:
        nodes.insert(0, constant("second", second))
    made = model(nodes, arrays | {"first": first} | ({} if as_constant else {"second": second}))
    found = read(made, tmp_path)
    assert found.spec.bias == bias
    assert np.array_equal(arrays_of(mr.split_biases(found))["B"], np.concatenate([first, second], 1))


def test_a_layer_that_feeds_two_is_not_stacked(tmp_path: Path) -> None:
    made = two(RIGHT, outputs=["Z", "Q"])
    made.graph.node.append(
        operator(inputs=("above", "R1", "R1", "B1"), outputs=("Q",), direction="bidirectional", name="other")
    )
    made.graph.node[-1].input[1] = "W1"
    assert [stack.name for stack in stacks(made, tmp_path)] == ["layer", "upper"]  # the third has the second's weights


def test_x_and_outputs_in_a_wrong_order_are_refused(tmp_path: Path) -> None:
    before = [node("Transpose", ["x"], ["a"], perm=[2, 1, 0]), operator(inputs=("a", "W", "R", "B"))]
    with pytest.raises(
        mr.FormatError, match="from the input 'x' to the operator 'layer' the numbers go through Transpose"
    ):
        stacks(model(before, ARRAYS, inputs=[value("x", 5, "b", "t")]), tmp_path)
    after = [operator(), node("Transpose", ["Y"], ["out"], perm=[3, 0, 1, 2])]
    with pytest.raises(
        mr.FormatError, match="from the operator 'layer' to the output 'out' the numbers go through Transpose"
    ):
        stacks(model(after, ARRAYS, outputs=["out"]), tmp_path)


def test_batch_first_operators_are_stacked(tmp_path: Path) -> None:
    nodes = [
        operator(direction="bidirectional", layout=1),
        node("Reshape", ["Y", "shape"], ["above"]),
        operator(
            inputs=("above", "W1", "R1", "B1"), outputs=("Z", "Z_h"), direction="bidirectional", layout=1, name="u"
        ),
    ]
    arrays = LOWER | {f"{name}1": array for name, array in UPPER.items()} | {"shape": np.array([0, 0, -1])}
    made = model(nodes, arrays, outputs=["Z", "Z_h"])
    (stack,) = stacks(made, tmp_path)
    assert (stack.name, stack.spec) == ("", BOTH)
    assert stack.about == (
        "it takes the model's input 'x' as (batch, time, features)",
        "it starts from zero",
        "the model returns its outputs (batch, time, directions, units) as 'Z', its final h of layer 1, batch first as 'Z_h'",
    )
    assert read(made, tmp_path) == TWO


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_what_pytorch_exports_is_one_stack(kind: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    for layers, both, batch_first, free in ((1, False, False, True), (2, True, True, False), (3, True, False, True)):
        module = getattr(torch.nn, kind)(5, 11, layers, bidirectional=both, batch_first=batch_first)
        names = {"input_names": ["x"], "dynamic_axes": {"x": [0, 1]}} if free else {}
        torch.onnx.export(module, (torch.zeros(3, 7, 5),), str(tmp_path / "a.onnx"), dynamo=False, **names)
        (stack,) = formats.inspect(tmp_path / "a.onnx")
        assert stack.name == ""
        assert formats.load(tmp_path / "a.onnx") == mr.read(module)


# --- What surrounds it -------------------------------------------------------------------------------------------------


def test_nodes_before_and_after_are_said(tmp_path: Path) -> None:
    nodes = [
        node("Relu", ["x"], ["a"]),
        node("Add", ["a", "a"], ["b"]),
        operator(inputs=("b", "W", "R", "B", "", "h")),
        node("Gather", ["Y", "last"], ["c"]),
        node("MatMul", ["c", "M"], ["out"]),
        node("Softmax", ["out"], ["more"]),
    ]
    inputs = [value("x", "t", "b", 5), value("h", 1, "b", 11)]
    arrays = ARRAYS | {"last": np.array(-1), "M": np.ones((11, 2), "float32")}
    (stack,) = stacks(model(nodes, arrays, inputs=inputs, outputs=["more", "Y_h"]), tmp_path)
    assert stack.name == "layer"
    assert stack.about == (
        "before it: Relu, Add",
        "its initial h is the model's input 'h'",
        "the model returns its final h as 'Y_h'",
        "after it: Gather, MatMul, Softmax",
    )


def test_another_order_among_other_nodes_is_described(tmp_path: Path) -> None:
    made = two(WRONG["transposed too far"], outputs=["out"])
    made.graph.node.append(node("Relu", ["Z"], ["out"]))
    lower, upper = stacks(made, tmp_path)
    assert (lower.name, upper.name) == ("layer", "upper")
    assert "before it: GRU, Transpose, Reshape" in upper.about


def test_a_part_of_x_is_no_whole_stack(tmp_path: Path) -> None:
    slices = {"start": np.array([0]), "end": np.array([5]), "axis": np.array([2])}
    nodes = [node("Slice", ["x", "start", "end", "axis"], ["a"]), operator(inputs=("a", "W", "R", "B"))]
    (stack,) = stacks(model(nodes, ARRAYS | slices, inputs=[value("x", "t", "b", 6)]), tmp_path)
    assert (stack.name, stack.about[0]) == ("layer", "before it: Slice")


def test_a_last_step_is_no_whole_stack(tmp_path: Path) -> None:
    nodes = [operator(), node("Gather", ["Y", "last"], ["out"])]
    (stack,) = stacks(model(nodes, ARRAYS | {"last": np.array(-1)}, outputs=["out"]), tmp_path)
    assert (stack.name, stack.about[-1]) == ("layer", "after it: Gather")


def test_lengths_and_states_are_said(tmp_path: Path) -> None:
    inputs = [value("x", "t", "b", 5), value("n", "b", kind=6)]
    nodes = [operator(inputs=("x", "W", "R", "B", "n", "h"))]
    h = np.full((1, 5, 11), 0.5, "float32")
    (stack,) = stacks(model(nodes, ARRAYS | {"h": h}, inputs=inputs), tmp_path)
    assert stack.about[1:3] == (
        "the lengths of the rows are the model's input 'n'",
        "its initial h is a constant of the model that is not zero; weights do not hold it",
    )
    assert stack.name == "layer"
    (stack,) = stacks(model(nodes, ARRAYS | {"h": 0 * h}, inputs=inputs), tmp_path)
    assert stack.about[2] == "it starts from zero"
    assert stack.name == ""
    (stack,) = stacks(model(nodes, ARRAYS | {"h": h, "n": np.array([1, 2])}, inputs=inputs[:1]), tmp_path)
    assert stack.about[1] == "the lengths of the rows are computed by the model, or constants of it"
    nodes = [node("Relu", ["h"], ["g"]), operator(inputs=("x", "W", "R", "B", "", "g"))]
    (stack,) = stacks(model(nodes, ARRAYS, inputs=[*inputs[:1], value("h", 1, "b", 11)]), tmp_path)
    assert "its initial h is computed by the model" in stack.about


def test_a_state_that_may_be_left_out(tmp_path: Path) -> None:
    inputs = [value("x", "t", "b", 5), value("h", 1, "b", 11)]
    nodes = [operator(inputs=("x", "W", "R", "B", "", "h"))]
    for number, more in ((0, ""), (0.5, ", which is not zero if it is left out")):
        held = ARRAYS | {"h": np.full((1, 1, 11), number, "float32")}
        (stack,) = stacks(model(nodes, held, inputs=inputs), tmp_path)
        assert stack.about[1] == f"its initial h is the model's input 'h'{more}"


def test_states_in_another_order_are_no_whole_stack(tmp_path: Path) -> None:
    made = two(RIGHT, inputs=[value("x", "t", "b", 5), value("h", 4, "b", 11)])
    made.graph.node.insert(0, node("Split", ["h"], ["h1", "h0"], num_outputs=2, axis=0))
    for place, name in ((1, "h0"), (-1, "h1")):
        made.graph.node[place].input.extend(["", name])
    (stack,) = stacks(made, tmp_path)
    assert "its initial h comes from the model's input 'h'" in stack.about
    assert stack.name == "layer upper"
