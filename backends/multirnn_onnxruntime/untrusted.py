"""Refuses tensors and attributes of untrusted ONNX models that the core's reader would only call damaged, or leave out."""

from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto, TensorProto, defs, helper

from multirnn import FormatError, Unrepresentable
from multirnn.formats.onnx_facts import short
from multirnn.formats.onnx_values import array_of, attributes_of

__all__ = ["attribute", "attributes", "refuse_attributes", "refuse_tensor"]

READABLE = frozenset(
    getattr(AttributeProto, kind) for kind in ("INT", "INTS", "FLOAT", "FLOATS", "STRING", "STRINGS", "TENSOR")
)
NUMBERS = frozenset(helper.np_dtype_to_tensor_dtype(np.dtype(code)) for code in "?bhiqBHIQefd")
OF_OPERATORS: dict[str, int] = {
    name: attribute.type.value  # type: ignore[attr-defined]  # of an enumeration
    for operator in ("RNN", "LSTM", "GRU")
    for name, attribute in defs.get_schema(operator).attributes.items()
}
"""The attributes of RNN, LSTM and GRU, each with its type."""


def attribute(node: NodeProto, name: str) -> Any:
    """The value of an attribute, None if the node has none of this name."""
    return attributes(node).get(name)


def attributes(node: NodeProto) -> dict[str, Any]:
    """The attributes of a node by name, text decoded, tensors as arrays."""
    return attributes_of(onnx, node, {})


def refuse_attributes(node: NodeProto, *, recurrent: bool) -> None:
    """Refuse attributes that `attribute` cannot read, and of an RNN, LSTM or GRU (`recurrent`) those that ONNX has not."""
    names = [one.name for one in node.attribute]
    for one in node.attribute:
        wanted = OF_OPERATORS.get(one.name) if recurrent else one.type
        if wanted is None:
            raise Unrepresentable(f"the {node.op_type} has the attribute {short(one.name)}, which ONNX has not")
        if one.ref_attr_name or one.type not in READABLE or one.type != wanted or names.count(one.name) > 1:
            kind = AttributeProto.AttributeType.Name(wanted) if wanted in READABLE else "a number, a text or a tensor"
            raise Unrepresentable(
                f"the attribute {short(one.name)} of the {node.op_type} must be given once, as {kind}, and is not"
            )
        if one.type == AttributeProto.TENSOR:
            refuse_tensor(one.t)


def refuse_tensor(tensor: TensorProto) -> None:
    """Refuse a tensor in another file, one that is not plain numbers, and one whose numbers do not fit its shape."""
    name = f"the tensor {short(tensor.name)}" if tensor.name else "a tensor of the model"
    if tensor.data_location != TensorProto.DEFAULT or tensor.external_data:
        raise Unrepresentable(
            f"{name} lies in another file (external data), and nothing is read from there; onnx.load(path) reads both "
            "files of a model"
        )
    if tensor.data_type not in NUMBERS:
        raise Unrepresentable(f"{name} is of the data type {tensor.data_type}, which is none of plain numbers")
    try:
        array_of(onnx, tensor)
    except FormatError as error:
        raise Unrepresentable(
            f"{name} has the shape {tuple(tensor.dims)}, and the model does not hold as many numbers for it; write the "
            "model again"
        ) from error
