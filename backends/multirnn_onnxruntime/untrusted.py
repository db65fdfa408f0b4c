"""Tensors and attributes of untrusted ONNX models: read as they are, or refused in a sentence."""

from typing import Any

import numpy as np
from onnx import AttributeProto, NodeProto, TensorProto, defs, helper, numpy_helper

from multirnn import Unrepresentable
from multirnn.formats.onnx_facts import short
from multirnn.weights import Array

__all__ = ["array_of", "attribute", "refuse_attributes", "short"]

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
    """The value of an attribute, text decoded; None if the node has none of this name."""
    found = next((one for one in node.attribute if one.name == name), None)
    value = None if found is None else helper.get_attribute_value(found)
    if isinstance(value, list):
        return [_text(one) for one in value]
    return _text(value)


def _text(value: Any) -> Any:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


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
            array_of(one.t)


def array_of(tensor: TensorProto) -> Array:
    """The numbers of a tensor; refused in another file, if they are not plain numbers, or do not fit the shape."""
    name = f"the tensor {short(tensor.name)}" if tensor.name else "a tensor of the model"
    if tensor.data_location != TensorProto.DEFAULT or tensor.external_data:
        raise Unrepresentable(
            f"{name} lies in another file (external data), and nothing is read from there; onnx.load(path) reads both "
            "files of a model"
        )
    if tensor.data_type not in NUMBERS:
        raise Unrepresentable(f"{name} is of the data type {tensor.data_type}, which is none of plain numbers")
    shape, reason = tuple(tensor.dims), ""
    try:
        array: Array = numpy_helper.to_array(tensor)
        if array.shape == shape:  # -1 would be inferred
            return array
    except (ValueError, TypeError, OverflowError) as error:
        reason = f" ({error})"
    raise Unrepresentable(
        f"{name} has the shape {shape}, and the model does not hold as many numbers for it{reason}; write the model again"
    )
