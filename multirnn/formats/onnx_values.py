"""Attributes and tensors of an untrusted ONNX model as values: text decoded, numbers as arrays, none from another file.

Each function takes the package onnx, which this file does not import.
"""

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from multirnn.errors import FormatError
from multirnn.formats.onnx_facts import short

__all__ = ["array_of", "attributes_of", "value_of"]


def attributes_of(onnx: Any, node: Any, around: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of a node by name; None for a type that is not read here, such as a graph.

    Args:
        onnx: the package.
        node: of a graph or a function.
        around: the attributes of the function's call, which those of the node may refer to.

    Raises:
        FormatError: one is given twice, or a tensor is damaged.
    """
    found: dict[str, Any] = {}
    for one in node.attribute:
        if one.name in found:
            raise FormatError(f"the node {short(node.name)} has the attribute {short(one.name)} twice")
        if one.ref_attr_name and one.ref_attr_name not in around:
            continue  # as if it were left out: the attribute of the function is optional
        found[one.name] = value_of(onnx, one, around)
    return found


def value_of(onnx: Any, attribute: Any, around: Mapping[str, Any]) -> Any:
    """The value of one attribute; see `attributes_of`."""
    kinds = onnx.AttributeProto
    if attribute.ref_attr_name:
        return around.get(attribute.ref_attr_name)
    if attribute.type == kinds.TENSOR:
        return array_of(onnx, attribute.t)
    read = {kinds.INT: "i", kinds.FLOAT: "f", kinds.STRING: "s"}.get(attribute.type)
    lists = {kinds.INTS: "ints", kinds.FLOATS: "floats", kinds.STRINGS: "strings"}.get(attribute.type)
    if read is not None:
        return _text(getattr(attribute, read))
    return None if lists is None else [_text(value) for value in getattr(attribute, lists)]


def array_of(onnx: Any, tensor: Any) -> NDArray[Any]:
    """The numbers of a tensor, none of them outside the file.

    Raises:
        FormatError: they are not in the file, or do not fit the shape.
    """
    name = short(tensor.name)
    if tensor.data_location != onnx.TensorProto.DEFAULT or tensor.external_data:
        raise FormatError(
            f"the tensor {name} lies in another file (external data), which is not read; save the model as one file: "
            "onnx.save(onnx.load(path), path)"
        )
    try:
        array: NDArray[Any] = onnx.numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError, OverflowError, MemoryError, RuntimeError, UnicodeError) as error:
        raise FormatError(f"the tensor {name} is damaged: {str(error)[:200]}") from error
    if array.shape != tuple(tensor.dims):
        raise FormatError(f"the tensor {name} claims the shape {tuple(tensor.dims)} and has {array.size} numbers")
    return array


def _text(value: Any) -> Any:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
