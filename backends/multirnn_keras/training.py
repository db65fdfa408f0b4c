"""Training with `keras.optimizers.SGD` and `Adam`, by `compile` and `train_on_batch` of a model around the stack."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from typing import Any

import keras
import numpy as np

from multirnn.parity import Batch, Optimiser
from multirnn.weights import Array
from multirnn_keras.engines import ENGINE
from multirnn_keras.layer import KerasLayer

__all__ = ["OPTIMISERS", "default_epsilon", "train"]

OPTIMISERS: Mapping[str, Callable[[Optimiser], Any]] = {
    "sgd": lambda o: keras.optimizers.SGD(o.learning_rate),
    "momentum": lambda o: keras.optimizers.SGD(o.learning_rate, momentum=o.momentum),
    "adam": lambda o: keras.optimizers.Adam(o.learning_rate, beta_1=o.beta_1, beta_2=o.beta_2, epsilon=o.epsilon),
}


def train(layer: KerasLayer, batch: Batch, optimiser: Optimiser, steps: int) -> Array:
    """Train the model in place; see `multirnn.protocol.Trains`."""
    dtype = layer.spec.dtype
    losses = []
    with _floatx(dtype):
        x = keras.Input(batch.x.shape[1:], dtype=dtype)
        mask = keras.Input(batch.valid.shape[1:], dtype="bool")
        model = keras.Model([x, mask], layer.native(x, mask=mask))
        # On TensorFlow "auto" compiles by XLA, for seconds. On JAX nothing is compiled without it.
        jit_compile: Any = ENGINE == "jax"
        loss = keras.losses.MeanSquaredError(reduction="mean_with_sample_weight", dtype=dtype)
        model.compile(OPTIMISERS[optimiser.name](optimiser), loss=loss, jit_compile=jit_compile)
        for _ in range(steps):
            model.reset_metrics()  # else the loss returned is the mean over all steps so far
            # Not `fit`: an epoch costs 90 ms on TensorFlow, however short.
            found = model.train_on_batch([batch.x, batch.valid], batch.target, sample_weight=batch.valid.astype(dtype))
            losses.append(float(found))
    return np.array(losses, dtype)


def default_epsilon() -> float:
    """The default epsilon of `keras.optimizers.Adam`."""
    return float(signature(keras.optimizers.Adam).parameters["epsilon"].default)


@contextmanager
def _floatx(dtype: str) -> Iterator[None]:
    """Keras' default dtype: of the data, the learning rate and the mean of the losses."""
    before = keras.config.floatx()
    keras.config.set_floatx(dtype)
    try:
        yield
    finally:
        keras.config.set_floatx(before)
