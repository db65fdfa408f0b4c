"""`replace_layers` for PyTorch: the class of each recurrent layer inside a module is changed in place, to its fast class or back.

The object stays the same, and so do its parameters, names, hooks and order: optimisers, `state_dict`, shared layers and
wrappers notice nothing.
"""

from collections.abc import Iterator
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from multirnn import InvalidCall
from multirnn.errors import kind_of
from multirnn.layer import FAST, Implementation
from multirnn.replacement import Kept, Replaced, Replacement, refuse_without
from multirnn.spec import DTYPES
from multirnn_torch.calls import is_overridden
from multirnn_torch.fast import FastCandidateBiasGRU, FastGRU, FastLSTM, FastModule, FastRNN
from multirnn_torch.single_bias import CandidateBiasGRU

__all__ = ["TorchReplacement", "change", "counterpart", "recurrent", "refuses", "replace_layers"]

_FAST: dict[type, type[FastModule]] = {
    nn.RNN: FastRNN,
    nn.LSTM: FastLSTM,
    nn.GRU: FastGRU,
    CandidateBiasGRU: FastCandidateBiasGRU,
}
_NATIVE: dict[type, type] = {fast: native for native, fast in _FAST.items()}
_ALREADY = {FAST: "it is fast already", "native": "it is not a fast layer"}
_NAMES = frozenset({kind.__name__ for kind in (*_FAST, *_NATIVE)} | {"RNNCell", "LSTMCell", "GRUCell"})


class TorchReplacement(Replacement):
    """See `multirnn.replacement.Replacement`."""

    def __init__(
        self, model: nn.Module, replaced: list[Replaced], kept: list[Kept], layers: list[Any], *, fast: bool
    ) -> None:
        super().__init__(model, replaced, kept)
        self._layers, self._fast = layers, fast  # in the order of `replaced`, and whether they were made fast

    def restore(self) -> None:
        """See `Replacement.restore`.

        Raises:
            InvalidCall: something else changed the class of a layer meanwhile; then no layer is put back.
        """
        found = []
        for (path, before, _), layer in zip(self.replaced, self._layers, strict=True):
            if isinstance(layer, FastModule) != self._fast:
                continue  # it was put back already
            if (kind := counterpart(layer)) is None:
                raise InvalidCall(
                    f"{path or 'the model'} is now a {type(layer).__name__}, which has no {before} to go back to; "
                    "undo first what changed its class"
                )
            found.append((layer, kind))
        for layer, kind in found:
            change(layer, kind)


def replace_layers(model: Any, implementation: Implementation) -> TorchReplacement:
    """See `multirnn.replace_layers`."""
    if not isinstance(model, nn.Module):
        raise InvalidCall(f"layers are replaced inside a torch.nn.Module, not inside {kind_of(model)}")
    replaced, kept, layers = [], [], []
    for path, layer in recurrent(model):
        before = type(layer).__name__
        if reason := _keeps(layer, implementation):
            kept.append(Kept(path, _name(layer), reason))
            continue
        kind: Any = counterpart(layer)
        layers.append((layer, kind))
        replaced.append(Replaced(path, before, kind.__name__))
    if not replaced and not any(reason in _ALREADY.values() for _, _, reason in kept):
        refuse_without(model, kept)
    for layer, kind in layers:
        change(layer, kind)
    return TorchReplacement(model, replaced, kept, [layer for layer, _ in layers], fast=implementation == FAST)


