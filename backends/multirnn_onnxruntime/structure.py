"""The structure of an ONNX model that may be one stack: operators RNN, LSTM or GRU, and nodes that move arrays.

The core's reader of files computes its values (`multirnn.formats.onnx_model`); here stands what all of a model must be, so
that it is a stack and nothing else. `confirmation` tells whether the model computes what its weights describe.
"""

from collections.abc import Container, Iterator, Mapping

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper

from multirnn import FormatError, Unrepresentable
from multirnn.formats.onnx_facts import OPERATORS, short
from multirnn.formats.onnx_model import MAIN, Missing, Model, Place, Value
from multirnn.formats.onnx_nodes import MOVING, SIZES, Budget
from multirnn.formats.onnx_operators import C_0, GATES, H_0, LENGTHS, PEEPHOLES, B, R, W, clips, single_bias
from multirnn.formats.onnx_values import array_of
from multirnn.weights import Array
from multirnn_onnxruntime.sizes import LARGEST, refuse_large
from multirnn_onnxruntime.untrusted import attribute, attributes, refuse_attributes, refuse_tensor

__all__ = ["Chain", "has"]

# The nodes that compute, if their numbers are integers and thus sizes. All of them but the operators move arrays.
ARITHMETIC = SIZES - {"Shape"}
# The types of states and lengths; sizes are int64.
CALLED = (TensorProto.FLOAT, TensorProto.INT32)


