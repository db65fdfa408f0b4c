"""How a backend realises a spec: by the framework's own layer, or by a faster one that is the same function.

`"native"` is the framework's own layer; it is the default, and what a comparison of frameworks means. `"fast"` keeps the
whole contract of a `Layer`, its `native` included, and where nothing faster is known it is native and says so. `"frozen"`
is fast with weights that are constants, as those of a session of ONNX Runtime are: they are packed once, when it is built,
and not in every call. It has gradients; what it has not is training, and weights that changed are refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

from multirnn.errors import InvalidCall
from multirnn.layer import Layer
from multirnn.protocol import Backend
from multirnn.spec import RecurrentSpec
from multirnn.weights import Weights

__all__ = ["FAST", "FROZEN", "NATIVE", "Plan", "Planned", "implementations", "realise", "with_implementation"]

NATIVE = "native"
FAST = "fast"
FROZEN = "frozen"


class Plan(NamedTuple):
    """What a layer runs for a shape.

    Attributes:
        implementation: "fast" or "frozen", or "native" where nothing faster is known.
        sentence: what runs, and of "native" why.
    """

    implementation: str
    sentence: str


@runtime_checkable
class Planned(Protocol):
    """A layer of an implementation that is not native: it tells what it runs."""

    def plan(self, batch: int, time: int, *, lengths: bool = False, gradients: bool = False) -> Plan:
        """What runs for an input of `batch` rows and `time` steps.

        Args:
            batch: rows.
            time: steps of the longest.
            lengths: whether rows end before `time`.
            gradients: on the way there and back, not there alone.
        """
        ...


def implementations(backend: Backend) -> tuple[str, ...]:
    """What `build(..., implementation=...)` takes of a backend; "native" is among them."""
    return tuple(getattr(backend, "implementations", (NATIVE,)))


def realise(backend: Backend, weights: Weights, *, device: str | None = None, implementation: str = NATIVE) -> Layer:
    """`backend.build`, with an implementation that the backend has.

    Raises:
        InvalidCall: the backend has no such implementation; or see `Backend.build`.
        Unsupported: the backend refuses the spec.
    """
    _check(backend, implementation)
    if implementation == NATIVE:
        return backend.build(weights, device=device)
    layer: Layer = cast("Any", backend).build(weights, device=device, implementation=implementation)
    return layer


def with_implementation(backend: Backend, implementation: str) -> Backend:
    """A backend whose `build` gives this implementation, called `torch fast`; wherever a Backend object is taken.

    Raises:
        InvalidCall: the backend has no such implementation.
    """
    _check(backend, implementation)
    if implementation == NATIVE:
        return backend
    return cast("Backend", _Implemented(backend, implementation))


@dataclass(frozen=True)
class _Implemented:
    """A backend with its implementation chosen; all else that it has is the backend's."""

    backend: Backend
    implementation: str

    @property
    def name(self) -> str:
        return f"{self.backend.name} {self.implementation}"

    @property
    def differentiable(self) -> bool:
        return self.backend.differentiable

    @property
    def implementations(self) -> tuple[str, ...]:
        return (NATIVE,)

    def refuses(self, spec: RecurrentSpec) -> str | None:
        return self.backend.refuses(spec)

    def build(self, weights: Weights, *, device: str | None = None) -> Layer:
        return realise(self.backend, weights, device=device, implementation=self.implementation)

    def read(self, native: Any) -> Weights:
        return self.backend.read(native)

    def versions(self) -> Mapping[str, str]:
        return self.backend.versions()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # or copying and pickling look for the backend before there is one
            raise AttributeError(name)
        return getattr(self.backend, name)


def _check(backend: Backend, implementation: str) -> None:
    known = implementations(backend)
    if implementation not in known:
        there = f"the implementations {', '.join(map(repr, known))}" if len(known) > 1 else f"{NATIVE!r} alone"
        raise InvalidCall(f"backend {backend.name!r} has {there}, not the implementation {implementation!r}")
