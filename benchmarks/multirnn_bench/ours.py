"""Our contenders: each backend in each of its implementations.

A backend that is `Timed` is timed on inputs in its framework's own type, any other from NumPy to NumPy.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from multirnn.layer import FROZEN, Implementation, Layer, Planned
from multirnn.protocol import Backend, Prepared, Timed, Work, abilities, realise
from multirnn.registry import backend as load_backend

__all__ = ["NoImplementation", "Ours"]


class NoImplementation(Exception):
    """The backend has no such implementation."""


class Ours:
    """A backend in one implementation, as a `Contender`.

    Raises `NoImplementation` if the backend has none of this name, and what `multirnn.backend` raises.
    """

    kind = "ours"

    def __init__(self, backend: str | Backend, implementation: Implementation, name: str) -> None:
        self.backend = load_backend(backend)
        self.implementation: Implementation = implementation
        self.name = name
        self.implementations = abilities(self.backend).implementations
        if implementation not in self.implementations:
            raise NoImplementation(name)

    def versions(self) -> Mapping[str, str]:
        """The versions of what the backend runs on."""
        return self.backend.versions()

    def refuses(self, work: Work) -> str | None:
        """The backend's reason, or why it has no such mode."""
        if reason := self.backend.refuses(work.weights.spec):
            return reason
        if work.mode in ("gradients", "training"):
            if not self.backend.differentiable:
                return "it is for inference only"
            if self.implementation == FROZEN:
                return "its weights are constants; forward and backward, 'fast' is the same"
        if work.mode == "training" and not isinstance(self.backend, Timed):
            return "a training step updates the framework's own weights, and the backend has no `prepare` to reach them"
        return None

    def prepare(self, work: Work, threads: int) -> Prepared:
        """Build the layer, and prepare it as the backend says."""
        layer = realise(self.backend, work.weights, implementation=self.implementation)
        if isinstance(self.backend, Timed):
            prepared = self.backend.prepare(layer, work, threads)
        else:
            prepared = through_numpy(layer, work)
        if isinstance(layer, Planned):
            batch, time, _ = work.x.shape
            gradients = work.mode in ("gradients", "training")
            prepared.plan = layer.plan(batch, time, lengths=work.lengths is not None, gradients=gradients).sentence
        return prepared


def through_numpy(layer: Layer, work: Work) -> Prepared:
    """The work done by the layer, from NumPy to NumPy."""
    if work.mode == "streaming":
        stream, first = layer.stream(), layer.stream()
        return Prepared(
            lambda: stream(work.x), lambda: first(work.x), None, "a stream of the layer, from NumPy to NumPy"
        )
    call: Callable[[], Any] = partial(layer, work.x, lengths=work.lengths)
    if work.cotangent is not None:
        call = partial(layer.vjp, work.x, lengths=work.lengths, cotangent=work.cotangent)
    return Prepared(call, call, call, "the layer, from NumPy to NumPy")
