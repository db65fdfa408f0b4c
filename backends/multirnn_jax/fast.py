"""The fast layers of JAX: `multirnn_jax.kernel`, or `multirnn_jax.reverse`, behind the calls of a `Layer`."""

from dataclasses import replace
from functools import cache
from typing import Any

import jax
import numpy as np

from multirnn import Gradients, Output, RecurrentSpec, State, Weights
from multirnn.boundary import Inputs
from multirnn.layer import FAST, Plan
from multirnn_jax import kernel, reverse
from multirnn_jax.layer import JaxLayer
from multirnn_jax.loop import Params, Recurrence
from multirnn_jax.reverse import in_columns
from multirnn_jax.weights import place

__all__ = ["FastJaxLayer", "FastRecurrence", "apply", "build"]


def apply(
    spec: RecurrentSpec, params: Params, x: jax.Array, state: State | None = None, lengths: jax.Array | None = None
) -> Output:
    """`multirnn_jax.kernel.apply`, or `multirnn_jax.reverse.apply` where `multirnn_jax.kernel.refuses`.

    Also the latter inside `jax.shard_map`: each JAX declares differently how a custom call varies over the axes of a
    mesh. Arguments, result and errors are those of `multirnn_jax.loop.apply`.
    """
    divided = jax.sharding.get_abstract_mesh().manual_axes
    run = reverse.apply if kernel.refuses() or divided else kernel.apply
    return run(spec, params, x, state, lengths)


class FastRecurrence(Recurrence):
    """A `Recurrence` whose `apply` has a reverse rule of its own, and on a CPU is the compiled recurrence.

    Both modes of differentiation, in any order, are those of any JAX function. `jax.export` has to be told of the custom
    calls of the compiled recurrence: `multirnn_jax.export` tells it.
    """

    def __post_init__(self) -> None:
        self.bind(apply if _on_cpu(self.params) else reverse.apply)


def build(weights: Weights, device: str | None) -> "FastJaxLayer":
    """The layer of these weights; `InvalidCall` if JAX has no such device here."""
    return FastJaxLayer(FastRecurrence(weights.spec, place(weights, device)))


class FastJaxLayer(JaxLayer):
    """A `JaxLayer` with the reverse rule, the layout and the compiler options that were measured to be the fastest.

    Rows of different lengths run as far as the longest, rounded up to a bucket of time steps, so that batches of many
    lengths share few compiled functions.
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
        reason = kernel.refuses() or ("" if _on_cpu(self.native.params) else "the parameters are not on a CPU")
        if not reason:
            return Plan("fast", "the compiled recurrence, a custom call of XLA")
        parts = [f"a scan over {'columns' if in_columns(self.spec, batch) else 'rows'}"]
        if gradients:
            parts.append("a reverse scan and single products for the weights")
        parts += [f"{name}={value!r}" for name, value in self.compiler_options(batch).items()]
        return Plan("fast", f"{', '.join(parts)}; {reason}")

    def compiler_options(self, batch: int) -> dict[str, Any]:
        """See `JaxLayer.compiler_options`."""
        return _options(self.spec, batch) if kernel.refuses() and _on_cpu(self.native.params) else {}

    def run(self, inputs: Inputs) -> Output:
        """See `BoundaryLayer.run`."""
        output = super().run(_bucketed(inputs))
        return Output(_resized(output.sequence, inputs.x.shape[1]), output.state)

    def pull_back(self, inputs: Inputs, cotangent: Output) -> Gradients:
        """See `BoundaryLayer.pull_back`."""
        bucketed = _bucketed(inputs)
        cotangent = Output(_resized(cotangent.sequence, bucketed.x.shape[1]), cotangent.state)
        gradients = super().pull_back(bucketed, cotangent)
        return gradients._replace(x=_resized(gradients.x, inputs.x.shape[1]))


@cache  # without, it takes as long as a step of a small layer
def _options(spec: RecurrentSpec, batch: int) -> dict[str, Any]:
    """Options of XLA's CPU compiler that were measured to be faster; functions that users compile have its defaults."""
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
    """Whether this version of XLA has the option."""
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def _on_cpu(params: Params) -> bool:
    """Whether every device that holds parameters is a CPU; JAX moves NumPy's to its default."""
    some = next(iter(params.values()), None)
    devices = some.devices() if isinstance(some, jax.Array) else jax.local_devices()
    return all(device.platform == "cpu" for device in devices)


def _bucketed(inputs: Inputs) -> Inputs:
    """The call with the time steps of the bucket of its longest row."""
    if inputs.lengths is None:
        return inputs
    return replace(inputs, x=_resized(inputs.x, _bucket(int(inputs.lengths.max()))))


def _bucket(steps: int) -> int:
    """The number rounded up by at most 1/8: there are eight buckets from a power of two to the next."""
    unit = max(1 << steps.bit_length() >> 4, 1)
    return -(-steps // unit) * unit


def _resized(array: Any, time: int) -> Any:
    """`(batch, time, features)` cut to so many steps, or padded with zeros."""
    batch, steps, features = array.shape
    if steps >= time:
        return array if steps == time else array[:, :time]
    longer = np.zeros((batch, time, features), array.dtype)
    longer[:, :steps] = array
    return longer
