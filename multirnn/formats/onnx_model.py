"""An ONNX model as scopes of values: what each is made of, in branches, loops and functions too, and what it is."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from multirnn.errors import FormatError
from multirnn.formats.contents import BFLOAT16, Bfloat16, Tensor, Unread
from multirnn.formats.onnx_facts import short
from multirnn.formats.onnx_nodes import MOVING, SIZES, Budget, computed
from multirnn.formats.onnx_values import array_of, attributes_of, value_of

__all__ = ["MAIN", "Missing", "Model", "Place", "Scope", "Value"]

MAIN = ("", "ai.onnx")
"""The names of ONNX's own domain."""
MOST_NODES, DEEPEST, LONGEST = 200_000, 40, 200
SMALL = 1 << 22


class Missing(NamedTuple):
    """Why a value cannot be told from the file.

    Attributes:
        kind: "input" of the model, "node" that is not computed here, or "nothing" that makes it.
        name: of the input, or of the operator.
    """

    kind: str
    name: str


Value = NDArray[Any] | Missing
Place = tuple[int, str]
"""The identity of a scope, and the name of a value in it."""


@dataclass(eq=False)
class Scope:
    """A graph, or a call of a function, with its values by name.

    Attributes:
        path: the names of the nodes around it.
        around: the operators around it, such as If.
        nodes, inputs, outputs: of the graph.
        initialisers: its tensors.
        makers: the node that makes a value.
        outer: the scope whose values are seen here too; None for the main graph and a function.
        holder: the node and its scope that this graph is inside of, or that calls this function.
        arguments: of a function, what the caller gives for its inputs.
        attributes: of a function, what the caller gives, by name.
    """

    path: str
    around: tuple[str, ...]
    nodes: list[Any]
    inputs: list[str]
    outputs: list[str]
    initialisers: dict[str, Any] = field(default_factory=dict)
    makers: dict[str, Any] = field(default_factory=dict)
    outer: "Scope | None" = None
    holder: "tuple[Any, Scope] | None" = None
    arguments: dict[str, str] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)

    def find(self, name: str) -> "tuple[Scope, str]":
        """The scope in which a value is made, and its name there."""
        here, seen = self, 0
        while True:
            if name in here.initialisers or name in here.makers:
                return here, name
            if here.holder is not None and name in here.arguments:
                name, here = here.arguments[name], here.holder[1]
            elif name in here.inputs or here.outer is None:
                return here, name
            else:
                here = here.outer
            seen += 1
            if seen > MOST_NODES:
                return here, name


