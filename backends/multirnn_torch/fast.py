"""PyTorch's layers made fast on the CPU: `FastRNN`, `FastLSTM` and `FastGRU`, and the layer over one of them.

Each has the parameters, calls and results of its `torch.nn` layer. It derives from `torch.nn.RNNBase` and not from that
layer, which torch.compile refuses to trace, with every subclass. On the CPU a call runs through a `Loop` with its own
backward pass. In these cases the framework's own layer runs: other devices and dtypes; operations that PyTorch traces,
transforms or intercepts; shapes for which `plan` knows nothing faster; gradients of gradients.
"""

from functools import cache, partial
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn
from torch._C._dynamo.eval_frame import get_eval_frame_callback
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.rnn import PackedSequence

from multirnn import InvalidCall, RecurrentSpec, Weights, kernel
from multirnn.layer import FAST, FROZEN, Lengths, Plan
from multirnn.spec import DType
from multirnn_torch import facts, traced
from multirnn_torch.calls import reordered, run
from multirnn_torch.conversions import KeptWhole
from multirnn_torch.dropout import SENTENCES, run_dropping
from multirnn_torch.layer import TorchLayer, device_of
from multirnn_torch.loop import Maybe
from multirnn_torch.reading import evaluated
from multirnn_torch.recurrence import LOOPS, ModuleRecurrence, RecurrenceFunction, Rows, is_intercepted, is_plain
from multirnn_torch.single_bias import CandidateBias
from multirnn_torch.weights import MODES, is_evaluated, module, renewed

__all__ = ["LOOPS", "FastCandidateBiasGRU", "FastGRU", "FastLSTM", "FastModule", "FastRNN", "FastTorchLayer", "build"]

_SENTENCES = {
    "kernel": "the compiled kernel: the whole stack in one call",
    "tensors": "a loop of PyTorch's operations over buffers, with its own backward pass",
}
_FROZEN_SENTENCES = {
    "kernel": f"{_SENTENCES['kernel']}, its weights packed once",
    "tensors": "oneDNN's LSTM, on weights that were reordered once",
}
_OWN = ("loop", "_recurrences")
"""The attributes of a layer beyond those of `torch.nn`'s."""
_DTYPES: dict[torch.dtype, DType] = {torch.float32: "float32", torch.float64: "float64"}


