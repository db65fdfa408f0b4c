"""Mistakes in the order of the gates: every permutation of the blocks, in all arrays or in some of them."""

from collections.abc import Mapping, Sequence
from itertools import permutations

import numpy as np

from multirnn.catalogue.edits import EVERYWHERE, Take, in_blocks
from multirnn.cells import CELLS
from multirnn.mistakes import Change, Mistake, edited
from multirnn.spec import RecurrentSpec
from multirnn.weights import Array

__all__ = ["GATES"]

KNOWN = {  # beside the canonical order, which PyTorch and cuDNN have, and Keras for the LSTM
    "i o f g": ", the order of ONNX (i o f c)",
    "i g f o": ", the order of TensorFlow 1 (i j f o) and Haiku",
    "i f o g": ", the order of MIOpen (i f o c)",
    "z r n": ", the order of Keras and ONNX (z r h)",
    # The inverse of ONNX's order: its arrays taken as they are. The other orders are their own inverses.
    "i g o f": ", as if ONNX's blocks (i o f c) were i f c o",
}
PARTS: Mapping[str, tuple[str, ...]] = {
    "weight_ih": ("weight_ih",),
    "weight_hh": ("weight_hh",),
    "the biases": ("bias_ih", "bias_hh"),
}


def _taken(order: Sequence[int]) -> Take:
    index = np.array(order)
    return lambda spec, array: array[index]


def _order(cell: str, order: tuple[int, ...], part: str = "") -> Mistake:
    """The blocks read in this order, in all arrays or in one part of them."""
    stored = " ".join(CELLS[cell].gates)
    read = " ".join(CELLS[cell].gates[gate] for gate in order)
    kinds = PARTS.get(part, EVERYWHERE)
    # Block k is taken for gate order[k], so gate order[k] gets what is stored at k.
    wrong, right = in_blocks(_taken(np.argsort(order).tolist()), kinds), in_blocks(_taken(order), kinds)
    return Mistake(
        name=f"gates {read}{f' in {part}' if part else ''}",
        family="gates",
        says=f"reads the {cell.upper()} blocks{f' of {part}' if part else ''} as {read}{KNOWN.get(read, '')}; they are stored {stored}",
        fix=f"{_moved(order, read)} of {part or 'weight_ih, weight_hh and the biases'}",
        applies=lambda spec: (
            spec.cell == cell
            and (part != "the biases" or spec.bias != "none")
            and not (read == "g f i o" and not part and spec.activation == spec.recurrent_activation)  # i * g = g * i
        ),
        realise=Change.of_weights(wrong, right),
        undo=edited(right),
    )


def _moved(order: tuple[int, ...], read: str) -> str:
    """The fix: how to reorder canonical blocks for a reader that expects another order."""
    places = [place for place, gate in enumerate(order) if place != gate]
    if len(places) == 2:
        ordinals = ("first", "second", "third", "fourth")
        first, second = places
        which = "first two" if (first, second) == (0, 1) else f"{ordinals[first]} and {ordinals[second]}"
        if (first, second) == (len(order) - 2, len(order) - 1):
            which = "last two"
        return f"swap the {which} blocks"
    return f"take the blocks {', '.join(map(str, order))}, so that they stand {read},"


def _unit_by_unit(spec: RecurrentSpec, array: Array) -> Array:
    gates, hidden, *_ = array.shape
    return array.reshape(hidden, gates, *array.shape[2:]).swapaxes(0, 1)


def _gate_by_gate(spec: RecurrentSpec, array: Array) -> Array:
    return array.swapaxes(0, 1).reshape(array.shape)


def _interleaved() -> Mistake:
    wrong, right = in_blocks(_unit_by_unit), in_blocks(_gate_by_gate)
    return Mistake(
        name="gates interleaved",
        family="gates",
        says="reads the gates unit by unit, as the interleaved layouts of fused kernels have them; they are stored gate "
        "by gate, hidden_size rows each",
        fix="reshape to (gates, hidden_size) where (hidden_size, gates) was read",
        applies=lambda spec: len(spec.form.gates) > 1 and spec.hidden_size > 1,
        realise=Change.of_weights(wrong, right),
        undo=edited(right),
    )


def _wrong_orders(cell: str) -> list[tuple[int, ...]]:
    return list(permutations(range(len(CELLS[cell].gates))))[1:]


def _known(cell: str, order: tuple[int, ...]) -> bool:
    return " ".join(CELLS[cell].gates[gate] for gate in order) in KNOWN


GATES: tuple[Mistake, ...] = (
    *(_order(cell, order) for cell in ("lstm", "gru") for order in _wrong_orders(cell)),
    # One part alone is forgotten or converted twice, with the order of a framework.
    *(
        _order(cell, order, part)
        for cell in ("lstm", "gru")
        for order in _wrong_orders(cell)
        if _known(cell, order)
        for part in PARTS
    ),
    _interleaved(),
)
