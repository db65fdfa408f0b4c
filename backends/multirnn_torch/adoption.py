"""A user's own module called as a `Layer`: PyTorch's layers and cells, and hand-written modules."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from multirnn import Gradients, InvalidCall, Output, RecurrentSpec, State, Weights
from multirnn.adoption import AdoptedNative, native_spec, noting
from multirnn.boundary import Inputs
from multirnn.returned import arranged, output_of
from multirnn_torch.calls import Caller, arrays, tensors, uncompiled
from multirnn_torch.reading import read, separated, untouched, unwrapped
from multirnn_torch.settings import alone
from multirnn_torch.weights import canonical, named_weights

__all__ = ["AdoptedModule", "adopt"]


def adopt(native: Any, spec: RecurrentSpec | None, *, compiled: bool) -> "AdoptedModule":
    """Run a module as it is; see `multirnn.adoption.adopt`.

    Args:
        native: an `nn.RNN`, `LSTM`, `GRU` or the cell of one; or a module that is called as one, `module(x, h)` or
            `module(x, (h, c))`, and returns `(y, h)`, `(y, (h, c))` or `y`. A hand-written module takes the batch first,
            unless it has an attribute `batch_first` that is False.
        spec: its spec; needed if it cannot be read.
        compiled: run `torch.compile(native)`; the module itself is not changed.

    Raises:
        InvalidCall: it is no module, has no known spec or another dtype than the spec, or drops outputs at random.
    """
    if not isinstance(native, nn.Module):
        raise InvalidCall(
            f"an object of the type {type(native).__name__} cannot be run as a layer: adopt a torch.nn.Module that is called with a "
            "sequence and a state, or a function f(x, h0) -> (y, h) on NumPy arrays"
        )
    spec, readable = native_spec(native, spec, read)
    return AdoptedModule(native, spec, readable=readable, compiled=compiled)


class AdoptedModule(AdoptedNative):
    """A module, run on the device of its parameters and in its present mode; `readable` if it is PyTorch's own."""

    differentiable = True

    def __init__(self, native: nn.Module, spec: RecurrentSpec, *, readable: bool, compiled: bool) -> None:
        module = unwrapped(native)[-1]
        super().__init__(native, spec, f"{type(module).__name__} (torch)", compiled=compiled)
        self._module: nn.Module = module
        self.readable = readable
        self._device = _device_of(module, spec)
        _refuse_dropout(module)
        if compiled and any(isinstance(part, nn.RNNBase) for part in module.modules()):
            self.remark = "ran without being compiled where it is a torch.nn.RNN, LSTM or GRU: torch.compile leaves them as they are"
        self._call = Caller(module, torch.compile(native) if compiled else native)
        self.takes_lengths, self.takes_state = self._call.takes_lengths, self._call.takes_state

    @property
    def compilable(self) -> bool:
        """By `torch.compile`."""
        return True

    @property
    def parameter_count(self) -> int:
        """The size of `native.parameters()`, frozen ones excluded."""
        return sum(parameter.numel() for parameter in self._module.parameters() if parameter.requires_grad)

    def weights(self) -> Weights:
        """The parameters as they are now; see `Adopted.weights`."""
        return read(self.native) if self.readable else super().weights()

    def run(self, inputs: Inputs) -> Output:
        """See `BoundaryLayer.run`."""
        with untouched(self._module), torch.inference_mode(False), torch.no_grad(), alone(self._device):
            outputs = self._outputs(self._call, self._leaves(inputs), inputs)
        return output_of(arrays(outputs), self.spec, self.title)

    def pull_back(self, inputs: Inputs, cotangent: Output) -> Gradients:
        """See `BoundaryLayer.pull_back`. Leaves `.grad` of the module's parameters as it is.

        Raises:
            InvalidCall: the module computes with other tensors than its weights.
        """
        with (
            untouched(self._module),
            torch.inference_mode(False),
            torch.enable_grad(),
            alone(self._device),
            self._to_differentiate() as (call, named),
        ):
            x_and_state = [leaf.requires_grad_() for leaf in self._leaves(inputs)]
            outputs = self._outputs(call, x_and_state, inputs)
            cotangents = tensors([cotangent.sequence, *cotangent.state.parts], self._device)
            pairs = [(y, dy) for y, dy in zip(outputs, cotangents, strict=False) if y.requires_grad]
            leaves = [*named.values(), *x_and_state]
            gradients: list[Tensor | None] = [None] * len(leaves)
            if pairs:
                ys, dys = zip(*pairs, strict=True)
                gradients = list(torch.autograd.grad(ys, leaves, dys, allow_unused=True))
                for name, gradient in zip(named, gradients, strict=False):
                    if gradient is None:
                        raise InvalidCall(
                            f"no gradient reaches {name} of {self.title}: its forward computes with another tensor"
                        )
        found = [torch.zeros_like(leaf) if d is None else d for leaf, d in zip(leaves, gradients, strict=True)]
        dx, *dstate = arrays(found[len(named) :])
        return Gradients(canonical(found[: len(named)], self.spec) if self.readable else {}, dx, State(*dstate))

    @contextmanager
    def _to_differentiate(self) -> Iterator[tuple[Caller, dict[str, Tensor]]]:
        """The module to differentiate, and its weights by name; none if they cannot be read."""
        if not self.readable:
            yield self._call, {}
        elif not self.compiled:
            with separated(self._module) as (still, named):
                yield Caller(still, uncompiled(still)), named
        else:  # only the module itself is compiled, not a copy
            named = named_weights(self._module)
            if len({id(weight) for weight in named.values() if weight.is_leaf}) < len(named):
                raise InvalidCall(
                    f"{self.title} has weights that are computed or stand in two places, and its gradients are taken of "
                    "one parameter for each; adopt it without compiled=True"
                )
            frozen = [weight for weight in named.values() if not weight.requires_grad]
            for weight in frozen:
                weight.requires_grad_(True)
            try:
                yield self._call, named
            finally:
                for weight in frozen:
                    weight.requires_grad_(False)

    def _leaves(self, inputs: Inputs) -> list[Tensor]:
        """Copies of x and of the parts of the state: a module may write to them."""
        return [tensor.clone() for tensor in tensors([inputs.x, *inputs.state.parts], self._device)]

    def _outputs(self, call: Caller, leaves: list[Tensor], inputs: Inputs) -> list[Tensor]:
        x, *state = leaves
        with noting(self.title, inputs):
            result = call(x, state, inputs.lengths)
        return arranged(result, inputs.x.shape, self.spec, self.title)


def _device_of(module: nn.Module, spec: RecurrentSpec) -> torch.device:
    """The device of the parameters; raises InvalidCall if they have another dtype than the spec."""
    parameters = [parameter for parameter in module.parameters() if parameter.is_floating_point()]
    for parameter in parameters:
        if parameter.dtype != getattr(torch, spec.dtype):
            held = str(parameter.dtype).removeprefix("torch.")
            raise InvalidCall(
                f"this {type(module).__name__} holds {held} and the spec computes in {spec.dtype}; "
                f"pass a spec with dtype={held!r}, or convert the module by .to(torch.{spec.dtype})"
            )
    return parameters[0].device if parameters else torch.device("cpu")


def _refuse_dropout(module: nn.Module) -> None:
    for name, part in module.named_modules():
        rate = getattr(part, "p", 0) if isinstance(part, nn.modules.dropout._DropoutNd) else getattr(part, "dropout", 0)
        if part.training and isinstance(rate, float) and rate > 0:
            where = f"its {name!r}" if name else "it"
            raise InvalidCall(
                f"this {type(module).__name__} drops outputs at random ({where} has the rate {rate}, in training mode); "
                "call its eval() first"
            )
