"""A recurrent stack of a file: `Found` describes it, `Stack` has its weights."""

from dataclasses import dataclass
from typing import Any

from multirnn.spec import RecurrentSpec
from multirnn.weights import Weights

__all__ = ["Found", "Stack"]


@dataclass(frozen=True)
class Found:
    """A recurrent stack in a file.

    Attributes:
        name: its name in the file; empty if the file holds nothing else.
        spec: its spec, in the dtype that `load` returns.
        convention: how its arrays lie: a name out of `CONVENTIONS`, or "canonical".
        stored: the dtype in the file; float16 and bfloat16 are widened to float32, exactly.
        about: what the file says of it besides, and what it does not say; a sentence each.
    """

    name: str
    spec: RecurrentSpec
    convention: str
    stored: str
    about: tuple[str, ...] = ()

    @property
    def parameter_count(self) -> int:
        """The number of its parameters."""
        return self.spec.parameter_count

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "name": self.name,
            "spec": self.spec.to_dict(),
            "parameters": self.parameter_count,
            "convention": self.convention,
            "stored": self.stored,
            "about": list(self.about),
        }


@dataclass(frozen=True)
class Stack:
    """A stack and its weights.

    Attributes:
        found: where and how.
        weights: of the stack.
        others: the conventions that its arrays fit as well, with other weights; one has to be chosen.
    """

    found: Found
    weights: Weights
    others: tuple[str, ...] = ()