class FastModule(KeptWhole, nn.RNNBase):
    """Makes a layer of `torch.nn` fast; see `FastRNN`.

    `loop` is a key of `LOOPS`; unless given, the compiled kernel if it is installed.
    """

    loop: str | None
    _recurrences: dict[tuple[torch.dtype, str | None], ModuleRecurrence]
    _layer: ClassVar[Any]
    """The layer of `torch.nn` whose forward runs where nothing is faster."""

    def __init__(self, mode: str, *args: Any, loop: str | None = None, **kwargs: Any) -> None:
        if loop not in (None, *LOOPS):
            raise InvalidCall(f"loop is one of {', '.join(map(repr, LOOPS))}, or None for the fastest, not {loop!r}")
        super().__init__(mode, *args, **kwargs)
        self._begin(loop)

    def _begin(self, loop: str | None = None) -> None:
        """Set what it has beyond the layer of `torch.nn`: all that a layer needs whose `__class__` becomes this one."""
        self.loop = loop
        self._recurrences = {}

    def _end(self) -> None:
        """Drop what `_begin` sets, before the `__class__` becomes that of the layer of `torch.nn`."""
        for name in _OWN:
            delattr(self, name)

    def forward(self, input: Any, hx: Any = None, lengths: Tensor | None = None) -> Any:
        """As for the layer in `torch.nn`.

        Args:
            input: `(time, batch, input_size)`, `(batch, time, input_size)` with `batch_first`, `(time, input_size)`, or
                a `PackedSequence`.
            hx: the initial state; zero unless given.
            lengths: `(batch,)`, int64, on the CPU, copied: where each row ends. From there on the output is zero and the
                state stays. A PackedSequence has its own. Dropout between layers draws as for these rows packed by
                `pack_padded_sequence(..., enforce_sorted=False)`, without those of length 0.

        Raises:
            InvalidCall: lengths that do not fit the rows; or `torch.fx` traces this layer itself.
        """
        if torch.compiler.is_compiling():
            return self._run_traced(input, hx, lengths)
        if get_eval_frame_callback() is not None:  # torch.compile is about to compile every function called from here
            return _uncompiled()(self, input, hx, lengths)
        return self._run_any(input, hx, lengths)

    def _remedy(self) -> str:
        return f"{super()._remedy()}, by multirnn.replace_layers(model, 'native')"

    def plan(self, batch: int, time: int, *, lengths: bool = False, gradients: bool = False) -> Plan:
        """See `multirnn.layer.Planned.plan`."""
        reason = self._refuses()
        if reason is None:
            loop, dtype = self._loop_name(), self._first_weight().dtype
            recurrence = self._recurrence(dtype)
            dropping = self._is_dropping()
            frozen = recurrence is not None and recurrence.constants is not None and not dropping
            if frozen and not gradients and (LOOPS[loop].ragged or not lengths):
                return Plan(FROZEN, _FROZEN_SENTENCES[loop])
            reason = _loop_refuses(loop, self._spec(dtype), batch, time, lengths, gradients, dropping)
            if reason is None:
                return Plan("fast", (SENTENCES if dropping else _SENTENCES)[loop])
        return Plan("native", f"torch.nn.{self.mode.split('_')[0]} itself: {reason}")

    def freeze(self) -> Self:
        """Take the weights for constants, and prepare them once instead of in every call without gradients.

        Until `unfreeze`, such a call refuses weights that have changed. PyTorch counts writes to a tensor by optimisers,
        `load_state_dict` or by hand; writes through `.data` or a NumPy array of the same memory go unnoticed. Calls with
        gradients use the current weights. Copies, and modules that were saved and loaded, are not frozen. If there is
        nothing to prepare, as on other devices, this does nothing.

        Raises:
            InvalidCall: the weights were made in inference mode, where PyTorch does not count writes.
        """
        recurrence = None if self._refuses() else self._recurrence(self._first_weight().dtype)
        if recurrence is not None:
            weights = renewed(self)
            if any(weight.is_inference() for weight in weights):
                raise InvalidCall(
                    "weights that were made in inference mode cannot be frozen: PyTorch does not tell whether they change"
                )
            recurrence.freeze(weights)
        return self

    def unfreeze(self) -> Self:
        """Use the current weights again in every call."""
        for recurrence in self._recurrences.values():
            recurrence.constants = None
        return self

    def _native(self) -> nn.RNNBase | None:
        if self._layer not in (nn.RNN, nn.LSTM, nn.GRU) or is_parametrized(self):
            return None
        native: nn.RNNBase = self._layer.__new__(self._layer)
        vars(native).update({name: value for name, value in vars(self).items() if name not in _OWN})
        return native

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()  # type: ignore[no-untyped-call]
        return {**state, "_recurrences": {}}

    def _run_any(self, input: Any, hx: Any, lengths: Maybe) -> Any:
        if is_intercepted() or torch._C._is_any_autocast_enabled():
            return self._run_native(input, hx, lengths)
        if not is_evaluated(self):
            weights = renewed(self)
            if not is_evaluated(self):  # they are computed, perhaps differently the next time
                return evaluated(self, weights)._run_any(input, hx, lengths)
        packed = isinstance(input, PackedSequence)
        found = self._run_packed(input, hx) if packed else self._run(input, hx, Rows(self.batch_first, lengths))
        return self._run_native(input, hx, lengths) if found is None else found

    def _run_traced(self, x: Any, hx: Any, lengths: Maybe) -> Any:
        """Under `torch.compile` or `torch.export`."""
        weights = self._traced_weights()
        why = traced.refuses(self, x, hx, lengths, weights)
        if why is None:
            return traced.run(self, x, hx, lengths, weights)
        if not torch.compiler.is_exporting():
            from multirnn_torch.untraced import BECAUSE

            return BECAUSE[why](self, x, hx, lengths)
        if why == "packed" or lengths is not None:  # neither can be exported through PyTorch's own layer
            raise InvalidCall(traced.REASONS[why])
        return self._run_native(x, hx, None)

    def _traced_weights(self) -> list[Tensor]:
        """The weights that the layer in `torch.nn` would use, without writing to its list of them."""
        module: Any = self  # these are not typed
        if module._weights_have_changed():
            return [getattr(self, name) for name in module._flat_weights_names]
        flat: list[Tensor] = module._flat_weights
        return flat

    def _run(self, x: Tensor, hx: Any, rows: Rows) -> Any:
        """The result; or None if the framework's own layer has to run, also to report an error."""
        if self.proj_size:
            return None
        dtype: Any = getattr(x, "dtype", None)
        if not is_plain(x, dtype) or (recurrence := self._recurrence(dtype)) is None:
            return None
        spec = recurrence.spec
        packed = rows.starts is not None
        if unbatched := x.dim() == 2 and not packed:
            x, rows = x[None], rows._replace(batch_first=True)
        if x.dim() != (2 if packed else 3) or x.shape[-1] != spec.input_size or 0 in x.shape:
            return None
        batch, time = rows.size(x)
        weights: list[Any] = self._flat_weights
        for weight, shape in zip(weights, recurrence.shapes, strict=True):
            if not is_plain(weight, dtype) or weight.shape != shape:
                return None
        state = self._state(hx, dtype, batch, unbatched)
        if state is None:
            return None
        if rows.lengths is not None:
            if not recurrence.loop.ragged:
                return None
            if not packed:
                rows = Rows.padded(rows.batch_first, rows.lengths, batch, time)
        differentiate = torch.is_grad_enabled() and any(
            part is not None and part.requires_grad for part in (x, *state, *weights)
        )
        # With packed weights every shape is faster: one step of 1 to 128 rows of 256 and 1024 units 1.0 to 2.5, one thread.
        constants = None if differentiate else recurrence.constants
        if constants is not None:
            constants.check(weights, recurrence.names)
        if dropping := self._is_dropping():
            constants = None  # they are packed for the whole stack
        ragged = rows.lengths is not None
        if constants is None and not self._is_faster(recurrence, batch, time, ragged, differentiate, dropping):
            return None
        if x.stride(-1) != 1:
            x = x.contiguous()
        weights = [weight if weight.is_contiguous() else weight.contiguous() for weight in weights]
        if dropping:
            y, final = run_dropping(recurrence, rows, x, state, weights, self.dropout)
        elif differentiate:
            apply: Any = RecurrenceFunction.apply
            y, *final = apply(recurrence, rows, x, *state, *weights)
        else:
            y, final, _ = recurrence.forward(x, state, weights, rows, constants=constants)
        if unbatched:
            y, final = y[0], [part[:, 0] for part in final]
        return y, tuple(final) if len(final) == 2 else final[0]

    def _run_packed(self, packed: PackedSequence, hx: Any) -> Any:
        data, sizes, sorted_indices, unsorted_indices = packed
        if not data.numel() or self._refuses() is not None:
            return None
        rows = Rows.packed(sizes, len(data))
        if rows is None or (found := self._run(data, reordered(hx, sorted_indices), rows)) is None:
            return None
        y, final = found
        return PackedSequence(y, sizes, sorted_indices, unsorted_indices), reordered(final, unsorted_indices)

    def _run_native(self, x: Any, hx: Any, lengths: Maybe) -> Any:
        """By the framework's own layer."""
        if (node := self._node(x, hx, lengths)) is not None:
            return node
        if not isinstance(x, Tensor | PackedSequence):
            mask = "; its mask is not read; rows that end early are told by lengths" if hasattr(x, "mask") else ""
            raise InvalidCall(
                f"x must be a torch.Tensor or a PackedSequence, not an object of the type {type(x).__name__}{mask}"
            )
        if lengths is None:
            return self._layer.forward(self, x, hx)
        sequence: Any = x
        rows: Any = sequence if self.batch_first else sequence.transpose(0, 1)
        own: Any = Rows.padded(True, lengths, *rows.shape[:2]).lengths
        if hx is None:
            shape = self.num_layers * (1 + self.bidirectional), rows.shape[0], self.hidden_size
            state = [rows.new_zeros(shape) for _ in range(1 + (self.mode == "LSTM"))]
        else:
            state = list(hx) if self.mode == "LSTM" else [hx]
        y, *final = run(partial(self._layer.forward, self), rows, state, own.numpy())
        return y if self.batch_first else y.transpose(0, 1), tuple(final) if len(final) == 2 else final[0]

    def _state(self, hx: Any, dtype: torch.dtype, batch: int, unbatched: bool) -> list[Maybe] | None:
        """The parts of the initial state, each None for zero; or None if they do not fit."""
        parts = 1 + (self.mode == "LSTM")
        if hx is None:
            zero: list[Maybe] = [None] * parts
            return zero
        given = hx if parts == 2 else [hx]
        passes = self.num_layers * (1 + self.bidirectional)
        shape = (passes, self.hidden_size) if unbatched else (passes, batch, self.hidden_size)
        if not isinstance(given, tuple | list) or len(given) != parts:
            return None
        for part in given:
            if not is_plain(part, dtype) or part.shape != shape:
                return None
        return [(part[:, None] if unbatched else part).contiguous() for part in given]

    def _is_faster(
        self, recurrence: ModuleRecurrence, batch: int, time: int, lengths: bool, gradients: bool, dropping: bool
    ) -> bool:
        key = batch, time, lengths, gradients, dropping
        if (known := recurrence.plans.get(key)) is None:
            known = _loop_refuses(self._loop_name(), recurrence.spec, *key) is None
            recurrence.plans[key] = known
        return known

    def _is_dropping(self) -> bool:
        """Whether it drops outputs between its layers."""
        return bool(self.dropout and self.training and self.num_layers > 1)

    def _refuses(self) -> str | None:
        """None, or why no shape is fast."""
        weight = self._first_weight()
        if weight.device.type != "cpu":
            return f"its kernels on {weight.device.type} are left as they are"
        if weight.dtype not in _DTYPES:
            return f"of {str(weight.dtype).removeprefix('torch.')} nothing faster is known"
        if self.proj_size:
            return f"it projects its state (proj_size={self.proj_size})"
        return None

    def _first_weight(self) -> Tensor:
        weights: list[Any] = self._flat_weights
        return cast("Tensor", weights[0])  # without evaluating a parametrization

    def _loop_name(self) -> str:
        if self.loop is not None:
            return self.loop
        return "tensors" if kernel.refuses() else "kernel"

    def _recurrence(self, dtype: torch.dtype) -> ModuleRecurrence | None:
        """For an input of this dtype; None if there is none."""
        key = dtype, self.loop
        if (found := self._recurrences.get(key)) is None and dtype in _DTYPES:
            names: list[str] = self._flat_weights_names
            found = self._recurrences[key] = ModuleRecurrence(self._spec(dtype), self._loop_name(), names)
        return found

    def _spec(self, dtype: torch.dtype) -> RecurrentSpec:
        """Its spec; a constant in place of a bias counts as a bias."""
        single = isinstance(self, CandidateBias)
        return RecurrentSpec(
            MODES[self.mode],
            self.input_size,
            self.hidden_size,
            num_layers=self.num_layers,
            bidirectional=self.bidirectional,
            bias=("single" if single else "double") if self.bias else "none",
            activation="relu" if self.mode == "RNN_RELU" else "tanh",
            dtype=_DTYPES[dtype],
        )


