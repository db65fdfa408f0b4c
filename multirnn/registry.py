"""From a name to a backend, and from a backend to a layer.

Backends are found by entry points and loaded one at a time, when named. Two groups:

    multirnn.backends   the name of a backend -> the `Backend` object
    multirnn.natives    the top-level package of a framework's own layers -> the `Backend` object that reads them

Ours are found as a third party's are.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from functools import cache
from typing import TYPE_CHECKING, Any

from multirnn.backend import Backend
from multirnn.errors import MissingFramework, UnknownBackend, Unrepresentable
from multirnn.implementation import NATIVE, realise
from multirnn.layer import Layer
from multirnn.spec import RecurrentSpec
from multirnn.weights import Weights, weights_of

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["backend", "backend_of", "backends", "build", "read"]


def backends() -> tuple[str, ...]:
    """The names of the installed backends, in alphabetical order. Loads none of them, nor a framework."""
    return tuple(sorted({point.name for point in _points("multirnn.backends")}))


def backend(name: str | Backend) -> Backend:
    """The backend of this name, its framework loaded; a Backend object is itself.

    Raises:
        UnknownBackend: no installed distribution offers one of this name, or two do.
        MissingFramework: its framework is not installed. One that is installed but broken shows its own error.
    """
    if isinstance(name, Backend):
        return name
    if not isinstance(name, str):
        raise UnknownBackend(f"a backend is chosen by its name or is a Backend object; this is a {type(name).__name__}")
    return _load(_find(_points("multirnn.backends"), name))


def build(
    spec_or_weights: RecurrentSpec | Weights,
    backend: str | Backend,
    *,
    seed: int = 0,
    device: str | None = None,
    implementation: str = NATIVE,
) -> Layer:
    """Realise a stack with a backend.

    Args:
        spec_or_weights: weights, or a spec whose weights are drawn by `initialise(spec, seed)`.
        backend: a name out of `backends()`, or a Backend object.
        seed: of the weights, where a spec is given.
        device: a device of the framework; its default unless given.
        implementation: "native", the framework's own layer; or "fast", the same function and contract, made fast;
            or "frozen", which is fast with weights that are constants.

    Raises:
        UnknownBackend, MissingFramework: see `backend`.
        Unsupported: the backend refuses the spec; the sentence has its reason.
        InvalidCall: the framework has no such device here, or the backend no such implementation.
    """
    weights = weights_of(spec_or_weights, seed, "build")
    return realise(_backend(backend), weights, device=device, implementation=implementation)


def read(native: Any) -> Weights:
    """The spec and the weights of a framework's own layer.

    Raises:
        Unrepresentable: no installed backend reads such an object, or no spec describes it.
        MissingFramework: what its backend runs on is not installed.
    """
    if (found := backend_of(native)) is not None:
        return found.read(native)
    names = sorted({point.name for point in _points("multirnn.natives")})
    raise Unrepresentable(
        f"no installed backend reads a {type(native).__module__}.{type(native).__qualname__}; "
        f"layers are read of {', '.join(names)}"
    )


def backend_of(native: Any) -> Backend | None:
    """The backend that knows a framework's own object by the package that it comes from; None where none does.

    Raises:
        MissingFramework: what the backend runs on is not installed.
    """
    points = _points("multirnn.natives")
    for kind in type(native).__mro__:
        root = kind.__module__.partition(".")[0]
        if any(point.name == root for point in points):
            return _load(_find(points, root))
    return None


_backend = backend  # `build` has a parameter of this name


@cache
def _points(group: str) -> tuple[EntryPoint, ...]:
    from importlib.metadata import entry_points  # here, since it costs 50 ms of every import

    return tuple(entry_points(group=group))


def _find(points: Sequence[EntryPoint], name: str) -> EntryPoint:
    """The one entry point of this name."""
    found = {point.value: point for point in points if point.name == name}
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise UnknownBackend(f"two distributions offer {name!r}: {', '.join(sorted(found))}; uninstall one of them")
    names = sorted({point.name for point in points})
    close = get_close_matches(name, names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise UnknownBackend(f"no backend named {name!r}; installed: {', '.join(names)}{hint}")


def _load(point: EntryPoint) -> Backend:
    try:
        loaded = point.load()
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if not missing.isidentifier() or _imported_from(error) != point.module.partition(".")[0]:
            raise  # the framework is there, and a module of its own, or one that it needs itself, is not
        raise MissingFramework(
            f"backend {point.name!r} needs {missing!r}, which is not installed: pip install {_requirement(point, missing)}"
        ) from error
    if not isinstance(loaded, Backend):
        raise UnknownBackend(f"the entry point {point.value!r} is a {type(loaded).__name__}, not a multirnn Backend")
    return loaded


def _imported_from(error: ModuleNotFoundError) -> str:
    """The top-level package whose own line asked for the module that is not there."""
    trace = error.__traceback__
    package = ""
    while trace:
        if not trace.tb_frame.f_code.co_filename.startswith("<frozen importlib"):
            package = str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        trace = trace.tb_next
    return package


def _requirement(point: EntryPoint, missing: str) -> str:
    """What to install: the extra that the backend's distribution has for it, else the module itself."""
    distribution = point.dist
    if distribution is not None and point.name in (distribution.metadata.get_all("Provides-Extra") or ()):
        return f'"{distribution.name}[{point.name}]"'
    return missing
