"""Canonical weights to and from PyTorch's own layers.

The arrays follow the convention "torch" (`multirnn.conventions`): gates stacked along the rows in canonical order, so
`weight_ih_l0` is `weight_ih` with its first two axes merged.

The forward of PyTorch's layers reads the list `_flat_weights`, which it renews from the module's attributes only when one
of them has become another tensor. So the list decides, and its tensors need not be parameters. The forward of a cell reads
the attributes.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from multirnn import RecurrentSpec, Unrepresentable, Weights, from_arrays, to_arrays
from multirnn.cells import GRU_RESET_AFTER, CellName
from multirnn.conventions import CONVENTIONS, Entry
from multirnn.spec import DTYPES
from multirnn.weights import Array
from multirnn_torch.single_bias import CandidateBias, CandidateBiasGRU, drop_recurrent_bias

__all__ = [
    "canonical", "described", "is_evaluated", "module", "named_weights", "renewed", "skeleton", "titled", "weight_names",
]  # fmt: skip

LAYERS: Mapping[str, type[nn.RNNBase]] = MappingProxyType(
    {"simple_rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU, "candidate_bias_gru": CandidateBiasGRU}
)
MODES: Mapping[str, CellName] = MappingProxyType(
    {"RNN_TANH": "simple_rnn", "RNN_RELU": "simple_rnn", "LSTM": "lstm", "GRU": "gru"}
)
"""The cells of layers by their `mode`."""
_CELLS = {"simple_rnn": nn.RNNCell, "lstm": nn.LSTMCell, "gru": nn.GRUCell}

_TORCH = CONVENTIONS["torch"]
_GRU = _TORCH.arrays[GRU_RESET_AFTER.form]
_CANDIDATE_BIAS = Entry("bias_hn", ("bias_hh",), "(gate unit)", gates=("n",))
# PyTorch's convention, extended by CandidateBiasGRU.
_CONVENTION = replace(
    _TORCH,
    arrays={**_TORCH.arrays, GRU_RESET_AFTER.form: {**_GRU, "single": (*_GRU["double"][:-1], _CANDIDATE_BIAS)}},
    pattern=_TORCH.pattern.replace("bias_hh", "bias_hh|bias_hn"),
)


def module(
    weights: Weights, device: torch.device, layers: Mapping[str, Callable[..., nn.RNNBase]] = LAYERS
) -> nn.RNNBase:
    """A `torch.nn.RNN`, `LSTM` or `GRU` with a copy of these weights, `batch_first=True`; draws no random numbers."""
    spec = weights.spec
    native = skeleton(spec, layers)
    native.to_empty(device=device)
    if spec.bias == "single" and not isinstance(native, CandidateBias):
        drop_recurrent_bias(native)
    arrays = to_arrays(weights, convention=_CONVENTION)
    native.load_state_dict({name: torch.tensor(array, device="cpu") for name, array in arrays.items()})
    return native


def skeleton(spec: RecurrentSpec, layers: Mapping[str, Callable[..., nn.RNNBase]] = LAYERS) -> nn.RNNBase:
    """The layer of a spec, `batch_first=True`, on the device "meta"; its recurrent biases are not dropped yet."""
    candidate_bias = spec.cell == "gru" and spec.bias == "single"
    return layers["candidate_bias_gru" if candidate_bias else spec.cell](
        spec.input_size,
        spec.hidden_size,
        spec.num_layers,
        bias=spec.bias != "none",
        batch_first=True,
        bidirectional=spec.bidirectional,
        device="meta",  # so that no weights are drawn
        dtype=getattr(torch, spec.dtype),
        **({"nonlinearity": spec.activation} if spec.cell == "simple_rnn" else {}),
    )


def described(native: Any) -> Weights:
    """The spec and the weights of a layer or a cell from its structure alone: evaluates weights and runs nothing."""
    cell: Any
    if isinstance(native, nn.RNNBase):
        cell = MODES[native.mode]
    else:
        cell = next(cell for cell, kind in _CELLS.items() if isinstance(native, kind))
    weights = named_weights(native)  # once: a parametrization may compute other weights the next time
    if reason := _refuses(native, weights):
        raise Unrepresentable(f"{titled(native)} {reason}")
    activation: Any = native.nonlinearity if cell == "simple_rnn" else "tanh"
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in weights.items()}
    return from_arrays(arrays, convention=_CONVENTION, cell=cell, reset_after=True, activation=activation)


def titled(native: nn.Module) -> str:
    """Its name at the beginning of a sentence."""
    kind: Any = type_before_parametrizations(native)
    return f"this {kind.__name__}"


def canonical(tensors: Iterable[Tensor], spec: RecurrentSpec) -> dict[str, Array]:
    """Tensors in the order of `named_weights` by canonical name and shape.

    Takes a hundredth of the time of `described`, which is as long as a short training step.
    """
    shapes = spec.shapes.items()
    return {name: tensor.cpu().numpy().reshape(shape) for (name, shape), tensor in zip(shapes, tensors, strict=True)}


def named_weights(native: Any) -> dict[str, Tensor]:
    """The current weights of a layer or a cell, without the zeros of `drop_recurrent_bias`.

    Names are PyTorch's for a layer, in canonical order.
    """
    suffix, constant = "" if isinstance(native, nn.RNNBase) else "_l0", _constant_biases(native)
    named = zip(weight_names(native), renewed(native), strict=True)
    return {f"{name}{suffix}": weight for name, weight in named if name not in constant}


def weight_names(native: Any) -> list[str]:
    """PyTorch's names for the weights of a layer or a cell, in PyTorch's order."""
    if isinstance(native, nn.RNNBase):
        names: Any = native._flat_weights_names
        return list(names)
    return ["weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if native.bias else ())]


def is_evaluated(native: nn.RNNBase) -> bool:
    """Whether the forward would use parameters and buffers of the module itself. Evaluates nothing."""
    module: Any = native
    parameters, buffers = module._parameters, module._buffers
    names, flat = module._flat_weights_names, module._flat_weights
    if len(names) != len(flat):
        return False
    for name, weight in zip(names, flat, strict=True):  # a fifth of the time of any shorter form
        if parameters.get(name) is not weight and buffers.get(name) is not weight:
            return False
    return True


def renewed(native: Any) -> list[Any]:
    """The weights that a forward would use now, in PyTorch's order, evaluated as the forward evaluates them."""
    if not isinstance(native, nn.RNNBase):
        return [getattr(native, name) for name in weight_names(native)]
    module: Any = native
    module._update_flat_weights()
    weights: list[Any] = module._flat_weights
    return weights


