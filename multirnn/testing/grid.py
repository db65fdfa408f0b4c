"""The specs that cover every pair of choices: cells, bias forms, stacks, directions, dtypes and activations."""

from collections.abc import Iterator
from typing import Any

from multirnn.activations import Activation
from multirnn.cells import FORMS, Cell
from multirnn.spec import BIASES, RecurrentSpec

__all__ = ["HIDDEN_SIZE", "INPUT_SIZE", "covering_specs"]

# Distinct primes, and distinct from the batch 5 and the time 7 of `draw_call`: swapped axes show.
INPUT_SIZE, HIDDEN_SIZE = 3, 11


def covering_specs() -> Iterator[RecurrentSpec]:
    """A grid over cells, bias forms, stacks, directions, dtypes and activations: every pair of them that can meet."""
    stacks = (1, False, "float32"), (2, True, "float32"), (1, True, "float64"), (3, False, "float64")
    for form in FORMS.values():
        for bias in BIASES:
            for num_layers, bidirectional, dtype in stacks:
                yield _spec(form, num_layers=num_layers, bidirectional=bidirectional, bias=bias, dtype=dtype)
    activations: list[str | Activation] = ["relu", "sigmoid", "linear", "softsign"]
    activations += [Activation("elu", alpha=0.7), Activation("hard_sigmoid", alpha=0.2, beta=0.5)]
    for place, activation in enumerate(activations):
        for form in FORMS.values():
            # The gates take the next activation, so that none equals the candidate's.
            recurrent = "sigmoid" if len(form.gates) == 1 else activations[(place + 1) % len(activations)]
            yield _spec(form, activation=activation, recurrent_activation=recurrent, dtype="float64")
    for form in FORMS.values():
        # As wide as its input: a matrix that was not transposed, or another layer's, fits.
        yield _spec(form, input_size=HIDDEN_SIZE, num_layers=2)
        # Orders of layers and directions that coincide in two layers.
        yield _spec(form, num_layers=3, bidirectional=True)
        # One unit: NumPy and BLAS have loops of their own for the odd strides between its gates.
        yield _spec(form, hidden_size=1)
    for slope in (0.2, 1 / 6):
        gate = Activation("hard_sigmoid", alpha=slope, beta=0.5)
        yield RecurrentSpec("lstm", INPUT_SIZE, HIDDEN_SIZE, recurrent_activation=gate)
        yield RecurrentSpec("gru", INPUT_SIZE, HIDDEN_SIZE, recurrent_activation=gate, bidirectional=True)


def _spec(form: Cell, *, input_size: int = INPUT_SIZE, hidden_size: int = HIDDEN_SIZE, **fields: Any) -> RecurrentSpec:
    return RecurrentSpec(form.name, input_size, hidden_size, reset_after=form.reset_after, **fields)
