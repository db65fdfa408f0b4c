"""Global settings of PyTorch that change what an operation computes, and calls that do not depend on them.

Autocast lowers the dtype of operations. `torch.set_float32_matmul_precision` and `fp32_precision` let float32 products
round their factors to bfloat16 or TF32.
"""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar

import torch

__all__ = ["alone", "disturbed"]

_is_autocast: Any = torch._C._is_any_autocast_enabled
# There since PyTorch 2.9; before it, one precision is for all.
_precision: Any = getattr(torch._C, "_get_fp32_precision_getter", None)
_set_precision: Any = getattr(torch._C, "_set_fp32_precision_setter", None)
_CPU = ("mkldnn", "matmul"), ("mkldnn", "rnn")
_CUDA = *_CPU, ("cuda", "matmul"), ("cuda", "rnn")
_FULL = ("none", "ieee")
_NOTHING = nullcontext()


def disturbed() -> bool:
    """Whether a setting may change what is computed on the CPU."""
    if _is_autocast():
        return True
    if _precision is None:
        return torch.get_float32_matmul_precision() != "highest"
    return _precision("mkldnn", "matmul") not in _FULL or _precision("mkldnn", "rnn") not in _FULL


def alone(device: torch.device, *, full: bool = False) -> AbstractContextManager[Any]:
    """What is called inside computes as without these settings.

    Args:
        device: on which it computes.
        full: on CUDA too float32 products are of float32, which is not PyTorch's default.
    """
    if not disturbed() and (device.type == "cpu" or not full):
        return _NOTHING
    return _without(device, full and device.type != "cpu")


@contextmanager
def _without(device: torch.device, full: bool) -> Iterator[None]:
    with torch.autocast(device.type, enabled=False), _FullPrecision(_CUDA if full else _CPU):
        yield


class _FullPrecision:
    """The precisions of float32 are full inside. They are of the whole process: the first in sets, the last out restores."""

    lock = threading.Lock()
    inside = 0
    before: ClassVar[dict[tuple[str, str], str]] = {}

    def __init__(self, places: tuple[tuple[str, str], ...]) -> None:
        self._places = places

    def __enter__(self) -> None:
        kind = type(self)
        with kind.lock:
            kind.inside += 1
            for place in self._places:
                if place not in kind.before:
                    kind.before[place] = _get(place)
                    _put(place, "ieee")

    def __exit__(self, *_: object) -> None:
        kind = type(self)
        with kind.lock:
            kind.inside -= 1
            if kind.inside:
                return
            for place, value in kind.before.items():
                _put(place, "none")
                if _get(place) != value:  # else it follows from what is set for all
                    _put(place, value)
            kind.before.clear()


def _get(place: tuple[str, str]) -> str:
    return str(torch.get_float32_matmul_precision() if _precision is None else _precision(*place))


def _put(place: tuple[str, str], value: str) -> None:
    if _precision is not None:
        _set_precision(*place, value)
    elif value != "none":
        torch.set_float32_matmul_precision("highest" if value == "ieee" else value)
