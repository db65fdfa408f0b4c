"""`Stack`: the compiled recurrence of a spec, called with addresses."""

import ctypes
import struct
from collections.abc import Mapping
from threading import RLock
from typing import Any, NamedTuple
from weakref import finalize

from multirnn.activations import ACTIVATIONS, Activation
from multirnn.errors import InvalidCall, MissingFramework
from multirnn.kernel.library import instruction_sets, library, missing
from multirnn.spec import RecurrentSpec
from multirnn.weights import Array

__all__ = ["Choices", "Operand", "Packed", "Sequence", "Stack", "States", "operand", "sequence"]

Operand = tuple[int, ...]
"""An array: its address, and a stride in elements for every axis."""

Sequence = tuple[int, int, int]
"""A sequence `(batch, time, features)`: its address, and the strides of batch and time in elements; features are dense."""

States = tuple[int, int]
"""The addresses of h and, of an LSTM, of c (else 0): `(num_layers * directions, batch, hidden_size)`, C-contiguous."""

PARAMETERS = {"weight_ih": 3, "weight_hh": 3, "bias_ih": 2, "bias_hh": 2}
"""The parameters of a pass, with the number of their axes, in the order of `source/problem.h`."""

CALL = struct.Struct("30q")
"""A `call` of `source/problem.h`."""


class Choices(NamedTuple):
    """What a test chooses in place of the thresholds; the `choices` of `source/problem.h`, where each is explained."""

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


NOWHERE = (0, 0, 0, 0)
"""A sequence that is not there, with its `starts`."""


