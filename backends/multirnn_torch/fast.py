"""PyTorch's layers, made fast on the CPU: `FastRNN`, `FastLSTM` and `FastGRU`, and the layer over one of them.

Each is the `torch.nn` layer that it derives from: same parameters, same calls, same results. On the CPU a call runs
through a `Loop` (see `loop.py`) that has its own way back. Elsewhere it is the framework's own, untouched: on other
devices and dtypes, where PyTorch traces, transforms or intercepts what is computed, with dropout between the layers, and
for shapes of which `plan` says that nothing faster is known. Gradients of gradients are the framework's own as well.
"""

import sys
from collections.abc import Sequence
from copy import deepcopy
from functools import cache
from typing import Any, NamedTuple, Self, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence

from multirnn import InvalidCall, RecurrentSpec, Weights, kernel
from multirnn.implementation import FROZEN, Plan
from multirnn.layer import Lengths
from multirnn_torch.facts import slower
from multirnn_torch.kernel import KernelLoop
from multirnn_torch.layer import TorchLayer, device_of, run
from multirnn_torch.loop import Call, Loop, Maybe
from multirnn_torch.single_bias import CandidateBiasGRU
from multirnn_torch.tensors import TensorLoop
from multirnn_torch.weights import module, skeleton

__all__ = ["LOOPS", "Fast", "FastCandidateBiasGRU", "FastGRU", "FastLSTM", "FastRNN", "FastTorchLayer", "build"]

LOOPS: dict[str, type[Loop]] = {"kernel": KernelLoop, "tensors": TensorLoop}
"""What a layer may run through, the faster first."""

_SENTENCES = {
    "kernel": "the compiled kernel: the whole stack in one call",
    "tensors": "a loop of PyTorch's operations over buffers, with its own way back",
}

_FROZEN_SENTENCES = {
    "kernel": f"{_SENTENCES['kernel']}, its weights packed once",
    "tensors": "oneDNN's LSTM, on weights that were reordered once",
}

_CELLS = {"RNN_TANH": "simple_rnn", "RNN_RELU": "simple_rnn", "LSTM": "lstm", "GRU": "gru"}
_DTYPES = {torch.float32: "float32", torch.float64: "float64"}
_functorch: Any = getattr(torch._C, "_functorch")  # noqa: B009  # type checkers do not know it
_PLAIN = frozenset({Tensor, nn.Parameter})


# --- One call --------------------------------------------------------------------------------------------------------


class _Rows(NamedTuple):
    """How the rows of a call lie, and how long they are; see `Call`.

    Attributes:
        batch_first: whether x is `(batch, time, features)`, or `(time, batch, features)`.
        lengths: as of a `Call`.
        sizes, starts: of packed rows how many a step has, as a `PackedSequence` has it, and the row that it begins with.
    """

    batch_first: bool
    lengths: Maybe = None
    sizes: Maybe = None
    starts: Maybe = None

    @classmethod
    def packed(cls, sizes: Tensor, count: int) -> Self | None:
        """Those of a `PackedSequence`, in its order, from its `batch_sizes`; None where those are not of `count` rows."""
        steps = sizes.numpy()
        if steps.dtype != np.int64 or steps.sum() != count or steps[-1] < 1 or (steps[1:] > steps[:-1]).any():
            return None
        lengths = np.searchsorted(-steps, -np.arange(steps[0]), side="left")
        return cls(True, torch.from_numpy(lengths), sizes, torch.from_numpy(np.cumsum(steps) - steps))

    def turned(self, sequence: Tensor) -> Tensor:
        """From the order of axes of the call to that of a loop, and back."""
        return sequence if self.batch_first else sequence.transpose(0, 1)

    def call(self, x: Tensor, state: Sequence[Maybe], weights: Sequence[Tensor], y: Tensor) -> Call:
        """For a loop."""
        return Call(self.turned(x), state, weights, self.turned(y), self.lengths, self.starts)


