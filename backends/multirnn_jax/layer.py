"""A stack realised by JAX: how it is built and run, and its gradients. Nothing is refused."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from multirnn import BoundaryLayer, Gradients, Inputs, Output, RecurrentSpec, State, Weights
from multirnn_jax.apply import Params, Recurrence, apply
from multirnn_jax.weights import read, recurrence, width

__all__ = ["JaxLayer", "build", "refuses"]


def refuses(spec: RecurrentSpec) -> str | None:
    """None: the cells are written out, so there is no spec that is not realised."""
    return None


def build(weights: Weights, device: str | None) -> "JaxLayer":
    """The layer of these weights.

    Raises:
        InvalidCall: JAX has no such device here.
    """
    return JaxLayer(recurrence(weights, device))


class Compiled(NamedTuple):
    """An `apply` and its gradients, compiled at the first call of a shape, and once for all layers of a spec.

    Attributes:
        run: `apply` itself.
        pull_back: of the same arguments, all given, and a cotangent; it goes forward and back.
    """

    run: Callable[..., Output]
    pull_back: Callable[..., Gradients]

    @classmethod
    def of(cls, apply: Callable[..., Output], options: dict[str, Any] | None = None) -> "Compiled":
        """With these options of XLA's compiler."""

        def pull_back(
            spec: RecurrentSpec, params: Params, x: Any, state: State, lengths: Any, cotangent: Output
        ) -> Gradients:
            _, back = jax.vjp(lambda params, x, state: apply(spec, params, x, state, lengths), params, x, state)
            return Gradients(*back(cotangent))

        compile = partial(jax.jit, static_argnums=0, compiler_options=options)
        return cls(compile(apply), compile(pull_back))


NATIVE = Compiled.of(apply)


class JaxLayer(BoundaryLayer):
    """A stack realised by one compiled function over a pytree of parameters.

    It is compiled at the first call of a shape, and once for all layers of a spec. It runs where `native.params` are,
    sharded if they are. The arrays that come back on the CPU are views of JAX's, so they are read-only.

    Args:
        native: the function and its parameters; new parameters are assigned to `native.params`.
    """

    def __init__(self, native: Recurrence) -> None:
        super().__init__(native.spec)
        self._native = native

    @property
    def native(self) -> Recurrence:
        """The pure function `native.apply` and the pytree `native.params`."""
        return self._native

    @property
    def parameter_count(self) -> int:
        """The sizes of the pytree's leaves, added up."""
        return sum(leaf.size for leaf in jax.tree.leaves(self._native.params))

    def weights(self) -> Weights:
        """The parameters as they are now, copied.

        Raises:
            InvalidWeights: `native.params` were replaced by something that is not the spec's.
        """
        return read(self._native)

    def compiled(self, batch: int) -> Compiled:
        """What runs for so many rows."""
        return NATIVE

    def compiler_options(self, batch: int) -> dict[str, Any] | None:
        """Of what runs for so many rows; None where they are JAX's own."""
        return None

    def run(self, inputs: Inputs) -> Output:
        """See `BoundaryLayer.run`."""
        with width(self.spec):
            state = inputs.state if inputs.state_given else None  # handing zeros over costs 10 µs
            run = self.compiled(len(inputs.x)).run
            sequence, final = run(self.spec, self._native.params, inputs.x, state, inputs.lengths)
            return Output(np.asarray(sequence), _arrays(final))

    def pull_back(self, inputs: Inputs, cotangent: Output) -> Gradients:
        """See `BoundaryLayer.pull_back`; one compiled function goes forward and back."""
        with width(self.spec):
            arguments = self._native.params, inputs.x, inputs.state, inputs.lengths
            found = self.compiled(len(inputs.x)).pull_back(self.spec, *arguments, cotangent)
            weights = {
                name: np.asarray(found.weights[name]) for name in self.spec.shapes
            }  # a pytree is in alphabetical order
            return Gradients(weights, np.asarray(found.x), _arrays(found.state))


def _arrays(state: State) -> State:
    return State(*[np.asarray(part) for part in state.parts])
