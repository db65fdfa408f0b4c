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


def _inference(layer: JaxLayer, work: Work) -> Prepared:
    x, lengths = _place(work.x), _place(work.lengths)
    run = _compile(layer, work, layer.native.apply)

    def call() -> Any:
        with width(layer.spec):
            return _finished(run(layer.native.params, x, None, lengths))

    def boundary() -> Output:
        return layer(work.x, lengths=work.lengths)

    return Prepared(call, lambda: _numpy(call()), boundary)


def _gradients(layer: JaxLayer, work: Work) -> Prepared:
    x, lengths, cotangent = _place(work.x), _place(work.lengths), jax.tree.map(jnp.asarray, work.cotangent)

    def gradients(params: Any, x: Any, lengths: Any, cotangent: Any) -> Any:
        _, back = jax.vjp(lambda params, x: layer.native.apply(params, x, None, lengths), params, x)
        return back(cotangent)

    run = _compile(layer, work, gradients)

    def call() -> Any:
        with width(layer.spec):
            return _finished(run(layer.native.params, x, lengths, cotangent))

    def result() -> Gradients:
        weights, dx = _numpy(call())
        no_state: Any = None  # the zero initial state is a constant
        return Gradients(weights, dx, State(no_state))

    def boundary() -> Gradients:
        assert work.cotangent is not None
        return layer.vjp(work.x, lengths=work.lengths, cotangent=work.cotangent)

    return Prepared(call, result, boundary)


def _training(layer: JaxLayer, work: Work) -> Prepared:
    x, lengths, target = _place(work.x), _place(work.lengths), _place(work.target)

    def step(params: Any, x: Any, lengths: Any, target: Any) -> Any:
        def loss(params: Any) -> Any:
            return jnp.mean((layer.native.apply(params, x, None, lengths).sequence - target) ** 2)

        value, gradients = jax.value_and_grad(loss)(params)
        return value, jax.tree.map(lambda p, g: p - SGD_RATE * g, params, gradients)

    run = _compile(layer, work, step, donate_argnums=0)

    def call() -> Any:
        with width(layer.spec):
            loss, layer.native.params = _finished(run(layer.native.params, x, lengths, target))
        return loss

    def result() -> Mapping[str, Any]:
        call()
        return layer.weights().arrays

    return Prepared(call, result)


def _streaming(layer: JaxLayer, work: Work) -> Prepared:
    x = _place(work.x)
    run = _compile(layer, work, layer.native.apply)
    shape = (layer.spec.num_layers, len(work.x), layer.spec.hidden_size)
    zero: list[Any] = [jnp.zeros(shape, layer.spec.dtype) for _ in layer.spec.form.states]
    last = Output(x, State(*zero))

    def call() -> Any:
        nonlocal last
        with width(layer.spec):
            last = _finished(run(layer.native.params, x, last.state))
        return last

    stream = layer.stream()
    return Prepared(call, lambda: _numpy(call()), lambda: stream(work.x))


PREPARERS: Mapping[str, Callable[[JaxLayer, Work], Prepared]] = {
    "inference": _inference,
    "gradients": _gradients,
    "training": _training,
    "streaming": _streaming,
}


def _compile(layer: JaxLayer, work: Work, function: Callable[..., Any], **more: Any) -> Callable[..., Any]:
    return jax.jit(function, compiler_options=layer.compiler_options(len(work.x)), **more)


def _finished(tree: Any) -> Any:
    return jax.block_until_ready(tree)  # type: ignore[no-untyped-call]


def _place(array: Any) -> Any:
    return None if array is None else jnp.asarray(array)


def _numpy(tree: Any) -> Any:
    return jax.tree.map(np.asarray, tree)
