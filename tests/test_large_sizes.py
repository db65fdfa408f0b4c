"""Every fast implementation at sizes that cross its thresholds, on as many threads as there are cores and on many more."""

import os
import sys
from collections.abc import Callable, Iterator

import pytest

import multirnn as mr
from multirnn.comparison import Row
from multirnn.protocol import Backend, with_implementation
from multirnn.testing import LargeProblem, large_cases, large_problems

IMPLEMENTATIONS = [
    ("numpy", "native"),
    ("numpy", "fast"),
    ("numpy", "frozen"),
    ("torch", "fast"),
    ("torch", "frozen"),
    ("keras", "fast"),
    ("jax", "fast"),
]


@pytest.fixture(scope="module")
def backends() -> dict[str, Backend]:
    """Those whose frameworks are installed, by what their rows are called."""
    found = {}
    for name, implementation in IMPLEMENTATIONS:
        try:
            found[f"{name} {implementation}"] = with_implementation(mr.backend(name), implementation)
        except mr.MissingFramework:
            continue  # test_agreement skips it with the sentence
    return found


@pytest.fixture(scope="module", params=[1, 3, 16])
def threads(request: pytest.FixtureRequest, backends: dict[str, Backend]) -> Iterator[int]:
    """Every backend's layers use so many threads, whatever this machine has."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 0
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "sched_getaffinity", lambda process: set(range(request.param)))
        forget_the_number_of_threads()
        if torch:
            torch.set_num_threads(request.param)
        yield request.param
    if torch:
        torch.set_num_threads(before)
    forget_the_number_of_threads()


def forget_the_number_of_threads() -> None:
    """JAX keeps what it compiled for another number, and Keras the number."""
    if jax := sys.modules.get("jax"):
        jax.clear_caches()
    if kernel := sys.modules.get("multirnn_keras.kernel"):
        kernel._threads.cache_clear()


@pytest.fixture(scope="module")
def problems() -> dict[str, LargeProblem]:
    return {problem.name: problem for problem in large_problems()}


@pytest.mark.parametrize("name", [name for name, _ in large_cases()])
def test_large_sizes_agree(name: str, problems, threads: int, backends: dict[str, Backend], observed) -> None:
    """All implementations at once: the reference takes longer than any of them."""
    problem = problems[name]
    _, weights, x, state, lengths = problem
    accepting = {title: backend for title, backend in backends.items() if backend.refuses(weights.spec) is None}
    rows = mr.compare(weights, x, state, lengths=lengths, backends=list(accepting.values())).rows
    assert [
        f"{title}: {row.reason}" for title, row in zip(accepting, rows, strict=True) if row.verdict != "equal"
    ] == []
    for title, row in zip(accepting, rows, strict=True):
        note(observed, title, problem, row)


def note(observed, title: str, problem: LargeProblem, row: Row) -> None:
    spec = problem.weights.spec
    empty = {"drawn": 0, "accepted": 0, "worst_eps": 0.0, "where": ""}
    total = observed.setdefault(f"{title}, large sizes, up to 16 threads", {}).setdefault(spec.dtype, empty)
    total["drawn"] += 1
    total["accepted"] += 1
    if row.worst is not None and row.worst.difference.eps > total["worst_eps"]:
        total["worst_eps"], total["where"] = row.worst.difference.eps, f"{problem.name}: {row.worst.where}"


@pytest.mark.parametrize("check", [pytest.param(check, id=name) for name, check in large_cases()])
def test_the_reference_agrees_with_itself(check: Callable[[Backend], None]) -> None:
    check(mr.backend("numpy"))


class Wrong:
    """A backend that is wrong for more than a few rows or steps, as one with a path of its own may be."""

    def __init__(self, from_size: int) -> None:
        self.inner = mr.backend("numpy")
        self.name, self.differentiable, self.from_size = "wrong", True, from_size

    def refuses(self, spec: mr.RecurrentSpec) -> None:
        return None

    def build(self, weights: mr.Weights, *, device: str | None = None) -> mr.Layer:
        if weights.spec.hidden_size < self.from_size:
            return self.inner.build(weights)
        wrong = {name: array * 1.01 for name, array in weights.arrays.items()}
        return self.inner.build(mr.Weights(weights.spec, wrong))

    def read(self, native) -> mr.Weights:
        return self.inner.read(native)

    def versions(self) -> dict[str, str]:
        return {}


def test_a_path_that_is_wrong_at_large_sizes_alone_is_caught() -> None:
    failing = []
    for name, check in large_cases():
        try:
            check(Wrong(from_size=500))
        except AssertionError:
            failing.append(name)
    assert failing
    assert all("wide units" in name for name in failing), failing


def test_a_refused_spec_passes() -> None:
    refusing = Wrong(from_size=0)
    refusing.refuses = lambda spec: "it refuses all of them"
    for _, check in large_cases():
        check(refusing)
