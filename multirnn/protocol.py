"""What a backend offers: `Backend`, its optional abilities with their defaults, and the work that a benchmark times.

`backends/README.md` shows how to write one. A backend derives from `Abilities`, or is any object with the attributes of
`Backend`; `abilities` fills in the defaults of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from inspect import get_annotations
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeGuard, TypeVar, cast, runtime_checkable

from multirnn.errors import InvalidCall, Unsupported, kind_of
from multirnn.layer import NATIVE, Implementation, Layer, Lengths, Output
from multirnn.spec import RecurrentSpec
from multirnn.weights import Array, Weights

if TYPE_CHECKING:
    from multirnn.adoption import Adopted
    from multirnn.parity.optimiser import Batch, Optimiser
    from multirnn.replacement import Replacement

Ability = TypeVar("Ability")

__all__ = [
    "MODES",
    "SGD_RATE",
    "Abilities",
    "Adopts",
    "Backend",
    "BackendName",
    "Prepared",
    "Replaces",
    "Timed",
    "Trains",
    "Work",
]
__all__ += ["abilities", "accept", "backend_title", "contract_refuses", "offers", "realise", "with_implementation"]


BackendName = Literal["numpy", "torch", "keras", "jax", "onnxruntime"]
"""Ours, for an editor to complete; annotated beside `str`, since a third party's are found by name too."""


@runtime_checkable
class Backend(Protocol):
    """A framework that implements specs: exactly, or not at all.

    Attributes:
        name: selects it; equal to the name of its entry point.
        differentiable: whether its layers have `vjp`; False for inference only.
    """

    name: str
    differentiable: bool

    def refuses(self, spec: RecurrentSpec) -> str | None:
        """None: it implements exactly this spec. A string: why not, and what it would accept."""
        ...

    def build(self, weights: Weights, *, device: str | None = None) -> Layer:
        """A layer of `weights.spec` with these weights; begins with `accept`.

        Args:
            weights: copied into the framework's own parameters.
            device: a device of the framework ("cpu", "cuda", …); defaults to the framework's default.

        Raises:
            Unsupported: with the reason that `refuses` gives.
            InvalidCall: the framework has no such device here.
        """
        ...

    def read(self, native: Any) -> Weights:
        """The spec and the weights of a layer that the user made with the framework itself.

        Raises:
            Unrepresentable: no spec describes it; the sentence names the feature that no spec has.
        """
        ...

    def versions(self) -> Mapping[str, str]:
        """The versions of the packages that it runs on."""
        ...


# --- Optional abilities ----------------------------------------------------------------------------------------------


class Abilities:
    """A base class for backends: optional attributes with their defaults. A misspelt one raises `TypeError`.

    Attributes:
        implementations: what `build` takes as `implementation`, if it takes any but "native".
        takes_lengths: whether its layers take `lengths`; if False, they raise `InvalidCall` for them.
        engine: the framework's own backend, if the user has a choice.
    """

    implementations: tuple[Implementation, ...] = (NATIVE,)
    takes_lengths: bool = True
    engine: str | None = None

    def devices(self) -> tuple[str, ...]:
        """The devices that `build` takes here."""
        return ()

    def __init_subclass__(cls) -> None:
        if typo := _misspelt(vars(cls)):
            raise TypeError(f"the backend {cls.__name__} has {typo}")


@runtime_checkable
class Adopts(Backend, Protocol):
    """A backend that runs a user's own object, unchanged."""

    def adopt(self, native: Any, spec: RecurrentSpec | None, *, compiled: bool) -> Adopted:
        """The object as a layer; see `multirnn.adoption.adopt`."""
        ...


@runtime_checkable
class Replaces(Backend, Protocol):
    """A backend that replaces the recurrent layers inside a user's model."""

    def replace_layers(self, model: Any, implementation: Implementation) -> Replacement:
        """In place, "fast" or "native"; see `multirnn.replacement.replace_layers`."""
        ...


@runtime_checkable
class Trains(Backend, Protocol):
    """A backend whose optimisers `train_parity` compares."""

    def train(self, layer: Any, batch: Batch, optimiser: Optimiser, steps: int) -> Array:
        """Train a layer that this backend built, in place, by the framework's own optimiser on its own object.

        Args:
            layer: as `build` returned it.
            batch: of the layer's dtype. The initial state is zero.
            optimiser: its name and hyper-parameters.
            steps: the number of steps.

        Returns:
            The loss before every step, `(steps,)`, of the layer's dtype; see `Batch.loss`.
        """
        ...

    def default_epsilon(self) -> float:
        """The default epsilon of the framework's Adam."""
        ...


@runtime_checkable
class Timed(Backend, Protocol):
    """A backend that places inputs in its framework's own type; any other is timed from NumPy to NumPy."""

    def prepare(self, layer: Any, work: Work, threads: int) -> Prepared:
        """Place the inputs, and compile no more than the call needs.

        Args:
            layer: as `build` returned it for `work.weights`; a training step changes its weights.
            work: the computation.
            threads: how many the process may use.
        """
        ...


