"""The activations of a spec, and their derivatives as functions of their values."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from multirnn import Activation

__all__ = ["ACTIVATIONS", "SLOPES", "Activate", "activation"]

Activate = Callable[[Any], Any]


def _hard_sigmoid(x: Any, alpha: float, beta: float) -> Any:
    # The gradient of `lax.clamp` is one strictly inside the bounds and zero on them; that of `jnp.clip` is a half.
    return lax.clamp(x.dtype.type(0), alpha * x + beta, x.dtype.type(1))


# `jax.nn.relu` has gradient 0 at 0, `jnp.maximum(x, 0)` a half.
ACTIVATIONS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "elu": jax.nn.elu,
        "hard_sigmoid": _hard_sigmoid,
        "linear": lambda x: x,
        "relu": jax.nn.relu,
        "sigmoid": jax.nn.sigmoid,
        "softsign": jax.nn.soft_sign,
        "tanh": jnp.tanh,
    }
)

SLOPES: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "elu": lambda y, alpha: jnp.where(y > 0, 1, y + alpha),
        "hard_sigmoid": lambda y, alpha, beta: jnp.where((y > 0) & (y < 1), y.dtype.type(alpha), 0),
        "linear": jnp.ones_like,
        "relu": lambda y: (y > 0).astype(y.dtype),
        "sigmoid": lambda y: y * (1 - y),
        "softsign": lambda y: (1 - jnp.abs(y)) ** 2,
        "tanh": lambda y: 1 - y * y,
    }
)


def activation(table: Mapping[str, Callable[..., Any]], value: str | Activation) -> Activate:
    """The entry of `ACTIVATIONS` or `SLOPES` with the parameters of an activation."""
    known = Activation.of(value)
    return partial(table[known.name], **known.parameters)
