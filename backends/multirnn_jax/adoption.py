"""A recurrence, or a jitted function of the user's own, behind the calls of a `Layer`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from multirnn import Gradients, InvalidCall, Output, RecurrentSpec, State, Weights
from multirnn.adoption import AdoptedNative, native_spec, noting, takes_state
from multirnn.boundary import Inputs
from multirnn.returned import arranged, output_of, states_of
from multirnn_jax.apply import Params, Recurrence
from multirnn_jax.weights import read, width

__all__ = ["AdoptedJax", "adopt"]


def adopt(native: Any, spec: RecurrentSpec | None, *, compiled: bool) -> "AdoptedJax":
    """Run a recurrence or a function of JAX as it is; see `multirnn.adoption.adopt`.

    Args:
        native: a `multirnn_jax.Recurrence`; or what `jax.jit` made of a function `f(x, h0)`, of an LSTM
            `f(x, (h, c))`, that returns `(y, h)`, `(y, (h, c))` or `y`. It has its parameters in itself:
            `jax.jit(partial(f, params))`.
        spec: what it is held to be.
        compiled: run `jax.jit` of it; what is jitted already is run as it is either way.

    Raises:
        InvalidCall: it is neither, or no spec is known.
    """
    if not (callable(native) or isinstance(native, Recurrence)):
        raise InvalidCall(
            f"the jax backend runs a multirnn_jax.Recurrence or a jitted function f(x, h0), not a {type(native).__name__}"
        )
    spec, readable = native_spec(native, spec, read)
    if isinstance(native, Recurrence) and not readable:
        raise InvalidCall(
            "this Recurrence computes something else than its spec says; adopt the function f(x, h0) that it is now"
        )
    return (
        AdoptedRecurrence(native, spec, compiled=compiled) if readable else AdoptedJax(native, spec, compiled=compiled)
    )


class AdoptedJax(AdoptedNative):
    """A function that JAX traces, of x and the initial state.

    Args:
        native: the function.
        spec: what it is held to be.
        compiled: run it by `jax.jit`.
    """

    differentiable = True

    def __init__(self, native: Any, spec: RecurrentSpec, *, compiled: bool) -> None:
        super().__init__(native, spec, f"{getattr(native, '__name__', type(native).__name__)} (jax)", compiled=compiled)
        self.takes_state = self._takes_state()
        self._run: Callable[..., Any] = jax.jit(self._outputs) if compiled else self._outputs
        self._pull: Callable[..., Any] = jax.jit(self._gradients) if compiled else self._gradients

    @property
    def compilable(self) -> bool:
        """By `jax.jit`."""
        return True

    def run(self, inputs: Inputs) -> Output:
        """See `BoundaryLayer.run`."""
        with width(self.spec), noting(self.title, inputs):
            found = self._run(self._params(), *_on_jax(inputs), inputs.lengths)
        return output_of([np.asarray(array) for array in found], self.spec, self.title)

    def pull_back(self, inputs: Inputs, cotangent: Output) -> Gradients:
        """See `BoundaryLayer.pull_back`."""
        cotangents = [cotangent.sequence, *states_of(cotangent.state)]
        with width(self.spec), noting(self.title, inputs):
            params, x, state = self._pull(self._params(), *_on_jax(inputs), inputs.lengths, cotangents)
        weights = {name: np.asarray(params[name]) for name in self.spec.shapes} if self.readable else {}
        return Gradients(weights, np.asarray(x), State(*(np.asarray(part) for part in state)))

    def _takes_state(self) -> bool:
        return takes_state(self.native)

    def _params(self) -> Params:
        return {}

    def _called(self, params: Params, x: Any, state: list[Any], lengths: Any) -> Any:
        if not self.takes_state:
            return self.native(x)
        return self.native(x, tuple(state) if len(state) == 2 else state[0])

    def _outputs(self, params: Params, x: Any, state: list[Any], lengths: Any) -> list[Any]:
        return arranged(self._called(params, x, state, lengths), x.shape, self.spec, self.title)

    def _gradients(self, params: Params, x: Any, state: list[Any], lengths: Any, cotangents: list[Any]) -> Any:
        def outputs(params: Params, x: Any, state: list[Any]) -> list[Any]:
            return self._outputs(params, x, state, lengths)

        found, pull_back = jax.vjp(outputs, params, x, state)
        given = [dy.astype(y.dtype) for y, dy in zip(found, cotangents, strict=False)]
        return pull_back(given)


class AdoptedRecurrence(AdoptedJax):
    """A recurrence, with the parameters that it has at the time of a call."""

    native: Recurrence
    readable = True
    takes_lengths = True

    @property
    def parameter_count(self) -> int:
        """The sizes of the pytree's leaves, added up."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.native.params))

    def weights(self) -> Weights:
        """The parameters as they are now."""
        return read(self.native)

    def _takes_state(self) -> bool:
        return True

    def _params(self) -> Params:
        return self.native.params

    def _called(self, params: Params, x: Any, state: list[Any], lengths: Any) -> Any:
        return self.native.apply(params, x, State(*state), lengths)


def _on_jax(inputs: Inputs) -> tuple[Any, list[Any]]:
    """The input and the parts of the state, as arrays of JAX."""
    return jnp.asarray(inputs.x), [jnp.asarray(part) for part in states_of(inputs.state)]