class Chain:
    """The operators of a model, in order; `Unrepresentable` if they cannot be one stack, or are not all of the model.

    Its methods raise `FormatError` where a constant cannot be computed.

    `model` is a copy in which the operators, of one kind and alike, have a `hidden_size` and all their outputs have names;
    `given` are the names of its inputs, without those that have a constant.
    """

    def __init__(self, model: ModelProto) -> None:
        self.model = ModelProto()
        self.model.CopyFrom(model)
        graph = self.model.graph
        self.operators = [node for node in graph.node if node.op_type in OPERATORS.values()]
        self._refuse_other_nodes()
        self._refuse_unlike_layers()
        self._maker = {output: node for node in graph.node for output in node.output}
        self._free_optional_inputs()
        held = {tensor.name for tensor in graph.initializer}
        self.given = [value.name for value in graph.input if value.name not in held]
        self._refuse_other_values()
        for node in self.operators:
            self._refuse_other_forms(node)
        self._read = Model(onnx, self.model, {}, {}, self.model.ByteSize())
        self._complete()
        integers = refuse_large(self.model)
        arithmetic = [node for node in graph.node if node.op_type in ARITHMETIC]
        self._refuse({node.op_type for node in arithmetic if not integers.issuperset(node.output)})
        first = self.operators[0]
        self.directions = 2 if attribute(first, "direction") == "bidirectional" else 1
        self.hidden_size = self._constant(0, R, "R", 3).shape[2]
        for node in self.operators:
            if (size := attribute(node, "hidden_size")) not in (None, self.hidden_size):
                raise Unrepresentable(
                    f"the {node.op_type} has hidden_size={size}, and the weights R of layer 0 {self.hidden_size} units"
                )

    def arrays(self) -> dict[str, Array]:
        """The weights by the names of ONNX's convention; a single bias in parts, where `graph.model` wrote it so."""
        found: dict[str, Array] = {}
        for k, node in enumerate(self.operators):
            rows, own = GATES[node.op_type] * self.hidden_size, {}
            for name, place, shape in (("W", W, (rows, -1)), ("R", R, (rows, self.hidden_size)), ("B", B, (2 * rows,))):
                if name == "B" and not has(node, place):
                    continue
                array = self._constant(k, place, name, 1 + len(shape))
                sizes = zip(shape, array.shape[1:], strict=True)
                wanted = self.directions, *(given if size < 0 else size for size, given in sizes)
                if array.shape != wanted:
                    raise Unrepresentable(f"{name} of layer {k} must have the shape {wanted}, not {array.shape}")
                own[name] = array
            own = single_bias(self._read, node, self._read.main, own) or own
            found |= {f"layers.{k}.{name}": array for name, array in own.items()}
        return found

    def integers(self) -> Iterator[int]:
        """The magnitudes of the integers in its constants, which may shape arrays."""
        constants = [array_of(onnx, tensor) for tensor in self.model.graph.initializer]
        for node in self.model.graph.node:
            constants += [np.asarray(value) for value in attributes(node).values()]
        return (abs(int(number)) for array in constants if array.dtype.kind == "i" for number in array.flat)

    def behind(self, name: str, stop: Container[str] = ()) -> set[str]:
        """The names of a value and of all values that it is computed from, not searched beyond those in `stop`."""
        found: set[str] = set()
        waiting = [name]
        while waiting:
            one = waiting.pop()
            if one and one not in found:
                found.add(one)
                if one in self._maker and one not in stop:
                    waiting += self._maker[one].input
        return found

    def value(self, name: str) -> Array:
        """A constant of the graph, or what is computed from constants alone; `Unrepresentable` if it is not."""
        value = self._evaluated(name, {})
        if isinstance(value, Missing):
            source = short(value.name) if value.kind == "input" else f"a node {value.name[:80]}"
            raise Unrepresentable(f"{short(name)} of the model depends on {source}, and is no constant")
        return value

    def carried(self, name: str, given: Mapping[str, Array]) -> Array | None:
        """The value that others are moved into; None if it depends on more than these, or their numbers change."""
        try:
            value = self._evaluated(name, given)
        except FormatError:
            return None
        return None if isinstance(value, Missing) else value

    def _evaluated(self, name: str, given: Mapping[str, Array]) -> Value:
        main = self._read.main
        known: dict[Place, Value] = {(id(main), key): array for key, array in given.items()}
        return self._read.evaluated(main, name, known, Budget(LARGEST))

    def _free_optional_inputs(self) -> None:
        """Take away the values that lengths and states have where a call gives none, so that a trial gives them."""
        graph = self.model.graph
        places = (LENGTHS, H_0, C_0)
        behind = (self.behind(node.input[place]) for node in self.operators for place in places if has(node, place))
        names = {value.name for value in graph.input}.intersection(*[set().union(*behind)])
        kept = [one for one in graph.initializer if one.name not in names or one.data_type not in CALLED]
        del graph.initializer[:]
        graph.initializer.extend(kept)

    def _complete(self) -> None:
        """Set `hidden_size`, optional in ONNX and needed by ONNX Runtime, and name every output of the operators."""
        longest = max((*self._maker, *self._read.main.initialisers, *self.given), key=len)
        for k, node in enumerate(self.operators):
            if attribute(node, "hidden_size") is None:
                node.attribute.append(helper.make_attribute("hidden_size", self._constant(k, R, "R", 3).shape[2]))
            node.output.extend([""] * ((3 if node.op_type == "LSTM" else 2) - len(node.output)))
            for place, name in enumerate(node.output):
                node.output[place] = name or f"{longest}.{k}.{place}"  # longer than any other name

    def _constant(self, layer: int, place: int, name: str, axes: int) -> Array:
        """A weight of an operator, with so many axes."""
        node = self.operators[layer]
        if not has(node, place):
            raise Unrepresentable(f"the {node.op_type} of layer {layer} has no weights {name}")
        if inputs := self.behind(node.input[place]).intersection(self.given):
            raise Unrepresentable(
                f"the weights {name} of layer {layer} are given in a call, as {', '.join(map(short, sorted(inputs)))}; put "
                "them into the model: model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))"
            )
        array = self.value(node.input[place])
        if array.ndim != axes or 0 in array.shape:
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
        functions = {(one.domain.replace("ai.onnx", ""), one.name) for one in self.model.functions}
        others = set()
        for node in self.model.graph.node:
            domain = "" if node.domain in MAIN else node.domain
            if domain or (domain, node.op_type) in functions:
                others.add(f"{domain or 'a function'}.{node.op_type}")
            elif node.op_type not in MOVING | SIZES and node.op_type not in OPERATORS.values():
                others.add(node.op_type)
        self._refuse(others)
        for node in self.model.graph.node:
            refuse_attributes(node, recurrent=node.op_type in OPERATORS.values())

    def _refuse(self, others: set[str]) -> None:
        if others:
            listed = ", ".join(name[:80] or "a node without a name" for name in sorted(others)[:8])
            raise Unrepresentable(
                f"the model also computes {listed}, which no spec has; "
                + (
                    "read a model of the recurrent layers alone"
                    if self.operators
                    else "it has no RNN, LSTM or GRU: torch.onnx.export writes these operators with dynamo=False"
                )
            )

    def _refuse_other_values(self) -> None:
        """Check that each value has one source, which precedes its uses."""
        graph = self.model.graph
        if graph.sparse_initializer:
            raise Unrepresentable("the model has sparse tensors, and the weights of a spec are dense")
        for tensor in graph.initializer:
            refuse_tensor(tensor)
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
            found = {default if (value := attribute(node, name)) is None else value for node in self.operators}
            if len(found - {None}) > 1:
                raise Unrepresentable(f"the layers of a spec are alike, and those of the model differ in {name}")

    def _refuse_other_forms(self, node: NodeProto) -> None:
        kind, direction = node.op_type, attribute(node, "direction") or "forward"
        before_reset, layout = attribute(node, "linear_before_reset"), attribute(node, "layout")
        refusals = (
            (direction == "reverse", f"the {kind} runs backward alone, and a spec runs forward or both ways"),
            (
                direction not in ("forward", "bidirectional"),
                f"the {kind} has the direction {short(direction)}, and ONNX forward and bidirectional",
            ),
            (
                clips(attributes(node)),
                f"the {kind} clips what goes into its activations (clip), which no spec does",
            ),
            (
                attribute(node, "input_forget"),
                "the LSTM has one gate for input and forgetting (input_forget), and a spec has two",
            ),
            (before_reset not in (None, 0, 1), f"linear_before_reset of the {kind} is 0 or 1, not {before_reset}"),
            (
                layout,
                f"the {kind} has layout={layout}, batch first, which ONNX Runtime does not run, so that nothing can "
                "confirm what it computes; give it layout=0 and transpose its input and outputs",
            ),
            (has(node, PEEPHOLES), "the LSTM has peepholes (input P), which no spec has"),
        )
        if reason := next((reason for refused, reason in refusals if refused), None):
            raise Unrepresentable(reason)


def has(node: NodeProto, place: int) -> bool:
    """Whether a node has an input at a place."""
    return len(node.input) > place and bool(node.input[place])
