"""A recurrence, or a user's own jitted function, called as a `Layer`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from multirnn import Gradients, InvalidCall, Output, RecurrentSpec, State, Weights
from multirnn.adoption import AdoptedNative, native_spec, noting, takes_state
from multirnn.boundary import Inputs
from multirnn.returned import arranged, output_of
from multirnn_jax.loop import Params, Recurrence
from multirnn_jax.weights import read, width

__all__ = ["AdoptedJax", "adopt"]


def adopt(native: Any, spec: RecurrentSpec | None, *, compiled: bool) -> "AdoptedJax":
    """Run a recurrence or a function of JAX as it is; see `multirnn.adoption.adopt`.

    Args:
        native: a `multirnn_jax.Recurrence`; or a jitted function `f(x, h0)`, of an LSTM `f(x, (h, c))`, that returns
            `(y, h)`, `(y, (h, c))` or `y`, with its parameters bound: `jax.jit(partial(f, params))`.
        spec: its spec; needed for a function.
        compiled: run `jax.jit` of it; a jitted function runs as it is either way.

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
    return AdoptedJax(native, spec, compiled=compiled)


class AdoptedJax(AdoptedNative):
    """A function of x and the initial state that JAX traces; or a recurrence, which is readable and takes lengths."""

    differentiable = True

    def __init__(self, native: Any, spec: RecurrentSpec, *, compiled: bool) -> None:
        super().__init__(native, spec, f"{getattr(native, '__name__', type(native).__name__)} (jax)", compiled=compiled)
        self.readable = self.takes_lengths = isinstance(native, Recurrence)
        self.takes_state = self.readable or takes_state(native)
        self._run: Callable[..., Any] = jax.jit(self._outputs) if compiled else self._outputs
        self._pull: Callable[..., Any] = jax.jit(self._gradients) if compiled else self._gradients

    @property
    def compilable(self) -> bool:
        """By `jax.jit`."""
        return True

    @property
    def parameter_count(self) -> int | None:
        """The sizes of the leaves of a recurrence's pytree, added up."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.native.params)) if self.readable else None

    def weights(self) -> Weights:
        """The parameters of a recurrence as they are now."""
        return read(self.native) if self.readable else super().weights()

    def run(self, inputs: Inputs) -> Output:
        """See `BoundaryLayer.run`."""
        with width(self.spec), noting(self.title, inputs):
            found = self._run(*self._arguments(inputs))
        return output_of([np.asarray(array) for array in found], self.spec, self.title)

    def pull_back(self, inputs: Inputs, cotangent: Output) -> Gradients:
        """See `BoundaryLayer.pull_back`."""
        cotangents = [cotangent.sequence, *cotangent.state.parts]
        with width(self.spec), noting(self.title, inputs):
            params, x, state = self._pull(*self._arguments(inputs), cotangents)
        weights = {name: np.asarray(params[name]) for name in self.spec.shapes} if self.readable else {}
        return Gradients(weights, np.asarray(x), State(*(np.asarray(part) for part in state)))

    def _arguments(self, inputs: Inputs) -> tuple[Params, Any, list[Any], Any]:
        params = self.native.params if self.readable else {}
        return params, jnp.asarray(inputs.x), [jnp.asarray(part) for part in inputs.state.parts], inputs.lengths

    def _outputs(self, params: Params, x: Any, state: list[Any], lengths: Any) -> list[Any]:
        if self.readable:
            result = self.native.apply(params, x, State(*state), lengths)
        elif self.takes_state:
            result = self.native(x, tuple(state) if len(state) == 2 else state[0])
        else:
            result = self.native(x)
        return arranged(result, x.shape, self.spec, self.title)

    def _gradients(self, params: Params, x: Any, state: list[Any], lengths: Any, cotangents: list[Any]) -> Any:
        def outputs(params: Params, x: Any, state: list[Any]) -> list[Any]:
            return self._outputs(params, x, state, lengths)

        found, pull_back = jax.vjp(outputs, params, x, state)
        return pull_back([dy.astype(y.dtype) for y, dy in zip(found, cotangents, strict=False)])
