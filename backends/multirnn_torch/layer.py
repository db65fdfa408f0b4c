"""A stack realised by PyTorch: what is refused, how it is built and run, and its gradients."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from multirnn import BoundaryLayer, Gradients, Inputs, InvalidCall, Output, RecurrentSpec, State, Weights
from multirnn.layer import Lengths
from multirnn.weights import Array
from multirnn_torch.weights import canonical, module, named_weights, read

__all__ = ["TorchLayer", "arrays", "build", "device_of", "differentiable", "refuses", "run", "tensors"]

_InferenceMode: Any = torch._C._InferenceMode
"""`torch.inference_mode`, which takes 2 microseconds, half of which are for decorators and scripts."""


def refuses(spec: RecurrentSpec) -> str | None:
    """None where PyTorch has a layer for the spec, else why not."""
    if spec.cell == "simple_rnn":
        if spec.activation in ("tanh", "relu"):
            return None
        return (
            f"torch.nn.RNN has the activations 'tanh' and 'relu', not {spec.activation!r}; take one, or another backend"
        )
    kind = f"torch.nn.{spec.cell.upper()}"
    if not spec.reset_after:
        return (
            f"{kind} applies its reset gate after the recurrent product, and reset_after=False is another function; "
            "take reset_after=True, or another backend"
        )
    if spec.activation != "tanh":
        return f"{kind} has the activation 'tanh' alone, not {spec.activation!r}; take it, or another backend"
    if spec.recurrent_activation != "sigmoid":
        return (
            f"{kind} has the recurrent_activation 'sigmoid' alone, not {spec.recurrent_activation!r}; "
            "take it, or another backend"
        )
    return None


def build(weights: Weights, device: str | None) -> "TorchLayer":
    """The layer of these weights.

    Raises:
        InvalidCall: PyTorch has no such device here, or not for the spec's dtype.
    """
    spec = weights.spec
    with torch.inference_mode(False):  # a parameter that is made in inference mode can never be trained
        return TorchLayer(spec, module(weights, device_of(device, getattr(torch, spec.dtype))))


class TorchLayer(BoundaryLayer):
    """A stack realised by one `torch.nn.RNN`, `LSTM` or `GRU`.

    The module may be trained, moved, compiled and wrapped: the layer runs with its parameters where they are now, and
    returns NumPy arrays. Only their dtype has to stay the spec's.

    On CUDA, cuDNN rounds the factors of float32 products to TF32 unless `torch.backends.cudnn.allow_tf32` is False.

    Args:
        spec: what the module realises.
        native: the module, `batch_first=True`.
    """

    def __init__(self, spec: RecurrentSpec, native: nn.RNNBase) -> None:
        super().__init__(spec)
        self._native = native
        self._tensor_dtype: torch.dtype = getattr(torch, spec.dtype)

    @property
    def native(self) -> nn.RNNBase:
        """The `torch.nn.RNN`, `LSTM` or `GRU` itself."""
        return self._native

    @property
    def parameter_count(self) -> int:
        """The numbers in `native.parameters()` that are not frozen."""
        return sum(parameter.numel() for parameter in self._native.parameters() if parameter.requires_grad)

    def weights(self) -> Weights:
        """The parameters as they are now, copied.

        Raises:
            InvalidCall: the module was converted to another dtype.
            Unrepresentable: the module was made into something that no spec describes.
        """
        self._place()
        return read(self._native)

    def run(self, inputs: Inputs) -> Output:
        """See `BoundaryLayer.run`. On the CPU the arrays share the memory of PyTorch's tensors, in and out."""
        device = self._place()
        zero = not inputs.state_given and inputs.lengths is None  # PyTorch makes its own, which costs less
        with _InferenceMode(True):
            state = [] if zero else tensors(inputs.state.parts, device)
            sequence, *final = self.call(_tensor(inputs.x, device), state, inputs.lengths)
        return Output(_array(sequence), State(*arrays(final)))

    def run_from_zero(self, x: Array) -> Output:
        """See `Boundary.run_from_zero`. What `run` asks and lists for other calls takes 6 to 10 µs."""
        weight = self._native._parameters.get("weight_ih_l0")
        if weight is None or weight.dtype is not self._tensor_dtype or not weight.is_cpu:
            return super().run_from_zero(x)
        with _InferenceMode(True):
            sequence, final = self._native(torch.from_numpy(x))
        if isinstance(final, tuple):
            return Output(sequence.numpy(), State(*[part.numpy() for part in final]))
        return Output(sequence.numpy(), State(final.numpy()))

    def pull_back(self, inputs: Inputs, cotangent: Output) -> Gradients:
        """See `BoundaryLayer.pull_back`. What the module's parameters hold in `.grad` stays as it is."""
        device = self._place()
        weights = named_weights(self._native).values()
        with differentiable(self._native):
            x, *state = (tensor.requires_grad_() for tensor in tensors((inputs.x, *inputs.state.parts), device))
            outputs = self.call(x, state, inputs.lengths)
            cotangents = tensors((cotangent.sequence, *cotangent.state.parts), device)
            found = torch.autograd.grad(outputs, [*weights, x, *state], cotangents)
        dx, *dstate = arrays(found[len(weights) :])
        return Gradients(canonical(found[: len(weights)], self.spec), dx, State(*dstate))

    def call(self, x: Tensor, state: list[Tensor], lengths: Lengths | None) -> list[Tensor]:
        """The module, called as `run` does."""
        return run(self._native, x, state, lengths)

    def _place(self) -> torch.device:
        """Where the module is now, as its first weight tells.

        Raises:
            InvalidCall: that weight no longer has the spec's dtype.
        """
        native: Any = self._native
        weight = native._parameters.get("weight_ih_l0")  # a third of the time that getattr takes
        if weight is None:  # something was put in the parameter's place
            weight = native.weight_ih_l0
        if weight.dtype != self._tensor_dtype:
            raise InvalidCall(
                f"the module now holds {weight.dtype}, and this layer computes in {self.spec.dtype}: convert it back by "
                f"native.to({self._tensor_dtype}), or build another layer of multirnn.read(native)"
            )
        device: torch.device = weight.device
        return device