def operand(array: Array) -> Operand:
    """A NumPy array as an operand; its strides have to be whole elements."""
    return (array.__array_interface__["data"][0], *(stride // array.itemsize for stride in array.strides))


def sequence(array: Array) -> Sequence:
    """A NumPy array `(batch, time, features)` with dense features, as an operand."""
    batch, time, _ = array.strides
    return array.__array_interface__["data"][0], batch // array.itemsize, time // array.itemsize


class Packed:
    """The weights of a stack as its products want them, from `Stack.pack`; NumPy sees them as bytes that are read-only.

    Attributes:
        address: where they begin, at 64 bytes, as long as this object lives.
    """

    def __init__(self, address: int, size: int) -> None:
        self.address = address
        self._size = size
        finalize(self, _let_go(), address).atexit = False  # the process ends, and the library may be gone before

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return {"version": 3, "shape": (self._size,), "typestr": "|u1", "data": (self.address, True)}


class _Live:
    """How many stacks there are. With the last one goes the memory that calls keep for the next ones."""

    def __init__(self) -> None:
        self._count = 0
        self._lock = RLock()  # the collector may finalize a stack while this thread makes one

    def enter(self, stack: "Stack") -> None:
        with self._lock:
            self._count += 1
        finalize(stack, self._leave).atexit = False  # the process ends, and the library may be gone before

    def _leave(self) -> None:
        with self._lock:
            self._count -= 1
            if not self._count:
                library().multirnn_free_kept()


_live = _Live()


class Stack:
    """The compiled recurrence of one spec: forward, and backward.

    It holds no weights: every call packs those that it is given, so that what was written into them in between counts,
    unless it is given what `pack` made of them before. It may be called from several threads at once, lets go of the GIL,
    and works in a child after fork.

    Args:
        spec: every spec is realised.
        instructions: one of `instruction_sets()`; the best that this machine runs unless given.

    Raises:
        MissingFramework: the compiled library is not there; `missing()` says why.
        InvalidCall: this machine or this library does not have those instructions.
    """

    def __init__(self, spec: RecurrentSpec, instructions: str | None = None) -> None:
        if (reason := missing()) is not None:
            raise MissingFramework(reason)
        available = instruction_sets()
        if instructions is not None and instructions not in available:
            raise InvalidCall(f"instructions must be one of {', '.join(available)}, not {instructions!r}")
        self.spec = spec
        self.instructions = instructions or available[0]
        _live.enter(self)
        suffix = f"{self.instructions}_{spec.dtype}"
        self._spec = pack_spec(spec)
        self._forward = _function(f"multirnn_forward_{suffix}", 3, ctypes.c_int)
        self._backward = _function(f"multirnn_backward_{suffix}", 4, ctypes.c_int)
        self._stash_size = _function(f"multirnn_stash_size_{suffix}", 2, ctypes.c_int64)
        self._pack = _function(f"multirnn_pack_{suffix}", 2, ctypes.c_void_p)
        self._size_of_packed = _function(f"multirnn_size_of_packed_{suffix}", 1, ctypes.c_int64)

    def bind(self, parameters: Mapping[str, Operand]) -> bytes:
        """The addresses of parameters, or of their gradients, as the calls take them.

        To be done once for arrays that stay where they are; the table holds addresses and keeps nothing alive.

        Args:
            parameters: an operand for every name of `spec.shapes`, with the strides of that canonical shape, any order in
                memory. A framework's `(gates * hidden_size, n)` is the same memory with strides `(hidden_size * n, n, 1)`.
                As a table of gradients, an address 0 says that this one is not wanted.
        """
        numbers: list[int] = []
        for layer, direction in self.spec.passes:
            for last, axes in PARAMETERS.items():
                numbers.extend(parameters.get(f"layers.{layer}.{direction}.{last}", (0,) * (1 + axes)))
        return struct.pack(f"{len(numbers)}q", *numbers)

    def pack(self, table: bytes) -> Packed:
        """The parameters as they are now, packed for calls of `forward` of this spec and these instructions.

        Args:
            table: of the parameters, from `bind`.

        Raises:
            MemoryError: there is not enough memory for them.
        """
        address = self._pack(self._spec, table)
        if address is None:
            raise MemoryError("the compiled recurrence found no memory for the packed weights")
        return Packed(address, self._size_of_packed(self._spec))

    def stash_size(self, batch: int, time: int) -> int:
        """How many bytes `forward` has to stash for `backward`; the memory has to be aligned to 64 bytes."""
        return int(self._stash_size(self._spec, struct.pack("2q", batch, time).ljust(CALL.size, b"\0")))

    def forward(
        self,
        table: bytes,
        batch: int,
        time: int,
        x: Sequence,
        y: Sequence,
        first: States,
        last: States,
        lengths: int = 0,
        stash: int = 0,
        threads: int = 1,
        starts: int = 0,
        packed: int = 0,
        lent: int = 0,
        choices: Choices | None = None,
    ) -> None:
        """Run over `x`.

        Args:
            table: of the parameters, from `bind`; not read where they are packed.
            batch, time: the sizes of those axes; 0 is a size.
            x: `(batch, time, input_size)`; never read at padding.
            y: `(batch, time, directions * hidden_size)`, is written; zero at padding. Does not overlap x.
            first: the initial states; `(0, 0)` is zero.
            last: where the final states go; `(0, 0)`: nowhere.
            lengths: the address of int64 `(batch,)`, 0 <= length <= time; 0: all rows are full.
            stash: the address of `stash_size(batch, time)` bytes, filled for `backward`; 0: no gradients are wanted.
            threads: at most so many are used, the caller's own among them; small work stays on the caller's.
            starts: the address of int64 `(time,)`: x and y are packed, steps one after another without padding, and this is
                at how many strides of time each begins; the rows are in the order of falling lengths. 0: not packed.
            packed: the address of the parameters as `pack` left them; 0: those in the table are.
            lent: the address of `GOMP_parallel` of an OpenMP library, whose threads do the work then; 0: own ones do.
            choices: of a test, which forces a path.

        Raises:
            InvalidCall: a length is not from 0 to time.
            MemoryError: there is not enough memory for the packed weights.
        """
        forced = _forced(choices)
        call = CALL.pack(
            *(
                batch,
                time,
                *x,
                starts,
                *y,
                starts,
                *first,
                *last,
                lengths,
                stash,
                threads,
                packed,
                lent,
                _address_of(forced),
            ),
            *(*NOWHERE, *NOWHERE, 0, 0),
        )
        if outcome := self._forward(self._spec, table, call):
            raise _error(outcome)

    def backward(
        self,
        table: bytes,
        gradients: bytes,
        batch: int,
        time: int,
        x: Sequence,
        y: Sequence,
        first: States,
        dy: Sequence,
        dlast: States,
        dx: Sequence,
        dfirst: States,
        stash: int,
        threads: int = 1,
        starts: int = 0,
        lent: int = 0,
        choices: Choices | None = None,
    ) -> None:
        """The gradients of what `forward` did.

        Args:
            table, batch, time, x, first, starts: as in the call of `forward`, unchanged since; dy and dx are packed as x
                and y are. The lengths are in the stash.
            gradients: a table of the gradients of the parameters, from `bind`; they are overwritten, not added to.
            y: the outputs that `forward` wrote, unchanged since.
            dy: the gradient of y, never read at padding; `(0, 0, 0)` is zero.
            dlast: the gradient of the final states; an address 0 is zero.
            dx: where the gradient of x goes, zero at padding; `(0, 0, 0)`: nowhere.
            dfirst: where the gradient of the initial states goes; an address 0: nowhere.
            stash: that `forward` filled; it is left as it is, so that the call can be repeated.
            threads, lent, choices: as in `forward`. The same number of threads gives the same bits.

        Raises:
            InvalidCall: the stash is not the one that `forward` filled for this call.
            MemoryError: there is not enough memory for the gradients of all steps.
        """
        forced = _forced(choices)
        call = CALL.pack(
            *(batch, time, *x, starts, *y, starts, *first, *dlast, 0, stash, threads, 0, lent, _address_of(forced)),
            *(*dy, starts, *dx, starts, *dfirst),
        )
        if outcome := self._backward(self._spec, table, call, gradients):
            raise _error(outcome)


def pack_spec(spec: RecurrentSpec) -> bytes:
    """As `source/problem.h` has it."""
    cell = ("simple_rnn", "lstm", "gru").index(spec.cell) + (spec.cell == "gru" and not spec.reset_after)
    recurrent_bias = spec.shapes.get("layers.0.forward.bias_hh", (0,))
    numbers = [cell, spec.input_size, spec.hidden_size, spec.num_layers, len(spec.directions), recurrent_bias[0]]
    activations: list[float] = []
    for value in (spec.activation, spec.recurrent_activation):
        activation = Activation.of(value)
        activations += [list(ACTIVATIONS).index(activation.name), activation.alpha or 0.0, activation.beta or 0.0]
    return struct.pack("6qqddqdd", *numbers, *activations)


def _forced(choices: Choices | None) -> Any:
    """The choices as C has them, to be kept until the call is over; None where there are none."""
    return None if choices is None else (ctypes.c_int64 * len(choices))(*choices)


def _address_of(forced: Any) -> int:
    return 0 if forced is None else ctypes.addressof(forced)


def _error(outcome: int) -> Exception:
    """The error of an `outcome` of `source/problem.h`."""
    if outcome == 2:
        return InvalidCall("lengths must be from 0 to the time steps of x")
    if outcome == 3:
        return InvalidCall("the stash is not the one that forward filled for this call")
    return MemoryError("the compiled recurrence found no memory to work in")


def _let_go() -> Any:
    function = library().multirnn_let_go
    function.argtypes, function.restype = [ctypes.c_void_p], None
    return function


def _function(name: str, pointers: int, returns: Any) -> Any:
    function = getattr(library(), name)
    function.argtypes = [ctypes.c_char_p] * pointers
    function.restype = returns
    return function
