"""`read`: structure finds the weights of a module, and a call confirms that they describe its output.

Weights may be computed: by parametrizations, `weight_norm`, pruning, weight drop or `torch.func`. They are evaluated as a
call would, and neither that nor the call leaves a trace in the module.
"""

import random
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import copy
from operator import is_
from types import MethodType
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.utils import parametrize
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from multirnn import InvalidCall, Output, Unrepresentable, Weights
from multirnn.adoption import noting
from multirnn.boundary import Inputs
from multirnn.confirmation import confirmed
from multirnn.returned import arranged, output_of
from multirnn_torch.calls import Caller, arrays, is_overridden, tensors, uncompiled
from multirnn_torch.settings import alone
from multirnn_torch.weights import described, is_evaluated, renewed, titled, weight_names

__all__ = ["current", "evaluated", "read", "separated", "untouched", "unwrapped"]

_WEIGHT_HOOKS = WeightNorm, SpectralNorm, BasePruningMethod
"""Forward pre-hooks that compute a weight of the module and ignore the input."""


def read(native: Any) -> Weights:
    """The spec and the weights of a layer of `torch.nn`, as its next call would use them.

    Calls the module once, in its present mode, on 5 rows of 7 steps, and compares the whole output with the reference's.

    Args:
        native: an `nn.RNN`, `LSTM` or `GRU`, or a subclass, `batch_first` or not; it may be inside of `torch.compile`,
            `DistributedDataParallel` or `DataParallel`. An `nn.RNNCell`, `LSTMCell` or `GRUCell` is a stack of one layer.
            Frozen parameters are read as any others, and a shared one is read in both places: a spec says nothing about
            training.

    Raises:
        Unrepresentable: no spec describes it, or its output is not its weights'; the sentence has the reason. A module with
            hooks on its forward is not called, since they may do anything.
    """
    module = _layer_of(native)
    title = titled(module)
    try:
        caller = Caller(module, uncompiled(module))
        weights = _evaluated(module)
        return confirmed(
            weights,
            lambda inputs: _called(module, caller, weights, inputs, title),
            title,
            ragged=caller.takes_lengths,
            state=caller.takes_state,
        )
    except InvalidCall as error:
        raise Unrepresentable(
            f"{title} cannot be called as a layer, so what it computes is not known: {error}"
        ) from error


def current(native: nn.RNNBase) -> Weights:
    """`read`, without the call if PyTorch's or our own forward runs over the weights."""
    module = _layer_of(native)
    return read(native) if is_overridden(module) else _evaluated(module)


def unwrapped(native: Any) -> list[Any]:
    """The wrappers of `torch.compile`, `DistributedDataParallel` and `DataParallel`, then the module inside of them."""
    found = [native]
    while True:
        if isinstance(native, nn.Module) and "_orig_mod" in native._modules:  # torch.compile
            native = native._orig_mod
        elif isinstance(native, DistributedDataParallel | DataParallel):
            native = native.module
        else:
            return found
        found.append(native)


def _layer_of(native: Any) -> Any:
    """The layer or cell inside of the wrappers; raises Unrepresentable if there is none that can be called."""
    *wrappers, module = unwrapped(native)
    if not isinstance(module, nn.RNNBase | nn.RNNCellBase) or type(module) in (nn.RNNBase, nn.RNNCellBase):
        raise Unrepresentable(_not_a_layer(module))
    title = titled(module)
    if hook := _unknown_hook(module) or _unknown_hook(*wrappers, parts=False):
        raise Unrepresentable(
            f"{title} is not read, since {hook}, which may change what it computes; take it out by its handle's remove()"
        )
    if any(tensor.is_meta for tensor in module.parameters()):
        raise Unrepresentable(f"{title} is on the device 'meta', which holds no numbers")
    return module


def _evaluated(module: nn.Module) -> Weights:
    with untouched(module), torch.no_grad():
        _run_weight_hooks(module)
        return described(module)


def _called(module: nn.Module, caller: Caller, weights: Weights, inputs: Inputs, title: str) -> Output:
    device = next(iter([*module.parameters(), *module.buffers()])).device
    with (
        untouched(module),
        torch.inference_mode(False),
        torch.no_grad(),
        alone(device, full=True),
        noting(title, inputs),
    ):
        x, *state = (tensor.clone() for tensor in tensors([inputs.x, *inputs.state.parts], device))
        found = arranged(caller(x, state, inputs.lengths), inputs.x.shape, weights.spec, title)
        return output_of(arrays(found), weights.spec, title)


def _not_a_layer(native: Any) -> str:
    kind = type(native)
    if kind.__module__.startswith("torch.ao."):
        return (
            f"a module of the type {kind.__module__}.{kind.__name__} holds quantised weights, which no spec describes; "
            "read the module that it was made of"
        )
    sentence = f"an object of the type {kind.__name__} is not a torch.nn.RNN, LSTM or GRU, nor the cell of one"
    parts = native.named_modules() if isinstance(native, nn.Module) else ()
    held = [name for name, part in parts if name and isinstance(part, nn.RNNBase | nn.RNNCellBase)]
    return f"{sentence}; read what it holds: {', '.join(held)}" if held else sentence


# --- Weights that are computed ---------------------------------------------------------------------------------------


