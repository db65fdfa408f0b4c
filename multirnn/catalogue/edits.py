"""Edits of the weights as mistakes: by kind of array, by blocks of gates, and edits that are their own inverses."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from multirnn.mistakes import Change, Edit, Mistake, edited
from multirnn.spec import RecurrentSpec
from multirnn.weights import Array

__all__ = ["EVERYWHERE", "Applies", "Take", "each", "in_blocks", "mistake", "own_adjoint", "own_inverse", "zero"]

Applies = Callable[[RecurrentSpec], bool]


def mistake(
    name: str, family: str, says: str, fix: str, applies: Applies, edit: Edit, adjoint: Edit, undo: Edit | None = None
) -> Mistake:
    """A mistake in the weights: its edit, the adjoint, and the edit that undoes it in advance."""
    return Mistake(
        name,
        family,
        says,
        fix,
        applies,
        realise=Change.of_weights(edit, adjoint),
        undo=None if undo is None else edited(undo),
    )


def own_inverse(name: str, family: str, says: str, fix: str, applies: Applies, edit: Edit) -> Mistake:
    """An edit that rearranges or changes signs; it is its own inverse and adjoint."""
    return mistake(name, family, says, fix, applies, edit, edit, edit)


def own_adjoint(name: str, family: str, says: str, fix: str, applies: Applies, edit: Edit) -> Mistake:
    """An edit that drops values for good; it drops the same values of the gradient."""
    return mistake(name, family, says, fix, applies, edit, edit)


def each(kinds: tuple[str, ...], change: Callable[[Array], Array]) -> Edit:
    """Every array of these kinds changed."""
    return lambda spec, arrays: {
        name: change(array) if name.endswith(kinds) else array for name, array in arrays.items()
    }


Take = Callable[[RecurrentSpec, Array], Array]
EVERYWHERE = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def in_blocks(take: Take, kinds: Sequence[str] = EVERYWHERE) -> Edit:
    """An edit of every array of these kinds that has all gates, which a single recurrent candidate bias has not."""

    def edit(spec: RecurrentSpec, arrays: Mapping[str, Array]) -> dict[str, Array]:
        gates = len(spec.form.gates)
        return {
            name: take(spec, array) if len(array) == gates and name.endswith(tuple(kinds)) else array
            for name, array in arrays.items()
        }

    return edit


def zero(array: Array) -> Array:
    """The array zeroed."""
    return np.zeros_like(array)
