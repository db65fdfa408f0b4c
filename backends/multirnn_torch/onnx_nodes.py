"""The operators RNN, LSTM and GRU in the ONNX model of a whole PyTorch model; `onnx_export` traces it.

Each recurrent layer is one operator of PyTorch in the traced graph, of multirnn or of PyTorch itself. `TRANSLATIONS` makes an
operator of ONNX out of every layer of its stack. The weights are moved into ONNX's gates and shapes by nodes, which `finish`
computes: they end as initialisers. Sources: the ONNX operators RNN, GRU, LSTM; `torch.onnx.export`.
"""

import ast
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes.common import CheckerPass, RemoveUnusedNodesPass
from onnxscript.onnx_opset import opset18
from onnxscript.optimizer import fold_constants

from multirnn import InvalidCall, RecurrentSpec
from multirnn.cells import CellName
from multirnn.conventions import CONVENTIONS
from multirnn.formats import onnx_facts
from multirnn_torch.operators import OPERATORS, StackArguments

__all__ = ["TRANSLATIONS", "finish", "stream"]

op: Any = opset18  # its types are of ONNX Script's own language
KINDS = frozenset(onnx_facts.OPERATORS.values())
H_0 = 5  # the place of the initial h in the inputs of an operator; c follows


# --- Nodes -----------------------------------------------------------------------------------------------------------


def _nodes(
    cell: CellName, x: Any, state: Sequence[Any], weights: Sequence[Any], lengths: Any, stack: StackArguments
) -> tuple[Any, ...]:
    """The sequence and the final states of a stack, by nodes."""
    hidden = weights[1].shape[1]
    spec = RecurrentSpec(
        cell,
        weights[0].shape[1],
        hidden,
        bidirectional=stack.bidirectional,
        activation=stack.activation,
    )
    attributes = onnx_facts.attributes(spec) | ({"linear_before_reset": 1} if cell == "gru" else {})
    attributes["direction"] = "bidirectional" if stack.bidirectional else "forward"
    operator = getattr(op, onnx_facts.OPERATORS[cell])
    directions, each = 1 + stack.bidirectional, len(weights) // stack.layers
    sequence = op.Transpose(x, perm=[1, 0, 2]) if stack.batch_first else x
    ends_at = None if lengths is None else op.Cast(lengths, to=ir.DataType.INT32.value)
    ends: list[list[Any]] = []
    for layer in range(stack.layers):
        own = slice(layer * directions, (layer + 1) * directions)
        first = [part if part is None or stack.layers == 1 else _rows(part, own) for part in state]
        packed = _packed(cell, weights[layer * each : (layer + 1) * each], hidden, directions)
        y, *final = operator(sequence, *packed, ends_at, *first, hidden_size=hidden, **attributes)
        ends.append(final[: len(state)])
        if stack.bidirectional:  # (time, directions, batch, hidden_size)
            sequence = op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), op.Constant(value_ints=[0, 0, 2 * hidden]))
        else:
            sequence = op.Squeeze(y, op.Constant(value_ints=[1]))
    if stack.batch_first:
        sequence = op.Transpose(sequence, perm=[1, 0, 2])
    joined = (parts[0] if stack.layers == 1 else op.Concat(*parts, axis=0) for parts in zip(*ends, strict=True))
    return sequence, *joined


def _rows(part: Any, own: slice) -> Any:
    return op.Slice(part, *(op.Constant(value_ints=[place]) for place in (own.start, own.stop, 0)))


def _packed(cell: CellName, weights: Sequence[Any], hidden: int, directions: int) -> list[Any]:
    """W, R and B of one layer out of PyTorch's arrays, or W, R and None."""
    theirs, ours = (list(CONVENTIONS[name].gates[cell]) for name in ("onnx", "torch"))
    order = op.Constant(value_ints=[ours.index(gate) for gate in theirs])
    each = len(weights) // directions

    def ordered(array: Any) -> Any:
        apart = op.Reshape(array, op.Constant(value_ints=[len(ours), hidden, -1]))
        shape = [1, len(ours) * hidden] + [-1] * (len(array.shape) - 1)
        return op.Reshape(op.Gather(apart, order, axis=0), op.Constant(value_ints=shape))

    found = []
    for place in (0, 1):
        parts = [ordered(weights[direction * each + place]) for direction in range(directions)]
        found.append(parts[0] if directions == 1 else op.Concat(*parts, axis=0))
    if each == 2:
        return [*found, None]
    biases = [
        op.Concat(*(ordered(array) for array in weights[direction * each + 2 : (direction + 1) * each]), axis=1)
        for direction in range(directions)
    ]
    return [*found, biases[0] if directions == 1 else op.Concat(*biases, axis=0)]


