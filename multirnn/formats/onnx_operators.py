"""The recurrent operators of an ONNX model, with their weights, or the reason why no spec describes one."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multirnn.errors import FormatError
from multirnn.formats.onnx_facts import short
from multirnn.formats.onnx_model import MAIN, Missing, Model, Scope
from multirnn.formats.onnx_nodes import data_of

__all__ = [
    "C_0",
    "GATES",
    "H_0",
    "LENGTHS",
    "PEEPHOLES",
    "B",
    "Operator",
    "R",
    "W",
    "X",
    "clips",
    "operators",
    "single_bias",
]

CELLS = {"RNN": "simple_rnn", "LSTM": "lstm", "GRU": "gru"}
# The inputs of the operators, by their places; C_0 and PEEPHOLES are the LSTM's.
X, W, R, B, LENGTHS, H_0, C_0, PEEPHOLES = range(8)
GATES: Mapping[str, int] = MappingProxyType({"RNN": 1, "LSTM": 4, "GRU": 3})
OTHERS = re.compile("LSTM|GRU|RNN|lstm|gru")
KINDS: Mapping[str, type] = {
    "activations": str,
    "activation_alpha": float,
    "activation_beta": float,
    "clip": float,
    "direction": str,
    "hidden_size": int,
    "input_forget": int,
    "layout": int,
    "linear_before_reset": int,
    "output_sequence": int,  # of the oldest versions: whether Y is returned
}
LISTS = ("activations", "activation_alpha", "activation_beta")


@dataclass(frozen=True, eq=False)
class Operator:
    """A recurrent operator of a model.

    Attributes:
        name: of the node, behind those of the nodes around it.
        kind: "RNN", "LSTM" or "GRU"; or another operator, which is refused.
        cell: "simple_rnn", "lstm" or "gru".
        node, scope: where it stands.
        arrays: by the names W, R, B of ONNX's convention; a single bias as Wb and Rb.
        attributes: of the node, by name.
        stored: the dtype of the arrays in the file; float16 and bfloat16 are widened to float32 here.
        reason: why no spec describes it; empty for one that a spec does.
    """

    name: str
    kind: str
    cell: str
    node: Any
    scope: Scope
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    stored: str = ""
    reason: str = ""

    @property
    def directions(self) -> int:
        """1, or 2 if it is bidirectional."""
        return 2 if self.attributes.get("direction") == "bidirectional" else 1

    @property
    def batch_first(self) -> bool:
        """Whether its arrays have the batch before time and directions (`layout`)."""
        return bool(self.attributes.get("layout"))

    def input(self, place: int) -> str:
        """The name of an input; empty if it has none."""
        return self.node.input[place] if len(self.node.input) > place else ""

    def output(self, place: int) -> str:
        """The name of an output; empty if it has none."""
        return self.node.output[place] if len(self.node.output) > place else ""


def operators(model: Model) -> list[Operator]:
    """The recurrent operators, in the order of the file.

    Raises:
        FormatError: it has none, but a recurrence in other nodes; or it is damaged.
    """
    found: list[Operator] = []
    kinds: set[str] = set()
    for scope in model.scopes():
        for node in scope.nodes:
            kinds.add(node.op_type)
            if model.function(node):
                continue
            standard = node.domain in MAIN
            if (standard and node.op_type in CELLS) or OTHERS.search(node.op_type):
                found.append(_operator(model, node, scope, standard))
    if not found and (elementary := _recurrent(kinds)):
        raise FormatError(
            f"it has no operator RNN, GRU or LSTM; a recurrence that is written out in other nodes ({elementary}) is not "
            "read. torch.onnx.export writes these operators with dynamo=False; or pass names= for the arrays of the model"
        )
    return list(_named(found))


def _recurrent(kinds: set[str]) -> str:
    """The nodes that a recurrence may be made of; empty if there are none."""
    loops = sorted(kinds & {"Loop", "Scan"})
    gates = {"Sigmoid", "Tanh", "Mul"}
    return ", ".join(loops or (sorted(gates) if gates <= kinds and kinds & {"MatMul", "Gemm", "Conv"} else ()))


def _named(found: list[Operator]) -> Iterator[Operator]:
    """Each with a name of its own: a number makes the difference."""
    seen: dict[str, int] = {}
    for one in found:
        seen[one.name] = seen.get(one.name, -1) + 1
        number = f"_{seen[one.name]}" if seen[one.name] else ""
        yield one if not number else Operator(**{**vars(one), "name": f"{one.name}{number}"})


def _operator(model: Model, node: Any, scope: Scope, standard: bool) -> Operator:
    name = model.path(scope, node) or node.op_type
    if not node.name:
        name = "/".join(filter(None, (scope.path, node.op_type)))
    if not standard or node.op_type not in CELLS:
        full = ".".join(filter(None, (node.domain, node.op_type)))
        quantised = re.search("Quant|QLinear", node.op_type)
        why = "its weights are quantised, and no longer those of the layer; read the model that it was made of"
        other = "it is none of ONNX's own operators RNN, GRU and LSTM"
        return Operator(name, node.op_type, "", node, scope, reason=f"{full}: {why if quantised else other}")
    attributes = model.attributes(node, scope)
    reason = _refuses(node, attributes)
    arrays: dict[str, NDArray[Any]] = {}
    for place, own in ((W, "W"), (R, "R"), (B, "B")):
        given = node.input[place] if len(node.input) > place else ""
        if given and not reason:
            value = model.value(scope, given)
            if isinstance(value, Missing):
                reason = _missing(own, value)
            else:
                arrays[own] = value
    stored = _stored(model, scope, node.input[W]) if "W" in arrays else ""
    if not reason:
        reason = _misfits(node.op_type, arrays, attributes)
    if not reason:
        arrays = single_bias(model, node, scope, arrays) or arrays
    if not reason and arrays["W"].dtype.name in ("float16", "bfloat16"):
        arrays = {own: array.astype(np.float32) for own, array in arrays.items()}
    return Operator(name, node.op_type, CELLS[node.op_type], node, scope, arrays, attributes, stored, reason)


def _stored(model: Model, scope: Scope, name: str) -> str:
    """The dtype of the numbers that a value is moved from."""
    while True:
        scope, name = scope.find(name)
        node = scope.makers.get(name)
        moved = data_of(node.op_type, node.input) if node is not None and name not in scope.initialisers else ()
        if not moved:
            value = model.value(scope, name)
            return "" if isinstance(value, Missing) else value.dtype.name
        name = moved[0]


def _missing(own: str, value: Missing) -> str:
    if value.kind == "input":
        return (
            f"its {own} comes from the model's input {short(value.name)}, which a call gives; "
            f"pass inputs={{{value.name[:80]!r}: array}}"
        )
    if value.kind == "node":
        return f"its {own} is computed by a node {value.name[:80]}, and no constant"
    return f"nothing in the file makes {short(value.name)}, of which its {own} is made"


def _refuses(node: Any, attributes: Mapping[str, Any]) -> str:
    """Why no spec describes an operator; empty where one does."""
    for name, value in attributes.items():
        kind = KINDS.get(name)
        if kind is None:
            return f"it has the attribute {short(name)}, which ONNX has not"
        values = value if name in LISTS and isinstance(value, list) else [value]
        if (name in LISTS) != isinstance(value, list) or not all(isinstance(one, kind) for one in values):
            return f"its attribute {name} is of another type than in ONNX"
    direction = attributes.get("direction", "forward")
    reasons = (
        (
            clips(attributes),
            f"it clips what goes into its activations at {attributes.get('clip')} (clip), which no spec does",
        ),
        (attributes.get("input_forget"), "it has one gate for input and forgetting (input_forget), and a spec has two"),
        (len(node.input) > PEEPHOLES and node.input[PEEPHOLES], "it has peepholes (input P), which no spec has"),
        (
            direction == "reverse",
            "it runs backward in time alone (direction reverse), and a spec runs forward or both ways",
        ),
        (
            direction not in ("forward", "bidirectional", "reverse"),
            f"it has the direction {short(direction)}, which ONNX has not",
        ),
        (attributes.get("linear_before_reset", 0) not in (0, 1), "its linear_before_reset is neither 0 nor 1"),
        (attributes.get("layout", 0) not in (0, 1), "its layout is neither 0 nor 1"),
    )
    return next((reason for refused, reason in reasons if refused), "")


def clips(attributes: Mapping[str, Any]) -> bool:
    """Whether an operator limits what goes into its activations."""
    clip = attributes.get("clip")
    return clip is not None and not clip >= float(np.finfo(np.float32).max)


def _misfits(kind: str, arrays: Mapping[str, NDArray[Any]], attributes: Mapping[str, Any]) -> str:
    """What is wrong with the arrays of an operator; empty if their shapes fit each other."""
    if not {"W", "R"} <= arrays.keys():
        return "it has no weights W and R"
    if len({array.dtype for array in arrays.values()}) > 1:
        return (
            f"its weights are of several dtypes, {', '.join(sorted({array.dtype.name for array in arrays.values()}))}"
        )
    if arrays["W"].dtype.name not in ("float16", "bfloat16", "float32", "float64"):
        return f"its weights are {arrays['W'].dtype.name}, and those of a layer real numbers"
    r = arrays["R"]
    hidden = attributes.get("hidden_size", r.shape[-1] if r.ndim else 0)
    directions = 2 if attributes.get("direction") == "bidirectional" else 1
    rows = GATES[kind] * hidden
    features = arrays["W"].shape[-1] if arrays["W"].ndim == 3 else 1
    wanted = {"W": (directions, rows, features), "R": (directions, rows, hidden), "B": (directions, 2 * rows)}
    for own, array in arrays.items():
        if array.shape != wanted[own] or 0 in array.shape:
            projected = kind == "LSTM" and own == "R" and array.ndim == 3 and array.shape[:2] == wanted["R"][:2]
            why = "; a projection of the state (proj_size) is in no spec" if projected else ""
            return f"its {own} must have the shape {wanted[own]}, none of it empty, not {array.shape}{why}"
    return ""


def single_bias(
    model: Model, node: Any, scope: Scope, arrays: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]] | None:
    """The arrays with a single bias, where B is joined from one and from zeros, as `onnx_graph` writes it; else None.

    Args:
        model, node, scope: of the operator.
        arrays: W and R, and B if it has one.
    """
    if "B" not in arrays:
        return None
    where, name = scope.find(node.input[B])
    maker = where.makers.get(name)
    if maker is None or maker.op_type != "Concat" or maker.domain not in MAIN or len(maker.input) not in (2, 3):
        return None
    parts = [model.value(where, one) for one in maker.input]
    made = where.find(maker.input[1])
    rows = arrays["W"].shape[1]
    hidden = arrays["R"].shape[2]
    sizes = [rows, rows] if len(parts) == 2 else [rows, rows - hidden, hidden]
    after_reset = node.op_type == "GRU" and model.attributes(node, scope).get("linear_before_reset") == 1
    if after_reset != (len(parts) == 3) or made[1] not in made[0].makers:
        return None
    if any(isinstance(part, Missing) or part.shape[1:] != (size,) for part, size in zip(parts, sizes, strict=True)):
        return None
    if np.any(parts[1]):
        return None
    single = {own: array for own, array in arrays.items() if own != "B"} | {"Wb": np.asarray(parts[0])}
    return single | {"Rb": np.asarray(parts[2])} if after_reset else single
