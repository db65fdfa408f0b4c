"""A run of a table: every contender has its row, whatever becomes of the others."""

import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_examples import LIMITS, PEERS, SMALL, a_header, begun
from multirnn_bench import limits, process, run
from multirnn_bench.contenders import find
from multirnn_bench.limits import Ceilings, Limits
from multirnn_bench.machine import describe
from multirnn_bench.problems import Case, Problem, ProblemTable
from multirnn_bench.results import NotSaved, read
from multirnn_bench.run import Progress, Run, settings

from multirnn.spec import RecurrentSpec

PAIR = (Case(Problem("two", RecurrentSpec("gru", 5, 4), 2, 7), ("inference",)), Case(SMALL, ("inference",)))


def run_table(
    table: ProblemTable, names: Sequence[str], path: Path, resume: bool = False, **options: Any
) -> tuple[dict[Any, Any], list[Progress]]:
    """The rows by problem and contender, and what was told meanwhile."""
    told: list[Progress] = []
    header = a_header(settings=settings(table, (1,), 0))
    sources = [one for one in find([], [PEERS]) if one.name in names]
    with (
        begun(path, header, resume=resume) as writer,
        Run(table, sources, (1,), writer, LIMITS, tell=told.append, **options) as running,
    ):
        running()
    return {(row["problem"]["name"], row["contender"]["name"]): row for row in read(path).rows}, told


def test_whatever_becomes_of_a_contender_the_others_go_on(tmp_path: Path) -> None:
    table = ProblemTable("own", PAIR, (1,), seconds=0, cap=3)
    names = ("right", "wrong", "raising", "raising late", "killed", "killed late", "refusing", "leaving", "missing")
    rows, told = run_table(table, names, tmp_path / "r.jsonl")
    statuses = {name: (rows["two", name]["status"], rows["small", name]["status"]) for name in names[:-1]}
    assert statuses == {
        "right": ("timed", "timed"),
        "wrong": ("wrong", "wrong"),
        "raising": ("failed", "failed"),
        "raising late": ("failed", "failed"),
        "killed": ("killed", "timed"),  # its process was started again
        "killed late": ("killed", "killed"),
        "refusing": ("refused", "refused"),
        "leaving": ("failed", "failed"),
    }
    assert not [name for _, name in rows if name == "missing"]
    for row in rows.values():
        assert bool(row["reason"]) == (row["status"] != "timed")
        assert (row["median"] is None) == (row["status"] != "timed")
    assert (
        "8 eps" in rows["two", "wrong"]["reason"] or "eps from the float64 reference" in rows["two", "wrong"]["reason"]
    )
    assert rows["two", "wrong"]["rounds"] is None
    assert told[-1].done == told[-1].total - 1 or told[-1].total == 16


def test_a_row_describes_itself(tmp_path: Path) -> None:
    table = ProblemTable("own", (Case(SMALL, ("inference",)),), (1,), seconds=0)
    row = run_table(table, ("right",), tmp_path / "r.jsonl")[0]["small", "right"]
    assert row["problem"] == SMALL.to_dict()
    assert (row["mode"], row["threads"], row["contender"]["kind"]) == ("inference", 1, "peer")
    assert row["parameters"] == SMALL.spec.parameter_count
    assert row["flops"] == limits.flops(SMALL, "inference")
    assert row["bytes"] == limits.bytes_moved(SMALL, "inference")
    assert len(row["rounds"]) == len(row["round_numbers"]) == 5
    assert row["low"] <= row["median"] <= row["high"]
    assert row["boundary_median"] == row["median"]
    assert row["share"] == pytest.approx(row["limit_s"] / row["median"])
    assert row["contender"]["versions"] == {"numpy": np.__version__}
    assert row["contender"]["plan"] == "NumPy"
    assert row["contender"]["flags"]["OMP_NUM_THREADS"] == "1"
    assert row["contender"]["features"] == describe()["features"]
    assert 0 <= row["blocks_again"] <= 3
    assert row["steal"] is None or row["steal"] >= 0
    assert 0 <= (row["steal"] or 0.0) <= row["taken"]
    for name in ("import_s", "prepare_s", "first_call_s", "error_eps", "allowed_eps", "repetitions"):
        assert row[name] > 0


