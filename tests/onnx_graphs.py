"""ONNX models as others write them: operators among other nodes, in branches, loops and functions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import multirnn as mr
from multirnn import formats

onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

SPEC = mr.RecurrentSpec("gru", 5, 11, bias="double", reset_after=True)
FLOAT = TensorProto.FLOAT
node = helper.make_node


def arrays_of(weights: mr.Weights, layer: int = 0) -> dict[str, Any]:
    """W, R and B of a layer."""
    every = mr.to_arrays(weights, convention="onnx")
    return {name: every[f"layers.{layer}.{name}"] for name in ("W", "R", "B") if f"layers.{layer}.{name}" in every}


def named(arrays: Mapping[str, Any]) -> list[Any]:
    return [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]


def value(name: str, *shape: Any, kind: int = FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def operator(
    kind: str = "GRU", inputs: Sequence[str] = ("x", "W", "R", "B"), outputs: Sequence[str] = ("Y", "Y_h"), **more: Any
) -> Any:
    if kind == "GRU":
        more.setdefault("linear_before_reset", 1)
    return node(kind, list(inputs), list(outputs), **{"hidden_size": 11, "name": "layer", **more})


def model(
    nodes: Sequence[Any],
    arrays: Mapping[str, Any],
    *,
    inputs: Sequence[Any] | None = None,
    outputs: Sequence[str] = ("Y",),
    **more: Any,
) -> Any:
    """A model; x is `(time, batch, 5)` unless inputs are given."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [value("x", "time", "batch", 5)] if inputs is None else list(inputs),
        [onnx.ValueInfoProto(name=name) for name in outputs],
        named(arrays),
    )
    return helper.make_model(graph, **{"opset_imports": [helper.make_opsetid("", 18)], "ir_version": 9, **more})


def graph(nodes: Sequence[Any], outputs: Sequence[str], inputs: Sequence[Any] = (), arrays: Any = ()) -> Any:
    """A graph inside of a node."""
    values = [onnx.ValueInfoProto(name=name) for name in outputs]
    return helper.make_graph(list(nodes), "inner", list(inputs), values, named(dict(arrays)))


def stacks(made: Any, path: Path) -> list[formats.Found]:
    """The stacks of a model."""
    onnx.save(made, path / "a.onnx")
    return list(formats.inspect(path / "a.onnx"))


def read(made: Any, path: Path, **more: Any) -> mr.Weights:
    """The weights of its only stack."""
    onnx.save(made, path / "a.onnx")
    return formats.load(path / "a.onnx", **more)
