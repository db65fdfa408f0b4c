"""Modules whose weights are computed: by parametrizations, `weight_norm`, pruning, weight drop, `torch.func`.

The forward of PyTorch's layers computes with the list `_flat_weights`. It renews the list from the module's attributes
first, but only where an attribute is another tensor than at the last renewal. So the list decides, and what is in it
need not be a parameter. The forward of a cell computes with the attributes.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import MethodType
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from multirnn_torch.hooks import run_weight_hooks, without_weight_hooks
from multirnn_torch.untouched import untouched

__all__ = ["evaluated", "is_evaluated", "renewed", "separated", "weight_names"]


def weight_names(native: nn.Module) -> list[str]:
    """PyTorch's names for the weights of a layer or a cell, in its order."""
    module: Any = native
    if isinstance(native, nn.RNNBase):
        names: list[str] = module._flat_weights_names
        return names
    return ["weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if module.bias else ())]


def is_evaluated(native: nn.RNNBase) -> bool:
    """Whether the weights that the forward computes with are parameters and buffers of the module itself. Evaluates nothing."""
    module: Any = native
    parameters, buffers = module._parameters, module._buffers
    names, flat = module._flat_weights_names, module._flat_weights
    if len(names) != len(flat):
        return False
    for name, weight in zip(names, flat, strict=True):  # a fifth of the time of any shorter way to say it
        if parameters.get(name) is not weight and buffers.get(name) is not weight:
            return False
    return True


def renewed(native: nn.Module) -> list[Any]:
    """The weights that a forward computes with if it is called now, in PyTorch's order; evaluated as it would."""
    module: Any = native
    if not isinstance(native, nn.RNNBase):
        return [getattr(module, name) for name in weight_names(native)]
    module._update_flat_weights()
    weights: list[Any] = module._flat_weights
    return weights


def evaluated(native: nn.Module, weights: list[Tensor]) -> Any:
    """The module with these weights in the place of what computes them; it shares everything else.

    Args:
        native: with or without parametrizations.
        weights: in PyTorch's order, as of `renewed`.
    """
    module: Any = native
    names = weight_names(module)
    kind: Any = type_before_parametrizations(module)
    still = kind.__new__(kind)
    held = {name: value for name, value in vars(module).items() if name not in names}
    held["_parameters"] = {**module._parameters, **dict(zip(names, weights, strict=True))}
    held["_forward_pre_hooks"] = without_weight_hooks(module)
    forward = held.get("forward")
    if isinstance(forward, MethodType) and forward.__self__ is module:
        held["forward"] = MethodType(forward.__func__, still)
    vars(still).update(held)
    if isinstance(native, nn.RNNBase):
        vars(still).update(_flat_weights=weights, _flat_weight_refs=[weakref.ref(weight) for weight in weights])
    return still


@contextmanager
def separated(native: nn.Module) -> Iterator[tuple[Any, dict[str, Tensor]]]:
    """The module to be differentiated, and its weights by name: leaves of their own, which share the memory of the weights.

    So a parameter that stands in two places has a gradient for each, a computed weight has one, and neither `.grad` nor
    `requires_grad` of the module's parameters is touched. It has the mode of the module, but on CUDA it is in training,
    since cuDNN gives no gradients otherwise.
    """
    pure = not native._forward_pre_hooks and isinstance(native, nn.RNNBase) and is_evaluated(native)
    with nullcontext() if pure else untouched(native):
        run_weight_hooks(native)
        names, flat, constant = weight_names(native), renewed(native), cast("Any", native)._buffers
        weights: dict[str, Tensor] = {
            name: weight if constant.get(name) is weight else weight.detach().requires_grad_()
            for name, weight in zip(names, flat, strict=True)
        }
        still = evaluated(native, list(weights.values()))
        vars(still)["training"] = native.training or flat[0].is_cuda
        yield still, {name: weight for name, weight in weights.items() if weight.requires_grad}
