"""The compiled recurrence as custom calls of XLA: its compiled programs call it without the interpreter.

Operands are C-contiguous, in this order:

    forward     x, [h, [c]], [lengths], parameters                       ->  y, h, [c], [stash]
    backward    x, [h, [c]], [lengths], parameters, y, stash, dy, dh, [dc]  ->  [dx], [dh, [dc]], gradients

c exists for the LSTM; the initial state, the lengths (int32, 0 <= length <= time) and dx if the attributes say so. Parameters
and gradients are in the order of `spec.shapes`.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multirnn.kernel.compiled import pack_spec
from multirnn.kernel.library import instruction_sets, library
from multirnn.kernel.library import refuses as library_refuses
from multirnn.spec import RecurrentSpec

__all__ = ["VERSION", "attributes", "handler", "refuses"]

VERSION = 0, 3  # of XLA's foreign function interface, as `source/xla.h` implements it


def refuses(header: Path) -> str | None:
    """Why the XLA with this `xla/ffi/api/c_api.h` cannot call the compiled recurrence, in a sentence, or None."""
    if (reason := library_refuses()) is not None:
        return reason
    try:
        text = header.read_text(encoding="utf-8")
    except OSError:
        return "this JAX comes without the header that has the version of its foreign function interface"
    found = tuple(int(number) for number in re.findall(r"#define XLA_FFI_API_M(?:AJOR|INOR) (\d+)", text))
    if found != VERSION:
        said = ".".join(map(str, found)) or "unknown"
        return f"version {'.'.join(map(str, VERSION))} of XLA's foreign function interface is supported, not {said}"
    return None


def handler(direction: str, dtype: str) -> Any:
    """The function to register for `"forward"` or `"backward"`, for the best instructions of this machine."""
    return getattr(library(), f"multirnn_xla_{direction}_{instruction_sets()[0]}_{dtype}")


def attributes(
    spec: RecurrentSpec, *, state: bool, lengths: bool, stash: bool, dx: bool, threads: int
) -> NDArray[np.int64]:
    """The `custom_call` of `source/xla.h`: which operands and results there are, and at most how many threads.

    The stash has `CompiledRecurrence.stash_size` bytes.
    """
    flags = [state, lengths, "layers.0.forward.bias_ih" in spec.shapes, stash, dx, threads]
    return np.concatenate([np.array(flags, np.int64), np.frombuffer(pack_spec(spec), np.int64)])
