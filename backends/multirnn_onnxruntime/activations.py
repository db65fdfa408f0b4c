"""The activations of a spec as attributes of the operators RNN, LSTM and GRU, there and back.

An operator has a list of names, once a direction, and lists of alpha and beta with an entry for each activation in turn
that takes one. ONNX Runtime's RNN differs: it looks for its entry at the place of the direction. Both are the same where
all directions have the same activation.
"""

from collections.abc import Iterator, Mapping
from fractions import Fraction
from math import isfinite, nan
from types import MappingProxyType
from typing import Any

import numpy as np
from onnx import NodeProto

from multirnn import Activation, RecurrentSpec, Unrepresentable
from multirnn_onnxruntime.proto import attribute, short

__all__ = ["attributes", "read"]

# ONNX's own name, and its own defaults. The operators have no Identity: Affine, alpha * x + beta, is it at 1 and 0.
_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "elu": "Elu",
        "hard_sigmoid": "HardSigmoid",
        "linear": "Affine",
        "relu": "Relu",
        "sigmoid": "Sigmoid",
        "softsign": "Softsign",
        "tanh": "Tanh",
    }
)
_PARAMETERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"Elu": ("alpha",), "HardSigmoid": ("alpha", "beta"), "Affine": ("alpha", "beta")}
)
_DEFAULTS: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {"Elu": {"alpha": 1.0}, "HardSigmoid": {"alpha": 0.2, "beta": 0.5}}
)
_GIVEN_NONE: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}
)


def attributes(spec: RecurrentSpec) -> dict[str, Any]:
    """What the operator of a layer is given."""
    gates, rest = Activation.of(spec.recurrent_activation), Activation.of(spec.activation)
    one_direction = {"simple_rnn": [rest], "gru": [gates, rest], "lstm": [gates, rest, rest]}[spec.cell]
    used = one_direction * len(spec.directions)
    found: dict[str, Any] = {"activations": [_NAMES[one.name] for one in used]}
    for parameter, of_linear in (("alpha", 1.0), ("beta", 0.0)):
        values = [of_linear if one.name == "linear" else getattr(one, parameter) for one in used]
        if given := [value for value in values if value is not None]:
            found[f"activation_{parameter}"] = given
    return found


def read(node: NodeProto) -> tuple[Activation, Activation]:
    """The activation and the recurrent activation that an operator has; of an RNN the second is the sigmoid.

    Raises:
        Unrepresentable: no spec has them.
    """
    kind, count = node.op_type, len(_GIVEN_NONE[node.op_type])
    both = attribute(node, "direction") == "bidirectional"
    names = attribute(node, "activations") or []
    if kind == "RNN" and not both and len(names) == 2:
        names = names[:1]  # the default of ONNX's RNN is two names, whatever its directions
    if names and len(names) != count * (1 + both):
        raise Unrepresentable(
            f"the {kind} has {count} activation{'s' * (count > 1)} for each direction, and this one {len(names)} in all"
        )
    used = list(_parametrised(names or list(_GIVEN_NONE[kind]), node))
    directions = [used[start : start + count] for start in range(0, len(used), count)]
    if any(direction != directions[0] for direction in directions):
        raise Unrepresentable(f"the {node.op_type} has other activations in each direction, and a spec has the same")
    *gates, activation = directions[0]
    if node.op_type == "LSTM" and gates.pop() != activation:
        raise Unrepresentable("the LSTM has other activations for its candidate and its output, and a spec has one")
    return activation, gates[0] if gates else Activation("sigmoid")


def _parametrised(names: list[str], node: NodeProto) -> Iterator[Activation]:
    ours = {theirs: name for name, theirs in _NAMES.items()}
    values = {parameter: iter(attribute(node, f"activation_{parameter}") or ()) for parameter in ("alpha", "beta")}
    for name in names:
        if name not in ours:
            raise Unrepresentable(
                f"no spec has the activation {short(name)} of ONNX; it has {', '.join(_NAMES.values())}"
            )
        defaults = _DEFAULTS.get(name, {})
        parameters = {p: next(values[p], defaults.get(p, nan)) for p in _PARAMETERS.get(name, ())}
        if name != "Affine":
            yield Activation(ours[name], **{p: _simplest(value) for p, value in parameters.items()})
        elif parameters == {"alpha": 1, "beta": 0}:
            yield Activation("linear")
        else:
            raise Unrepresentable(
                f"no spec has the activation Affine with {parameters}; with alpha 1 and beta 0 it is linear"
            )


def _simplest(value: float) -> float:
    """The number that was meant: ONNX keeps it in float32, which is neither 0.2 nor 1/6."""
    if not isfinite(value):
        return value  # which no activation has
    fraction = float(Fraction(value).limit_denominator(64))
    return fraction if np.float32(fraction) == value else float(str(np.float32(value)))
