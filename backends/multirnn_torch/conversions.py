"""`KeptWhole`: what conversions of whole models make of a recurrent layer that is not one of `torch.nn`'s.

`torch.jit.script`, `torch.fx` and `torch.ao.quantization` know the layers of `torch.nn` by their exact class. They compile
any other class from its source, trace through it, or leave it as it is, and say nothing.
"""

import warnings
from typing import Any

import torch
from torch import nn

from multirnn import InvalidCall

__all__ = ["KeptWhole"]


class KeptWhole(nn.RNNBase):
    """Scripted as PyTorch's own layer, one node of a symbolic trace, and not quantised without a word.

    `torch.jit.trace`, `torch.export` and `torch.compile` take it.
    """

    def __prepare_scriptable__(self) -> nn.RNNBase:
        """PyTorch's own layer over the same parameters, for `torch.jit.script`.

        PyTorch also leaves it in the model in place of this layer, hence the warning.

        Raises:
            InvalidCall: no layer of PyTorch computes the same.
        """
        kind, own = type(self).__name__, self._own()
        if (native := self._native()) is None:
            raise InvalidCall(
                f"torch.jit.script cannot compile a {kind}; use torch.jit.trace or torch.export, or {self._remedy()}"
            )
        warnings.warn(
            f"torch.jit.script compiles a {own} over the same parameters in place of a {kind}, and leaves it in the model; "
            "mr.replace_layers(model) makes the model fast again",
            stacklevel=2,
        )
        return native

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

    def _native(self) -> nn.RNNBase | None:
        """A layer of `torch.nn` over the same parameters; None if none computes the same."""
        return None

    def _node(self, *arguments: Any) -> torch.fx.Proxy | None:
        """If `torch.fx` traces one of the arguments: a proxy for the result, by one node that calls this layer.

        Raises:
            InvalidCall: this layer itself is traced, not a model that contains it.
        """
        found = next((part for part in _parts(arguments) if isinstance(part, torch.fx.Proxy)), None)
        if found is None:
            return None
        tracer: Any = found.tracer
        if not (path := tracer.path_of_module(self)):
            raise InvalidCall(
                f"torch.fx cannot trace through a {type(self).__name__}; trace a model that contains it, where it is one node"
            )
        while arguments[-1] is None:
            arguments = arguments[:-1]
        made: torch.fx.Proxy = tracer.create_proxy("call_module", path, arguments, {})
        return made

    def _remedy(self) -> str:
        """What to do first, for a conversion that takes PyTorch's own layer."""
        return f"put a {self._own()} in its place first"

    def _own(self) -> str:
        """PyTorch's layer for the same cell."""
        return f"torch.nn.{self.mode.partition('_')[0]}"


def _parts(arguments: Any) -> Any:
    """Of arguments, and of tuples and lists in them."""
    for part in arguments:
        if isinstance(part, tuple | list):
            yield from part
        else:
            yield part
