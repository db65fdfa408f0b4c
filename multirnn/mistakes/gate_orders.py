"""Mistakes in the order of the gates: every permutation of the blocks, in all arrays or in some of them."""

from collections.abc import Iterator
from itertools import permutations

import numpy as np

from multirnn.cells import CELLS
from multirnn.mistakes.change import Mistake
from multirnn.mistakes.edits import BIASES, MATRICES, in_blocks, of_weights
from multirnn.spec import RecurrentSpec
from multirnn.weights import Array

__all__ = ["GATE_ORDERS"]

KNOWN = {  # beside the canonical order, which PyTorch and cuDNN have, and Keras for the LSTM
    "i o f g": ", the order of ONNX (i o f c)",
    "i g f o": ", the order of TensorFlow 1 (i j f o) and Haiku",
    "i f o g": ", the order of MIOpen (i f o c)",
    "z r n": ", the order of Keras and ONNX (z r h)",
    # The inverse of ONNX's order: its arrays taken as they are. The other orders are their own inverses.
    "i g o f": ", as if ONNX's blocks (i o f c) were i f c o",
}
# One part alone is forgotten or converted twice, with the order of a framework.
PARTS = {"weight_ih": ("weight_ih",), "weight_hh": ("weight_hh",), "the biases": BIASES}


def _orders() -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Every wrong order of the gates of a cell, and its name."""
    for cell in ("lstm", "gru"):
        gates = CELLS[cell].gates
        for order in list(permutations(range(len(gates))))[1:]:
            yield cell, order, " ".join(gates[gate] for gate in order)


def _order(cell: str, order: tuple[int, ...], read: str, part: str = "") -> Mistake:
    """The blocks read in this order, in all arrays or in one part of them."""
    kinds = PARTS.get(part, MATRICES + BIASES)
    # Block k is taken for gate order[k], so gate order[k] gets what is stored at k.
    wrong = in_blocks(lambda spec, array: array[np.argsort(order)], kinds)
    right = in_blocks(lambda spec, array: array[np.array(order)], kinds)
    return Mistake(
        f"gates {read}{f' in {part}' if part else ''}",
        f"reads the {cell.upper()} blocks{f' of {part}' if part else ''} as {read}{KNOWN.get(read, '')}; they are stored "
        f"{' '.join(CELLS[cell].gates)}",
        f"{_moved(order, read)} of {part or 'weight_ih, weight_hh and the biases'}",
        of_weights(wrong, right, undo=right),
        lambda spec: (
            spec.cell == cell
            and (part != "the biases" or spec.bias != "none")
            and not (read == "g f i o" and not part and spec.activation == spec.recurrent_activation)  # i * g = g * i
        ),
        "gates",
    )


def _moved(order: tuple[int, ...], read: str) -> str:
    """The fix: how to reorder canonical blocks for a reader that expects another order."""
    places = [place for place, gate in enumerate(order) if place != gate]
    if len(places) > 2:
        return f"take the blocks {', '.join(map(str, order))}, so that they stand {read},"
    if places == [0, 1] or places == [len(order) - 2, len(order) - 1]:
        return f"swap the {'last' if places[0] else 'first'} two blocks"
    return f"swap the {' and '.join(('first', 'second', 'third', 'fourth')[place] for place in places)} blocks"


def _unit_by_unit(spec: RecurrentSpec, array: Array) -> Array:
    gates, hidden, *_ = array.shape
    return array.reshape(hidden, gates, *array.shape[2:]).swapaxes(0, 1)


GATE_ORDERS = (
    *(_order(*wrong) for wrong in _orders()),
    *(_order(*wrong, part) for wrong in _orders() if wrong[2] in KNOWN for part in PARTS),
    Mistake(
        "gates interleaved",
        "reads the gates unit by unit, as the interleaved layouts of fused kernels have them; they are stored gate by "
        "gate, hidden_size rows each",
        "reshape to (gates, hidden_size) where (hidden_size, gates) was read",
        of_weights(in_blocks(_unit_by_unit), undo=True),
        lambda spec: len(spec.form.gates) > 1 and spec.hidden_size > 1,
        "gates",
    ),
)
