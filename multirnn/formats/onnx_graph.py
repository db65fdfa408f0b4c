"""A stack as an ONNX graph: an operator RNN, LSTM or GRU for each layer, and nodes that reshape between them.

The signature of the graph, time first as the operators have it (`layout=0`, the only layout that ONNX Runtime takes):

    x        (time, batch, input_size)                            y    (time, batch, directions * hidden_size)
    lengths  (batch,), int32, each from 1 to time                 h_n  (num_layers * directions, batch, hidden_size)
    h_0      (num_layers * directions, batch, hidden_size)        c_n  of an LSTM, as h_n
    c_0      of an LSTM, as h_0

In a file (`optional`), x alone is needed: the other inputs have values that hold unless a call gives others, all steps and
zeros; lengths beyond time are all steps too. They are initialisers of one row, which the graph repeats for every row;
ONNX Runtime calls them overridable, and warns when it loads the model that they are no constants.

The other initialisers are exactly the parameters; shapes, and zeros for the biases that the spec lacks, are constants.
Sources: the ONNX operators RNN, LSTM, GRU; `onnxruntime/core/providers/cpu/rnn`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from multirnn.formats import onnx_facts
from multirnn.formats.onnx_facts import OPERATORS
from multirnn.spec import RecurrentSpec
from multirnn.weights import Array

__all__ = ["inputs_of", "model", "outputs_of", "skeleton"]

# The oldest with the operators' present form: the models load in ONNX Runtime 1.10 or later.
OPSET, IR_VERSION = 14, 8
ALL_STEPS = 2**31 - 1


def inputs_of(spec: RecurrentSpec) -> tuple[str, ...]:
    """The names of the graph's inputs."""
    return ("x", "lengths", *(f"{state}_0" for state in spec.form.states))


def outputs_of(spec: RecurrentSpec) -> tuple[str, ...]:
    """The names of the graph's outputs."""
    return ("y", *(f"{state}_n" for state in spec.form.states))


def model(spec: RecurrentSpec, arrays: Mapping[str, Array]) -> ModelProto:
    """The model of a stack in which all inputs have to be given.

    Args:
        spec: of the stack.
        arrays: its initialisers, `layers.{k}.{W|R|B|Wb|Rb}`.
    """
    model = skeleton(spec, {name: array.shape for name, array in arrays.items()})
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    return model


def skeleton(spec: RecurrentSpec, shapes: Mapping[str, tuple[int, ...]], *, optional: bool = False) -> ModelProto:
    """The model of a stack without its parameters, which are its initialisers `layers.{k}.{W|R|B|Wb|Rb}`.

    Args:
        spec: of the stack.
        shapes: of the parameters.
        optional: whether lengths and initial states may be left out of a call.
    """
    rows = spec.num_layers * len(spec.directions)
    state: Sequence[str | int] = (rows, "batch", spec.hidden_size)
    sizes: dict[str, Sequence[str | int]] = {
        "x": ("time", "batch", spec.input_size),
        "lengths": ("batch",),
        "y": ("time", "batch", spec.output_size),
    }
    kinds = {"lengths": TensorProto.INT32}
    real = helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))

    def described(name: str) -> Any:
        return helper.make_tensor_value_info(name, kinds.get(name, real), sizes.get(name, state))

    given = {name: name for name in inputs_of(spec)}
    defaults: dict[str, Any] = {}
    nodes: list[NodeProto] = []
    if optional:
        given |= {name: f"{name}.rows" for name in inputs_of(spec)[1:]}
        defaults = {name: np.zeros((rows, 1, spec.hidden_size), spec.dtype) for name in inputs_of(spec)[2:]}
        nodes += _repeated(spec, given)
        defaults["lengths"] = np.array([ALL_STEPS], np.int32)
    graph = helper.make_graph(
        [*nodes, *_nodes(spec, shapes, given)],
        spec.cell,
        [described(name) for name in inputs_of(spec)],
        [described(name) for name in outputs_of(spec)],
        [numpy_helper.from_array(array, name) for name, array in defaults.items()],
    )
    return helper.make_model(
        graph, producer_name="multirnn", opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )


def _repeated(spec: RecurrentSpec, given: Mapping[str, str]) -> Iterator[NodeProto]:
    """Lengths and initial states for every row, where those of a call or of the initialisers have one row or all."""
    yield helper.make_node("Shape", ["x"], ["x.shape"])
    for axis, size in enumerate(("time", "batch")):
        yield _constant(f"{size}.axis", np.array([axis]))
        yield helper.make_node("Gather", ["x.shape", f"{size}.axis"], [size])
    yield helper.make_node("Cast", ["time"], ["time.int32"], to=TensorProto.INT32)
    yield helper.make_node("Min", ["lengths", "time.int32"], ["lengths.steps"])
    yield helper.make_node("Expand", ["lengths.steps", "batch"], [given["lengths"]])
    yield _constant("state.rows", np.array([spec.num_layers * len(spec.directions)]))
    yield _constant("state.units", np.array([spec.hidden_size]))
    yield helper.make_node("Concat", ["state.rows", "batch", "state.units"], ["state.shape"], axis=0)
    for name in inputs_of(spec)[2:]:
        yield helper.make_node("Expand", [name, "state.shape"], [given[name]])


def _nodes(spec: RecurrentSpec, shapes: Mapping[str, tuple[int, ...]], given: Mapping[str, str]) -> Iterator[NodeProto]:
    last = spec.num_layers - 1
    states = spec.form.states
    parts = {s: [f"layers.{k}.{s}_0" if last else given[f"{s}_0"] for k in range(spec.num_layers)] for s in states}
    ends = {s: [f"layers.{k}.{s}_n" if last else f"{s}_n" for k in range(spec.num_layers)] for s in states}
    if last:
        yield from (helper.make_node("Split", [given[f"{s}_0"]], parts[s], axis=0) for s in states)
    attributes = onnx_facts.attributes(spec)
    if spec.cell == "gru":
        attributes["linear_before_reset"] = int(spec.reset_after)
    x = "x"
    for k in range(spec.num_layers):
        layer = f"layers.{k}"
        yield from _bias(spec, layer, shapes)
        bias = "" if spec.bias == "none" else f"{layer}.B"
        yield helper.make_node(
            OPERATORS[spec.cell],
            [x, f"{layer}.W", f"{layer}.R", bias, given["lengths"], *(parts[s][k] for s in states)],
            [f"{layer}.Y", *(ends[s][k] for s in states)],
            name=layer,
            hidden_size=spec.hidden_size,
            direction="bidirectional" if spec.bidirectional else "forward",
            **attributes,
        )
        x = f"{layer}.y" if k < last else "y"
        yield from _joined(spec, f"{layer}.Y", x)
    if last:
        yield from (helper.make_node("Concat", ends[s], [f"{s}_n"], axis=0) for s in states)


def _bias(spec: RecurrentSpec, layer: str, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[NodeProto]:
    """For a single bias: B `(directions, 2 * gates * hidden_size)`, zero where there is no parameter.

    ONNX Runtime joins the parts once, when it loads the model.
    """
    if spec.bias != "single":
        return
    parts = [name for name in (f"{layer}.Wb", f"{layer}.Rb") if name in shapes]
    given = sum(shapes[name][1] for name in parts)
    zeros = np.zeros((len(spec.directions), 2 * len(spec.form.gates) * spec.hidden_size - given), spec.dtype)
    yield _constant(f"{layer}.zeros", zeros)
    yield helper.make_node("Concat", [parts[0], f"{layer}.zeros", *parts[1:]], [f"{layer}.B"], axis=1)


def _joined(spec: RecurrentSpec, y: str, joined: str) -> Iterator[NodeProto]:
    """From the operators' `(time, directions, batch, hidden_size)` to `(time, batch, directions * hidden_size)`."""
    if not spec.bidirectional:
        yield _constant(f"{y}.axis", np.array([1]))
        yield helper.make_node("Squeeze", [y, f"{y}.axis"], [joined])  # copies nothing
        return
    yield helper.make_node("Transpose", [y], [f"{y}.batch_first"], perm=(0, 2, 1, 3))
    yield _constant(f"{y}.shape", np.array([0, 0, spec.output_size]))
    yield helper.make_node("Reshape", [f"{y}.batch_first", f"{y}.shape"], [joined])


def _constant(name: str, array: np.ndarray[Any, np.dtype[Any]]) -> NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))