class Asked:
    """A seat and its process: it answers when it is asked, or never."""

    over = False

    def __init__(self, name: str) -> None:
        self.name, self.process, self.asked = name, self, 0.0
        self.reading, self.writing = os.pipe()

    def fileno(self) -> int:
        return self.reading


def test_as_many_get_ready_at_once_as_there_are_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "allowed_cores", lambda: (3, 5))
    begun: list[tuple[str, int]] = []

    def begin(seat: Any, place: int) -> bool:
        begun.append((seat.name, place))
        seat.asked = time.monotonic()
        if seat.name in ("quick", "last"):
            os.write(seat.writing, b"\n")
        return bool(seat.name != "refused")

    asked: list[Any] = [Asked(name) for name in ("hanging", "quick", "refused", "last")]
    at_once: Iterator[Any] = process.at_once(asked, begin, 0.2)
    assert next(at_once).name == "quick"
    assert begun == [("hanging", 1), ("quick", 0)]
    assert next(at_once).name == "last"
    assert begun[2:] == [("refused", 0), ("last", 0)]
    assert time.monotonic() - asked[0].asked < 0.2
    assert [seat.name for seat in at_once] == ["hanging"]
    assert time.monotonic() - asked[0].asked >= 0.2
    for seat in asked:
        os.close(seat.reading)
        os.close(seat.writing)


def test_who_was_too_slow_is_not_tried_on_more_of_the_same(tmp_path: Path) -> None:
    longer = Problem("longer", RecurrentSpec("gru", 5, 4), 3, 14)
    other = Problem("other", RecurrentSpec("lstm", 5, 4), 3, 14)
    modes = ("inference",)
    table = ProblemTable("own", (Case(SMALL, modes), Case(longer, modes), Case(other, modes)), (1,), seconds=0, cap=0.3)
    rows, _ = run_table(table, ("hanging",), tmp_path / "r.jsonl")
    reasons = {problem: row["reason"] for (problem, _), row in rows.items()}
    assert {row["status"] for row in rows.values()} == {"slow"}
    assert reasons == {
        "small": "no answer within 0.3 s",
        "longer": "not tried, since small was too much for it",
        "other": "no answer within 0.3 s",
    }


def test_what_no_machine_like_this_can_do_in_time_is_not_tried(tmp_path: Path) -> None:
    large = Problem("large", RecurrentSpec("gru", 2816, 2816), 64, 1500)  # 92 s by `LIMITS`
    table = ProblemTable("own", (Case(large, ("inference",)), Case(SMALL, ("inference",))), (1,), seconds=0, cap=3)
    rows, _ = run_table(table, ("right",), tmp_path / "r.jsonl")
    assert rows["large", "right"]["status"] == "slow"
    assert re.search(r"a call needs [\d.]+ s at best, too much", rows["large", "right"]["reason"])
    assert rows["small", "right"]["status"] == "timed"


def test_resume_runs_what_is_missing_and_what_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    table = ProblemTable("own", PAIR, (1,), seconds=0, cap=3)
    run_table(table, ("killed", "right"), path)
    before = path.read_text().splitlines()
    kept = [line for line in before if '"status": "timed"' not in line or '"name": "two"' not in line]
    assert len(before) - len(kept) == 1
    path.write_text("\n".join(kept) + "\n")
    run_table(table, ("killed", "right"), path, resume=True)
    added = [json.loads(line) for line in path.read_text().splitlines()[len(kept) :]]
    assert [(row["problem"]["name"], row["contender"]["name"], row["status"]) for row in added] == [
        ("two", "killed", "killed"),
        ("two", "right", "timed"),
    ]
    run_table(table, ("right",), path, resume=True)
    assert len(path.read_text().splitlines()) == len(kept) + 2


