"""The contenders, found without loading a framework: every backend's implementations, and files of peers.

A file of peers is a Python file with `CONTENDERS`, a tuple of `Contender`; importing it loads no framework. Code that
several of them share lies beside them in a file whose name begins with `_`, for `from ._name import`.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from importlib import import_module, invalidate_caches
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol
from zlib import crc32

from multirnn.errors import InvalidCall, InvalidData
from multirnn.layer import FAST, FROZEN, NATIVE
from multirnn.protocol import Prepared, Work
from multirnn.registry import backends as installed
from multirnn_bench.ours import Ours

__all__ = ["IMPLEMENTATIONS", "PEERS", "Contender", "Source", "find", "load"]

IMPLEMENTATIONS = (NATIVE, FAST, FROZEN)
HERE = Path(__file__).resolve().parent
# The peers that ship: inside the package in a wheel, beside it in a checkout.
PEERS = next((folder for folder in (HERE / "peers", HERE.with_name("peers")) if folder.is_dir()), None)


class Contender(Protocol):
    """Something that can be timed: a backend in one implementation (`Ours`), or a peer.

    It may have an attribute `environment`, a mapping of variables that are set before its process starts.
    """

    @property
    def name(self) -> str:
        """Unique among the contenders of a run."""
        ...

    @property
    def kind(self) -> str:
        """Either "ours" or "peer"."""
        ...

    def versions(self) -> Mapping[str, str]:
        """The versions of what it runs on, by the name under which each is imported."""
        ...

    def refuses(self, work: Work) -> str | None:
        """None: it computes exactly this work. A string: the reason why not."""
        ...

    def prepare(self, work: Work, threads: int) -> Prepared:
        """Build the layer and place the inputs, for so many threads; traces and compiles no more than it must."""
        ...


@dataclass(frozen=True)
class Source:
    """Where a contender comes from."""

    name: str
    kind: str  # "ours" or "peer"
    where: str  # the name of the backend, or the path of the file
    implementation: str = ""  # of a backend; empty for a peer
    environment: Mapping[str, str] = field(default_factory=dict)  # set before its process starts

    def to_dict(self) -> dict[str, Any]:
        """All fields, in values that JSON has."""
        return asdict(self)


def find(
    backends: Sequence[str] | None = None, peers: Sequence[Path] = (), contenders: Sequence[str] = ()
) -> list[Source]:
    """Our backends in each implementation, then peers from files or folders; of these, those that a pattern names.

    Raises `InvalidCall` where two share a name or a pattern matches none, and `InvalidData` for a bad file of peers.
    """
    sources = [
        Source(
            backend if implementation == "native" else f"{backend} {implementation}", "ours", backend, implementation
        )
        for backend in (installed() if backends is None else backends)
        for implementation in IMPLEMENTATIONS
    ]
    for file in _files(peers):
        for contender in _contenders(file):
            environment = dict(getattr(contender, "environment", {}))
            sources.append(Source(contender.name, contender.kind, str(file), environment=environment))
    names = [source.name for source in sources]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InvalidCall(f"two contenders are named {twice!r}; each needs a name of its own")
    for pattern in contenders:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise InvalidCall(f"no contender is named {pattern!r}; there are {', '.join(names)}")
    return [s for s in sources if not contenders or any(fnmatchcase(s.name, pattern) for pattern in contenders)]


def load(source: Mapping[str, Any]) -> Contender:
    """The contender of a `Source` as a dict, with the framework of a backend loaded; see `Ours` for what it raises."""
    if source["implementation"]:
        return Ours(source["where"], source["implementation"], source["name"])
    return next(one for one in _contenders(Path(source["where"])) if one.name == source["name"])


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(one for one in path.resolve().glob("*.py") if not one.name.startswith("_"))
        elif path.is_file():
            yield path.resolve()
        else:
            raise InvalidData(f"there is no file or folder of peers {path}")


def _contenders(file: Path) -> tuple[Contender, ...]:
    found: Any = getattr(_module(file), "CONTENDERS", None)
    if not isinstance(found, tuple):
        raise InvalidData(f"{file} is no file of peers: it needs CONTENDERS, a tuple of contenders")
    asked = ("name", "kind", "versions", "refuses", "prepare")
    for one in found:
        if absent := [name for name in asked if not hasattr(one, name)]:
            raise InvalidData(f"{file}: {one!r} in CONTENDERS is no contender: it has no {', '.join(absent)}")
    return found


def _module(file: Path) -> ModuleType:
    """The file as a module of a package that is its folder, so that `from ._name import` works."""
    package = f"multirnn_peers_{crc32(bytes(file.parent)):x}"
    if package not in sys.modules:
        sys.modules[package] = folder = ModuleType(package)
        folder.__path__ = [str(file.parent)]
    invalidate_caches()
    try:
        return import_module(f"{package}.{file.stem}")
    except Exception as error:  # foreign code: its error becomes a sentence
        raise InvalidData(f"{file} cannot be loaded: {type(error).__name__}: {error}") from error