def recurrent(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The recurrent layers and cells, each once; also those that `torch.jit` or `torch.ao` made, without their parts."""
    foreign: list[str] = []
    for path, part in model.named_modules():
        if any(not outer or path.startswith(f"{outer}.") for outer in foreign):
            continue
        if _is_foreign(part) and _name(part) in _NAMES:
            foreign.append(path)
            yield path, part
        elif isinstance(part, nn.RNNBase | nn.RNNCellBase):
            yield path, part


def _is_foreign(part: nn.Module) -> bool:
    return isinstance(part, torch.jit.ScriptModule) or type(part).__module__.startswith("torch.ao.")


def _name(layer: nn.Module) -> str:
    return str(layer.original_name if isinstance(layer, torch.jit.ScriptModule) else type(layer).__name__)


def _keeps(layer: Any, implementation: Implementation) -> str | None:
    """None, or why it stays as it is, as a sentence."""
    fast = isinstance(layer, FastModule)
    if fast == (implementation == FAST):
        return _ALREADY[implementation]
    if not fast:
        return refuses(layer)
    return None if counterpart(layer) else "its class derives from a fast layer, and PyTorch has none like it"


def refuses(layer: Any) -> str | None:
    """None, or why this layer or cell cannot be made fast or stay so, as a sentence."""
    if isinstance(layer, torch.jit.ScriptModule):
        return "torch.jit has compiled it; replace layers first, then trace the model"
    if type(layer).__module__.startswith("torch.ao."):
        return "torch.ao.quantization made it, and only layers in floating point are made fast"
    if isinstance(layer, nn.RNNCellBase):
        return "a cell runs one step a call, in a loop of the model's own; a layer over the whole sequence is made fast"
    if reason := _overrides(layer):
        return reason
    if layer.proj_size:
        return f"it projects its state (proj_size={layer.proj_size}), which no fast layer does"
    if getattr(layer, "qconfig", None) is not None:
        return "it is prepared for quantisation (its qconfig is set), and a fast layer stays in floating point"
    for weight in layer._flat_weights:  # as they are, without evaluating a parametrization
        if not isinstance(weight, Tensor):
            continue
        if weight.device.type != "cpu":
            return f"it is on {weight.device.type!r}; layers are made fast on the CPU"
        if (dtype := str(weight.dtype).removeprefix("torch.")) not in DTYPES:
            return f"its weights are of {dtype}; layers of {' and '.join(DTYPES)} are made fast"
    return None


def _overrides(layer: Any) -> str | None:
    """None, or which code of a layer is not PyTorch's: a fast class would not run it."""
    if own := [name for name in _RUN if name in vars(layer)]:
        return f"this object has its own {_listed(own)} in place of its class's"
    kind = parametrize.type_before_parametrizations(layer)
    if kind in _FAST:
        return f"the forward of {kind.__name__} is not PyTorch's" if is_overridden(layer) else None
    if kind in _NATIVE:
        return None
    base = next((base for base in kind.__mro__ if base in _FAST or base in _NATIVE), nn.RNNBase)
    above = kind.__mro__[: kind.__mro__.index(base)]
    names = {name for one in above for name, value in vars(one).items() if isinstance(value, FunctionType)}
    if overridden := sorted(name for name in names if hasattr(base, name) and name != "__init__"):
        return f"its class overrides {_listed(overridden)} of {base.__name__}"
    return f"its class derives from {base.__name__}, and the code of a subclass may rely on that"


_RUN = (
    "forward", "check_input", "check_forward_args", "check_hidden_size", "permute_hidden", "get_expected_hidden_size",
    "get_expected_cell_size", "_update_flat_weights",
)  # fmt: skip
"""The methods that a forward of PyTorch's layers consists of."""


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


# --- Classes ---------------------------------------------------------------------------------------------------------


def counterpart(layer: nn.Module) -> type | None:
    """The fast class of a layer, or PyTorch's of a fast layer; None if its class has none.

    Parametrizations give a layer a class of its own, which holds them as properties and whose only base is the layer's. The
    counterpart then is a class of its own too, over the other base, so that the parametrizations can be removed.
    """
    kind = type(layer)
    other = _FAST | _NATIVE
    if kind in other:
        return other[kind]
    if not parametrize.is_parametrized(layer) or kind.__bases__[0] not in other:
        return None
    held = {name: value for name, value in vars(kind).items() if name not in _OF_EACH_CLASS}
    origin: type | None = vars(kind).get(_ORIGIN)
    if origin is not None and _parametrized(origin) == _parametrized(kind):
        return origin  # the very class from before
    base = other[kind.__bases__[0]]
    return type(f"Parametrized{base.__name__}", (base,), {**held, _ORIGIN: kind})


_ORIGIN = "_replaced_class"
_OF_EACH_CLASS = frozenset({"__dict__", "__weakref__", "__slotnames__", _ORIGIN})


def _parametrized(kind: type) -> set[str]:
    return {name for name, value in vars(kind).items() if isinstance(value, property)}


def change(layer: Any, kind: type) -> None:
    """Give a layer its counterpart's class."""
    if isinstance(layer, FastModule):
        layer._end()
    layer.__class__ = kind
    if isinstance(layer, FastModule):
        layer._begin()
