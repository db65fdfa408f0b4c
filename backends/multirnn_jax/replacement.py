"""`replace_layers` for Flax NNX: the class of each `nnx.RNN` inside a module is changed in place, to `FastRNN` or back.

The object stays the same, and so do its parameters and their paths: the state of a module and of its optimisers notices
nothing. A graph definition names classes, so `nnx.jit` compiles anew.
"""

import sys
from collections.abc import Iterator
from typing import Any

from multirnn import InvalidCall
from multirnn.errors import kind_of
from multirnn.layer import FAST, Implementation
from multirnn.replacement import Kept, Replaced, Replacement, refuse_without

__all__ = ["FlaxReplacement", "replace_layers"]

_ALREADY = {FAST: "it is fast already", "native": "it is not a fast layer"}


class FlaxReplacement(Replacement):
    """See `multirnn.replacement.Replacement`."""

    def __init__(self, model: Any, replaced: list[Replaced], kept: list[Kept], *, fast: bool) -> None:
        super().__init__(model, replaced, kept)
        self._fast = fast  # whether layers were made fast

    def restore(self) -> None:
        """See `Replacement.restore`."""
        # By their paths: Flax copies a module whole, without a note of which part became which.
        layers = dict(_recurrent(self.model, sys.modules["flax.nnx"]))
        for path, _, after in self.replaced:
            if type(layers.get(path)).__name__ == after:
                _change(layers[path], not self._fast)


def replace_layers(model: Any, implementation: Implementation) -> FlaxReplacement:
    """See `multirnn.replace_layers`."""
    nnx = sys.modules.get("flax.nnx")
    if nnx is None or not isinstance(model, nnx.Module):
        raise InvalidCall(f"layers are replaced inside a flax.nnx.Module, not inside {kind_of(model)}")
    replaced, kept, layers = [], [], []
    for path, layer in _recurrent(model, nnx):
        kind = type(layer).__name__
        if reason := _keeps(layer, implementation, nnx):
            kept.append(Kept(path, kind, reason))
        else:
            layers.append(layer)
            replaced.append(Replaced(path, kind, "FastRNN" if implementation == FAST else "RNN"))
    if not replaced and not any(reason in _ALREADY.values() for _, _, reason in kept):
        refuse_without(model, kept)
    for layer in layers:
        _change(layer, implementation == FAST)
    return FlaxReplacement(model, replaced, kept, fast=implementation == FAST)


def _recurrent(model: Any, nnx: Any) -> Iterator[tuple[str, Any]]:
    """The recurrent layers and the cells that are in none of them, each once."""
    found = {id(module): (path, module) for path, module in reversed(list(nnx.iter_modules(model)))}
    inside = {id(module.cell) for _, module in found.values() if isinstance(module, nnx.RNN)}
    for path, module in reversed(found.values()):
        if isinstance(module, nnx.RNN) or (isinstance(module, nnx.RNNCellBase) and id(module) not in inside):
            yield ".".join(map(str, path)), module


def _keeps(layer: Any, implementation: Implementation, nnx: Any) -> str | None:
    """None, or why it stays as it is, as a sentence."""
    from multirnn_jax.nnx_rnn import FastRNN, refuses  # imports Flax, which the user has imported

    fast = type(layer) is FastRNN
    if fast == (implementation == FAST):
        return _ALREADY[implementation]
    if isinstance(layer, nnx.RNNCellBase):
        return "a cell runs one step a call, in a loop of the model's own; a layer over the whole sequence is made fast"
    return None if fast else refuses(layer)


def _change(layer: Any, fast: bool) -> None:
    """Make a layer fast or Flax's own; nothing changes if it is already."""
    from multirnn_jax.nnx_rnn import FastRNN

    # Not by Flax's own `__setattr__`, which takes note of attributes.
    object.__setattr__(layer, "__class__", FastRNN if fast else FastRNN.__base__)
