"""The NumPy backend: the loops themselves, with gradients by hand; in float64 the reference for all others."""

from collections.abc import Mapping

import numpy as np

from multirnn import InvalidCall, RecurrentSpec, Weights
from multirnn.layer import Implementation
from multirnn.protocol import Abilities, Prepared, Work, accept
from multirnn_numpy import adoption, training
from multirnn_numpy.fast import FastNumpyLayer
from multirnn_numpy.layer import NumpyLayer
from multirnn_numpy.stack import Stack
from multirnn_numpy.weights import read
from multirnn_numpy.weights import stack as stack_of

__all__ = ["BACKEND", "FastNumpyLayer", "NumpyLayer", "Stack", "build"]


class NumpyBackend(Abilities):
    """Implements every spec."""

    name = "numpy"
    differentiable = True
    implementations = ("native", "fast", "frozen")
    read = staticmethod(read)
    adopt = staticmethod(adoption.adopt)
    train = staticmethod(training.train)
    default_epsilon = staticmethod(training.default_epsilon)

    def refuses(self, spec: RecurrentSpec) -> str | None:
        """None: every spec has its loop."""
        return None

    def build(
        self, weights: Weights, *, device: str | None = None, implementation: Implementation = "native"
    ) -> NumpyLayer:
        """A layer of `weights.spec` in NumPy.

        Args:
            weights: copied into the parameters of a `Stack`.
            device: "cpu", which is also the default; there is no other.
            implementation: "native"; "fast", the same by the compiled recurrence or by fewer operations a step; or "frozen",
                fast with parameters that are read-only and packed once.

        Raises:
            InvalidCall: another device or implementation.
        """
        accept(self, weights.spec, implementation)
        if device not in (None, "cpu"):
            raise InvalidCall(f"NumPy computes on the device 'cpu' alone, not on {device!r}")
        if implementation == "native":
            return NumpyLayer(stack_of(weights))
        return FastNumpyLayer(weights, frozen=implementation == "frozen")

    def prepare(self, layer: NumpyLayer, work: Work, threads: int) -> Prepared:
        """See `multirnn.protocol.Timed`."""
        from multirnn_numpy.bench import prepare  # only benchmarks need it

        return prepare(layer, work, threads)

    def versions(self) -> Mapping[str, str]:
        """The version of NumPy."""
        return {"numpy": np.__version__}

    def devices(self) -> tuple[str, ...]:
        """The CPU."""
        return ("cpu",)


BACKEND = NumpyBackend()
build = BACKEND.build
