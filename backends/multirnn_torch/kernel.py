"""`KernelLoop`: a `Loop` by the compiled recurrence, `multirnn.kernel`."""

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from multirnn import RecurrentSpec, kernel
from multirnn_torch.loop import Call, Maybe

__all__ = ["KernelLoop"]

NOT_THERE = (0, 0, 0)
ALIGNMENT = 64
LARGE = 50_000_000
"""Multiplications for each thread from which PyTorch's own threads are sent home first: a core takes 0.8 ms for them.

After every parallel operation of PyTorch its OpenMP threads spin for some 17 ms on the cores that the kernel needs. To end
them, and to begin anew, takes 0.6 ms with two. Training steps on two cores, in ms, without and with it: simple RNN
(8,100,256,256) 12.5 and 8.7, (32,30,512,512) 34 and 25, GRU (16,50,256,256) 30 and 20, LSTM (16,50,256,256) 36 and 30.
"""


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
        self._multiplications = sum(prod(shape) for name, shape in spec.shapes.items() if "weight" in name)
        self._bound: tuple[list[int], bytes] = [], b""

    def prepare(self, weights: Sequence[Tensor]) -> kernel.Packed:
        """See `Loop.prepare`: packed."""
        return self._stack.pack(self._table(weights))

    def forward(self, call: Call, *, keep: bool) -> tuple[list[Tensor], list[Tensor]]:
        """See `Loop.forward`."""
        batch, time = call.size
        final = [self._empty_state(batch) for _ in range(self._states)]
        kept = []
        if keep:
            size = self._stack.stash_size(batch, time) + ALIGNMENT
            kept = [torch.empty(size, dtype=torch.uint8, device="cpu")]
        self._stack.forward(
            self._table(call.weights),
            batch,
            time,
            _sequence(call.x),
            _sequence(call.y),
            _addresses(call.state),
            _addresses(final),
            _address(call.lengths),
            _aligned(kept[0]) if keep else 0,
            self._threads(batch, time),
            _address(call.starts),
            0 if keep or call.prepared is None else call.prepared.address,
        )
        return final, kept

    def backward(
        self, call: Call, kept: Sequence[Tensor], dy: Maybe, dfinal: Sequence[Maybe], wanted: Sequence[bool]
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
        self._stack.backward(
            self._table(call.weights),
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
            _address(call.lengths),
            _aligned(kept[0]),
            self._threads(batch, time),
            _address(call.starts),
        )
        return [dx, *dstate, *dweights]

    def _threads(self, batch: int, time: int) -> int:
        """How many the call may use, as many as PyTorch's operations; see `LARGE`."""
        threads = torch.get_num_threads()
        if threads > 1 and self._multiplications * batch * time > LARGE * threads and (pause := _pause()) is not None:
            pause(SOFT)
        return threads

    def _empty_state(self, batch: int) -> Tensor:
        return torch.empty((self._passes, batch, self._hidden), dtype=self._dtype, device="cpu")

    def _table(self, weights: Sequence[Tensor]) -> bytes:
        """The addresses of the weights as the kernel takes them, made anew when one has moved."""
        addresses = [weight.data_ptr() for weight in weights]
        known, table = self._bound
        if addresses != known:
            table = self._bind(addresses)
            self._bound = addresses, table
        return table

    def _bind(self, addresses: Sequence[int]) -> bytes:
        operands = zip(self._strides.items(), addresses, strict=True)
        return self._stack.bind({name: (address, *strides) for (name, strides), address in operands})


SOFT = 1
"""`omp_pause_soft`: what the program set stays."""


@cache
def _pause() -> Callable[[int], Any] | None:
    """`omp_pause_resource_all` (OpenMP 5.0) of the library that PyTorch's operations run on; None where it has none."""
    found: Callable[[int], Any] | None = getattr(ctypes.CDLL(torch._C.__file__), "omp_pause_resource_all", None)
    return found


def _dense(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of a C-contiguous array."""
    strides = [1]
    for size in reversed(shape[1:]):
        strides.append(strides[-1] * size)
    return tuple(reversed(strides))


def _address(tensor: Maybe) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _aligned(memory: Tensor) -> int:
    return -(-memory.data_ptr() // ALIGNMENT) * ALIGNMENT


def _addresses(state: Sequence[Maybe]) -> tuple[int, int]:
    return _address(state[0]), _address(state[1]) if len(state) == 2 else 0


def _sequence(tensor: Maybe) -> tuple[int, int, int]:
    if tensor is None:
        return NOT_THERE
    if tensor.dim() == 2:  # packed: from row to row it is as far as from step to step
        return tensor.data_ptr(), tensor.stride(0), tensor.stride(0)
    batch, time, _ = tensor.stride()
    return tensor.data_ptr(), batch, time
