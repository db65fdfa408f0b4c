"""The NumPy backend: the loop, readable, float32 and float64, with gradients by hand; the reference for all others."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from multirnn import InvalidCall, RecurrentSpec, Weights, accept
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
        return None

    def build(self, weights: Weights, *, device: str | None = None) -> NumpyLayer:
        """Realise `weights.spec` with these weights; the only device is "cpu"."""
        accept(self, weights.spec)
        if device not in (None, "cpu"):
            raise InvalidCall(f"the numpy backend runs on the device 'cpu' only, not on {device!r}")
        return NumpyLayer(conversion.stack(weights))

    def read(self, native: Any) -> Weights:
        """The spec and the weights of a `Stack`."""
        return conversion.read(native)

    def versions(self) -> Mapping[str, str]:
        """The version of NumPy."""
        return {"numpy": np.__version__}


BACKEND = NumpyBackend()


def build(weights: Weights, *, device: str | None = None) -> NumpyLayer:
    """Realise `weights.spec` in NumPy.

    Args:
        weights: copied into arrays of the layer's own.
        device: "cpu", the only one, which is also the default.

    Raises:
        InvalidCall: another device.
    """
    return BACKEND.build(weights, device=device)
