"""Reads an argument as a NumPy array. Refuses a mask that NumPy would drop, and objects that it cannot read."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from multirnn.errors import InvalidCall, MultirnnError

__all__ = ["as_array"]

PLAIN = (list, tuple, int, float, str, type(None))
"""Types without a dtype."""


def as_array(
    name: str,
    value: Any,
    dtype: np.dtype[Any] | None = None,
    *,
    of: str = "numbers",
    inside: str = "",
    error: type[MultirnnError] = InvalidCall,
) -> NDArray[Any]:
    """The array, not cast and not copied where NumPy need not.

    Args:
        name: the argument's, for the error.
        value: an array, anything that NumPy can convert to one, or lists and numbers.
        dtype: for lists and numbers, which have none of their own; defaults to NumPy's choice.
        of: the kind of elements, for the error if no dtype is given.
        inside: what to call inside a framework's own transformations, whose arrays have no values yet.
        error: the type to raise.

    Raises:
        MultirnnError: a mask would be dropped, arrays of another dtype stand in a list, or NumPy cannot read it.
    """
    if type(value) is np.ndarray:
        return value
    wanted = f"{name} must be an array of {dtype or of}"
    plain = isinstance(value, PLAIN) and not hasattr(value, "dtype")
    _refuse_losses(name, value, dtype, error)
    try:
        with np.errstate(all="ignore"):  # a number that is too large becomes an infinity
            array = np.asarray(value, dtype) if plain else np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as reason:
        if plain:
            raise error(f"{wanted}: {reason}") from reason
        cure = f"; inside a framework's own transformations call {inside}" if inside else ""
        sentence = f"{wanted}, not {_described(value)}, which NumPy cannot read; pass its values as a NumPy array{cure}"
        raise error(sentence) from reason
    if array.dtype.kind == "O" and not (plain or hasattr(value, "dtype")):
        raise error(f"{wanted}, not {_described(value)}, in which NumPy finds no numbers")
    return array


def _refuse_losses(name: str, value: Any, dtype: np.dtype[Any] | None, error: type[MultirnnError]) -> None:
    """Refuse a mask and mixed dtypes, which `numpy.asarray` would lose silently."""
    if isinstance(value, np.ma.MaskedArray):
        raise error(
            f"{name} is a masked array, and NumPy would drop the mask; fill it, and where it marks padding pass lengths="
        )
    if not isinstance(value, list | tuple) or not len(value) or isinstance(value[0], int | float):
        return
    for place, part in enumerate(value):
        inner = f"{name}[{place}]"
        if isinstance(part, list | tuple):
            _refuse_losses(inner, part, dtype, error)
        elif not isinstance(part, PLAIN):
            array = as_array(inner, part, error=error)
            if dtype is not None and array.ndim and array.dtype != dtype:
                raise error(f"{inner} is {array.dtype}, and {name} is read as {dtype}; convert it first")


def _described(value: Any) -> str:
    kind = type(value)
    module = kind.__module__.partition(".")[0]
    title = kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"
    own = getattr(value, "dtype", None)
    return f"a {title}" if own is None else f"a {title} of {own}"
