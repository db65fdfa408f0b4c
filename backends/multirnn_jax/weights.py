"""Canonical weights <-> the parameters of a `Recurrence`: the same names and shapes, as arrays of JAX."""

from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import Any

import jax
import numpy as np

from multirnn import InvalidCall, Output, RecurrentSpec, State, Unrepresentable, Weights
from multirnn.boundary import Inputs
from multirnn_jax.loop import Params, Recurrence

__all__ = ["devices", "disturbed", "place", "read", "scope", "width"]


def width(spec: RecurrentSpec) -> AbstractContextManager[None]:
    """Enable JAX's 64-bit mode for a spec of float64, in this thread."""
    return nullcontext() if spec.dtype == "float32" else jax.enable_x64(True)


def scope(spec: RecurrentSpec) -> AbstractContextManager[Any]:
    """`width`, and as if neither jit nor transfers were forbidden: a layer computes in it."""
    if not disturbed():
        return width(spec)
    stack = ExitStack()
    stack.enter_context(width(spec))
    stack.enter_context(jax.disable_jit(False))  # one operation after another rounds differently
    stack.enter_context(jax.transfer_guard("allow"))  # a layer is given NumPy arrays
    return stack


def disturbed() -> bool:
    """Whether the user disabled jit or guards transfers; takes 0.4 µs."""
    config: Any = jax.config
    guards = config.jax_transfer_guard_host_to_device, config.jax_transfer_guard_device_to_host
    return config.jax_disable_jit or guards != (None, None)


def place(weights: Weights, device: str | None) -> Params:
    """Copies of the weights on the first device of a platform; on JAX's default unless given."""
    try:
        target = None if device is None else jax.local_devices(backend=device)[0]
    except RuntimeError as error:
        raise InvalidCall(f"JAX has no device {device!r} here; it can use {', '.join(devices())}") from error
    with width(weights.spec):
        return {name: jax.device_put(array, target, may_alias=False) for name, array in weights.arrays.items()}


def read(native: Any) -> Weights:
    """The spec and the current weights of a recurrence.

    If its `spec` or `apply` was replaced, it is called once, and the result compared with the reference.

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


def devices() -> tuple[str, ...]:
    """The platforms that this process can use; the CPU is always one."""
    return tuple(sorted({device.platform for device in (*jax.local_devices(), *jax.local_devices(backend="cpu"))}))
