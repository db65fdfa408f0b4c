"""`read`: structure finds the weights of a module, and numbers confirm that they describe what it computes."""

from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from multirnn import InvalidCall, Output, Unrepresentable, Weights
from multirnn.adoption import noting
from multirnn.boundary import Inputs
from multirnn.confirmation import confirmed
from multirnn.returned import arranged, output_of, states_of
from multirnn_torch.arrays import arrays, tensors
from multirnn_torch.calls import Caller, is_overridden, uncompiled
from multirnn_torch.hooks import run_weight_hooks, unknown_hook
from multirnn_torch.surroundings import alone
from multirnn_torch.untouched import untouched
from multirnn_torch.weights import described, titled

__all__ = ["current", "read", "unwrapped"]


def read(native: Any) -> Weights:
    """The spec and the weights of a layer of `torch.nn`, as they are when it is called next.

    The module is called once, on 5 rows of 7 steps in the mode that it is in, and its whole output is compared with that
    of the reference. The call leaves no trace. Weights that are computed are evaluated: by parametrizations, `weight_norm`,
    `spectral_norm`, pruning, or whatever puts tensors in their place.

    Args:
        native: an `nn.RNN`, `LSTM` or `GRU`, of a subclass too, `batch_first` or not; as it is, or inside of
            `torch.compile`, `DistributedDataParallel` or `DataParallel`. An `nn.RNNCell`, `LSTMCell` or `GRUCell` is a
            stack of one layer. Frozen parameters are read as any others, and one that stands in two places is read in
            both: what is trained is no part of a spec.

    Raises:
        Unrepresentable: no spec describes it, or it computes something else than its weights describe; the sentence has
            the reason. One with hooks on its forward is not called: they may do anything.
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
    """`read`, without the call where there is nothing to confirm: PyTorch's or our own forward, over the weights it takes.

    Raises:
        Unrepresentable: as of `read`.
    """
    module = _layer_of(native)
    return read(native) if is_overridden(module) else _evaluated(module)


def unwrapped(native: Any) -> list[Any]:
    """The wrappers of `torch.compile`, `DistributedDataParallel` and `DataParallel`, and last the module inside of them."""
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
    """The layer or cell in what is read.

    Raises:
        Unrepresentable: there is none, or it must not or cannot be called.
    """
    *wrappers, module = unwrapped(native)
    if not isinstance(module, nn.RNNBase | nn.RNNCellBase) or type(module) in (nn.RNNBase, nn.RNNCellBase):
        raise Unrepresentable(_not_a_layer(module))
    title = titled(module)
    if hook := unknown_hook(module) or unknown_hook(*wrappers, parts=False):
        raise Unrepresentable(
            f"{title} is not read, since {hook}, which may change what it computes; take it out by its handle's remove()"
        )
    if any(tensor.is_meta for tensor in module.parameters()):
        raise Unrepresentable(f"{title} is on the device 'meta', which holds no numbers")
    return module


def _evaluated(module: nn.Module) -> Weights:
    with untouched(module), torch.no_grad():
        run_weight_hooks(module)
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
        x, *state = (tensor.clone() for tensor in tensors([inputs.x, *states_of(inputs.state)], device))
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
