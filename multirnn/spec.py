"""The description of a recurrent stack: `RecurrentSpec`.

A spec is a frozen, hashable value with a JSON form. It knows the name and shape of every parameter, so
`parameter_count` is a fact that every backend's own count must equal.

Parameters are named `layers.{k}.{forward|backward}.{weight_ih|weight_hh|bias_ih|bias_hh}`, gate axis first:

    weight_ih  (gates, hidden_size, features)      features: input_size, or directions * hidden_size above layer 0
    weight_hh  (gates, hidden_size, hidden_size)
    bias_ih    (gates, hidden_size)                absent with bias="none"
    bias_hh    (gates, hidden_size)                with bias="double"
               (1, hidden_size)                    the candidate's, with bias="single" in the reset-after GRU
"""

import json
import operator
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import lru_cache
from math import prod
from types import MappingProxyType
from typing import Any, Literal, Self

from multirnn.activations import Activation
from multirnn.cells import CELLS, Bias, Cell, CellName, cell_form
from multirnn.errors import InvalidSpec

__all__ = ["BIASES", "DIRECTIONS", "DTYPES", "DType", "RecurrentSpec", "axis_value"]

DType = Literal["float32", "float64"]
BIASES: tuple[Bias, ...] = ("none", "single", "double")
DIRECTIONS = ("forward", "backward")
DTYPES: tuple[DType, ...] = ("float32", "float64")
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True, repr=False)
class RecurrentSpec:
    """A recurrent layer stack: its function and its parameters.

    Args:
        cell: "simple_rnn", "lstm" or "gru".
        input_size: features of the input; a positive integer.
        hidden_size: units of every layer and direction; a positive integer.
        num_layers: stacked layers, each fed by the outputs of the one below.
        bidirectional: run every layer forward and backward in time; outputs are concatenated forward‖backward.
        bias: "none"; "single", no redundant bias (one a gate, and for the reset-after GRU also the recurrent
            candidate bias); "double", an input and a recurrent bias for every gate. Unless given, the cell's own:
            "single", but "double" for the reset-after GRU, where both torch and Keras hold it natively.
        reset_after: the GRU's reset gate acts after the recurrent product (torch, cuDNN, Keras' default) or before it.
        activation: of the candidate and of the LSTM's output; a name or an `Activation`.
        recurrent_activation: of the gates of the LSTM and the GRU.
        dtype: "float32" or "float64".

    Raises:
        InvalidSpec: a value that describes no layer; the sentence names the field, the value and what is allowed.
    """

    cell: CellName
    input_size: int
    hidden_size: int
    num_layers: int = 1
    bidirectional: bool = False
    bias: Bias = ""  # type: ignore[assignment]  # the cell's own, as said above
    reset_after: bool = True
    activation: str | Activation = "tanh"
    recurrent_activation: str | Activation = "sigmoid"
    dtype: DType = "float32"

    def __post_init__(self) -> None:
        _one_of("cell", self.cell, tuple(CELLS))
        for name in ("input_size", "hidden_size", "num_layers"):
            object.__setattr__(self, name, _positive(name, getattr(self, name)))
        for name in ("bidirectional", "reset_after"):
            if not isinstance(given := getattr(self, name), bool):
                raise InvalidSpec(f"{name} must be True or False, not {given!r}")
        for name in ("activation", "recurrent_activation"):
            try:
                object.__setattr__(self, name, Activation.of(getattr(self, name)).short)
            except InvalidSpec as error:
                raise InvalidSpec(f"{name}: {error}") from None
        if self.cell != "gru" and not self.reset_after:
            raise InvalidSpec(f"reset_after=False describes a form of the GRU; cell={self.cell!r} has no reset gate")
        if len(self.form.gates) == 1 and self.recurrent_activation != "sigmoid":
            raise InvalidSpec(
                f"recurrent_activation is of the gates of an LSTM or GRU; cell={self.cell!r} has none, "
                f"so it must stay 'sigmoid', not {self.recurrent_activation!r}"
            )
        if str(self.bias) == "":  # and not any false value: bias=False would mean the opposite of what it gave
            object.__setattr__(self, "bias", self.form.default_bias)
        _one_of("bias", self.bias, BIASES)
        object.__setattr__(
            self, "dtype", getattr(self.dtype, "__name__", None) or getattr(self.dtype, "name", self.dtype)
        )
        _one_of("dtype", self.dtype, DTYPES)

    @property
    def form(self) -> Cell:
        """The cell as data: gates, states, equations."""
        return cell_form(self.cell, self.reset_after)

    @property
    def directions(self) -> tuple[str, ...]:
        """Forward, and backward if bidirectional."""
        return DIRECTIONS if self.bidirectional else DIRECTIONS[:1]

    @property
    def output_size(self) -> int:
        """Features of the output sequence: directions * hidden_size."""
        return len(self.directions) * self.hidden_size

    @property
    def passes(self) -> Iterator[tuple[int, str]]:
        """Every (layer, direction), in the order of the axis `num_layers * directions` of a state."""
        return ((layer, direction) for layer in range(self.num_layers) for direction in self.directions)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every parameter by name, in canonical order."""
        return _shapes(self)

    @property
    def parameter_count(self) -> int:
        """Trainable numbers of the stack."""
        return sum(prod(shape) for shape in self.shapes.values())

    def to_dict(self) -> dict[str, Any]:
        """All fields and the version of this format, in values that JSON has."""
        values = {field.name: axis_value(getattr(self, field.name)) for field in fields(self)}
        return {"version": FORMAT_VERSION, **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The spec that `to_dict` wrote.

        Raises:
            InvalidSpec: the version is unknown, a field is unknown or missing, or a value is impossible.
        """
        if not isinstance(values, Mapping):
            raise InvalidSpec(f"a spec is read from a dictionary of its fields, not from {type(values).__name__}")
        if values.get("version") != FORMAT_VERSION:
            raise InvalidSpec(f"this multirnn reads specs of version {FORMAT_VERSION}, not {values.get('version')!r}")
        known = [field.name for field in fields(cls)]
        given = {name: value for name, value in values.items() if name != "version"}
        if unknown := [name for name in given if name not in known]:
            raise InvalidSpec(f"a spec has no field {', '.join(map(repr, unknown))}; it has {', '.join(known)}")
        if missing := [name for name in known[:3] if name not in given]:
            raise InvalidSpec(f"a spec needs the field {', '.join(map(repr, missing))}")
        return cls(**given)

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The spec that `to_json` wrote.

        Raises:
            InvalidSpec: the text is not JSON, or not of a spec.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise InvalidSpec(f"not a spec in JSON: {error}") from None
        return cls.from_dict(values)

    def __repr__(self) -> str:
        defaults = {field.name: field.default for field in fields(self)} | {"bias": self.form.default_bias}
        values = {field.name: getattr(self, field.name) for field in fields(self)[1:]}
        changed = (f"{name}={value!r}" for name, value in values.items() if value != defaults[name])
        return f"RecurrentSpec({self.cell!r}, {', '.join(changed)})"


