"""`Mistake`: a layer made wrong on purpose, in one place.

A mistake wraps a function that builds layers. So one catalogue (`multirnn.catalogue`) serves two purposes: a test must
catch a backend with the mistake (`multirnn.testing`), and a mistake that makes the right layer wrong in the same way
explains a wrong one (`multirnn.diagnosis`). Mistakes compose: the second wraps the layers of the first.

Most are a `Change`: other weights, another input, another output. The gradients of a wrong layer are the derivatives of
the wrong function with respect to the right weights: a mistake in the forward pass adds none in the backward pass.
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

__all__ = ["Build", "Change", "Edit", "Mistake", "Runs", "composed", "edited", "state_as_given"]


class Runs(Protocol):
    """The two calls of a `Layer` that a mistake can change."""

    @property
    def spec(self) -> RecurrentSpec:
        """Its spec."""
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
        says: what is wrong, as a sentence without its subject, the wrong side: "reads the GRU blocks as z r n; they are
            stored r z n".
        fix: what to do about it, as an imperative sentence.
        applies: whether it changes the function or the gradients of a stack of this spec. Also False if it would equal
            another known mistake, or if `says` would not be true.
        realise: builds the wrong layer, from a function that builds right layers and the right weights.
        shows: what shows it: calls with an initial state ("outputs"), calls without one ("no state"), calls with
            lengths, gradients, or a stack of float64.
        undo: makes weights with which the wrong layer is the right function; None if there are none.
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
    """A function that builds layers with all these mistakes; the first is innermost, nearest to the framework."""
    for mistake in mistakes:
        build = _wrong(mistake, build)
    return build


def _wrong(mistake: Mistake, build: Build) -> Build:
    def realise(weights: Weights) -> Any:
        return mistake.realise(build, weights)

    return realise


# --- Changes ---------------------------------------------------------------------------------------------------------

Edit = Callable[[RecurrentSpec, Mapping[str, Array]], dict[str, Array]]
"""From arrays by parameter name to others of the same names and shapes."""


def edited(edit: Edit) -> Callable[[Weights], Weights]:
    """The edit as a function of weights."""
    return lambda weights: Weights(weights.spec, edit(weights.spec, weights.arrays))


@dataclass(frozen=True, slots=True)
class Change:
    """The changes that make a layer wrong; None changes nothing. Serves as `Mistake.realise`.

    Calls arrive checked and batched by `multirnn.boundary`.

    Attributes:
        weights: changes the weights, possibly to another spec, which a backend may refuse.
        inputs: changes the call.
        output: changes the output.
        cotangent: the adjoint of `output`: maps a cotangent of the changed output to one of the layer's output.
        gradients: the adjoint of `weights` and `inputs`: maps the layer's gradients to gradients of the call.
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
        output = self._inner(taken.x, state_as_given(taken), lengths=taken.lengths)
        return output if self._change.output is None else self._change.output(self.spec, inputs, output)

    def pull_back(self, inputs: Inputs, cotangent: Output) -> Gradients:
        change = self._change
        taken = inputs if change.inputs is None else change.inputs(self.spec, inputs)
        if change.cotangent is not None:
            cotangent = change.cotangent(self.spec, inputs, cotangent)
        found = self._inner.vjp(taken.x, state_as_given(taken), lengths=taken.lengths, cotangent=cotangent)
        if change.gradients is not None:
            found = change.gradients(self.spec, inputs, found)
        if inputs.lengths is not None:  # x counts as zero at padding
            found = found._replace(x=np.where(inputs.valid[:, :, None], found.x, found.x.dtype.type(0)))
        return found


def state_as_given(inputs: Inputs) -> State | None:
    """The initial state as given; if there was none, the layer makes a zero state, which fits a misread batch too."""
    return inputs.state if inputs.state_given else None
