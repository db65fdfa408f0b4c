"""Confirms that an ONNX model computes the stack that its weights describe.

The whole model runs once, from its own inputs to its own outputs. Each operator must take the outputs of the one below,
number for number, and the model must return the outputs of the operators. These are compared with the reference by
`multirnn.confirmation`.
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise

import numpy as np
from onnx import ModelProto, NodeProto, ValueInfoProto

from multirnn import Output, State, Unrepresentable, Weights
from multirnn.boundary import Inputs
from multirnn.confirmation import confirmed
from multirnn.formats.onnx_facts import short
from multirnn.formats.onnx_operators import LENGTHS, X
from multirnn.weights import Array
from multirnn_onnxruntime.session import OnnxStack, running, settle
from multirnn_onnxruntime.signature import Signature
from multirnn_onnxruntime.structure import Chain, has

__all__ = ["Trial"]


class Trial:
    """A model that was run once, and computes a stack with the weights that were read from it; else `Unrepresentable`.

    `signature` says how it is called, `returned` what each of its outputs means, by name: "sequence", "h" and "c" are those
    of `multirnn.formats.onnx_graph`.
    """

    def __init__(self, chain: Chain, weights: Weights) -> None:
        self._chain, self._spec, self.weights = chain, weights.spec, weights
        self.signature = Signature(chain)
        self.returned: dict[str, str] = {}
        batch, time = self.signature.tried_sizes(weights)
        ragged, state = bool(self.signature.lengths), any(self.signature.states)
        with np.errstate(all="ignore"):
            confirmed(weights, self._run, "this model", ragged=ragged, state=state, batch=batch, time=time)

    def _run(self, inputs: Inputs) -> Output:
        fed = self.signature.fed(inputs)
        self._check_paths(inputs, fed)
        model, operators, places = ModelProto(), self._chain.operators, self.signature.places
        model.CopyFrom(self._chain.model)
        made = {name for node in model.graph.node for name in node.output}
        inside = [name for node in operators for name in (*node.output, *node.input) if name in made]
        own = [value.name for value in model.graph.output]
        model.graph.output.extend(ValueInfoProto(name=name) for name in dict.fromkeys(inside) if name not in own)
        names = [value.name for value in model.graph.output]
        with running():
            values: list[Array] = OnnxStack(model).session.run(names, fed)
        found = fed | dict(zip(names, values, strict=True))
        below, y = inputs.x.swapaxes(0, 1), np.empty(0, np.float32)
        ends: list[list[Array]] = [[] for _ in inputs.state.parts]
        for layer, node in enumerate(operators):
            if not np.array_equal(np.asarray(self._value(node, X, found)), below):
                raise _not_fed(layer)
            rows = slice(layer * self._chain.directions, (layer + 1) * self._chain.directions)
            for place, part in zip(places, inputs.state.parts, strict=True):
                start = self._value(node, place, found)
                if start is not None and not np.array_equal(start, part[rows]):
                    raise Unrepresentable(
                        f"layer {layer} of the model starts from a state of its own, and a spec from one that it is given, "
                        "or from zero"
                    )
            y, *final = (found[name] for name in node.output)
            below = y.swapaxes(1, 2).reshape(*inputs.x.shape[1::-1], -1)
            for parts, end in zip(ends, final, strict=True):
                parts.append(end)
        states = [np.concatenate(parts) for parts in ends]
        self._check_outputs({name: found[name] for name in own}, y, below, states)
        settle(below, states, inputs.state.parts, inputs.lengths)
        return Output(below.swapaxes(0, 1), State(*states))

    def _value(self, node: NodeProto, place: int, found: Mapping[str, Array]) -> Array | None:
        if not has(node, place):
            return None
        name = node.input[place]
        return found[name] if name in found else self._chain.value(name)

    def _check_paths(self, inputs: Inputs, fed: Mapping[str, Array]) -> None:
        """Check that lengths, and outputs from layer to layer, arrive unchanged.

        Tried before an operator runs: with no step to run, or a length of 0, ONNX Runtime ends the process.
        """
        batch, time, _ = inputs.x.shape
        shape = time, self._chain.directions, batch, self._spec.hidden_size
        y = np.random.default_rng(0).standard_normal(shape, np.float32)
        joined = y.swapaxes(1, 2).reshape(time, batch, -1)
        for layer, (below, above) in enumerate(pairwise(self._chain.operators), 1):
            carried = self._chain.carried(above.input[X], {below.output[0]: y})
            if carried is None or not np.array_equal(carried, joined):
                raise _not_fed(layer)
        lengths = self.signature.lengths
        for layer, node in enumerate(self._chain.operators if lengths else ()):
            given = {name: fed[name] for name in (lengths, self.signature.x)}
            carried = self._chain.carried(node.input[LENGTHS], given)
            if carried is None or not np.array_equal(carried, fed[lengths]):
                raise Unrepresentable(f"layer {layer} of the model does not take the lengths as they are given")

    def _check_outputs(self, returned: Mapping[str, Array], y: Array, sequence: Array, states: list[Array]) -> None:
        for name, array in returned.items():
            forms = self._forms(y, sequence, states)
            same = (what for what, form in forms if array.dtype == form.dtype and np.array_equal(array, form))
            what = next(same, None)
            if what is None:
                raise Unrepresentable(
                    f"the output {short(name)} of the model is neither the sequence of the last layer nor a final "
                    "state as it is: something changes the numbers or their order, or returns a part of them"
                )
            self.returned[name] = what
        if all(what.startswith("lower") for what in self.returned.values()):
            raise Unrepresentable("the model returns nothing of its last layer, so that this layer is of no effect")

    def _forms(self, y: Array, sequence: Array, states: list[Array]) -> Iterator[tuple[str, Array]]:
        """The arrays that a model may return, each with its name.

        y, `(time, directions, batch, hidden_size)`, is of the last operator, the sequence `(time, batch, directions *
        hidden_size)` the same; states are `(num_layers * directions, batch, hidden_size)` each.
        """
        yield "sequence", sequence
        yield "sequence, batch first", sequence.swapaxes(0, 1)
        yield "sequence of each direction", y
        yield "sequence of each direction, batch first", y.swapaxes(1, 2)
        if sequence.shape[1] == 1:
            yield "sequence, unbatched", sequence[:, 0]
        directions = self._chain.directions
        for name, state in zip("hc", states, strict=False):
            lower, last = state[:-directions], state[-directions:]
            yield name, state
            yield f"last {name}, joined", last.swapaxes(0, 1).reshape(state.shape[1], -1)
            yield f"last {name}", last
            yield from ((f"last {name} of a direction", one) for one in last)
            yield from ((f"lower {name}", lower[k : k + directions]) for k in range(0, len(lower), directions))
            yield from ((f"lower {name} of a direction", one) for one in lower)
            if sequence.shape[1] == 1:
                yield f"{name}, unbatched", state[:, 0]


def _not_fed(layer: int) -> Unrepresentable:
    if layer:
        return Unrepresentable(f"layer {layer} of the model is not fed by the outputs of the one below as they are")
    return Unrepresentable("layer 0 of the model does not take x as it is")
