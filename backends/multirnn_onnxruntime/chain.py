"""What an ONNX model computes, where it is one stack: operators RNN, LSTM or GRU, each fed by the one below."""

from collections.abc import Container, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import (  # pyright: ignore[reportAttributeAccessIssue]
    Fail,
    InvalidGraph,
    RuntimeException,
)

from multirnn import Unrepresentable
from multirnn.weights import Array
from multirnn_onnxruntime.graph import OPERATORS
from multirnn_onnxruntime.session import OnnxStack

__all__ = ["Chain"]

# What moves and shapes arrays, and changes no number in them.
SHAPING = frozenset(
    (
        *("Cast", "Concat", "Constant", "ConstantOfShape", "Expand", "Gather", "Identity", "Reshape", "Shape", "Slice"),
        *("Split", "Squeeze", "Transpose", "Unsqueeze"),
    )
)
# The inputs of the operators, by their places; C_0 and PEEPHOLES are the LSTM's.
X, W, R, B, LENGTHS, H_0, C_0, PEEPHOLES = range(8)


class Chain:
    """The operators of a model, in their order.

    Args:
        model: the model; `operators` are its nodes.

    Raises:
        Unrepresentable: they are not one stack, or the model computes something else besides.
    """

    def __init__(self, model: ModelProto) -> None:
        self._model = model
        self._maker = {output: node for node in model.graph.node for output in node.output}
        self._initialisers = {tensor.name: tensor for tensor in model.graph.initializer}
        self._given = {value.name for value in model.graph.input} - self._initialisers.keys()
        self.operators = [node for node in model.graph.node if node.op_type in OPERATORS.values()]
        self._refuse_other_operators()
        for node in self.operators:
            self._refuse_other_forms(node)
        for below, above in pairwise(self.operators):
            self._refuse_other_ways(below, above)

    def arrays(self) -> dict[str, Array]:
        """The weights by the names of ONNX's convention; a single bias in its parts, where `graph.model` put it so."""
        found: dict[str, Array] = {}
        for k, node in enumerate(self.operators):
            for name, place in (("W", W), ("R", R), ("B", B)):
                parts = [f"layers.{k}.{part}" for part in ("Wb", "Rb")] if name == "B" else []
                single = [part for part in parts if part in self._initialisers]
                if _has(node, place):
                    found |= {key: self._constant(key) for key in single} or {
                        f"layers.{k}.{name}": self._constant(node.input[place])
                    }
        return found

    # --- What no spec has --------------------------------------------------------------------------------------------

    def _refuse_other_operators(self) -> None:
        others = {node.op_type for node in self._model.graph.node} - SHAPING - set(OPERATORS.values())
        if others:
            raise Unrepresentable(
                f"the model also computes {', '.join(sorted(others))}, which no spec has; read a model of the recurrent "
                "layers alone"
            )
        kinds = sorted({node.op_type for node in self.operators})
        if len(kinds) != 1:
            raise Unrepresentable(f"a spec has one kind of cell, and the model {' and '.join(kinds) or 'none'}")
        for name in ("direction", "hidden_size", "linear_before_reset"):
            if len({attribute(node, name) for node in self.operators}) > 1:
                raise Unrepresentable(f"the layers of a spec are alike, and those of the model differ in {name}")

    def _refuse_other_forms(self, node: NodeProto) -> None:
        kind = node.op_type
        if attribute(node, "direction") == b"reverse":
            raise Unrepresentable(f"the {kind} runs backward alone, and a spec runs forward or both ways")
        if attribute(node, "clip") is not None:
            raise Unrepresentable(f"the {kind} clips what goes into its activations (clip), which no spec does")
        if attribute(node, "input_forget"):
            raise Unrepresentable("the LSTM has one gate for input and forgetting (input_forget), and a spec has two")
        if _has(node, PEEPHOLES):
            raise Unrepresentable("the LSTM has peepholes (input P), which no spec has")
        if _has(node, LENGTHS) and not self._leaves(node.input[LENGTHS]) <= self._given:
            raise Unrepresentable(f"the {kind} has lengths of its own, and those of a spec are given in a call")
        for place in (H_0, C_0):
            if _has(node, place) and any(map(self._is_number, self._leaves(node.input[place]))):
                raise Unrepresentable(
                    f"the {kind} starts from a state of its own, and a spec from one that it is given"
                )

    def _refuse_other_ways(self, below: NodeProto, above: NodeProto) -> None:
        """Run what lies between two operators on numbers of which no two are equal."""
        directions = 2 if attribute(below, "direction") == b"bidirectional" else 1
        time, batch = self._sizes()
        shape = time, batch, directions, attribute(below, "hidden_size")
        numbers = np.arange(np.prod(shape), dtype="float32").reshape(shape)
        y, x = numbers.swapaxes(1, 2), numbers.reshape(time, batch, -1)
        if attribute(below, "layout"):
            y = numbers.swapaxes(0, 1)
        if attribute(above, "layout"):
            x = x.swapaxes(0, 1)
        try:
            carried = self._value(above.input[X], {below.output[0]: np.ascontiguousarray(y)})
        except (Fail, InvalidGraph, RuntimeException, Unrepresentable):  # a shape that does not fit, or more is needed
            carried = None
        if carried is None or not np.array_equal(carried, x):
            raise Unrepresentable(
                f"layer {self.operators.index(above)} of the model is not fed by the outputs of the one below as they are"
            )

    # --- The values of a graph ---------------------------------------------------------------------------------------

    def _sizes(self) -> tuple[int, int]:
        """Time and batch: as the model has fixed them, else any two."""
        described = {value.name: value.type.tensor_type.shape.dim for value in self._model.graph.input}
        fixed = [dim.dim_value for dim in described.get(self.operators[0].input[X], ())]
        time, batch = (size or any_size for size, any_size in zip((*fixed[:2], 0, 0), (3, 2), strict=False))
        return time, batch

    def _constant(self, name: str) -> Array:
        """A value that depends on no input."""
        if name in self._initialisers:
            return numpy_helper.to_array(self._initialisers[name])
        return self._value(name, {})

    def _value(self, name: str, given: Mapping[str, Array]) -> Array:
        """A value of the graph, from others, by ONNX Runtime.

        Raises:
            Unrepresentable: it depends on an input as well.
        """
        if name in given:
            return given[name]
        behind = self._behind(name, given)
        if behind & self._given:
            raise Unrepresentable(f"{name} depends on what the model is called with")
        part = helper.make_graph(
            [node for node in self._model.graph.node if behind.difference(given).intersection(node.output)],
            name,
            [helper.make_tensor_value_info(key, TensorProto.FLOAT, value.shape) for key, value in given.items()],
            [ValueInfoProto(name=name)],
            [tensor for key, tensor in self._initialisers.items() if key in behind],
        )
        model = helper.make_model(part, opset_imports=self._model.opset_import, ir_version=self._model.ir_version)
        found: list[Array] = OnnxStack(model).session.run(None, dict(given))
        return found[0]

    def _behind(self, name: str, stop: Container[str] = ()) -> set[str]:
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

    def _leaves(self, name: str) -> set[str]:
        """The inputs and the constants that a value is made of."""
        return {one for one in self._behind(name) if one not in self._maker or self._maker[one].op_type == "Constant"}

    def _is_number(self, name: str) -> bool:
        """Whether it is a constant in floating point that is not zero."""
        if name in self._given:
            return False
        value = self._constant(name)
        return value.dtype.kind == "f" and bool(value.any())


def attribute(node: NodeProto, name: str) -> Any:
    """The value of an attribute; None where it has none of this name."""
    return next((helper.get_attribute_value(one) for one in node.attribute if one.name == name), None)


def _has(node: NodeProto, place: int) -> bool:
    return len(node.input) > place and bool(node.input[place])
