"""A stack run by PyTorch: the specs it refuses, how a layer is built and called, and its gradients."""

from typing import Any

import torch
from torch import Tensor, nn

from multirnn import Gradients, InvalidCall, Output, RecurrentSpec, State, Weights
from multirnn.boundary import BoundaryLayer, Inputs
from multirnn.layer import Lengths
from multirnn.weights import Array
from multirnn_torch.calls import arrays, run, tensors
from multirnn_torch.reading import current, separated
from multirnn_torch.settings import alone, disturbed
from multirnn_torch.weights import canonical, module

__all__ = ["TorchLayer", "build", "device_of", "refuses"]

_InferenceMode: Any = torch._C._InferenceMode
"""`torch.inference_mode` takes 2 µs, half of them for decorators and scripts."""


def refuses(spec: RecurrentSpec) -> str | None:
    """None, or why PyTorch has no layer for the spec."""
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
    for name, only in (("activation", "tanh"), ("recurrent_activation", "sigmoid")):
        if (given := getattr(spec, name)) != only:
            return f"{kind} has the {name} {only!r} alone, not {given!r}; take it, or another backend"
    return None


def build(weights: Weights, device: str | None) -> "TorchLayer":
    """See `multirnn_torch.build`."""
    spec = weights.spec
    with torch.inference_mode(False):  # a parameter made in inference mode can never be trained
        return TorchLayer(spec, module(weights, device_of(device, getattr(torch, spec.dtype))))


class TorchLayer(BoundaryLayer):
    """A stack run by one `torch.nn.RNN`, `LSTM` or `GRU`.

    The module may be trained, moved, compiled and wrapped: the layer uses its parameters where they are now, and returns
    NumPy arrays. Only their dtype has to stay the spec's.

    On CUDA, cuDNN rounds the factors of float32 products to TF32 unless `torch.backends.cudnn.allow_tf32` is False.

    Args:
        spec: of the module.
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
        """The size of `native.parameters()`, frozen ones excluded."""
        return sum(parameter.numel() for parameter in self._native.parameters() if parameter.requires_grad)

    def weights(self) -> Weights:
        """The parameters as they are now, copied.

        Raises:
            InvalidCall: the module was converted to another dtype.
            Unrepresentable: no spec describes the module any more.
        """
        self._place()
        return current(self._native)

    def run(self, inputs: Inputs) -> Output:
        """See `BoundaryLayer.run`. On the CPU the arrays share the memory of PyTorch's tensors, in and out."""
        device = self._place()
        zero = not inputs.state_given and inputs.lengths is None  # PyTorch's own zero state costs less
        with alone(device), _InferenceMode(True):
            x, *state = tensors((inputs.x,) if zero else (inputs.x, *inputs.state.parts), device)
            sequence, *final = arrays(self.call(self._native, x, state, inputs.lengths))
        return Output(sequence, State(*final))

    def run_from_zero(self, x: Array) -> Output:
        """See `Boundary.run_from_zero`; 6 to 10 µs faster than `run`."""
        weight = self._native._parameters.get("weight_ih_l0")
        if weight is None or weight.dtype is not self._tensor_dtype or not weight.is_cpu or disturbed():
            return super().run_from_zero(x)
        with _InferenceMode(True):
            sequence, final = self._native(torch.from_numpy(x))
        if isinstance(final, tuple):
            return Output(sequence.numpy(), State(*[part.numpy() for part in final]))
        return Output(sequence.numpy(), State(final.numpy()))

    def pull_back(self, inputs: Inputs, cotangent: Output) -> Gradients:
        """See `BoundaryLayer.pull_back`. Leaves `.grad` of the module's parameters as it is."""
        device = self._place()
        with torch.inference_mode(False), torch.enable_grad(), alone(device), separated(self._native) as (still, named):
            weights = list(named.values())
            x, *state = (tensor.requires_grad_() for tensor in tensors((inputs.x, *inputs.state.parts), device))
            outputs = self.call(still, x, state, inputs.lengths)
            cotangents = tensors((cotangent.sequence, *cotangent.state.parts), device)
            found = torch.autograd.grad(outputs, [*weights, x, *state], cotangents)
        dx, *dstate = arrays(found[len(weights) :])
        return Gradients(canonical(found[: len(weights)], self.spec), dx, State(*dstate))

    def call(self, native: Any, x: Tensor, state: list[Tensor], lengths: Lengths | None) -> list[Tensor]:
        """Call `native`, the module or a copy of it, as `run` does."""
        return run(native, x, state, lengths)

    def _place(self) -> torch.device:
        """The device of the first weight; raises InvalidCall if that no longer has the spec's dtype."""
        weight: Tensor = self._native._flat_weights[0]  # type: ignore[assignment]  # without evaluating anything
        if weight.dtype != self._tensor_dtype:
            raise InvalidCall(
                f"the module now holds {weight.dtype}, and this layer computes in {self.spec.dtype}: convert it back by "
                f"native.to({self._tensor_dtype}), or build another layer of multirnn.read(native)"
            )
        return weight.device


def device_of(name: str | None, dtype: torch.dtype) -> torch.device:
    """The device of this name, tried with this dtype; by default PyTorch's, or "cpu" if that is "meta"."""
    if name is None and torch.empty(0).is_meta:
        name = "cpu"
    try:
        device = torch.empty(0, dtype=dtype, device=name).device
    except (AssertionError, ImportError, RuntimeError, TypeError) as error:  # which of them depends on the device
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise InvalidCall(f"PyTorch cannot use the device {name!r} here: {reason}; 'cpu' is always there") from error
    if device.type == "meta":
        raise InvalidCall("the device 'meta' holds no numbers, so nothing can be computed on it; 'cpu' is always there")
    return device
