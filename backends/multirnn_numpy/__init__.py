"""The NumPy backend: the loops themselves, with gradients by hand; in float64 the reference for all others."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from multirnn import RecurrentSpec, Weights, accept
from multirnn.adoption import Adopted
from multirnn.parity import Batch, Optimiser
from multirnn.weights import Array
from multirnn_numpy import adoption, fast, layer, training
from multirnn_numpy import weights as conversion
from multirnn_numpy.fast import FastNumpyLayer
from multirnn_numpy.layer import NumpyLayer
from multirnn_numpy.stack import Stack

__all__ = ["BACKEND", "FastNumpyLayer", "NumpyLayer", "Stack", "build"]

if TYPE_CHECKING:
    from multirnn.protocol import Prepared, Work


class NumpyBackend:
    """Realises every spec."""

    name = "numpy"
    differentiable = True
    implementations = ("native", "fast", "frozen")

    def refuses(self, spec: RecurrentSpec) -> str | None:
        """None: there is no spec that it does not realise."""
        return layer.refuses(spec)

    def build(self, weights: Weights, *, device: str | None = None, implementation: str = "native") -> NumpyLayer:
        """Realise `weights.spec` with these weights; see `build`."""
        accept(self, weights.spec)
        if implementation == "native":
            return layer.build(weights, device)
        return fast.build(weights, device, frozen=implementation == "frozen")

    def prepare(self, layer: NumpyLayer, work: "Work", threads: int) -> "Prepared":
        """See `multirnn.protocol.Timed`."""
        from multirnn_numpy.bench import prepare

        return prepare(layer, work, threads)

    def read(self, native: Any) -> Weights:
        """The spec and the weights of a `Stack`; see `weights.read`."""
        return conversion.read(native)

    def adopt(self, native: Any, spec: RecurrentSpec | None, *, compiled: bool = False) -> Adopted:
        """Run a `Stack` as it is; see `adoption.adopt`."""
        return adoption.adopt(native, spec, compiled=compiled)

    def train(
        self,
        layer: NumpyLayer,
        batch: Batch,
        optimiser: Optimiser,
        steps: int,
        *,
        form: str = "torch",
        scalars: str = "",
    ) -> Array:
        """Train a layer in place, by the formulas written out; see `training.train`."""
        return training.train(layer, batch, optimiser, steps, form=form, scalars=scalars)

    def default_epsilon(self) -> float:
        """Of Adam as written out here."""
        return training.default_epsilon()

    def versions(self) -> Mapping[str, str]:
        """The version of NumPy."""
        return {"numpy": np.__version__}

    def devices(self) -> tuple[str, ...]:
        """The devices that `build` takes here."""
        return ("cpu",)


BACKEND = NumpyBackend()


def build(weights: Weights, *, device: str | None = None, implementation: str = "native") -> NumpyLayer:
    """Realise `weights.spec` in NumPy.

    Args:
        weights: copied into the parameters of a `Stack`.
        device: "cpu", which is also the default; there is no other.
        implementation: "native", or "fast": the same by the compiled recurrence, or by fewer operations a step; or
            "frozen": fast, with parameters that are read-only and packed once.

    Raises:
        InvalidCall: another device.
    """
    return BACKEND.build(weights, device=device, implementation=implementation)
