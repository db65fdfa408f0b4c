"""What a backend offers: `Backend`, its optional abilities, and the work that a benchmark asks it to do.

`backends/README.md` shows how to write one. `Work` names a computation in canonical weights and NumPy arrays; `Prepared` is
a call without arguments to be timed, whose result is verified first. Backends and peers are asked the same question.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import get_annotations
from typing import Any, Protocol, runtime_checkable

from multirnn.errors import Unsupported
from multirnn.layer import Layer, Lengths, Output
from multirnn.spec import RecurrentSpec
from multirnn.weights import Array, Weights

__all__ = ["MODES", "SGD_RATE", "Backend", "Prepared", "Timed", "Work", "accept", "offers"]

MODES = ("inference", "gradients", "training", "streaming")

SGD_RATE = 0.01
"""Learning rate of the SGD step that the mode "training" times."""


@runtime_checkable
class Backend(Protocol):
    """A framework that realises specs: exactly, or not at all.

    It may have a method `adopt(native, spec, *, compiled)` besides, which runs a user's own object as it is; see
    `multirnn.adoption`. It may have `implementations`, names of which "native" is one, and then `build` takes an
    argument `implementation`; see `multirnn.implementation`.

    Attributes:
        name: under which it is selected; that of its entry point.
        differentiable: whether its layers have `vjp`; False for inference only.
    """

    name: str
    differentiable: bool

    def refuses(self, spec: RecurrentSpec) -> str | None:
        """None: this backend will realise exactly this spec. A string: the reason why not, one a user can act on."""
        ...

    def build(self, weights: Weights, *, device: str | None = None) -> Layer:
        """Realise `weights.spec` with these weights.

        Args:
            weights: copied into the framework's own parameters.
            device: a device of the framework ("cpu", "cuda", …); its default unless given.

        Raises:
            Unsupported: with the reason that `refuses` gives.
            InvalidCall: the framework has no such device here.
        """
        ...

    def read(self, native: Any) -> Weights:
        """The spec and the weights of a layer that the user made with the framework itself.

        Raises:
            Unrepresentable: no spec describes it; the sentence names what no spec has.
        """
        ...

    def versions(self) -> Mapping[str, str]:
        """The versions of what it runs on, by package."""
        ...


def offers(thing: object, protocol: type) -> bool:
    """Whether an object has every attribute that a Protocol declares.

    `isinstance` of a runtime-checkable Protocol asks the object on Python 3.11, but only its class from 3.12 on. Then an
    attribute behind `__getattr__` does not count, and a property that raises stays unseen.
    """
    names = {*vars(protocol), *get_annotations(protocol)}
    return all(hasattr(thing, name) for name in names if not name.startswith("_"))


def accept(backend: Backend, spec: RecurrentSpec) -> None:
    """The first line of every `build`: go on only if the backend realises this spec.

    Raises:
        Unsupported: with the backend's own reason.
    """
    if reason := backend.refuses(spec):
        raise Unsupported(f"backend {backend.name!r} refuses {spec!r}: {reason}")


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
