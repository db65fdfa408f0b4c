"""A layer made wrong on purpose, in one place: `Mistake`, usually a `Change`.

A mistake wraps a function that builds layers. The known mistakes serve two purposes. `multirnn.testing` requires that a
backend with the mistake is caught. `multirnn.diagnosis` explains a wrong layer by the mistake that makes the right layer
wrong in the same way. Mistakes compose: the second wraps the layers of the first.

The gradients of a wrong layer are the derivatives of the wrong function with respect to the right weights: a mistake in
the forward pass adds none in the backward pass.
"""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from multirnn.boundary import Boundary, Inputs
from multirnn.layer import Gradients, Output, Runs
from multirnn.spec import RecurrentSpec
from multirnn.weights import Weights

__all__ = ["Applies", "Build", "Change", "Mistake", "Runs"]
__all__ += ["always", "biased", "bidirectional", "composed", "known", "pull_back", "run"]


Build = Callable[[Weights], Runs]
Realise = Callable[[Build, Weights], Runs]
Applies = Callable[[RecurrentSpec], bool]
Shows = Literal["outputs", "no state", "gradients", "lengths", "float64"]


def always(spec: RecurrentSpec) -> bool:
    """Whatever the spec."""
    return True


def bidirectional(spec: RecurrentSpec) -> bool:
    """Whether the stack has both directions."""
    return spec.bidirectional


def biased(spec: RecurrentSpec) -> bool:
    """Whether the stack has biases."""
    return spec.bias != "none"


@dataclass(frozen=True, slots=True)
class Mistake:
    """One known mistake.

    `applies` tells whether it changes the function or the gradients of a stack of a spec; also False if it would equal
    another known mistake, or if `says` would not be true. `shows` tells what shows it: calls with an initial state
    ("outputs"), calls without one ("no state"), calls with lengths, gradients, or a stack of float64.
    """

    name: str
    says: str  # a sentence without its subject, the wrong side
    fix: str  # an imperative sentence
    realise: Realise  # builds the wrong layer: a `Change`, a `Plumbing`, or a function
    applies: Applies = always
    family: str = ""  # mistakes of one family exclude one another
    shows: Shows = "outputs"

    @property
    def undo(self) -> Callable[[Weights], Weights] | None:
        """Makes weights with which the wrong layer is the right function; None if there are none."""
        return getattr(self.realise, "undo", None)


def known(topic: str, made: Mapping[str, Realise | tuple[Realise, Applies]]) -> tuple[Mistake, ...]:
    """The mistakes of a topic: how each is made and where it applies, and its words in `TOPIC.toml`, in the order there."""
    words = tomllib.loads(Path(__file__).with_name(f"{topic}.toml").read_text(encoding="utf-8"))
    if unlike := words.keys() ^ made.keys():
        raise KeyError(
            f"mistakes/{topic}.toml and {topic}.py do not name the same mistakes: {', '.join(sorted(unlike))}"
        )
    both = {name: change if isinstance(change, tuple) else (change, always) for name, change in made.items()}
    return tuple(Mistake(name, realise=both[name][0], applies=both[name][1], **said) for name, said in words.items())


def composed(build: Build, *mistakes: Mistake) -> Build:
    """A function that builds layers with all these mistakes; the first is innermost, nearest to the framework."""
    for mistake in mistakes:
        build = partial(mistake.realise, build)
    return build


@dataclass(frozen=True, slots=True)
class Change:
    """The changes that make a layer wrong; None changes nothing. Calls arrive checked and batched by `Boundary`.

    `weights` may change the spec too, which a backend may refuse. `cotangent` is the adjoint of `output`, `gradients`
    of `weights` and `inputs`. `undo` makes weights that `weights` changes to the given ones.
    """

    weights: Callable[[Weights], Weights] | None = None
    inputs: Callable[[RecurrentSpec, Inputs], Inputs] | None = None
    output: Callable[[RecurrentSpec, Inputs, Output], Output] | None = None
    cotangent: Callable[[RecurrentSpec, Inputs, Output], Output] | None = None
    gradients: Callable[[RecurrentSpec, Inputs, Gradients], Gradients] | None = None
    undo: Callable[[Weights], Weights] | None = None

    def __call__(self, build: Build, weights: Weights) -> Runs:
        """The wrong layer."""
        inner = build(weights if self.weights is None else self.weights(weights))
        around = any((self.inputs, self.output, self.cotangent, self.gradients))
        return _Changed(weights.spec, inner, self) if around or inner.spec != weights.spec else inner


class _Changed(Boundary):
    def __init__(self, spec: RecurrentSpec, inner: Runs, change: Change) -> None:
        super().__init__(spec)
        self.differentiable = getattr(inner, "differentiable", True)
        self._inner = inner
        self._change = change

    def run(self, inputs: Inputs) -> Output:
        output = run(self._inner, self._taken(inputs))
        return output if self._change.output is None else self._change.output(self.spec, inputs, output)

    def pull_back(self, inputs: Inputs, cotangent: Output) -> Gradients:
        change = self._change
        if change.cotangent is not None:
            cotangent = change.cotangent(self.spec, inputs, cotangent)
        found = pull_back(self._inner, self._taken(inputs), cotangent)
        if change.gradients is not None:
            found = change.gradients(self.spec, inputs, found)
        if inputs.lengths is not None:  # x counts as zero at padding
            found = found._replace(x=np.where(inputs.valid[:, :, None], found.x, found.x.dtype.type(0)))
        return found

    def _taken(self, inputs: Inputs) -> Inputs:
        return inputs if self._change.inputs is None else self._change.inputs(self.spec, inputs)


def run(layer: Runs, inputs: Inputs) -> Output:
    """The layer called; without an initial state if there was none, since a zero one does not fit a misread batch."""
    return layer(inputs.x, inputs.state if inputs.state_given else None, lengths=inputs.lengths)


def pull_back(layer: Runs, inputs: Inputs, cotangent: Output) -> Gradients:
    """The gradients of `run`."""
    state = inputs.state if inputs.state_given else None
    return layer.vjp(inputs.x, state, lengths=inputs.lengths, cotangent=cotangent)
