"""ONNX models: the operators RNN, GRU and LSTM anywhere in a graph, in branches, loops and functions too.

Weights may be initialisers, constants, or reached through nodes that only move numbers; those are computed by ONNX's own
reference evaluator. Needs the package onnx. Sources: the ONNX operators RNN, GRU, LSTM.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from multirnn.errors import FormatError
from multirnn.formats.contents import Contents, Tensor, needed
from multirnn.weights import Array

__all__ = ["Operator", "read"]

OPERATORS = {"RNN": "simple_rnn", "LSTM": "lstm", "GRU": "gru"}
MOVING = frozenset(
    [
        "Cast",
        "Concat",
        "Constant",
        "ConstantOfShape",
        "Expand",
        "Gather",
        "Identity",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    ]
)
"""Nodes that change no number, through which weights are reached."""
X, W, R, B, LENGTHS, H_0, C_0, PEEPHOLES = range(8)
MOST_NODES, LARGEST = 100_000, 1 << 28


@dataclass(frozen=True)
class Operator:
    """A recurrent operator of a model.

    Attributes:
        name: of the node, behind those of the nodes around it.
        cell: "simple_rnn", "lstm" or "gru".
        arrays: by the names W, R and B of ONNX's convention.
        attributes: of the node, by name.
        reason: why no spec describes it; empty for one that a spec does.
    """

    name: str
    cell: str
    arrays: Mapping[str, Array]
    attributes: Mapping[str, Any]
    reason: str = ""


@dataclass
class _Scope:
    """A graph with the values that are known in it: initialisers, and the nodes that make others."""

    name: str
    initialisers: dict[str, Any] = field(default_factory=dict)
    makers: dict[str, Any] = field(default_factory=dict)
    outer: "_Scope | None" = None

    def find(self, name: str) -> tuple[Any, Any, "_Scope"] | None:
        here: _Scope | None = self
        while here is not None:
            if name in here.initialisers or name in here.makers:
                return here.initialisers.get(name), here.makers.get(name), here
            here = here.outer
        return None


def read(path: Path, inputs: Mapping[str, Array] | None = None) -> Contents:
    """The initialisers by name. Facts: `operators`, a tuple of `Operator`.

    Args:
        path: of the model; data outside the file is refused.
        inputs: values of the graph's inputs that hold weights.

    Raises:
        FormatError: it is no ONNX model, or damaged, or has its numbers in another file.
        MissingFramework: the package onnx is not installed.
    """
    onnx = needed("onnx", path)
    from google.protobuf.message import DecodeError

    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except (DecodeError, RecursionError, ValueError) as error:
        raise FormatError(f"{path} is no ONNX model, or damaged: {error}") from error
    if not model.graph.node:
        raise FormatError(f"{path} is no ONNX model, or has no nodes")
    reader = _Reader(onnx, model, dict(inputs or {}))
    operators = tuple(reader.operators())
    arrays: dict[str, Tensor] = {}
    for tensor in model.graph.initializer:
        arrays[tensor.name] = reader.array(tensor)
    return Contents("onnx", arrays, {"operators": operators})


class _Reader:
    def __init__(self, onnx: Any, model: Any, inputs: dict[str, Array]) -> None:
        self._onnx, self._model, self._inputs = onnx, model, inputs
        self._functions = {(one.domain, one.name): one for one in model.functions}
        self._opsets = [one for one in model.opset_import if one.domain in ("", "ai.onnx")] or [
            onnx.helper.make_opsetid("", 18)
        ]
        self._nodes = 0

    def operators(self) -> Iterator[Operator]:
        yield from self._walk(self._model.graph, _Scope(""), "")

    def _walk(self, graph: Any, scope: _Scope, path: str) -> Iterator[Operator]:
        scope.initialisers |= {tensor.name: tensor for tensor in getattr(graph, "initializer", ())}
        for node in graph.node:
            for output in node.output:
                scope.makers[output] = node
        for node in graph.node:
            self._nodes += 1
            if self._nodes > MOST_NODES:
                raise FormatError(f"it has more than {MOST_NODES} nodes")
            inner = f"{path}/{node.name}" if path and node.name else node.name or path
            if node.op_type in OPERATORS and node.domain in ("", "ai.onnx"):
                yield self._operator(node, scope, inner or node.op_type)
            for attribute in node.attribute:
                if attribute.type == self._onnx.AttributeProto.GRAPH:
                    yield from self._walk(attribute.g, _Scope(inner, outer=scope), inner)
            if function := self._functions.get((node.domain, node.op_type)):
                called = _Scope(inner, outer=None)
                for own, given in zip(function.input, node.input, strict=False):
                    if (found := scope.find(given)) is not None:
                        tensor, maker, _ = found
                        if tensor is not None:
                            called.initialisers[own] = tensor
                        elif maker is not None and maker is not node:
                            value = self._value(given, scope)
                            if value is not None:
                                called.initialisers[own] = self._onnx.numpy_helper.from_array(value, own)
                yield from self._walk(function, called, inner)

    def _operator(self, node: Any, scope: _Scope, name: str) -> Operator:
        attributes = {one.name: self._onnx.helper.get_attribute_value(one) for one in node.attribute}
        cell = OPERATORS[node.op_type]
        reason = _refuses(node, attributes)
        arrays: dict[str, Array] = {}
        for place, own in ((W, "W"), (R, "R"), (B, "B")):
            given = node.input[place] if len(node.input) > place else ""
            if not given:
                continue
            value = self._value(given, scope)
            if value is None:
                reason = (
                    reason
                    or f"its {own} is computed by the model, or given in a call: pass inputs={{{given!r}: array}}"
                )
            else:
                arrays[own] = value
        if not reason and not {"W", "R"} <= arrays.keys():
            reason = "it has no weights"
        return Operator(name, cell, arrays, attributes, reason)

    def _value(self, name: str, scope: _Scope, depth: int = 0) -> Array | None:
        """A value that is made of constants by nodes that move numbers; None for any other."""
        if name in self._inputs:
            return np.asarray(self._inputs[name])
        found = scope.find(name)
        if found is None or depth > 100:
            return None
        tensor, maker, where = found
        if tensor is not None:
            return self.array(tensor)
        if maker.op_type not in MOVING or maker.domain not in ("", "ai.onnx"):
            return None
        given: dict[str, Array] = {}
        for one in maker.input:
            if one:
                value = self._value(one, where, depth + 1)
                if value is None:
                    return None
                given[one] = value
        for attribute in maker.attribute:
            if attribute.type == self._onnx.AttributeProto.TENSOR:
                self.array(attribute.t)
        return self._computed(maker, given, list(maker.output).index(name))

    def _computed(self, node: Any, given: Mapping[str, Array], place: int) -> Array:
        from onnx.reference import ReferenceEvaluator

        size = sum(array.size for array in given.values())
        shape = next((array for array in given.values() if array.dtype.kind == "i" and array.ndim == 1), None)
        if size > LARGEST or (
            node.op_type in ("Expand", "ConstantOfShape")
            and shape is not None
            and np.prod(shape, dtype=float) > LARGEST
        ):
            raise FormatError(f"the node {node.name[:80]!r} would make an array of more than {LARGEST} numbers")
        helper = self._onnx.helper
        graph = helper.make_graph(
            [node],
            "one",
            [
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
                for name, array in given.items()
            ],
            [self._onnx.ValueInfoProto(name=name) for name in node.output if name],
        )
        model = helper.make_model(graph, opset_imports=self._opsets)
        try:
            values = ReferenceEvaluator(model).run([node.output[place]], dict(given))
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, ArithmeticError) as error:
            raise FormatError(f"the node {node.name[:80]!r} cannot be computed: {error}") from error
        return np.asarray(values[0])

    def array(self, tensor: Any) -> Array:
        """The numbers of a tensor, none of them outside the file."""
        name = tensor.name[:80]
        if tensor.data_location != self._onnx.TensorProto.DEFAULT or tensor.external_data:
            raise FormatError(
                f"the tensor {name!r} lies in another file (external data), which is not read; save the model as one file: "
                "onnx.save(onnx.load(path), path)"
            )
        shape = tuple(tensor.dims)
        try:
            array: Array = self._onnx.numpy_helper.to_array(tensor)
        except (ValueError, TypeError, KeyError, OverflowError, MemoryError, RuntimeError) as error:
            raise FormatError(f"the tensor {name!r} is damaged: {error}") from error
        if array.shape != shape:
            raise FormatError(f"the tensor {name!r} claims the shape {shape} and has {array.size} numbers")
        return array


def _refuses(node: Any, attributes: Mapping[str, Any]) -> str:
    """Why no spec describes an operator; empty where one does."""
    reasons = (
        (attributes.get("clip") is not None, "it clips the pre-activations (clip)"),
        (attributes.get("input_forget"), "its input and forget gates are one (input_forget)"),
        (len(node.input) > PEEPHOLES and node.input[PEEPHOLES], "it has peepholes (input P)"),
        (attributes.get("direction") == b"reverse", "it runs backward in time"),
    )
    return next((f"{reason}, which no spec has" for refused, reason in reasons if refused), "")
