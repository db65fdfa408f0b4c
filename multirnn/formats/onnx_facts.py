"""The operators RNN, LSTM and GRU as facts: their names, their arrays, and the activations of a spec as attributes.

An operator has a list of names, once a direction, and lists of alpha and beta with an entry for each activation that
takes one, in order. ONNX Runtime's RNN indexes those lists by direction instead. The two agree where all directions have
the same activation.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from math import isfinite, nan
from types import MappingProxyType
from typing import Any

import numpy as np

from multirnn.activations import Activation
from multirnn.cells import FORMS, CellName
from multirnn.conventions import CONVENTIONS, Convention, Entry
from multirnn.errors import Unrepresentable
from multirnn.spec import RecurrentSpec

__all__ = ["CONVENTION", "OPERATORS", "attributes", "read", "refuses", "short"]

OPERATORS: Mapping[CellName, str] = MappingProxyType({"simple_rnn": "RNN", "lstm": "LSTM", "gru": "GRU"})


def _with_single_biases(onnx: Convention) -> Convention:
    """ONNX's convention, and in it `bias="single"`: in parts, which the graph joins with zeros."""
    input_bias = Entry("Wb", ("bias_ih",), "direction (gate unit)")
    candidate_bias = Entry("Rb", ("bias_hh",), "direction (gate unit)", gates=("n",))
    arrays = {}
    for form, held in onnx.arrays.items():
        single = (*held["none"], input_bias, *((candidate_bias,) if FORMS[form].recurrent_candidate_bias else ()))
        arrays[form] = {**held, "single": single}
    return replace(onnx, arrays=arrays, pattern=onnx.pattern.replace("W|R|B", "W|R|B|Wb|Rb"))


CONVENTION = _with_single_biases(CONVENTIONS["onnx"])

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


def refuses(spec: RecurrentSpec) -> str | None:
    """None if a model says the parameters of the activations exactly, which it holds in float32; else why not."""
    for activation in map(Activation.of, (spec.activation, spec.recurrent_activation)):
        for name, value in activation.parameters.items():
            with np.errstate(over="ignore"):
                stored = float(np.float32(value))
            if spec.dtype == "float64" and stored == value:
                continue
            if spec.dtype == "float64":
                return (
                    f"ONNX holds {name} of {activation.name} in float32, which is {stored!r} and not {value!r}, so that a "
                    'float64 stack would compute another function; take dtype="float32", or another format'
                )
            if not isfinite(stored):
                return (
                    f"ONNX holds {name} of {activation.name} in float32, and {value!r} is larger; take another format"
                )
            if _simplest(stored) != value:
                return (
                    f"ONNX holds {name} of {activation.name} in float32, from which {value!r} cannot be told; "
                    f"take {_simplest(stored)!r}, or another format"
                )
    return None


def read(kind: str, given: Mapping[str, Any], dtype: str = "float32") -> tuple[Activation, Activation]:
    """The activation and the recurrent activation of an operator; for an RNN the second is the sigmoid.

    Args:
        kind: "RNN", "LSTM" or "GRU".
        given: the attributes of the operator by name, text decoded.
        dtype: of the operator. In float32 a parameter is the number meant, such as 0.2; in float64 the float32 as it is.

    Raises:
        Unrepresentable: no spec has them.
        InvalidSpec: a parameter is out of range.
    """
    count = len(DEFAULTS[kind])
    both = given.get("direction") == "bidirectional"
    names = given.get("activations") or []
    if kind == "RNN" and not both and len(names) == 2:
        names = names[:1]  # the default of ONNX's RNN is two names, whatever its directions
    if names and len(names) != count * (1 + both):
        raise Unrepresentable(
            f"the {kind} has {count} activation{'s' * (count > 1)} for each direction, and this one {len(names)} in all"
        )
    used = list(_parametrised(names or list(DEFAULTS[kind]), given, _simplest if dtype == "float32" else float))
    directions = [used[start : start + count] for start in range(0, len(used), count)]
    if any(direction != directions[0] for direction in directions):
        raise Unrepresentable(f"the {kind} has other activations in each direction, and a spec has the same")
    *gates, activation = directions[0]
    if kind == "LSTM" and gates.pop() != activation:
        raise Unrepresentable("the LSTM has other activations for its candidate and its output, and a spec has one")
    return activation, gates[0] if gates else Activation("sigmoid")


def _parametrised(names: list[str], given: Mapping[str, Any], meant: Callable[[float], float]) -> Iterator[Activation]:
    ours = {theirs: (name, defaults) for name, (theirs, defaults) in ACTIVATIONS.items()}
    values = {parameter: iter(given.get(f"activation_{parameter}") or ()) for parameter in ("alpha", "beta")}
    for theirs in names:
        if theirs not in ours:
            raise Unrepresentable(f"no spec has the activation {short(theirs)} of ONNX; it has {', '.join(ours)}")
        name, defaults = ours[theirs]
        parameters = {parameter: next(values[parameter], default) for parameter, default in defaults.items()}
        if name != "linear":
            yield Activation(name, **{parameter: meant(value) for parameter, value in parameters.items()})
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


def short(name: str) -> str:
    """A name in quotes, at most 80 characters of it."""
    return repr(name if len(name) <= 80 else f"{name[:77]}...")
