"""Training parity: what is asked for, and what is handed out."""

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import multirnn_numpy
import numpy as np
import pytest
from parity_backends import (
    GRU,
    NUMPY,
    RNN,
    batch_of,
)

import multirnn as mr
from multirnn.numerics import TOLERANCE
from multirnn.parity import OPTIMISERS, Optimiser, train_parity


def test_a_spec_alone_is_enough_where_numpy_is_alone() -> None:
    code = """
import sys
for name in ("torch", "keras", "tensorflow", "jax"):
    sys.modules[name] = None
import multirnn as mr
from multirnn.parity import train_parity
parity = train_parity(mr.RecurrentSpec("gru", 5, 3))
assert parity.ok
print(parity)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert 'pip install "multirnn[torch]"' in done.stdout
    assert "adam(learning_rate=0.015625, beta_1=0.9, beta_2=0.999, epsilon=1e-08)" in done.stdout
    assert "mean of (sequence - target)²" in done.stdout


def test_all_is_stated() -> None:
    own = Optimiser("adam", learning_rate=0.25, beta_1=0.5, epsilon=1e-3)
    parity = train_parity(GRU, backends="numpy", optimisers=["sgd", own], steps=3)
    found = json.loads(parity.to_json())
    sgd, adam = found["optimisers"]
    assert (sgd["name"], sgd["learning_rate"]) == ("sgd", OPTIMISERS["sgd"].learning_rate)
    assert "momentum" not in sgd
    assert {name: adam[name] for name in own.hyper_parameters} == own.hyper_parameters
    assert adam["bound_eps"] == TOLERANCE["float64"] * adam["growth"]
    assert adam["growth"] >= 1
    assert mr.RecurrentSpec.from_dict(found["spec"]) == GRU
    (first, second) = found["rows"]
    assert first["losses"] == sgd["reference"]
    assert (first["verdict"], first["weights_eps"], first["residual_eps"]) == ("equal", 0.0, None)
    assert second["optimiser"]["beta_1"] == 0.5
    assert repr(parity) == str(parity)
    html = parity._repr_html_()
    assert html.count("<tr>") == 1 + 2
    assert "<td>numpy</td>" in html
    assert "mean of (sequence - target)²" in html


def test_the_learning_rate_of_all() -> None:
    parity = train_parity(GRU, backends="numpy", learning_rate=0.25, steps=2)
    assert {optimiser.learning_rate for optimiser in parity.optimisers.values()} == {0.25}


def test_own_data_and_weights() -> None:
    batch, weights = batch_of(GRU), mr.initialise(GRU, 3, scheme="keras")
    parity = train_parity(weights, x=batch.x, target=batch.target, lengths=batch.lengths, backends="numpy", steps=2)
    assert parity.ok
    layer = multirnn_numpy.BACKEND.build(weights)
    expected = multirnn_numpy.BACKEND.train(layer, batch, OPTIMISERS["sgd"], 2)
    assert np.array_equal(parity.reference["sgd"], expected)
    assert "target: given" in str(parity)


def test_what_stands_at_padding_and_rows_without_a_step_change_nothing() -> None:
    batch, rng = batch_of(GRU), np.random.default_rng(0)
    x, target = (np.where(batch.valid[..., None], array, np.nan) for array in (batch.x, batch.target))
    x, target = (np.concatenate([array, rng.standard_normal((1, *array.shape[1:]))]) for array in (x, target))
    first = train_parity(GRU, x=batch.x, target=batch.target, lengths=batch.lengths, backends="numpy", steps=2)
    second = train_parity(GRU, x=x, target=target, lengths=[*batch.lengths, 0], backends="numpy", steps=2)
    assert all(np.array_equal(first.reference[name], second.reference[name]) for name in OPTIMISERS)


def test_a_refusal_and_a_backend_that_cannot_train_are_rows() -> None:
    class Plain:
        """A backend without `train`."""

        name, differentiable = "plain", True
        refuses, build, read, versions = (
            staticmethod(getattr(NUMPY(), name)) for name in ("refuses", "build", "read", "versions")
        )

    class Picky(NUMPY):
        name = "picky"

        def refuses(self, spec: mr.RecurrentSpec) -> str:
            return "it never does"

    parity = train_parity(GRU, backends=[Plain(), Picky()], steps=2)
    assert not parity.ok
    assert [(row.backend, row.verdict) for row in parity.rows] == [("plain", "refuses"), ("picky", "refuses")]
    assert "plain: it has no method train" in str(parity)
    assert "picky: it never does" in str(parity)


NOTHING = np.zeros((2, 3, 5))
LINEAR = replace(RNN, activation="linear")
USED_WRONGLY: dict[str, tuple[mr.RecurrentSpec, dict[str, Any], str]] = {
    "optimiser": (
        RNN,
        {"optimisers": "adan"},
        "no optimiser named 'adan'; there are sgd, momentum, adam; did you mean",
    ),
    "none": (RNN, {"optimisers": ()}, "there is no optimiser to train with"),
    "two": (RNN, {"optimisers": ["adam", Optimiser("adam", 1)]}, "two optimisers are named 'adam'"),
    "number": (RNN, {"learning_rate": "fast"}, "learning_rate of an optimiser must be a number, not 'fast'"),
    "rate": (RNN, {"learning_rate": 0}, "learning_rate of an optimiser must be positive and finite, not 0"),
    "diverges": (LINEAR, {"learning_rate": 1e300}, "the training diverges: sgd"),
    "chaos": (
        replace(RNN, dtype="float32"),
        {"learning_rate": 1, "optimisers": "adam"},
        "magnifies rounding .* so that nothing can be told about it",
    ),
    "steps": (RNN, {"steps": 0}, "steps must be a positive integer, not 0"),
    "target": (RNN, {"x": NOTHING, "target": NOTHING}, r"the shape \(batch, time, 7\) = \(2, 3, 7\)"),
    "alone": (RNN, {"target": NOTHING}, "belong to an x"),
    "empty": (RNN, {"x": NOTHING, "lengths": [0, 0]}, "nothing to train on"),
    "unbatched": (RNN, {"x": NOTHING[0]}, r"x must have the shape \(batch, time, 5\)"),
    "dtype": (RNN, {"x": NOTHING.astype("float32")}, "x is float32"),
}


@pytest.mark.parametrize(("spec", "options", "sentence"), USED_WRONGLY.values(), ids=USED_WRONGLY.keys())
def test_used_wrongly(spec: mr.RecurrentSpec, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(mr.InvalidCall, match=sentence):
        train_parity(spec, backends="numpy", **options)


def test_a_spec_or_weights_are_trained() -> None:
    with pytest.raises(TypeError, match="takes a RecurrentSpec or Weights, not a str"):
        train_parity("gru")  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["momentum", "beta_1", "beta_2", "epsilon"])
def test_hyper_parameters_have_ranges(field: str) -> None:
    with pytest.raises(mr.InvalidCall, match=f"{field} of an optimiser must be"):
        Optimiser("adam", 0.1, **{field: -1.0})


def test_a_unit_alone_trains_too() -> None:
    """One unit strides its gates by 16 bytes in float32."""
    parity = train_parity(mr.RecurrentSpec("lstm", 5, 1), backends="numpy")
    assert {row.verdict for row in parity.rows} == {"equal"}
