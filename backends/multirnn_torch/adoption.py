"""A module of the user's own behind the calls of a `Layer`: PyTorch's layers and cells, and what is written by hand."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from multirnn import Gradients, Inputs, InvalidCall, Output, RecurrentSpec, State, Weights
from multirnn.adoption import AdoptedNative, arranged, native_spec, noting, output_of, states_of, takes_state
from multirnn_torch.layer import arrays, differentiable, run, tensors
from multirnn_torch.weights import canonical, named_weights, read, unwrap

__all__ = ["AdoptedModule", "adopt"]


def adopt(native: Any, spec: RecurrentSpec | None, *, compiled: bool) -> "AdoptedModule":
    """Run a module as it is; see `multirnn.adoption.adopt`.

    Args:
        native: an `nn.RNN`, `LSTM`, `GRU` or the cell of one; or a module that is called as one, `module(x, h)` or
            `module(x, (h, c))`, and returns `(y, h)`, `(y, (h, c))` or `y`. Written by hand it is taken to have the
            batch first, unless it has an attribute `batch_first` that is False.
        spec: what it is held to be.
        compiled: run `torch.compile(native)`; the module itself is not changed.

    Raises:
        InvalidCall: it is no module, no spec is known, it holds another dtype than the spec, or drops outputs at random.
    """
    if not isinstance(native, nn.Module):
        raise InvalidCall(
            f"a {type(native).__name__} cannot be run as a layer: adopt a torch.nn.Module that is called with a "
            "sequence and a state, or a function f(x, h0) -> (y, h) on NumPy arrays"
        )
    spec, readable = native_spec(native, spec, read)
    return AdoptedModule(native, spec, readable=readable, compiled=compiled)


class AdoptedModule(AdoptedNative):
    """A module, run where its parameters are and in the mode that it is in.

    Args:
        native: the module.
        spec: what it is held to be.
        readable: whether it is one of PyTorch's own.
        compiled: run `torch.compile(native)`.
    """

    differentiable = True

    def __init__(self, native: nn.Module, spec: RecurrentSpec, *, readable: bool, compiled: bool) -> None:
        super().__init__(native, spec, f"{type(unwrap(native)).__name__} (torch)", compiled=compiled)
        self._module: nn.Module = unwrap(native)
        self.readable = readable
        self.takes_lengths = isinstance(self._module, nn.RNNBase)
        self.takes_state = takes_state(self._module.forward)
        self._device = _placed(self._module, spec)
        _refuse_dropout(self._module)
        called: Any = torch.compile(native) if compiled else native
        if compiled and any(isinstance(part, nn.RNNBase) for part in self._module.modules()):
            self.remark = "ran without being compiled where it is a torch.nn.RNN, LSTM or GRU: torch.compile leaves them as they are"
        if isinstance(self._module, nn.RNNCellBase):
            called = _over_time(called)
        elif not getattr(self._module, "batch_first", True):
            called = _batch_first(called)
        self._called: Callable[..., Any] = called

    @property
    def compilable(self) -> bool:
        """By `torch.compile`."""
        return True

    @property
    def parameter_count(self) -> int:
        """The numbers in `native.parameters()` that are not frozen."""
        return sum(parameter.numel() for parameter in self._module.parameters() if parameter.requires_grad)

    def weights(self) -> Weights:
        """The parameters as they are now; see `Adopted.weights`."""
        return read(self.native) if self.readable else super().weights()

    def run(self, inputs: Inputs) -> Output:
        """See `BoundaryLayer.run`."""
        with torch.no_grad(), _buffers_kept(self._module):
            outputs = self._outputs(self._leaves(inputs), inputs)
        return output_of(arrays(outputs), self.spec, self.title)

    def pull_back(self, inputs: Inputs, cotangent: Output) -> Gradients:
        """See `BoundaryLayer.pull_back`. What the module's parameters hold in `.grad` stays as it is."""
        weights = list(named_weights(self._module).values()) if self.readable else []
        with _buffers_kept(self._module), differentiable(self._module) if self.readable else torch.enable_grad():
            leaves = [leaf.requires_grad_() for leaf in self._leaves(inputs)]
            outputs = self._outputs(leaves, inputs)
            cotangents = tensors([cotangent.sequence, *states_of(cotangent.state)], self._device)
            reached = [(y, dy) for y, dy in zip(outputs, cotangents, strict=False) if y.requires_grad]
            gradients = _gradients(reached, [*weights, *leaves])
        dx, *dstate = arrays(gradients[len(weights) :])
        named = canonical(gradients[: len(weights)], self.spec) if self.readable else {}
        return Gradients(named, dx, State(*dstate))

    def _leaves(self, inputs: Inputs) -> list[Tensor]:
        """Copies of x and of the parts of the state: a module may write to them."""
        return [tensor.clone() for tensor in tensors([inputs.x, *states_of(inputs.state)], self._device)]

    def _outputs(self, leaves: list[Tensor], inputs: Inputs) -> list[Tensor]:
        x, *state = leaves
        with noting(self.title, inputs):
            if not self.takes_state:
                result = self._called(x)
            elif self.takes_lengths:
                result = run(self._called, x, state, inputs.lengths)
            else:
                result = self._called(x, tuple(state) if len(state) == 2 else state[0])
        return arranged(result, inputs.x.shape, self.spec, self.title)


@contextmanager
def _buffers_kept(module: nn.Module) -> Iterator[None]:
    """What a module writes down of a call, as means or as its own last state, is taken back."""
    before = [
        (part, name, buffer, buffer.clone())
        for part in module.modules()
        for name, buffer in part.named_buffers(recurse=False)
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for part, name, buffer, value in before:
                part._buffers[name] = buffer
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


def _gradients(outputs: list[tuple[Tensor, Tensor]], inputs: list[Tensor]) -> list[Tensor]:
    """Of the outputs with their cotangents, and zero where nothing of an input reaches an output."""
    if not outputs:
        return [torch.zeros_like(tensor) for tensor in inputs]
    ys, cotangents = zip(*outputs, strict=True)
    return list(torch.autograd.grad(ys, inputs, cotangents, allow_unused=True, materialize_grads=True))


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


def _placed(module: nn.Module, spec: RecurrentSpec) -> torch.device:
    """Where the parameters are.

    Raises:
        InvalidCall: they are of another dtype than the spec's.
    """
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
