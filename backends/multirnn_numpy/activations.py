"""The activation functions over arrays, and their slopes.

A function is called as a ufunc is, `f(x, out)`, and `out` may be `x`. A slope, `slope(y, out)`, is the derivative in terms
of the function's own output y, tanh' = 1 - y², so that the backward pass needs only the results of the forward pass. At
their kinks relu and hard_sigmoid have the slope 0, and elu has alpha.

The functions also take complex numbers, which NumPy orders by their real parts, for derivatives by complex step; except
softsign, because |x| has no complex derivative.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy import add, clip, divide, exp, expm1, maximum, minimum, multiply, reciprocal, subtract, tanh

from multirnn import Activation
from multirnn.weights import Array

__all__ = ["activation"]

Function = Callable[[Array, Array], Any]
Pair = tuple[Function, Function]


@cache
def activation(value: str | Activation) -> Pair:
    """The function that a spec names, and its slope."""
    chosen = Activation.of(value)
    if chosen.name in PARAMETRIC:
        return PARAMETRIC[chosen.name](**chosen.parameters)
    return PLAIN[chosen.name]


def _sigmoid(x: Array, out: Array) -> None:
    # Not `negative`: NumPy 2.4 writes its results to the wrong places where x is `out` and strides by 16 bytes (float32,
    # AVX-512), as the gates of an LSTM with one unit do.
    multiply(x, -1, out)
    exp(out, out)
    add(out, 1, out)
    reciprocal(out, out)


def _sigmoid_slope(y: Array, out: Array) -> None:
    subtract(1, y, out)
    multiply(out, y, out)


def _softsign_slope(y: Array, out: Array) -> None:
    subtract(1, np.abs(y), out)
    multiply(out, out, out)


def _tanh_slope(y: Array, out: Array) -> None:
    multiply(y, y, out)
    subtract(1, out, out)


def _elu(alpha: float) -> Pair:
    def elu(x: Array, out: Array) -> None:
        below = alpha * expm1(minimum(x, 0))
        maximum(x, 0, out=out)
        add(out, below, out)

    return elu, lambda y, out: np.copyto(out, np.where(y > 0, 1, y + alpha))


def _hard_sigmoid(alpha: float, beta: float) -> Pair:
    def hard_sigmoid(x: Array, out: Array) -> None:
        multiply(x, alpha, out)
        add(out, beta, out)
        clip(out, 0, 1, out)

    return hard_sigmoid, lambda y, out: np.copyto(out, np.where((y > 0) & (y < 1), alpha, 0))


PLAIN: dict[str, Pair] = {
    "linear": (np.positive, lambda y, out: np.copyto(out, 1)),
    "relu": (lambda x, out: maximum(x, 0, out=out), lambda y, out: np.copyto(out, y > 0)),
    "sigmoid": (_sigmoid, _sigmoid_slope),
    "softsign": (lambda x, out: divide(x, 1 + np.abs(x), out), _softsign_slope),
    "tanh": (tanh, _tanh_slope),
}
PARAMETRIC: dict[str, Callable[..., Pair]] = {"elu": _elu, "hard_sigmoid": _hard_sigmoid}
