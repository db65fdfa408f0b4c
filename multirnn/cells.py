"""The cells as data: gates, states, equations, default activations and biases.

Notation, the same in every cell: `x` is the input of a step and `h` (and `c`) the state before it; `W` and `U` are
`weight_ih` and `weight_hh`, `b` and `d` are `bias_ih` and `bias_hh`, indexed by gate; `s` is the recurrent
activation, `a` the activation, `*` the elementwise product. A bias that the spec does not have is zero.

Sources: Elman 1990; Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000; Cho et al. 2014 (reset
before the recurrent product) and the cuDNN form (reset after it).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

__all__ = ["CELLS", "FORMS", "Bias", "Cell", "CellName", "cell_form"]

CellName = Literal["simple_rnn", "lstm", "gru"]
Bias = Literal["none", "single", "double"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One recurrent cell; `name` and `reset_after` are those of a `RecurrentSpec`."""

    name: CellName
    form: str  # its name and, for the GRU, the place of its reset gate: the one spelling of `FORMS`
    title: str  # what people call it
    gates: tuple[str, ...]  # in canonical order, the leading axis of every weight array
    candidate: str  # the gate that goes through `activation`; all others go through `recurrent_activation`
    states: tuple[str, ...]  # carried from step to step
    equations: tuple[str, ...]  # of one step
    default_bias: Bias = "single"  # when a spec names none
    recurrent_candidate_bias: bool = False  # whether it cannot be folded into the input bias
    reset_after: bool = True


SIMPLE_RNN = Cell(
    "simple_rnn", "simple_rnn", "simple RNN (Elman)", ("h",), "h", ("h",), equations=("h' = a(W x + b + U h + d)",)
)

LSTM = Cell(
    name="lstm",
    form="lstm",
    title="LSTM",
    gates=("i", "f", "g", "o"),
    candidate="g",
    states=("h", "c"),
    equations=(
        "i  = s(W_i x + b_i + U_i h + d_i)",
        "f  = s(W_f x + b_f + U_f h + d_f)",
        "g  = a(W_g x + b_g + U_g h + d_g)",
        "o  = s(W_o x + b_o + U_o h + d_o)",
        "c' = f * c + i * g",
        "h' = o * a(c')",
    ),
)

GRU_RESET_AFTER = Cell(
    name="gru",
    form="gru reset after",
    title="GRU, reset after the recurrent product",
    gates=("r", "z", "n"),
    candidate="n",
    states=("h",),
    equations=(
        "r  = s(W_r x + b_r + U_r h + d_r)",
        "z  = s(W_z x + b_z + U_z h + d_z)",
        "n  = a(W_n x + b_n + r * (U_n h + d_n))",
        "h' = (1 - z) * n + z * h",
    ),
    default_bias="double",
    recurrent_candidate_bias=True,
)

GRU_RESET_BEFORE = replace(
    GRU_RESET_AFTER,
    form="gru reset before",
    title="GRU, reset before the recurrent product",
    equations=(*GRU_RESET_AFTER.equations[:2], "n  = a(W_n x + b_n + U_n (r * h) + d_n)", GRU_RESET_AFTER.equations[3]),
    default_bias="single",
    recurrent_candidate_bias=False,
    reset_after=False,
)

CELLS: Mapping[str, Cell] = MappingProxyType({"simple_rnn": SIMPLE_RNN, "lstm": LSTM, "gru": GRU_RESET_AFTER})
FORMS: Mapping[str, Cell] = MappingProxyType(
    {cell.form: cell for cell in (SIMPLE_RNN, LSTM, GRU_RESET_AFTER, GRU_RESET_BEFORE)}
)
"""Every cell in each of its forms."""


def cell_form(name: str, reset_after: bool = True) -> Cell:
    """The cell of this name, in the form that `reset_after` selects if the cell has two."""
    return GRU_RESET_BEFORE if name == "gru" and not reset_after else CELLS[name]
