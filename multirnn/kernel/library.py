"""The compiled library: whether it is there, and its functions."""

import ctypes
from functools import cache

__all__ = ["instruction_sets", "library", "missing"]


def missing() -> str | None:
    """None, or a sentence: why there is no compiled recurrence, and what would be right."""
    loaded = _load()
    return loaded if isinstance(loaded, str) else None


def instruction_sets() -> tuple[str, ...]:
    """The instruction sets that the library has and this machine runs, best first; none where it is missing."""
    from multirnn.kernel.build import INSTRUCTIONS

    loaded = _load()
    if isinstance(loaded, str):
        return ()
    return tuple(name for name in INSTRUCTIONS if loaded.multirnn_runs(name.encode()))


def library() -> ctypes.CDLL:
    """The library, where it is not `missing`."""
    loaded = _load()
    assert not isinstance(loaded, str), loaded
    return loaded


@cache
def _load() -> ctypes.CDLL | str:
    # Not before it is needed: what compiles takes longer to import than all of multirnn.kernel.
    from multirnn.kernel.build import LIBRARY, fingerprint

    if not LIBRARY.exists():
        return (
            "multirnn was installed without its compiled recurrence; with a C compiler (gcc or clang) at hand, "
            "`python -m multirnn.kernel.build` makes it"
        )
    try:
        loaded = ctypes.CDLL(str(LIBRARY))
        loaded.multirnn_fingerprint.restype = ctypes.c_char_p
        built_from = loaded.multirnn_fingerprint().decode()
    except (OSError, AttributeError) as error:
        return f"{LIBRARY.name} cannot be loaded: {error}; `python -m multirnn.kernel.build` makes it anew"
    if built_from != fingerprint():
        return f"{LIBRARY.name} was built from other sources; `python -m multirnn.kernel.build` makes it anew"
    return loaded
