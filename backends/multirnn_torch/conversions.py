"""`KeptWhole`: what conversions of whole models make of a recurrent layer that is not one of `torch.nn`'s.

`torch.jit.script`, `torch.fx` and `torch.ao.quantization` know the layers of `torch.nn` by their exact class. They compile
any other class from its source, trace through it, or leave it as it is, and say nothing.
"""

import warnings
from typing import Any, NoReturn

import torch
from torch import nn

from multirnn import InvalidCall

__all__ = ["KeptWhole"]


class KeptWhole(nn.RNNBase):
    """Refuses scripting and symbolic tracing, and warns of quantisation.

    `torch.jit.trace`, `torch.export` and `torch.compile` take it.
    """

    def __prepare_scriptable__(self) -> NoReturn:
        """Raise InvalidCall: `torch.jit.script` calls this, also for a layer inside of a model."""
        raise InvalidCall(
            f"torch.jit.script cannot compile a {type(self).__name__}; use torch.jit.trace or torch.export, "
            f"or {self._remedy()}"
        )

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse a `qconfig` from `torch.ao.quantization`; None, by which it leaves a layer alone, is a warning."""
        if name == "qconfig":
            kind = type(self).__name__
            if value is not None:
                raise InvalidCall(
                    f"torch.ao.quantization cannot quantise a {kind}; {self._remedy()}, "
                    "or set its qconfig to None to leave it in floating point"
                )
            warnings.warn(
                f"torch.ao.quantization leaves a {kind} in floating point; to quantise it, {self._remedy()}",
                stacklevel=2,
            )
        super().__setattr__(name, value)

    def _refuse_proxy(self, x: Any) -> None:
        """Raise InvalidCall if x is a proxy of `torch.fx`, which would trace through."""
        if isinstance(x, torch.fx.Proxy):
            raise InvalidCall(
                f"torch.fx cannot trace through a {type(self).__name__}; trace with a torch.fx.Tracer whose "
                f"is_leaf_module is True for it, as it is for {self._own()}, or {self._remedy()}"
            )

    def _remedy(self) -> str:
        """What to do first, for a conversion that takes PyTorch's own layer."""
        return f"put a {self._own()} in its place first"

    def _own(self) -> str:
        """PyTorch's layer for the same cell."""
        return f"torch.nn.{self.mode.partition('_')[0]}"
