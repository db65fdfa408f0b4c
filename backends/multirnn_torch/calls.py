"""One way to call a layer, a cell or a module written by hand: batch first, over all steps, with a state and lengths."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from multirnn.adoption import takes_state
from multirnn.layer import Lengths

__all__ = ["Caller", "is_overridden", "run", "uncompiled"]


class Caller:
    """Calls a module.

    Args:
        module: a layer or a cell of `torch.nn`, or what is called as one.
        called: what is called in its place, as its compiled form; the module itself unless given.

    Attributes:
        takes_state: whether it can be called with an initial state.
        takes_lengths: whether it can be called with lengths; a layer whose forward is written by hand is not trusted to.

    Raises:
        InvalidCall: its forward takes no x.
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
        """What the module returns: the sequence, and the final states in a tuple after it or in one of their own."""
        if not self.takes_state:
            return self._called(x)
        if self.takes_lengths:
            return run(self._called, x, state, lengths)
        return self._called(x, tuple(state) if len(state) == 2 else state[0])


def uncompiled(module: nn.Module) -> Callable[..., Any]:
    """The module without what `module.compile()` put into it."""
    if getattr(module, "_compiled_call_impl", None) is None:
        return module
    call: Callable[..., Any] = module._call_impl
    return call


def is_overridden(module: nn.RNNBase) -> bool:
    """Whether its class or its forward is neither PyTorch's nor ours."""
    kind: Any = type_before_parametrizations(module)
    homes = {home.partition(".")[0] for home in (kind.__module__, kind.forward.__module__)}
    return "forward" in vars(module) or not homes <= {"torch", "multirnn_torch"}


def _over_time(cell: Callable[..., Any]) -> Callable[..., Any]:
    """A cell, called step by step."""

    def layer(x: Tensor, state: Any) -> Any:
        state = tuple(part[0] for part in state) if isinstance(state, tuple) else state[0]
        outputs = []
        for step in x.unbind(1):
            state = cell(step, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(outputs, 1), state

    return layer


def _batch_first(module: Callable[..., Any]) -> Callable[..., Any]:
    """A module that has the time first, called with the batch first."""

    def layer(x: Tensor | PackedSequence, *state: Any) -> Any:
        if isinstance(x, PackedSequence):
            return module(x, *state)
        result = module(x.transpose(0, 1), *state)
        if not isinstance(result, tuple):
            return result.transpose(0, 1)
        sequence, *final = result
        return sequence.transpose(0, 1), *final

    return layer


# --- Layers ---------------------------------------------------------------------------------------------------------


def run(native: Callable[..., Any], x: Tensor, state: list[Tensor], lengths: Lengths | None) -> list[Tensor]:
    """The sequence `(batch, time, directions * hidden_size)`, the final h, and the final c of an LSTM.

    Args:
        native: an `nn.RNNBase` with `batch_first=True`, or what is called as one.
        x: `(batch, time, input_size)`.
        state: h, and of an LSTM c; none where they are zero and every row is full.
        lengths: None where every row is full.
    """
    if lengths is None:
        return _call(native, x, state)
    rows = torch.from_numpy(np.flatnonzero(lengths)).to(x.device)
    if len(rows) == len(lengths):
        return _run_ragged(native, x, state, lengths)
    # pack_padded_sequence takes no rows of length 0. They are left out: zeros, and the initial state as it is.
    part = [tensor.index_select(1, rows) for tensor in state]
    ends = _run_ragged(native, x.index_select(0, rows), part, lengths[lengths > 0])
    sequence = x.new_zeros(*x.shape[:2], ends[0].shape[-1])
    return [
        sequence.index_copy(0, rows, ends[0]),
        *(s.index_copy(1, rows, e) for s, e in zip(state, ends[1:], strict=True)),
    ]


def _run_ragged(native: Callable[..., Any], x: Tensor, state: list[Tensor], lengths: Lengths) -> list[Tensor]:
    """The same for lengths of which none is 0."""
    packed = pack_padded_sequence(x, torch.from_numpy(lengths), batch_first=True, enforce_sorted=False)
    sequence, *final = _call(native, packed, state)
    padded, _ = pad_packed_sequence(sequence, batch_first=True, total_length=x.shape[1])
    return [padded, *final]


def _call(native: Callable[..., Any], x: Tensor | PackedSequence, state: list[Tensor]) -> list[Any]:
    """`native` with its states in a list, of an LSTM as of the others."""
    sequence, final = native(x, tuple(state)) if len(state) == 2 else native(x, *state)
    return [sequence, final] if isinstance(final, Tensor) else [sequence, *final]
