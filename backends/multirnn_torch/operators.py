"""The compiled recurrence as operators of PyTorch, which `torch.compile`, `torch.export` and AOTInductor keep whole.

Each cell has three, such as for an LSTM:

    multirnn::lstm_v1            x, h, c, weights, lengths, ...       -> y, h_n, c_n
    multirnn::lstm_training_v1   the same                             -> y, h_n, c_n, reserve
    multirnn::lstm_backward_v1   x, h, c, weights, y, reserve,
                                 dy, dh_n, dc_n, ..., wanted          -> the gradients that are wanted of x, h, c and the weights

x is `(batch, time, input_size)` with `batch_first`, else `(time, batch, input_size)`. An absent state is zero. The weights are
those of `torch.nn` in its order, `weight_ih`, `weight_hh`, `bias_ih` and `bias_hh` of every layer and direction. From its length on, a row
of y is zero and its state stays. The reserve space is what the backward pass needs of the forward pass.

`lstm_v1` can be differentiated too: its backward pass runs the forward pass again. So an exported model computes no reserve space
and can be trained all the same.

The number in a name changes with every change of a signature, of a shape or of the reserve space's size: Inductor's cache on
disk does not notice a changed fake kernel.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from multirnn import InvalidCall, RecurrentSpec
from multirnn.cells import CellName
from multirnn_torch.kernel import KernelLoop
from multirnn_torch.loop import LoopCall, Maybe
from multirnn_torch.recurrence import Rows

__all__ = ["OPERATORS", "Operators"]

_LIBRARY = torch.library.Library("multirnn", "FRAGMENT")  # type: ignore[no-untyped-call]
_DTYPES = {torch.float32: "float32", torch.float64: "float64"}


class StackArguments(NamedTuple):
    """The last arguments of an operator: with the shapes of the weights, they make a spec."""

    batch_first: bool
    layers: int
    bidirectional: bool
    bias: bool
    activation: str = "tanh"  # of a simple RNN alone

    @property
    def passes(self) -> int:
        """Layers times directions."""
        return self.layers * (1 + self.bidirectional)

    def turned(self, sequence: Tensor) -> Tensor:
        """Swap `(batch, time, features)` and the axis order of the call."""
        return sequence if self.batch_first else sequence.transpose(0, 1)


class Operators:
    """The three operators of a cell."""

    def __init__(self, cell: CellName, name: str) -> None:
        self.cell: CellName = cell
        states = "hc" if cell == "lstm" else "h"
        self._states = len(states)
        given = ", ".join(f"Tensor? {part}" for part in states)
        final = ", ".join(f"Tensor {part}_n" for part in states)
        dfinal = ", ".join(f"Tensor? d{part}_n" for part in states)
        stack = "bool batch_first, int layers, bool bidirectional, bool bias"
        if cell == "simple_rnn":
            stack += ", str activation"
        inputs = f"Tensor x, {given}, Tensor[] weights, Tensor? lengths, {stack}"
        self.forward = _operator(f"{name}_v1", f"({inputs}) -> (Tensor y, {final})")
        self.training = _operator(f"{name}_training_v1", f"({inputs}) -> (Tensor y, {final}, Tensor reserve)")
        self.backward = _operator(
            f"{name}_backward_v1",
            f"(Tensor x, {given}, Tensor[] weights, Tensor y, Tensor reserve, Tensor? dy, {dfinal}, {stack}, "
            "bool[] wanted) -> Tensor[]",
        )
        kernels = {
            self.forward: (self._run, self._run_fake, self._pull_back_again, self._keep_inputs),
            self.training: (self._train, self._train_fake, self._pull_back, self._keep),
            self.backward: (self._backward, self._backward_fake, self._refuse_second, None),
        }
        for operator, (run, fake, differentiate, keep) in kernels.items():
            qualified = operator.name().partition(".")[0]
            torch.library.impl(qualified, "cpu", lib=_LIBRARY)(run)
            torch.library.register_fake(qualified, fake, lib=_LIBRARY)
            torch.library.register_autograd(qualified, differentiate, setup_context=keep, lib=_LIBRARY)

    # --- Forward -----------------------------------------------------------------------------------------------------

    def _run(self, x: Tensor, *others: Any) -> tuple[Tensor, ...]:
        return self._forward(x, *others, keep=False)

    def _train(self, x: Tensor, *others: Any) -> tuple[Tensor, ...]:
        return self._forward(x, *others, keep=True)

    def _forward(self, x: Tensor, *others: Any, keep: bool) -> tuple[Tensor, ...]:
        state, (weights, lengths, *rest) = others[: self._states], others[self._states :]
        stack = StackArguments(*rest)
        loop, spec = self._loop(x, weights, stack)
        _check(spec, stack, x, weights, h_or_c=state)
        batch, time, _ = stack.turned(x).shape
        rows = Rows(stack.batch_first) if lengths is None else Rows.padded(stack.batch_first, lengths, batch, time)
        y = torch.empty((*x.shape[:-1], spec.output_size), dtype=x.dtype, device="cpu")
        # Zeros, since the kernel leaves gaps, and an operator's result depends on its arguments alone.
        reserve = torch.zeros(loop.reserve_size(batch, time), dtype=torch.uint8, device="cpu") if keep else None
        if not batch:
            final = [x.new_zeros(stack.passes, 0, spec.hidden_size) for _ in state]
        else:
            call = rows.call(_dense(x), [_contiguous(part) for part in state], [w.contiguous() for w in weights], y)
            final = loop.forward(call, keep=keep, reserve=reserve)[0]
        return (y, *final) if reserve is None else (y, *final, reserve)

    def _run_fake(self, x: Tensor, *others: Any) -> tuple[Tensor, ...]:
        state, (weights, lengths, *rest) = others[: self._states], others[self._states :]
        stack = StackArguments(*rest)
        _check_devices(x, *state, *weights, lengths=lengths)
        hidden = weights[1].shape[1]
        batch = x.shape[0 if stack.batch_first else 1]
        y = x.new_empty((*x.shape[:-1], hidden * (1 + stack.bidirectional)))
        return y, *(x.new_empty((stack.passes, batch, hidden)) for _ in state)

    def _train_fake(self, x: Tensor, *others: Any) -> tuple[Tensor, ...]:
        weights, _, *rest = others[self._states :]
        loop, _ = self._loop(x, weights, stack := StackArguments(*rest))
        batch, time = x.shape[:2] if stack.batch_first else (x.shape[1], x.shape[0])
        return *self._run_fake(x, *others), x.new_empty((loop.reserve_size(batch, time),), dtype=torch.uint8)

    # --- Backward ----------------------------------------------------------------------------------------------------

    def _backward(self, x: Tensor, *others: Any) -> list[Tensor]:
        states = self._states
        state, (weights, y, reserve) = others[:states], others[states : states + 3]
        dy, *dfinal = others[states + 3 : 2 * states + 4]
        *rest, wanted = others[2 * states + 4 :]
        stack = StackArguments(*rest)
        loop, spec = self._loop(x, weights, stack)
        _check(spec, stack, x, weights, h_or_c=(*state, *dfinal), y_or_dy=(y, dy))
        batch, time, _ = stack.turned(x).shape
        if reserve.dtype is not torch.uint8 or reserve.shape != (loop.reserve_size(batch, time),):
            raise InvalidCall("the reserve space is not the one that the forward pass made for this call")
        if not batch:
            kept = [x, *(x.new_zeros(stack.passes, 0, spec.hidden_size) for _ in state), *weights]
            return [torch.zeros(part.shape, dtype=x.dtype) for part, want in zip(kept, wanted, strict=True) if want]
        call = LoopCall(
            stack.turned(_dense(x)),
            [_contiguous(part) for part in state],
            [weight.contiguous() for weight in weights],
            stack.turned(_dense(y)),
        )
        dy = None if dy is None else stack.turned(dy)
        dx, *gradients = loop.backward(call, [reserve.contiguous()], dy, dfinal, wanted)
        dx = None if dx is None else stack.turned(dx)
        # Contiguous also where x is not: compiled code relies on strides that the fake kernel can know.
        found = zip((dx, *gradients), wanted, strict=True)
        return [cast("Tensor", gradient).contiguous() for gradient, want in found if want]

    def _backward_fake(self, x: Tensor, *others: Any) -> list[Tensor]:
        states, weights = self._states, others[self._states]
        *rest, wanted = others[2 * states + 4 :]
        _check_devices(x, *others[:states], *weights, *others[states + 1 : 2 * states + 4])
        stack = StackArguments(*rest)
        state = stack.passes, x.shape[0 if stack.batch_first else 1], weights[1].shape[1]
        shapes = x.shape, *[state] * states, *(weight.shape for weight in weights)
        return [x.new_empty(shape) for shape, want in zip(shapes, wanted, strict=True) if want]

    # --- Autograd ----------------------------------------------------------------------------------------------------

    def _keep_inputs(self, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, *others = inputs
        state, (weights, lengths, *ctx.stack) = others[: self._states], others[self._states :]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, *state, lengths, *weights)

    def _keep(self, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, *others = inputs
        state, (weights, _, *ctx.stack) = others[: self._states], others[self._states :]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, *state, output[0], output[-1], *weights)

    def _pull_back_again(self, ctx: Any, *cotangents: Maybe) -> tuple[Any, ...]:
        x, *others = ctx.saved_tensors
        state, lengths, weights = others[: self._states], others[self._states], others[self._states + 1 :]
        y, *_, reserve = self.training(x, *state, weights, lengths, *ctx.stack)
        return self._gradients(ctx, x, state, weights, y, reserve, cotangents)

    def _pull_back(self, ctx: Any, *cotangents: Maybe) -> tuple[Any, ...]:
        x, *others = ctx.saved_tensors
        state, (y, reserve, *weights) = others[: self._states], others[self._states :]
        return self._gradients(ctx, x, state, weights, y, reserve, cotangents[:-1])

    def _gradients(
        self,
        ctx: Any,
        x: Tensor,
        state: Sequence[Maybe],
        weights: Sequence[Tensor],
        y: Tensor,
        reserve: Tensor,
        cotangents: Sequence[Maybe],
    ) -> tuple[Any, ...]:
        want_x, *want_others = ctx.needs_input_grad[: 2 + self._states]
        *want_state, want_weights = want_others
        wanted = [want_x, *want_state, *want_weights]
        made = iter(self.backward(x, *state, list(weights), y, reserve, *cotangents, *ctx.stack, wanted))
        dx, *gradients = [next(made) if want else None for want in wanted]
        dstate, dweights = gradients[: self._states], gradients[self._states :]
        return dx, *dstate, dweights, None, *(None for _ in ctx.stack)

    def _refuse_second(self, ctx: Any, *cotangents: Any) -> Any:
        raise InvalidCall(
            "a compiled or exported recurrent layer has first derivatives alone; take the second ones of the layer itself"
        )

    def _loop(self, x: Tensor, weights: Sequence[Tensor], stack: StackArguments) -> tuple[KernelLoop, RecurrentSpec]:
        count = stack.passes * (4 if stack.bias else 2)
        if x.dtype not in _DTYPES or len(weights) != count or any(weight.dim() != 2 for weight in weights[:2]):
            raise InvalidCall(
                "x is float32 or float64, and every layer and direction has its two matrices and two biases"
            )
        sizes = int(weights[0].shape[1]), int(weights[1].shape[1])
        return _loop_of(self.cell, *sizes, stack._replace(batch_first=True), _DTYPES[x.dtype])


@cache
def _loop_of(
    cell: CellName, input_size: int, hidden_size: int, stack: StackArguments, dtype: Any
) -> tuple[KernelLoop, RecurrentSpec]:
    spec = RecurrentSpec(
        cell,
        input_size,
        hidden_size,
        num_layers=stack.layers,
        bidirectional=stack.bidirectional,
        bias="double" if stack.bias else "none",
        activation=stack.activation,
        dtype=dtype,
    )
    return KernelLoop(spec), spec


def _operator(name: str, schema: str) -> Any:
    torch.library.define(f"multirnn::{name}", schema, lib=_LIBRARY, tags=torch.Tag.pt2_compliant_tag)
    return getattr(torch.ops.multirnn, name).default


def _check(
    spec: RecurrentSpec,
    stack: StackArguments,
    x: Tensor,
    weights: Sequence[Tensor],
    h_or_c: Sequence[Maybe],
    y_or_dy: Sequence[Maybe] = (),
) -> None:
    """Raise InvalidCall unless the kernel may read all of these: it is handed their addresses."""
    if x.dim() != 3 or not x.shape[0 if not stack.batch_first else 1]:
        raise InvalidCall(f"x has three axes and at least one time step, not the shape {tuple(x.shape)}")
    batch = x.shape[0 if stack.batch_first else 1]
    state = stack.passes, batch, spec.hidden_size
    expected = [("x", x, (*x.shape[:2], spec.input_size))]
    expected += [("a state", part, state) for part in h_or_c if part is not None]
    expected += [("y", part, (*x.shape[:2], spec.output_size)) for part in y_or_dy if part is not None]
    shapes = (_flat(shape) for shape in spec.shapes.values())
    expected += [("a weight", weight, shape) for weight, shape in zip(weights, shapes, strict=True)]
    for name, tensor, shape in expected:
        if tensor.shape != shape or tensor.dtype is not x.dtype or not tensor.is_cpu:
            raise InvalidCall(
                f"{name} has the shape {shape} and the dtype {x.dtype} on the CPU, not {tuple(tensor.shape)} and {tensor.dtype}"
            )


def _check_devices(x: Tensor, *others: Maybe, lengths: Maybe = None) -> None:
    """Raise InvalidCall unless all are where x is: PyTorch hands a call with one tensor on meta to the fake kernel, whatever x is."""
    for tensor in others:
        if tensor is not None and tensor.device != x.device:
            raise InvalidCall(f"x is on {x.device}, and all else has to be there too, not on {tensor.device}")
    if lengths is not None and lengths.device.type not in ("cpu", x.device.type):
        raise InvalidCall(f"lengths are on the CPU, not on {lengths.device}")


def _flat(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A canonical shape as PyTorch stores it: gates stacked along the rows."""
    gates, hidden, *rest = shape
    return gates * hidden, *rest


def _dense(sequence: Tensor) -> Tensor:
    return sequence if sequence.stride(-1) == 1 else sequence.contiguous()


def _contiguous(part: Maybe) -> Maybe:
    return None if part is None else part.contiguous()


OPERATORS: dict[CellName, Operators] = {
    "simple_rnn": Operators("simple_rnn", "rnn"),
    "lstm": Operators("lstm", "lstm"),
    "gru": Operators("gru", "gru"),
}
