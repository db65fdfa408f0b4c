"""`CompiledRecurrence`: the compiled recurrence of a spec, called with addresses."""

import ctypes
import struct
from collections.abc import Mapping
from functools import cache
from math import prod
from typing import Any, NamedTuple, NewType
from weakref import WeakValueDictionary, finalize

from numpy.typing import NDArray

from multirnn.activations import ACTIVATIONS, Activation
from multirnn.cells import FORMS
from multirnn.errors import InvalidCall, MissingFramework
from multirnn.kernel.library import instruction_sets, library, refuses
from multirnn.spec import RecurrentSpec
from multirnn.weights import Array

__all__ = ["CallRecord", "Choices", "CompiledRecurrence", "Operand", "Packed", "Sequence", "States", "Table", "address"]
__all__ += ["call_record", "operand", "pack_spec", "sequence"]

Operand = int | tuple[int, ...] | None  # the address of a C-contiguous array, (address, *strides) of any other, or None
Sequence = tuple[int, int, int]  # (batch, time, features) with dense features: address, strides of batch and time
States = tuple[int | None, int | None]  # addresses of h, c: dense (num_layers * directions, batch, hidden_size)
Table = NewType("Table", bytes)  # of all parameters, or of their gradients: addresses and strides
CallRecord = NewType("CallRecord", bytes)  # the `call` of `source/problem.h`

# The parameters of a pass and their number of axes: the `parameters` of `source/problem.h`.
KINDS = {"weight_ih": 3, "weight_hh": 3, "bias_ih": 2, "bias_hh": 2}
CALL, SPEC = struct.Struct("30q"), struct.Struct("6qqddqdd")


class Choices(NamedTuple):
    """Overrides the thresholds, for tests: the `choices` of `source/problem.h`."""

    members: int = -1
    slices: int = -1
    split_units: int = -1
    block: int = -1
    unpacked: int = -1
    along: int = -1
    grain: int = -1
    in_passing: int = -1
    crowded: int = -1
    dx_rows: int = -1
    pieces: int = -1


NOWHERE = (0, 0, 0)


def call_record(
    *,
    batch: int,  # 0 is a size
    time: int,  # 0 is a size
    x: Sequence | None = None,  # (batch, time, input_size); never read at padding
    y: Sequence | None = None,  # (batch, time, directions * hidden_size), not overlapping x; zero at padding
    first: States = (None, None),  # None is zero
    last: States = (None, None),  # written by `forward`; for `backward` their gradients, where None is zero
    lengths: int | None = None,  # int64 (batch,), from 0 to time; None: all full. `backward` has them from the stash
    stash: int | None = None,  # `stash_size(batch, time)` bytes, filled by `forward`; `backward` can be repeated
    threads: int = 1,  # at most, the caller's included; small problems stay on it; the same number gives the same bits
    packed: int | None = None,  # `Packed.address`: `forward` then ignores its table
    lent: int | None = None,  # `GOMP_parallel` of an OpenMP library whose threads do the work; None: the kernel's own
    choices: Choices | None = None,  # forces a path, for tests
    dy: Sequence | None = None,  # never read at padding; None is zero
    dx: Sequence | None = None,  # written by `backward`, zero at padding
    dfirst: States = (None, None),  # written by `backward`
    starts: int | None = None,  # int64 (time,), if x, y, dy and dx are packed
) -> CallRecord:
    """Describe a call of `forward` or `backward`.

    In packed sequences step t begins `starts[t]` strides of time after the first element: rows in order of falling
    length, no padding.
    """
    # Numbers one by one: 0.2 µs faster than unpacking tuples into the call of `pack`.
    steps = starts or 0
    x_at, x_batch, x_time = x or NOWHERE
    y_at, y_batch, y_time = y or NOWHERE
    h, c = first
    last_h, last_c = last
    dy_at, dy_batch, dy_time = dy or NOWHERE
    dx_at, dx_batch, dx_time = dx or NOWHERE
    dh, dc = dfirst
    forced = 0 if choices is None else ctypes.addressof(_in_memory(choices))
    # fmt: off
    return CallRecord(CALL.pack(
        batch, time,
        x_at, x_batch, x_time, steps,
        y_at, y_batch, y_time, steps,
        h or 0, c or 0, last_h or 0, last_c or 0,
        lengths or 0, stash or 0, threads, packed or 0, lent or 0, forced,
        dy_at, dy_batch, dy_time, steps,
        dx_at, dx_batch, dx_time, steps,
        dh or 0, dc or 0,
    ))
    # fmt: on


