"""Does an ONNX model compute the stack that its weights describe?

It runs once as a whole, from its own inputs to its own outputs. What goes into an operator has to be what the one below
gave, number for number, and what it returns has to be what the operators gave. That is compared with the reference by
`multirnn.confirmation`.
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise

import numpy as np
from onnx import ModelProto, NodeProto, ValueInfoProto

from multirnn import Output, State, Unrepresentable, Weights
from multirnn.boundary import Inputs
from multirnn.confirmation import confirmed
from multirnn.weights import Array
from multirnn_onnxruntime.calling import Call
from multirnn_onnxruntime.chain import LENGTHS, Chain, X, has
from multirnn_onnxruntime.graph import OPERATORS
from multirnn_onnxruntime.lengths import settle
from multirnn_onnxruntime.proto import short
from multirnn_onnxruntime.session import OnnxStack, running

__all__ = ["Trial"]


class Trial:
    """A model, tried.

    Args:
        chain: the model.
        weights: that were read from it.

    Attributes:
        weights: those that it computes with.
        call: how it is called.
        returned: what its outputs are, by their names: "sequence", "h" and "c" are those of `multirnn_onnxruntime.graph`.

    Raises:
        Unrepresentable: it computes something else than these weights describe, or ONNX Runtime does not run it.
    """

    def __init__(self, chain: Chain, weights: Weights) -> None:
        self._chain, self._spec, self.weights = chain, weights.spec, weights
        self.call = Call(chain)
        self.returned: dict[str, str] = {}
        batch, time = self.call.sizes(weights)
        ragged, state = bool(self.call.lengths), any(self.call.states)
        with np.errstate(all="ignore"):
            confirmed(weights, self._run, "this model", ragged=ragged, state=state, batch=batch, time=time)

    def _run(self, inputs: Inputs) -> Output:
        fed = self.call.fed(inputs)
        self._check_ways(inputs, fed)
        model, operators = self._open()
        names = [value.name for value in model.graph.output]
        with running():
            values: list[Array] = OnnxStack(model).session.run(names, fed)
        found = fed | dict(zip(names, values, strict=True))
        below, y = inputs.x.swapaxes(0, 1), np.empty(0, np.float32)
        ends: list[list[Array]] = [[] for _ in inputs.state.parts]
        for k, node in enumerate(operators):
            into = {place: self._value(node, place, found) for place in (X, *self.call.places)}
            self._check_inputs(k, into, below, inputs)
            y, *final = (found[name] for name in node.output)
            below = y.swapaxes(1, 2).reshape(*inputs.x.shape[1::-1], -1)
            for parts, end in zip(ends, final, strict=True):
                parts.append(end)
        states = [np.concatenate(parts) for parts in ends]
        self._check_outputs(found, y, below, states)
        settle(below, states, inputs.state.parts, inputs.lengths)
        return Output(below.swapaxes(0, 1), State(*states))

    def _open(self) -> tuple[ModelProto, list[NodeProto]]:
        """A copy of the model that also returns what its operators take and give, and these operators."""
        model = ModelProto()
        model.CopyFrom(self._chain.model)
        operators = [node for node in model.graph.node if node.op_type in OPERATORS.values()]
        made = {name for node in model.graph.node for name in node.output}
        for k, node in enumerate(operators):
            node.output.extend([""] * (1 + len(self.call.places) - len(node.output)))
            for place, name in enumerate(node.output):
                node.output[place] = name or f"{max(made, key=len)}.{k}.{place}"  # which no other value is called
        made.update(name for node in operators for name in node.output)
        inside = [name for node in operators for name in (*node.output, *node.input) if name in made]
        own = {value.name for value in model.graph.output}
        model.graph.output.extend(ValueInfoProto(name=name) for name in dict.fromkeys(inside) if name not in own)
        return model, operators

    def _value(self, node: NodeProto, place: int, found: Mapping[str, Array]) -> Array | None:
        if not has(node, place):
            return None
        name = node.input[place]
        return found[name] if name in found else self._chain.value(name, {})

    def _check_inputs(self, layer: int, into: Mapping[int, Array | None], below: Array, inputs: Inputs) -> None:
        if not np.array_equal(np.asarray(into[X]), below):
            raise _not_fed(layer)
        directions = len(self._spec.directions)
        rows = slice(layer * directions, (layer + 1) * directions)
        for place, part in zip(self.call.places, inputs.state.parts, strict=True):
            start = into[place]
            if start is not None and not np.array_equal(start, part[rows]):
                raise Unrepresentable(
                    f"layer {layer} of the model starts from a state of its own, and a spec from one that it is given, or "
                    "from zero"
                )

    def _check_ways(self, inputs: Inputs, fed: Mapping[str, Array]) -> None:
        """Whether lengths, and outputs from layer to layer, get where they go as they are.

        Tried before an operator runs: with no step to run, or a length of 0, ONNX Runtime ends the process.
        """
        batch, time, _ = inputs.x.shape
        shape = time, len(self._spec.directions), batch, self._spec.hidden_size
        y = np.random.default_rng(0).standard_normal(shape, np.float32)
        joined = y.swapaxes(1, 2).reshape(time, batch, -1)
        for layer, (below, above) in enumerate(pairwise(self._chain.operators), 1):
            try:
                carried = self._chain.value(above.input[X], {below.output[0]: y})
            except Unrepresentable as error:
                raise _not_fed(layer) from error
            if not np.array_equal(carried, joined):
                raise _not_fed(layer)
        for layer, node in enumerate(self._chain.operators if self.call.lengths else ()):
            given = {self.call.lengths: fed[self.call.lengths]}
            if not np.array_equal(self._chain.value(node.input[LENGTHS], given), given[self.call.lengths]):
                raise Unrepresentable(f"layer {layer} of the model does not take the lengths as they are given")

    def _check_outputs(self, found: Mapping[str, Array], y: Array, sequence: Array, states: list[Array]) -> None:
        for value in self._chain.model.graph.output:
            array = found[value.name]
            what = next(
                (
                    what
                    for what, form in self._forms(y, sequence, states)
                    if array.dtype == form.dtype and np.array_equal(array, form)
                ),
                None,
            )
            if what is None:
                raise Unrepresentable(
                    f"the output {short(value.name)} of the model is neither the sequence of the last layer nor a final "
                    "state as it is: something changes the numbers or their order, or returns a part of them"
                )
            self.returned[value.name] = what
        if all(what.startswith("lower") for what in self.returned.values()):
            raise Unrepresentable("the model returns nothing of its last layer, so that this layer is of no effect")

    def _forms(self, y: Array, sequence: Array, states: list[Array]) -> Iterator[tuple[str, Array]]:
        """The arrays that a model may return, each with its name.

        Args:
            y: of the last operator, `(time, directions, batch, hidden_size)`.
            sequence: the same, `(time, batch, directions * hidden_size)`.
            states: `(num_layers * directions, batch, hidden_size)` each.
        """
        yield from {"sequence": sequence, "sequence, batch first": sequence.swapaxes(0, 1)}.items()
        yield from {
            "sequence of each direction": y,
            "sequence of each direction, batch first": y.swapaxes(1, 2),
        }.items()
        if sequence.shape[1] == 1:
            yield "sequence, unbatched", sequence[:, 0]
        directions = len(self._spec.directions)
        for name, state in zip("hc", states, strict=False):
            yield name, state
            last = state[-directions:]
            yield f"last {name}, joined", last.swapaxes(0, 1).reshape(state.shape[1], -1)
            yield from ((f"last {name}", last), *((f"last {name} of a direction", one) for one in last))
            lower = state[:-directions]
            yield from ((f"lower {name}", lower[k : k + directions]) for k in range(0, len(lower), directions))
            yield from ((f"lower {name} of a direction", one) for one in lower)
            if sequence.shape[1] == 1:
                yield f"{name}, unbatched", state[:, 0]


def _not_fed(layer: int) -> Unrepresentable:
    if layer:
        return Unrepresentable(f"layer {layer} of the model is not fed by the outputs of the one below as they are")
    return Unrepresentable("layer 0 of the model does not take x as it is")