def _constant_biases(native: nn.Module) -> dict[str, Tensor]:
    held: Any = native._buffers
    return {name: held[name] for name in weight_names(native) if name.startswith("bias") and name in held}


def _refuses(native: Any, weights: Mapping[str, Tensor]) -> str | None:
    """None, or why no spec describes a layer or a cell: the predicate of a sentence."""
    if getattr(native, "proj_size", 0):
        return f"projects its state (proj_size={native.proj_size}), which no spec has"
    if getattr(native, "dropout", 0) and native.num_layers > 1:
        return (
            f"drops outputs between its layers when it trains (dropout={native.dropout}), which no spec has; "
            "set its dropout to 0 and what it computes in eval() is read"
        )
    if absent := [name for name, tensor in weights.items() if not isinstance(tensor, Tensor)]:
        return f"has no {absent[0]}"
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in weights.values()})
    if len(dtypes) > 1 or dtypes[0] not in DTYPES:
        return f"has weights of {' and '.join(dtypes)}, and a spec has one of {' and '.join(DTYPES)}; convert it by .float()"
    constant = _constant_biases(native)
    if constant and getattr(native, "mode", None) == "GRU":
        return "has a constant for its recurrent bias, and every spec of a GRU with biases trains the candidate's"
    if any(bias.any() for bias in constant.values()):
        return f"adds the constant {next(iter(constant))}, which is not zero, and no spec has constants"
    return None