def offers(thing: object, protocol: type[Ability]) -> TypeGuard[Ability]:
    """Whether an object has every attribute that a Protocol declares.

    `isinstance` of a runtime-checkable Protocol asks the object on Python 3.11, but only its class from 3.12 on. Then an
    attribute behind `__getattr__` does not count, and a property that raises stays unseen.
    """
    return all(hasattr(thing, name) for name in _public(protocol))


def _public(kind: type) -> set[str]:
    return {name for name in {*vars(kind), *get_annotations(kind)} if not name.startswith("_")}


_KNOWN = frozenset[str]().union(*map(_public, (Backend, Abilities, Adopts, Replaces, Trains, Timed)))


def _misspelt(names: Iterable[str]) -> str | None:
    """The first of a backend's attributes that is almost one of `_KNOWN`, if the backend lacks that one."""
    own = set(names)
    for name in sorted(own - _KNOWN):
        if not name.startswith("_") and (close := get_close_matches(name, sorted(_KNOWN - own), n=1, cutoff=0.85)):
            return f"{name!r} (did you mean {close[0]!r}?)"
    return None


def contract_refuses(thing: object) -> str | None:
    """None: a thing is a `Backend`. A string: why not, as a sentence without its subject."""
    typo = _misspelt(vars(thing) if isinstance(thing, Abilities) else dir(thing))
    if not offers(thing, Backend):
        return f"is {kind_of(thing)} and not a multirnn Backend" + (f": it has {typo}" if typo else "")
    return f"has {typo}" if typo else None


def abilities(backend: Backend) -> Abilities:
    """The optional attributes of any backend: its own, and defaults for those that it lacks."""
    if isinstance(backend, Abilities):
        return backend
    found = Abilities()
    vars(found).update({name: getattr(backend, name) for name in _public(Abilities) if hasattr(backend, name)})
    return found


def backend_title(backend: Backend, implementation: Implementation = NATIVE) -> str:
    """A backend's name with its engine and its implementation: `keras (tensorflow) fast`."""
    engine = abilities(backend).engine
    return (
        backend.name + (f" ({engine})" if engine else "") + (f" {implementation}" if implementation != NATIVE else "")
    )


# --- Building --------------------------------------------------------------------------------------------------------


def accept(backend: Backend, spec: RecurrentSpec, implementation: Implementation = NATIVE) -> None:
    """The first line of every `build`: go on only if the backend implements this spec, in this implementation.

    Raises:
        Unsupported: with the backend's own reason.
        InvalidCall: the backend has no such implementation.
    """
    if reason := backend.refuses(spec):
        raise Unsupported(f"backend {backend.name!r} refuses {spec!r}: {reason}")
    _check_implementation(backend, implementation)


def _check_implementation(backend: Backend, implementation: Implementation) -> None:
    known = abilities(backend).implementations
    if implementation not in known:
        there = f"the implementations {', '.join(map(repr, known))}" if len(known) > 1 else f"{NATIVE!r} alone"
        raise InvalidCall(f"backend {backend.name!r} has {there}, not the implementation {implementation!r}")


def realise(
    backend: Backend, weights: Weights, *, device: str | None = None, implementation: Implementation = NATIVE
) -> Layer:
    """`backend.build`, with an implementation that the backend has.

    Raises:
        InvalidCall: the backend has no such implementation; or see `Backend.build`.
        Unsupported: the backend refuses the spec.
    """
    _check_implementation(backend, implementation)
    if implementation == NATIVE:
        return backend.build(weights, device=device)
    layer: Layer = cast("Any", backend).build(weights, device=device, implementation=implementation)
    return layer


def with_implementation(backend: Backend, implementation: Implementation) -> Backend:
    """A backend that builds this implementation, named `torch fast`; accepted wherever a Backend object is.

    Raises:
        InvalidCall: the backend has no such implementation.
    """
    _check_implementation(backend, implementation)
    return backend if implementation == NATIVE else cast("Backend", _Implemented(backend, implementation))


class _Implemented(Abilities):
    """A backend with its implementation chosen; all other attributes are the backend's."""

    def __init__(self, backend: Backend, implementation: Implementation) -> None:
        vars(self).update({name: getattr(backend, name) for name in _KNOWN - {"build"} if hasattr(backend, name)})
        self.name = f"{backend.name} {implementation}"
        self.implementations = (NATIVE,)
        self._backend = backend
        self._implementation: Implementation = implementation

    def build(self, weights: Weights, *, device: str | None = None) -> Layer:
        return realise(self._backend, weights, device=device, implementation=self._implementation)


# --- Timing ----------------------------------------------------------------------------------------------------------

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