class _Constants(NamedTuple):
    """Weights of a frozen module.

    Attributes:
        prepared: by `Loop.prepare`.
        weights: as they were, sharing memory and version with the module's.
        versions: what PyTorch counts up whenever it writes into one.
    """

    prepared: Any
    weights: Sequence[Tensor]
    versions: Sequence[int]

    def check(self, weights: Sequence[Tensor], names: Sequence[str]) -> None:
        """Go on only with the same.

        Raises:
            InvalidCall: another tensor is in the place of one, or it was written into.
        """
        for weight, known, version, name in zip(weights, self.weights, self.versions, names, strict=True):
            if weight.data_ptr() != known.data_ptr() or weight._version != version:
                raise InvalidCall(
                    f"{name} has changed since the module was frozen; call freeze() again after a change, or unfreeze()"
                )


class _Recurrence:
    """What a module runs in one dtype.

    Args:
        spec: of the module.
        loop: a name out of `LOOPS`.
        names: of the module's weights, in the order of `spec.shapes`.

    Attributes:
        constants: the weights, while the module is frozen.
    """

    def __init__(self, spec: RecurrentSpec, loop: str, names: Sequence[str]) -> None:
        self.spec = spec
        self.loop = LOOPS[loop](spec)  # type: ignore[call-arg]  # of a Protocol, which has no arguments
        self.names = names
        self.skeleton = skeleton(spec)
        self.shapes = [tuple(weight.shape) for weight in _weights(self.skeleton, names)]
        self.plans: dict[tuple[int, int, bool, bool], bool] = {}
        self.constants: _Constants | None = None

    def freeze(self, weights: Sequence[Tensor]) -> None:
        """Take these weights for constants, if there is something to be prepared of them."""
        dense = [weight.detach().contiguous() for weight in weights]
        prepared = self.loop.prepare(dense)
        if prepared is not None:
            known = [weight.detach() for weight in weights]
            self.constants = _Constants(prepared, known, [weight._version for weight in known])

    def forward(
        self, x: Tensor, state: Sequence[Maybe], weights: Sequence[Tensor], rows: _Rows, keep: bool = False
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The sequence, laid out as x, and see `Loop.forward`."""
        y = torch.empty((*x.shape[:-1], self.spec.output_size), dtype=x.dtype, device="cpu")
        call = rows.call(x, state, weights, y)
        if self.constants is not None:
            call = call._replace(prepared=self.constants.prepared)
        return y, *self.loop.forward(call, keep=keep)

    def native(self, x: Tensor, state: list[Tensor], weights: Sequence[Tensor], rows: _Rows) -> list[Tensor]:
        """The same by the framework's own layer, which may be differentiated and transformed again."""
        layer, named = deepcopy(self.skeleton), dict(zip(self.names, weights, strict=True))

        def call(*inputs: Any) -> Any:
            return functional_call(layer, named, inputs)

        if rows.sizes is not None:
            packed, last = call(PackedSequence(x, rows.sizes), tuple(state) if len(state) == 2 else state[0])
            return [packed.data, *(last if isinstance(last, tuple) else (last,))]
        sequence, *final = run(call, rows.turned(x), state, None if rows.lengths is None else rows.lengths.numpy())
        return [rows.turned(sequence), *final]


class _FastRecurrence(torch.autograd.Function):
    """A recurrence with its own way back.

    Inputs: the recurrence, how the rows lie; x, the parts of the state, the weights. Outputs: the sequence, the parts
    of the final state.
    """

    @staticmethod
    def forward(ctx: Any, recurrence: _Recurrence, rows: _Rows, x: Tensor, *others: Any) -> tuple[Tensor, ...]:
        states = len(recurrence.spec.form.states)
        y, final, kept = recurrence.forward(x, others[:states], others[states:], rows, keep=True)
        ctx.recurrence, ctx.rows = recurrence, rows
        # PyTorch's own layers let their output be written over before the way back, so it is saved under a version of
        # its own, and an empty tensor that shares the version of the output tells whether that has happened.
        ctx.witness = y.detach()
        ctx.witness.data = y.new_empty(0)
        ctx.version = y._version
        ctx.given = 1 + len(others)
        ctx.save_for_backward(x, *others, y.data, *kept)
        ctx.set_materialize_grads(False)
        return y, *final

    @staticmethod
    def backward(ctx: Any, *cotangents: Maybe) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        (x, *others), (y, *kept) = saved[: ctx.given], saved[ctx.given :]
        wanted = ctx.needs_input_grad[2:]
        recurrence, rows = ctx.recurrence, ctx.rows
        states = len(recurrence.spec.form.states)
        plain = all(part is None or (_is_plain(part, x.dtype) and not _is_batched(part)) for part in cotangents)
        if torch.is_grad_enabled() or not plain or _intercepted():
            return None, None, *_differentiable(ctx, [x, *others], cotangents)
        state, weights = others[:states], others[states:]
        if ctx.witness._version != ctx.version:
            y, _, kept = recurrence.forward(x, state, weights, rows, keep=True)
        dy, *dfinal = cotangents
        dy = None if dy is None else rows.turned(dy)
        dx, *gradients = recurrence.loop.backward(rows.call(x, state, weights, y), kept, dy, dfinal, wanted)
        dx = None if dx is None else rows.turned(dx)
        found = zip((dx, *gradients), wanted, strict=True)
        return None, None, *(gradient if want else None for gradient, want in found)


def _differentiable(ctx: Any, given: list[Any], cotangents: Sequence[Maybe]) -> list[Maybe]:
    """The gradients as a graph: by the framework's own layer, run again."""
    recurrence, rows = ctx.recurrence, ctx.rows
    states = len(recurrence.spec.form.states)
    with torch.enable_grad():
        # Views, so that a weight that was itself computed from x, say, is not followed to x here.
        views: list[Any] = [None if part is None else part.view_as(part) for part in given]
        x, *others = views
        shape = len(tuple(recurrence.spec.passes)), rows.call(x, [], [], x).size[0], recurrence.spec.hidden_size
        state = [x.new_zeros(shape) if part is None else part for part in others[:states]]
        outputs = recurrence.native(x, state, others[states:], rows)
    reached = [(output, part) for output, part in zip(outputs, cotangents, strict=True) if part is not None]
    leaves = [part for part, wanted in zip(views, ctx.needs_input_grad[2:], strict=True) if wanted]
    found = iter(
        torch.autograd.grad(
            [output for output, _ in reached],
            leaves,
            [part for _, part in reached],
            create_graph=torch.is_grad_enabled(),
            allow_unused=True,
        )
    )
    return [next(found) if wanted else None for wanted in ctx.needs_input_grad[2:]]


# --- The modules -----------------------------------------------------------------------------------------------------


class Fast(nn.RNNBase):
    """What makes a layer of `torch.nn` fast; see `FastRNN`.

    Args:
        args, kwargs: as of the layer.
        loop: a name out of `LOOPS`; the compiled kernel where it is there, unless given.

    Attributes:
        loop: as given.
    """

    def __init__(self, *args: Any, loop: str | None = None, **kwargs: Any) -> None:
        if loop not in (None, *LOOPS):
            raise InvalidCall(f"loop is one of {', '.join(map(repr, LOOPS))}, or None for the fastest, not {loop!r}")
        super().__init__(*args, **kwargs)
        self.loop = loop
        self._recurrences: dict[tuple[torch.dtype, str | None], _Recurrence] = {}

    def forward(self, input: Any, hx: Any = None, lengths: Tensor | None = None) -> Any:
        """As of the layer in `torch.nn`.

        Args:
            input: `(time, batch, input_size)`, `(batch, time, input_size)` with `batch_first`, `(time, input_size)`, or
                a `PackedSequence`.
            hx: the initial state; zero unless given.
            lengths: `(batch,)`, int64, on the CPU: rows that end before. From there on the output is zero and the state
                stays. A PackedSequence has its own.
        """
        if torch.compiler.is_compiling():
            return self._run_native(input, hx, lengths)
        if "torch._dynamo" in sys.modules:  # it may be about to compile every function that is called from here
            return _uncompiled()(self, input, hx, lengths)
        return self._run_any(input, hx, lengths)

    def plan(self, batch: int, time: int, *, lengths: bool = False, gradients: bool = False) -> Plan:
        """What runs for an input of this size; see `multirnn.implementation.Planned.plan`."""
        reason = self._native_because()
        if reason is None:
            loop, dtype = self._loop_name(), self._first_weight().dtype
            recurrence = self._recurrence(dtype)
            frozen = recurrence is not None and recurrence.constants is not None
            if frozen and not gradients and (LOOPS[loop].ragged or not lengths):
                return Plan(FROZEN, _FROZEN_SENTENCES[loop])
            reason = _slower(loop, self._spec(dtype), batch, time, lengths, gradients)
            if reason is None:
                return Plan("fast", _SENTENCES[loop])
        return Plan("native", f"torch.nn.{self.mode.split('_')[0]} itself: {reason}")

    def freeze(self) -> Self:
        """Take the weights for constants, and prepare them once instead of in every call that needs no gradients.

        Until `unfreeze`, such a call refuses weights that have changed: PyTorch counts what is written into a tensor, by
        optimisers, `load_state_dict` or by hand. What is written through `.data`, or a NumPy array of the same memory, it
        does not count, and it is not noticed here either. Calls that need gradients take the weights as they are. Copies,
        and what was saved and loaded, are not frozen. Where nothing is to be prepared, on other devices say, nothing
        happens.

        Raises:
            InvalidCall: weights made in inference mode, of which PyTorch does not count what is written into them.
        """
        recurrence = None if self._native_because() else self._recurrence(self._first_weight().dtype)
        if recurrence is not None:
            weights = _weights(self, recurrence.names)
            if any(weight.is_inference() for weight in weights):
                raise InvalidCall(
                    "weights that were made in inference mode cannot be frozen: PyTorch does not tell whether they change"
                )
            recurrence.freeze(weights)
        return self

    def unfreeze(self) -> Self:
        """Take the weights as they are again, in every call."""
        for recurrence in self._recurrences.values():
            recurrence.constants = None
        return self

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()  # type: ignore[no-untyped-call]
        return {**state, "_recurrences": {}}

    def _run_any(self, input: Any, hx: Any, lengths: Maybe) -> Any:
        packed = isinstance(input, PackedSequence)
        found = self._run_packed(input, hx) if packed else self._run(input, hx, _Rows(self.batch_first, lengths))
        return self._run_native(input, hx, lengths) if found is None else found

    def _run(self, x: Tensor, hx: Any, rows: _Rows) -> Any:
        """The result, or None where the framework's own layer has to run: also for it to say what is wrong."""
        if _intercepted() or torch.is_autocast_enabled("cpu") or not self._is_whole():
            return None
        dtype = x.dtype
        if not _is_plain(x, dtype) or (recurrence := self._recurrence(dtype)) is None:
            return None
        spec = recurrence.spec
        packed = rows.starts is not None
        if unbatched := x.dim() == 2 and not packed:
            x, rows = x[None], rows._replace(batch_first=True)
        if x.dim() != (2 if packed else 3) or x.shape[-1] != spec.input_size or 0 in x.shape:
            return None
        batch, time = rows.call(x, [], [], x).size
        weights = _weights(self, recurrence.names)
        for weight, shape in zip(weights, recurrence.shapes, strict=True):
            if not _is_plain(weight, dtype) or weight.shape != shape:
                return None
        state = self._state(hx, dtype, batch, unbatched)
        if state is None:
            return None
        if rows.lengths is not None:
            if not recurrence.loop.ragged:
                return None
            if not packed:
                _check_lengths(rows.lengths, batch, time)
        differentiate = torch.is_grad_enabled() and any(
            part is not None and part.requires_grad for part in (x, *state, *weights)
        )
        # Packed before, it is faster for every shape: one step of 1 to 128 rows of 256 and 1024 units 1.0 to 2.5, one thread.
        if recurrence.constants is not None and not differentiate:
            recurrence.constants.check(weights, recurrence.names)
        elif not self._is_faster(recurrence, batch, time, rows.lengths is not None, differentiate):
            return None
        if x.stride(-1) != 1:
            x = x.contiguous()
        weights = [weight if weight.is_contiguous() else weight.contiguous() for weight in weights]
        if differentiate:
            apply: Any = _FastRecurrence.apply
            y, *final = apply(recurrence, rows, x, *state, *weights)
        else:
            y, final, _ = recurrence.forward(x, state, weights, rows)
        if unbatched:
            y, final = y[0], [part[:, 0] for part in final]
        return y, tuple(final) if len(final) == 2 else final[0]

    def _run_packed(self, packed: PackedSequence, hx: Any) -> Any:
        """As `_run`."""
        data, sizes, sorted_indices, unsorted_indices = packed
        if not data.numel() or _intercepted() or self._native_because() is not None:
            return None
        rows = _Rows.packed(sizes, len(data))
        if rows is None or (found := self._run(data, self._sorted(hx, sorted_indices), rows)) is None:
            return None
        y, final = found
        return PackedSequence(y, sizes, sorted_indices, unsorted_indices), self._sorted(final, unsorted_indices)

    def _run_native(self, x: Any, hx: Any, lengths: Maybe) -> Any:
        """By the framework's own layer."""
        if lengths is None:
            return super().forward(x, hx)
        rows = x if self.batch_first else x.transpose(0, 1)
        _check_lengths(lengths, *rows.shape[:2])
        if hx is None:
            shape = self.num_layers * (1 + self.bidirectional), rows.shape[0], self.hidden_size
            state = [x.new_zeros(shape) for _ in range(1 + (self.mode == "LSTM"))]
        else:
            state = list(hx) if self.mode == "LSTM" else [hx]
        y, *final = run(super().forward, rows, state, lengths.numpy())
        return y if self.batch_first else y.transpose(0, 1), tuple(final) if len(final) == 2 else final[0]

    def _sorted(self, hx: Any, indices: Maybe) -> Any:
        """A state with its rows in another order."""
        if hx is None or indices is None:
            return hx
        if isinstance(hx, tuple):
            return tuple(part.index_select(1, indices) for part in hx)
        return hx.index_select(1, indices)

    def _state(self, hx: Any, dtype: torch.dtype, batch: int, unbatched: bool) -> list[Maybe] | None:
        """The parts of the initial state, None for zero; or None where they are not what they should be."""
        parts = 1 + (self.mode == "LSTM")
        if hx is None:
            zero: list[Maybe] = [None] * parts
            return zero
        given = hx if parts == 2 else [hx]
        passes = self.num_layers * (1 + self.bidirectional)
        shape = (passes, self.hidden_size) if unbatched else (passes, batch, self.hidden_size)
        if not isinstance(given, tuple | list) or len(given) != parts:
            return None
        if not all(_is_plain(part, dtype) and part.shape == shape for part in given):
            return None
        return [(part[:, None] if unbatched else part).contiguous() for part in given]

    def _is_faster(self, recurrence: _Recurrence, batch: int, time: int, lengths: bool, gradients: bool) -> bool:
        key = batch, time, lengths, gradients
        if (known := recurrence.plans.get(key)) is None:
            known = _slower(self._loop_name(), recurrence.spec, batch, time, lengths, gradients) is None
            recurrence.plans[key] = known
        return known

    def _is_whole(self) -> bool:
        """Whether it is a stack and nothing more."""
        return not self.proj_size and not (self.dropout and self.training and self.num_layers > 1)

    def _native_because(self) -> str | None:
        """Why it is not fast for any shape, or None."""
        weight = self._first_weight()
        if weight.device.type != "cpu":
            return f"its kernels on {weight.device.type} are left as they are"
        if weight.dtype not in _DTYPES:
            return f"of {str(weight.dtype).removeprefix('torch.')} nothing faster is known"
        if self.proj_size:
            return f"it projects its state (proj_size={self.proj_size})"
        if not self._is_whole():
            return f"it drops outputs between its layers (dropout={self.dropout})"
        return None

    def _first_weight(self) -> Tensor:
        weight: Any = self.weight_ih_l0
        return cast("Tensor", weight)

    def _loop_name(self) -> str:
        if self.loop is not None:
            return self.loop
        return "tensors" if kernel.missing() else "kernel"

    def _recurrence(self, dtype: torch.dtype) -> _Recurrence | None:
        """What runs for an input of this dtype; None where nothing does."""
        key = dtype, self.loop
        if (found := self._recurrences.get(key)) is None and dtype in _DTYPES:
            names = [name for names in self._all_weights for name in names]
            found = self._recurrences[key] = _Recurrence(self._spec(dtype), self._loop_name(), names)
        return found

    def _spec(self, dtype: torch.dtype) -> RecurrentSpec:
        """What it computes. A constant in the place of a bias is taken for a bias."""
        single = isinstance(self, CandidateBiasGRU)
        return RecurrentSpec(
            _CELLS[self.mode],
            self.input_size,
            self.hidden_size,
            num_layers=self.num_layers,
            bidirectional=self.bidirectional,
            bias=("single" if single else "double") if self.bias else "none",
            activation="relu" if self.mode == "RNN_RELU" else "tanh",
            dtype=_DTYPES[dtype],
        )


class FastRNN(Fast, nn.RNN):
    """`torch.nn.RNN`, made fast on the CPU."""


class FastLSTM(Fast, nn.LSTM):
    """`torch.nn.LSTM`, made fast on the CPU."""


class FastGRU(Fast, nn.GRU):
    """`torch.nn.GRU`, made fast on the CPU."""


class FastCandidateBiasGRU(Fast, CandidateBiasGRU):
    """`CandidateBiasGRU`, made fast on the CPU."""


@cache
def _uncompiled() -> Any:
    """`Fast._run_any`, out of the sight of torch.compile; made when it is there, since it is slow to load."""
    return torch.compiler.disable(Fast._run_any)  # type: ignore[no-untyped-call]


def _weights(native: nn.Module, names: Sequence[str]) -> list[Any]:
    """The weights as they are now, whether parameters or what was put in their place."""
    parameters = native._parameters  # a third of the time that getattr takes
    return [parameters[name] if name in parameters else getattr(native, name) for name in names]


def _intercepted() -> bool:
    """Whether PyTorch compiles, traces, transforms or watches what is computed: then it has to see operations of its own."""
    return (
        torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or forward_ad._current_level >= 0
    )


def _is_plain(tensor: Any, dtype: torch.dtype) -> bool:
    """Whether it is numbers of this dtype in memory, and nothing else."""
    return (
        type(tensor) in _PLAIN
        and tensor.dtype is dtype
        and tensor.is_cpu
        and tensor.layout is torch.strided
        and not tensor.is_neg()
    )


def _slower(loop: str, spec: RecurrentSpec, batch: int, time: int, lengths: bool, gradients: bool) -> str | None:
    if lengths and not LOOPS[loop].ragged:
        return "without the compiled kernel, it takes rows of unequal length packed"
    return slower(loop, spec, batch, time, gradients)


def _is_batched(tensor: Tensor) -> bool:
    """Whether it stands for many, as in `torch.autograd.grad(..., is_grads_batched=True)`."""
    return bool(_functorch.is_legacy_batchedtensor(tensor))


def _check_lengths(lengths: Tensor, batch: int, time: int) -> None:
    if _is_plain(lengths, torch.int64) and lengths.shape == (batch,) and lengths.is_contiguous():
        least, most = torch.aminmax(lengths)
        if int(least) >= 0 and int(most) <= time:
            return
    raise InvalidCall(f"lengths are {batch} integers from 0 to {time}, int64 in one piece on the CPU, not {lengths!r}")


# --- The layer -------------------------------------------------------------------------------------------------------

_FAST_LAYERS = {"simple_rnn": FastRNN, "lstm": FastLSTM, "gru": FastGRU, "candidate_bias_gru": FastCandidateBiasGRU}


class FastTorchLayer(TorchLayer):
    """A stack realised by a `FastRNN`, `FastLSTM` or `FastGRU`; all else is as of a `TorchLayer`."""

    def call(self, x: Tensor, state: list[Tensor], lengths: Lengths | None) -> list[Tensor]:
        """The module, called with lengths as they are."""
        hx: Any = (tuple(state) if len(state) == 2 else state[0]) if state else None
        sequence, final = self._native(x, hx, None if lengths is None else torch.from_numpy(lengths))
        return [sequence, *final] if isinstance(final, tuple) else [sequence, final]

    def plan(self, batch: int, time: int, *, lengths: bool = False, gradients: bool = False) -> Plan:
        """What runs for a shape; see `multirnn.implementation.Planned.plan`."""
        native: Any = self.native
        plan: Plan = native.plan(batch, time, lengths=lengths, gradients=gradients)
        return plan


def build(weights: Weights, device: str | None, *, frozen: bool = False) -> FastTorchLayer:
    """The layer of these weights; see `multirnn_torch.layer.build`."""
    spec = weights.spec
    with torch.inference_mode(False):  # a parameter that is made in inference mode can never be trained
        native = module(weights, device_of(device, getattr(torch, spec.dtype)), _FAST_LAYERS)
    if frozen:
        cast("Fast", native).freeze()
    return FastTorchLayer(spec, native)
