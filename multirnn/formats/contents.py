"""What the reader of a format returns: the file's arrays by name, and the facts it states about them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, NamedTuple

from numpy.typing import NDArray

from multirnn.errors import MissingFramework

__all__ = ["BFLOAT16", "Contents", "Tensor", "Unread", "needed"]

BFLOAT16 = "bfloat16"


class Unread(NamedTuple):
    """An array in a dtype that NumPy does not have."""

    dtype: str
    shape: tuple[int, ...]


Tensor = NDArray[Any] | Unread


@dataclass(frozen=True)
class Contents:
    """A file as its reader sees it.

    Attributes:
        format: the name of the format.
        arrays: by the file's own names, in its order; read-only views where the format allows it.
        facts: what the file states besides, by the names that its reader documents.
    """

    format: str
    arrays: Mapping[str, Tensor]
    facts: Mapping[str, Any] = field(default_factory=dict)


def needed(package: str, path: object) -> Any:
    """Import the package that a format needs.

    Raises:
        MissingFramework: it is not installed.
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise MissingFramework(
            f'{path} needs the package {package!r}, which is not installed: pip install "multirnn[files]"'
        ) from error
