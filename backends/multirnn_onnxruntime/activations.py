"""The activations of a spec <-> attributes of the operators RNN, LSTM and GRU.

An operator has a list of names, once a direction, and lists of alpha and beta with an entry for each activation that
takes one, in order. ONNX Runtime's RNN indexes those lists by direction instead. The two agree where all directions have
the same activation.
"""

from collections.abc import Iterator, Mapping
from fractions import Fraction
from math import isfinite, nan
from types import MappingProxyType
from typing import Any

import numpy as np
from onnx import NodeProto

from multirnn import Activation, RecurrentSpec, Unrepresentable
from multirnn_onnxruntime.untrusted import attribute, short

__all__ = ["attributes", "read"]

# ONNX's names, and the parameters with their defaults. The operators have no Identity: Affine, alpha * x + beta, is it
# at 1 and 0.
ACTIVATIONS: Mapping[str, tuple[str, Mapping[str, float]]] = MappingProxyType(
    {
        "elu": ("Elu", {"alpha": 1.0}),
        "hard_sigmoid": ("HardSigmoid", {"alpha": 0.2, "beta": 0.5}),
        "linear": ("Affine", {"alpha": nan, "beta": nan}),
        "relu": ("Relu", {}),
        "sigmoid": ("Sigmoid", {}),
        "softsign": ("Softsign", {}),
        "tanh": ("Tanh", {}),
    }
)
DEFAULTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}
)


def attributes(spec: RecurrentSpec) -> dict[str, Any]:
    """The attributes of the operator of a layer."""
    gates, rest = Activation.of(spec.recurrent_activation), Activation.of(spec.activation)
    one_direction = {"simple_rnn": [rest], "gru": [gates, rest], "lstm": [gates, rest, rest]}[spec.cell]
    used = one_direction * len(spec.directions)
    found: dict[str, Any] = {"activations": [ACTIVATIONS[one.name][0] for one in used]}
    for parameter, of_linear in (("alpha", 1.0), ("beta", 0.0)):
        values = [of_linear if one.name == "linear" else getattr(one, parameter) for one in used]
        if given := [value for value in values if value is not None]:
            found[f"activation_{parameter}"] = given
    return found


def read(node: NodeProto) -> tuple[Activation, Activation]:
    """The activation and the recurrent one of an operator, of an RNN the sigmoid; `Unrepresentable` if no spec has them."""
    kind, count = node.op_type, len(DEFAULTS[node.op_type])
    both = attribute(node, "direction") == "bidirectional"
    names = attribute(node, "activations") or []
    if kind == "RNN" and not both and len(names) == 2:
        names = names[:1]  # the default of ONNX's RNN is two names, whatever its directions
    if names and len(names) != count * (1 + both):
        raise Unrepresentable(
            f"the {kind} has {count} activation{'s' * (count > 1)} for each direction, and this one {len(names)} in all"
        )
    used = list(_parametrised(names or list(DEFAULTS[kind]), node))
    directions = [used[start : start + count] for start in range(0, len(used), count)]
    if any(direction != directions[0] for direction in directions):
        raise Unrepresentable(f"the {kind} has other activations in each direction, and a spec has the same")
    *gates, activation = directions[0]
    if kind == "LSTM" and gates.pop() != activation:
        raise Unrepresentable("the LSTM has other activations for its candidate and its output, and a spec has one")
    return activation, gates[0] if gates else Activation("sigmoid")


def _parametrised(names: list[str], node: NodeProto) -> Iterator[Activation]:
    ours = {theirs: (name, defaults) for name, (theirs, defaults) in ACTIVATIONS.items()}
    values = {parameter: iter(attribute(node, f"activation_{parameter}") or ()) for parameter in ("alpha", "beta")}
    for theirs in names:
        if theirs not in ours:
            raise Unrepresentable(f"no spec has the activation {short(theirs)} of ONNX; it has {', '.join(ours)}")
        name, defaults = ours[theirs]
        parameters = {parameter: next(values[parameter], default) for parameter, default in defaults.items()}
        if name != "linear":
            yield Activation(name, **{parameter: _simplest(value) for parameter, value in parameters.items()})
        elif parameters == {"alpha": 1, "beta": 0}:
            yield Activation("linear")
        else:
            raise Unrepresentable(
                f"no spec has the activation Affine with {parameters}; with alpha 1 and beta 0 it is linear"
            )


def _simplest(value: float) -> float:
    """The intended number: ONNX stores float32, which is neither 0.2 nor 1/6."""
    if not isfinite(value):
        return value  # `Activation` refuses it
    fraction = float(Fraction(value).limit_denominator(64))
    return fraction if np.float32(fraction) == value else float(str(np.float32(value)))
