"""Timing of Keras layers: the whole stack as a function of tensors, compiled by the engine; see `multirnn.protocol`."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import keras
import numpy as np

from multirnn import Gradients, Output, State
from multirnn.protocol import SGD_RATE, Prepared, Work
from multirnn_keras.cells import ops
from multirnn_keras.engines import engine
from multirnn_keras.fast import FastKerasLayer
from multirnn_keras.kernel import serves
from multirnn_keras.layer import KerasLayer, mask_of
from multirnn_keras.weights import from_variables

__all__ = ["prepare"]


def prepare(layer: KerasLayer, work: Work, threads: int) -> Prepared:
    """See `multirnn.protocol.Timed`; TensorFlow and JAX ignore `threads`, and use those of the process."""
    engine.use_threads(threads)
    prepared = PREPARERS[work.mode](layer, work)
    prepared.plan = engine.timed
    return prepared


def _inference(layer: KerasLayer, work: Work) -> Prepared:
    mask, primals = _placed(layer, work)
    call = partial(_applied(layer, mask, work), *primals)
    return Prepared(call, lambda: _output(call()), lambda: layer(work.x, lengths=work.lengths))


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
    mask, (x, *state) = _placed(layer, work)
    cotangents = _tensors([given.sequence, *given.state.parts])
    variables = layer.native.weights

    def gradients(x: Any, state: Any, cotangents: Any) -> Any:
        return engine.vjp(lambda mask, primals: layer.apply(mask, [*primals, *state]), variables, mask, [x], cotangents)

    call = partial(engine.compiled(gradients, variables), x, state, cotangents)

    def result() -> Gradients:
        *weights, dx = map(ops.convert_to_numpy, call())
        no_state: Any = None  # the zero initial state is a constant
        return Gradients(from_variables(weights, layer.spec).arrays, dx, State(no_state))

    return Prepared(call, result, lambda: layer.vjp(work.x, lengths=work.lengths, cotangent=given))


def _training(layer: KerasLayer, work: Work) -> Prepared:
    mask, primals = _placed(layer, work)
    (target,) = _tensors([work.target])
    variables = layer.native.trainable_variables
    optimiser = keras.optimizers.SGD(SGD_RATE)
    optimiser.build(variables)

    def loss() -> Any:
        return keras.ops.mean(keras.ops.square(layer.apply(mask, primals)[0] - target))

    call = engine.training_step(loss, variables, optimiser)

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
    return apply if at_once else engine.compiled(apply, layer.native.weights)  # the compiled recurrence needs no graph


def _placed(layer: KerasLayer, work: Work) -> tuple[Any, list[Any]]:
    """The mask, and x and a zero state, in tensors."""
    inputs, _ = layer._check(work.x, None, work.lengths)
    mask = mask_of(inputs)
    return None if mask is None else keras.ops.convert_to_tensor(mask), _tensors([work.x, *inputs.state.parts])


def _tensors(arrays: Sequence[Any]) -> list[Any]:
    return [keras.ops.convert_to_tensor(np.array(array)) for array in arrays]


def _output(tensors: Sequence[Any]) -> Output:
    sequence, *state = map(ops.convert_to_numpy, tensors)
    return Output(sequence, State(*state))
