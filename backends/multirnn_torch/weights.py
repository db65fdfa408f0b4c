"""Canonical weights to and from PyTorch's own layers.

The arrays are those of the convention "torch" (`multirnn.conventions`): gates stacked along the rows, in the canonical
order, so that PyTorch's `weight_ih_l0` is `weight_ih` with its first two axes made one.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from multirnn import CONVENTIONS, RecurrentSpec, Unrepresentable, Weights, from_arrays, to_arrays
from multirnn.cells import GRU_RESET_AFTER
from multirnn.conventions import Entry
from multirnn.spec import DTYPES
from multirnn.weights import Array
from multirnn_torch.evaluated import renewed, weight_names
from multirnn_torch.single_bias import CandidateBiasGRU, drop_recurrent_bias

__all__ = ["CELLS", "LAYERS", "canonical", "described", "module", "named_weights", "skeleton", "titled"]

LAYERS: Mapping[str, type[nn.RNNBase]] = MappingProxyType(
    {"simple_rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU, "candidate_bias_gru": CandidateBiasGRU}
)
"""PyTorch's layer for each cell, and the one that it has not."""

CELLS: Mapping[str, type[nn.RNNCellBase]] = MappingProxyType(
    {"simple_rnn": nn.RNNCell, "lstm": nn.LSTMCell, "gru": nn.GRUCell}
)
"""PyTorch's cells."""

_TORCH = CONVENTIONS["torch"]
_GRU = _TORCH.arrays[GRU_RESET_AFTER.form]
_CANDIDATE_BIAS = Entry("bias_hn", ("bias_hh",), "(gate unit)", gates=("n",))
# PyTorch's convention, and in it the one GRU that is not PyTorch's: CandidateBiasGRU.
_CONVENTION = replace(
    _TORCH,
    arrays={**_TORCH.arrays, GRU_RESET_AFTER.form: {**_GRU, "single": (*_GRU["double"][:-1], _CANDIDATE_BIAS)}},
    pattern=_TORCH.pattern.replace("bias_hh", "bias_hh|bias_hn"),
)


def module(
    weights: Weights, device: torch.device, layers: Mapping[str, Callable[..., nn.RNNBase]] = LAYERS
) -> nn.RNNBase:
    """The `torch.nn.RNN`, `LSTM` or `GRU` of these weights, `batch_first=True`. Draws no random numbers.

    Args:
        weights: copied into the parameters.
        device: where the parameters are.
        layers: the classes to build of, by the names of `LAYERS`.
    """
    spec = weights.spec
    native = skeleton(spec, layers)
    native.to_empty(device=device)
    if spec.bias == "single" and not isinstance(native, CandidateBiasGRU):
        drop_recurrent_bias(native)
    arrays = to_arrays(weights, convention=_CONVENTION)
    native.load_state_dict({name: torch.tensor(array, device="cpu") for name, array in arrays.items()})
    return native


def skeleton(spec: RecurrentSpec, layers: Mapping[str, Callable[..., nn.RNNBase]] = LAYERS) -> nn.RNNBase:
    """The layer of a spec with two biases or none a gate, `batch_first=True`, on the device "meta": without any memory.

    A GRU of a single bias has the candidate's recurrent one.
    """
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
    """The spec and the weights of a layer or a cell, as its structure tells: evaluated, and nothing is called.

    Raises:
        Unrepresentable: no spec describes it; the sentence names what no spec has.
    """
    kinds: Mapping[str, type[nn.Module]] = LAYERS if isinstance(native, nn.RNNBase) else CELLS
    cell: Any = next(cell for cell, kind in kinds.items() if isinstance(native, kind))
    weights = named_weights(native)  # once: a parametrization may compute other weights the next time
    if reason := _beyond_a_spec(native, weights):
        raise Unrepresentable(f"{titled(native)} {reason}")
    activation: Any = native.nonlinearity if cell == "simple_rnn" else "tanh"
    return from_arrays(
        {name: tensor.detach().cpu().numpy() for name, tensor in weights.items()},
        convention=_CONVENTION,
        cell=cell,
        reset_after=True,
        activation=activation,
    )


def titled(native: nn.Module) -> str:
    """What it is called at the beginning of a sentence."""
    kind: Any = type_before_parametrizations(native)
    return f"this {kind.__name__}"


def canonical(tensors: Iterable[Tensor], spec: RecurrentSpec) -> dict[str, Array]:
    """Arrays of canonical names and shapes from tensors shaped and ordered as the weights of `named_weights`.

    It is what `described` does, in a hundredth of the time, which is that of a short training step; for one who knows the
    spec already.
    """
    shapes = spec.shapes.items()
    return {name: tensor.cpu().numpy().reshape(shape) for (name, shape), tensor in zip(shapes, tensors, strict=True)}


def named_weights(native: Any) -> dict[str, Tensor]:
    """The weights that a layer or a cell computes with now, by PyTorch's names for a layer, in the canonical order.

    The zeros of `drop_recurrent_bias` are not among them.
    """
    suffix, constant = "" if isinstance(native, nn.RNNBase) else "_l0", _constant_biases(native)
    named = zip(weight_names(native), renewed(native), strict=True)
    return {f"{name}{suffix}": weight for name, weight in named if name not in constant}


def _constant_biases(native: nn.Module) -> dict[str, Tensor]:
    held: Any = native._buffers
    return {name: held[name] for name in weight_names(native) if name.startswith("bias") and name in held}


def _beyond_a_spec(native: Any, weights: Mapping[str, Tensor]) -> str | None:
    """What a layer or a cell has and no spec has, as the rest of a sentence about it."""
    if getattr(native, "proj_size", 0):
        return f"projects its state (proj_size={native.proj_size}), which no spec has"
    if getattr(native, "dropout", 0) and native.num_layers > 1:
        return (
            f"drops outputs between its layers when it trains (dropout={native.dropout}), which no spec has; "
            "set its dropout to 0 and what it computes in eval() is read"
        )
    if missing := [name for name, tensor in weights.items() if not isinstance(tensor, Tensor)]:
        return f"has no {missing[0]}"
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in weights.values()})
    if len(dtypes) > 1 or dtypes[0] not in DTYPES:
        return f"has weights of {' and '.join(dtypes)}, and a spec has one of {' and '.join(DTYPES)}; convert it by .float()"
    constant = _constant_biases(native)
    if constant and isinstance(native, nn.GRU):
        return "has a constant for its recurrent bias, and every spec of a GRU with biases trains the candidate's"
    if any(bias.any() for bias in constant.values()):
        return f"adds the constant {next(iter(constant))}, which is not zero, and no spec has constants"
    return None
