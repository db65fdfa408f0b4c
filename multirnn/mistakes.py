"""What a mistake in a realisation is: the right layer, made wrong in one place.

A mistake is applied to whatever builds layers, so that one catalogue (`multirnn.catalogue`) serves two ends: a backend
made wrong by it has to be caught by a test (`multirnn.testing`), and a layer that disagrees is explained by the mistake
that makes the right one disagree in the same way (`multirnn.diagnosis`). Mistakes compose: the second is applied to what
the first builds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from numpy.typing import ArrayLike

from multirnn.layer import Gradients, Output, State
from multirnn.spec import RecurrentSpec
from multirnn.weights import Weights

__all__ = ["Build", "Mistake", "Runs", "composed"]


class Runs(Protocol):
    """What a mistake acts on: the two ways to run a `Layer`."""

    @property
    def spec(self) -> RecurrentSpec:
        """What it takes and hands back."""
        ...

    def __call__(self, x: ArrayLike, state: State | None = None, *, lengths: ArrayLike | None = None) -> Output:
        """See `Layer.__call__`."""
        ...

    def vjp(
        self, x: ArrayLike, state: State | None = None, *, lengths: ArrayLike | None = None, cotangent: Output
    ) -> Gradients:
        """See `Layer.vjp`."""
        ...


Build = Callable[[Weights], Runs]
Shows = Literal["outputs", "gradients", "lengths", "float64", "count"]


@dataclass(frozen=True, slots=True)
class Mistake:
    """One known mistake.

    Attributes:
        name: short and unique, as "gates z r n" or "initial state ignored".
        family: mistakes of one family exclude one another, as two orders of the gates do.
        says: what is wrong, as a sentence whose subject is the wrong side, which stands before it: "reads the GRU
            blocks as z r n; they are stored r z n".
        fix: what to do about it, as an imperative sentence.
        applies: whether it makes another function, or other gradients, of a stack of this spec.
        realise: the wrong layer, from what builds right layers and the weights that the right one would have.
        shows: what has to be looked at to see it: plain calls ("outputs"); calls with lengths; gradients; a stack of
            float64; or the count of the parameters.
        undo: the weights with which the wrong layer is the right function; None where no weights are.
    """

    name: str
    family: str
    says: str
    fix: str
    applies: Callable[[RecurrentSpec], bool]
    realise: Callable[[Build, Weights], Runs]
    shows: Shows = "outputs"
    undo: Callable[[Weights], Weights] | None = None


def composed(build: Build, *mistakes: Mistake) -> Build:
    """What builds layers with all these mistakes: the first is the innermost, nearest to the framework."""
    for mistake in mistakes:
        build = _wrong(mistake, build)
    return build


def _wrong(mistake: Mistake, build: Build) -> Build:
    def realise(weights: Weights) -> Any:
        return mistake.realise(build, weights)

    return realise
