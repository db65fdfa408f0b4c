"""A stack realised by JAX: how it is built and run, and its gradients. Nothing is refused."""

from collections.abc import Callable
from functools import lru_cache, partial
from operator import is_
from typing import Any

import jax
import numpy as np

from multirnn import Gradients, Output, RecurrentSpec, State, Weights
from multirnn.boundary import BoundaryLayer, Inputs
from multirnn.weights import Array
from multirnn_jax.apply import Params, Recurrence, check_params
from multirnn_jax.weights import disturbed, read, recurrence, scope

__all__ = ["JaxLayer", "build", "compiled", "refuses"]

Options = tuple[tuple[str, Any], ...]


def refuses(spec: RecurrentSpec) -> str | None:
    """None: the cells are written out, so there is no spec that is not realised."""
    return None


def build(weights: Weights, device: str | None) -> "JaxLayer":
    """The layer of these weights.

    Raises:
        InvalidCall: JAX has no such device here.
    """
    return JaxLayer(recurrence(weights, device))


class Compiled:
    """The function of a spec and its gradients, compiled at the first call of a shape; see `compiled`, which keeps them.

    The spec is bound, for where memory is cold a static argument takes JAX 10 µs to look up.

    Attributes:
        run: `apply`, with the sequence, h and c, which may be None, as it returns: to make records of them takes JAX 3 µs.
        pull_back: of the same arguments, all given, and a cotangent; it goes forward and back.
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
        return compiled, self._made_of  # what is compiled can be neither pickled nor copied


@lru_cache(maxsize=256)
def compiled(spec: RecurrentSpec, apply: Callable[..., Output], options: Options) -> Compiled:
    """The one for all layers of a spec.

    Args:
        spec: bound to `apply`.
        apply: `multirnn_jax.apply.apply`, or another with its arguments.
        options: of XLA's compiler.
    """
    return Compiled(spec, apply, options)


class JaxLayer(BoundaryLayer):
    """A stack realised by one compiled function over a pytree of parameters.

    It is compiled at the first call of a shape, and once for all layers of a spec. It runs where `native.params` are,
    sharded if they are. The arrays that come back on the CPU are views of JAX's, so they are read-only.

    Args:
        native: the function and its parameters; new parameters are assigned to `native.params`.
    """

    inside = "layer.native.apply(layer.native.params, x, state, lengths)"

    def __init__(self, native: Recurrence) -> None:
        super().__init__(native.spec)
        self._native = native
        # mypy knows `apply` as a function, and it is a `partial` of one.
        self._compiled = compiled(native.spec, native.apply.func, ())  # type: ignore[attr-defined]
        # Whether `scope` is nothing, which takes 3 µs, and `compiled` the same for any number of rows.
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
        """The parameters as they are now, copied.

        Raises:
            InvalidWeights: `native.params` were replaced by something that is not the spec's.
        """
        return read(self._native)

    def params(self) -> Params:
        """The parameters as they are now, of the spec's shapes and dtype: what is compiled would cast those of NumPy.

        Raises:
            InvalidCall: `native.params` were replaced by something that is not the spec's.
        """
        params, seen = self._native.params, self._seen
        if len(params) != len(seen) or not all(map(is_, params.values(), seen)):
            check_params(self.spec, params)
            self._seen = list(params.values())
        return params

    def compiled(self, batch: int) -> Compiled:
        """What runs for so many rows."""
        return self._compiled

    def compiler_options(self, batch: int) -> dict[str, Any] | None:
        """Of what runs for so many rows; None where they are JAX's own."""
        return None

    def run(self, inputs: Inputs) -> Output:
        """See `BoundaryLayer.run`."""
        with scope(self.spec):
            state = inputs.state if inputs.state_given else None  # handing zeros over costs 10 µs
            run = self.compiled(len(inputs.x)).run
            return _output(*run(self.params(), inputs.x, state, inputs.lengths))

    def run_from_zero(self, x: Array) -> Output:
        """See `Boundary.run_from_zero`."""
        if not self._short or disturbed():
            return super().run_from_zero(x)
        return _output(*self._compiled.run(self.params(), x, None, None))

    def pull_back(self, inputs: Inputs, cotangent: Output) -> Gradients:
        """See `BoundaryLayer.pull_back`; one compiled function goes forward and back."""
        with scope(self.spec):
            arguments = self.params(), inputs.x, inputs.state, inputs.lengths
            found = self.compiled(len(inputs.x)).pull_back(*arguments, cotangent)
            weights = {
                name: np.asarray(found.weights[name]) for name in self.spec.shapes
            }  # a pytree is in alphabetical order
            return Gradients(weights, np.asarray(found.x), _arrays(found.state))


def _output(sequence: Any, h: Any, c: Any) -> Output:
    return Output(np.asarray(sequence), State(np.asarray(h), None if c is None else np.asarray(c)))


def _arrays(state: State) -> State:
    return State(*[np.asarray(part) for part in state.parts])
