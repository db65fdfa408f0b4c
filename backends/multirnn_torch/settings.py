"""Global settings of PyTorch that change results, and calls that ignore them.

Autocast lowers the dtype of operations. `torch.set_float32_matmul_precision` and `fp32_precision` let float32 products
round their factors to bfloat16 or TF32.
"""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

__all__ = ["alone", "disturbed"]

_is_autocast: Any = torch._C._is_any_autocast_enabled
# Since PyTorch 2.9; before it, there is one precision for all.
_precision: Any = getattr(torch._C, "_get_fp32_precision_getter", None)
_set_precision: Any = getattr(torch._C, "_set_fp32_precision_setter", None)
_CPU = ("mkldnn", "matmul"), ("mkldnn", "rnn")
_CUDA = *_CPU, ("cuda", "matmul"), ("cuda", "rnn")
_FULL = ("none", "ieee")
_NOTHING = nullcontext()


def disturbed() -> bool:
    """Whether a setting may change results on the CPU."""
    if _is_autocast():
        return True
    if _precision is None:
        return torch.get_float32_matmul_precision() != "highest"
    return _precision("mkldnn", "matmul") not in _FULL or _precision("mkldnn", "rnn") not in _FULL


def alone(device: torch.device, *, full: bool = False) -> AbstractContextManager[Any]:
    """A context without these settings; `full` asks for full float32 products on CUDA too, which is not the default."""
    if not disturbed() and (device.type == "cpu" or not full):
        return _NOTHING
    return _without(device, full and device.type != "cpu")


# Precisions belong to the whole process: the first caller in sets them, the last one out restores them.
_lock = threading.Lock()
_inside = 0
_before: dict[tuple[str, str], str] = {}


@contextmanager
def _without(device: torch.device, full: bool) -> Iterator[None]:
    global _inside
    with torch.autocast(device.type, enabled=False):
        with _lock:
            _inside += 1
            for place in _CUDA if full else _CPU:
                if place not in _before:
                    _before[place] = _get(place)
                    _put(place, "ieee")
        try:
            yield
        finally:
            with _lock:
                _inside -= 1
                if not _inside:
                    for place, value in _before.items():
                        _put(place, "none")
                        if _get(place) != value:  # else it follows from the setting for all
                            _put(place, value)
                    _before.clear()


def _get(place: tuple[str, str]) -> str:
    return str(torch.get_float32_matmul_precision() if _precision is None else _precision(*place))


def _put(place: tuple[str, str], value: str) -> None:
    if _precision is not None:
        _set_precision(*place, value)
    elif value != "none":
        torch.set_float32_matmul_precision("highest" if value == "ieee" else value)