class FastRNN(FastModule):
    """`torch.nn.RNN`, made fast on the CPU."""

    _layer = nn.RNN

    def __init__(self, *args: Any, loop: str | None = None, **kwargs: Any) -> None:
        _refuse_projection(kwargs)
        if len(args) > 3:
            nonlinearity, args = args[3], (*args[:3], *args[4:])
        else:
            nonlinearity = kwargs.pop("nonlinearity", "tanh")
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
        super().__init__(f"RNN_{nonlinearity.upper()}", *args, loop=loop, **kwargs)
        self.nonlinearity = nonlinearity


class FastLSTM(FastModule):
    """`torch.nn.LSTM`, made fast on the CPU."""

    _layer = nn.LSTM
    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    check_forward_args: Any = nn.LSTM.check_forward_args
    permute_hidden: Any = nn.LSTM.permute_hidden

    def __init__(self, *args: Any, loop: str | None = None, **kwargs: Any) -> None:
        super().__init__("LSTM", *args, loop=loop, **kwargs)


class FastGRU(FastModule):
    """`torch.nn.GRU`, made fast on the CPU."""

    _layer: ClassVar[Any] = nn.GRU

    def __init__(self, *args: Any, loop: str | None = None, **kwargs: Any) -> None:
        _refuse_projection(kwargs)
        super().__init__("GRU", *args, loop=loop, **kwargs)


