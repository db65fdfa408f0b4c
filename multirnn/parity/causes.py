"""The conventions in which frameworks differ, each as another setting of the reference."""

from __future__ import annotations  # or naming np.random.Generator loads numpy.random

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from multirnn.parity.optimiser import Optimiser

__all__ = ["CAUSES", "Cause", "Setting"]


class Setting(NamedTuple):
    """How a stack is trained."""

    bias: str  # the form of its biases
    optimiser: Optimiser
    form: str = "torch"  # the framework whose formula of the optimiser is used, "torch" or "keras"
    rounded: bool = False  # momentum and the betas of the bias correction, to float32


class Cause(NamedTuple):
    """A convention in which frameworks differ.

    `apply` makes of the reference's setting and the other one the reference's under the other convention; unchanged if
    both share it. `sentence` says the difference, from the title of the backend and both settings.
    """

    name: str
    apply: Callable[[Setting, Setting], Setting]
    sentence: Callable[[str, Setting, Setting], str]


def _say_biases(title: str, own: Setting, other: Setting) -> str:
    # Every optimiser here works element by element, so two biases with the same gradient each take the step of a single
    # one. Doubling the gradient of a single bias would be the same for SGD; Adam divides by its size.
    said = f'{title} has bias="{other.bias}" by default, and the reference bias="{own.bias}"'
    moves = (
        "their sum moves twice as far" if other.bias == "double" else "one alone moves half as far as the sum of two"
    )
    return f"{said}: of two biases each gets the whole gradient and takes the whole step, so {moves}, under Adam too"


def _say_epsilon(title: str, own: Setting, other: Setting) -> str:
    return (
        f"{title} has epsilon={other.optimiser.epsilon:g} by default, and the reference {own.optimiser.epsilon:g}: "
        "it counts where the gradients are not much larger"
    )


def _say_epsilon_hat(title: str, own: Setting, other: Setting) -> str:
    first = (1 - own.optimiser.beta_2) ** -0.5
    return (
        f"{title} adds epsilon to sqrt(v), and the reference to sqrt(v / (1 - beta_2^t)): in step t that is an epsilon "
        f"1 / sqrt(1 - beta_2^t) times as large, {first:.3g} times in the first"
    )


def _say_rounded(title: str, own: Setting, other: Setting) -> str:
    if own.optimiser.name == "momentum":
        return f"{title} has rounded its momentum to float32, also in a stack of float64"
    return (
        f"{title} has rounded the betas of its bias correction to float32, in which 1 - beta_2^t keeps few digits: "
        f"1 - {own.optimiser.beta_2:g} is {float(1 - np.float32(own.optimiser.beta_2)):.6g} there"
    )


CAUSES: tuple[Cause, ...] = (
    Cause("biases", lambda own, other: own._replace(bias=other.bias), _say_biases),
    Cause(
        "epsilon",
        lambda own, other: own._replace(optimiser=replace(own.optimiser, epsilon=other.optimiser.epsilon)),
        _say_epsilon,
    ),
    # The two forms of momentum take the same steps while the learning rate is constant, so there is no cause.
    Cause(
        "epsilon hat",
        lambda own, other: own._replace(form="keras") if own.optimiser.name == "adam" else own,
        _say_epsilon_hat,
    ),
    # TensorFlow first makes every Python number a float32 (tensorflow/tensorflow#57779), and Keras passes them in
    # `ops.cast(self.beta_2, variable.dtype)`. In a stack of float32 JAX computes 1 - beta^t in float32 too.
    Cause("rounded", lambda own, other: own._replace(rounded=own.optimiser.name != "sgd"), _say_rounded),
)
"""Tried singly and together, the fewest first."""
