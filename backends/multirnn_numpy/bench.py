"""Timing of NumPy layers, native and fast; see `multirnn.protocol`.

Inference times the layer's stack on arrays in its own layout: `Stack.forward` on arrays with time first, or the compiled
recurrence with bound addresses and allocated outputs. The other modes are called as users call them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from multirnn import Output
from multirnn.protocol import SGD_RATE, Prepared, Work
from multirnn_numpy.fast import FastNumpyLayer
from multirnn_numpy.kernel import CompiledStack
from multirnn_numpy.layer import NumpyLayer, batch_first, padding, time_first

__all__ = ["prepare"]


def prepare(layer: NumpyLayer, work: Work, threads: int) -> Prepared:
    """See `multirnn.protocol.Timed`; the environment sets the threads of NumPy's own products before it is loaded."""
    if isinstance(layer, FastNumpyLayer):
        layer.threads = threads
    prepared = PREPARERS[work.mode](layer, work)
    prepared.plan = "the loops in NumPy"
    return prepared


def _inference(layer: NumpyLayer, work: Work) -> Prepared:
    inputs, _ = layer._check(work.x, None, work.lengths)
    boundary = partial(layer, work.x, lengths=work.lengths)
    stack = layer.stack_for(inputs)
    if isinstance(stack, CompiledStack):
        assert isinstance(layer, FastNumpyLayer)
        bound = stack.bound(inputs, layer.threads)
        return Prepared(bound, bound, boundary)
    x, state = time_first(inputs.x, inputs.state)
    call = partial(stack.forward, np.ascontiguousarray(x), state, padding(inputs))
    return Prepared(call, lambda: Output(*batch_first(*call()[:2])), boundary)


def _gradients(layer: NumpyLayer, work: Work) -> Prepared:
    assert work.cotangent is not None
    call = partial(layer.vjp, work.x, lengths=work.lengths, cotangent=work.cotangent)
    return Prepared(call, call, call)


def _training(layer: NumpyLayer, work: Work) -> Prepared:
    target, parameters = work.target, layer.native.parameters
    assert target is not None
    inputs, _ = layer._check(work.x, None, work.lengths)

    def cotangent_of(output: Output) -> Output:
        dy = output.sequence - target
        dy *= 2 / target.size
        if work.lengths is not None:
            dy *= inputs.valid[..., None]
        return Output(dy, inputs.state)  # zero

    def call() -> None:
        gradients = layer.forward_and_backward(inputs, cotangent_of)
        for name, gradient in gradients.weights.items():
            parameters[name] -= SGD_RATE * gradient

    def result() -> Any:
        call()
        return layer.weights().arrays

    return Prepared(call, result)


def _streaming(layer: NumpyLayer, work: Work) -> Prepared:
    call, first = (partial(layer.stream(), work.x, lengths=work.lengths) for _ in range(2))
    return Prepared(call, first)


PREPARERS: dict[str, Callable[[NumpyLayer, Work], Prepared]] = {
    "inference": _inference,
    "gradients": _gradients,
    "training": _training,
    "streaming": _streaming,
}
