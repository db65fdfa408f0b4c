"""What is timed and who times it: `Work`, `Prepared` and `Contender`.

A contender is told what to compute as `Work`, in canonical weights and NumPy arrays, and answers with `Prepared`: a call
of no arguments to be timed, and its result to be held against the float64 reference before that. Realisations of
multirnn and peers are both contenders, so neither is timed in a way that the other is not.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from multirnn.layer import Lengths, Output
from multirnn.weights import Array, Weights

__all__ = ["MODES", "SGD_RATE", "Contender", "Prepared", "Work"]

MODES = ("inference", "gradients", "training", "streaming")

SGD_RATE = 0.01
"""Of the one step of plain stochastic gradient descent that is timed in the mode "training"."""


@dataclass(frozen=True)
class Work:
    """What a contender computes, in one mode. The initial state is zero.

    "inference": the sequence and the final state of `x`; the result is an `Output`.
    "gradients": forward and backward, the gradients of the weights and of `x` under `cotangent`; the result is
    `Gradients`, whose state may be None: the zero initial state is a constant.
    "training": one step of plain SGD at `SGD_RATE` on `mean((sequence - target) ** 2)` over all elements, which changes
    the contender's own weights in place; the result is the weights after the first step, by canonical name.
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
    """A contender that is ready for one work.

    Attributes:
        call: one repetition, on inputs that are placed already in the framework's own type; the computation is finished
            when it returns.
        result: the result in NumPy, as `Work` says; called once, before `call`.
        boundary: the same call from NumPy to NumPy through the layer; None where there is none.
        plan: what runs, in words.
    """

    call: Callable[[], Any]
    result: Callable[[], Any]
    boundary: Callable[[], Any] | None = None
    plan: str = ""


class Contender(Protocol):
    """Something that can be timed: a realisation of multirnn, or a peer.

    It may have an attribute `environment`, a mapping of variables that are set before its process starts.
    """

    @property
    def name(self) -> str:
        """Unique among the contenders of a run."""
        ...

    @property
    def kind(self) -> str:
        """Either "ours" or "peer"."""
        ...

    def versions(self) -> Mapping[str, str]:
        """The versions of what it runs on, by the name under which each is imported."""
        ...

    def refuses(self, work: Work) -> str | None:
        """None: it computes exactly this work. A string: the reason why not."""
        ...

    def prepare(self, work: Work, threads: int) -> Prepared:
        """Build the layer and place the inputs, for so many threads; traces and compiles no more than it must."""
        ...
