"""Tensors and attributes of ONNX models that anybody may have made: read as they are, or refused in a sentence."""

from collections.abc import Mapping
from math import prod
from types import MappingProxyType
from typing import Any

import numpy as np
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

from multirnn import Unrepresentable
from multirnn.weights import Array

__all__ = ["OPERATORS_HAVE", "array_of", "attribute", "refuse_foreign_attributes", "short"]

INT, INTS, FLOAT, FLOATS = AttributeProto.INT, AttributeProto.INTS, AttributeProto.FLOAT, AttributeProto.FLOATS
STRING, STRINGS, TENSOR = AttributeProto.STRING, AttributeProto.STRINGS, AttributeProto.TENSOR

OPERATORS_HAVE: Mapping[str, int] = MappingProxyType(
    {
        "activation_alpha": FLOATS,
        "activation_beta": FLOATS,
        "activations": STRINGS,
        "clip": FLOAT,
        "direction": STRING,
        "hidden_size": INT,
        "input_forget": INT,
        "layout": INT,
        "linear_before_reset": INT,
    }
)
"""The attributes of RNN, LSTM and GRU, each with its type."""

_VALUES: Mapping[int, str] = MappingProxyType(
    {INT: "i", INTS: "ints", FLOAT: "f", FLOATS: "floats", STRING: "s", STRINGS: "strings", TENSOR: "t"}
)
_NUMBERS = frozenset(
    getattr(TensorProto, name)
    for name in [
        "BOOL",
        "DOUBLE",
        "FLOAT",
        "FLOAT16",
        "INT8",
        "INT16",
        "INT32",
        "INT64",
        "UINT8",
        "UINT16",
        "UINT32",
        "UINT64",
    ]
)
_DATA = ("double_data", "float_data", "int32_data", "int64_data", "uint64_data")


def attribute(node: NodeProto, name: str) -> Any:
    """The value of an attribute, text as text; None where the node has none of this name."""
    found = next((one for one in node.attribute if one.name == name), None)
    if found is None:
        return None
    value = getattr(found, _VALUES[found.type])
    if found.type == STRING:
        return _text(value)
    return [_text(one) for one in value] if found.type == STRINGS else value


def refuse_foreign_attributes(node: NodeProto, allowed: Mapping[str, int] | None = None) -> None:
    """Whether `attribute` can read all that a node has.

    Args:
        node: the node.
        allowed: the types of the attributes that it may have; any unless given.

    Raises:
        Unrepresentable: it cannot, or there are others.
    """
    names = [one.name for one in node.attribute]
    for one in node.attribute:
        wanted = None if allowed is None else allowed.get(one.name, 0)
        if wanted == 0:
            raise Unrepresentable(f"the {node.op_type} has the attribute {short(one.name)}, which ONNX has not")
        if one.ref_attr_name or one.type not in _VALUES or wanted not in (None, one.type) or names.count(one.name) > 1:
            kind = AttributeProto.AttributeType.Name(wanted) if wanted else "a number, a text or a tensor"
            raise Unrepresentable(
                f"the attribute {short(one.name)} of the {node.op_type} must be given once, as {kind}, and is not"
            )
        if one.type == TENSOR:
            array_of(one.t)


def array_of(tensor: TensorProto) -> Array:
    """The numbers of a tensor.

    Raises:
        Unrepresentable: they lie in another file, or are no numbers, or are not as many as the shape tells.
    """
    name = f"the tensor {short(tensor.name)}" if tensor.name else "a tensor of the model"
    if tensor.data_location != TensorProto.DEFAULT or tensor.external_data:
        raise Unrepresentable(
            f"{name} lies in another file (external data), and nothing is read from there; onnx.load(path) reads both "
            "files of a model"
        )
    if tensor.data_type not in _NUMBERS:
        raise Unrepresentable(f"{name} is of the data type {tensor.data_type}, which is none of plain numbers")
    size, shape = prod(tensor.dims), tuple(tensor.dims)
    given = {field: len(getattr(tensor, field)) for field in _DATA if len(getattr(tensor, field))}
    if tensor.raw_data:
        itemsize = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
        given["raw_data"], rest = divmod(len(tensor.raw_data), itemsize)
        given["raw_data"] = -1 if rest else given["raw_data"]
    if min(shape, default=0) < 0 or tensor.string_data or tensor.HasField("segment") or sum(given.values()) != size:
        raise Unrepresentable(
            f"{name} has the shape {shape}, and the model does not hold as many numbers for it; write the model again"
        )
    try:
        array: Array = numpy_helper.to_array(tensor)
    except (ValueError, TypeError, OverflowError) as error:  # numbers in a field of another type, or out of range
        raise Unrepresentable(f"{name} cannot be read: {error}") from error
    if array.shape != shape:
        raise Unrepresentable(f"{name} has the shape {shape}, and numbers of the shape {array.shape}")
    return array


def _text(value: bytes) -> str:
    return value.decode(errors="replace")


def short(name: str) -> str:
    """A name in quotes; of a very long one the beginning."""
    return repr(name if len(name) <= 80 else f"{name[:77]}...")
