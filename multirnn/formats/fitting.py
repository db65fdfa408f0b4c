"""The form of the biases that a convention holds: `fitted` folds or splits, and says so."""

import numpy as np

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
        return weights, _offset(weights, convention)
    split = split_biases(weights)
    tried = [(split, ADDED), (fold_biases(split), ADDED if weights.spec.bias == "none" else FOLDED)]
    if weights.spec.bias == "none":
        tried.reverse()
    for candidate, change in tried:
        if convention.refuses(candidate.spec) is None:
            return candidate, (change.format(name=convention.name), *_offset(candidate, convention))
    raise Unrepresentable(reason)


def _offset(weights: Weights, convention: Convention) -> tuple[str, ...]:
    """What storing the forget gate's bias less what the framework adds to it rounds off, if anything."""
    offset, spec = convention.forget_offset, weights.spec
    if not offset or spec.cell != "lstm":
        return ()
    gate = spec.form.gates.index("f")
    biases = [array[gate] for name, array in weights.arrays.items() if name.endswith("bias_ih")]
    worst = max(
        float(np.abs((bias - bias.dtype.type(offset)) + bias.dtype.type(offset) - bias).max()) for bias in biases
    )
    if not worst:
        return ()
    return (
        f"{convention.title} adds {offset:g} to the forget gate, so its bias is stored less {offset:g}, rounded by {worst:.1g}",
    )


def entries(weights: Weights, convention: str) -> dict[str, Array]:
    """The arrays of a file by name, in a convention or canonical."""
    return dict(weights.arrays) if convention == "canonical" else to_arrays(weights, convention=convention)
