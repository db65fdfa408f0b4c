"""Training parity: what differs by convention is explained."""

from dataclasses import replace
from typing import Any

import multirnn_numpy
import numpy as np
import pytest
from multirnn_numpy import training
from multirnn_numpy.training import STEPS
from parity_backends import GRU, LSTM, RNN, Default, batch_of, by_name, only, trained

import multirnn as mr
from multirnn.parity import OPTIMISERS, Optimiser, Trained, train_parity


def explained(row: Trained) -> set[str]:
    """The causes, by a word of each."""
    words = {
        "biases": "of two biases",
        "epsilon": "by default, and the reference 1e-08",
        "hat": "adds epsilon to sqrt(v)",
    }
    words["rounded"] = "to float32"
    found = {name for name, word in words.items() if any(word in cause for cause in row.causes)}
    assert len(found) == len(row.causes)
    return found


EXPLAINED = {
    "nothing": (Default("own"), set()),
    "two biases": (Default("torch"), {"biases"}),
    "the default epsilon": (Default("own", epsilon=1e-6), {"epsilon"}),
    "the place of epsilon": (Default("own", form="keras"), {"hat"}),
    "rounded betas": (Default("own", scalars="float64"), {"rounded"}),
    "place and default": (Default("keras", epsilon=1e-7, form="keras"), {"epsilon", "hat"}),
    "all": (Default("torch", epsilon=1e-7, form="keras", scalars="float64"), {"biases", "epsilon", "hat", "rounded"}),
}


@pytest.mark.parametrize(("backend", "causes"), EXPLAINED.values(), ids=EXPLAINED.keys())
def test_the_fewest_causes_that_make_the_difference_vanish(backend: Any, causes: set[str]) -> None:
    parity = train_parity(RNN, backends=[backend], defaults=True)
    assert parity.ok
    row = by_name(parity)["adam"]
    assert row.verdict == ("explained" if causes else "equal"), str(parity)
    assert explained(row) == causes
    assert all(cause in str(parity).replace("\n", " ") for cause in row.causes)
    if causes:
        assert row.eps > 1000 * parity.bound("adam")
        assert row.residual <= parity.bound("adam")
    for name in ("sgd", "momentum"):
        assert explained(by_name(parity)[name]) <= causes & {"biases", "rounded"}


def test_defaults_are_not_taken_unless_asked_for() -> None:
    assert {row.verdict for row in only(Default("torch", epsilon=1e-6)).values()} == {"equal"}


def test_a_stack_without_biases_has_none_by_default() -> None:
    rows = only(Default("torch"), replace(RNN, bias="none"), defaults=True)
    assert {(row.verdict, row.bias) for row in rows.values()} == {("equal", "none")}


def test_one_bias_moves_half_as_far_as_two() -> None:
    row = only(Default("keras"), replace(RNN, bias="double"), defaults=True, optimisers="sgd")["sgd"]
    assert row.bias == "single"
    assert "one alone moves half as far as the sum of two" in row.causes[0]


@pytest.mark.parametrize("spec", [RNN, GRU, replace(LSTM, dtype="float64")], ids=lambda spec: spec.cell)
@pytest.mark.parametrize("name", OPTIMISERS)
def test_the_sum_of_two_biases_moves_twice_as_far_in_a_step(name: str, spec: mr.RecurrentSpec) -> None:
    """Under Adam as well: each of the two has the gradient of the one. Of a GRU's candidate there are two anyway."""
    backend, batch = multirnn_numpy.BACKEND, batch_of(spec)
    start = mr.initialise(replace(spec, bias="single"))
    moved = []
    for weights in (start, mr.split_biases(start)):
        layer = backend.build(weights)
        backend.train(layer, batch, OPTIMISERS[name], 1)
        after = mr.fold_biases(layer.weights())
        moved.append({name: after.arrays[name] - array for name, array in start.arrays.items()})
    for array, (one, two) in {key: (moved[0][key], moved[1][key]) for key in start.spec.shapes}.items():
        times = np.ones((len(one), *[1] * (one.ndim - 1)))
        if array.endswith("bias_ih"):
            times[: 2 if spec.cell == "gru" else len(one)] = 2
        scale = np.abs(start.arrays[array]).max()  # what was added is known to a rounding of the weight itself
        assert mr.difference(scale + two, scale + times * one).normwise <= mr.tolerance("float64"), array


