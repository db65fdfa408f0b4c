"""NumPy as a backend that trains otherwise: wrongly, or by the conventions of a framework; and what is trained."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from unittest.mock import patch

import multirnn_numpy
import numpy as np

import multirnn as mr
from multirnn.numerics import draw_call
from multirnn.parity import Batch, Optimiser, Parity, Trained, train_parity

NUMPY = type(multirnn_numpy.BACKEND)
RNN = mr.RecurrentSpec("simple_rnn", 5, 7, dtype="float64")
LSTM = mr.RecurrentSpec("lstm", 5, 3, bidirectional=True)
GRU = mr.RecurrentSpec("gru", 5, 3, dtype="float64")


@lru_cache
def trained(spec: mr.RecurrentSpec, backend: str, defaults: bool = False) -> Parity:
    # Keras takes seconds to make the graph of a training.
    optimisers = ("sgd", "momentum", "adam") if spec == RNN else ("sgd", "adam")
    return train_parity(spec, backends=backend, optimisers=optimisers, defaults=defaults)


def by_name(parity: Parity) -> dict[str, Trained]:
    return {row.optimiser.name: row for row in parity.rows if row.optimiser}


def only(backend: Any, spec: mr.RecurrentSpec = RNN, **options: Any) -> dict[str, Trained]:
    return by_name(train_parity(spec, backends=[backend], **options))


def batch_of(spec: mr.RecurrentSpec, seed: int = 0) -> Batch:
    """A ragged batch and a target that is drawn."""
    x, _, lengths = draw_call(spec, seed)
    x, lengths = x[lengths > 0], lengths[lengths > 0]
    target = np.random.default_rng(seed).uniform(-1, 1, (*x.shape[:2], spec.output_size)).astype(spec.dtype)
    return Batch(x, target, lengths)


class Default(NUMPY):
    """NumPy under the conventions of a framework: by its name the form of its biases, and its own Adam."""

    def __init__(self, name: str, epsilon: float = 1e-8, **form: str) -> None:
        self.name, self._epsilon, self._form = name, epsilon, form

    def train(self, *args: Any, **form: Any) -> Any:
        return super().train(*args, **self._form)

    def default_epsilon(self) -> float:
        return self._epsilon


Train = Callable[[Any, Batch, Optimiser, int], Any]


class Wrong(NUMPY):
    """NumPy with a training of its own."""

    name = "wrong"

    def __init__(self, train: Callable[[Train, Any, Batch, Optimiser, int], Any]) -> None:
        self._wrong = train

    def train(self, layer: Any, batch: Batch, optimiser: Optimiser, steps: int, **form: Any) -> Any:
        return self._wrong(super().train, layer, batch, optimiser, steps)


@contextmanager
def gradients(layer: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Iterator[None]:
    """The layer's gradients, changed."""
    backward = layer.native.backward

    def changed(*args: Any) -> Any:
        found, *others = backward(*args)
        return change(found), *others

    with patch.object(layer.native, "backward", changed):
        yield


def frozen_bias(train: Train, layer: Any, batch: Batch, optimiser: Optimiser, steps: int) -> Any:
    with gradients(layer, lambda found: {name: array * ("bias" not in name) for name, array in found.items()}):
        return train(layer, batch, optimiser, steps)
