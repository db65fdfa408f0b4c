"""How an ONNX model is called: which of its inputs is x, which are lengths and states, and in what layout."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, ValueInfoProto

from multirnn import Unrepresentable, Weights
from multirnn.boundary import Inputs
from multirnn.weights import Array
from multirnn_onnxruntime.chain import C_0, H_0, LENGTHS, Chain, X, has
from multirnn_onnxruntime.growth import LARGEST, MOST
from multirnn_onnxruntime.lengths import steps
from multirnn_onnxruntime.proto import short

__all__ = ["Call"]

_LENGTHS: Mapping[int, str] = MappingProxyType({TensorProto.INT32: "int32", TensorProto.INT64: "int64"})


@dataclass(frozen=True, slots=True)
class _Taken:
    """An input of a model: its element type, of `onnx.TensorProto`, and its sizes, 0 where any is taken."""

    kind: int
    dims: tuple[int, ...]


class Call:
    """How a model is called.

    Args:
        chain: the model.

    Attributes:
        x: the name of the sequence.
        layout: "time first", "batch first", or "unbatched": `(time, input_size)`.
        lengths: the name of the lengths; empty where it takes none.
        states: the names of the initial h, and of an LSTM of the initial c: one for all layers, one for each, or none.
        places: of the states among the inputs of an operator.

    Raises:
        Unrepresentable: it takes something that no call of a stack has, or changes x before the first layer.
    """

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._taken = {value.name: _taken(value) for value in chain.model.graph.input}
        self.places = (H_0, C_0) if chain.operators[0].op_type == "LSTM" else (H_0,)
        self.x = self._one(X, chain.operators[:1], "x")
        self.lengths = self._one(LENGTHS, chain.operators, "lengths") if self._any_has(LENGTHS) else ""
        if self.lengths and self._taken[self.lengths].kind not in _LENGTHS:
            raise Unrepresentable(f"lengths are integers, and {short(self.lengths)} of the model are none")
        self.states = [self._of_layers(place) for place in self.places]
        if any(self.states) and not all(self.states):
            raise Unrepresentable("the model takes one part of an LSTM's state, and a call gives both, or none")
        used = {self.x, self.lengths, *(name for names in self.states for name in names)}
        if unused := [name for name in chain.given if name not in used]:
            raise Unrepresentable(f"the model takes {short(unused[0])}, which is neither x nor lengths nor a state")
        self._features = chain.arrays()["layers.0.W"].shape[2]
        self._more = 1 + self._limit()
        self.layout = self._layout_of_x()

    @property
    def lengths_dtype(self) -> str:
        """The dtype of the lengths, int32 or int64; empty where it takes none."""
        return _LENGTHS[self._taken[self.lengths].kind] if self.lengths else ""

    def fixed(self) -> tuple[int, int]:
        """Batch and time as the model has fixed them; 0 where any is taken."""
        dims = self._taken[self.x].dims or (0, 0, 0)
        time, batch = {"time first": dims[:2], "batch first": dims[1::-1], "unbatched": (dims[0], 1)}[self.layout]
        for dims in (self._taken[name].dims for names in self.states for name in names):
            batch = batch or (dims[1] if len(dims) == 3 else 0)
        return batch, time

    def sizes(self, weights: Weights) -> tuple[int, int]:
        """Batch and time to try it with: larger than the numbers in the model, each of which may be a limit.

        Raises:
            Unrepresentable: it takes nothing but too much.
        """
        spec = weights.spec
        batch, time = self.fixed()
        batch, time = batch or max(5, self._more), time or max(7, self._more)
        if batch * time * (spec.input_size + spec.num_layers * spec.output_size) > LARGEST:
            raise Unrepresentable(
                f"the model takes {batch} rows of {time} steps alone, too many to try what it computes; export it with "
                "free sizes of batch and time"
            )
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
                fed[name] = array[:, 0] if len(self._taken[name].dims) == 2 else array
        return {name: np.ascontiguousarray(array) for name, array in fed.items()}

    def _any_has(self, place: int) -> bool:
        return any(has(node, place) for node in self._chain.operators)

    def _behind(self, node: NodeProto, place: int) -> set[str]:
        """The inputs of the model that an input of an operator is made of, and not by the operators below."""
        if not has(node, place):
            return set()
        outputs = {name for operator in self._chain.operators for name in operator.output}
        return self._chain.behind(node.input[place], outputs).intersection(self._chain.given)

    def _one(self, place: int, nodes: Sequence[NodeProto], what: str) -> str:
        found = [self._behind(node, place) for node in nodes]
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
        layers = [sorted(self._behind(node, place) - {self.x}) for node in self._chain.operators]
        names = [name for layer in layers for name in layer]
        for node, layer in zip(self._chain.operators, layers, strict=True):
            if has(node, place) and not layer and self._starts_otherwise(node, place):
                raise Unrepresentable(
                    f"the {node.op_type} starts from a state of its own, and a spec from one that it is given, or from zero"
                )
        if names and (any(len(layer) != 1 for layer in layers) or len(set(names)) not in (1, len(names))):
            raise Unrepresentable(
                "some layers of the model start from a state that is given in a call, and others do not"
            )
        return names[:1] if len(set(names)) == 1 else names

    def _limit(self) -> int:
        """The largest number in the model that may be a limit of batch or time: larger ones are not tried."""
        hidden = self._chain.hidden_size
        known = self._features, hidden, self._chain.directions * hidden
        return max((number for number in self._chain.integers() if number < MOST and number not in known), default=0)

    def _starts_otherwise(self, node: NodeProto, place: int) -> bool:
        """Whether an initial state is a constant and not zero; that of one made of x is told by a trial."""
        name = node.input[place]
        return self._chain.behind(name).isdisjoint(self._chain.given) and bool(self._chain.value(name, {}).any())

    def _layout_of_x(self) -> str:
        """By what the first operator takes, as the model makes it of numbers of which no two are equal."""
        taken = self._taken[self.x]
        dims = taken.dims or (0, 0, 0)
        if len(dims) not in (2, 3) or taken.kind != TensorProto.FLOAT or dims[-1] not in (0, self._features):
            raise Unrepresentable(
                f"x is float32 with {self._features} features in its last axis, and the model's {short(self.x)} is something else"
            )
        sizes = zip(dims[:-1], (max(7, self._more), max(5, self._more)), strict=False)
        shape = (*(size or free for size, free in sizes), self._features)
        if np.prod(shape, dtype=float) > LARGEST:
            raise Unrepresentable(
                f"the model takes {short(self.x)} of the shape {shape} alone, too large to try what it computes; export "
                "it with free sizes of batch and time"
            )
        x = np.random.default_rng(0).standard_normal(shape, np.float32)
        found = self._chain.value(self._chain.operators[0].input[X], {self.x: x})
        layouts = {"time first": x, "batch first": x.swapaxes(0, 1)} if x.ndim == 3 else {"unbatched": x[:, None]}
        for layout, array in layouts.items():
            if np.array_equal(found, array):
                return layout
        raise Unrepresentable(
            f"layer 0 of the model does not take {short(self.x)} as it is: something before it changes the numbers or "
            "their order"
        )


def _taken(value: ValueInfoProto) -> _Taken:
    tensor = value.type.tensor_type
    return _Taken(tensor.elem_type, tuple(max(0, dim.dim_value) for dim in tensor.shape.dim))
