"""Mistakes derived from others: in one layer and direction only, or from what a spec declares."""

from dataclasses import replace

from multirnn.diagnosis.verdict import Mistakes
from multirnn.mistakes.change import Build, Change, Mistake, Runs
from multirnn.mistakes.plumbing import Plumbing
from multirnn.spec import RecurrentSpec
from multirnn.weights import Weights, split_biases

__all__ = ["changed", "declared", "in_weights", "of_parts", "only_in"]


def in_weights(mistake: Mistake) -> bool:
    """Whether a mistake only changes weights."""
    change = mistake.realise
    return isinstance(change, Change) and change.weights is not None and not (change.inputs or change.output)


def changed(mistake: Mistake, weights: Weights) -> Weights:
    """The weights after a mistake; unchanged if it does not change weights."""
    change = mistake.realise
    return change.weights(weights) if isinstance(change, Change) and change.weights is not None else weights


def of_parts(mistake: Mistake) -> bool:
    """Whether a mistake is in the wiring of the passes of a stack."""
    return isinstance(mistake.realise, Plumbing)


def only_in(mistake: Mistake, layer: int, direction: str) -> Mistake:
    """The mistake in one layer and direction only."""
    undo, here = mistake.undo, (layer, direction)

    def make(build: Build, part: Weights, place: tuple[int, str]) -> Runs:
        return mistake.realise(build, part) if place == here else build(part)

    def undone(weights: Weights) -> Weights:
        assert undo is not None
        part = undo(weights.part(layer, direction)).at(0, "forward")
        mended = {f"layers.{layer}.{direction}.{name}": array for name, array in part.items()}
        return Weights(weights.spec, {**weights.arrays, **mended})

    where = f", in layer {layer} {direction} alone"
    name, says, fix = (f"{text}{where}" for text in (mistake.name, mistake.says, mistake.fix))
    realise = Plumbing(make=make, undo=undone if undo else None)
    return replace(mistake, name=name, says=says, fix=fix, realise=realise)


def declared(right: RecurrentSpec, wrong: RecurrentSpec) -> Mistakes:
    """The differences between two specs of one shape, as mistakes."""

    def mistake(name: str) -> Mistake:
        value, wanted = getattr(wrong, name), getattr(right, name)

        def change(weights: Weights) -> Weights:
            # With two biases all forms of a cell have the same arrays.
            weights = weights if weights.spec.bias == "none" else split_biases(weights)
            return Weights(replace(weights.spec, **{name: value}), weights.arrays)

        return Mistake(
            f"{name}={value!r}",
            f"has {name}={value!r}, where {name}={wanted!r} would be right",
            f"build it with {name}={wanted!r}",
            Change(weights=change),
            family=name,
        )

    names = ("reset_after", "activation", "recurrent_activation")
    return tuple(mistake(name) for name in names if getattr(right, name) != getattr(wrong, name))
