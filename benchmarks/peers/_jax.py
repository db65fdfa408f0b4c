"""The four modes of a pure function in JAX, which takes as many threads as the process has cores."""

from collections.abc import Callable, Mapping
from typing import Any

import multirnn as mr
from multirnn.protocol import SGD_RATE, Prepared, Work

from ._peer import flat, gathered, modes

FLOAT32 = "JAX computes in float32 unless the whole process is set to float64"


def jitted(
    work: Work,
    forward: Callable[[Any, Any, Any], Any],  # from parameters, x and a state to the sequence, batch first, and a state
    parameters: Any,
    zero: Any,  # the initial state, a tree of the states of every pass
    canonical: Callable[[Any], Mapping[str, Any]],  # parameters, or their gradients, by canonical names
    *,
    c_first: bool = False,  # a pass has (c, h), not (h, c)
) -> Prepared:
    """One jitted function of each mode."""
    import jax
    import jax.numpy as jnp

    x, step = jnp.asarray(work.x), jax.jit(forward)

    def run(state: Any) -> Any:
        return jax.block_until_ready(step(parameters, x, state))

    def gradients(cotangent: mr.Output) -> Callable[[], Any]:
        states = map(jnp.asarray, flat(cotangent.state, c_first=c_first))
        given = jnp.asarray(cotangent.sequence), jax.tree.unflatten(jax.tree.structure(zero), states)

        @jax.jit
        def pull(parameters: Any, x: Any, given: Any) -> Any:
            return jax.vjp(lambda p, x: forward(p, x, zero), parameters, x)[1](given)

        return lambda: jax.block_until_ready(pull(parameters, x, given))

    def training(target: Any) -> Callable[[], Any]:
        trained, target = parameters, jnp.asarray(target)

        def descend(parameters: Any, x: Any, target: Any) -> Any:
            slope = jax.grad(lambda p: jnp.mean((forward(p, x, zero)[0] - target) ** 2))(parameters)
            return jax.tree.map(lambda p, dp: p - SGD_RATE * dp, parameters, slope)

        update = jax.jit(descend, donate_argnums=0)

        def train() -> Any:
            nonlocal trained
            trained = jax.block_until_ready(update(trained, x, target))
            return trained

        return train

    def output(found: Any) -> mr.Output:
        return gathered(work.weights.spec, found[0], jax.tree.leaves(found[1]), c_first=c_first)

    return modes(work, run, zero, output, canonical, gradients, training)
