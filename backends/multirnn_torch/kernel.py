"""`KernelLoop`: a `Loop` by the compiled recurrence, `multirnn.kernel`."""

import ctypes
import os
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from multirnn import RecurrentSpec, kernel
from multirnn.kernel import call_record
from multirnn_torch.loop import LoopCall, Maybe

__all__ = ["KernelLoop"]

ALIGNMENT = 64
LOADED_IN = os.getpid()


class KernelLoop:
    """By `multirnn.kernel`."""

    ragged = True

    def __init__(self, spec: RecurrentSpec) -> None:
        self._spec = spec
        self._compiled = kernel.CompiledRecurrence(spec)
        self._passes, self._states = len(tuple(spec.passes)), len(spec.form.states)
        self._bound: tuple[list[int], kernel.Table, Sequence[Tensor]] = [], kernel.Table(b""), ()

    def prepare(self, weights: Sequence[Tensor]) -> kernel.Packed:
        """See `Loop.prepare`: packed."""
        _, table, _ = self._table(weights)
        return self._compiled.pack(table)

    def reserve_size(self, batch: int, time: int) -> int:
        """An upper bound of the bytes that `forward` keeps, linear in the symbols that `torch.compile` has for sizes."""
        step, more = self._compiled.stash_bound()
        return step * (batch * time + batch + more)

    def forward(self, call: LoopCall, *, keep: bool, reserve: Maybe = None) -> tuple[list[Tensor], list[Tensor]]:
        """See `Loop.forward`; what it keeps is written to the reserve space, if one is given."""
        batch, time = call.size
        final = [self._empty_state(call) for _ in range(self._states)]
        into = reserve if reserve is not None and not reserve.data_ptr() % ALIGNMENT else None
        kept = [_aligned(self._compiled.stash_size(batch, time)) if into is None else into] if keep else []
        bound = self._table(call.weights)  # it owns their memory: another thread may replace the weights meanwhile
        record = call_record(
            batch=batch,
            time=time,
            x=_sequence(call.x),
            y=_sequence(call.y),
            first=_addresses(call.state),
            last=_addresses(final),
            lengths=_address(call.lengths),
            stash=kept[0].data_ptr() if keep else None,
            threads=torch.get_num_threads(),
            packed=None if keep or call.prepared is None else call.prepared.address,
            lent=lent_pool(os.getpid()),
            starts=_address(call.starts),
        )
        self._compiled.forward(bound[1], record)
        if reserve is not None and into is None:
            reserve[: len(kept[0])] = kept[0]
        return final, kept

    def backward(
        self, call: LoopCall, kept: Sequence[Tensor], dy: Maybe, dfinal: Sequence[Maybe], wanted: Sequence[bool]
    ) -> list[Maybe]:
        """See `Loop.backward`."""
        batch, time = call.size
        want_x, *want_others = wanted
        dx = torch.empty_like(call.x) if want_x else None
        dstate = [self._empty_state(call) if want else None for want in want_others[: self._states]]
        dweights = [
            torch.empty_like(weight) if want else None
            for weight, want in zip(call.weights, want_others[self._states :], strict=True)
        ]
        if dy is not None and dy.stride(-1) != 1:
            dy = dy.contiguous()
        dfinal = [None if part is None else part.contiguous() for part in dfinal]
        stash = kept[0]
        if stash.data_ptr() % ALIGNMENT:  # moved by torch.autograd.graph.saved_tensors_hooks
            stash = _aligned(len(stash)).copy_(stash)
        bound = self._table(call.weights)
        record = call_record(
            batch=batch,
            time=time,
            x=_sequence(call.x),
            y=_sequence(call.y),
            first=_addresses(call.state),
            last=_addresses(dfinal),
            stash=stash.data_ptr(),
            threads=torch.get_num_threads(),
            lent=lent_pool(os.getpid()),
            dy=_sequence(dy),
            dx=_sequence(dx),
            dfirst=_addresses(dstate),
            starts=_address(call.starts),
        )
        self._compiled.backward(bound[1], self._bind([_address(part) for part in dweights]), record)
        return [dx, *dstate, *dweights]

    def _empty_state(self, call: LoopCall) -> Tensor:
        return call.x.new_empty(self._passes, call.size[0], self._spec.hidden_size)

    def _table(self, weights: Sequence[Tensor]) -> tuple[list[int], kernel.Table, Sequence[Tensor]]:
        """The addresses of the weights, their table, and tensors that own their memory.

        Rebuilt when a weight has moved: owning tensors take 0.3 µs each, too long for every call.
        """
        bound = self._bound
        if [weight.data_ptr() for weight in weights] != bound[0]:
            owners = [weight.detach() for weight in weights]
            addresses = [owner.data_ptr() for owner in owners]
            self._bound = bound = addresses, self._bind(addresses), owners
        return bound

    def _bind(self, addresses: Sequence[int | None]) -> kernel.Table:
        return self._compiled.bind(dict(zip(self._spec.shapes, addresses, strict=True)))


@cache
def lent_pool(process: int) -> int | None:
    """The address of `GOMP_parallel` of the OpenMP that PyTorch's operations run on; None where it has none.

    After each parallel operation PyTorch's threads spin for some 17 ms, on cores that other threads would need: so they
    do the kernel's work too. A forked child has none of them.
    """
    if process != LOADED_IN:
        return None
    found = getattr(ctypes.CDLL(torch._C.__file__), "GOMP_parallel", None)
    return None if found is None else ctypes.cast(found, ctypes.c_void_p).value


def _address(tensor: Maybe) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _aligned(size: int) -> Tensor:
    memory = torch.empty(size + ALIGNMENT, dtype=torch.uint8, device="cpu")
    start = -memory.data_ptr() % ALIGNMENT
    return memory[start : start + size]


def _addresses(state: Sequence[Maybe]) -> kernel.States:
    return _address(state[0]), _address(state[1]) if len(state) == 2 else None


def _sequence(tensor: Maybe) -> kernel.Sequence | None:
    if tensor is None:
        return None
    if tensor.dim() == 2:  # packed: rows and steps are equally far apart
        return tensor.data_ptr(), tensor.stride(0), tensor.stride(0)
    batch, time, _ = tensor.stride()
    return tensor.data_ptr(), batch, time
