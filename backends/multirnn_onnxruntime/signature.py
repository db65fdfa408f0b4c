"""How an ONNX model is called: which of its inputs are x, the lengths and the states, and in what layout."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto

from multirnn import Unrepresentable, Weights
from multirnn.boundary import Inputs
from multirnn.formats.onnx_facts import short
from multirnn.formats.onnx_operators import C_0, H_0, LENGTHS, X
from multirnn.weights import Array
from multirnn_onnxruntime.session import steps
from multirnn_onnxruntime.sizes import LARGEST, MOST
from multirnn_onnxruntime.structure import Chain, has

__all__ = ["Signature"]

INTEGERS: Mapping[int, str] = MappingProxyType({TensorProto.INT32: "int32", TensorProto.INT64: "int64"})


class Signature:
    """The inputs of a model; `Unrepresentable` if it takes what no call of a stack has, or changes x before the first layer.

    `x` and `lengths` are names, empty if it takes none; `layout` is "time first", "batch first" or "unbatched",
    `(time, input_size)`. `states` names the initial h, and of an LSTM the initial c: one for all layers, one for each, or
    none; `places` are theirs among the inputs of an operator.
    """

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        tensors = {value.name: value.type.tensor_type for value in chain.model.graph.input}
        # Sizes are 0 where any is taken.
        self._dims = {name: tuple(max(0, dim.dim_value) for dim in one.shape.dim) for name, one in tensors.items()}
        self.places = (H_0, C_0) if chain.operators[0].op_type == "LSTM" else (H_0,)
        self.x = self._one(X, chain.operators[:1], "x")
        self.lengths = self.lengths_dtype = ""
        if any(has(node, LENGTHS) for node in chain.operators):
            self.lengths = self._one(LENGTHS, chain.operators, "lengths")
            self.lengths_dtype = INTEGERS.get(tensors[self.lengths].elem_type, "")
            if not self.lengths_dtype:
                raise Unrepresentable(f"lengths are integers, and {short(self.lengths)} of the model are none")
        self.states = [self._of_layers(place) for place in self.places]
        if any(self.states) and not all(self.states):
            raise Unrepresentable("the model takes one part of an LSTM's state, and a call gives both, or none")
        used = {self.x, self.lengths, *(name for names in self.states for name in names)}
        if unused := [name for name in chain.given if name not in used]:
            raise Unrepresentable(f"the model takes {short(unused[0])}, which is neither x nor lengths nor a state")
        features, hidden = chain.arrays()["layers.0.W"].shape[2], chain.hidden_size
        # A number in the model may be a limit of batch or time, which a trial exceeds unless it is very large.
        sizes = features, hidden, chain.directions * hidden
        self._more = 1 + max(
            (number for number in chain.integers() if number < MOST and number not in sizes), default=0
        )
        dims = self._dims[self.x] or (0, 0, 0)
        if len(dims) not in (2, 3) or tensors[self.x].elem_type != TensorProto.FLOAT or dims[-1] not in (0, features):
            raise Unrepresentable(
                f"x is float32 with {features} features in its last axis, and the model's {short(self.x)} is something else"
            )
        self.layout = self._layout_of_x(dims[:-1], features)

    def fixed(self) -> tuple[int, int]:
        """Batch and time as the model has fixed them; 0 where any is taken."""
        dims = self._dims[self.x] or (0, 0, 0)
        time, batch = {"time first": dims[:2], "batch first": dims[1::-1], "unbatched": (dims[0], 1)}[self.layout]
        for dims in (self._dims[name] for names in self.states for name in names):
            batch = batch or (dims[1] if len(dims) == 3 else 0)
        return batch, time

    def tried_sizes(self, weights: Weights) -> tuple[int, int]:
        """Batch and time for a trial, larger than the numbers in the model, which may be limits."""
        batch, time = self.fixed()
        batch, time = batch or max(5, self._more), time or max(7, self._more)
        features = weights.spec.input_size + weights.spec.num_layers * weights.spec.output_size
        _refuse_many(batch * time * features, f"{batch} rows of {time} steps")
        return batch, time

    def fed(self, inputs: Inputs) -> dict[str, Array]:
        """The arrays of a call by the names of the model's inputs."""
        x = inputs.x.swapaxes(0, 1)
        fed: dict[str, Any] = {self.x: {"time first": x, "batch first": inputs.x, "unbatched": x[:, 0]}[self.layout]}
        if self.lengths:
            batch, time, _ = inputs.x.shape
            fed[self.lengths] = steps(inputs.lengths, batch, time).astype(self.lengths_dtype)
        for names, part in zip(self.states, inputs.state.parts, strict=True):
            for name, array in zip(names, np.split(part, max(1, len(names))), strict=False):
                fed[name] = array[:, 0] if len(self._dims[name]) == 2 else array
        return {name: np.ascontiguousarray(array) for name, array in fed.items()}

    def _behind(self, node: NodeProto, place: int) -> set[str]:
        """The model's inputs that an input of an operator is made of, other than through the operators below."""
        if not has(node, place):
            return set()
        outputs = {name for operator in self._chain.operators for name in operator.output}
        return self._chain.behind(node.input[place], outputs).intersection(self._chain.given)

    def _one(self, place: int, nodes: Sequence[NodeProto], what: str) -> str:
        """The one input that all operators take at a place."""
        found = [self._behind(node, place) for node in nodes]
        if what == "lengths":  # x may tell their number, and the largest
            found = [names - {self.x} for names in found]
        if len(found[0]) == 1 and all(names == found[0] for names in found):
            return next(iter(found[0]))
        raise Unrepresentable(
            f"the {nodes[0].op_type} has {what} of its own, and those of a spec are given in a call, one for all layers"
            if what == "lengths"
            else "a stack takes one input x, and layer 0 of the model takes "
            + (", ".join(map(short, sorted(found[0]))) or "none")
        )

    def _of_layers(self, place: int) -> list[str]:
        """The initial states: one for all layers, one for each, or none."""
        chain = self._chain
        layers = [sorted(self._behind(node, place) - {self.x}) for node in chain.operators]
        names = [name for layer in layers for name in layer]
        for node, layer in zip(chain.operators, layers, strict=True):
            # Only a constant is computed here; the trial tells about a state that is made of x.
            constant = has(node, place) and not layer and chain.behind(node.input[place]).isdisjoint(chain.given)
            if constant and chain.value(node.input[place]).any():
                raise Unrepresentable(
                    f"the {node.op_type} starts from a state of its own, and a spec from one that it is given, or from zero"
                )
        if names and (any(len(layer) != 1 for layer in layers) or len(set(names)) not in (1, len(names))):
            raise Unrepresentable(
                "some layers of the model start from a state that is given in a call, and others do not"
            )
        return names[:1] if len(set(names)) == 1 else names

    def _layout_of_x(self, dims: tuple[int, ...], features: int) -> str:
        """Found by feeding distinct numbers through the model up to its first operator."""
        free = max(7, self._more), max(5, self._more)
        shape = (*(size or more for size, more in zip(dims, free, strict=False)), features)
        _refuse_many(np.prod(shape, dtype=float), f"{short(self.x)} of the shape {shape}")
        x = np.random.default_rng(0).standard_normal(shape, np.float32)
        found = self._chain.carried(self._chain.operators[0].input[X], {self.x: x})
        layouts = {"time first": x, "batch first": x.swapaxes(0, 1)} if x.ndim == 3 else {"unbatched": x[:, None]}
        for layout, array in layouts.items():
            if found is not None and np.array_equal(found, array):
                return layout
        raise Unrepresentable(
            f"layer 0 of the model does not take {short(self.x)} as it is: something before it changes the numbers or "
            "their order"
        )


def _refuse_many(numbers: float, taken: str) -> None:
    if numbers > LARGEST:
        raise Unrepresentable(
            f"the model takes {taken} alone, too many numbers to try what it computes; export it with free sizes of "
            "batch and time"
        )
