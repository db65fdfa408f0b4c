"""What an ONNX model is made of, where it may be one stack: operators RNN, LSTM or GRU, and what moves arrays.

Here nothing is called but what depends on no input. Whether the model computes what its weights describe is told by
`calling`.
"""

from collections.abc import Container, Iterator, Mapping
from types import MappingProxyType

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from multirnn import Unrepresentable
from multirnn.weights import Array
from multirnn_onnxruntime.graph import OPERATORS
from multirnn_onnxruntime.growth import refuse_growth
from multirnn_onnxruntime.proto import OPERATORS_HAVE, array_of, attribute, refuse_foreign_attributes, short
from multirnn_onnxruntime.session import OnnxStack, running

__all__ = ["C_0", "H_0", "LENGTHS", "Chain", "X", "has"]

# What moves and shapes arrays, and changes no number in them.
SHAPING = frozenset(
    (
        *("Cast", "Concat", "Constant", "ConstantOfShape", "Expand", "Gather", "Identity", "Reshape", "Shape", "Slice"),
        *("Split", "Squeeze", "Transpose", "Unsqueeze"),
    )
)
# What computes sizes, if its numbers are integers.
ARITHMETIC = frozenset(
    ("Add", "Mul", "Sub")
)  # and not Div: ONNX Runtime ends the process where an integer is divided by 0
# The inputs of the operators, by their places; C_0 and PEEPHOLES are the LSTM's.
X, W, R, B, LENGTHS, H_0, C_0, PEEPHOLES = range(8)
GATES: Mapping[str, int] = MappingProxyType({"RNN": 1, "LSTM": 4, "GRU": 3})


