"""A stack in JAX: how it is built, compiled and run, and its gradients. No spec is refused."""

from collections.abc import Callable
from functools import lru_cache, partial
from operator import is_
from typing import Any

import jax
import numpy as np

from multirnn import Gradients, Output, RecurrentSpec, State, Weights
from multirnn.boundary import BoundaryLayer, Inputs
from multirnn.weights import Array
from multirnn_jax.loop import Params, Recurrence, check_params
from multirnn_jax.weights import disturbed, place, read, scope

__all__ = ["Compiled", "JaxLayer", "build", "compiled", "refuses"]

Options = tuple[tuple[str, Any], ...]


def refuses(spec: RecurrentSpec) -> str | None:
    """None: the cells are written out here, for every spec."""
    return None


def build(weights: Weights, device: str | None) -> "JaxLayer":
    """The layer of these weights; `InvalidCall` if JAX has no such device here."""
    return JaxLayer(Recurrence(weights.spec, place(weights, device)))


class Compiled:
    """The function of a spec and its gradients, compiled at the first call of a shape. `compiled` caches instances.

    The spec is bound: as a static argument it would take JAX 10 µs to look up when memory is cold. `run` returns the
    sequence, h and c, whose records would take JAX 3 µs; `pull_back` takes the same arguments and a cotangent.
    """

    def __init__(self, spec: RecurrentSpec, apply: Callable[..., Output], options: Options) -> None:
        def run(params: Params, x: Any, state: State | None, lengths: Any) -> tuple[Any, Any, Any]:
            sequence, final = apply(spec, params, x, state, lengths)
            return sequence, final.h, final.c

        def pull_back(params: Params, x: Any, state: State, lengths: Any, cotangent: Output) -> Gradients:
            _, back = jax.vjp(lambda params, x, state: apply(spec, params, x, state, lengths), params, x, state)
            return Gradients(*back(cotangent))

        self._made_of = spec, apply, options
        compile: Any = partial(jax.jit, compiler_options=dict(options) or None)
        self.run: Callable[..., tuple[Any, Any, Any]] = compile(run)
        self.pull_back: Callable[..., Gradients] = compile(pull_back)

    def __reduce__(self) -> Any:
        return compiled, self._made_of  # compiled functions can be neither pickled nor copied


@lru_cache(maxsize=256)
def compiled(spec: RecurrentSpec, apply: Callable[..., Output], options: Options) -> Compiled:
    """The `Compiled` that all layers of a spec share; `apply` takes the spec first, `options` are XLA's."""
    return Compiled(spec, apply, options)


class JaxLayer(BoundaryLayer):
    """A stack as one compiled function over a pytree of parameters.

    It is compiled at the first call of a shape, and once for all layers of a spec. It runs where `native.params` are,
    sharded if they are. On the CPU the results are read-only views of JAX's arrays.

    Args:
        native: the function and its parameters; assign new parameters to `native.params`.
    """

    inside = "layer.native.apply(layer.native.params, x, state, lengths)"

    def __init__(self, native: Recurrence) -> None:
        super().__init__(native.spec)
        self._native = native
        # mypy knows `apply` as a function, and it is a `partial` of one.
        self._apply: Callable[..., Output] = native.apply.func  # type: ignore[attr-defined]
        self._compiled = compiled(native.spec, self._apply, ())
        # Whether `scope`, which takes 3 µs, has no effect, and no number of rows has options of its own.
        self._short = native.spec.dtype == "float32"
        self._seen: list[Any] = []

    @property
    def native(self) -> Recurrence:
        """The pure function `native.apply` and the pytree `native.params`."""
        return self._native

    @property
    def parameter_count(self) -> int:
        """The sizes of the pytree's leaves, added up."""
        return sum(leaf.size for leaf in jax.tree.leaves(self._native.params))

    def weights(self) -> Weights:
        """The parameters as they are now, copied; `InvalidWeights` if `native.params` are no longer the spec's."""
        return read(self._native)

    def params(self) -> Params:
        """The parameters as they are now; `InvalidCall` unless they are the spec's: compiled functions would cast them."""
        params, seen = self._native.params, self._seen
        if len(params) != len(seen) or not all(map(is_, params.values(), seen)):
            check_params(self.spec, params)
            self._seen = list(params.values())
        return params

    def compiler_options(self, batch: int) -> dict[str, Any]:
        """XLA's options for so many rows; empty for its defaults."""
        return {}

    def compiled(self, batch: int) -> Compiled:
        """The functions for so many rows."""
        options = self.compiler_options(batch)
        return compiled(self.spec, self._apply, tuple(options.items())) if options else self._compiled

    def run(self, inputs: Inputs) -> Output:
        """See `BoundaryLayer.run`."""
        with scope(self.spec):
            state = inputs.state if inputs.state_given else None  # passing zeros costs 10 µs
            return _output(*self.compiled(len(inputs.x)).run(self.params(), inputs.x, state, inputs.lengths))

    def run_from_zero(self, x: Array) -> Output:
        """See `Boundary.run_from_zero`."""
        if not self._short or disturbed():
            return super().run_from_zero(x)
        return _output(*self._compiled.run(self.params(), x, None, None))

    def pull_back(self, inputs: Inputs, cotangent: Output) -> Gradients:
        """See `BoundaryLayer.pull_back`; one compiled function goes forward and backward."""
        with scope(self.spec):
            arguments = self.params(), inputs.x, inputs.state, inputs.lengths, cotangent
            found = self.compiled(len(inputs.x)).pull_back(*arguments)
            weights = {name: np.asarray(found.weights[name]) for name in self.spec.shapes}  # JAX sorts dictionaries
            return Gradients(weights, np.asarray(found.x), State(*map(np.asarray, found.state.parts)))


def _output(sequence: Any, h: Any, c: Any) -> Output:
    return Output(np.asarray(sequence), State(np.asarray(h), None if c is None else np.asarray(c)))
