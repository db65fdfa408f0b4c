"""`KernelLoop`: a `Loop` by the compiled recurrence, `multirnn.kernel`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from multirnn import RecurrentSpec, kernel
from multirnn_torch.loop import Maybe

__all__ = ["KernelLoop"]

NOT_THERE = (0, 0, 0)
ALIGNMENT = 64


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
        self._bound: tuple[list[int], bytes] = [], b""

    def forward(
        self,
        x: Tensor,
        state: Sequence[Maybe],
        weights: Sequence[Tensor],
        lengths: Maybe,
        y: Tensor,
        *,
        keep: bool,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """See `Loop.forward`."""
        batch, time, _ = x.shape
        final = [self._empty_state(batch) for _ in range(self._states)]
        kept = []
        if keep:
            size = self._stack.stash_size(batch, time) + ALIGNMENT
            kept = [torch.empty(size, dtype=torch.uint8, device="cpu")]
        self._stack.forward(
            self._table(weights),
            batch,
            time,
            _sequence(x),
            _sequence(y),
            _addresses(state),
            _addresses(final),
            _address(lengths),
            _aligned(kept[0]) if keep else 0,
            torch.get_num_threads(),
        )
        return final, kept

    def backward(
        self,
        x: Tensor,
        state: Sequence[Maybe],
        weights: Sequence[Tensor],
        lengths: Maybe,
        y: Tensor,
        kept: Sequence[Tensor],
        dy: Maybe,
        dfinal: Sequence[Maybe],
        wanted: Sequence[bool],
    ) -> list[Maybe]:
        """See `Loop.backward`."""
        batch, time, _ = x.shape
        want_x, *want_others = wanted
        dx = torch.empty_like(x) if want_x else None
        dstate = [self._empty_state(batch) if want else None for want in want_others[: self._states]]
        dweights = [
            torch.empty_like(weight) if want else None
            for weight, want in zip(weights, want_others[self._states :], strict=True)
        ]
        if dy is not None and dy.stride(2) != 1:
            dy = dy.contiguous()
        dfinal = [None if part is None else part.contiguous() for part in dfinal]
        self._stack.backward(
            self._table(weights),
            self._bind([_address(part) for part in dweights]),
            batch,
            time,
            _sequence(x),
            _sequence(y),
            _addresses(state),
            _sequence(dy),
            _addresses(dfinal),
            _sequence(dx),
            _addresses(dstate),
            _address(lengths),
            _aligned(kept[0]),
            torch.get_num_threads(),
        )
        return [dx, *dstate, *dweights]

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
    batch, time, _ = tensor.stride()
    return tensor.data_ptr(), batch, time
