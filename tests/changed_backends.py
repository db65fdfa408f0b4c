"""The NumPy backend, and what it hands out changed on its way; and stacks to compare."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import multirnn as mr
from multirnn.protocol import accept

EPS = {dtype: float(np.finfo(dtype).eps) for dtype in ("float32", "float64")}
Change = Callable[[Any], Any]


@dataclass
class Changed:
    """The NumPy backend; what it hands out passes through a change first, which may spoil it."""

    name: str = "changed"
    output: Change = field(default=lambda output: output)
    gradients: Change = field(default=lambda gradients: gradients)
    refusal: str | None = None
    differentiable: bool = True
    count: int = 0

    def refuses(self, spec: mr.RecurrentSpec) -> str | None:
        return self.refusal

    def build(self, weights: mr.Weights, *, device: str | None = None) -> mr.Layer:
        accept(self, weights.spec)
        return ChangedLayer(mr.build(weights, "numpy"), self)  # type: ignore[return-value]

    def read(self, native: Any) -> mr.Weights:
        raise NotImplementedError

    def versions(self) -> dict[str, str]:
        return {"changed": "1.2.3"}


class ChangedLayer:
    def __init__(self, layer: mr.Layer, backend: Changed) -> None:
        self.layer, self.backend = layer, backend
        self.parameter_count = layer.parameter_count + backend.count

    def __call__(self, *given: Any, **options: Any) -> mr.Output:
        return self.backend.output(self.layer(*given, **options))

    def vjp(self, *given: Any, **options: Any) -> mr.Gradients:
        return self.backend.gradients(self.layer.vjp(*given, **options))


def spoiled(array: np.ndarray, *place: int) -> np.ndarray:
    """The array with the element at this place off by as much as the largest."""
    copy = array.copy()
    copy[place] += abs(array).max()
    return copy


LSTM = mr.RecurrentSpec("lstm", 5, 4, num_layers=2, bidirectional=True)
GRU = mr.RecurrentSpec("gru", 5, 4, bias="single")
