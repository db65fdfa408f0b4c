"""`ModuleRecurrence`: the loop of a fast module in one dtype, and `RecurrenceFunction`, its autograd function."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence

from multirnn import InvalidCall, RecurrentSpec
from multirnn_torch.calls import run
from multirnn_torch.kernel import KernelLoop
from multirnn_torch.loop import Loop, LoopCall, Maybe
from multirnn_torch.reverse import TensorLoop
from multirnn_torch.weights import skeleton

__all__ = ["LOOPS", "ModuleRecurrence", "RecurrenceFunction", "Rows", "is_intercepted", "is_plain"]

LOOPS: dict[str, type[Loop]] = {"kernel": KernelLoop, "tensors": TensorLoop}
"""The faster first."""

_functorch: Any = getattr(torch._C, "_functorch")  # noqa: B009  # type checkers do not know it
_PLAIN = frozenset({Tensor, nn.Parameter})


class Rows(NamedTuple):
    """The layout and lengths of the rows of a call.

    The backward pass reads them again, so none of them is the caller's memory, which may change in between.
    """

    batch_first: bool  # whether x is `(batch, time, features)` or `(time, batch, features)`
    lengths: Maybe = None  # as in `LoopCall`
    sizes: Maybe = None  # of packed rows, the rows per step: `batch_sizes` of a `PackedSequence`
    starts: Maybe = None  # of packed rows, the first row of each step

    @classmethod
    def padded(cls, batch_first: bool, lengths: Tensor, batch: int, time: int) -> Self:
        """From `lengths`, which are copied before they are checked: another thread may write to them in between.

        Raises:
            InvalidCall: they are not one integer per row, from 0 to `time`.
        """
        if is_plain(lengths, torch.int64) and lengths.shape == (batch,):
            own = lengths.clone(memory_format=torch.contiguous_format)
            least, most = torch.aminmax(own) if batch else (own.new_zeros(()),) * 2
            if int(least) >= 0 and int(most) <= time:
                return cls(batch_first, own)
        raise InvalidCall(f"lengths are {batch} integers from 0 to {time}, int64 on the CPU, not {lengths!r}")

    @classmethod
    def packed(cls, sizes: Tensor, count: int) -> Self | None:
        """From the `batch_sizes` of a `PackedSequence`; None if they do not describe `count` rows."""
        steps = sizes.numpy().copy()
        if steps.dtype != np.int64 or steps.sum() != count or steps[-1] < 1 or (steps[1:] > steps[:-1]).any():
            return None
        lengths = np.searchsorted(-steps, -np.arange(steps[0]), side="left")
        return cls(True, torch.from_numpy(lengths), torch.from_numpy(steps), torch.from_numpy(np.cumsum(steps) - steps))

    def turned(self, sequence: Tensor) -> Tensor:
        """Swap the axis order of the call and the axis order of a loop."""
        return sequence if self.batch_first else sequence.transpose(0, 1)

    def size(self, x: Tensor) -> tuple[int, int]:
        """Batch and time."""
        if self.lengths is not None and self.starts is not None:
            return len(self.lengths), len(self.starts)
        first, second, _ = x.shape
        return (first, second) if self.batch_first else (second, first)

    def call(self, x: Tensor, state: Sequence[Maybe], weights: Sequence[Tensor], y: Tensor) -> LoopCall:
        """The arguments of a loop."""
        return LoopCall(self.turned(x), state, weights, self.turned(y), self.lengths, self.starts)


class Constants(NamedTuple):
    """Weights of a frozen module."""

    prepared: Any  # from `Loop.prepare`
    weights: Sequence[Tensor]  # they share memory and version with the module's
    versions: Sequence[int]  # PyTorch's counts of writes at the time

    def check(self, weights: Sequence[Tensor], names: Sequence[str]) -> None:
        """Accept the same weights alone. Raises `InvalidCall`: one was replaced or written to."""
        for weight, known, version, name in zip(weights, self.weights, self.versions, names, strict=True):
            if weight.data_ptr() != known.data_ptr() or weight._version != version:
                raise InvalidCall(
                    f"{name} has changed since the module was frozen; call freeze() again after a change, or unfreeze()"
                )


class ModuleRecurrence:
    """The loop of a module in one dtype; `names` are those of its weights, in the order of `spec.shapes`."""

    def __init__(self, spec: RecurrentSpec, loop: str, names: Sequence[str]) -> None:
        self.spec = spec
        self._name = loop
        self.loop = LOOPS[loop](spec)  # type: ignore[call-arg]  # of a Protocol, which has no arguments
        self.names = names
        self.skeleton = skeleton(spec)
        held: Any = self.skeleton._flat_weights
        self._output_size = spec.output_size
        self.shapes = [tuple(weight.shape) for weight in held]
        self.plans: dict[tuple[int, int, bool, bool, bool], bool] = {}
        self.constants: Constants | None = None  # while the module is frozen

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A new one, not frozen: parametrized modules are copied attribute by attribute, and a loop cannot be."""
        return type(self)(self.spec, self._name, self.names)

    @cached_property
    def layers(self) -> list[Self]:
        """Each layer as a recurrence of its own."""
        spec, count = self.spec, self.spec.num_layers
        sizes = [spec.input_size, *[spec.output_size] * (count - 1)]
        names = self.names[: len(self.names) // count]
        return [type(self)(replace(spec, input_size=size, num_layers=1), self._name, names) for size in sizes]

    def freeze(self, weights: Sequence[Tensor]) -> None:
        """Take these weights for constants, if the loop prepares any."""
        prepared = self.loop.prepare([weight.detach().contiguous() for weight in weights])
        if prepared is not None:
            known = [weight.detach() for weight in weights]
            self.constants = Constants(prepared, known, [weight._version for weight in known])

    def forward(
        self,
        x: Tensor,
        state: Sequence[Maybe],
        weights: Sequence[Tensor],
        rows: Rows,
        *,
        keep: bool = False,
        constants: Constants | None = None,
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The sequence, of the shape that x has, and the results of `Loop.forward`.

        With gradients, rows of a batch-first sequence lie step by step in memory, as PyTorch's layers leave them: dropout
        draws in the order of the memory, and so drops the same elements after this layer. With lengths they lie row by row,
        as `pad_packed_sequence` leaves them.
        """
        size = *x.shape[:-1], self._output_size
        if keep and rows.batch_first and rows.lengths is None:
            strides = size[2], size[0] * size[2], 1
            y = torch.empty_strided(size, strides, dtype=x.dtype, device="cpu")
        else:
            y = x.new_empty(*size)  # half the time of torch.empty with a dtype and a device
        call = rows.call(x, state, weights, y)
        if constants is not None:
            call = call._replace(prepared=constants.prepared)
        return y, *self.loop.forward(call, keep=keep)

    def native(self, x: Tensor, state: list[Tensor], weights: Sequence[Tensor], rows: Rows) -> list[Tensor]:
        """The same by the framework's own layer, which may be differentiated and transformed again."""
        layer, named = deepcopy(self.skeleton), dict(zip(self.names, weights, strict=True))

        def call(*inputs: Any) -> Any:
            return functional_call(layer, named, inputs)

        if rows.sizes is not None:
            packed, last = call(PackedSequence(x, rows.sizes), tuple(state) if len(state) == 2 else state[0])
            return [packed.data, *(last if isinstance(last, tuple) else (last,))]
        sequence, *final = run(call, rows.turned(x), state, None if rows.lengths is None else rows.lengths.numpy())
        return [rows.turned(sequence), *final]


class RecurrenceFunction(torch.autograd.Function):
    """A recurrence with its own backward pass.

    Inputs: the recurrence, the rows; x, the parts of the state, the weights. Outputs: the sequence, the parts of the final
    state.
    """

    @staticmethod
    def forward(ctx: Any, recurrence: ModuleRecurrence, rows: Rows, x: Tensor, *others: Any) -> tuple[Tensor, ...]:
        """See `torch.autograd.Function.forward`."""
        states = len(recurrence.spec.form.states)
        y, final, kept = recurrence.forward(x, others[:states], others[states:], rows, keep=True)
        ctx.recurrence, ctx.rows = recurrence, rows
        # PyTorch's own layers allow writes to their output before the backward pass. So y is saved under a version of its
        # own, and an empty tensor that shares the version of the output tells whether it was written to.
        ctx.witness = y.detach()
        ctx.witness.data = y.new_empty(0)
        ctx.version = y._version
        ctx.given = 1 + len(others)
        saved = x, *others, y.data, *kept
        ctx.kinds = _kinds(saved)
        ctx.save_for_backward(*saved)
        ctx.set_materialize_grads(False)
        return y, *final

    @staticmethod
    def backward(ctx: Any, *cotangents: Maybe) -> tuple[Any, ...]:
        """See `torch.autograd.Function.backward`. Raises `InvalidCall`: hooks on saved tensors returned others."""
        saved = ctx.saved_tensors
        if _kinds(saved) != ctx.kinds:
            raise InvalidCall(
                "hooks on saved tensors (torch.autograd.graph.saved_tensors_hooks) returned another dtype, shape or device "
                "than they were given; the backward pass needs the tensors that the forward pass saved"
            )
        (x, *others), (y, *kept) = saved[: ctx.given], saved[ctx.given :]
        wanted = ctx.needs_input_grad[2:]
        recurrence, rows = ctx.recurrence, ctx.rows
        plain = all(  # a legacy batched tensor comes from torch.autograd.grad(..., is_grads_batched=True)
            part is None or (is_plain(part, x.dtype) and not _functorch.is_legacy_batchedtensor(part))
            for part in cotangents
        )
        if torch.is_grad_enabled() or not plain or is_intercepted():
            return None, None, *_differentiable(ctx, [x, *others], cotangents)
        # Hooks may have changed their strides.
        x = x if x.stride(-1) == 1 else x.contiguous()
        others = [None if part is None else part.contiguous() for part in others]
        states = len(recurrence.spec.form.states)
        state, weights = others[:states], others[states:]
        if ctx.witness._version != ctx.version:
            y, _, kept = recurrence.forward(x, state, weights, rows, keep=True)
        y = y if y.stride(-1) == 1 else y.contiguous()
        dy, *dfinal = cotangents
        dy = None if dy is None else rows.turned(dy)
        dx, *gradients = recurrence.loop.backward(rows.call(x, state, weights, y), kept, dy, dfinal, wanted)
        dx = None if dx is None else rows.turned(dx)
        found = zip((dx, *gradients), wanted, strict=True)
        return None, None, *(gradient if want else None for gradient, want in found)


def _kinds(tensors: Sequence[Maybe]) -> list[Any]:
    return [None if tensor is None else (tensor.dtype, tensor.shape, tensor.device) for tensor in tensors]


def _differentiable(ctx: Any, given: list[Any], cotangents: Sequence[Maybe]) -> list[Maybe]:
    """The gradients as a graph: the framework's own layer runs again."""
    recurrence, rows, wanted = ctx.recurrence, ctx.rows, ctx.needs_input_grad[2:]
    states = len(recurrence.spec.form.states)
    with torch.enable_grad():
        # Views end each path here: a weight that was computed from x is not followed back to x.
        views: list[Any] = [None if part is None else part.view_as(part) for part in given]
        x, *others = views
        shape = len(tuple(recurrence.spec.passes)), rows.size(x)[0], recurrence.spec.hidden_size
        state = [x.new_zeros(shape) if part is None else part for part in others[:states]]
        outputs = recurrence.native(x, state, others[states:], rows)
    pairs = [(output, part) for output, part in zip(outputs, cotangents, strict=True) if part is not None]
    found = iter(
        torch.autograd.grad(
            [output for output, _ in pairs],
            [part for part, want in zip(views, wanted, strict=True) if want],
            [part for _, part in pairs],
            create_graph=torch.is_grad_enabled(),
            allow_unused=True,
        )
    )
    return [next(found) if want else None for want in wanted]


def is_intercepted() -> bool:
    """Whether PyTorch compiles, traces, transforms or watches operations, and so has to see its own."""
    return (
        torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or forward_ad._current_level >= 0
    )


def is_plain(tensor: Any, dtype: torch.dtype) -> bool:
    """Whether it is an ordinary strided tensor of this dtype on the CPU."""
    return (
        type(tensor) in _PLAIN
        and tensor.dtype is dtype
        and tensor.is_cpu
        and tensor.layout is torch.strided
        and not tensor.is_neg()
    )
