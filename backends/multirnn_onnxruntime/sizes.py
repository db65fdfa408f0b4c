"""Refuses models whose arrays would be too large, before they run."""

from collections.abc import Iterable
from math import prod

from onnx import ModelProto, TensorProto, TensorShapeProto, ValueInfoProto, helper, shape_inference

from multirnn import Unrepresentable
from multirnn.formats.onnx_facts import short

__all__ = ["LARGEST", "MOST", "refuse_large"]

MOST = 129
"""The largest batch and the longest time that a model with free sizes is called with."""

LARGEST = 2**28
"""Numbers in all arrays that a model makes: 1 GB."""

SMALL = 1024
"""Numbers in a constant that may be a shape; the values of larger constants do not matter here."""


def refuse_large(model: ModelProto) -> set[str]:
    """The names of the values that are integers, as all sizes and lengths are; `Unrepresentable` if an array may be too large.

    All shapes are inferred, with the values of small constants.
    """
    graph = model.graph
    large = [tensor for tensor in graph.initializer if prod(tensor.dims) > SMALL]
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [_named(value) for value in graph.input if value.name not in constants]
    bare = helper.make_graph(
        graph.node,
        "shapes",
        [*inputs, *(helper.make_tensor_value_info(one.name, one.data_type, one.dims) for one in large)],
        [ValueInfoProto(name=value.name) for value in graph.output],
        [tensor for tensor in graph.initializer if prod(tensor.dims) <= SMALL],
    )
    try:
        inferred = shape_inference.infer_shapes(
            helper.make_model(bare, opset_imports=model.opset_import, ir_version=model.ir_version), data_prop=True
        )
    except (shape_inference.InferenceError, RuntimeError, ValueError, TypeError) as error:
        raise Unrepresentable(f"the shapes of the model do not fit each other: {str(error).splitlines()[0]}") from error
    free = {dim.dim_param for value in inputs for dim in value.type.tensor_type.shape.dim if dim.dim_param}
    known = {one.name: one.type.tensor_type for one in (*inferred.graph.value_info, *inferred.graph.output)}
    total = sum(_size(value.name, value.type.tensor_type.shape.dim, free) for value in inputs)
    for node in graph.node:
        for name in (
            node.output if node.op_type in ("Concat", "ConstantOfShape", "Expand") else ()
        ):  # others do not grow
            if name not in known or not known[name].HasField("shape"):
                raise _unknown(name)
            total += _size(name, known[name].shape.dim, free)
    if total > LARGEST:
        raise Unrepresentable(
            f"the model makes arrays of {total} numbers, and at most {LARGEST} are tried; export it with free sizes of "
            "batch and time"
        )
    return {name for name, kind in known.items() if kind.elem_type in (TensorProto.INT32, TensorProto.INT64)}


def _named(value: ValueInfoProto) -> ValueInfoProto:
    """A copy of an input in which every free size has a symbol."""
    named = ValueInfoProto()
    named.CopyFrom(value)
    for axis, dim in enumerate(named.type.tensor_type.shape.dim):
        if not dim.HasField("dim_value") and not dim.dim_param:
            dim.dim_param = f"{value.name}.{axis}"
    return named


def _size(name: str, dims: Iterable[TensorShapeProto.Dimension], free: set[str]) -> int:
    size = 1
    for dim in dims:
        if not dim.HasField("dim_value") and dim.dim_param not in free:
            raise _unknown(name)
        size *= dim.dim_value if dim.HasField("dim_value") else MOST
    return size


def _unknown(name: str) -> Unrepresentable:
    return Unrepresentable(f"the size of {short(name)} cannot be told before the model runs; read a simpler model")
