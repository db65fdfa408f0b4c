"""What all peers share: their gaps as data, and the four modes around one function over time."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Literal

import numpy as np

import multirnn as mr
from multirnn.protocol import Prepared, Work

Feature = Literal["gradients", "float64", "lengths", "empty rows"]


@dataclass(frozen=True)
class Peer:
    """A contender."""

    name: str
    prepare: Callable[[Work, int], Prepared]  # builds the layer and places the inputs, for a number of threads
    packages: Sequence[str]  # those whose versions count
    lacks: Mapping[Feature, str] = field(default_factory=dict)  # reasons to refuse; "empty rows" are lengths of 0
    activations: Collection[str] = ("tanh", "relu", "sigmoid")  # all that it has
    also_refuses: Callable[[Work], str | None] = lambda work: None  # for another reason
    kind: Literal["peer"] = "peer"

    def versions(self) -> Mapping[str, str]:
        """By package."""
        return {package: version(package) for package in self.packages}

    def refuses(self, work: Work) -> str | None:
        """None, or the reason why it cannot do this work."""
        spec, lengths = work.weights.spec, work.lengths
        asked: dict[Feature, bool] = {
            "gradients": work.mode in ("gradients", "training"),
            "float64": spec.dtype == "float64",
            "lengths": lengths is not None,
            "empty rows": lengths is not None and not lengths.all(),
        }
        if reason := next((reason for feature, reason in self.lacks.items() if asked[feature]), None):
            return reason
        if not {spec.activation, spec.recurrent_activation} <= set(self.activations):
            return f"this contender has the activations {', '.join(self.activations)} alone"
        return self.also_refuses(work)


def flat(state: mr.State, *, c_first: bool = False) -> list[Any]:
    """The state of every pass, as most frameworks keep it: h, c of the first, h, c of the next; or c before h."""
    parts = [part for part in state if part is not None]
    return [part[n] for n in range(len(state.h)) for part in (reversed(parts) if c_first else parts)]


def gathered(spec: mr.RecurrentSpec, sequence: Any, states: Sequence[Any], *, c_first: bool = False) -> mr.Output:
    """The result in NumPy, from states in the order of `flat`."""
    count = len(spec.form.states)
    parts = [np.stack([np.asarray(part) for part in states[n::count]]) for n in range(count)]
    return mr.Output(np.asarray(sequence), mr.State(*(reversed(parts) if c_first else parts)))


def modes(
    work: Work,
    run: Callable[[Any], Any],  # from a state to the sequence and the final state
    state: Any,  # the initial one
    output: Callable[[Any], mr.Output],  # the result of `run` in NumPy
    canonical: Callable[[Any], Mapping[str, Any]] = dict,  # weights, or their gradients, by canonical names in NumPy
    gradients: Callable[[Any], Callable[[], Any]] | None = None,  # of a cotangent: those of the weights and of x
    training: Callable[[Any], Callable[[], Any]] | None = None,  # for a target: updates the weights and returns them
) -> Prepared:
    """The call of a work in its mode; streaming carries the state from call to call."""
    if work.mode == "gradients" and gradients is not None:
        differentiate = gradients(work.cotangent)

        def pulled() -> mr.Gradients:
            weights, x = differentiate()
            return mr.Gradients(canonical(weights), np.asarray(x), None)  # type: ignore[arg-type]

        return Prepared(differentiate, pulled)
    if work.mode == "training" and training is not None:
        train = training(work.target)
        return Prepared(train, lambda: canonical(train()))

    def call() -> Any:
        nonlocal state
        found = run(state)
        if work.mode == "streaming":
            state = found[1]
        return found

    return Prepared(call, lambda: output(call()))
