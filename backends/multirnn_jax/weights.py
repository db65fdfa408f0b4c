"""Canonical weights <-> the parameters of a `Recurrence`: the same names and shapes, as arrays of JAX."""

from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import jax
import numpy as np

from multirnn import InvalidCall, RecurrentSpec, Unrepresentable, Weights
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

    Raises:
        Unrepresentable: it is not a `multirnn_jax.Recurrence`.
        InvalidWeights: its parameters are not those of its spec.
    """
    if not isinstance(native, Recurrence):
        raise Unrepresentable(
            "JAX has no recurrent layers of its own: the jax backend reads a multirnn_jax.Recurrence(spec, params), "
            f"not a {type(native).__qualname__}"
        )
    return Weights(native.spec, {name: np.asarray(array) for name, array in native.params.items()})


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
