"""Calls of a fast layer that `torch.compile` or `torch.export` traces, and why an operator cannot take one.

All here is traced. It asks for dtypes, devices and numbers of axes, and for no size of x but `input_size`, so that one graph serves
every batch and time.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from multirnn import kernel
from multirnn_torch.loop import Maybe
from multirnn_torch.operators import OPERATORS
from multirnn_torch.weights import MODES

__all__ = ["REASONS", "refuses", "run"]

WITHOUT_KERNEL = kernel.refuses()
_DTYPES = torch.float32, torch.float64

REASONS = {
    "packed": "a compiled or exported recurrent layer takes no PackedSequence: tell where rows end by layer(x, lengths=...)",
    "kernel": f"a compiled recurrent layer is the compiled recurrence: {WITHOUT_KERNEL or 'set its loop to None, in place of tensors'}",
    "projection": "a compiled recurrent layer has no projections: set its proj_size to 0, or compile without fullgraph=True",
    "autocast": "a compiled recurrent layer runs without autocast: leave it, or compile without fullgraph=True",
    "transform": "a compiled recurrent layer is not transformed by torch.func: compile without fullgraph=True",
    "dtype": "a compiled recurrent layer and its x are of one dtype, float32 or float64, on the CPU: "
    "convert them, or compile without fullgraph=True",
    "call": "x is (batch, time, input_size), or (time, input_size), and a state (num_layers * directions, batch, hidden_size), "
    "as for the layer in torch.nn",
    "lengths": "lengths are (batch,), int64, on the CPU",
    "none": "multirnn runs outside of a graph",
}


def refuses(module: Any, x: Any, hx: Any, lengths: Maybe, weights: Sequence[Any]) -> str | None:
    """None, or why no operator can run a call: a key of `REASONS`."""
    if isinstance(x, PackedSequence):
        return "packed"
    if WITHOUT_KERNEL is not None or module.loop == "tensors":
        return "kernel"
    if module.proj_size:
        return "projection"
    if torch._C._is_any_autocast_enabled():
        return "autocast"
    if torch._C._are_functorch_transforms_active():
        return "transform"
    given = [] if hx is None else hx if module.mode == "LSTM" else [hx]
    if not isinstance(given, tuple | list) or len(given) not in (0, 1 + (module.mode == "LSTM")):
        return "call"
    if not all(_fits(part, x) for part in (x, *given, *weights)):
        return "dtype"
    # By `int`, a size that is always this one is a constant of the graph, also where an export takes no 1 for one.
    if x.dim() not in (2, 3) or int(x.shape[-1]) != module.input_size:
        return "call"
    batch = () if x.dim() == 2 else (x.shape[0 if module.batch_first else 1],)
    layers = module.num_layers * (1 + module.bidirectional)
    for part in given:
        if part.dim() != 2 + len(batch) or tuple(part.shape[1:-1]) != batch:
            return "call"
        if int(part.shape[0]) != layers or int(part.shape[-1]) != module.hidden_size:
            return "call"
    if lengths is None:
        return None
    fit = isinstance(lengths, Tensor) and lengths.dtype == torch.int64 and lengths.device.type == "cpu"
    return None if fit and lengths.dim() == 1 else "lengths"


def run(module: Any, x: Tensor, hx: Any, lengths: Maybe, weights: list[Tensor]) -> Any:
    """The result of a call that is not refused."""
    batch_first = module.batch_first
    if unbatched := x.dim() == 2:
        x, batch_first = x[None], True
    lstm = module.mode == "LSTM"
    state: list[Maybe] = [None] * (1 + lstm)
    if hx is not None:
        state = [part[:, None] if unbatched else part for part in (hx if lstm else [hx])]
    operators = OPERATORS[MODES[module.mode]]
    # An exported model is for inference; where it is trained, the operator for inference computes its gradients too.
    trains = (
        torch.is_grad_enabled()
        and not torch.compiler.is_exporting()
        and any(part is not None and part.requires_grad for part in (x, *state, *weights))
    )
    chosen = operators.training if trains else operators.forward
    stack = [module.bidirectional, module.bias]
    if not lstm and module.mode != "GRU":
        stack.append(module.nonlinearity)
    if module.training and module.dropout and module.num_layers > 1:
        y, final = _run_with_dropout(chosen, module, x, state, weights, lengths, batch_first, stack)
    else:
        y, *final = chosen(x, *state, weights, lengths, batch_first, module.num_layers, *stack)
    final = final[: len(state)]
    if unbatched:
        y, final = y[0], [part[:, 0] for part in final]
    return y, tuple(final) if lstm else final[0]


def _run_with_dropout(
    operator: Any,
    module: Any,
    x: Tensor,
    state: list[Maybe],
    weights: list[Tensor],
    lengths: Maybe,
    batch_first: bool,
    stack: list[Any],
) -> tuple[Tensor, list[Tensor]]:
    """Layer by layer; the masks are drawn as PyTorch's own layer draws them, over all steps with the time first."""
    directions, count = 1 + module.bidirectional, len(weights) // module.num_layers
    ends = []
    for layer in range(module.num_layers):
        if layer:
            above = x if not batch_first else x.transpose(0, 1)
            mask = torch.dropout(torch.ones_like(above, memory_format=torch.contiguous_format), module.dropout, True)
            x = x * (mask if not batch_first else mask.transpose(0, 1))
        first = [None if part is None else part[layer * directions : (layer + 1) * directions] for part in state]
        x, *end = operator(x, *first, weights[layer * count : (layer + 1) * count], lengths, batch_first, 1, *stack)
        ends.append(end[: len(state)])
    return x, [torch.cat(parts) for parts in zip(*ends, strict=True)]


def _fits(tensor: Any, x: Any) -> bool:
    return (
        isinstance(tensor, Tensor)
        and tensor.dtype == x.dtype
        and tensor.dtype in _DTYPES
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
    )
