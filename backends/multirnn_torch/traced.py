"""Calls of a fast layer that `torch.compile` or `torch.export` traces: by one of `operators`, or by PyTorch's own layer."""

from typing import Any

import torch
from torch import Tensor

from multirnn import kernel
from multirnn_torch.loop import Maybe
from multirnn_torch.operators import OPERATORS
from multirnn_torch.weights import MODES

__all__ = ["run"]

_WITHOUT_KERNEL = kernel.refuses() is not None
_DTYPES = torch.float32, torch.float64


def run(module: Any, x: Tensor, hx: Any, lengths: Maybe, weights: list[Tensor]) -> Any:
    """The result by an operator; or None if PyTorch's own layer has to be traced, also to report an error.

    Everything here is traced: it depends on dtypes, devices and the number of axes, but on no size of x.
    """
    if _WITHOUT_KERNEL or module.loop == "tensors" or torch._C._is_any_autocast_enabled():
        return None
    if x.dim() not in (2, 3) or not all(_fits(part, x) for part in (x, *weights)):
        return None
    if x.shape[-1] != module.input_size:
        return None
    batch_first = module.batch_first
    if unbatched := x.dim() == 2:
        x, batch_first = x[None], True
    states = 1 + (module.mode == "LSTM")
    if hx is None:
        state: list[Maybe] = [None] * states
    else:
        given = hx if states == 2 else [hx]
        if not isinstance(given, tuple | list) or len(given) != states:
            return None
        shape = module.num_layers * (1 + module.bidirectional), x.shape[0 if batch_first else 1], module.hidden_size
        shape = (shape[0], shape[2]) if unbatched else shape
        if not all(_fits(part, x) and part.shape == shape for part in given):
            return None
        state = [part[:, None] if unbatched else part for part in given]
    if lengths is not None and not (isinstance(lengths, Tensor) and lengths.dtype == torch.int64 and lengths.is_cpu):
        return None
    operators = OPERATORS[MODES[module.mode]]
    stack: list[Any] = [batch_first, module.num_layers, module.bidirectional, module.bias]
    if states == 1 and module.mode != "GRU":
        stack.append(module.nonlinearity)
    trains = (
        torch.is_grad_enabled()
        and not torch.compiler.is_exporting()
        and any(part is not None and part.requires_grad for part in (x, *state, *weights))
    )
    if trains:
        y, *final, _ = operators.training(x, *state, weights, lengths, *stack)
    else:
        y, *final = operators.forward(x, *state, weights, lengths, *stack)
    if unbatched:
        y, final = y[0], [part[:, 0] for part in final]
    return y, tuple(final) if states == 2 else final[0]


def _fits(tensor: Any, x: Tensor) -> bool:
    return (
        isinstance(tensor, Tensor)
        and tensor.dtype == x.dtype
        and tensor.dtype in _DTYPES
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
    )
