"""Contenders that time a layer beside its counterpart in one process; `overhead.py` judges the ratios.

The timed call is the counterpart. The call from NumPy to NumPy, timed beside it in every round, is the layer's: of a
layer called with NumPy arrays, the same written by hand; of one call of many steps, as many calls of 100 steps.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from multirnn_bench.ours import Ours

import multirnn as mr
from multirnn.protocol import Prepared, Work

Run = Callable[[Any], tuple[Any, Any]]
STEPS = 100


def numpy_by_hand(native: Any) -> Run:
    """`Stack.forward`, which has time first."""

    def run(x: Any) -> tuple[Any, Any]:
        y, (h, *_), _ = native.forward(x.swapaxes(0, 1), [np.zeros((1, len(x), native.spec.hidden_size), x.dtype)])
        return y.swapaxes(0, 1), h

    return run


def torch_by_hand(native: Any) -> Run:
    """The module in inference mode."""
    import torch

    def run(x: Any) -> tuple[Any, Any]:
        with torch.inference_mode():
            y, h = native(torch.from_numpy(x))
        return y.numpy(), h.numpy()

    return run


def jax_by_hand(native: Any) -> Run:
    """The jitted `apply`."""
    import jax

    apply = jax.jit(native.apply)

    def run(x: Any) -> tuple[Any, Any]:
        y, state = apply(native.params, x)
        return np.asarray(y), np.asarray(state.h)

    return run


def onnxruntime_by_hand(native: Any) -> Run:
    """The session, which has time first."""

    def run(x: Any) -> tuple[Any, Any]:
        batch, time, hidden = x.shape  # as many features as units
        lengths, zero = np.full(batch, time, np.int32), np.zeros((1, batch, hidden), x.dtype)
        y, h = native.session.run(None, {"x": x.swapaxes(0, 1), "lengths": lengths, "h_0": zero})
        return y.swapaxes(0, 1), h

    return run


class Counterpart:
    """The counterpart of a backend's layer; a `Contender` when it refuses and prepares."""

    kind = "peer"

    def __init__(self, backend: str, implementation: str, of: str) -> None:
        self.backend, self.implementation = backend, implementation
        self.name = f"{backend if implementation == 'native' else f'{backend} {implementation}'} {of}"

    def versions(self) -> Mapping[str, str]:
        """The versions of the backend."""
        return mr.backend(self.backend).versions()


class ByHand(Counterpart):
    """The layer's native object, called from NumPy to NumPy without a wrapper."""

    def __init__(self, backend: str, implementation: str, write: Callable[[Any], Run]) -> None:
        super().__init__(backend, implementation, "by hand")
        self.write = write

    def refuses(self, work: Work) -> str | None:
        """It is written for one layer of a simple RNN."""
        spec = work.weights.spec
        if spec.cell != "simple_rnn" or spec.input_size != spec.hidden_size or work.x.shape[1] > STEPS:
            return f"written for a simple RNN of one layer, as many features as units, at most {STEPS} steps"
        return None if work.mode == "inference" else "written for inference"

    def prepare(self, work: Work, threads: int) -> Prepared:
        """See `Counterpart`."""
        layer = mr.build(work.weights, self.backend, implementation=self.implementation)
        run, x = self.write(layer.native), work.x

        def result() -> mr.Output:
            y, h = run(x)
            return mr.Output(np.ascontiguousarray(y), mr.State(np.ascontiguousarray(h)))

        return Prepared(lambda: run(x), result, lambda: layer(x))


class InParts(Counterpart):
    """Calls of 100 steps, as many as the input is long."""

    def __init__(self, backend: str) -> None:
        super().__init__(backend, "fast", f"in calls of {STEPS} steps")

    def refuses(self, work: Work) -> str | None:
        """It is for inference of long inputs."""
        time = work.x.shape[1]
        if work.mode == "inference" and time > STEPS and time % STEPS == 0:
            return None
        return f"for inference over more than {STEPS} steps, a multiple of them"

    def prepare(self, work: Work, threads: int) -> Prepared:
        """See `Counterpart`; both are calls of the framework on its own arrays."""
        ours = Ours(self.backend, self.implementation, self.name)
        part = ours.prepare(replace(work, x=np.ascontiguousarray(work.x[:, :STEPS])), threads).call
        whole, parts = ours.prepare(work, threads), work.x.shape[1] // STEPS

        def call() -> None:
            for _ in range(parts):
                part()

        return Prepared(call, whole.result, whole.call)


CONTENDERS = (
    ByHand("numpy", "native", numpy_by_hand),
    *(ByHand("torch", implementation, torch_by_hand) for implementation in ("native", "fast")),
    *(ByHand("jax", implementation, jax_by_hand) for implementation in ("native", "fast")),
    ByHand("onnxruntime", "native", onnxruntime_by_hand),
    *(InParts(backend) for backend in ("numpy", "torch", "keras", "jax")),
)
