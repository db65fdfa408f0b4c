"""NaN and infinity that go in, or arise inside, are where the reference has them: NumPy in float64."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import multirnn as mr
from multirnn import cells
from multirnn.comparison import widened
from multirnn.numerics import draw_call

HARD = mr.Activation("hard_sigmoid", 0.2, 0.5)
ACTIVATIONS = ["tanh", "relu", "sigmoid", "linear", "elu", "softsign", HARD]
GATES = ["sigmoid", HARD, "tanh", "relu"]
INF, NAN = float("inf"), float("nan")


def specs(form: cells.Cell) -> Iterator[mr.RecurrentSpec]:
    for activation in ACTIVATIONS:
        for gate in GATES if len(form.gates) > 1 else ["sigmoid"]:
            options: dict[str, Any] = {"activation": activation, "recurrent_activation": gate}
            yield mr.RecurrentSpec(form.name, 3, 5, bidirectional=True, reset_after=form.reset_after, **options)


def calls(spec: mr.RecurrentSpec) -> Iterator[tuple[np.ndarray, mr.State, Any]]:
    """NaN and infinities in x, such that inf - inf arises too, and in the state; in full rows and in ragged ones."""
    x, state, lengths = draw_call(spec)
    for places in (
        {(1, 2, 0): NAN},
        {(2, 1, 1): INF},
        {(2, 2, 2): -INF},
        {(2, 1, 1): INF, (2, 1, 2): INF, (0, 3, 0): INF, (0, 3, 1): -INF},
    ):
        wrong = x.copy()
        for place, value in places.items():
            wrong[place] = value
        yield wrong, state, None
        yield wrong, state, lengths
    h = state.h.copy()
    h[0, 1, 2], h[1, 0, 1] = INF, NAN
    yield x, mr.State(h, state.c), None
    yield x, mr.State(h, state.c), lengths


@pytest.mark.parametrize("implementation", ["native", "fast"])
@pytest.mark.parametrize("name", ["numpy", "jax"])
@pytest.mark.parametrize("form", cells.FORMS)
def test_nan_and_infinity_are_where_the_reference_has_them(form: str, name: str, implementation: str) -> None:
    for spec in specs(cells.FORMS[form]):
        weights = mr.initialise(spec, seed=3)
        layer = mr.build(weights, name, implementation=implementation)
        reference = mr.build(weights.astype("float64"), "numpy")
        for x, state, lengths in calls(spec):
            found, right = layer(x, state, lengths=lengths), reference(x.astype("f8"), widened(state), lengths=lengths)
            for a, b in zip((found.sequence, *found.state.parts), (right.sequence, *right.state.parts), strict=True):
                np.testing.assert_array_equal(np.isnan(a), np.isnan(b), str(spec))
                np.testing.assert_array_equal(np.isposinf(a), np.isposinf(b), str(spec))
                np.testing.assert_array_equal(np.isneginf(a), np.isneginf(b), str(spec))


@pytest.mark.parametrize("implementation", ["native", "fast"])
@pytest.mark.parametrize("name", ["numpy", "jax"])
def test_nan_in_padding_and_in_empty_rows_goes_nowhere(name: str, implementation: str) -> None:
    for form in cells.FORMS.values():
        spec = mr.RecurrentSpec(form.name, 3, 5, bidirectional=True, reset_after=form.reset_after, activation="relu")
        layer = mr.build(spec, name, seed=3, implementation=implementation)
        x, state, lengths = draw_call(spec)
        padding = np.arange(x.shape[1]) >= lengths[:, None]
        dirty = np.where(padding[:, :, None], np.float32(NAN), x)
        clean, found = layer(x, state, lengths=lengths), layer(dirty, state, lengths=lengths)
        cotangent = mr.Output(np.where(padding[:, :, None], np.float32(INF), np.ones_like(clean.sequence)), clean.state)
        gradients = layer.vjp(dirty, state, lengths=lengths, cotangent=cotangent)
        np.testing.assert_array_equal(found.sequence, clean.sequence)
        np.testing.assert_array_equal(found.state.h, clean.state.h)
        for array in (gradients.x, gradients.state.h, *gradients.weights.values()):
            assert np.isfinite(array).all()
