"""The JAX backend: `lax.scan` in a pure function over a pytree of parameters."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from multirnn import RecurrentSpec, Weights, accept
from multirnn.adoption import Adopted
from multirnn.parity import Batch, Optimiser
from multirnn.weights import Array
from multirnn_jax import adoption, fast, layer, training
from multirnn_jax import weights as conversion
from multirnn_jax.fast import FastJaxLayer, FastRecurrence
from multirnn_jax.layer import JaxLayer
from multirnn_jax.loop import Recurrence

if TYPE_CHECKING:
    from multirnn.protocol import Prepared, Work

__all__ = ["BACKEND", "FastJaxLayer", "FastRecurrence", "JaxLayer", "Recurrence", "build"]


class JaxBackend:
    """Realises every spec."""

    name = "jax"
    differentiable = True
    implementations = ("native", "fast")

    def refuses(self, spec: RecurrentSpec) -> str | None:
        """None: there is no spec that it does not realise."""
        return layer.refuses(spec)

    def build(self, weights: Weights, *, device: str | None = None, implementation: str = "native") -> JaxLayer:
        """Realise `weights.spec` with these weights, on a platform of JAX; see `build`."""
        accept(self, weights.spec)
        return fast.build(weights, device) if implementation == "fast" else layer.build(weights, device)

    def read(self, native: Any) -> Weights:
        """The spec and the weights of a `Recurrence`; see `weights.read`."""
        return conversion.read(native)

    def adopt(self, native: Any, spec: RecurrentSpec | None, *, compiled: bool = False) -> Adopted:
        """Run a `Recurrence`, or a function that `jax.jit` made, as it is; see `adoption.adopt`."""
        return adoption.adopt(native, spec, compiled=compiled)

    def train(self, layer: JaxLayer, batch: Batch, optimiser: Optimiser, steps: int) -> Array:
        """Train a layer in place, by `jax.example_libraries.optimizers`; see `training.train`."""
        return training.train(layer, batch, optimiser, steps)

    def prepare(self, layer: JaxLayer, work: "Work", threads: int) -> "Prepared":
        """See `multirnn.protocol.Timed`."""
        from multirnn_jax import bench  # here, since only benchmarks need it

        return bench.prepare(layer, work, threads)

    def default_epsilon(self) -> float:
        """Of the Adam of `jax.example_libraries`."""
        return training.default_epsilon()

    def versions(self) -> Mapping[str, str]:
        """The versions of JAX and of its compiler."""
        return {package: version(package) for package in ("jax", "jaxlib")}

    def devices(self) -> tuple[str, ...]:
        """The devices that `build` takes here."""
        return conversion.devices()


BACKEND = JaxBackend()


def build(weights: Weights, *, device: str | None = None, implementation: str = "native") -> JaxLayer:
    """Realise `weights.spec` in JAX.

    Args:
        weights: copied into the pytree of parameters.
        device: a platform as `jax.devices` names it ("cpu", "gpu", "cuda", "tpu"), its first device; JAX's default
            unless given. Any other place: `layer.native.params = jax.device_put(layer.native.params, place)`.
        implementation: "native", a scan that JAX differentiates; or "fast", one with a reverse rule of its own.

    Raises:
        InvalidCall: JAX has no such device here.
    """
    return BACKEND.build(weights, device=device, implementation=implementation)
