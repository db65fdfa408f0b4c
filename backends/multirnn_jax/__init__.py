"""The JAX backend: `lax.scan` in a pure function over a pytree of parameters."""

from collections.abc import Mapping
from importlib.metadata import version

from multirnn import Weights
from multirnn.layer import Implementation
from multirnn.protocol import Abilities, Prepared, Work, accept
from multirnn_jax import adoption, fast, layer, replacement, training, weights
from multirnn_jax.exporting import export, export_function, load_exported
from multirnn_jax.fast import FastJaxLayer, FastRecurrence
from multirnn_jax.layer import JaxLayer
from multirnn_jax.loop import Recurrence

__all__ = ["BACKEND", "FastJaxLayer", "FastRecurrence", "JaxLayer", "Recurrence", "build"]
__all__ += ["export", "export_function", "load_exported"]


class JaxBackend(Abilities):
    """Implements every spec."""

    name = "jax"
    differentiable = True
    implementations = ("native", "fast")
    refuses = staticmethod(layer.refuses)
    read = staticmethod(weights.read)
    adopt = staticmethod(adoption.adopt)
    replace_layers = staticmethod(replacement.replace_layers)
    train = staticmethod(training.train)
    default_epsilon = staticmethod(training.default_epsilon)

    def build(
        self, weights: Weights, *, device: str | None = None, implementation: Implementation = "native"
    ) -> JaxLayer:
        """A layer of `weights.spec` in JAX.

        Args:
            weights: copied into the pytree of parameters.
            device: a platform as `jax.devices` names it ("cpu", "gpu", "cuda", "tpu"), its first device; defaults to JAX's.
                For any other place: `layer.native.params = jax.device_put(layer.native.params, place)`.
            implementation: "native", a scan that JAX differentiates; or "fast", one with its own backward pass.

        Raises:
            InvalidCall: JAX has no such device here, or there is no such implementation.
        """
        accept(self, weights.spec, implementation)
        return fast.build(weights, device) if implementation == "fast" else layer.build(weights, device)

    def prepare(self, layer: JaxLayer, work: Work, threads: int) -> Prepared:
        """See `multirnn.protocol.Timed`."""
        from multirnn_jax.bench import prepare  # only benchmarks need it

        return prepare(layer, work, threads)

    def versions(self) -> Mapping[str, str]:
        """The versions of JAX and of its compiler."""
        return {package: version(package) for package in ("jax", "jaxlib")}

    def devices(self) -> tuple[str, ...]:
        """The platforms that this process can use."""
        return weights.devices()


BACKEND = JaxBackend()
build = BACKEND.build
