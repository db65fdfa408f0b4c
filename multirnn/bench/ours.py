"""Our own contenders: each backend in each of its implementations.

A backend that has a method `prepare(layer, work, threads)` is timed as it says there: on inputs in the framework's own
type. Any other is timed through its layer, from NumPy to NumPy.
"""

from collections.abc import Mapping
from typing import Any

from multirnn.backend import Backend
from multirnn.bench.contenders import Absent
from multirnn.bench.work import Prepared, Work
from multirnn.implementation import FROZEN, implementations
from multirnn.layer import Layer
from multirnn.registry import backend as load_backend

__all__ = ["Ours"]


class Ours:
    """A backend in one implementation, as a `Contender`.

    Args:
        backend: its name, or a Backend object.
        implementation: "native", or another that the backend has.
        name: of the contender.

    Raises:
        Absent: the backend has no such implementation.
        UnknownBackend, MissingFramework: see `multirnn.backend`.
    """

    kind = "ours"

    def __init__(self, backend: str | Backend, implementation: str, name: str) -> None:
        self.backend = load_backend(backend)
        self.implementation, self.name = implementation, name
        self.implementations = implementations(self.backend)
        if implementation not in self.implementations:
            raise Absent(name)

    def versions(self) -> Mapping[str, str]:
        """The versions of what the backend runs on."""
        return self.backend.versions()

    def refuses(self, work: Work) -> str | None:
        """The backend's own reason, or that of the mode."""
        if reason := self.backend.refuses(work.weights.spec):
            return reason
        if work.mode in ("gradients", "training"):
            if not self.backend.differentiable:
                return "it is for inference only"
            if self.implementation == FROZEN:
                return "its weights are constants, and there and back it is as fast"
        if work.mode == "training" and not hasattr(self.backend, "prepare"):
            return (
                "a training step needs the framework's own weights, and the backend has no `prepare` that reaches them"
            )
        return None

    def prepare(self, work: Work, threads: int) -> Prepared:
        """Build the layer, and time it as the backend says."""
        backend: Any = self.backend
        chosen = {} if self.implementation == "native" else {"implementation": self.implementation}
        layer = backend.build(work.weights, **chosen)
        if hasattr(backend, "prepare"):
            prepared: Prepared = backend.prepare(layer, work, threads)
            return prepared
        return through_numpy(layer, work)


def through_numpy(layer: Layer, work: Work) -> Prepared:
    """The work by the layer, from NumPy to NumPy."""
    x, lengths, cotangent = work.x, work.lengths, work.cotangent
    if work.mode == "gradients":
        assert cotangent is not None

        def pull_back() -> Any:
            return layer.vjp(x, lengths=lengths, cotangent=cotangent)

        return Prepared(pull_back, pull_back, pull_back, "the layer, from NumPy to NumPy")
    if work.mode == "streaming":
        stream, first = layer.stream(), layer.stream()
        return Prepared(lambda: stream(x), lambda: first(x), None, "a stream of the layer, from NumPy to NumPy")

    def run() -> Any:
        return layer(x, lengths=lengths)

    return Prepared(run, run, run, "the layer, from NumPy to NumPy")
