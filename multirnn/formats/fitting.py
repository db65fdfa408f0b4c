"""The form of the biases that a convention holds: `fitted` folds or splits, and says so."""

from multirnn.conventions import Convention
from multirnn.errors import Unrepresentable
from multirnn.packing import to_arrays
from multirnn.weights import Array, Weights, fold_biases, split_biases

__all__ = ["entries", "fitted"]

ADDED = "biases of zero were added, which the convention {name} needs"
FOLDED = "the two biases of each gate were added up, since the convention {name} holds one; the sums are rounded"


def fitted(weights: Weights, convention: Convention) -> tuple[Weights, tuple[str, ...]]:
    """The same function with biases in a form that the convention holds, and what was changed, a sentence each.

    Raises:
        Unrepresentable: no form helps; the sentence says why.
    """
    reason = convention.refuses(weights.spec)
    if reason is None:
        return weights, ()
    split = split_biases(weights)
    tried = [(split, ADDED), (fold_biases(split), ADDED if weights.spec.bias == "none" else FOLDED)]
    if weights.spec.bias == "none":
        tried.reverse()
    for candidate, change in tried:
        if convention.refuses(candidate.spec) is None:
            return candidate, (change.format(name=convention.name),)
    raise Unrepresentable(reason)


def entries(weights: Weights, convention: str) -> dict[str, Array]:
    """The arrays of a file by name, in a convention or canonical."""
    return dict(weights.arrays) if convention == "canonical" else to_arrays(weights, convention=convention)
