"""Whole models, timed: contenders that compute something else are refused, busy rows are taken again, and goals are judged."""

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from multirnn_bench.interference import Interference

import multirnn as mr

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(BENCHMARKS)
    threads = torch.get_num_threads()
    yield import_module("whole_models")
    torch.set_num_threads(threads)


class Paced:
    """A call that takes this many seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def ask(self, message: dict[str, Any], cap: float) -> dict[str, Any]:
        return {"status": "timed", "seconds": self.seconds}


def test_a_row_has_the_ratios_of_its_rounds_and_the_difference(bench: Any) -> None:
    processes = {"stock": Paced(30e-3), "fast": Paced(20e-3), "compiled": Paced(60e-3)}
    row = bench.measured("training", processes, 3, Interference())
    assert row.times == {"stock": 30e3, "fast": 20e3, "compiled": 60e3}
    assert row.ratios == {"fast": pytest.approx((1.5,) * 3), "compiled": pytest.approx((0.5,) * 3)}
    assert row.more == pytest.approx(-10e3)
    assert len(row.taken) == 9


def test_a_row_is_taken_again_while_the_machine_is_busy(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter([1.0, 2.0, 1.5, 1.2, 1.01, 1.02])
    monkeypatch.setattr(bench, "busy", lambda: next(found))
    rows = iter(bench.Row(name, {}, {}, 0.0) for name in ("first", "second", "third", "fourth"))
    assert bench.calmest(lambda: next(rows)).what == "third"
    monkeypatch.setattr(bench, "busy", lambda: 3.0)
    rows = iter(bench.Row(name, {}, {}, 0.0) for name in ("first", "second", "third", "fourth"))
    assert bench.calmest(lambda: next(rows)).busy == 3.0
    assert next(rows).what == "fourth"


def test_nothing_is_written_of_a_busy_machine(bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    row = bench.Row("one", {"stock": 2.0, "fast": 1.0}, {"fast": (2.0, 2.0, 2.0)}, -1.0, taken=[0.0], busy=2.0)
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(bench, "of_models", lambda *args: [row])
    monkeypatch.setattr(bench, "of_eager_calls", lambda *args: [])
    assert bench.main(["--write"]) == 2
    assert not bench.RESULTS.exists()
    row.busy = 1.0
    assert bench.main(["--write"]) == 0
    written = json.loads(bench.RESULTS.read_text())
    assert written["results"][0]["ratios"] == {"fast": [2.0, 2.0, 2.0]}
    row.held = False
    assert bench.main([]) == 1


def test_a_contender_with_another_result_is_refused(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda model, **options: model)
    task = next(task for task in bench.TASKS if task.what.endswith("one frame"))
    calls = bench.contenders(task)
    assert list(calls) == [bench.STOCK, bench.FAST, bench.COMPILED]
    calls[bench.FAST] = lambda: calls[bench.STOCK]() * 1.01
    with pytest.raises(ValueError, match=r"one frame, fast: 0\.01 from"):
        bench.verify(task, calls)


@pytest.mark.parametrize("place", range(10))
def test_every_task_is_the_same_model_in_each_contender(bench: Any, place: int) -> None:
    task = bench.TASKS[place]
    model = task.make()
    replacement = mr.replace_layers(task.make())
    assert replacement.replaced
    assert not replacement.kept
    assert torch.isfinite(task.prepare(model, model)()).all()


def test_an_eager_call_of_this_version_is_timed_in_a_process_of_its_own(bench: Any) -> None:
    calls = import_module("eager_calls")
    with calls.Served.of(BENCHMARKS.parent, next(iter(calls.CALLS))) as served:
        answer = served.ask({"repetitions": 3, "settle": 0.0}, 60.0)
    assert 0 < answer["seconds"] < 1
    assert Path(answer["of"]) == BENCHMARKS.parent / "multirnn/__init__.py"
