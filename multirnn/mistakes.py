"""What a mistake in a realisation is: the right layer, made wrong in one place.

A mistake is applied to whatever builds layers, so that one catalogue (`multirnn.catalogue`) serves two ends: a backend
made wrong by it has to be caught by a test (`multirnn.testing`), and a layer that disagrees is explained by the mistake
that makes the right one disagree in the same way (`multirnn.diagnosis`). Mistakes compose: the second is applied to what
the first builds.

Most are a `Change`: other weights, another input, another output. The gradients of a wrong layer are those of the wrong
function, in terms of the right weights, so that a mistake in the way there is no second one in the way back.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike

from multirnn.boundary import Boundary, Inputs
from multirnn.layer import Gradients, Output, State
from multirnn.spec import RecurrentSpec
from multirnn.weights import Array, Weights

__all__ = ["Build", "Change", "Edit", "Mistake", "Runs", "composed", "edited"]


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
Shows = Literal["outputs", "no state", "gradients", "lengths", "float64"]


@dataclass(frozen=True, slots=True)
class Mistake:
    """One known mistake.

    Attributes:
        name: short and unique, as "gates z r n" or "initial state ignored".
        family: mistakes of one family exclude one another, as two orders of the gates do.
        says: what is wrong, as a sentence whose subject is the wrong side, which stands before it: "reads the GRU
            blocks as z r n; they are stored r z n".
        fix: what to do about it, as an imperative sentence.
        applies: whether it makes another function, or other gradients, of a stack of this spec; False also where it
            would be another mistake of the catalogue, or where its sentence would not be true.
        realise: the wrong layer, from what builds right layers and the weights that the right one would have.
        shows: what shows it: calls with an initial state ("outputs"), calls without one ("no state"), calls with
            lengths, gradients, or a stack of float64.
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


# --- Changes ---------------------------------------------------------------------------------------------------------

Edit = Callable[[RecurrentSpec, Mapping[str, Array]], dict[str, Array]]
"""Arrays by parameter name made into others of the same names and shapes."""


def edited(edit: Edit) -> Callable[[Weights], Weights]:
    """An edit of arrays as one of weights."""
    return lambda weights: Weights(weights.spec, edit(weights.spec, weights.arrays))


@dataclass(frozen=True, slots=True)
class Change:
    """Where a layer is made wrong; what is None stays right. It is a `Mistake.realise`.

    A call is checked and batched, as `multirnn.boundary` does it, before it comes here.

    Attributes:
        weights: what the layer is built from; possibly of another spec, which a backend may refuse.
        inputs: what it is run on.
        output: what it hands back.
        cotangent: the adjoint of `output`: from the cotangent of what is handed back to that of what the layer gave.
        gradients: the adjoint of `weights` and `inputs`: from the gradients of the layer to those of the call.
    """

    weights: Callable[[Weights], Weights] | None = None
    inputs: Callable[[RecurrentSpec, Inputs], Inputs] | None = None
    output: Callable[[RecurrentSpec, Inputs, Output], Output] | None = None
    cotangent: Callable[[RecurrentSpec, Inputs, Output], Output] | None = None
    gradients: Callable[[RecurrentSpec, Inputs, Gradients], Gradients] | None = None

    def __call__(self, build: Build, weights: Weights) -> Runs:
        """The wrong layer."""
        inner = build(weights if self.weights is None else self.weights(weights))
        around = any((self.inputs, self.output, self.cotangent, self.gradients))
        return _Changed(weights.spec, inner, self) if around or inner.spec != weights.spec else inner

    @classmethod
    def of_weights(cls, edit: Edit, adjoint: Edit) -> "Change":
        """An edit of the weights, and its adjoint."""

        def gradients(spec: RecurrentSpec, inputs: Inputs, found: Gradients) -> Gradients:
            return found._replace(weights=adjoint(spec, found.weights))

        return cls(weights=edited(edit), gradients=gradients)


class _Changed(Boundary):
    def __init__(self, spec: RecurrentSpec, inner: Runs, change: Change) -> None:
        super().__init__(spec)
        self.differentiable = getattr(inner, "differentiable", True)
        self._inner = inner
        self._change = change

    def run(self, inputs: Inputs) -> Output:
        taken = inputs if self._change.inputs is None else self._change.inputs(self.spec, inputs)
        output = self._inner(taken.x, _given(taken), lengths=taken.lengths)
        return output if self._change.output is None else self._change.output(self.spec, inputs, output)

    def pull_back(self, inputs: Inputs, cotangent: Output) -> Gradients:
        change = self._change
        taken = inputs if change.inputs is None else change.inputs(self.spec, inputs)
        if change.cotangent is not None:
            cotangent = change.cotangent(self.spec, inputs, cotangent)
        found = self._inner.vjp(taken.x, _given(taken), lengths=taken.lengths, cotangent=cotangent)
        if change.gradients is not None:
            found = change.gradients(self.spec, inputs, found)
        if inputs.lengths is not None:  # x is zero at padding, whatever was given there
            found = found._replace(x=np.where(inputs.valid[:, :, None], found.x, found.x.dtype.type(0)))
        return found


def _given(inputs: Inputs) -> State | None:
    """The initial state as it was given: a batch that is read wrongly has a zero state that fits."""
    return inputs.state if inputs.state_given else None
