"""Timing of JAX layers: the jitted `apply` on arrays already placed; see `multirnn.protocol`."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from multirnn import Gradients, Output, State
from multirnn.protocol import SGD_RATE, Prepared, Work
from multirnn_jax.layer import JaxLayer
from multirnn_jax.weights import width

__all__ = ["prepare"]


def prepare(layer: JaxLayer, work: Work, threads: int) -> Prepared:
    """See `multirnn.protocol.Timed`; `threads` is unused, since XLA takes as many as the process has cores."""
    with width(layer.spec):
        prepared = PREPARERS[work.mode](layer, work)
    prepared.plan = "a jitted scan"
    return prepared


def _compiled(layer: JaxLayer, function: Any, *arguments: Any, **options: Any) -> Callable[..., Any]:
    """A call of a jitted `function(params, *arguments)` with the current parameters; later arguments may be passed."""
    placed = [jax.tree.map(jnp.asarray, argument) for argument in arguments]
    run = jax.jit(function, compiler_options=layer.compiler_options(len(placed[0])) or None, **options)

    def call(*more: Any) -> Any:
        with width(layer.spec):
            return jax.block_until_ready(run(layer.native.params, *placed, *more))  # type: ignore[no-untyped-call]

    return call


def _inference(layer: JaxLayer, work: Work) -> Prepared:
    call = _compiled(layer, layer.native.apply, work.x, None, work.lengths)
    return Prepared(call, lambda: _numpy(call()), lambda: layer(work.x, lengths=work.lengths))


def _gradients(layer: JaxLayer, work: Work) -> Prepared:
    def gradients(params: Any, x: Any, lengths: Any, cotangent: Any) -> Any:
        _, back = jax.vjp(lambda params, x: layer.native.apply(params, x, None, lengths), params, x)
        return back(cotangent)

    call = _compiled(layer, gradients, work.x, work.lengths, work.cotangent)

    def boundary() -> Gradients:
        assert work.cotangent is not None
        return layer.vjp(work.x, lengths=work.lengths, cotangent=work.cotangent)

    def result() -> Gradients:
        weights, dx = _numpy(call())
        no_state: Any = None  # the zero initial state is a constant
        return Gradients(weights, dx, State(no_state))

    return Prepared(call, result, boundary)


def _training(layer: JaxLayer, work: Work) -> Prepared:
    def step(params: Any, x: Any, lengths: Any, target: Any) -> Any:
        def loss(params: Any) -> Any:
            return jnp.mean((layer.native.apply(params, x, None, lengths).sequence - target) ** 2)

        value, gradients = jax.value_and_grad(loss)(params)
        return value, jax.tree.map(lambda p, g: p - SGD_RATE * g, params, gradients)

    run = _compiled(layer, step, work.x, work.lengths, work.target, donate_argnums=0)

    def call() -> Any:
        loss, layer.native.params = run()
        return loss

    def result() -> Mapping[str, Any]:
        call()
        return layer.weights().arrays

    return Prepared(call, result)


def _streaming(layer: JaxLayer, work: Work) -> Prepared:
    run = _compiled(layer, layer.native.apply, work.x)
    shape = (layer.spec.num_layers, len(work.x), layer.spec.hidden_size)
    zero: list[Any] = [jnp.zeros(shape, layer.spec.dtype) for _ in layer.spec.form.states]
    last = Output(work.x, State(*zero))

    def call() -> Any:
        nonlocal last
        last = run(last.state)
        return last

    stream = layer.stream()
    return Prepared(call, lambda: _numpy(call()), lambda: stream(work.x))


PREPARERS: Mapping[str, Callable[[JaxLayer, Work], Prepared]] = {
    "inference": _inference,
    "gradients": _gradients,
    "training": _training,
    "streaming": _streaming,
}


def _numpy(tree: Any) -> Any:
    return jax.tree.map(np.asarray, tree)
