"""The activation functions as data: name, formula, parameters.

A bare name is enough if it means one function everywhere. `hard_sigmoid` means two (slope 0.2 in Keras 2 and ONNX, slope
1/6 in Keras 3 and PyTorch), so it needs its slope `alpha` and its offset `beta`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from types import MappingProxyType
from typing import Any

from multirnn.errors import InvalidSpec

__all__ = ["ACTIVATIONS", "Activation", "Definition"]


@dataclass(frozen=True, slots=True)
class Definition:
    """An activation's formula, and its parameters with their defaults (None: required)."""

    formula: str
    parameters: Mapping[str, float | None]
    note: str = ""


ACTIVATIONS: Mapping[str, Definition] = MappingProxyType(
    {
        "elu": Definition("x if x > 0 else alpha * (exp(x) - 1)", {"alpha": 1.0}),
        "hard_sigmoid": Definition(
            "clip(alpha * x + beta, 0, 1)",
            {"alpha": None, "beta": None},
            "'hard_sigmoid' means two functions: Activation('hard_sigmoid', alpha=0.2, beta=0.5) is the one of Keras 2 "
            "and ONNX, Activation('hard_sigmoid', alpha=1/6, beta=0.5) the one of Keras 3 and torch",
        ),
        "linear": Definition("x", {}),
        "relu": Definition("max(x, 0)", {}),
        "sigmoid": Definition("1 / (1 + exp(-x))", {}),
        "softsign": Definition("x / (1 + |x|)", {}),
        "tanh": Definition("tanh(x)", {}),
    }
)


@dataclass(frozen=True, slots=True, repr=False)
class Activation:
    """An activation function with its parameters.

    Args:
        name: a key of `ACTIVATIONS`.
        alpha: slope of `hard_sigmoid`, scale of `elu` (1.0 unless given); greater than zero.
        beta: offset of `hard_sigmoid`.

    Raises:
        InvalidSpec: the name is unknown, or a parameter is missing, superfluous or out of range.
    """

    name: str
    alpha: float | None = None
    beta: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or self.name not in ACTIVATIONS:
            raise InvalidSpec(f"no activation named {self.name!r}; there are {', '.join(ACTIVATIONS)}")
        definition = ACTIVATIONS[self.name]
        for parameter in ("alpha", "beta"):
            given = getattr(self, parameter)
            if parameter not in definition.parameters:
                if given is not None:
                    raise InvalidSpec(
                        f"activation {self.name!r} has no parameter {parameter!r}, but it was given {given!r}"
                    )
                continue
            value = definition.parameters[parameter] if given is None else given
            if value is None:
                raise InvalidSpec(definition.note)
            if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
                raise InvalidSpec(f"{parameter!r} of activation {self.name!r} must be a finite number, not {value!r}")
            if parameter == "alpha" and value <= 0:
                raise InvalidSpec(f"'alpha' of activation {self.name!r} must be greater than zero, not {value!r}")
            object.__setattr__(self, parameter, float(value))

    @classmethod
    def of(cls, value: "str | Activation | Mapping[str, Any]") -> "Activation":
        """The activation that a name, an `Activation` or a dictionary of its fields stands for.

        Raises:
            InvalidSpec: it stands for none.
        """
        if isinstance(value, Activation | str):
            return cls(value) if isinstance(value, str) else value
        if isinstance(value, Mapping):
            if set(value) - {"name", "alpha", "beta"} or "name" not in value:
                raise InvalidSpec(
                    f"an activation has the fields name, alpha and beta, not {', '.join(map(repr, value))}"
                )
            return cls(**value)
        raise InvalidSpec(f"an activation is a name or an Activation, not {value!r}")

    @property
    def parameters(self) -> dict[str, float]:
        """The parameters that this activation has, by name."""
        return {name: getattr(self, name) for name in ACTIVATIONS[self.name].parameters}

    @property
    def short(self) -> "str | Activation":
        """The bare name where there are no parameters, else the activation itself."""
        return self if self.parameters else self.name

    def __repr__(self) -> str:
        parameters = "".join(f", {name}={value!r}" for name, value in self.parameters.items())
        return f"Activation({self.name!r}{parameters})"

    def __str__(self) -> str:
        parameters = ", ".join(f"{name}={value:g}" for name, value in self.parameters.items())
        return f"{self.name}({parameters})" if parameters else self.name