@cache
def _in_memory(choices: Choices) -> Any:
    # Kept for good: there are few.
    return (ctypes.c_int64 * len(choices))(*choices)


def address(array: NDArray[Any]) -> int:
    """Where a NumPy array begins. `__array_interface__` takes 0.9 µs, a writable buffer 0.3."""
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(array))  # type: ignore[arg-type]
    except (TypeError, ValueError, BufferError):  # read-only, empty, or not contiguous
        found: int = array.__array_interface__["data"][0]
        return found


def operand(array: Array) -> Operand:
    """A NumPy array as an operand; its strides have to be whole elements."""
    return (address(array), *(stride // array.itemsize for stride in array.strides))


def sequence(array: Array) -> Sequence:
    """A NumPy array `(batch, time, features)` with dense features."""
    batch, time, _ = array.strides
    size = array.itemsize
    return address(array), batch // size, time // size


class Packed:
    """Weights in the layout of the matrix products, from `CompiledRecurrence.pack`; freed with this object."""

    def __init__(self, address: int) -> None:
        self.address = address
        finalize(self, library().multirnn_free, address).atexit = False  # the library may be unloaded by then


class _KeptMemory:
    """Shared by all recurrences: when the last one goes, the memory kept for the next calls is released."""

    def __init__(self) -> None:
        finalize(self, library().multirnn_free_kept).atexit = False  # the library may be unloaded by then


_kept: WeakValueDictionary[str, _KeptMemory] = WeakValueDictionary()


class CompiledRecurrence:
    """The compiled recurrence of one spec, any spec, with the best of `instruction_sets()` unless one is named.

    It holds no weights: each call packs those of its table, so that later changes to them count, unless it is given what
    `pack` returned. Threads may call it concurrently; it releases the GIL, and works in a forked child.
    """

    def __init__(self, spec: RecurrentSpec, instructions: str | None = None) -> None:
        if (reason := refuses()) is not None:
            raise MissingFramework(reason)
        available = instruction_sets()
        if instructions is not None and instructions not in available:
            raise InvalidCall(f"instructions must be one of {', '.join(available)}, not {instructions!r}")
        self.spec = spec
        self.instructions = instructions or available[0]
        self._keeper = _kept.get("memory") or _kept.setdefault("memory", _KeptMemory())
        self._spec = pack_spec(spec)
        # Every parameter in the order of the table, with its strides if it is C-contiguous.
        names = {f"layers.{layer}.{way}.{kind}": axes for layer, way in spec.passes for kind, axes in KINDS.items()}
        shapes = {name: spec.shapes.get(name, (0,) * axes) for name, axes in names.items()}
        self._operands = [(name, tuple(prod(s[axis + 1 :]) for axis in range(len(s)))) for name, s in shapes.items()]
        self._forward = self._function("forward", 3, ctypes.c_int)
        self._backward = self._function("backward", 4, ctypes.c_int)
        self._stash_size = self._function("stash_size", 2, ctypes.c_int64)
        self._pack = self._function("pack", 2, ctypes.c_void_p)

    def _function(self, name: str, pointers: int, returns: Any) -> Any:
        function = getattr(library(), f"multirnn_{name}_{self.instructions}_{self.spec.dtype}")
        function.argtypes = [ctypes.c_char_p] * pointers
        function.restype = returns
        return function

    def bind(self, parameters: Mapping[str, Operand]) -> Table:
        """The table of parameters by canonical name, or of their gradients; an absent gradient is not computed.

        Bind arrays that stay in place once. The table keeps nothing alive. Strides are those of the canonical axes: a framework's C-contiguous
        `(gates * hidden_size, n)` is C-contiguous in the canonical shape too.
        """
        numbers: list[int] = []
        for name, dense in self._operands:
            found = parameters.get(name)
            numbers.extend(found if isinstance(found, tuple) else (found or 0, *dense))
        return Table(struct.pack(f"{len(numbers)}q", *numbers))

    def pack(self, table: Table) -> Packed:
        """Pack the parameters as they are now, for calls of `forward` with this spec and these instructions."""
        address = self._pack(self._spec, table)
        if address is None:
            raise MemoryError("the compiled recurrence found no memory for the packed weights")
        return Packed(address)

    def stash_size(self, batch: int, time: int) -> int:
        """The bytes that `forward` stashes for `backward`; the memory has to be aligned to 64 bytes."""
        return int(self._stash_size(self._spec, call_record(batch=batch, time=time)))

    def stash_bound(self) -> tuple[int, int]:
        """Two numbers (step, more): `step * (batch * time + batch + more)` is at least `stash_size` on every machine.

        For programs that are compiled before sizes and machine are known. As `lay_out_stash` in `source/forward.h`, but
        every row of gates or of states is as long as with the widest vectors, 64 bytes, and one vector longer.
        """
        spec, size = self.spec, {"float32": 4, "float64": 8}[self.spec.dtype]
        passes, vectors = len(list(spec.passes)), -(-spec.hidden_size * size // 64)
        gates = {"simple_rnn": 0, "lstm": 4, "gru": 4 if spec.reset_after else 3}[spec.cell]
        rows = [gates * vectors + 1] * (gates > 0) + [vectors + 1] * (spec.cell == "lstm")
        step = max(64, passes * 64 * sum(rows) + (spec.num_layers - 1) * spec.output_size * size)
        pieces = spec.num_layers + passes * len(rows)  # each rounded up to 64 bytes
        return step, -(-(self.stash_size(0, 0) + 64 * pieces) // step)

    def forward(self, table: Table, call: CallRecord) -> None:
        """Run over x; writes y, the final states and the stash. A length not from 0 to time is an InvalidCall."""
        if outcome := self._forward(self._spec, table, call):
            raise _error(outcome)

    def backward(self, table: Table, gradients: Table, call: CallRecord) -> None:
        """The gradients of a call of `forward`; writes dx, dfirst and the arrays of `gradients`, overwriting them.

        The parameters, x, y and first are unchanged since. A stash of another call is an InvalidCall.
        """
        if outcome := self._backward(self._spec, table, call, gradients):
            raise _error(outcome)


def pack_spec(spec: RecurrentSpec) -> bytes:
    """The `spec` of `source/problem.h`."""
    recurrent_bias = spec.shapes.get("layers.0.forward.bias_hh", (0,))
    sizes = spec.input_size, spec.hidden_size, spec.num_layers, len(spec.directions), recurrent_bias[0]
    activations: list[float] = []
    for value in (spec.activation, spec.recurrent_activation):
        activation = Activation.of(value)
        activations += [list(ACTIVATIONS).index(activation.name), activation.alpha or 0.0, activation.beta or 0.0]
    return SPEC.pack(list(FORMS.values()).index(spec.form), *sizes, *activations)


def _error(outcome: int) -> Exception:
    """The error of an `outcome` of `source/problem.h`."""
    if outcome == 2:
        return InvalidCall("lengths must be from 0 to the time steps of x")
    if outcome == 3:
        return InvalidCall("the stash is not the one that forward filled for this call")
    return MemoryError("the compiled recurrence found no memory to work in")