def evaluated(native: nn.Module, weights: list[Tensor]) -> Any:
    """The module with fixed weights, from `renewed`, in place of computed ones; it shares everything else."""
    module: Any = native
    names = weight_names(module)
    kind: Any = type_before_parametrizations(module)
    still = kind.__new__(kind)
    held = {name: value for name, value in vars(module).items() if name not in names}
    held["_parameters"] = {**module._parameters, **dict(zip(names, weights, strict=True))}
    hooks = module._forward_pre_hooks.items()
    held["_forward_pre_hooks"] = OrderedDict((key, hook) for key, hook in hooks if not isinstance(hook, _WEIGHT_HOOKS))
    forward = held.get("forward")
    if isinstance(forward, MethodType) and forward.__self__ is module:
        held["forward"] = MethodType(forward.__func__, still)
    vars(still).update(held)
    if isinstance(native, nn.RNNBase):
        vars(still).update(_flat_weights=weights, _flat_weight_refs=[weakref.ref(weight) for weight in weights])
    return still


@contextmanager
def separated(native: nn.Module) -> Iterator[tuple[Any, dict[str, Tensor]]]:
    """A differentiable copy of the module, and its weights by name: leaves that share the memory of the module's weights.

    So a shared parameter has a gradient for each place, a computed weight has one, and the module's `.grad` and
    `requires_grad` stay as they are. On CUDA the copy is in training mode, without which cuDNN gives no gradients.
    """
    pure = not native._forward_pre_hooks and isinstance(native, nn.RNNBase) and is_evaluated(native)
    with nullcontext() if pure else untouched(native):
        _run_weight_hooks(native)
        names, flat, constant = weight_names(native), renewed(native), cast("Any", native)._buffers
        weights: dict[str, Tensor] = {
            name: weight if constant.get(name) is weight else weight.detach().requires_grad_()
            for name, weight in zip(names, flat, strict=True)
        }
        still = evaluated(native, list(weights.values()))
        vars(still)["training"] = native.training or flat[0].is_cuda
        yield still, {name: weight for name, weight in weights.items() if weight.requires_grad}


def _run_weight_hooks(module: nn.Module) -> None:
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, _WEIGHT_HOOKS):
            hook(module, ())


def _unknown_hook(*modules: nn.Module, parts: bool = True) -> str | None:
    """The first hook of these modules, and of their parts, that may change their output, as a clause; calls none."""
    before, after = (
        [*hooks.values()] for hooks in (global_hooks._global_forward_pre_hooks, global_hooks._global_forward_hooks)
    )
    owners: list[tuple[str, list[Any], list[Any]]] = [("torch.nn.modules.module has a global", before, after)]
    for module in modules:
        for name, part in module.named_modules() if parts else (("", module),):
            before = [hook for hook in part._forward_pre_hooks.values() if not isinstance(hook, _WEIGHT_HOOKS)]
            owners.append((f"its {name!r} has a" if name else "it has a", before, [*part._forward_hooks.values()]))
    for owner, *found in owners:
        for kind, hooks in zip(("forward pre-hook", "forward hook"), found, strict=True):
            if hooks:
                return f"{owner} {kind} ({getattr(hooks[0], '__qualname__', type(hooks[0]).__qualname__)})"
    return None


# --- A call without traces -------------------------------------------------------------------------------------------


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Undo all that a call changes.

    Restores the attributes of the module and its parts, the numbers in parameters and buffers, the cache of
    `parametrize.cached`, and the random states of PyTorch, NumPy and Python.
    """
    attributes = [vars(part) for part in module.modules()]
    containers = [value for one in attributes for value in one.values() if type(value) in _CONTAINERS]
    held = [(one, copy(one)) for one in (*attributes, *containers, parametrize._cache)]
    tensors = [*module.parameters(), *module.buffers()]
    numbers = [tensor.detach().clone() for tensor in tensors]
    cached = parametrize._cache_enabled
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  # the state that others draw from
    devices = sorted({tensor.device.index for tensor in tensors if tensor.is_cuda})
    try:
        with torch.random.fork_rng(devices):
            _replace_buffers(module)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        parametrize._cache_enabled = cached
        for one, before in held:
            _restore(one, before)
        for tensor, value in zip(tensors, numbers, strict=True):
            if not _same(tensor, value):
                tensor.detach().copy_(value)


_CONTAINERS = frozenset({dict, list, type(nn.Module()._forward_hooks)})


def _replace_buffers(module: nn.Module) -> None:
    """Put copies in place of buffers: autograd would count a write and its undoing as two changes."""
    weights = {id(weight) for part in module.modules() for weight in getattr(part, "_flat_weights", ())}
    copies: dict[int, Tensor] = {}
    for part in module.modules():
        for name, buffer in part._buffers.items():
            if buffer is not None and id(buffer) not in weights:
                part._buffers[name] = copies.setdefault(id(buffer), buffer.clone())


def _restore(now: Any, before: Any) -> None:
    """Write only where a dictionary or list differs."""
    if isinstance(now, list):
        if len(now) != len(before) or not all(map(is_, now, before)):
            now[:] = before
        return
    for key in [key for key in now if key not in before]:
        del now[key]
    for key, value in before.items():
        if key not in now or now[key] is not value:
            now[key] = value
    if list(now) != list(before):  # optimisers know parameters by their order
        now.clear()
        now.update(before)


def _same(tensor: Tensor, value: Tensor) -> bool:
    """Bit for bit, except NaN."""
    return tensor.is_meta or bool(
        torch.equal(tensor, value) or ((tensor == value) | tensor.isnan() & value.isnan()).all()
    )
