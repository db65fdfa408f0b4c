"""ONNX models of small stacks, and what can be done to them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from multirnn_onnxruntime import BACKEND
from onnx import helper, numpy_helper

import multirnn as mr
from multirnn import cells

FORMS = [(form.name, form.reset_after) for form in cells.FORMS.values()]
BOTH = {"num_layers": 2, "bidirectional": True}


def spec_of(cell: str = "gru", reset_after: bool = True, **fields: Any) -> mr.RecurrentSpec:
    return mr.RecurrentSpec(cell, 5, 11, reset_after=reset_after, **fields)


def changed(change: Callable[[onnx.ModelProto], Any], **fields: Any) -> onnx.ModelProto:
    """The model of a stack, and something done to it."""
    model = mr.build(spec_of(**fields), BACKEND).native.model
    change(model)
    return model


def operator(model: onnx.ModelProto, number: int = 0) -> onnx.NodeProto:
    return [node for node in model.graph.node if node.op_type in ("RNN", "LSTM", "GRU")][number]


def attribute(name: str, value: Any, number: int = 0) -> Callable[[onnx.ModelProto], Any]:
    def change(model: onnx.ModelProto) -> None:
        node = operator(model, number)
        for place, one in enumerate(node.attribute):
            if one.name == name:
                del node.attribute[place]
                break
        node.attribute.append(helper.make_attribute(name, value))

    return change


def constant(model: onnx.ModelProto, place: int, array: np.ndarray) -> None:
    """A constant in the place of an input of the first operator."""
    model.graph.initializer.append(numpy_helper.from_array(array, "its_own"))
    node = operator(model)
    node.input.extend([""] * (place + 1 - len(node.input)))
    node.input[place] = "its_own"


def appended(kind: str) -> Callable[[onnx.ModelProto], Any]:
    return lambda model: model.graph.node.append(helper.make_node(kind, ["y"], ["more"]))


def mixed(model: onnx.ModelProto) -> None:
    """The classic mistake between layers: reshaped without being transposed."""
    transpose = next(node for node in model.graph.node if node.op_type == "Transpose")
    transpose.attribute[0].ints[:] = (0, 1, 2, 3)


def side_by_side(model: onnx.ModelProto) -> None:
    operator(model, 1).input[0] = "x"


ONE_WAY = {"cell": "lstm"}
