"""Modules whose weights are computed: by parametrizations, `weight_norm`, pruning, weight drop, `torch.func`.

The forward of PyTorch's layers computes with the list `_flat_weights`. It renews the list from the module's attributes
first, but only where an attribute is another tensor than at the last renewal. So the list decides, and what is in it
need not be a parameter.
"""

import weakref
from operator import is_
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

__all__ = ["evaluated", "is_evaluated", "renewed"]


def is_evaluated(native: nn.RNNBase) -> bool:
    """Whether the weights that the forward computes with are parameters and buffers of the module itself. Evaluates nothing."""
    module: Any = native
    names, flat = module._flat_weights_names, module._flat_weights
    if all(map(is_, map(module._parameters.get, names), flat)):
        return True
    held = {**module._buffers, **module._parameters}
    return len(names) == len(flat) and all(held.get(name) is weight for name, weight in zip(names, flat, strict=True))


def renewed(native: nn.RNNBase) -> list[Any]:
    """The weights that a forward computes with if it is called now, in PyTorch's order; evaluated as it would."""
    module: Any = native
    module._update_flat_weights()
    weights: list[Any] = module._flat_weights
    return weights


def evaluated(native: nn.RNNBase, weights: list[Tensor]) -> Any:
    """The module with these weights in the place of what computes them; it shares everything else.

    Args:
        native: with or without parametrizations.
        weights: in PyTorch's order, as of `renewed`.
    """
    module: Any = native
    names = module._flat_weights_names
    kind: Any = type_before_parametrizations(module)
    still = kind.__new__(kind)
    held = {name: value for name, value in vars(module).items() if name not in names}
    vars(still).update(
        held,
        _parameters={**module._parameters, **dict(zip(names, weights, strict=True))},
        _flat_weights=weights,
        _flat_weight_refs=[weakref.ref(weight) for weight in weights],
    )
    return still
