"""Loads the compiled library, or says why it cannot."""

import ctypes
from functools import cache

__all__ = ["instruction_sets", "library", "refuses"]


def refuses() -> str | None:
    """Why there is no compiled recurrence and how to get it, in a sentence; None where it is installed."""
    loaded = _load()
    return loaded if isinstance(loaded, str) else None


def instruction_sets() -> tuple[str, ...]:
    """The instruction sets that the library has and this machine runs, best first; empty without a library."""
    from multirnn.kernel.build import INSTRUCTIONS

    return () if refuses() else tuple(name for name in INSTRUCTIONS if library().multirnn_runs(name.encode()))


def library() -> ctypes.CDLL:
    """The library, unless it `refuses`."""
    loaded = _load()
    assert not isinstance(loaded, str), loaded
    return loaded


@cache
def _load() -> ctypes.CDLL | str:
    # Imported late: the modules that compile take longer to import than all of multirnn.kernel.
    from multirnn.kernel.build import LIBRARY, fingerprint

    if not LIBRARY.exists():
        return (
            "multirnn was installed without its compiled recurrence; with a C compiler (gcc or clang), "
            "`python -m multirnn.kernel.build` builds it"
        )
    try:
        loaded = ctypes.CDLL(str(LIBRARY))
        loaded.multirnn_fingerprint.restype = ctypes.c_char_p
        loaded.multirnn_free.argtypes = [ctypes.c_void_p]
        built_from = loaded.multirnn_fingerprint().decode()
    except (OSError, AttributeError) as error:
        return f"{LIBRARY.name} cannot be loaded: {error}; `python -m multirnn.kernel.build` rebuilds it"
    if built_from != fingerprint():
        return f"{LIBRARY.name} was built from other sources; `python -m multirnn.kernel.build` rebuilds it"
    return loaded
