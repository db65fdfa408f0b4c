"""What is timed is verified first: what is drawn for a contender, and when its answer is right."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_examples import RAGGED, SMALL
from multirnn_bench import inputs, verify
from multirnn_bench.problems import Problem

import multirnn as mr
from multirnn.protocol import MODES, Work


def right_answer(work: Work) -> Any:
    """By the NumPy backend in the dtype of the work."""
    layer = mr.build(work.weights, "numpy")
    if work.mode == "gradients":
        assert work.cotangent is not None
        return layer.vjp(work.x, lengths=work.lengths, cotangent=work.cotangent)
    return layer(work.x, lengths=work.lengths)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("problem", [SMALL, RAGGED], ids=lambda problem: problem.name)
def test_what_is_drawn_reaches_a_contender(problem: Problem, mode: str, tmp_path: Path) -> None:
    work = inputs.draw(problem, mode, seed=3)
    inputs.save(work, tmp_path)
    found = inputs.load(problem, mode, tmp_path)
    assert found.weights == work.weights
    np.testing.assert_array_equal(found.x, work.x)
    assert work.x.shape == (3, 1 if mode == "streaming" else 7, 5)
    assert (found.lengths is None) == (problem.lengths is None or mode == "streaming")
    assert (found.cotangent is not None, found.target is not None) == (mode == "gradients", mode == "training")
    if found.cotangent is not None and work.cotangent is not None:
        for one, other in zip(found.cotangent.state, work.cotangent.state, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("mode", ["inference", "gradients", "streaming"])
@pytest.mark.parametrize("problem", [SMALL, RAGGED], ids=lambda problem: problem.name)
def test_an_answer_is_right_or_wrong(problem: Problem, mode: str) -> None:
    work = inputs.draw(problem, mode)
    reference = verify.expected(work)
    found = verify.answer(work, right_answer(work))
    error, where = verify.error(work, found, reference)
    assert 0 < error < verify.allowed(problem.spec)
    assert where in reference
    for name in reference:
        one_off = {**found, name: found[name] * np.float32(1.0001)}
        error, where = verify.error(work, one_off, reference)
        assert error > verify.allowed(problem.spec)
        assert where == name


def sgd(work: Work, rate: float) -> dict[str, Any]:
    """The weights after one step, all in float64 until the sum."""
    wide = mr.build(work.weights.astype("float64"), "numpy")
    output = wide(work.x.astype("float64"), lengths=work.lengths)
    pulled = 2 * (output.sequence - work.target) / output.sequence.size
    none = mr.State(*(np.zeros_like(part) for part in output.state if part is not None))
    slopes = wide.vjp(work.x.astype("float64"), lengths=work.lengths, cotangent=mr.Output(pulled, none)).weights
    return {name: (array - rate * slopes[name]).astype("float32") for name, array in work.weights.arrays.items()}


@pytest.mark.parametrize("problem", [SMALL, RAGGED], ids=lambda problem: problem.name)
def test_a_training_step_is_judged_by_its_update(problem: Problem) -> None:
    work = inputs.draw(problem, "training")
    reference = verify.expected(work)
    assert verify.error(work, sgd(work, 0.01), reference)[0] < verify.allowed(problem.spec)
    # A rate that is wrong by a hundredth moves the weights by less than a millionth of themselves.
    assert verify.error(work, sgd(work, 0.0101), reference)[0] > verify.allowed(problem.spec)
    assert verify.error(work, dict(work.weights.arrays), reference)[0] > verify.allowed(problem.spec)


def test_what_cannot_be_compared_is_wrong() -> None:
    work = inputs.draw(SMALL, "inference")
    reference = verify.expected(work)
    found = verify.answer(work, right_answer(work))
    wide = {**found, "sequence": found["sequence"].astype("float64")}
    assert verify.error(work, wide, reference) == (np.inf, "sequence is float64 (3, 7, 4), not float32 (3, 7, 4)")
    assert verify.error(work, {"sequence": found["sequence"]}, reference) == (np.inf, "final h is missing")
    assert verify.error(work, {**found, "final c": found["final h"]}, reference)[0] == np.inf
    assert verify.error(work, {**found, "sequence": found["sequence"] * np.nan}, reference)[0] == np.inf
    with pytest.raises(mr.InvalidCall, match="the result of 'inference' is an Output, not tuple"):
        verify.answer(work, (1, 2))
