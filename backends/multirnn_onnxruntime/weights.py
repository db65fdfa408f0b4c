"""Canonical weights to and from ONNX models.

The arrays are those of the convention "onnx" (`multirnn.conventions`). The operators have all biases or none; a single
bias is held in parts, which the graph joins with zeros.
"""

from dataclasses import replace
from typing import Any

from onnx import ModelProto, numpy_helper

from multirnn import CONVENTIONS, Activation, RecurrentSpec, Unrepresentable, Weights, from_arrays, to_arrays
from multirnn.cells import FORMS, CellName
from multirnn.conventions import Convention, Entry
from multirnn.weights import Array
from multirnn_onnxruntime import activations, graph
from multirnn_onnxruntime.chain import Chain
from multirnn_onnxruntime.graph import OPERATORS
from multirnn_onnxruntime.proto import attribute
from multirnn_onnxruntime.session import OnnxStack
from multirnn_onnxruntime.trial import Trial

__all__ = ["model", "read", "read_as", "tried"]

_ONNX = CONVENTIONS["onnx"]


def _with_single_biases() -> Convention:
    """ONNX's convention, and in it the biases that are fewer than ONNX's."""
    input_bias = Entry("Wb", ("bias_ih",), "direction (gate unit)")
    candidate_bias = Entry("Rb", ("bias_hh",), "direction (gate unit)", gates=("n",))
    arrays = {}
    for form, held in _ONNX.arrays.items():
        single = (*held["none"], input_bias, *((candidate_bias,) if FORMS[form].recurrent_candidate_bias else ()))
        arrays[form] = {**held, "single": single}
    return replace(_ONNX, arrays=arrays, pattern=_ONNX.pattern.replace("W|R|B", "W|R|B|Wb|Rb"))


_CONVENTION = _with_single_biases()


def model(weights: Weights) -> ModelProto:
    """The ONNX model of these weights."""
    return graph.model(weights.spec, to_arrays(weights, convention=_CONVENTION))


def read_as(spec: RecurrentSpec, model: ModelProto) -> Weights:
    """The weights of a model that `model` made of this spec. Exact."""
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return _weights(arrays, spec.cell, spec.reset_after, spec.activation, spec.recurrent_activation)


def read(native: Any) -> Weights:
    """The spec and the weights of an ONNX model whose operators RNN, LSTM or GRU are one stack.

    The model is run once by ONNX Runtime, and what it computes compared with what its weights describe.

    Args:
        native: an `OnnxStack`; or a `ModelProto`, whatever made it, that does nothing else but to move arrays. The
            operators have all biases or none, so that its spec has `bias="double"` or `"none"`, but for an `OnnxStack`.

    Raises:
        Unrepresentable: no spec describes it; the sentence names what no spec has. Or ONNX Runtime does not run it.
        InvalidSpec, InvalidWeights: its numbers are those of no spec.
    """
    return tried(native).weights


def tried(native: Any) -> Trial:
    """The trial that a model has passed, with its weights; see `read`."""
    if isinstance(native, OnnxStack):
        native = native.model
    if not isinstance(native, ModelProto):
        raise Unrepresentable(_not_a_model(native))
    chain = Chain(native)
    first, *others = chain.operators
    pair = activations.read(first)
    if any(activations.read(node) != pair for node in others):
        raise Unrepresentable("the layers of a spec are alike, and those of the model differ in their activations")
    cell: CellName = next(cell for cell, operator in OPERATORS.items() if operator == first.op_type)
    reset_after = cell != "gru" or bool(attribute(first, "linear_before_reset"))
    return Trial(chain, _weights(chain.arrays(), cell, reset_after, *pair))


def _weights(
    arrays: dict[str, Array],
    cell: CellName,
    reset_after: bool,
    activation: str | Activation,
    recurrent_activation: str | Activation,
) -> Weights:
    return from_arrays(
        arrays,
        convention=_CONVENTION,
        cell=cell,
        reset_after=reset_after,
        activation=activation,
        recurrent_activation=recurrent_activation,
    )


def _not_a_model(native: Any) -> str:
    if type(native).__name__ == "InferenceSession":
        return "an InferenceSession hands out no weights; read the onnx.ModelProto that it was made of"
    return f"a {type(native).__name__} is not an onnx.ModelProto; onnx.load(path) reads one from a file"
