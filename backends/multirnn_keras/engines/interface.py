"""`Engine`: what the Keras backend asks of TensorFlow, JAX or PyTorch beyond `keras.ops`.

It is given three kinds of functions:

    apply(mask, primals)                        runs Keras layers over tensors, with their variables as they are at the call
    run(form, primals, mask)                    a fast loop: its outputs, and tensors kept for `pull`
    pull(form, primals, mask, kept, cotangents) the gradients of the primals of `run`

The mask is `(batch, time)`, bool, or None. The primals are a sequence `(batch, time, …)`, the weights (of `run` alone), and
the parts of the state, which have no time axis.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal

import keras
import numpy as np

from multirnn.weights import Array

__all__ = ["Apply", "Call", "Engine", "Mask", "Per", "Plain", "Pull", "Run", "Step", "Tensors", "holding"]

Tensors = list[Any]
Mask = np.ndarray[Any, np.dtype[np.bool_]] | None
Call = Callable[..., list[Array]]
Apply = Callable[[Any, Tensors], Tensors]
Run = Callable[[Any, Sequence[Any], Any], tuple[Tensors, Tensors]]
Pull = Callable[[Any, Sequence[Any], Any, Sequence[Any], Sequence[Any]], Tensors]
Plain = Callable[[Sequence[Any], Any], Tensors]
Step = Callable[[Tensors, Tensors], tuple[Tensors, Tensors]]

Per = Literal["call", "shape", "batch"]
"""Compile nothing, or one function for each shape, or one for each batch size that fits any length."""


class Engine:
    """An engine; an instance of this class itself is one without gradients, for which no layer is built."""

    compiles = True
    timed = loops = ""  # how the calls of a benchmark run, and the fast loops, in words
    nn: Any  # has `tanh`, `sigmoid` and `relu`
    concatenate: Any  # these four as in `keras.ops`, without its overhead
    where: Any
    stack: Any
    unstack: Any

    def affine(self, p: Any, h: Any, matrix: Any) -> Any:
        """`p + h @ matrix`."""
        return p + h @ matrix

    def device_count(self, kind: str) -> int:
        """How many devices there are of a kind: "cpu", "gpu" or "tpu"."""
        return int(kind == "cpu")

    def use_threads(self, count: int) -> None:
        """Limits the threads, if the engine can once it is loaded."""

    def confirming(self) -> AbstractContextManager[Any]:
        """Computes exactly, recorded by no tape, and resets the engine's random generators afterwards."""
        return nullcontext()

    def copied(self, variable: Any) -> Array:
        """A copy of a variable's value."""
        return np.array(keras.ops.convert_to_numpy(variable.value))

    def vjp(self, apply: Apply, variables: Sequence[Any], mask: Any, primals: Tensors, cotangents: Tensors) -> Tensors:
        """The gradients of the variables and of the primals; zero where `apply` does not depend on them.

        There may be more cotangents than outputs.
        """
        raise NotImplementedError

    def compiled(self, function: Callable[..., Any], variables: Sequence[Any]) -> Callable[..., Any]:
        """A function of tensors that reads these variables, compiled; it returns when it has computed."""
        raise NotImplementedError

    def call(self, function: Any, variables: Sequence[Any], per: Per, eager_first: bool, backward: bool) -> Call:
        """A function of a mask and of lists of tensors, which computes gradients or not, as one of arrays; see `calls`."""
        raise NotImplementedError

    def calls(
        self, apply: Apply, variables: Sequence[Any], per: Per, *, eager_first: bool = False
    ) -> tuple[Call, Callable[..., tuple[list[Array], list[Array]]]]:
        """`apply(mask, primals)` as a function of arrays, and `pullback(mask, primals, cotangents)`.

        The pullback returns the gradients of `variables`, which are all that `apply` reads, and those of the primals.
        With `eager_first` TensorFlow runs short calls without compiling.
        """
        forward = self.call(apply, variables, per, eager_first, backward=False)
        vjp = partial(self.vjp, apply, variables)
        backward = self.call(vjp, variables, per, eager_first, backward=True)

        def pullback(mask: Mask, primals: Sequence[Array], cotangents: Sequence[Array]) -> Any:
            found = backward(mask, primals, cotangents)
            return found[: len(variables)], found[len(variables) :]

        return forward, pullback

    def training_step(self, loss: Callable[[], Any], variables: Sequence[Any], optimiser: Any) -> Callable[[], Any]:
        """A step of a Keras optimiser, compiled if the engine compiles; it returns the loss."""
        raise NotImplementedError

    def differentiated(self, run: Run, pull: Pull, form: Any, primals: Sequence[Any], mask: Any) -> Tensors:
        """The outputs of `run`, with gradients by `pull`; the engine itself differentiates those again.

        `form` is hashable, and the last `form.states` primals are states. The primals are tensors or variables.
        """
        raise NotImplementedError

    def scan(self, step: Step, states: Tensors, given: Tensors, count: int, reverse: bool) -> tuple[Tensors, Tensors]:
        """Run a step over the first axis of tensors, `(time, …)` each, or from the end of it.

        `step` maps the states and its own slices of `given` to the new states and `count` results. Found are the states
        after the last step, and the results, `(time, …)` each.
        """
        steps = list(zip(*map(self.unstack, given), strict=True))
        rows = []
        for row in reversed(steps) if reverse else steps:
            states, found = step(states, list(row))
            rows.append(found)
        if reverse:
            rows.reverse()
        return states, [self.stack(column) for column in zip(*rows, strict=True)]


def holding(variables: Sequence[Any], values: Sequence[Any]) -> Any:
    """A scope in which Keras variables have these values, and assignments to them are forgotten."""
    return keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True)))
