"""Training parity: a training that is wrong is caught, and not explained."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from multirnn_numpy import training
from parity_backends import (
    GRU,
    RNN,
    Train,
    Wrong,
    frozen_bias,
    gradients,
    only,
)

from multirnn.parity import Batch, Optimiser, train_parity


def halved_gradient(train: Train, layer: Any, batch: Batch, optimiser: Optimiser, steps: int) -> Any:
    with gradients(layer, lambda found: {name: array / 2 for name, array in found.items()}):
        return train(layer, batch, optimiser, steps)


def dampened_momentum(train: Train, layer: Any, batch: Batch, optimiser: Optimiser, steps: int) -> Any:
    # m = momentum * m + (1 - d) * g is (1 - d) times the momentum without dampening.
    return train(layer, batch, replace(optimiser, learning_rate=optimiser.learning_rate * 0.9), steps)


def no_momentum(train: Train, layer: Any, batch: Batch, optimiser: Optimiser, steps: int) -> Any:
    return train(layer, batch, replace(optimiser, momentum=0.0), steps)


def counted_from_two(train: Train, layer: Any, batch: Batch, optimiser: Optimiser, steps: int) -> Any:
    count = training._scalars
    with patch.object(training, "_scalars", lambda o, t, dtype: count(o, t + 1, dtype)):
        return train(layer, batch, optimiser, steps)


def no_bias_correction(train: Train, layer: Any, batch: Batch, optimiser: Optimiser, steps: int) -> Any:
    with patch.object(training, "_scalars", lambda o, t, dtype: training.Scalars(o.momentum, 1.0, 1.0)):
        return train(layer, batch, optimiser, steps)


def run_through_padding(train: Train, layer: Any, batch: Batch, optimiser: Optimiser, steps: int) -> Any:
    return train(layer, Batch(batch.x, batch.target, np.full_like(batch.lengths, batch.x.shape[1])), optimiser, steps)


def last_step_missing(train: Train, layer: Any, batch: Batch, optimiser: Optimiser, steps: int) -> Any:
    losses = train(layer, batch, optimiser, steps - 1)
    loss, _ = batch.loss(layer(batch.x, lengths=batch.lengths).sequence)
    return np.append(losses, losses.dtype.type(loss))  # the curve is right, the weights are not


def losses_after_the_steps(train: Train, layer: Any, batch: Batch, optimiser: Optimiser, steps: int) -> Any:
    losses = train(layer, batch, optimiser, steps)
    loss, _ = batch.loss(layer(batch.x, lengths=batch.lengths).sequence)
    return np.append(losses, losses.dtype.type(loss))[1:]  # the weights are right, the curve is not


WRONG: dict[Callable[..., Any], tuple[str, ...]] = {
    halved_gradient: ("sgd", "momentum"),  # Adam divides by the size of the gradient
    frozen_bias: ("sgd", "momentum", "adam"),
    dampened_momentum: ("momentum",),
    no_momentum: ("momentum",),
    counted_from_two: ("adam",),
    no_bias_correction: ("adam",),
    run_through_padding: ("sgd", "momentum", "adam"),
    last_step_missing: ("sgd", "momentum", "adam"),
    losses_after_the_steps: ("sgd", "momentum", "adam"),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.__name__)
def test_a_wrong_training_is_caught_and_not_explained(wrong: Callable[..., Any], dtype: str) -> None:
    parity = train_parity(replace(GRU, dtype=dtype), backends=[Wrong(wrong), "numpy"], optimisers=WRONG[wrong], steps=6)
    assert not parity.ok
    for row in parity.rows:
        assert row.verdict == ("differs" if row.backend == "wrong" else "equal"), str(parity)
        assert row.causes == ()


def test_adam_does_not_see_the_size_of_the_gradient() -> None:
    row = only(Wrong(halved_gradient), optimisers=Optimiser("adam", 1 / 64, epsilon=1e-30))["adam"]
    assert row.verdict == "equal"


def test_a_training_that_diverges_is_a_difference() -> None:
    def diverging(train: Train, layer: Any, batch: Batch, optimiser: Optimiser, steps: int) -> Any:
        return train(layer, batch, optimiser, steps) * np.inf

    parity = train_parity(RNN, backends=[Wrong(diverging)], optimisers="sgd")
    assert [row.verdict for row in parity.rows] == ["differs"]
    assert json.loads(parity.to_json())["rows"][0]["curve_eps"] is None


@pytest.mark.parametrize(
    "losses", [np.zeros(3), np.zeros(20, "float32"), [0.0] * 20, None], ids=lambda x: type(x).__name__
)
def test_what_is_returned_has_to_be_the_losses(losses: Any) -> None:
    parity = train_parity(RNN, backends=[Wrong(lambda *args: losses)], optimisers="sgd")
    assert not parity.ok
    assert "train must return 20 losses in an array of float64, not" in str(parity).replace("\n", " ")
