"""Contenders that time a layer beside its counterpart in one process; `overhead.py` judges the ratios.

The timed call is the counterpart; the call from NumPy to NumPy, timed in turns with it, is the layer's. The counterpart
of a layer called with NumPy arrays is its native object called by hand; that of one long call, calls of 100 steps each.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from multirnn_bench.ours import Ours

import multirnn as mr
from multirnn.layer import FAST, NATIVE, Implementation
from multirnn.protocol import Prepared, Work

Run = Callable[[Any], tuple[Any, Any]]
STEPS = 100


def numpy_by_hand(native: Any) -> Run:
    def run(x: Any) -> tuple[Any, Any]:  # time first
        y, (h, *_), _ = native.forward(x.swapaxes(0, 1), [np.zeros((1, len(x), native.spec.hidden_size), x.dtype)])
        return y.swapaxes(0, 1), h

    return run


def torch_by_hand(native: Any) -> Run:
    import torch

    def run(x: Any) -> tuple[Any, Any]:
        with torch.inference_mode():
            y, h = native(torch.from_numpy(x))
        return y.numpy(), h.numpy()

    return run


def jax_by_hand(native: Any) -> Run:
    import jax

    apply = jax.jit(native.apply)

    def run(x: Any) -> tuple[Any, Any]:
        y, state = apply(native.params, x)
        return np.asarray(y), np.asarray(state.h)

    return run


def onnxruntime_by_hand(native: Any) -> Run:
    def run(x: Any) -> tuple[Any, Any]:  # time first
        batch, time, hidden = x.shape  # as many features as units
        lengths, zero = np.full(batch, time, np.int32), np.zeros((1, batch, hidden), x.dtype)
        y, h = native.session.run(None, {"x": x.swapaxes(0, 1), "lengths": lengths, "h_0": zero})
        return y.swapaxes(0, 1), h

    return run


@dataclass(frozen=True)
class Counterpart:
    """A `Contender`, described by data."""

    name: str
    backend: str
    refuses: Callable[[Work], str | None]
    prepare: Callable[[Work, int], Prepared]
    kind: str = "peer"

    def versions(self) -> Mapping[str, str]:
        """The versions of the backend."""
        return mr.backend(self.backend).versions()


def by_hand(backend: str, implementation: Implementation, write: Callable[[Any], Run]) -> Counterpart:
    def refuses(work: Work) -> str | None:
        spec = work.weights.spec
        if spec.cell != "simple_rnn" or spec.input_size != spec.hidden_size or work.x.shape[1] > STEPS:
            return f"written for a simple RNN of one layer, as many features as units, at most {STEPS} steps"
        return None if work.mode == "inference" else "written for inference"

    def prepare(work: Work, threads: int) -> Prepared:
        layer = mr.build(work.weights, backend, implementation=implementation)
        run, x = write(layer.native), work.x

        def result() -> mr.Output:
            y, h = run(x)
            return mr.Output(np.ascontiguousarray(y), mr.State(np.ascontiguousarray(h)))

        return Prepared(lambda: run(x), result, lambda: layer(x))

    name = backend if implementation == "native" else f"{backend} {implementation}"
    return Counterpart(f"{name} by hand", backend, refuses, prepare)


def in_parts(backend: str) -> Counterpart:
    name = f"{backend} fast in calls of {STEPS} steps"

    def refuses(work: Work) -> str | None:
        time = work.x.shape[1]
        if work.mode == "inference" and time > STEPS and time % STEPS == 0:
            return None
        return f"for inference over more than {STEPS} steps, a multiple of them"

    def prepare(work: Work, threads: int) -> Prepared:
        ours = Ours(backend, "fast", name)
        part = ours.prepare(replace(work, x=np.ascontiguousarray(work.x[:, :STEPS])), threads).call
        whole, parts = ours.prepare(work, threads), work.x.shape[1] // STEPS

        def call() -> None:
            for _ in range(parts):
                part()

        return Prepared(call, whole.result, whole.call)

    return Counterpart(name, backend, refuses, prepare)


CONTENDERS = (
    by_hand("numpy", "native", numpy_by_hand),
    *(by_hand("torch", implementation, torch_by_hand) for implementation in (NATIVE, FAST)),
    *(by_hand("jax", implementation, jax_by_hand) for implementation in (NATIVE, FAST)),
    by_hand("onnxruntime", "native", onnxruntime_by_hand),
    *map(in_parts, ("numpy", "torch", "keras", "jax")),
)
