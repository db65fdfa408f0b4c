"""Every fast implementation at sizes that cross its thresholds, on as many threads as there are cores and on many more."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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


@contextmanager
def threads(name: str, count: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A backend's layers use so many threads, whatever this machine has."""
    with monkeypatch.context() as patched:
        patched.setattr(os, "sched_getaffinity", lambda process: set(range(count)))
        if name != "torch":
            yield
            return
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 3, 16])
@pytest.mark.parametrize(("name", "implementation"), IMPLEMENTATIONS)
def test_large_sizes_agree(name, implementation, count, monkeypatch, observed) -> None:
    try:
        backend = with_implementation(mr.backend(name), implementation)
    except mr.MissingFramework as error:
        pytest.skip(str(error))
    with threads(name, count, monkeypatch):
        for problem in large_problems():
            if backend.refuses(problem.weights.spec) is None:
                note(observed, f"{name} {implementation}", problem, compared(backend, problem))


def compared(backend: Backend, problem: LargeProblem) -> Row:
    _, weights, x, state, lengths = problem
    row = mr.compare(weights, x, state, lengths=lengths, backends=[backend]).rows[0]
    assert row.verdict == "equal", f"{problem.name}: {row.reason}"
    return row


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
