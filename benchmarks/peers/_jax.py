"""The four modes of a contender that is a pure function in JAX."""

from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import numpy as np

import multirnn as mr
from multirnn.protocol import SGD_RATE, Prepared, Work


def versions(*packages: str) -> Mapping[str, str]:
    """Of JAX, of its compiler and of these packages."""
    return {package: version(package) for package in ("jax", "jaxlib", *packages)}


def prepared(
    work: Work,
    forward: Callable[[Any, Any, Any], Any],
    parameters: Any,
    zero: Any,
    output: Callable[[Any], mr.Output],
    carried: Callable[[mr.State], Any],
    canonical: Callable[[Any], Mapping[str, Any]],
) -> Prepared:
    """One jitted function of each mode; how many threads it takes, JAX decides by the cores that it is bound to.

    Args:
        work: what is computed.
        forward: of parameters, x and a state: the sequence, batch first, and the final state.
        parameters: of `forward`.
        zero: the initial state, as `forward` takes it.
        output: what `forward` returned, in NumPy.
        carried: a state, as `forward` returns one.
        canonical: parameters, or their gradients, by canonical names.
    """
    import jax
    import jax.numpy as jnp

    x = jnp.asarray(work.x)

    def ready(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
        return lambda: jax.block_until_ready(function(*arguments))

    if work.mode == "inference":
        call = ready(jax.jit(forward), parameters, x, zero)
        return Prepared(call, lambda: output(call()))
    if work.mode == "streaming":
        step, last = jax.jit(forward), [zero]

        def stream() -> Any:
            found = jax.block_until_ready(step(parameters, x, last[0]))
            last[0] = found[1]
            return found

        return Prepared(stream, lambda: output(stream()))
    if work.mode == "gradients":
        assert work.cotangent is not None
        cotangent = jnp.asarray(work.cotangent.sequence), carried(work.cotangent.state)

        def pulled(parameters: Any, x: Any, cotangent: Any) -> Any:
            return jax.vjp(lambda p, x: forward(p, x, zero), parameters, x)[1](cotangent)

        call = ready(jax.jit(pulled), parameters, x, cotangent)

        def gradients() -> mr.Gradients:
            dp, dx = call()
            return mr.Gradients(canonical(dp), np.asarray(dx), None)  # type: ignore[arg-type]

        return Prepared(call, gradients)

    def descend(parameters: Any, x: Any, target: Any) -> Any:
        slope = jax.grad(lambda p: jnp.mean((forward(p, x, zero)[0] - target) ** 2))(parameters)
        return jax.tree.map(lambda p, dp: p - SGD_RATE * dp, parameters, slope)

    trained, target = [parameters], jnp.asarray(work.target)
    update = jax.jit(descend, donate_argnums=0)

    def train() -> Any:
        trained[0] = jax.block_until_ready(update(trained[0], x, target))
        return trained[0]

    return Prepared(train, lambda: canonical(train()))
