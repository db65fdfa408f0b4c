"""Timing of Keras layers: the function of the whole stack on tensors, compiled by the engine; see `multirnn.protocol`.

A `tf.function` on TensorFlow, `jax.jit` on JAX; uncompiled on PyTorch.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from multirnn import Gradients, Output, State
from multirnn.protocol import SGD_RATE, Prepared, Work
from multirnn_keras.engine import ENGINE
from multirnn_keras.fast import FastKerasLayer
from multirnn_keras.kernel import serves
from multirnn_keras.layer import KerasLayer, parts_of
from multirnn_keras.weights import from_variables

__all__ = ["prepare"]

Tensors = Sequence[Any]


def prepare(layer: KerasLayer, work: Work, threads: int) -> Prepared:
    """See `multirnn.protocol.Timed`; `threads` is for PyTorch, the other engines take those of the process."""
    if ENGINE == "torch":
        import torch

        torch.set_num_threads(threads)
    prepared = PREPARERS[work.mode](layer, work)
    prepared.plan = {"tensorflow": "a tf.function", "jax": "jitted", "torch": "as it stands"}[ENGINE]
    return prepared


def _inference(layer: KerasLayer, work: Work) -> Prepared:
    mask, primals = _placed(layer, work)
    run = _applied(layer, mask, work)

    def call() -> Any:
        return run(*primals)

    def boundary() -> Output:
        return layer(work.x, lengths=work.lengths)

    return Prepared(call, lambda: _output(call()), boundary)


def _streaming(layer: KerasLayer, work: Work) -> Prepared:
    _, (x, *state) = _placed(layer, work)
    run = _applied(layer, None, work)

    def call() -> Any:
        nonlocal state
        sequence, *state = run(x, *state)
        return [sequence, *state]

    stream = layer.stream()
    return Prepared(call, lambda: _output(call()), lambda: stream(work.x))


def _gradients(layer: KerasLayer, work: Work) -> Prepared:
    assert work.cotangent is not None
    given = work.cotangent
    mask, primals = _placed(layer, work)
    cotangents = _tensors([given.sequence, *parts_of(given.state)])
    variables = layer.native.weights

    def gradients(x: Any, *rest: Any) -> Any:
        state, cotangents = rest[: len(primals) - 1], rest[len(primals) - 1 :]
        return _pulled_back(lambda x: layer.apply(mask, [x, *state]), variables, x, cotangents)

    run = _compiled(layer, gradients)

    def call() -> Any:
        return run(*primals, *cotangents)

    def result() -> Gradients:
        *weights, dx = _arrays(call())
        no_state: Any = None  # the zero initial state is a constant
        return Gradients(from_variables(weights, layer.spec).arrays, dx, State(no_state))

    def boundary() -> Gradients:
        return layer.vjp(work.x, lengths=work.lengths, cotangent=given)

    return Prepared(call, result, boundary)


def _training(layer: KerasLayer, work: Work) -> Prepared:
    mask, primals = _placed(layer, work)
    (target,) = _tensors([work.target])
    variables = layer.native.trainable_variables
    optimiser = keras.optimizers.SGD(SGD_RATE)
    optimiser.build(variables)
    step = {"tensorflow": _step_of_tensorflow, "jax": _step_of_jax, "torch": _step_of_torch}[ENGINE]
    call = step(lambda: layer.apply(mask, primals)[0], target, variables, optimiser)

    def result() -> Mapping[str, Any]:
        call()
        return layer.weights().arrays

    return Prepared(call, result)


PREPARERS: Mapping[str, Callable[[KerasLayer, Work], Prepared]] = {
    "inference": _inference,
    "gradients": _gradients,
    "training": _training,
    "streaming": _streaming,
}


def _applied(layer: KerasLayer, mask: Any, work: Work) -> Callable[..., Any]:
    def apply(*primals: Any) -> Any:
        return layer.apply(mask, list(primals))

    batch, time, _ = work.x.shape
    at_once = isinstance(layer, FastKerasLayer) and serves(layer.spec, None, batch, time)
    return apply if at_once else _compiled(layer, apply)  # the compiled recurrence needs no graph


def _placed(layer: KerasLayer, work: Work) -> tuple[Any, list[Any]]:
    """The mask, and x and a zero state, in tensors."""
    spec = layer.spec
    batch, time, _ = work.x.shape
    state = np.zeros((spec.num_layers * len(spec.directions), batch, spec.hidden_size), spec.dtype)
    mask = None if work.lengths is None else keras.ops.convert_to_tensor(np.arange(time) < work.lengths[:, None])
    return mask, _tensors([work.x, *(state for _ in spec.form.states)])


def _tensors(arrays: Sequence[Any]) -> list[Any]:
    return [keras.ops.convert_to_tensor(np.array(array)) for array in arrays]


def _arrays(tensors: Tensors) -> list[Any]:
    return [keras.ops.convert_to_numpy(tensor) for tensor in tensors]


def _output(tensors: Tensors) -> Output:
    sequence, *state = _arrays(tensors)
    return Output(sequence, State(*state))


# --- The engines -----------------------------------------------------------------------------------------------------


def _compiled(layer: KerasLayer, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of tensors compiled; when it returns it has computed. It reads the layer's variables at each call."""
    if ENGINE == "tensorflow":
        import tensorflow as tf

        return tf.function(function, autograph=False)  # type: ignore[no-any-return]  # a processor's calls return when done
    if ENGINE == "jax":
        import jax

        variables = layer.native.weights

        def pure(values: Tensors, *primals: Any) -> Any:
            with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
                return function(*primals)

        jitted = jax.jit(pure)
        finished: Any = jax.block_until_ready
        return lambda *primals: finished(jitted([v.value for v in variables], *primals))
    import torch

    def run(*primals: Any) -> Any:
        with torch.inference_mode(function.__name__ != "gradients"):
            return function(*primals)

    return run


