"""`mutation_score`: what it counts, how it prints, and what it refuses."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import multirnn as mr
from multirnn.mistakes import MISTAKES
from multirnn.testing import assert_layers_agree, mutation_score

RIGHT = mr.backend("numpy")

GRU = mr.RecurrentSpec("gru", 3, 4, dtype="float64")


def with_constants(backend: Any) -> None:
    """As the node tests of ONNX do: all weights 0.1, no biases to speak of, a state of zero, outputs alone."""
    constant = mr.Weights(GRU, {name: np.full(shape, 0.1) for name, shape in GRU.shapes.items()})
    x = np.array([[[1.0, 2.0, 3.0]], [[4.0, 5.0, 6.0]]])
    expected = RIGHT.build(constant)(x)
    output = backend.build(constant)(x)
    np.testing.assert_allclose(output.sequence, expected.sequence, rtol=1e-3)


def with_drawn_numbers(backend: Any) -> None:
    weights = mr.initialise(GRU, seed=1)
    x = np.random.default_rng(2).standard_normal((3, 5, 3))
    for row in (
        mr.compare(weights, backends=[backend], seed=2).rows[0],
        mr.compare(weights, x, backends=[backend]).rows[0],  # without an initial state
    ):
        assert row.verdict == "equal", row.reason


def test_constant_weights_see_little_and_drawn_ones_everything() -> None:
    constants, drawn = mutation_score(with_constants), mutation_score(with_drawn_numbers)
    print(constants)
    print(drawn)
    assert drawn.fraction == 1
    assert not drawn.survivors
    assert constants.fraction < 0.5
    orders = {name for name in MISTAKES if re.fullmatch("gates [rzn] [rzn] [rzn]", name)}
    assert orders | {"recurrent kernel transposed", "biases swapped"} <= set(constants.survivors)
    assert set(constants.killed) | set(constants.survivors) == set(drawn.killed)


def test_held_against_another_layer_drawn_numbers_see_everything_too() -> None:
    weights = mr.initialise(GRU, seed=1)
    seen = ("gates z r n", "mask one step too long", "gradient truncated half-way", "output rounded to float32")
    score = mutation_score(
        lambda backend: assert_layers_agree(backend.build(weights), RIGHT.build(weights)), mistakes=seen
    )
    assert tuple(score.killed) == seen


def test_a_score_is_read_as_a_sentence_and_a_list() -> None:
    score = mutation_score(with_constants, mistakes=["gates z r n", "reset before", "padding run through"])
    assert str(score).splitlines() == [
        "kills 1 of 3 mutants of numpy (33%)",
        "",
        "survivors seen in outputs (1):",
        f"  gates z r n: {MISTAKES['gates z r n'].says}",
        "",
        "survivors seen only in calls with lengths (1):",
        "  padding run through: runs through the padding as if it were data",
    ]
    assert '"fraction": 0.333' in score.to_json()
    assert score.killed["reset before"].startswith("AssertionError")


def test_a_score_is_of_the_mistakes_that_the_check_can_meet() -> None:
    lstm = mutation_score(
        lambda backend: backend.build(mr.initialise(mr.RecurrentSpec("lstm", 3, 4))),
        mistakes=["gates z r n", "gates g i f o"],
    )
    assert list(lstm.survivors) == ["gates g i f o"]
    with pytest.raises(mr.InvalidCall, match="none of the 1 mistakes"):
        mutation_score(with_constants, mistakes=["gates g i f o"])


def test_what_a_framework_cannot_do_is_reported_apart() -> None:
    pytest.importorskip("torch")
    score = mutation_score(with_constants, backend="torch", mistakes=["reset before", "gates z r n"])
    assert list(score.not_exercised) == ["reset before"]
    assert list(score.survivors) == ["gates z r n"]
    assert "not tried, since torch cannot make them: reset before" in str(score)


def test_any_way_to_fail_a_test_kills() -> None:
    def loud(backend: Any) -> None:
        backend.build(mr.initialise(GRU))(np.ones((2, 3, 3)), mr.State(np.zeros((1, 2, 4))))

    def raises(backend: Any) -> None:
        layer = backend.build(mr.initialise(GRU))
        with pytest.raises(mr.InvalidCall):
            layer(np.ones((2, 5, 3)), mr.State(np.zeros((1, 5, 4))))

    assert "InvalidCall" in mutation_score(loud, mistakes=["batch and time swapped"]).killed["batch and time swapped"]
    assert not mutation_score(raises, mistakes=["gates z r n"]).killed
    assert not mutation_score(raises, mistakes=["batch and time swapped"]).killed


def test_a_check_that_tells_nothing_is_refused() -> None:
    def wrong(backend: Any) -> None:
        backend.build(mr.initialise(GRU))
        raise AssertionError("never right")

    def once() -> Callable[[Any], None]:
        runs = iter([True])
        return lambda backend: backend.build(mr.initialise(GRU)) and next(runs) and None

    with pytest.raises(mr.InvalidCall, match=r"fails on the right backend too, so it tells nothing: .*never right"):
        mutation_score(wrong)
    with pytest.raises(mr.InvalidCall, match="builds no layer"):
        mutation_score(lambda backend: None)
    pytest.importorskip("torch")
    with pytest.raises(mr.InvalidCall, match="held on the right backend once"):
        mutation_score(once(), backend="torch", mistakes=["reset before"])
