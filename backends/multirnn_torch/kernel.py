"""`KernelLoop`: a `Loop` by the compiled recurrence, `multirnn.kernel`."""

import ctypes
import os
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from multirnn import RecurrentSpec, kernel
from multirnn_torch.loop import LoopCall, Maybe

__all__ = ["KernelLoop"]

NOT_THERE = (0, 0, 0)
ALIGNMENT = 64
LOADED_IN = os.getpid()


class KernelLoop:
    """By `multirnn.kernel`.

    Args:
        spec: the stack.
    """

    ragged = True

    def __init__(self, spec: RecurrentSpec) -> None:
        self._stack = kernel.Stack(spec)
        self._dtype: torch.dtype = getattr(torch, spec.dtype)
        self._passes, self._hidden, self._states = len(tuple(spec.passes)), spec.hidden_size, len(spec.form.states)
        self._strides = {name: _dense(shape) for name, shape in spec.shapes.items()}
        self._bound: tuple[list[int], bytes, Sequence[Tensor]] = [], b"", ()

    def prepare(self, weights: Sequence[Tensor]) -> kernel.Packed:
        """See `Loop.prepare`: packed."""
        _, table, _ = self._table(weights)
        return self._stack.pack(table)

    def forward(self, call: LoopCall, *, keep: bool) -> tuple[list[Tensor], list[Tensor]]:
        """See `Loop.forward`."""
        batch, time = call.size
        final = [self._empty_state(batch) for _ in range(self._states)]
        kept = []
        if keep:
            kept = [_aligned(self._stack.stash_size(batch, time))]
        bound = self._table(call.weights)  # it owns their memory: another thread may replace the weights meanwhile
        self._stack.forward(
            bound[1],
            batch,
            time,
            _sequence(call.x),
            _sequence(call.y),
            _addresses(call.state),
            _addresses(final),
            _address(call.lengths),
            kept[0].data_ptr() if keep else 0,
            torch.get_num_threads(),
            _address(call.starts),
            0 if keep or call.prepared is None else call.prepared.address,
            lent_pool(os.getpid()),
        )
        return final, kept

    def backward(
        self, call: LoopCall, kept: Sequence[Tensor], dy: Maybe, dfinal: Sequence[Maybe], wanted: Sequence[bool]
    ) -> list[Maybe]:
        """See `Loop.backward`."""
        batch, time = call.size
        want_x, *want_others = wanted
        dx = torch.empty_like(call.x) if want_x else None
        dstate = [self._empty_state(batch) if want else None for want in want_others[: self._states]]
        dweights = [
            torch.empty_like(weight) if want else None
            for weight, want in zip(call.weights, want_others[self._states :], strict=True)
        ]
        if dy is not None and dy.stride(-1) != 1:
            dy = dy.contiguous()
        dfinal = [None if part is None else part.contiguous() for part in dfinal]
        stash = kept[0]
        if stash.data_ptr() % ALIGNMENT:  # it came back from elsewhere, by torch.autograd.graph.saved_tensors_hooks
            stash = _aligned(len(stash)).copy_(stash)
        bound = self._table(call.weights)
        self._stack.backward(
            bound[1],
            self._bind([_address(part) for part in dweights]),
            batch,
            time,
            _sequence(call.x),
            _sequence(call.y),
            _addresses(call.state),
            _sequence(dy),
            _addresses(dfinal),
            _sequence(dx),
            _addresses(dstate),
            stash.data_ptr(),
            torch.get_num_threads(),
            _address(call.starts),
            lent_pool(os.getpid()),
        )
        return [dx, *dstate, *dweights]

    def _empty_state(self, batch: int) -> Tensor:
        return torch.empty((self._passes, batch, self._hidden), dtype=self._dtype, device="cpu")

    def _table(self, weights: Sequence[Tensor]) -> tuple[list[int], bytes, Sequence[Tensor]]:
        """The addresses of the weights, the same as the kernel takes them, and what owns their memory.

        Made once and again when a weight has moved: to own them in every call would take 0.3 µs each.
        """
        bound = self._bound
        if [weight.data_ptr() for weight in weights] != bound[0]:
            owners = [weight.detach() for weight in weights]
            addresses = [owner.data_ptr() for owner in owners]
            self._bound = bound = addresses, self._bind(addresses), owners
        return bound

    def _bind(self, addresses: Sequence[int]) -> bytes:
        operands = zip(self._strides.items(), addresses, strict=True)
        return self._stack.bind({name: (address, *strides) for (name, strides), address in operands})


@cache
def lent_pool(process: int) -> int:
    """The address of `GOMP_parallel` of the OpenMP that PyTorch's operations run on; 0 where it has none.

    After each of PyTorch's parallel operations its threads spin for some 17 ms on the cores that other threads would need;
    so they do the work of the kernel too. A child after fork has none of them.

    Args:
        process: in which it is asked.
    """
    if process != LOADED_IN:
        return 0
    found = getattr(ctypes.CDLL(torch._C.__file__), "GOMP_parallel", None)
    return 0 if found is None else ctypes.cast(found, ctypes.c_void_p).value or 0


def _dense(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of a C-contiguous array."""
    strides = [1]
    for size in reversed(shape[1:]):
        strides.append(strides[-1] * size)
    return tuple(reversed(strides))


def _address(tensor: Maybe) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _aligned(size: int) -> Tensor:
    """So many bytes, of which the first has an aligned address."""
    memory = torch.empty(size + ALIGNMENT, dtype=torch.uint8, device="cpu")
    start = -memory.data_ptr() % ALIGNMENT
    return memory[start : start + size]


def _addresses(state: Sequence[Maybe]) -> tuple[int, int]:
    return _address(state[0]), _address(state[1]) if len(state) == 2 else 0


def _sequence(tensor: Maybe) -> tuple[int, int, int]:
    if tensor is None:
        return NOT_THERE
    if tensor.dim() == 2:  # packed: from row to row it is as far as from step to step
        return tensor.data_ptr(), tensor.stride(0), tensor.stride(0)
    batch, time, _ = tensor.stride()
    return tensor.data_ptr(), batch, time
