"""Training with the optimisers of `jax.example_libraries` over the pytree of parameters.

JAX itself has no others; Optax, which most users take, is a package of its own that multirnn does not depend on. An
optimiser is three pure functions, and the caller counts the steps: `update(i, …)` with i = 0, 1, ….
"""

from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.example_libraries import optimizers

from multirnn import RecurrentSpec
from multirnn.parity import Batch, Optimiser
from multirnn.weights import Array
from multirnn_jax.layer import JaxLayer
from multirnn_jax.loop import Params, apply
from multirnn_jax.weights import scope

__all__ = ["OPTIMISERS", "default_epsilon", "train"]

OPTIMISERS: Mapping[str, Callable[[Optimiser], optimizers.Optimizer]] = MappingProxyType(
    {
        "sgd": lambda o: optimizers.sgd(o.learning_rate),
        "momentum": lambda o: optimizers.momentum(o.learning_rate, mass=o.momentum),
        "adam": lambda o: optimizers.adam(o.learning_rate, b1=o.beta_1, b2=o.beta_2, eps=o.epsilon),
    }
)


def train(layer: JaxLayer, batch: Batch, optimiser: Optimiser, steps: int) -> Array:
    """Train `layer.native.params`; returns the loss before each step. See `multirnn.protocol.Trains`."""
    losses = []
    with scope(layer.spec):
        init, update, params_of = OPTIMISERS[optimiser.name](optimiser)
        update = jax.jit(update)
        state = init(layer.params())
        for i in range(steps):  # from 0: the bias correction of `update` takes i + 1
            loss, gradients = _loss_and_gradients(
                layer.spec, params_of(state), batch.x, batch.target, batch.lengths, batch.valid
            )
            state = update(i, gradients, state)
            losses.append(loss.item())
        layer.native.params = params_of(state)
    return np.array(losses, layer.spec.dtype)


def default_epsilon() -> float:
    """Of `jax.example_libraries.optimizers.adam`."""
    return float(signature(optimizers.adam).parameters["eps"].default)


@partial(jax.jit, static_argnums=0)
def _loss_and_gradients(spec: RecurrentSpec, params: Params, x: Any, target: Any, lengths: Any, valid: Any) -> Any:
    def loss(params: Params) -> Any:
        sequence = apply(spec, params, x, lengths=lengths).sequence
        return jnp.mean((sequence - target) ** 2, where=valid[..., None])

    return jax.value_and_grad(loss)(params)
