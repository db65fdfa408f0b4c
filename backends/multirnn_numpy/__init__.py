"""The NumPy backend: the loops themselves, with gradients by hand; in float64 the reference for all others."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from multirnn import RecurrentSpec, Weights, accept
from multirnn_numpy import layer
from multirnn_numpy import weights as conversion
from multirnn_numpy.layer import NumpyLayer
from multirnn_numpy.stack import Stack

__all__ = ["BACKEND", "NumpyLayer", "Stack", "build"]


class NumpyBackend:
    """Realises every spec."""

    name = "numpy"
    differentiable = True

    def refuses(self, spec: RecurrentSpec) -> str | None:
        """None: there is no spec that it does not realise."""
        return layer.refuses(spec)

    def build(self, weights: Weights, *, device: str | None = None) -> NumpyLayer:
        """Realise `weights.spec` with these weights; see `build`."""
        accept(self, weights.spec)
        return layer.build(weights, device)

    def read(self, native: Any) -> Weights:
        """The spec and the weights of a `Stack`; see `weights.read`."""
        return conversion.read(native)

    def versions(self) -> Mapping[str, str]:
        """The version of NumPy."""
        return {"numpy": np.__version__}

    def devices(self) -> tuple[str, ...]:
        """The devices that `build` takes here."""
        return ("cpu",)


BACKEND = NumpyBackend()


def build(weights: Weights, *, device: str | None = None) -> NumpyLayer:
    """Realise `weights.spec` in NumPy.

    Args:
        weights: copied into the parameters of a `Stack`.
        device: "cpu", which is also the default; there is no other.

    Raises:
        InvalidCall: another device.
    """
    return BACKEND.build(weights, device=device)
