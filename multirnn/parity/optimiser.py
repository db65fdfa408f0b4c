"""What is trained with: an optimiser by its numbers; and on what: a batch."""

from __future__ import annotations  # or naming np.random.Generator loads numpy.random

from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Real
from types import MappingProxyType
from typing import Any

import numpy as np

from multirnn.errors import InvalidCall, meant
from multirnn.layer import Lengths
from multirnn.weights import Array

__all__ = ["OPTIMISERS", "STEPS", "Batch", "Optimiser"]


@dataclass(frozen=True, slots=True)
class Optimiser:
    """The name and hyper-parameters of an optimiser, from which each framework makes its own.

    Attributes:
        name: "sgd"; "momentum", SGD with momentum; "adam".
        learning_rate: for all three.
        momentum: for "momentum", without dampening or look-ahead.
        beta_1, beta_2, epsilon: for "adam".

    Raises:
        InvalidCall: there is no such optimiser, or a number is out of its range.
    """

    name: str
    learning_rate: float
    momentum: float = 0.9
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        if self.name not in _HYPER_PARAMETERS:
            hint = meant(self.name, _HYPER_PARAMETERS)
            raise InvalidCall(f"no optimiser named {self.name!r}; there are {', '.join(_HYPER_PARAMETERS)}{hint}")
        for entry in fields(self)[1:]:
            given = getattr(self, entry.name)
            if not isinstance(given, Real):
                raise InvalidCall(f"{entry.name} of an optimiser must be a number, not {given!r}")
            value = float(given)
            below_one = entry.name in ("momentum", "beta_1", "beta_2")
            if not (0 <= value < 1 if below_one else 0 < value < float("inf")):
                allowed = "from 0 to below 1" if below_one else "positive and finite"
                raise InvalidCall(f"{entry.name} of an optimiser must be {allowed}, not {value:g}")
            object.__setattr__(self, entry.name, value)

    @property
    def hyper_parameters(self) -> dict[str, float]:
        """By name."""
        return {name: getattr(self, name) for name in _HYPER_PARAMETERS[self.name]}

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{name}={value:g}' for name, value in self.hyper_parameters.items())})"


_HYPER_PARAMETERS = {
    "sgd": ("learning_rate",),
    "momentum": ("learning_rate", "momentum"),
    "adam": ("learning_rate", "beta_1", "beta_2", "epsilon"),
}

OPTIMISERS: Mapping[str, Optimiser] = MappingProxyType(
    {
        # Powers of two: the same numbers in float32 and float64. The others are the frameworks' defaults.
        "sgd": Optimiser("sgd", learning_rate=1 / 2),
        "momentum": Optimiser("momentum", learning_rate=1 / 8),
        "adam": Optimiser("adam", learning_rate=1 / 64),
    }
)
"""The defaults, by name."""

STEPS = 20
"""The default: enough to halve the loss of a small stack, in well under a second on NumPy."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """The training data; every step takes all of it."""

    x: Array  # `(batch, time, input_size)`, zero at padding
    target: Array  # `(batch, time, directions * hidden_size)`, zero at padding
    lengths: Lengths  # `(batch,)`, at least 1 each

    @property
    def valid(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which steps are not padding: `(batch, time)`."""
        return np.asarray(np.arange(self.x.shape[1]) < self.lengths[:, None])

    def loss(self, sequence: Array) -> tuple[float, Array]:
        """The mean of `(sequence - target)²` over the valid steps, and its gradient, of the shape of the sequence."""
        error = np.where(self.valid[..., None], sequence - self.target, sequence.dtype.type(0))
        count = int(self.lengths.sum()) * sequence.shape[-1]
        return float((error**2).sum() / count), 2 * error / sequence.dtype.type(count)

    def astype(self, dtype: str) -> Batch:
        """The same in "float32" or "float64"."""
        return Batch(self.x.astype(dtype), self.target.astype(dtype), self.lengths)
