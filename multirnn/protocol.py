"""What a benchmark asks of a backend: `Work` to do, `Prepared` in answer, and `Timed`, the ability itself.

`Work` names a computation in canonical weights and NumPy arrays. `Prepared` is a call without arguments to be timed, and
its result to be verified first. Backends and peers answer the same question, so none is timed in a way of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from multirnn.layer import Lengths, Output
from multirnn.weights import Array, Weights

__all__ = ["MODES", "SGD_RATE", "Prepared", "Timed", "Work"]

MODES = ("inference", "gradients", "training", "streaming")

SGD_RATE = 0.01
"""Learning rate of the SGD step that the mode "training" times."""


@dataclass(frozen=True)
class Work:
    """One computation in one mode. The initial state is zero.

    "inference": the sequence and the final state of `x`; the result is an `Output`.
    "gradients": forward and backward, the gradients of the weights and of `x` under `cotangent`; the result is
    `Gradients`, whose state may be None: the zero initial state is a constant.
    "training": one step of plain SGD at `SGD_RATE` on `mean((sequence - target) ** 2)` over all elements, which updates
    the layer's own weights in place; the result is the weights after the first step, by canonical name.
    "streaming": one time step, the state carried from call to call; the result is the `Output` of the first call.

    Attributes:
        weights: canonical, of the spec's dtype.
        x: `(batch, time, input_size)`, C-contiguous; `time` is 1 in "streaming".
        lengths: `(batch,)`; None where every row is full.
        mode: one of `MODES`.
        cotangent: in "gradients", of the sequence and of the final state; else None.
        target: in "training", shaped as the sequence; else None.
    """

    weights: Weights
    x: Array
    lengths: Lengths | None
    mode: str
    cotangent: Output | None = None
    target: Array | None = None


@dataclass
class Prepared:
    """A layer that is ready for one `Work`.

    Attributes:
        call: one repetition, on inputs already placed in the framework's own type; the computation has finished when it
            returns.
        result: the result in NumPy, as `Work` says; called once, before `call`.
        boundary: the same call from NumPy to NumPy through the layer; None where there is none.
        plan: what runs, in words; a layer that has a `plan` of its own is asked instead.
    """

    call: Callable[[], Any]
    result: Callable[[], Any]
    boundary: Callable[[], Any] | None = None
    plan: str = ""


@runtime_checkable
class Timed(Protocol):
    """A backend that places inputs in its framework's own type; any other is timed from NumPy to NumPy."""

    def prepare(self, layer: Any, work: Work, threads: int) -> Prepared:
        """Place the inputs, and compile no more than the call needs.

        Args:
            layer: one that `build` returned for `work.weights`; a training step changes its weights.
            work: the computation.
            threads: how many the process may use.
        """
        ...
