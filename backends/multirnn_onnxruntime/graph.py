"""A stack as an ONNX graph: an operator RNN, LSTM or GRU for each layer, and nodes that reshape between them.

The signature of the graph, time first as the operators have it (`layout=0`, the only layout that ONNX Runtime takes):

    x        (time, batch, input_size)                            y    (time, batch, directions * hidden_size)
    lengths  (batch,), int32, each from 1 to time                 h_n  (num_layers * directions, batch, hidden_size)
    h_0      (num_layers * directions, batch, hidden_size)        c_n  of an LSTM, as h_n
    c_0      of an LSTM, as h_0

Its initialisers are exactly the parameters; shapes, and zeros for the biases that the spec lacks, are constants.
Sources: the ONNX operators RNN, LSTM, GRU; `onnxruntime/core/providers/cpu/rnn`.
"""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from multirnn import RecurrentSpec
from multirnn.cells import CellName
from multirnn.weights import Array
from multirnn_onnxruntime import activations

__all__ = ["OPERATORS", "inputs_of", "model", "outputs_of"]

OPERATORS: Mapping[CellName, str] = MappingProxyType({"simple_rnn": "RNN", "lstm": "LSTM", "gru": "GRU"})

# The oldest with the operators' present form: the models load in ONNX Runtime 1.10 or later.
OPSET, IR_VERSION = 14, 8


def inputs_of(spec: RecurrentSpec) -> tuple[str, ...]:
    """The names of the graph's inputs."""
    return ("x", "lengths", *(f"{state}_0" for state in spec.form.states))


def outputs_of(spec: RecurrentSpec) -> tuple[str, ...]:
    """The names of the graph's outputs."""
    return ("y", *(f"{state}_n" for state in spec.form.states))


def model(spec: RecurrentSpec, arrays: Mapping[str, Array]) -> ModelProto:
    """The model of a stack; `arrays` are its initialisers, `layers.{k}.{W|R|B|Wb|Rb}`."""
    state: Sequence[str | int] = (spec.num_layers * len(spec.directions), "batch", spec.hidden_size)
    sizes: dict[str, Sequence[str | int]] = {
        "x": ("time", "batch", spec.input_size),
        "lengths": ("batch",),
        "y": ("time", "batch", spec.output_size),
    }

    def described(name: str) -> Any:
        kind = TensorProto.INT32 if name == "lengths" else TensorProto.FLOAT
        return helper.make_tensor_value_info(name, kind, sizes.get(name, state))

    graph = helper.make_graph(
        list(_nodes(spec, arrays)),
        spec.cell,
        [described(name) for name in inputs_of(spec)],
        [described(name) for name in outputs_of(spec)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(
        graph, producer_name="multirnn", opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )


def _nodes(spec: RecurrentSpec, arrays: Mapping[str, Array]) -> Iterator[NodeProto]:
    last = spec.num_layers - 1
    states = spec.form.states
    parts = {s: [f"layers.{k}.{s}_0" if last else f"{s}_0" for k in range(spec.num_layers)] for s in states}
    ends = {s: [f"layers.{k}.{s}_n" if last else f"{s}_n" for k in range(spec.num_layers)] for s in states}
    if last:
        yield from (helper.make_node("Split", [f"{s}_0"], parts[s], axis=0) for s in states)
    attributes = activations.attributes(spec)
    if spec.cell == "gru":
        attributes["linear_before_reset"] = int(spec.reset_after)
    x = "x"
    for k in range(spec.num_layers):
        layer = f"layers.{k}"
        yield from _bias(spec, layer, arrays)
        bias = "" if spec.bias == "none" else f"{layer}.B"
        yield helper.make_node(
            OPERATORS[spec.cell],
            [x, f"{layer}.W", f"{layer}.R", bias, "lengths", *(parts[s][k] for s in states)],
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


def _bias(spec: RecurrentSpec, layer: str, arrays: Mapping[str, Array]) -> Iterator[NodeProto]:
    """For a single bias: B `(directions, 2 * gates * hidden_size)`, zero where there is no parameter.

    ONNX Runtime joins the parts once, when it loads the model.
    """
    if spec.bias != "single":
        return
    parts = [name for name in (f"{layer}.Wb", f"{layer}.Rb") if name in arrays]
    given = sum(arrays[name].shape[1] for name in parts)
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
