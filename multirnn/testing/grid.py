"""The specs that cover every pair of choices: cells, bias forms, stacks, directions, dtypes and activations."""

from collections.abc import Iterator

from multirnn.activations import Activation
from multirnn.cells import FORMS
from multirnn.spec import BIASES, DType, RecurrentSpec

__all__ = ["HIDDEN_SIZE", "INPUT_SIZE", "covering_specs"]

# Distinct primes, and distinct from the batch 5 and the time 7 of `draw_call`: two axes that change places show.
INPUT_SIZE, HIDDEN_SIZE = 3, 11
STACKS: tuple[tuple[int, bool, DType], ...] = (
    (1, False, "float32"),
    (2, True, "float32"),
    (1, True, "float64"),
    (3, False, "float64"),
)


def covering_specs() -> Iterator[RecurrentSpec]:
    """A grid over cells, bias forms, stacks, directions, dtypes and activations: every pair of them that can meet."""
    for form in FORMS.values():
        for bias in BIASES:
            for num_layers, bidirectional, dtype in STACKS:
                yield RecurrentSpec(
                    form.name,
                    INPUT_SIZE,
                    HIDDEN_SIZE,
                    num_layers=num_layers,
                    bidirectional=bidirectional,
                    bias=bias,
                    reset_after=form.reset_after,
                    dtype=dtype,
                )
    activations: tuple[str | Activation, ...] = (
        "relu",
        "sigmoid",
        "linear",
        "softsign",
        Activation("elu", alpha=0.7),
        Activation("hard_sigmoid", alpha=0.2, beta=0.5),
    )
    for place, activation in enumerate(activations):
        for form in FORMS.values():
            # Gates go through the activations in another order than the candidate, so that no gate is like it.
            recurrent = "sigmoid" if len(form.gates) == 1 else activations[(place + 1) % len(activations)]
            yield RecurrentSpec(
                form.name,
                INPUT_SIZE,
                HIDDEN_SIZE,
                reset_after=form.reset_after,
                activation=activation,
                recurrent_activation=recurrent,
                dtype="float64",
            )
    for form in FORMS.values():
        # As wide as its input: a matrix that was not transposed, or another layer's, fits.
        yield RecurrentSpec(form.name, HIDDEN_SIZE, HIDDEN_SIZE, num_layers=2, reset_after=form.reset_after)
        # Orders of layers and directions that are alike in two layers.
        yield RecurrentSpec(
            form.name, INPUT_SIZE, HIDDEN_SIZE, num_layers=3, bidirectional=True, reset_after=form.reset_after
        )
        # One unit: arrays whose gates lie apart by odd strides, for which NumPy and BLAS have loops of their own.
        yield RecurrentSpec(form.name, INPUT_SIZE, 1, reset_after=form.reset_after)
    for slope in (0.2, 1 / 6):
        gate = Activation("hard_sigmoid", alpha=slope, beta=0.5)
        yield RecurrentSpec("lstm", INPUT_SIZE, HIDDEN_SIZE, recurrent_activation=gate)
        yield RecurrentSpec("gru", INPUT_SIZE, HIDDEN_SIZE, recurrent_activation=gate, bidirectional=True)