def _of_multirnn(cell: CellName) -> Callable[..., tuple[Any, ...]]:
    states = 1 + (cell == "lstm")

    def translated(x: Any, *others: Any) -> tuple[Any, ...]:
        state, (weights, lengths, *stack) = others[:states], others[states:]
        return _nodes(cell, x, state, weights, lengths, StackArguments(*stack))

    return translated


def _of_pytorch(cell: CellName, activation: str = "tanh") -> Callable[..., tuple[Any, ...]]:
    """For a layer of PyTorch's own in an `ExportedProgram`."""

    def translated(
        x: Any,
        hx: Any,
        weights: Sequence[Any],
        bias: bool,
        layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[Any, ...]:
        state = hx if cell == "lstm" else [hx]
        return _nodes(
            cell, x, state, weights, None, StackArguments(batch_first, layers, bidirectional, bias, activation)
        )

    return translated


_aten = torch.ops.aten
TRANSLATIONS: Mapping[Any, Callable[..., Any]] = {
    **{operators.forward: _of_multirnn(cell) for cell, operators in OPERATORS.items()},
    _aten.lstm.input: _of_pytorch("lstm"),
    _aten.gru.input: _of_pytorch("gru"),
    _aten.rnn_tanh.input: _of_pytorch("simple_rnn"),
    _aten.rnn_relu.input: _of_pytorch("simple_rnn", "relu"),
}
"""For `torch.onnx.export(custom_translation_table=...)`."""


# --- The finished model ----------------------------------------------------------------------------------------------


def finish(program: Any, sizes: Mapping[str, str]) -> ir.Model:
    """The model of an `ONNXProgram`, its weights initialisers `PATH.layers.N.W`, its axes named.

    Args:
        program: not optimised.
        sizes: names of axes, by the symbols that PyTorch has for them.
    """
    moved = {"Reshape", "Gather", "Concat", "Constant"}

    def of_weights(node: ir.Node) -> bool | None:
        return True if node.op_type in moved and "multirnn" in node.metadata_props else None

    model: ir.Model = program.model
    for node in _ancestors(model, _recurrent(model)):
        node.metadata_props["multirnn"] = "weights"
    fold_constants(model, should_fold=of_weights)
    program.optimize()
    used = {value for node in _recurrent(model) for value in node.inputs[1:4] if value is not None}
    for node in _recurrent(model):
        path, layer = _place(node)
        node.name = f"{path}layers.{layer}"
        for name, value in zip("WRB", node.inputs[1:4], strict=False):
            if value in used and value is not None and value.is_initializer():
                used.remove(value)  # a layer that is called again has the same
                value.name = _free(model, f"{path}layers.{layer}.{name}")
    _name_nodes(model)
    for value in _values(model):
        _name_axes(value, sizes)
    RemoveUnusedNodesPass()(model)
    return model


def _recurrent(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph.all_nodes() if node.op_type in KINDS and node.domain == ""]


def _ancestors(model: ir.Model, nodes: Iterable[ir.Node]) -> list[ir.Node]:
    """What W, R and B of these nodes are computed by."""
    waiting = [value for node in nodes for value in node.inputs[1:4] if value is not None]
    found: dict[ir.Node, None] = {}
    while waiting:
        producer = waiting.pop().producer()
        if producer is not None and producer not in found:
            found[producer] = None
            waiting += [value for value in producer.inputs if value is not None]
    return list(found)


def _call(node: ir.Node) -> str:
    """The call of a layer that an operator belongs to."""
    return str(node.metadata_props["pkg.torch.onnx.fx_node"]).partition(" ")[0]


def _path(node: ir.Node) -> str:
    """The path of its layer in the model, as in the names of a `state_dict`; empty for the model itself."""
    *modules, _ = ast.literal_eval(node.metadata_props["pkg.torch.onnx.name_scopes"])
    return modules[-1] if modules else ""


def _place(node: ir.Node) -> tuple[str, int]:
    """The path of its layer as a prefix, and which layer of the stack an operator is."""
    graph: Any = node.graph
    same = [one for one in graph if one.op_type in KINDS and one.domain == "" and _call(one) == _call(node)]
    path = _path(node)
    return f"{path}." if path else "", same.index(node)


def _name_nodes(model: ir.Model) -> None:
    """Nodes of a layer that is called several times have a number."""
    seen: Counter[str] = Counter()
    for node in _recurrent(model):
        name = str(node.name)
        if seen[name]:
            node.name = f"{name}_{seen[name]}"
        seen[name] += 1


def _free(model: ir.Model, name: str) -> str:
    taken = {value.name for value in _values(model)}
    while name in taken:
        name += "_"
    return name


def _values(model: ir.Model) -> list[ir.Value]:
    graph = model.graph
    made = [value for node in graph.all_nodes() for value in node.outputs]
    return [*graph.inputs, *graph.initializers.values(), *made]


def _name_axes(value: ir.Value, sizes: Mapping[str, str]) -> None:
    if value.shape is None:
        return
    axes: list[int | str | None] = []
    for axis in value.shape:
        if isinstance(axis, int) or axis.value is None:
            axes.append(axis if isinstance(axis, int) else None)
        else:
            text = re.sub(r"\w+", lambda word: sizes.get(word[0], word[0]), axis.value)
            axes.append(int(text) if text.isdecimal() else text)
    value.shape = ir.Shape(axes)


# --- Streaming -------------------------------------------------------------------------------------------------------


def stream(model: ir.Model) -> None:
    """Make the state of every layer an input `PATH.h_0` and an output `PATH.h_n`, where the model gives it none.

    Raises:
        InvalidCall: a layer reads both ways, or is called several times without a state.
    """
    graph = model.graph
    calls: dict[str, list[ir.Node]] = {}
    for node in _recurrent(model):
        if len(node.inputs) <= H_0 or node.inputs[H_0] is None:
            calls.setdefault(_call(node), []).append(node)
    seen: set[str] = set()
    for nodes in calls.values():
        path = _path(nodes[0])
        title = f"layer {path!r}" if path else "the layer"
        if nodes[0].graph is not graph:
            raise InvalidCall(f"{title} is called in a branch or a loop of the model, and its state cannot be streamed")
        if nodes[0].attributes["direction"].as_string() == "bidirectional":
            raise InvalidCall(
                f"{title} also reads from the end, which a stream has not: export it with streaming=False"
            )
        if path in seen:
            raise InvalidCall(
                f"{title} is called several times, each time from zero: give it its state in the model, or streaming=False"
            )
        seen.add(path)
        for place in range(1 + (nodes[0].op_type == "LSTM")):
            _stream_part(graph, nodes, f"{path}." if path else "", place)


def _stream_part(graph: ir.Graph, nodes: Sequence[ir.Node], prefix: str, place: int) -> None:
    """The state h (0) or c (1) of a stack of layers."""
    hidden, part = nodes[0].attributes["hidden_size"].as_int(), "hc"[place]
    x: Any = nodes[0].inputs[0]
    batch = "batch" if x.shape is None else x.shape[1]
    shape = ir.Shape([len(nodes), batch, hidden])
    first = ir.Value(name=f"{prefix}{part}_0", shape=shape, type=ir.TensorType(x.dtype))
    graph.inputs.append(first)
    parts = [first]
    if len(nodes) > 1:
        split = ir.node("Split", [first], {"axis": 0, "num_outputs": len(nodes)}, num_outputs=len(nodes))
        for number, value in enumerate(split.outputs):
            value.name = f"{first.name}.{number}"
        graph.insert_before(graph[0], split)
        parts = list(split.outputs)
    ends = []
    for node, given in zip(nodes, parts, strict=True):
        node.resize_inputs(max(len(node.inputs), H_0 + 1 + place))
        node.replace_input_with(H_0 + place, given)
        node.resize_outputs(max(len(node.outputs), 2 + place))
        end = node.outputs[1 + place]
        end.name = end.name or f"{node.name}.{part}_n"
        end.shape, end.dtype = ir.Shape([1, batch, hidden]), x.dtype
        ends.append(end)
    name = f"{prefix}{part}_n"
    joined = ir.node("Concat", ends, {"axis": 0}) if len(ends) > 1 else ir.node("Identity", ends)
    joined.outputs[0].name, joined.outputs[0].shape, joined.outputs[0].dtype = name, shape, x.dtype
    graph.append(joined)
    graph.outputs.append(joined.outputs[0])


def checked(model: ir.Model) -> bytes:
    """The bytes of a model that `onnx.checker` finds in order."""
    CheckerPass(full_check=True)(model)
    return bytes(ir.to_proto(model).SerializeToString())
