"""The errors: each derives from `MultirnnError` and from the built-in that a caller expects; its text says the remedy."""

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "FormatError",
    "InvalidCall",
    "InvalidData",
    "InvalidSpec",
    "InvalidWeights",
    "MissingFramework",
    "MultirnnError",
]
__all__ += ["UnknownBackend", "Unrepresentable", "Unsupported", "an", "kind_of", "meant"]


class MultirnnError(Exception):
    """The root of every error that multirnn raises itself."""


class InvalidSpec(MultirnnError, ValueError):
    """A `RecurrentSpec` that cannot exist: names the field, the value, and what is allowed."""


class InvalidWeights(MultirnnError, ValueError):
    """Arrays that are not the parameters of the spec: a name, a shape or a dtype is off."""


class InvalidCall(MultirnnError, ValueError):
    """A layer called with an input, state, lengths or cotangent that it cannot take."""


class InvalidData(MultirnnError, ValueError):
    """A file, or the numbers in it, that cannot be read: names the file, the place, and what is allowed."""


class FormatError(MultirnnError, ValueError):
    """A file that cannot be read as the weights of recurrent layers: names the file, the place, and what would be right."""


class Unrepresentable(MultirnnError, ValueError):
    """A framework's layer that no spec describes, or weights that a convention cannot hold exactly."""


class Unsupported(MultirnnError, ValueError):
    """A backend refuses a spec. Raised from the answer of `Backend.refuses` and from nothing else."""


class UnknownBackend(MultirnnError, LookupError):
    """No installed distribution offers a backend of this name."""


class MissingFramework(MultirnnError, ImportError):
    """The backend is known, the framework that it runs on is not installed."""


def an(word: str) -> str:
    """A word after its article: "an int", "a list", "an LSTM", "an ndarray"."""
    letters = word[:2].isupper()  # read one by one
    vowel = word[:1] in "AEFHILMNORSX" if letters else word[:1].lower() in "aeio" or word.startswith(("nd", "lstm"))
    return f"{'an' if vowel else 'a'} {word}"


def kind_of(thing: object) -> str:
    """The type of a thing with its article, for an error message: "an int"; "None" for None."""
    return "None" if thing is None else an(type(thing).__name__)


def meant(name: object, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the known one that is nearest to it; empty if none is near."""
    close = get_close_matches(str(name), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
