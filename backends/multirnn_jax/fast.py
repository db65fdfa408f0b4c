"""The fast layers of JAX: `multirnn_jax.kernel`, or `multirnn_jax.recursion`, behind the calls of a `Layer`."""

from functools import cache
from typing import Any

import jax
import numpy as np

from multirnn import Gradients, Inputs, Output, RecurrentSpec, State, Weights
from multirnn.layer import FAST, Plan
from multirnn_jax import kernel, recursion
from multirnn_jax.apply import Params, Recurrence
from multirnn_jax.layer import Compiled, JaxLayer, compiled
from multirnn_jax.recursion import in_columns
from multirnn_jax.weights import recurrence

__all__ = ["FastJaxLayer", "FastRecurrence", "apply", "build"]


def apply(
    spec: RecurrentSpec, params: Params, x: jax.Array, state: State | None = None, lengths: jax.Array | None = None
) -> Output:
    """`multirnn_jax.kernel.apply`, or `multirnn_jax.recursion.apply` where `multirnn_jax.kernel.refuses`.

    Inside `jax.shard_map` it is the latter too: how a custom call varies over the axes of a mesh is said differently by
    every JAX. Arguments, result and errors are those of `multirnn_jax.apply.apply`.
    """
    divided = jax.sharding.get_abstract_mesh().manual_axes
    run = recursion.apply if kernel.refuses() or divided else kernel.apply
    return run(spec, params, x, state, lengths)


class FastRecurrence(Recurrence):
    """A `Recurrence` whose `apply` has a reverse rule of its own, and on a CPU is the compiled recurrence.

    Gradients, gradients of gradients and products with the Hessian are those of any JAX function. Forward mode over
    `apply` itself (`jax.jvp`, `jax.jacfwd`) is refused by JAX, as of every `jax.custom_vjp`, and `jax.export` of the
    compiled recurrence, as of every custom call; a `Recurrence` has them.
    """

    def __post_init__(self) -> None:
        self.bind(apply if _on_cpu(self.params) else recursion.apply)


def build(weights: Weights, device: str | None) -> "FastJaxLayer":
    """The layer of these weights.

    Raises:
        InvalidCall: JAX has no such device here.
    """
    return FastJaxLayer(FastRecurrence(weights.spec, recurrence(weights, device).params))


class FastJaxLayer(JaxLayer):
    """A `JaxLayer` with the reverse rule, the layout and the compiler options that were measured to be the fastest.

    Rows that end at different times are run as far as the longest of them, in a bucket of time steps, so that batches
    of many lengths share few compiled functions.
    """

    def __init__(self, native: FastRecurrence) -> None:
        super().__init__(native)
        self._short = self._short and kernel.refuses() is None

    @property
    def implementation(self) -> str:
        """See `BoundaryLayer.implementation`."""
        return FAST

    def plan(self, batch: int, time: int, *, lengths: bool = False, gradients: bool = False) -> Plan:
        """What runs for an input of this shape; see `multirnn.layer.Planned`."""
        why = kernel.refuses() or ("" if _on_cpu(self.native.params) else "the parameters are not on a CPU")
        if not why:
            return Plan("fast", "the compiled recurrence, a custom call of XLA")
        parts = [f"a scan over {'columns' if in_columns(self.spec, batch) else 'rows'}"]
        if gradients:
            parts.append("a reverse scan and single products for the weights")
        parts += [f"{name}={value!r}" for name, value in (self.compiler_options(batch) or {}).items()]
        return Plan("fast", f"{', '.join(parts)}; {why}")

    def compiler_options(self, batch: int) -> dict[str, Any] | None:
        """Of the compiled functions for so many rows; None where XLA's own are left."""
        if kernel.refuses() is None or not _on_cpu(self.native.params):
            return None
        return _options(self.spec, batch)

    def compiled(self, batch: int) -> Compiled:
        """See `JaxLayer.compiled`."""
        options = self.compiler_options(batch)
        if not options:
            return self._compiled
        apply = self._native.apply.func  # type: ignore[attr-defined]
        return compiled(self.spec, apply, tuple(options.items()))

    def run(self, inputs: Inputs) -> Output:
        """See `BoundaryLayer.run`."""
        if inputs.lengths is None:
            return super().run(inputs)
        time = inputs.x.shape[1]
        steps = _bucket(int(inputs.lengths.max()))
        output = super().run(Inputs(_resized(inputs.x, steps), inputs.state, inputs.lengths, inputs.state_given))
        return Output(_resized(output.sequence, time), output.state)

    def pull_back(self, inputs: Inputs, cotangent: Output) -> Gradients:
        """See `BoundaryLayer.pull_back`."""
        if inputs.lengths is None:
            return super().pull_back(inputs, cotangent)
        time = inputs.x.shape[1]
        steps = _bucket(int(inputs.lengths.max()))
        gradients = super().pull_back(
            Inputs(_resized(inputs.x, steps), inputs.state, inputs.lengths, inputs.state_given),
            Output(_resized(cotangent.sequence, steps), cotangent.state),
        )
        return gradients._replace(x=_resized(gradients.x, time))


@cache  # without, it takes as long as a step of a small layer
def _options(spec: RecurrentSpec, batch: int) -> dict[str, Any]:
    """Options of XLA's CPU compiler that were measured to be faster; what users compile themselves has its defaults."""
    options: dict[str, Any] = {"xla_cpu_prefer_vector_width": 512}  # 1.0 to 1.2 times as fast
    if _by_eigen(spec, batch, kernel.cores()):
        options["xla_cpu_experimental_ynn_fusion_type"] = ""
    return {name: value for name, value in options.items() if _known(name, value)}


def _by_eigen(spec: RecurrentSpec, batch: int, cores: int) -> bool:
    """Whether XLA's products are faster by Eigen than by YNNPACK.

    Measured, time by YNNPACK over that by Eigen: on columns 1.1 to 1.3 from 32 rows, 0.3 to 1.0 below; on rows with one
    core 1.1 to 1.35 from 16 rows and 128 units, 0.7 to 1.1 below, and with two cores 0.6 to 1.2.
    """
    if in_columns(spec, batch):
        return batch >= 32
    return cores == 1 and batch >= 16 and spec.hidden_size >= 128


@cache
def _known(name: str, value: Any) -> bool:
    """Whether this XLA has the option; they come and go with its versions."""
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def _on_cpu(params: Params) -> bool:
    """Whether every device that holds parameters is a CPU; those of NumPy go where JAX puts what it is given."""
    some = next(iter(params.values()), None)
    devices = some.devices() if isinstance(some, jax.Array) else jax.local_devices()
    return all(device.platform == "cpu" for device in devices)


def _bucket(steps: int) -> int:
    """The next number of steps of which there are eight from a power of two to the next: at most 1/8 more."""
    unit = max(1 << steps.bit_length() >> 4, 1)
    return -(-steps // unit) * unit


def _resized(array: Any, time: int) -> Any:
    """`(batch, time, features)` cut to so many steps, or with zeros after its own."""
    batch, steps, features = array.shape
    if steps >= time:
        return array[:, :time]
    longer = np.zeros((batch, time, features), array.dtype)
    longer[:, :steps] = array
    return longer