# --- Tensors and arrays ----------------------------------------------------------------------------------------------


def tensors(values: Iterable[Array], device: torch.device) -> list[Tensor]:
    """On the CPU they share the memory of the arrays."""
    return [_tensor(array, device) for array in values]


def arrays(values: Iterable[Tensor]) -> list[Array]:
    """On the CPU they share the memory of the tensors."""
    return [_array(tensor) for tensor in values]


def _tensor(array: Array, device: torch.device) -> Tensor:
    # from_numpy shares the memory, and warns of memory that it must not write to.
    shared = torch.from_numpy(array if array.flags.writeable else array.copy())
    return shared if device.type == "cpu" else shared.to(device)


def _array(tensor: Tensor) -> Array:
    array: Array = (tensor if tensor.is_cpu else tensor.cpu()).numpy()
    return array


# --- Running ---------------------------------------------------------------------------------------------------------


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


@contextmanager
def differentiable(native: nn.Module) -> Iterator[None]:
    """Gradients of every parameter, also of frozen ones; afterwards the module is as it was."""
    frozen = [parameter for parameter in native.parameters() if not parameter.requires_grad]
    training = native.training
    native.train()  # cuDNN gives no gradients otherwise
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        native.train(training)
        for parameter in frozen:
            parameter.requires_grad_(False)


def device_of(name: str | None, dtype: torch.dtype) -> torch.device:
    """The device of this name, on which this dtype has been tried; PyTorch's default if there is no name."""
    try:
        device = torch.empty(0, dtype=dtype, device=name).device
    except (AssertionError, ImportError, RuntimeError, TypeError) as error:  # which of them depends on the device
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise InvalidCall(f"PyTorch cannot use the device {name!r} here: {reason}; 'cpu' is always there") from error
    if device.type == "meta":
        raise InvalidCall("the device 'meta' holds no numbers, so nothing can be computed on it; 'cpu' is always there")
    return device
