"""Canonical weights <-> the parameters of a `Recurrence`: the same names and shapes, as arrays of JAX."""

from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import Any

import jax
import numpy as np

from multirnn import InvalidCall, Output, RecurrentSpec, State, Unrepresentable, Weights
from multirnn.boundary import Inputs
from multirnn_jax.apply import Recurrence

__all__ = ["devices", "disturbed", "read", "recurrence", "scope", "width"]


def width(spec: RecurrentSpec) -> AbstractContextManager[None]:
    """The scope in which JAX has the dtype of the spec: its 64-bit mode for float64, in this thread and no longer."""
    return nullcontext() if spec.dtype == "float32" else jax.enable_x64(True)


def scope(spec: RecurrentSpec) -> AbstractContextManager[Any]:
    """The scope in which a layer computes: `width`, and as if neither jit nor transfers were forbidden."""
    if not disturbed():
        return width(spec)
    stack = ExitStack()
    stack.enter_context(width(spec))
    stack.enter_context(jax.disable_jit(False))  # one operation after another rounds differently
    stack.enter_context(jax.transfer_guard("allow"))  # a layer is given NumPy arrays
    return stack


def disturbed() -> bool:
    """Whether JAX is told to run without jit or to guard transfers; asked in 0.4 µs."""
    config: Any = jax.config
    guards = config.jax_transfer_guard_host_to_device, config.jax_transfer_guard_device_to_host
    return config.jax_disable_jit or guards != (None, None)


def recurrence(weights: Weights, device: str | None) -> Recurrence:
    """A recurrence with parameters of its own that begin at these weights.

    Raises:
        InvalidCall: JAX has no such device here.
    """
    place = _device(device)
    with width(weights.spec):
        params = {name: jax.device_put(array, place, may_alias=False) for name, array in weights.arrays.items()}
    return Recurrence(weights.spec, params)


def read(native: Any) -> Weights:
    """The spec and the weights of a recurrence, as they are now, wherever they are.

    One whose `spec` or `apply` was replaced is called once, and what it computes compared.

    Raises:
        Unrepresentable: it is not a `multirnn_jax.Recurrence`, or computes something else than its spec says.
        InvalidWeights: its parameters are not those of its spec.
    """
    if not isinstance(native, Recurrence):
        raise Unrepresentable(
            "JAX has no recurrent layers of its own: the jax backend reads a multirnn_jax.Recurrence(spec, params), "
            f"not a {type(native).__qualname__}"
        )
    params: Any = native.params
    weights = Weights(native.spec, params)
    if native.as_made:
        return weights
    from multirnn.confirmation import confirmed  # here, since it loads the reference

    return confirmed(weights, partial(_called, native), "this Recurrence")


def _called(native: Recurrence, inputs: Inputs) -> Output:
    with scope(native.spec):
        output = native.apply(native.params, inputs.x, inputs.state, inputs.lengths)
        if not (isinstance(output, Output) and isinstance(output.state, State)):
            raise Unrepresentable(
                f"this Recurrence returns a {type(output).__name__}; Output(sequence, State(h, c)) would be right"
            )
        return jax.tree.map(np.asarray, output)  # type: ignore[no-any-return]


def _device(name: str | None) -> Any:
    """The first device of this platform that this process can use; JAX's default if there is no name."""
    if name is None:
        return None
    try:
        return jax.local_devices(backend=name)[0]
    except RuntimeError as error:
        raise InvalidCall(f"JAX has no device {name!r} here; it can use {', '.join(devices())}") from error


def devices() -> tuple[str, ...]:
    """The platforms that this process can use; the CPU is always one."""
    return tuple(sorted({device.platform for device in (*jax.local_devices(), *jax.local_devices(backend="cpu"))}))
