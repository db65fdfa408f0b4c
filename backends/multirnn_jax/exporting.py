"""`jax.export` of functions that call fast layers: one program for every batch and length, run where its file is loaded.

The program contains the custom calls of `multirnn_jax.kernel`. `jax.export` has to be told that they stay as they are, and
the process that loads the program has to have them.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.export  # not an attribute of `jax` before it is imported
from jax.export import DisabledSafetyCheck, Exported

from multirnn import InvalidCall, MissingFramework, State
from multirnn.errors import kind_of
from multirnn_jax import kernel
from multirnn_jax.loop import Recurrence

__all__ = ["export", "export_function", "load_exported"]

CALLS = [(way, dtype) for way in ("forward", "backward") for dtype in ("float32", "float64")]


def export(native: Recurrence, *, state: bool = False, lengths: bool = False) -> Exported:
    """Export `native.apply` for any batch and any number of time steps, both at least 1.

    Write `export(layer.native).serialize(vjp_order=1)` to a file; `load_exported` reads it. Parameters are not in it. A
    stack of float64 is exported, serialised and called inside `with jax.enable_x64(True):`.

    Args:
        native: a recurrence, fast or not.
        state: whether the exported function takes an initial state.
        lengths: whether it takes lengths, int32.

    Returns:
        A function; its `call(params, x)`, `call(params, x, state)`, `call(params, x, None, lengths)` or
        `call(params, x, state, lengths)` takes what `native.apply` takes. Shapes as there, with one batch axis.

    Raises:
        InvalidCall: it is not a recurrence.
    """
    if not isinstance(native, Recurrence):
        raise InvalidCall(
            f"export takes a multirnn_jax.Recurrence, such as layer.native, not {kind_of(native)}; "
            "export_function takes any function and what it is called with"
        )
    spec = native.spec
    batch, time = jax.export.symbolic_shape("batch, time")

    struct: Any = jax.ShapeDtypeStruct  # not typed

    def like(*shape: Any) -> Any:
        return struct(shape, spec.dtype)

    part = like(spec.num_layers * len(spec.directions), batch, spec.hidden_size)
    arguments = [
        {name: like(*shape) for name, shape in spec.shapes.items()},
        like(batch, time, spec.input_size),
        State(*[part] * len(spec.form.states)) if state else None,
        struct((batch,), "int32") if lengths else None,
    ]
    while arguments[-1] is None:
        arguments.pop()
    return export_function(native.apply, *arguments)


def export_function(function: Callable[..., Any], *arguments: Any) -> Exported:
    """Export a function that may call fast layers: `jax.export.export`, which keeps their custom calls.

    Args:
        function: of arrays and pytrees of them, jitted or not.
        arguments: those of a call, or `jax.ShapeDtypeStruct` in place of arrays; sizes may be those of
            `jax.export.symbolic_shape`, all from one call of it.
    """
    jitted: Any = function if hasattr(function, "trace") else jax.jit(function)
    checks = [DisabledSafetyCheck.custom_call(kernel.target_name(*call)) for call in CALLS]
    return jax.export.export(jitted, disabled_checks=checks)(*arguments)


def load_exported(serialized: bytes | bytearray) -> Exported:
    """Read a function that `Exported.serialize` wrote, in a process that may not have called a fast layer yet.

    Where multirnn is not imported, `jax.export.deserialize` reads it too, but the program does not find its custom calls.

    Raises:
        InvalidCall: the custom calls in it are those of another version of multirnn; or these are no bytes.
        MissingFramework: it has custom calls, and multirnn has no compiled recurrence here.
    """
    if not isinstance(serialized, bytes | bytearray):
        raise InvalidCall(f"load_exported takes the bytes of Exported.serialize(), not {kind_of(serialized)}")
    exported = jax.export.deserialize(bytearray(serialized))
    modules = exported.mlir_module_serialized, *([exported.vjp().mlir_module_serialized] if exported.has_vjp() else [])
    found = {name.decode() for name in re.findall(rb"multirnn_(?:forward|backward)_float\d\d_v\d+", b" ".join(modules))}
    known = {kernel.target_name(*call): call for call in CALLS}
    if foreign := sorted(found - set(known)):
        raise InvalidCall(
            f"this function calls {', '.join(foreign)} of another version of multirnn, and this one has version "
            f"{kernel.VERSION} of its custom calls; export it again"
        )
    if found and (reason := kernel.library_refuses()):
        raise MissingFramework(f"this function calls the compiled recurrence: {reason}")
    for name in found:
        kernel.target(*known[name])
    return exported
