"""One way to call a layer, a cell or a hand-written module: batch first, over all steps, with a state and lengths."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from multirnn.adoption import takes_state
from multirnn.layer import Lengths
from multirnn.weights import Array

__all__ = ["Caller", "arrays", "is_overridden", "reordered", "run", "tensors", "uncompiled"]


def tensors(values: Iterable[Array], device: torch.device) -> list[Tensor]:
    """On the CPU they share the memory of writable arrays; PyTorch warns of read-only ones, so those are copied."""
    shared = [torch.from_numpy(array if array.flags.writeable else array.copy()) for array in values]
    return shared if device.type == "cpu" else [tensor.to(device) for tensor in shared]


def arrays(values: Iterable[Tensor]) -> list[Array]:
    """On the CPU they share the memory of the tensors."""
    return [(tensor if tensor.is_cpu else tensor.cpu()).numpy() for tensor in values]


class Caller:
    """Calls a layer or a cell of `torch.nn`, or a module that is called as one; `InvalidCall` if its forward takes no x.

    `called` is called in its place, such as its compiled form. A hand-written forward is not trusted to take lengths.
    """

    def __init__(self, module: nn.Module, called: Callable[..., Any] | None = None) -> None:
        self.takes_state = takes_state(module.forward)
        self.takes_lengths = isinstance(module, nn.RNNBase) and not is_overridden(module)
        self._called: Callable[..., Any] = module if called is None else called
        if isinstance(module, nn.RNNCellBase):
            self._called = _over_time(self._called)
        elif not getattr(module, "batch_first", True):
            self._called = _batch_first(self._called)

    def __call__(self, x: Tensor, state: list[Tensor], lengths: Lengths | None) -> Any:
        """The module's own result: the sequence and the final states, which may be a tuple of their own."""
        if not self.takes_state:
            return self._called(x)
        if self.takes_lengths:
            return run(self._called, x, state, lengths)
        return self._called(x, tuple(state) if len(state) == 2 else state[0])


def uncompiled(module: nn.Module) -> Callable[..., Any]:
    """The module as before `module.compile()`."""
    call: Callable[..., Any] = module if getattr(module, "_compiled_call_impl", None) is None else module._call_impl
    return call


def is_overridden(module: nn.RNNBase) -> bool:
    """Whether its class or its forward is neither PyTorch's nor ours."""
    kind: Any = type_before_parametrizations(module)
    homes = {home.partition(".")[0] for home in (kind.__module__, kind.forward.__module__)}
    return "forward" in vars(module) or not homes <= {"torch", "multirnn_torch"}


def _over_time(cell: Callable[..., Any]) -> Callable[..., Any]:
    def layer(x: Tensor, state: Any) -> Any:
        state = tuple(part[0] for part in state) if isinstance(state, tuple) else state[0]
        outputs = []
        for step in x.unbind(1):
            state = cell(step, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(outputs, 1), state

    return layer


def _batch_first(module: Callable[..., Any]) -> Callable[..., Any]:
    def layer(x: Tensor | PackedSequence, *state: Any) -> Any:
        if isinstance(x, PackedSequence):
            return module(x, *state)
        result = module(x.transpose(0, 1), *state)
        if not isinstance(result, tuple):
            return result.transpose(0, 1)
        sequence, *final = result
        return sequence.transpose(0, 1), *final

    return layer


def run(native: Callable[..., Any], x: Tensor, state: list[Tensor], lengths: Lengths | None) -> list[Tensor]:
    """The sequence `(batch, time, directions * hidden_size)`, the final h, and the final c of an LSTM.

    `native` is called as an `nn.RNNBase` with `batch_first=True`. Without lengths every row is full, and an empty state
    is zero.
    """
    if lengths is None:
        return _call(native, x, state)
    if lengths.all():
        packed = pack_padded_sequence(x, torch.from_numpy(lengths), batch_first=True, enforce_sorted=False)
        sequence, *final = _call(native, packed, state)
        return [pad_packed_sequence(sequence, batch_first=True, total_length=x.shape[1])[0], *final]
    # pack_padded_sequence refuses rows of length 0, so they are left out: zero output, and the initial state as it is.
    rows = torch.from_numpy(np.flatnonzero(lengths)).to(x.device)
    part = [tensor.index_select(1, rows) for tensor in state]
    ends = run(native, x.index_select(0, rows), part, lengths[lengths > 0])
    sequence = x.new_zeros(*x.shape[:2], ends[0].shape[-1])
    final = [initial.index_copy(1, rows, end) for initial, end in zip(state, ends[1:], strict=True)]
    return [sequence.index_copy(0, rows, ends[0]), *final]


def _call(native: Callable[..., Any], x: Tensor | PackedSequence, state: list[Tensor]) -> list[Any]:
    sequence, final = native(x, tuple(state)) if len(state) == 2 else native(x, *state)
    return [sequence, final] if isinstance(final, Tensor) else [sequence, *final]


def reordered(hx: Any, indices: Tensor | None) -> Any:
    """A state with its rows in another order, as a `PackedSequence` has them."""
    if hx is None or indices is None:
        return hx
    if isinstance(hx, tuple):
        return tuple(part.index_select(1, indices) for part in hx)
    return hx.index_select(1, indices)