class Chain:
    """The operators of a model, in their order.

    Args:
        model: the model.

    Attributes:
        model: the model; it is left as it is.
        given: the names of its inputs, without those that have a constant.
        operators: its nodes RNN, LSTM or GRU, of one kind and alike.
        directions: of each operator, 1 or 2.
        hidden_size: of each operator.

    Raises:
        Unrepresentable: they cannot be one stack, or the model computes something else besides.
    """

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self._refuse_other_nodes()
        self.operators = [node for node in model.graph.node if node.op_type in OPERATORS.values()]
        self._refuse_unlike_layers()
        self._initialisers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.given = [value.name for value in model.graph.input if value.name not in self._initialisers]
        self._refuse_other_values()
        self._maker = {output: node for node in model.graph.node for output in node.output}
        for node in self.operators:
            self._refuse_other_forms(node)
        self._tell_hidden_size()
        integers = refuse_growth(self.model)
        arithmetic = [node for node in self.model.graph.node if node.op_type in ARITHMETIC]
        self._refuse({node.op_type for node in arithmetic if not integers.issuperset(node.output)})
        first = self.operators[0]
        self.directions = 2 if attribute(first, "direction") == "bidirectional" else 1
        self.hidden_size = self._constant(first, R, "R", 3).shape[2]
        for node in self.operators:
            if (size := attribute(node, "hidden_size")) not in (None, self.hidden_size):
                raise Unrepresentable(
                    f"the {node.op_type} has hidden_size={size}, and the weights R of layer 0 {self.hidden_size} units"
                )

    def arrays(self) -> dict[str, Array]:
        """The weights by the names of ONNX's convention; a single bias in its parts, where `graph.model` put it so."""
        found: dict[str, Array] = {}
        for k, node in enumerate(self.operators):
            rows = GATES[node.op_type] * self.hidden_size
            for name, place, shape in (("W", W, (rows, -1)), ("R", R, (rows, self.hidden_size)), ("B", B, (2 * rows,))):
                if name == "B" and not has(node, place):
                    continue
                array = self._constant(node, place, name, 1 + len(shape))
                sizes = zip(shape, array.shape[1:], strict=True)
                wanted = self.directions, *(given if size < 0 else size for size, given in sizes)
                if array.shape != wanted:
                    raise Unrepresentable(f"{name} of layer {k} must have the shape {wanted}, not {array.shape}")
                parts = [f"layers.{k}.{part}" for part in ("Wb", "Rb")] if name == "B" else []
                single = {part: array_of(self._initialisers[part]) for part in parts if part in self._initialisers}
                found |= single or {f"layers.{k}.{name}": array}
        return found

    def integers(self) -> Iterator[int]:
        """The magnitudes of the integers in its constants, which may shape arrays."""
        constants = [array_of(tensor) for tensor in self._initialisers.values()]
        for node in self.model.graph.node:
            for one in node.attribute:
                value = attribute(node, one.name)
                constants.append(array_of(value) if isinstance(value, TensorProto) else np.asarray(value))
        return (abs(int(number)) for array in constants if array.dtype.kind == "i" for number in array.flat)

    def behind(self, name: str, stop: Container[str] = ()) -> set[str]:
        """The names of all that a value is made of, and its own; nothing behind those to stop at."""
        found: set[str] = set()
        waiting = [name]
        while waiting:
            one = waiting.pop()
            if one and one not in found:
                found.add(one)
                if one in self._maker and one not in stop:
                    waiting += self._maker[one].input
        return found

    def value(self, name: str, given: Mapping[str, Array]) -> Array:
        """A value of the graph, from others, by ONNX Runtime.

        Raises:
            Unrepresentable: it depends on other inputs as well, or ONNX Runtime does not compute it.
        """
        if name in given:
            return given[name]
        if name in self._initialisers:
            return array_of(self._initialisers[name])
        behind = self.behind(name, given)
        if others := behind.intersection(self.given).difference(given):
            raise Unrepresentable(
                f"{short(name)} depends on {', '.join(map(short, sorted(others)))}, which a call gives"
            )
        part = helper.make_graph(
            [node for node in self.model.graph.node if behind.difference(given).intersection(node.output)],
            "part",
            [
                helper.make_tensor_value_info(key, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
                for key, array in given.items()
            ],
            [ValueInfoProto(name=name)],
            [tensor for key, tensor in self._initialisers.items() if key in behind],
        )
        model = helper.make_model(part, opset_imports=self.model.opset_import, ir_version=self.model.ir_version)
        with running():
            found: list[Array] = OnnxStack(model).session.run(None, dict(given))
        return found[0]

    def _tell_hidden_size(self) -> None:
        """Go on with a copy of the model that has the attribute, optional in ONNX, without which ONNX Runtime runs nothing."""
        if all(attribute(node, "hidden_size") for node in self.operators):
            return
        model = ModelProto()
        model.CopyFrom(self.model)
        self.model = model
        self.operators = [node for node in self.model.graph.node if node.op_type in OPERATORS.values()]
        self._maker = {output: node for node in self.model.graph.node for output in node.output}
        for node in self.operators:
            held = self._held(node.input[R]) if has(node, R) else None
            if held is not None and held.dims and attribute(node, "hidden_size") is None:
                node.attribute.append(helper.make_attribute("hidden_size", held.dims[-1]))

    def _held(self, name: str) -> TensorProto | None:
        """The tensor that is a value, where it is in the model as it is."""
        maker = self._maker.get(name)
        found = self._initialisers.get(name) if maker is None else attribute(maker, "value")
        return found if isinstance(found, TensorProto) else None

    def _constant(self, node: NodeProto, place: int, name: str, axes: int) -> Array:
        """A weight of an operator, which has so many axes."""
        layer = self.operators.index(node)
        if not has(node, place):
            raise Unrepresentable(f"the {node.op_type} of layer {layer} has no weights {name}")
        if inputs := self.behind(node.input[place]).intersection(self.given):
            raise Unrepresentable(
                f"the weights {name} of layer {layer} are given in a call, as {', '.join(map(short, sorted(inputs)))}; put "
                "them into the model: model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))"
            )
        array = self.value(node.input[place], {})
        if not isinstance(array, np.ndarray) or array.ndim != axes or 0 in array.shape:
            raise Unrepresentable(
                f"{name} of layer {layer} must have {axes} axes, none of them empty, not the shape {np.shape(array)}"
            )
        if array.dtype != np.float32:
            raise Unrepresentable(
                f"{name} of layer {layer} is {array.dtype}, in which ONNX Runtime has no {node.op_type}, so that nothing "
                "can confirm what the model computes; read a model in float32"
            )
        return array

    # --- What no spec has --------------------------------------------------------------------------------------------

    def _refuse_other_nodes(self) -> None:
        ours = {(one.domain.replace("ai.onnx", ""), one.name) for one in self.model.functions}
        others = set()
        for node in self.model.graph.node:
            domain = "" if node.domain == "ai.onnx" else node.domain
            if domain or (domain, node.op_type) in ours:
                others.add(f"{domain or 'a function'}.{node.op_type}")
            elif node.op_type not in SHAPING | ARITHMETIC and node.op_type not in OPERATORS.values():
                others.add(node.op_type)
        self._refuse(others)
        for node in self.model.graph.node:
            refuse_foreign_attributes(node, OPERATORS_HAVE if node.op_type in OPERATORS.values() else None)

    def _refuse(self, others: set[str]) -> None:
        if others:
            listed = ", ".join(name[:80] or "a node without a name" for name in sorted(others)[:8])
            recurrent = any(node.op_type in OPERATORS.values() for node in self.model.graph.node)
            raise Unrepresentable(
                f"the model also computes {listed}, which no spec has; "
                + (
                    "read a model of the recurrent layers alone"
                    if recurrent
                    else "it has no RNN, LSTM or GRU: torch.onnx.export writes these operators with dynamo=False"
                )
            )

    def _refuse_other_values(self) -> None:
        """Each value has one source, before what takes it."""
        graph = self.model.graph
        if graph.sparse_initializer:
            raise Unrepresentable("the model has sparse tensors, and the weights of a spec are dense")
        for tensor in graph.initializer:
            array_of(tensor)
        made = [*(tensor.name for tensor in graph.initializer), *self.given]
        known = set(made)
        for node in graph.node:
            if missing := [name for name in node.input if name and name not in known]:
                raise Unrepresentable(
                    f"nothing makes {short(missing[0])} before the {node.op_type} that takes it: each node of a graph "
                    "follows those that it needs"
                )
            outputs = [name for name in node.output if name]
            made += outputs
            known.update(outputs)
        if len(made) != len(known) or "" in known:
            twice = next((name for name in made if not name or made.count(name) > 1), "")
            raise Unrepresentable(f"the model has two values named {short(twice)}, or one without a name")
        for value in graph.output:
            if value.name not in known:
                raise Unrepresentable(f"the model returns {short(value.name)}, which nothing makes")
        if not graph.output:
            raise Unrepresentable("the model returns nothing, so that nothing can confirm what it computes")

    def _refuse_unlike_layers(self) -> None:
        kinds = sorted({node.op_type for node in self.operators})
        if len(kinds) != 1:
            raise Unrepresentable(f"a spec has one kind of cell, and the model {' and '.join(kinds) or 'none'}")
        for name, default in (("direction", "forward"), ("hidden_size", None), ("linear_before_reset", 0)):
            found = {attribute(node, name) for node in self.operators}
            if len(found - {None}) > 1 or (default is not None and None in found and found - {None, default}):
                raise Unrepresentable(f"the layers of a spec are alike, and those of the model differ in {name}")

    def _refuse_other_forms(self, node: NodeProto) -> None:
        kind = node.op_type
        direction = attribute(node, "direction") or "forward"
        if direction == "reverse":
            raise Unrepresentable(f"the {kind} runs backward alone, and a spec runs forward or both ways")
        if direction not in ("forward", "bidirectional"):
            raise Unrepresentable(
                f"the {kind} has the direction {short(direction)}, and ONNX forward and bidirectional"
            )
        if attribute(node, "clip") is not None:
            raise Unrepresentable(f"the {kind} clips what goes into its activations (clip), which no spec does")
        if attribute(node, "input_forget"):
            raise Unrepresentable("the LSTM has one gate for input and forgetting (input_forget), and a spec has two")
        if attribute(node, "linear_before_reset") not in (None, 0, 1):
            raise Unrepresentable(
                f"linear_before_reset of the {kind} is 0 or 1, not {attribute(node, 'linear_before_reset')}"
            )
        if attribute(node, "layout"):
            raise Unrepresentable(
                f"the {kind} has layout={attribute(node, 'layout')}, batch first, which ONNX Runtime does not run, so that "
                "nothing can confirm what it computes; give it layout=0 and transpose its input and outputs"
            )
        if has(node, PEEPHOLES):
            raise Unrepresentable("the LSTM has peepholes (input P), which no spec has")


def has(node: NodeProto, place: int) -> bool:
    """Whether a node has an input at a place."""
    return len(node.input) > place and bool(node.input[place])