@pytest.mark.parametrize(("now", "calmer"), [(0.02, True), (0.04, False)])
def test_what_was_disturbed_is_timed_again_and_the_calmer_rows_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: float, calmer: bool
) -> None:
    path = tmp_path / "r.jsonl"
    table = ProblemTable("own", PAIR, (1,), seconds=0, cap=3)
    run_table(table, ("refusing", "right"), path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for row in lines[1:]:
        if row["status"] == "timed":
            row |= {"taken": 0.03 if row["problem"]["name"] == "two" else 0.01, "median": 77.0}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr("multirnn_bench.interference.stolen_share", lambda *told: now)
    monkeypatch.setattr("multirnn_bench.interference.slowed_share", lambda pace: 0.0)
    rows, _ = run_table(table, ("refusing", "right"), path, resume=True, again=0.02)
    assert len(path.read_text().splitlines()) == len(lines) + calmer
    assert (rows["two", "right"]["median"] < 77) == calmer
    assert rows["small", "right"]["median"] == 77
    assert read(path).again == calmer


def test_the_pace_of_the_host_is_watched_in_a_run_and_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[bool] = []

    class Slowed:
        def __call__(self, cores: int) -> float:
            return 4.0

        def end(self) -> None:
            ended.append(True)

    monkeypatch.setattr(run, "Pace", Slowed)
    rows, _ = run_table(ProblemTable("own", PAIR, (1,), seconds=0, cap=3), ("right",), tmp_path / "r.jsonl")
    assert [row["taken"] >= 0.75 for row in rows.values()] == [True, True]
    assert ended == [True]


def test_a_run_that_is_resumed_has_the_part_of_the_time_that_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[float] = []
    race = Run._race

    def told(self: Run, task: Any, seats: Any, share: float) -> None:
        shares.append(share)
        race(self, task, seats, 0)

    monkeypatch.setattr(Run, "_race", told)
    path = tmp_path / "r.jsonl"
    table = ProblemTable("own", PAIR, (1,), seconds=1000, cap=3)
    run_table(table, ("right",), path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2]))  # the second of two problems that take as long as each other is left
    run_table(table, ("right",), path, resume=True)
    assert 400 < shares[0] < 500 < shares[1] < 1000
    assert 400 < shares[2] < 500


@pytest.mark.parametrize("what", ["inputs.save", "tempfile.TemporaryDirectory"])
def test_a_full_folder_for_inputs_says_what_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def full(*arguments: Any, **named: Any) -> None:
        raise OSError("1024 requested and 0 written")  # what NumPy says

    monkeypatch.setattr(f"multirnn_bench.run.{what}", full)
    with pytest.raises(
        NotSaved, match=r"inputs cannot be written to .*: 1024 requested and 0 written; 0 rows are saved"
    ):
        run_table(ProblemTable("own", PAIR, (1,), seconds=0, cap=3), ("right",), tmp_path / "r.jsonl")


def test_ceilings_are_measured_again_and_every_row_is_held_against_the_highest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "MEASURED_AGAIN", 0.0)
    rates = iter([3e12, 2e12, 1e12])  # after each of both problems, and at the end
    path = tmp_path / "r.jsonl"

    def measure(found: Limits) -> Limits:
        return found.highest(with_products(next(rates)))

    table = ProblemTable("own", PAIR, (1,), seconds=0, cap=3)
    sources = [one for one in find([], [PEERS]) if one.name == "right"]
    header = a_header(settings=settings(table, (1,), 0), limits=LIMITS.to_dict())
    with (
        begun(path, header) as writer,
        Run(table, sources, (1,), writer, LIMITS, measure=measure) as running,
    ):
        running()
    assert next(rates, None) is None
    found = read(path)
    assert len(found.rows) == 2
    highest = Limits.from_dict(found.header["limits"])
    assert highest.ceilings[1].products == {"float32": 3e12, "float64": 5e10}
    for row in found.rows:
        problem = Problem.from_dict(row["problem"])
        assert row["limit_s"] == highest.seconds(problem, "inference", 1) < LIMITS.seconds(problem, "inference", 1)
        assert row["share"] == row["limit_s"] / row["median"]


def with_products(rate: float) -> Limits:
    found = LIMITS.ceilings[1]
    return Limits(LIMITS.caches, {1: Ceilings.of({**found.products, "float32": rate}, found.bandwidths)})
