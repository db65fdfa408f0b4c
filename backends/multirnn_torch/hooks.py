"""Hooks on a module's forward: those of PyTorch that compute a weight before every call, and all others."""

from collections import OrderedDict
from typing import Any

from torch import nn
from torch.nn.modules import module as global_hooks
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

__all__ = ["run_weight_hooks", "unknown_hook", "without_weight_hooks"]

_OF_WEIGHTS = WeightNorm, SpectralNorm, BasePruningMethod
"""They put a weight into the module and do nothing else; none of them looks at the input."""


def unknown_hook(*modules: nn.Module, parts: bool = True) -> str | None:
    """The first hook of these modules, and of their parts, that may change what they compute, or None; none is called."""
    for kind, hooks in (
        ("forward pre-hook", global_hooks._global_forward_pre_hooks),
        ("forward hook", global_hooks._global_forward_hooks),
    ):
        for hook in hooks.values():
            return f"torch.nn.modules.module has a global {kind} ({_name(hook)})"
    for module in modules:
        for name, part in module.named_modules() if parts else (("", module),):
            where = f"its {name!r}" if name else "it"
            for kind, hooks in (("forward pre-hook", part._forward_pre_hooks), ("forward hook", part._forward_hooks)):
                for hook in hooks.values():
                    if kind == "forward hook" or not isinstance(hook, _OF_WEIGHTS):
                        return f"{where} has a {kind} ({_name(hook)})"
    return None


def run_weight_hooks(module: nn.Module) -> None:
    """Have the weights computed as before a call."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, _OF_WEIGHTS):
            hook(module, ())


def without_weight_hooks(module: nn.Module) -> Any:
    """Its forward pre-hooks but for those that compute weights."""
    return OrderedDict(
        (key, hook) for key, hook in module._forward_pre_hooks.items() if not isinstance(hook, _OF_WEIGHTS)
    )


def _name(hook: Any) -> str:
    return getattr(hook, "__qualname__", type(hook).__qualname__)
