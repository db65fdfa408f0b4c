"""Models that would make arrays larger than anything that is read here: refused before they run."""

from collections.abc import Iterable
from math import prod

from onnx import ModelProto, NodeProto, TensorProto, TensorShapeProto, ValueInfoProto, helper, shape_inference

from multirnn import Unrepresentable
from multirnn_onnxruntime.proto import short

__all__ = ["MOST", "refuse_growth"]

MOST = 129
"""The largest batch and the longest time that a model is called with, where it takes any."""

LARGEST = 2**28
"""Numbers in all arrays that a model makes: 1 GB."""

SMALL = 1024
"""Numbers in a constant that may be a shape; of others the values do not matter here."""


def refuse_growth(model: ModelProto) -> set[str]:
    """By shape inference, with the values of shapes.

    Returns:
        The names of the values that are 64-bit integers, as all sizes are.

    Raises:
        Unrepresentable: an array would be too large, or its size cannot be told.
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
    for node in _growing(graph.node):
        for name in node.output:
            if name not in known or not known[name].HasField("shape"):
                raise _unknown(name)
            total += _size(name, known[name].shape.dim, free)
    if total > LARGEST:
        raise Unrepresentable(
            f"the model makes arrays of {total} numbers, and at most {LARGEST} are tried; export it with free sizes of "
            "batch and time"
        )
    return {name for name, kind in known.items() if kind.elem_type == TensorProto.INT64}


def _growing(nodes: Iterable[NodeProto]) -> Iterable[NodeProto]:
    """Those whose outputs may be larger than all their inputs."""
    return (node for node in nodes if node.op_type in ("Concat", "ConstantOfShape", "Expand"))


def _named(value: ValueInfoProto) -> ValueInfoProto:
    """The input, and in it a symbol for each size that is free."""
    named = ValueInfoProto()
    named.CopyFrom(value)
    for axis, dim in enumerate(named.type.tensor_type.shape.dim):
        if not dim.HasField("dim_value") and not dim.dim_param:
            dim.dim_param = f"{value.name}.{axis}"
    return named


def _size(name: str, dims: Iterable[TensorShapeProto.Dimension], free: set[str]) -> int:
    sizes = []
    for dim in dims:
        if dim.HasField("dim_value"):
            sizes.append(dim.dim_value)
        elif dim.dim_param in free:
            sizes.append(MOST)
        else:
            raise _unknown(name)
    return prod(sizes)


def _unknown(name: str) -> Unrepresentable:
    return Unrepresentable(f"the size of {short(name)} cannot be told before the model runs; read a simpler model")
