"""The cost of the wrapper, of a step and of memory: the counterparts are the same function, and the goals are judged."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from multirnn_bench import inputs, verify
from multirnn_bench.contenders import find, load
from multirnn_bench.limits import minimum_memory
from multirnn_bench.problems import Problem, read_table
from multirnn_bench.results import Results

import multirnn as mr
from multirnn.spec import RecurrentSpec

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
COUNTERPARTS = {source.name: source for source in find([], [BENCHMARKS / "counterparts.py"])}


@pytest.mark.parametrize("name", COUNTERPARTS)
def test_a_counterpart_is_the_same_function_as_the_layer_beside_it(name: str, tmp_path: Path) -> None:
    problem = Problem("wrapper", RecurrentSpec("simple_rnn", 5, 5), 3, 7 if name.endswith("by hand") else 300)
    inputs.save(inputs.draw(problem, "inference"), tmp_path)
    work = inputs.load(problem, "inference", tmp_path)
    assert work.x.ctypes.data % 64 == 0
    try:
        contender = load(COUNTERPARTS[name].to_dict())
        assert contender.refuses(work) is None
        prepared = contender.prepare(work, 1)
    except mr.MissingFramework as error:
        pytest.skip(str(error))
    error, where = verify.error(work, verify.answer(work, prepared.result()), verify.expected(work))
    assert error < verify.allowed(problem.spec), where
    assert prepared.boundary is not None
    assert prepared.boundary is not prepared.call
    prepared.call()
    if name.endswith("by hand"):
        np.testing.assert_array_equal(prepared.boundary().sequence, prepared.result().sequence)
    assert contender.refuses(inputs.draw(problem, "gradients"))


@pytest.fixture
def overhead() -> ModuleType:
    spec = importlib.util.spec_from_file_location("overhead", BENCHMARKS / "overhead.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(problem: Problem, contender: str, mode: str = "inference", **values: Any) -> dict[str, Any]:
    times = {"rounds": [1e-4] * 3, "round_numbers": [0, 1, 2], "boundaries": None}
    which = {"problem": problem.to_dict(), "mode": mode, "contender": {"name": contender}}
    return {**which, "status": "timed", **times, **values}


def test_goals_are_judged_by_rows(overhead: ModuleType) -> None:
    problems = {case.problem.name: case.problem for case in read_table(BENCHMARKS / "overhead.csv").cases}
    loop = problems["loop-b1-h64"]
    layers = [row(loop, name, boundaries=[[1.4e-4, 1e-4]] * 3) for name in ("numpy", "torch", "keras", "jax")]
    rivals = [row(loop, "NumPy loop", rounds=[1.7e-4] * 3), row(loop, "torch.nn", "gradients", rounds=[2e-4] * 3)]
    found = list(overhead.foundation(Results({}, [*layers, row(loop, "numpy", "gradients"), *rivals])))
    assert [(pair.ratio, pair.held) for pair in found[:2]] == [(pytest.approx(1.7), False), (pytest.approx(2), True)]
    assert [pair.held for pair in found[2:]] == [True] * 3  # 40 of 50 µs
    rows = [
        row(problems["wrapper-b1-t1"], "torch", boundaries=[[1.09e-4, 1e-4]] * 3),
        row(problems["wrapper-b1-t100"], "torch by hand", boundaries=[[1.09e-4, 1e-4]] * 3),
        row(problems["steps-gru-t1000"], "jax fast in calls of 100 steps", boundaries=[[1.14e-4, 1e-4]] * 3),
    ]
    assert [(pair.what.partition(":")[0], pair.held) for pair in overhead.fast(Results({}, rows))] == [
        ("torch", True),
        ("torch", False),
        ("jax fast, gru", True),
    ]
    memory = problems["memory-lstm"]
    used = [row(memory, "jax fast", added_memory_bytes=factor * minimum_memory(memory)) for factor in (1.2, 1.4)]
    assert [one["held"] for one in overhead.memory(Results({}, used))] == [True, False]
