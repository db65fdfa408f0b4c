"""`replace_layers`: the recurrent layers inside a user's model, made fast in place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from multirnn.errors import InvalidCall, kind_of
from multirnn.layer import FAST, NATIVE, Implementation
from multirnn.protocol import Replaces, offers
from multirnn.registry import backend_of
from multirnn.tables import Column, Content, Shown, Table

__all__ = ["Kept", "Replaced", "Replacement", "refuse_without", "replace_layers"]


class Replaced(NamedTuple):
    """A layer that was replaced: its path in the model, and the names of its class before and after."""

    path: str
    before: str
    after: str


class Kept(NamedTuple):
    """A recurrent layer or cell that was left as it is: its path, the name of its class, and the reason as a sentence."""

    path: str
    kind: str
    reason: str


class Replacement(Shown, ABC):
    """The result of `replace_layers`.

    Copied or pickled together with its model, it restores the copy.

    Attributes:
        model: the user's model, the same object.
        replaced: the layers that were replaced, in the model's order; a shared layer once, under its first path.
        kept: the recurrent layers and cells that were left as they are.
    """

    def __init__(self, model: Any, replaced: Sequence[Replaced], kept: Sequence[Kept]) -> None:
        self.model = model
        self.replaced = tuple(replaced)
        self.kept = tuple(kept)

    @abstractmethod
    def restore(self) -> None:
        """Undo the replacement, and keep all that the layers have learnt meanwhile; a second call changes nothing."""

    def to_dict(self) -> dict[str, Any]:
        """See `Shown.to_dict`."""
        return {
            "model": type(self.model).__name__,
            "replaced": [layer._asdict() for layer in self.replaced],
            "kept": [layer._asdict() for layer in self.kept],
        }

    def _contents(self) -> Iterator[Content]:
        count = len(self.replaced) + len(self.kept)
        noun = "recurrent layer" + "s" * (count != 1)
        yield f"{type(self.model).__name__}: {len(self.replaced)} of {count} {noun} replaced"
        table = Table(Column("layer"), "before", "after")
        for path, before, after in self.replaced:
            table.add_row(path or "(the model)", before, after)
        for path, kind, reason in self.kept:
            table.add_row(path or "(the model)", kind, f"kept: {reason}")
        yield table


def replace_layers(model: Any, implementation: Implementation = FAST) -> Replacement:
    """Replace every recurrent layer inside a model, in place: the same objects, parameters, names and hooks.

    Args:
        model: a PyTorch module, a Keras model or a Flax NNX module; it may be a recurrent layer itself.
        implementation: "fast"; or "native", which puts the framework's own layers back without a `Replacement` at hand.

    Returns:
        The record of all that was replaced, and the reason for each layer that was kept; its `restore()` undoes it.

    Raises:
        InvalidCall: the model has no recurrent layer, or none that can be replaced, with the reason for each; or another
            implementation.
        MissingFramework: the framework of its backend is not installed.
    """
    if implementation not in (FAST, NATIVE):
        raise InvalidCall(f"the layers of a model are {FAST!r} or {NATIVE!r}, not {implementation!r}")
    backend = backend_of(model)
    if not offers(backend, Replaces):
        raise InvalidCall(
            f"layers are replaced inside a PyTorch module, a Keras model or a Flax NNX module, not inside {kind_of(model)}"
        )
    return backend.replace_layers(model, implementation)


def refuse_without(model: Any, kept: Sequence[Kept]) -> None:
    """For a backend that replaced nothing: raise InvalidCall with the reasons, or that there is no recurrent layer."""
    if not kept:
        raise InvalidCall(f"this {type(model).__name__} has no recurrent layer to replace")
    reasons = "; ".join(f"{path} ({kind}): {reason}" if path else reason for path, kind, reason in kept)
    raise InvalidCall(f"no recurrent layer of this {type(model).__name__} can be replaced: {reasons}")
