"""ONNX models: the operators RNN, GRU and LSTM anywhere in a graph, in branches, loops and functions too.

A written file is a model of the stack alone; `onnx_graph` has its signature. x alone runs it in ONNX Runtime: lengths and
initial states may be left out, and then each row has all steps and starts from zero. A length of 0 is not allowed there.
Needs the package onnx. Sources: the ONNX operators RNN, GRU, LSTM; `onnx/onnx.proto`.
"""

import mmap
import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from multirnn.arrays import as_array
from multirnn.errors import FormatError, Unrepresentable
from multirnn.formats import onnx_facts
from multirnn.formats.contents import Contents, needed
from multirnn.formats.onnx_model import Model
from multirnn.formats.onnx_wire import GRAPH, INITIALIZER, RAW_DATA, field, parted
from multirnn.packing import to_arrays
from multirnn.weights import Weights

__all__ = ["read", "write"]

LARGEST = 2**31 - 2**20  # bytes of a message of Protocol Buffers, less what is no weight


def read(path: Path, inputs: Mapping[str, Any] | None = None) -> Contents:
    """The initialisers by name. Facts: `model`, a `Model`.

    Args:
        path: of the model; data outside the file is refused.
        inputs: values of the graph's inputs that hold weights.

    Raises:
        FormatError: it is no ONNX model, or damaged, or has its numbers in another file.
        MissingFramework: the package onnx is not installed.
    """
    onnx = needed("onnx", path)
    damaged = import_module("google.protobuf.message").DecodeError
    with path.open("rb") as file:
        empty = file.seek(0, os.SEEK_END) == 0
        data = memoryview(b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    message, large = parted(data)
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(message)
    except (damaged, RecursionError, ValueError) as error:
        raise FormatError(f"{path} is no ONNX model, or damaged: {error}") from error
    if not proto.graph.node:
        raise FormatError(f"{path} is no ONNX model, or has no nodes")
    given = {name: as_array(repr(name), value, error=FormatError) for name, value in (inputs or {}).items()}
    model = Model(onnx, proto, given, large, len(data))
    return Contents("onnx", model.arrays(), {"model": model})


def write(weights: Weights, file: BinaryIO, convention: str) -> None:
    """A model of the stack alone, with the signature of `onnx_graph`, in which x alone has to be given.

    The weights are written as they are, one after the other: a model in memory would be three more copies of them.

    Args:
        weights: with biases in any form.
        file: to write to.
        convention: "onnx".

    Raises:
        Unrepresentable: a number of an activation is lost in ONNX, or the weights are more than one file holds.
        MissingFramework: the package onnx is not installed.
    """
    onnx = needed("onnx", getattr(file, "name", "the model"))
    graph = import_module("multirnn.formats.onnx_graph")
    spec = weights.spec
    if reason := onnx_facts.refuses(spec):
        raise Unrepresentable(reason)
    if sum(array.nbytes for array in weights.arrays.values()) > LARGEST:
        raise Unrepresentable(
            f"an ONNX model in one file holds at most 2 GB, and {spec.parameter_count} parameters are more; take another format"
        )
    arrays = to_arrays(weights, convention=onnx_facts.CONVENTION)
    model = graph.skeleton(spec, {name: array.shape for name, array in arrays.items()}, optional=True)
    tensors = [_tensor(onnx, name, array) for name, array in arrays.items()]
    body = model.graph.SerializeToString()
    model.ClearField("graph")
    size = len(body) + sum(len(part) for tensor in tensors for part in tensor)
    file.write(model.SerializeToString() + field(GRAPH, size) + body)
    for tensor in tensors:
        file.writelines(tensor)


def _tensor(onnx: Any, name: str, array: np.ndarray[Any, Any]) -> list[Any]:
    """An initialiser as a field of a graph: what precedes the numbers, and the numbers."""
    numbers = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data.cast("B")
    kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    head = onnx.TensorProto(name=name, dims=array.shape, data_type=kind).SerializeToString()
    head += field(RAW_DATA, len(numbers))
    return [field(INITIALIZER, len(head) + len(numbers)) + head, numbers]
