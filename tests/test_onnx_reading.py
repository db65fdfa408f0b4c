"""ONNX models of others: what is read of them, what is refused, and which are run as they are."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from multirnn_onnxruntime import BACKEND, OnnxStack
from onnx import helper, numpy_helper
from onnx_models import BOTH, ONE_WAY, appended, attribute, changed, constant, mixed, operator, side_by_side, spec_of

import multirnn as mr
from multirnn.adoption import adopt
from multirnn.numerics import draw_call
from multirnn.testing import assert_layers_agree


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (changed(attribute("clip", 3.0)), "the GRU clips what goes into its activations (clip), which no spec does"),
        (
            changed(attribute("direction", "reverse")),
            "the GRU runs backward alone, and a spec runs forward or both ways",
        ),
        (changed(attribute("input_forget", 1), **ONE_WAY), "has one gate for input and forgetting (input_forget)"),
        (
            changed(lambda m: constant(m, 7, np.ones((1, 33), "float32")), **ONE_WAY),
            "the LSTM has peepholes (input P), which no spec has",
        ),
        (
            changed(lambda m: constant(m, 4, np.array([3, 2], "int32"))),
            "the GRU has lengths of its own, and those of a spec are given in a call",
        ),
        (
            changed(lambda m: constant(m, 5, np.ones((1, 2, 11), "float32"))),
            "the GRU starts from a state of its own, and a spec from one that it is given",
        ),
        (
            changed(attribute("activations", ["Sigmoid", "Softplus"])),
            "no spec has the activation 'Softplus' of ONNX; it has Elu, HardSigmoid, Affine, Relu, Sigmoid, Softsign, Tanh",
        ),
        (changed(attribute("activations", ["Sigmoid", "Affine"])), "no spec has the activation Affine with"),
        (
            changed(attribute("activations", ["Sigmoid", "Tanh", "Relu"]), **ONE_WAY),
            "other activations for its candidate and its output",
        ),
        (
            changed(attribute("activations", ["Sigmoid", "Tanh", "Sigmoid", "Relu"]), bidirectional=True),
            "the GRU has other activations in each direction",
        ),
        (
            changed(attribute("activations", ["Sigmoid", "Relu"]), num_layers=2),
            "those of the model differ in their activations",
        ),
        (
            changed(attribute("linear_before_reset", 0), num_layers=2),
            "those of the model differ in linear_before_reset",
        ),
        (
            changed(appended("Softmax")),
            "the model also computes Softmax, which no spec has; read a model of the recurrent",
        ),
        (changed(mixed, **BOTH), "layer 1 of the model is not fed by the outputs of the one below as they are"),
        (changed(lambda m: m.graph.ClearField("node")), "a spec has one kind of cell, and the model none"),
    ],
)
def test_models_that_no_spec_describes(model: onnx.ModelProto, sentence: str) -> None:
    with pytest.raises(mr.Unrepresentable) as error:
        mr.read(model)
    assert sentence in str(error.value)


def test_layers_that_are_fed_alike() -> None:
    """Of an input as wide as the hidden state two layers side by side have the arrays of one on the other."""
    weights = mr.initialise(mr.RecurrentSpec("gru", 11, 11, num_layers=2))
    model = BACKEND.build(weights).native.model
    assert mr.read(model) == weights
    side_by_side(model)
    with pytest.raises(mr.Unrepresentable, match="layer 1 of the model is not fed by the outputs of the one below"):
        mr.read(model)


def test_what_is_no_model() -> None:
    session = mr.build(spec_of(), BACKEND).native.session
    with pytest.raises(
        mr.Unrepresentable, match=r"hands out no weights; read the onnx\.ModelProto that it was made of"
    ):
        mr.read(session)
    with pytest.raises(mr.Unrepresentable, match=r"a dict is not an onnx\.ModelProto; onnx\.load\(path\) reads one"):
        BACKEND.read({})


def test_a_model_with_the_defaults_of_onnx() -> None:
    """Without lengths, states, biases and activations, its weights in constants, as short as ONNX allows."""
    rng = np.random.default_rng(0)
    arrays = {"W": rng.standard_normal((1, 11, 5)), "R": rng.standard_normal((1, 11, 11))}
    nodes = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array.astype("float32")))
        for name, array in arrays.items()
    ]
    described = helper.make_tensor_value_info
    graph = helper.make_graph(
        [*nodes, helper.make_node("RNN", ["x", "W", "R"], ["Y"], hidden_size=11)],
        "short",
        [described("x", onnx.TensorProto.FLOAT, ("T", "B", 5))],
        [described("Y", onnx.TensorProto.FLOAT, ("T", 1, "B", 11))],
    )
    weights = mr.read(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8))
    assert weights.spec == mr.RecurrentSpec("simple_rnn", 5, 11, bias="none")
    assert np.array_equal(weights.arrays["layers.0.forward.weight_hh"], arrays["R"].astype("float32"))


def at_least_one(model: onnx.ModelProto) -> None:
    """Lengths of at least one step, as exporters guard them."""
    model.graph.initializer.append(numpy_helper.from_array(np.array([1], "int32"), "one"))
    model.graph.node.insert(0, helper.make_node("Max", ["lengths", "one"], ["steps"]))
    operator(model).input[4] = "steps"


def flattened(model: onnx.ModelProto) -> None:
    """The last state `(batch, units)` beside the other outputs."""
    model.graph.node.append(helper.make_node("Flatten", [operator(model).output[1]], ["last"], axis=2))
    model.graph.output.append(helper.make_tensor_value_info("last", onnx.TensorProto.FLOAT, ("B", 11)))


def moved(model: onnx.ModelProto) -> None:
    """Recurrent weights that are stored transposed, and no `hidden_size`."""
    node = operator(model)
    tensor = next(one for one in model.graph.initializer if one.name == node.input[2])
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).swapaxes(1, 2).copy(), "R_T"))
    model.graph.node.insert(0, helper.make_node("Transpose", ["R_T"], ["R"], perm=[0, 2, 1]))
    node.input[2] = "R"
    kept = [one for one in node.attribute if one.name != "hidden_size"]
    del node.attribute[:]
    node.attribute.extend(kept)


def renamed_biases(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        for node in model.graph.node:
            node.input[:] = [f"my.{name}" if name == tensor.name else name for name in node.input]
        tensor.name = f"my.{tensor.name}"


@pytest.mark.parametrize("change", [at_least_one, flattened, moved, attribute("clip", float("inf"))])
def test_what_the_reader_of_files_reads_is_read(change: Callable[[onnx.ModelProto], Any]) -> None:
    assert mr.read(changed(change)) == mr.initialise(spec_of())


@pytest.mark.parametrize("fields", [{"cell": "lstm"}, {"bias": "single"}])
def test_a_single_bias_is_read_by_what_it_is_joined_from(fields: Any) -> None:
    """Whatever its name."""
    assert mr.read(changed(renamed_biases, **fields)) == mr.initialise(spec_of(**fields))


@pytest.mark.parametrize(
    ("array", "nodes", "sentence"),
    [
        (
            np.full((1, 33, 5), 0.1, "float32"),
            [("Cast", ["w"], ["half"], {"to": 10}), ("Cast", ["half"], ["W"], {"to": 1})],
            "the constants of the model cannot be read: a node Cast cannot be computed: it casts float32 to float16",
        ),
        (
            np.full((1, 33, 5), 0.1, "float32"),
            [("Reshape", ["w", "lengths"], ["W"], {})],
            "the weights W of layer 0 are given in a call, as 'lengths'",
        ),
        (
            np.ones((7, 1, 5), "float32"),
            [("GRU", ["w", "layers.0.W", "layers.0.R"], ["", "W"], {"hidden_size": 11, "linear_before_reset": 1})],
            "'W' of the model depends on a node GRU, and is no constant",
        ),
    ],
    ids=["rounded", "given", "computed"],
)
def test_weights_that_are_not_read(array: Any, nodes: list[Any], sentence: str) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(array, "w"))
        node = operator(model)
        for kind, inputs, outputs, more in reversed(nodes):
            model.graph.node.insert(0, helper.make_node(kind, inputs, outputs, **more))
        node.input[1] = "W"

    with pytest.raises(mr.Unrepresentable) as error:
        mr.read(changed(change))
    assert sentence in str(error.value)


def test_alphas_that_were_meant() -> None:
    """ONNX has them in float32, which is none of these numbers."""
    for alpha in (0.2, 1 / 6, 0.1, 0.7, 1 / 3, 0.123456):
        spec = spec_of(recurrent_activation=mr.Activation("hard_sigmoid", alpha, 0.5))
        assert mr.read(mr.build(spec, BACKEND).native).spec == spec


# --- Models that run as they are -------------------------------------------------------------------------------------


@pytest.mark.parametrize("native", [lambda stack: stack, lambda stack: stack.model], ids=["stack", "model"])
def test_a_model_is_adopted_as_it_is(native: Callable[[OnnxStack], Any]) -> None:
    layer = mr.build(spec_of("lstm", **BOTH), BACKEND, seed=4)
    mine = native(layer.native)
    adopted = adopt(mine)
    assert adopted.native is mine
    assert (adopted.readable, adopted.differentiable, adopted.takes_lengths, adopted.compilable) == (
        True,
        False,
        True,
        False,
    )
    assert (adopted.weights(), adopted.parameter_count) == (layer.weights(), layer.spec.parameter_count)
    x, state, lengths = draw_call(layer.spec)
    assert np.array_equal(adopted(x, state, lengths=lengths).sequence, layer(x, state, lengths=lengths).sequence)
    assert "agree in 3 quantities" in str(assert_layers_agree(mine, mr.build(layer.weights(), "numpy")))
    with pytest.raises(mr.InvalidCall, match="has no gradients"):
        adopted.vjp(x, cotangent=layer(x))
    with pytest.raises(mr.InvalidCall, match="no compiled form of a model beside its session; run it"):
        adopt(mine, compiled=True)


def test_a_model_that_nobody_can_call() -> None:
    def renamed(model: onnx.ModelProto) -> None:
        model.graph.input[0].name = operator(model).input[0] = "input"

    model = changed(renamed)
    with pytest.raises(
        mr.InvalidCall, match=r"it takes input, lengths, h_0 and returns y, h_n, and x, lengths, h_0 and returns"
    ):
        adopt(model)
    with pytest.raises(mr.InvalidCall, match=r"runs an onnx.ModelProto or an OnnxStack, not a InferenceSession"):
        adopt(mr.build(spec_of(), BACKEND).native.session, spec=spec_of())


def transposed(model: onnx.ModelProto) -> None:
    """x with batch first, under the name of the one with time first."""
    model.graph.node.insert(0, helper.make_node("Transpose", ["x"], ["time_first"], perm=[1, 0, 2]))
    operator(model).input[0] = "time_first"


def of_one_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 3


def wide_lengths(model: onnx.ModelProto) -> None:
    """Lengths in 64 bits, as other frameworks have them."""
    model.graph.input[1].type.tensor_type.elem_type = onnx.TensorProto.INT64
    model.graph.node.insert(0, helper.make_node("Cast", ["lengths"], ["narrow"], to=onnx.TensorProto.INT32))
    operator(model).input[4] = "narrow"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (transposed, "this model takes x batch first, and x time first, of any size, would be right"),
        (wide_lengths, "this model takes lengths in int64, and int32 would be right"),
        (of_one_batch, "this model takes x of one size alone, and x time first, of any size, would be right"),
    ],
)
def test_models_that_are_read_and_called_otherwise(change: Callable[[onnx.ModelProto], Any], sentence: str) -> None:
    model = changed(change)
    assert mr.read(model) == mr.initialise(spec_of())
    with pytest.raises(mr.InvalidCall) as error:
        adopt(model)
    assert sentence in str(error.value)


def test_a_model_that_is_changed_after_it_was_adopted() -> None:
    """The session keeps what it was made of, and so do the weights."""
    model = changed(lambda _: None)
    adopted = adopt(model)
    tensor = model.graph.initializer[0]
    tensor.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(tensor), tensor.name))
    assert adopted.weights() == mr.initialise(spec_of())
