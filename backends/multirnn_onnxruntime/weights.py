"""Canonical weights <-> ONNX models.

The arrays follow the convention "onnx" (`multirnn.conventions`). The operators have all biases or none; a single
bias is stored in parts, which the graph joins with zeros.
"""

from typing import Any

from onnx import ModelProto, NodeProto, numpy_helper

from multirnn import Activation, FormatError, RecurrentSpec, Unrepresentable, Weights, from_arrays, to_arrays
from multirnn.cells import CellName
from multirnn.formats import onnx_facts, onnx_graph
from multirnn.formats.onnx_facts import CONVENTION, OPERATORS
from multirnn_onnxruntime.confirmation import Trial
from multirnn_onnxruntime.session import OnnxStack
from multirnn_onnxruntime.structure import Chain
from multirnn_onnxruntime.untrusted import attribute, attributes

__all__ = ["model", "read", "read_as", "tried"]


def model(weights: Weights) -> ModelProto:
    """The ONNX model of these weights."""
    return onnx_graph.model(weights.spec, to_arrays(weights, convention=CONVENTION))


def read_as(spec: RecurrentSpec, model: ModelProto) -> Weights:
    """The weights of a model that `model` made of this spec. Exact."""
    return from_arrays(
        {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer},
        convention=CONVENTION,
        cell=spec.cell,
        reset_after=spec.reset_after,
        activation=spec.activation,
        recurrent_activation=spec.recurrent_activation,
    )


def read(native: Any) -> Weights:
    """The spec and the weights of an ONNX model whose operators RNN, LSTM or GRU are one stack.

    ONNX Runtime runs the model once, and the results are compared with the reference's.

    Args:
        native: an `OnnxStack`; or a `ModelProto` from any exporter that otherwise only moves arrays. The operators have
            all biases or none, so that its spec has `bias="double"` or `"none"`; "single" if they are joined from one and
            from zeros, as in an `OnnxStack`.

    Raises:
        Unrepresentable: no spec describes it, with the reason; or ONNX Runtime does not run it.
        InvalidSpec, InvalidWeights: no spec has its sizes or numbers.
    """
    return tried(native).weights


def tried(native: Any) -> Trial:
    """The trial that a model has passed, with its weights; see `read`."""
    if isinstance(native, OnnxStack):
        native = native.model
    if not isinstance(native, ModelProto):
        raise Unrepresentable(
            "an InferenceSession hands out no weights; read the onnx.ModelProto that it was made of"
            if type(native).__name__ == "InferenceSession"
            else f"a {type(native).__name__} is not an onnx.ModelProto; onnx.load(path) reads one from a file"
        )
    try:
        return _tried(Chain(native))
    except FormatError as error:
        raise Unrepresentable(f"the constants of the model cannot be read: {error}") from error


def _tried(chain: Chain) -> Trial:
    first, *others = chain.operators
    activation, recurrent_activation = _activations(first)
    if any(_activations(node) != (activation, recurrent_activation) for node in others):
        raise Unrepresentable("the layers of a spec are alike, and those of the model differ in their activations")
    cell: CellName = next(cell for cell, operator in OPERATORS.items() if operator == first.op_type)
    weights = from_arrays(
        chain.arrays(),
        convention=CONVENTION,
        cell=cell,
        reset_after=cell != "gru" or bool(attribute(first, "linear_before_reset")),
        activation=activation,
        recurrent_activation=recurrent_activation,
    )
    return Trial(chain, weights)


def _activations(node: NodeProto) -> tuple[Activation, Activation]:
    return onnx_facts.read(node.op_type, attributes(node))
