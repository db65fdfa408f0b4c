"""Finds backends by name, and the backend of a framework's own layer.

Backends are found by entry points and loaded one at a time, when named. Two groups:

    multirnn.backends   the name of a backend -> the `Backend` object
    multirnn.natives    the top-level package of a framework's own layers -> the `Backend` object that reads them

A third party's are found in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from traceback import walk_tb
from typing import TYPE_CHECKING, Any, NamedTuple

from multirnn.errors import MissingFramework, UnknownBackend, Unrepresentable, an, meant
from multirnn.layer import NATIVE, Implementation, Layer
from multirnn.protocol import Backend, BackendName, contract_refuses, realise
from multirnn.spec import RecurrentSpec
from multirnn.weights import Weights, weights_of

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["Absent", "backend", "backend_of", "backends", "build", "present", "read"]


def backends() -> tuple[str, ...]:
    """The names of the installed backends, in alphabetical order. Loads none of them, nor a framework."""
    return tuple(sorted({point.name for point in _points("multirnn.backends")}))


def backend(name: BackendName | str | Backend) -> Backend:
    """The backend of this name, its framework loaded; a Backend object is itself.

    Raises:
        UnknownBackend: no installed distribution offers one of this name, or two do, or the object is no Backend.
        MissingFramework: its framework is not installed. One that is installed but broken shows its own error.
    """
    if not isinstance(name, str):
        if reason := contract_refuses(name):
            raise UnknownBackend(f"a backend is chosen by its name; this {reason}")
        return name
    return _load(_find(_points("multirnn.backends"), name))


class Absent(NamedTuple):
    """A backend that is installed and cannot be loaded: "missing" its framework, or "broken"; the reason, and the error."""

    name: str
    verdict: str
    reason: str
    error: BaseException


def present(name: BackendName | str | Backend) -> Backend | Absent:
    """`backend`, for a table of several: one that cannot be loaded is an `Absent`; no such name is an `UnknownBackend`."""
    if not isinstance(name, str) or name not in backends():
        return backend(name)
    try:
        return backend(name)
    except (MissingFramework, UnknownBackend) as error:
        return Absent(name, "missing" if isinstance(error, MissingFramework) else "broken", str(error), error)
    except (Exception, SystemExit) as error:  # noqa: BLE001  # an import runs a stranger's code
        return Absent(name, "broken", " ".join(f"{type(error).__name__}: {error}".split()), error)


def build(
    spec_or_weights: RecurrentSpec | Weights,
    backend: BackendName | str | Backend,
    *,
    seed: int = 0,
    device: str | None = None,
    implementation: Implementation = NATIVE,
) -> Layer:
    """A layer of a stack by a backend.

    Args:
        spec_or_weights: weights, or a spec whose weights are drawn by `initialise(spec, seed)`.
        backend: a name out of `backends()`, or a Backend object.
        seed: of the weights, if a spec is given.
        device: a device of the framework; defaults to the framework's default.
        implementation: "native", the framework's own layer; "fast", the same function and contract, made fast; or "frozen",
            fast with constant weights.

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
        MissingFramework: its framework is not installed.
    """
    if (found := backend_of(native)) is not None:
        return found.read(native)
    names = sorted({point.name for point in _points("multirnn.natives")})
    raise Unrepresentable(
        f"no installed backend reads {an(f'{type(native).__module__}.{type(native).__qualname__}')}; "
        f"layers are read of {', '.join(names)}"
    )


def backend_of(native: Any) -> Backend | None:
    """The backend that reads objects of the package that defines a framework's own object, or a base class of it; or None.

    `MissingFramework` if its framework is not installed.
    """
    points = _points("multirnn.natives")
    for kind in type(native).__mro__:
        root = kind.__module__.partition(".")[0]
        if offered := {point.value: point for point in points if point.name == root}:
            return _load(_find(_loadable(list(offered.values())), root))
    return None


def _loadable(points: Sequence[EntryPoint]) -> Sequence[EntryPoint]:
    """Those that can be loaded: a broken distribution does not hide one that works."""
    if len(points) == 1:
        return points
    loadable = []
    for point in points:
        with suppress(Exception, SystemExit):
            _load(point)
            loadable.append(point)
    return loadable or points


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
    raise UnknownBackend(f"no backend named {name!r}; installed: {', '.join(names)}{meant(name, names)}")


def _load(point: EntryPoint) -> Backend:
    try:
        loaded: Backend = point.load()
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if f"{point.module}.".startswith(f"{missing}."):
            raise UnknownBackend(f"{_offer(point)}, and there is no module {missing!r}: {_REMEDY}") from error
        if not missing.isidentifier() or _imported_from(error) != point.module.partition(".")[0]:
            raise  # the framework is there, and a module of its own, or one that it needs itself, is not
        raise MissingFramework(
            f"backend {point.name!r} needs {missing!r}, which is not installed: pip install {_requirement(point, missing)}"
        ) from error
    if reason := contract_refuses(loaded):
        raise UnknownBackend(f"{_offer(point)}, which {reason}: {_REMEDY}")
    return loaded


_REMEDY = "install that distribution again, or uninstall it"


def _offer(point: EntryPoint) -> str:
    distribution = "a distribution" if point.dist is None else f"the distribution {point.dist.name!r}"
    return f"{distribution} offers {point.name!r} as {point.value!r}"


def _imported_from(error: ModuleNotFoundError) -> str:
    """The top-level package that imported the missing module."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__) if "<frozen importlib" not in frame.f_code.co_filename]
    return str(frames[-1].f_globals.get("__name__", "")).partition(".")[0] if frames else ""


def _requirement(point: EntryPoint, missing: str) -> str:
    """The distribution's extra for the backend; if there is none, the module itself."""
    distribution = point.dist
    if distribution is not None and point.name in (distribution.metadata.get_all("Provides-Extra") or ()):
        return f'"{distribution.name}[{point.name}]"'
    return missing
