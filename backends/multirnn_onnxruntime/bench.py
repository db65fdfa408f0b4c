"""Timing of ONNX Runtime layers: the session on arrays with time first, inputs and outputs bound once."""

from typing import Any

import numpy as np

from multirnn import Output, State
from multirnn.protocol import Prepared, Work
from multirnn_onnxruntime.layer import OnnxRuntimeLayer
from multirnn_onnxruntime.session import OnnxStack, settle, steps

__all__ = ["prepare"]


def prepare(layer: OnnxRuntimeLayer, work: Work, threads: int) -> Prepared:
    """See `multirnn.protocol.Timed`; the modes "inference" and "streaming".

    "streaming" alternates between two bindings, each of which starts from the other's final state.
    """
    spec = layer.spec
    native = OnnxStack(layer.native.model, threads=threads)
    batch, time, _ = work.x.shape
    x: Any = np.ascontiguousarray(work.x.swapaxes(0, 1))
    lengths: Any = steps(work.lengths, batch, time)
    y = np.empty((time, batch, spec.output_size), spec.dtype)
    shape = (spec.num_layers * len(spec.directions), batch, spec.hidden_size)
    start, end = ([np.zeros(shape, spec.dtype) for _ in spec.form.states] for _ in range(2))
    forth = native.bound(spec, [x, lengths, *start], [y, *end])
    same = OnnxRuntimeLayer(layer.weights(), native)

    def result() -> Output:
        forth()
        settle(y, end, start, work.lengths)
        return Output(y.swapaxes(0, 1).copy(), State(*(part.copy() for part in end)))

    plan = "operators of ONNX Runtime, on arrays bound to the session once"
    if work.mode == "inference":
        return Prepared(forth, result, lambda: same(work.x, lengths=work.lengths), plan)
    turns = [forth, native.bound(spec, [x, lengths, *end], [y, *start])]

    def step() -> None:
        turns.reverse()
        turns[0]()

    stream = same.stream()
    return Prepared(step, result, lambda: stream(work.x), plan)