class Model:
    """A parsed model.

    Args:
        onnx: the package.
        proto: the ModelProto.
        given: values of inputs of the graph.
        large: numbers of initialisers that are not in the message.
        size: of the file, in bytes.

    Raises:
        FormatError: it is damaged, or names the same value twice.
    """

    def __init__(
        self,
        onnx: Any,
        proto: Any,
        given: Mapping[str, NDArray[Any]],
        large: Mapping[str, NDArray[Any]],
        size: int,
    ) -> None:
        self._onnx, self._given, self._large = onnx, given, large
        self._budget = Budget(SMALL + 2 * size)
        self.kept: list[Scope] = []  # values are known by the identities of their scopes
        self._known: dict[Place, Value] = {}
        self._calls: dict[tuple[int, int], Scope] = {}
        self._functions = {(one.domain, one.name, one.overload): one for one in proto.functions}
        self.inputs = list(proto.graph.input)
        names = [one.name for one in self.inputs]
        if unknown := [name for name in given if name not in names]:
            raise FormatError(f"the model has no input {short(unknown[0])}; it has {', '.join(map(short, names[:20]))}")
        self.main = self._scope(proto.graph, "", ())
        self._left = MOST_NODES

    def scopes(self) -> Iterator[Scope]:
        """The main graph, the graphs in its nodes, and every call of a function."""
        yield from self._inside(self.main, 0)

    def function(self, node: Any) -> Any:
        """The function that a node calls; None if it is an operator."""
        return self._functions.get((node.domain, node.op_type, node.overload)) if self._functions else None

    def _inside(self, scope: Scope, depth: int) -> Iterator[Scope]:
        self.kept.append(scope)
        self._left -= len(scope.nodes)
        if self._left < 0 or depth > DEEPEST:
            raise FormatError(f"it has more than {MOST_NODES} nodes, or graphs more than {DEEPEST} deep in each other")
        yield scope
        kinds = self._onnx.AttributeProto.GRAPH, self._onnx.AttributeProto.GRAPHS
        for node in scope.nodes:
            path, around = self.path(scope, node), (*scope.around, node.op_type)
            for one in node.attribute:
                for graph in (one.g, *one.graphs) if one.type in kinds else ():
                    if len(graph.node):
                        inner = self._scope(graph, path, around)
                        inner.outer, inner.holder = scope, (node, scope)
                        inner.attributes = scope.attributes
                        yield from self._inside(inner, depth + 1)
            if self.function(node):
                yield from self._inside(self._called(node, scope), depth + 1)

    def _called(self, node: Any, scope: Scope) -> Scope:
        """The scope of a call of a function."""
        if (place := (id(scope), id(node))) in self._calls:
            return self._calls[place]
        function = self.function(node)
        called = self._calls[place] = Scope(
            self.path(scope, node), scope.around, _nodes(function), list(function.input), list(function.output)
        )
        called.holder = node, scope
        called.arguments = dict(zip(function.input, node.input, strict=False))
        called.attributes = {one.name: value_of(self._onnx, one, {}) for one in function.attribute_proto}
        called.attributes |= self.attributes(node, scope)
        called.makers = {output: one for one in called.nodes for output in one.output if output}
        return called

    def _scope(self, graph: Any, path: str, around: tuple[str, ...]) -> Scope:
        scope = Scope(
            path, around, _nodes(graph), [one.name for one in graph.input], [one.name for one in graph.output]
        )
        scope.initialisers = {tensor.name: tensor for tensor in graph.initializer}
        _refuse_bytes(*scope.inputs, *scope.outputs, *scope.initialisers)
        makers = [(output, node) for node in scope.nodes for output in node.output if output]
        scope.makers = dict(makers)
        if len(scope.makers) != len(makers) or len(scope.initialisers) != len(graph.initializer):
            raise FormatError("two values of one graph have the same name")
        if twice := scope.makers.keys() & scope.initialisers.keys():
            raise FormatError(f"two values have the name {short(min(twice))}")
        return scope

    def path(self, scope: Scope, node: Any) -> str:
        """The name of a node behind those of the nodes around it."""
        return "/".join(filter(None, (scope.path, node.name)))

    def attributes(self, node: Any, scope: Scope) -> dict[str, Any]:
        """The attributes of a node by name: text decoded, tensors as arrays, those of a function's call in place."""
        return attributes_of(self._onnx, node, scope.attributes)

    def arrays(self) -> dict[str, Tensor]:
        """The initialisers of the main graph by name."""
        values = {name: self.value(self.main, name) for name in self.main.initialisers}
        return {name: _readable(array) for name, array in values.items() if not isinstance(array, Missing)}

    def value(self, scope: Scope, name: str) -> Value:
        """A value that is made of constants, and of inputs that are given, by nodes that move numbers.

        Raises:
            FormatError: the file does not fit together.
        """
        return self.evaluated(scope, name, self._known, self._budget)

    def evaluated(self, scope: Scope, name: str, known: dict[Place, Value], budget: Budget, depth: int = 0) -> Value:
        """The same, from other known values.

        Args:
            scope, name: of the value.
            known: by scope and name; values that are found are added.
            budget: what may be spent.
            depth: of the recursion.
        """
        scope, name = scope.find(name)
        place = id(scope), name
        if place not in known:
            known[place] = self._made(scope, name, known, budget, depth)
        return known[place]

    def _made(self, scope: Scope, name: str, known: dict[Place, Value], budget: Budget, depth: int) -> Value:
        if scope is self.main and name in self._given:
            return self._given[name]
        if scope is self.main and name in self._large:
            return self._large[name]
        if name in scope.initialisers:
            return array_of(self._onnx, scope.initialisers[name])
        if name not in scope.makers:
            if scope is self.main:
                return Missing("input" if name in scope.inputs else "nothing", name)
            return Missing("node", scope.holder[0].op_type if scope.holder else name)
        node = scope.makers[name]
        known[id(scope), name] = Missing("nothing", name)  # what is made of itself is made of nothing
        if self.function(node) and depth <= LONGEST:
            outputs, place = self.function(node).output, list(node.output).index(name)
            inner = self._called(node, scope)
            return (
                self.evaluated(inner, outputs[place], known, budget, depth + 1)
                if place < len(outputs)
                else Missing("nothing", name)
            )
        moves = node.domain in MAIN and node.op_type in MOVING | SIZES
        if not moves or depth > LONGEST:
            return Missing("node", node.op_type)
        given: list[NDArray[Any] | None] = []
        for one in node.input:
            value = self.evaluated(scope, one, known, budget, depth + 1) if one else None
            if isinstance(value, Missing):
                return value
            given.append(value)
        if node.op_type in SIZES - {"Shape"} and any(one is None or one.dtype.kind not in "iu" for one in given):
            return Missing("node", node.op_type)
        attributes = self.attributes(node, scope)
        if node.op_type == "Cast":
            attributes["to"] = self._dtype(attributes.get("to"))
        made = computed(node.op_type, given, attributes, len(node.output), budget)
        for output, array in zip(node.output, made, strict=True):
            known[id(scope), output] = array
        return made[list(node.output).index(name)]

    def _dtype(self, number: Any) -> np.dtype[Any]:
        try:
            kind: np.dtype[Any] = np.dtype(self._onnx.helper.tensor_dtype_to_np_dtype(number))
            return kind
        except (KeyError, ValueError, TypeError) as error:
            raise FormatError(f"a node casts to a type {number!r} that ONNX has not") from error


def _nodes(graph: Any) -> list[Any]:
    for node in graph.node:
        _refuse_bytes(node.name, node.op_type, node.domain, node.overload, *node.input, *node.output)
    return list(graph.node)


def _refuse_bytes(*names: Any) -> None:
    """Check that names are text: Protocol Buffers give bytes for what is not UTF-8."""
    if bad := next((name for name in names if not isinstance(name, str)), None):
        raise FormatError(f"the name {bad[:80]!r} in it is no text")


def _readable(array: NDArray[Any]) -> Tensor:
    if array.dtype.name == BFLOAT16:
        return Bfloat16(array.view(np.uint16))
    return array if array.dtype.kind in "biufc" else Unread(array.dtype.name, array.shape)