class FastCandidateBiasGRU(FastGRU, CandidateBias):
    """`CandidateBiasGRU`, made fast on the CPU."""

    _layer: ClassVar[Any] = CandidateBias

    def _traced_weights(self) -> list[Tensor]:
        return self._whole(super()._traced_weights())

    def _remedy(self) -> str:
        return KeptWhole._remedy(self)  # `replace_layers` gives it the class CandidateBiasGRU, which is kept whole too


def _refuse_projection(arguments: dict[str, Any]) -> None:
    if "proj_size" in arguments:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")  # as torch.nn says it


@cache
def _uncompiled() -> Any:
    """`FastModule._run_any`, hidden from torch.compile."""
    from multirnn_torch.untraced import BECAUSE

    return BECAUSE["none"]


def _loop_refuses(
    loop: str, spec: RecurrentSpec, batch: int, time: int, lengths: bool, gradients: bool, dropping: bool
) -> str | None:
    if lengths and not LOOPS[loop].ragged:
        return "without the compiled kernel, it takes rows of unequal length packed"
    return facts.refuses(loop, spec, batch, time, gradients, dropping)


_FAST_LAYERS = {"simple_rnn": FastRNN, "lstm": FastLSTM, "gru": FastGRU, "candidate_bias_gru": FastCandidateBiasGRU}


