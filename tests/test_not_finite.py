"""NaN and infinity: the same in the same places is equal, to every judge, and JSON has none of them."""

import json
from typing import Any

import numpy as np
import pytest

import multirnn as mr
from multirnn.numerics import distances, magnitude
from multirnn.parity import train_parity

SPECS = {
    "simple_rnn": mr.RecurrentSpec("simple_rnn", 5, 4),
    "lstm": mr.RecurrentSpec("lstm", 5, 4, num_layers=2, bidirectional=True),
    "gru": mr.RecurrentSpec("gru", 5, 4),
    "relu": mr.RecurrentSpec("simple_rnn", 5, 4, num_layers=2, activation="relu"),
}
NUMBERS = [np.nan, np.inf, -np.inf]


class Spoilt:
    """A layer of NumPy's with one number of its output changed."""

    def __init__(self, layer: Any, number: float) -> None:
        self.spec, self.layer, self.number = layer.spec, layer, number

    def __call__(self, x: Any, state: Any = None, *, lengths: Any = None) -> mr.Output:
        output = self.layer(x, state, lengths=lengths)
        sequence = output.sequence.copy()
        sequence[:1, :1, :1] = self.number
        return output._replace(sequence=sequence)

    def vjp(self, *args: Any, **options: Any) -> Any:
        return self.layer.vjp(*args, **options)


def call(spec: mr.RecurrentSpec, number: float) -> Any:
    x = np.random.default_rng(0).standard_normal((3, 6, 5)).astype(spec.dtype)
    x[1, 2, 1] = number
    return x


def no_constant(name: str) -> Any:
    raise AssertionError(f"{name} stands in JSON")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("spec", SPECS.values(), ids=list(SPECS))
def test_the_same_in_the_same_places_is_equal(spec: mr.RecurrentSpec, number: float) -> None:
    weights, x = mr.initialise(spec, 0), call(spec, number)
    # At NaN the reference's relu has the slope 0, as JAX's and TensorFlow's; PyTorch's has 1.
    a, b = mr.build(weights, "numpy"), mr.build(weights, "jax" if spec.activation == "relu" else "torch")
    with np.errstate(all="raise"):
        divergence, diagnosis = mr.first_divergence(a, b, x), mr.diagnose(a, b, x=x)
    assert divergence.kind == "none"
    assert diagnosis.equal
    for found in (divergence, diagnosis):
        json.loads(found.to_json(), parse_constant=no_constant)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("spoilt", NUMBERS)
@pytest.mark.parametrize("number", [1.0, np.nan])
@pytest.mark.parametrize("spec", SPECS.values(), ids=list(SPECS))
def test_what_is_not_finite_on_one_side_differs(spec: mr.RecurrentSpec, number: float, spoilt: float) -> None:
    layer, x = mr.build(mr.initialise(spec, 0), "numpy"), call(spec, number)
    found = mr.first_divergence(layer, Spoilt(layer, spoilt), x)
    assert (found.kind, found.row, found.step) == ("mistake", 0, 0)
    json.loads(found.to_json(), parse_constant=no_constant)
    diagnosis = mr.diagnose(layer, Spoilt(layer, spoilt), x=x)
    assert not diagnosis.equal
    assert "inf" in str(found)
    json.loads(diagnosis.to_json(), parse_constant=no_constant)


def test_nan_is_not_infinity() -> None:
    x = call(SPECS["relu"], 1.0)
    layer = mr.build(mr.initialise(SPECS["relu"], 0), "numpy")
    a, b = Spoilt(layer, np.nan), Spoilt(layer, np.inf)
    assert mr.first_divergence(a, b, x).kind == "mistake"
    assert mr.first_divergence(a, a, x).kind == "none"


def test_a_layer_that_hands_back_no_state_and_computes_nan() -> None:
    """What is not handed back is unknown, and what is NaN is not."""
    spec, x = SPECS["lstm"], call(SPECS["lstm"], np.nan)
    layer = mr.build(mr.initialise(spec, 0), "numpy")

    def right(x: Any, state: Any) -> Any:
        return layer(x, mr.State(*state)).sequence

    def wrong(x: Any, state: Any) -> Any:
        return np.nan_to_num(right(x, state))

    for function, kind in ((right, "none"), (wrong, "mistake")):
        adopted = mr.adopt(function, spec=spec)
        assert mr.first_divergence(layer, adopted, x).kind == kind


def test_training_that_ends_in_nan_differs() -> None:
    class Diverging:
        name, differentiable = "diverging", True
        refuses, build, read, versions = (
            staticmethod(getattr(mr.backend("numpy"), n)) for n in ("refuses", "build", "read", "versions")
        )

        def train(self, layer: Any, *args: Any, **options: Any) -> Any:
            return np.full_like(mr.backend("numpy").train(layer, *args, **options), np.nan)  # type: ignore[attr-defined]

        def default_epsilon(self) -> float:
            return 1e-8

    parity = train_parity(SPECS["gru"], backends=["numpy", Diverging()], steps=2, optimisers="sgd")  # type: ignore[list-item]
    assert [row.verdict for row in parity.rows] == ["equal", "differs"]
    read = json.loads(parity.to_json(), parse_constant=no_constant)
    assert read["rows"][1]["losses"] == [None, None]
    assert read["rows"][1]["curve_eps"] is None


def test_distances_and_magnitude() -> None:
    actual = np.array([1, np.nan, np.inf, -np.inf, np.inf, np.nan, 2], "float32")
    expected = np.array([3, np.nan, np.inf, -np.inf, -np.inf, np.inf, 2.0])
    assert distances(actual, expected).tolist() == [2, 0, 0, 0, np.inf, np.inf, 0]
    assert magnitude(expected, "float32") == 3
    assert magnitude(np.array([np.nan, np.inf]), "float64") == 0
    assert magnitude(np.array([1e39, -5.0]), "float32") == 5
    assert magnitude(np.array([1e39, -5.0]), "float64") == 1e39