def test_a_doubled_gradient_is_a_doubled_step_but_for_adam() -> None:
    rng = np.random.default_rng(0)
    g = rng.standard_normal(7)
    for name, times in {"sgd": 2, "momentum": 2, "adam": 1}.items():
        optimiser = replace(OPTIMISERS[name], epsilon=1e-30)
        steps = []
        for gradient in (g, 2 * g):
            w, m, v = np.zeros((3, 7))
            for t in (1, 2, 3):
                STEPS["torch"][name](optimiser, training._scalars(optimiser, t, ""), w, gradient, m, v)
            steps.append(w)
        assert mr.difference(steps[1], times * steps[0]).normwise <= mr.tolerance("float64")


def test_both_forms_of_momentum_are_one_while_the_learning_rate_is_constant() -> None:
    rng = np.random.default_rng(0)
    gradients = rng.standard_normal((5, 7))
    for rates, same in (((0.5,) * 5, True), ((0.5, 0.5, 0.25, 0.25, 0.25), False)):
        ends = []
        for form in ("torch", "keras"):
            w, m, v = np.zeros((3, 7))
            for t, (rate, g) in enumerate(zip(rates, gradients, strict=True), 1):
                optimiser = Optimiser("momentum", learning_rate=rate)
                STEPS[form]["momentum"](optimiser, training._scalars(optimiser, t, ""), w, g, m, v)
            ends.append(w)
        assert (mr.difference(*ends).normwise <= mr.tolerance("float64")) is same


def test_epsilon_hat_is_another_epsilon_in_every_step() -> None:
    """What the sentence says: sqrt(v) + e is sqrt(v / c) + e / sqrt(c), with c the correction 1 - beta_2^t."""
    rng = np.random.default_rng(0)
    optimiser = Optimiser("adam", learning_rate=0.5, epsilon=0.01)
    (w, hat), m, v = np.zeros((2, 7)), np.zeros((2, 7)), np.zeros((2, 7))
    for t in range(1, 6):
        scalars = training._scalars(optimiser, t, "")
        other = replace(optimiser, epsilon=optimiser.epsilon * (1 - optimiser.beta_2**t) ** -0.5)
        g = rng.standard_normal(7)
        STEPS["keras"]["adam"](optimiser, scalars, hat, g, m[0], v[0])
        STEPS["torch"]["adam"](other, scalars, w, g, m[1], v[1])
    assert mr.difference(hat, w).normwise <= mr.tolerance("float64")


def test_torch_by_default_trains_two_biases() -> None:
    pytest.importorskip("torch")
    for row in by_name(trained(RNN, "torch", True)).values():
        assert (row.verdict, row.bias, explained(row)) == ("explained", "double", {"biases"})
    assert {row.verdict for row in trained(RNN, "torch").rows} == {"equal"}


def test_keras_has_its_own_epsilon_and_its_own_place_for_it() -> None:
    pytest.importorskip("keras")
    backend: Any = mr.backend("keras")
    if backend.engine != "tensorflow":
        pytest.skip("Keras computes in float64 on TensorFlow alone")
    rows = by_name(trained(RNN, "keras", True))
    assert rows["adam"].optimiser is not None
    assert rows["adam"].optimiser.epsilon == 1e-7
    assert explained(rows["adam"]) == {"epsilon", "hat", "rounded"}
    assert explained(rows["momentum"]) == {"rounded"}
    assert explained(by_name(trained(RNN, "keras"))["adam"]) == {"hat", "rounded"}
    assert rows["sgd"].verdict == "equal"


def test_jax_writes_adam_as_torch_does() -> None:
    pytest.importorskip("jax")
    for defaults in (False, True):
        assert {row.verdict for row in trained(RNN, "jax", defaults).rows} == {"equal"}