class FastTorchLayer(TorchLayer):
    """A stack run by a `FastRNN`, `FastLSTM` or `FastGRU`; otherwise like a `TorchLayer`."""

    def __init__(self, spec: RecurrentSpec, native: nn.RNNBase, *, frozen: bool = False) -> None:
        super().__init__(spec, native)
        self._frozen = frozen

    @property
    def implementation(self) -> str:
        """See `BoundaryLayer.implementation`."""
        return FROZEN if self._frozen else FAST

    def call(self, native: Any, x: Tensor, state: list[Tensor], lengths: Lengths | None) -> list[Tensor]:
        """See `TorchLayer.call`; the module takes lengths itself."""
        hx: Any = (tuple(state) if len(state) == 2 else state[0]) if state else None
        sequence, final = native(x, hx, None if lengths is None else torch.from_numpy(lengths))
        return [sequence, *final] if isinstance(final, tuple) else [sequence, final]

    def plan(self, batch: int, time: int, *, lengths: bool = False, gradients: bool = False) -> Plan:
        """See `multirnn.layer.Planned.plan`."""
        return cast("FastModule", self.native).plan(batch, time, lengths=lengths, gradients=gradients)


def build(weights: Weights, device: str | None, *, frozen: bool = False) -> FastTorchLayer:
    """See `multirnn_torch.build`."""
    spec = weights.spec
    with torch.inference_mode(False):  # a parameter made in inference mode can never be trained
        native = module(weights, device_of(device, getattr(torch, spec.dtype)), _FAST_LAYERS)
    if frozen:
        cast("FastModule", native).freeze()
    return FastTorchLayer(spec, native, frozen=frozen)
