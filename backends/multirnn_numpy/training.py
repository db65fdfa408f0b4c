"""Training in NumPy: the optimisers' formulas written out. In float64 it is the reference for the other backends.

Where frameworks write a formula in two ways, both are here: `multirnn.parity` explains a difference by training the reference
in the other way. Sources, read in the installed versions: `torch/optim/sgd.py`, `_single_tensor_sgd`, and `adam.py`,
`_single_tensor_adam`; `keras/src/optimizers/sgd.py` and `adam.py`, `update_step`; `jax/example_libraries/optimizers.py`,
`sgd`, `momentum` and `adam`, which are written as PyTorch's.
"""

from collections.abc import Callable, Mapping
from math import sqrt
from typing import NamedTuple

import numpy as np

from multirnn.parity import Batch, Optimiser
from multirnn.weights import Array
from multirnn_numpy.layer import NumpyLayer

__all__ = ["STEPS", "Scalars", "default_epsilon", "train"]


class Scalars(NamedTuple):
    """The factors of a step other than the learning rate, rounded as the framework holds them."""

    momentum: float  # of the optimiser
    correction_1: float  # of Adam's bias, 1 - beta^t for t = 1, 2, …
    correction_2: float


Step = Callable[[Optimiser, Scalars, Array, Array, Array, Array], None]
"""One step in place: the weight w from its gradient g and the running means m and v, which begin at zero."""


def _sgd(o: Optimiser, s: Scalars, w: Array, g: Array, m: Array, v: Array) -> None:
    w -= o.learning_rate * g


def _momentum(o: Optimiser, s: Scalars, w: Array, g: Array, m: Array, v: Array) -> None:
    m[...] = s.momentum * m + g
    w -= o.learning_rate * m


def _momentum_of_steps(o: Optimiser, s: Scalars, w: Array, g: Array, m: Array, v: Array) -> None:
    # m contains the learning rate: the same steps while that is constant. A change affects later gradients only, and in
    # PyTorch's form the remains of earlier ones too.
    m[...] = s.momentum * m - o.learning_rate * g
    w += m


def _moments(o: Optimiser, g: Array, m: Array, v: Array) -> None:
    m[...] = o.beta_1 * m + (1 - o.beta_1) * g
    v[...] = o.beta_2 * v + (1 - o.beta_2) * g**2


def _adam(o: Optimiser, s: Scalars, w: Array, g: Array, m: Array, v: Array) -> None:
    # Kingma and Ba 2015 (arXiv:1412.6980), algorithm 1: epsilon is added after the bias correction.
    _moments(o, g, m, v)
    w -= o.learning_rate * (m / s.correction_1) / (np.sqrt(v / s.correction_2) + o.epsilon)


def _adam_epsilon_hat(o: Optimiser, s: Scalars, w: Array, g: Array, m: Array, v: Array) -> None:
    # The same paper, end of section 2: both corrections in one factor, and epsilon, there with a hat, outside of them.
    _moments(o, g, m, v)
    w -= o.learning_rate * sqrt(s.correction_2) / s.correction_1 * m / (np.sqrt(v) + o.epsilon)


STEPS: Mapping[str, Mapping[str, Step]] = {
    "torch": {"sgd": _sgd, "momentum": _momentum, "adam": _adam},
    "keras": {"sgd": _sgd, "momentum": _momentum_of_steps, "adam": _adam_epsilon_hat},
}
"""By framework, then by optimiser."""


@np.errstate(all="ignore")
def train(
    layer: NumpyLayer, batch: Batch, optimiser: Optimiser, steps: int, *, form: str = "torch", scalars: str = ""
) -> Array:
    """Train the stack in place, by the formula of `form`; see `multirnn.protocol.Trains`.

    `scalars` is the dtype in which JAX and Keras compute Adam's bias corrections, from numbers that TensorFlow has
    rounded to float32. By default they are Python's floats, as in PyTorch.
    """
    step = STEPS[form][optimiser.name]
    native = layer.native
    parameters = native.parameters
    x, padded = batch.x.swapaxes(0, 1), ~batch.valid.T[..., None]
    zero = np.zeros((len(list(native.spec.passes)), len(batch.x), native.spec.hidden_size), native.spec.dtype)
    state = [zero] * len(native.spec.form.states)
    m, v = ({name: np.zeros_like(array) for name, array in parameters.items()} for _ in range(2))
    losses = []
    for t in range(1, steps + 1):
        sequence, _, passes = native.forward(x, state, padded)
        loss, slope = batch.loss(sequence.swapaxes(0, 1))
        gradients, _, _ = native.backward(passes, slope.swapaxes(0, 1), state)
        held = _scalars(optimiser, t, scalars)
        for name, array in parameters.items():
            step(optimiser, held, array, gradients[name], m[name], v[name])
        losses.append(loss)
    return np.array(losses, layer.spec.dtype)


def _scalars(o: Optimiser, t: int, dtype: str) -> Scalars:
    if not dtype:
        return Scalars(o.momentum, 1 - o.beta_1**t, 1 - o.beta_2**t)
    kind = np.dtype(dtype).type
    momentum, beta_1, beta_2 = (kind(np.float32(value)) for value in (o.momentum, o.beta_1, o.beta_2))
    return Scalars(float(momentum), float(1 - beta_1 ** kind(t)), float(1 - beta_2 ** kind(t)))


def default_epsilon() -> float:
    """As in PyTorch and JAX, whose formula this is."""
    return Optimiser("adam", learning_rate=1).epsilon
