"""What was found in a file: `Found` says where a recurrent stack is and how it lies; a `FileStack` has its weights too."""

from dataclasses import dataclass
from typing import Any

from multirnn.errors import FormatError
from multirnn.spec import RecurrentSpec
from multirnn.weights import Weights

__all__ = ["FileStack", "Found"]


@dataclass(frozen=True)
class Found:
    """A recurrent stack in a file.

    Attributes:
        name: its name in the file; empty if the file holds nothing else.
        spec: its spec, in the dtype that `load` returns; None if it is refused.
        convention: how its arrays lie: a name out of `CONVENTIONS`, or "canonical".
        stored: the dtype in the file; float16 and bfloat16 are widened to float32, exactly.
        about: notes on it, a sentence each: what surrounds it, what the file leaves open.
        unsaid: fields of the spec that the file does not tell; `verify` takes them from the other file.
        refused: why no spec describes it, so that `load` refuses it; empty for any other.
    """

    name: str
    spec: RecurrentSpec | None
    convention: str
    stored: str
    about: tuple[str, ...] = ()
    refused: str = ""
    unsaid: tuple[str, ...] = ()

    @property
    def parameter_count(self) -> int | None:
        """The number of its parameters; None if it is refused."""
        return self.spec.parameter_count if self.spec else None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "name": self.name,
            "spec": self.spec.to_dict() if self.spec else None,
            "parameters": self.parameter_count,
            "convention": self.convention,
            "stored": self.stored,
            "about": list(self.about),
            "refused": self.refused,
            "unsaid": list(self.unsaid),
        }


@dataclass(frozen=True)
class FileStack:
    """A stack and its weights.

    Attributes:
        found: where and how.
        weights: of the stack; None if it is refused.
        others: the conventions that its arrays fit as well, with other weights; one has to be chosen.
    """

    found: Found
    weights: Weights | None
    others: tuple[str, ...] = ()

    def loaded(self) -> Weights:
        """The weights.

        Raises:
            FormatError: the stack is refused, for the reason in the sentence.
        """
        if self.weights is None:
            raise FormatError(f"the layer {self.found.name[:80]!r} cannot be read: {self.found.refused}")
        return self.weights
