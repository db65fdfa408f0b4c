"""`untouched`: a module is called, and afterwards nothing tells that it was."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = ["untouched"]


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """What a call leaves behind is taken back.

    That is the attributes of the module and of its parts, among them parameters and buffers and the numbers in them; the
    cache of `parametrize.cached`; and the random states of PyTorch, NumPy and Python.
    """
    attributes = [_Held(vars(part)) for part in module.modules()]
    held = [
        *attributes,
        *(_Held(value) for one in attributes for value in one.before.values() if type(value) in _CONTAINERS),
        _Held(parametrize._cache),
    ]
    tensors = [*module.parameters(), *module.buffers()]
    numbers = [tensor.detach().clone() for tensor in tensors]
    cached = parametrize._cache_enabled
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  # the state that others draw from
    devices = sorted({tensor.device.index for tensor in tensors if tensor.is_cuda})
    try:
        with torch.random.fork_rng(devices):
            _lend_buffers(module)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        parametrize._cache_enabled = cached
        for one in held:
            one.restore()
        for tensor, value in zip(tensors, numbers, strict=True):
            if not _same(tensor, value):
                tensor.detach().copy_(value)


def _lend_buffers(module: nn.Module) -> None:
    """Put copies in the place of buffers: to write to one and back would count as two changes of it, for autograd."""
    weights = {id(weight) for part in module.modules() for weight in getattr(part, "_flat_weights", ())}
    lent: dict[int, Tensor] = {}
    for part in module.modules():
        for name, buffer in part._buffers.items():
            if buffer is not None and id(buffer) not in weights:
                part._buffers[name] = lent.setdefault(id(buffer), buffer.clone())


class _Held:
    """A dictionary or list as it is now. What is in its place is left there while nothing differs."""

    def __init__(self, container: Any) -> None:
        self.container = container
        self.before = copy(container)

    def restore(self) -> None:
        now, before = self.container, self.before
        if isinstance(now, list):
            if len(now) != len(before) or not all(map(is_, now, before)):
                now[:] = before
            return
        for key in [key for key in now if key not in before]:
            del now[key]
        for key, value in before.items():
            if key not in now or now[key] is not value:
                now[key] = value
        if list(now) != list(before):  # parameters are known to optimisers by their order
            now.clear()
            now.update(before)


_CONTAINERS = frozenset({dict, list, type(nn.Module()._forward_hooks)})


def _same(tensor: Tensor, value: Tensor) -> bool:
    """Bit for bit, but for NaN."""
    return tensor.is_meta or bool(
        torch.equal(tensor, value) or ((tensor == value) | tensor.isnan() & value.isnan()).all()
    )