def axis_value(value: Any) -> Any:
    """A field's value as in `RecurrentSpec.to_dict`."""
    return {"name": value.name, **value.parameters} if isinstance(value, Activation) else value


@lru_cache(maxsize=256)  # asked for at every array that is packed
def _shapes(spec: RecurrentSpec) -> Mapping[str, tuple[int, ...]]:
    gates, hidden = len(spec.form.gates), spec.hidden_size
    recurrent_biases = {"none": 0, "single": int(spec.form.recurrent_candidate_bias), "double": gates}[spec.bias]
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, direction in spec.passes:
        prefix = f"layers.{layer}.{direction}"
        shapes[f"{prefix}.weight_ih"] = (gates, hidden, spec.output_size if layer else spec.input_size)
        shapes[f"{prefix}.weight_hh"] = (gates, hidden, hidden)
        if spec.bias != "none":
            shapes[f"{prefix}.bias_ih"] = (gates, hidden)
        if recurrent_biases:
            shapes[f"{prefix}.bias_hh"] = (recurrent_biases, hidden)
    return MappingProxyType(shapes)


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise InvalidSpec(f"{name} must be one of {', '.join(map(repr, allowed))}, not {value!r}")


def _positive(name: str, value: Any) -> int:
    with suppress(TypeError):
        if not isinstance(value, bool) and (integer := operator.index(value)) > 0:
            return integer
    raise InvalidSpec(f"{name} must be a positive integer, not {value!r}")