def _pulled_back(function: Callable[[Any], Any], variables: Tensors, x: Any, cotangents: Tensors) -> list[Any]:
    """The gradients of the variables and of x."""
    if ENGINE == "tensorflow":
        import tensorflow as tf

        values = [variable.value for variable in variables]
        with tf.GradientTape() as tape:
            tape.watch(x)
            found = function(x)
        return list(tape.gradient(found, [*values, x], list(cotangents)))
    if ENGINE == "jax":
        import jax

        def pure(values: Tensors, x: Any) -> Any:
            with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
                return function(x)

        _, back = jax.vjp(pure, [variable.value for variable in variables], x)
        weights, dx = back(list(cotangents))
        return [*weights, dx]
    import torch

    x = x.detach().requires_grad_()
    return list(torch.autograd.grad(function(x), [*(v.value for v in variables), x], list(cotangents)))


def _step_of_tensorflow(function: Callable[[], Any], target: Any, variables: Any, optimiser: Any) -> Any:
    import tensorflow as tf

    @tf.function(autograph=False)  # type: ignore[untyped-decorator]
    def step() -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(function() - target))
        optimiser.apply(tape.gradient(loss, [variable.value for variable in variables]), variables)
        return loss

    return step


def _step_of_jax(function: Callable[[], Any], target: Any, variables: Any, optimiser: Any) -> Any:
    import jax

    def loss(values: Tensors) -> Any:
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return jax.numpy.mean((function() - target) ** 2)

    @jax.jit
    def step(values: Tensors, state: Tensors) -> Any:
        value, gradients = jax.value_and_grad(loss)(values)
        return value, optimiser.stateless_apply(state, gradients, values)

    finished: Any = jax.block_until_ready

    def call() -> Any:
        given = [variable.value for variable in variables], [variable.value for variable in optimiser.variables]
        value, (values, state) = finished(step(*given))
        for variable, new in zip([*variables, *optimiser.variables], [*values, *state], strict=True):
            variable.assign(new)
        return value

    return call


def _step_of_torch(function: Callable[[], Any], target: Any, variables: Any, optimiser: Any) -> Any:
    import torch

    def call() -> Any:
        values = [variable.value for variable in variables]
        loss = torch.mean((function() - target) ** 2)
        gradients = torch.autograd.grad(loss, values)
        with torch.no_grad():
            optimiser.apply(list(gradients), variables)
        return loss

    return call
