"""The process in which one contender is timed, and what becomes of it."""

import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_examples import PEERS, SMALL
from multirnn_bench import inputs, verify, worker
from multirnn_bench.contenders import Source, find
from multirnn_bench.machine import allowed_cores
from multirnn_bench.problems import Problem
from multirnn_bench.process import RESTS, Lost, Process

import multirnn as mr
from multirnn.spec import RecurrentSpec


def source(name: str) -> Source:
    return next(one for one in find([], [PEERS]) if one.name == name)


@pytest.fixture
def message(tmp_path: Path) -> dict[str, Any]:
    """What asks for `SMALL` in inference."""
    work = inputs.draw(SMALL, "inference")
    inputs.save(work, tmp_path / "inputs")
    inputs.save_arrays(verify.expected(work), tmp_path / "reference")
    folders = {"inputs": str(tmp_path / "inputs"), "reference": str(tmp_path / "reference")}
    return {"do": "prepare", "problem": SMALL.to_dict(), "mode": "inference", "boundary": True, **folders}


def test_a_contender_is_verified_timed_and_its_memory_told(message: dict[str, Any]) -> None:
    with Process(source("noisy"), 1) as process:  # what it prints disturbs nothing
        hello = process.answer(60)
        assert hello["status"] == "started"
        assert hello["versions"] == {"numpy": np.__version__}
        assert hello["flags"]["OMP_NUM_THREADS"] == "1"
        ready = process.ask(message, 60)
        assert (ready["status"], ready["boundary"], ready["reason"]) == ("ready", None, "")
        assert 0 < ready["error_eps"] < ready["allowed_eps"] == 64
        assert ready["first_call_s"] > 0
        estimated = process.ask({"do": "estimate"}, 60)
        assert 0 < estimated["seconds"] <= ready["first_call_s"] < 1
        timed = process.ask({"do": "time", "what": "call", "repetitions": 3, "settle": 0}, 60)
        assert 0 < timed["seconds"] < 1
        finished = process.ask({"do": "finish"}, 60)
        if sys.platform == "linux":
            assert finished["peak_memory_bytes"] > 2**20


def test_one_call_that_is_disturbed_is_not_a_part_of_what_a_block_gives() -> None:
    slow = iter([0.0, 0.3] + [0.0] * 28)
    assert worker.block(lambda: time.sleep(next(slow)), 30) < 0.05
    assert next(slow, None) is None


@pytest.mark.parametrize(
    ("seconds", "fresh", "calls"),
    [(0.01, [2000, 1500, 0, 0, 0], 3), (0.01, [2000] * 9, worker.WARMING_CALLS), (worker.WARMING, [2000] * 9, 1)],
)
def test_a_call_is_repeated_untimed_while_it_takes_fresh_memory(seconds: float, fresh: list[int], calls: int) -> None:
    made = []

    def call() -> None:
        time.sleep(seconds)
        size = mmap.PAGESIZE * fresh[len(made)]
        made.append(memory := mmap.mmap(-1, size or 1))
        memory[: size : mmap.PAGESIZE] = bytes(size // mmap.PAGESIZE)

    assert len(worker.warm(call)) == len(made) == calls


def test_the_first_call_is_told_with_what_is_traced_only_for_what_is_timed(message: dict[str, Any]) -> None:
    with Process(source("tracing"), 1) as process:
        process.answer(60)
        assert process.ask(message, 60)["first_call_s"] > 0.2
        timed = process.ask({"do": "time", "what": "call", "repetitions": 1, "settle": 0}, 60)
        assert timed["seconds"] < 0.2


def test_a_process_has_its_variables_and_cores_before_anything_loads(message: dict[str, Any]) -> None:
    with Process(source("told"), 1) as process:
        assert process.answer(60)["flags"]["OPENBLAS_CORETYPE"] == "Haswell"
        answer = process.ask(message, 60)
        assert answer["status"] == "ready", answer["reason"]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="processes are bound to cores on Linux only")
def test_a_process_gets_ready_on_other_cores_and_comes_back_with_all_its_threads() -> None:
    cores = allowed_cores()
    if len(cores) < 2:
        pytest.skip("there is one core")
    with Process(source("threading"), 1, place=1) as process:
        process.answer(60)

        def bound() -> set[tuple[int, ...]]:
            return {tuple(os.sched_getaffinity(thread)) for thread in process.thread_ids()}

        assert bound() == {(cores[1],)}
        assert len(process.thread_ids()) > 1
        process.bind()
        assert bound() == {(cores[0],)}
        process.bind(len(cores) + 1)  # there are no more: it begins again
        assert bound() == {(cores[1],)}
    process.bind()  # it has ended


@pytest.mark.skipif(not RESTS, reason="processes are stopped on Linux only")
def test_a_process_that_is_not_asked_is_stopped_with_all_its_threads(message: dict[str, Any]) -> None:
    def states() -> set[str]:
        return {
            Path(f"/proc/{thread}/stat").read_text().rpartition(")")[2].split()[0] for thread in process.thread_ids()
        }

    with Process(source("threading"), 1) as process:
        process.answer(60)
        for _ in range(2):
            wait_for(lambda: states() == {"T"})
            assert len(process.thread_ids()) > 1
            assert process.ask(message, 60)["status"] == "ready"


@pytest.mark.skipif(not RESTS, reason="processes are stopped on Linux only")
def test_a_process_that_is_stopped_ends_with_the_one_that_asked_it() -> None:
    code = """
import sys, time
from pathlib import Path
from multirnn_bench.contenders import find
from multirnn_bench.process import Process
process = Process(next(one for one in find([], [Path(sys.argv[1])]) if one.name == "threading"), 1)
process.answer(60)
print(process.thread_ids()[0], flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code, str(PEERS)], stdout=subprocess.PIPE, text=True) as asking:
        assert asking.stdout is not None
        asked = Path("/proc") / asking.stdout.readline().strip()
        assert "threading" in (asked / "cmdline").read_text()
        asking.kill()
    wait_for(lambda: not asked.exists())


def wait_for(there: Callable[[], bool], seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_the_cap_is_of_the_time_since_it_was_asked(message: dict[str, Any]) -> None:
    with Process(source("hanging"), 1) as process:
        process.answer(60)
        process.send(message)
        time.sleep(0.2)
        start = time.monotonic()
        with pytest.raises(Lost, match=r"no answer within 0\.2 s"):
            process.answer(0.2)
        assert time.monotonic() - start < 0.15


def test_what_a_contender_raises_is_its_answer_and_its_process_goes_on(message: dict[str, Any]) -> None:
    with Process(source("raising"), 1) as process:
        process.answer(60)
        for _ in range(2):
            answer = process.ask(message, 60)
            assert answer == {"status": "failed", "reason": "ValueError: a first line … and the cause"}
        assert process.alive


@pytest.mark.parametrize(
    ("name", "batch", "cap", "status", "reason"),
    [
        ("killed", 2, 60, "killed", "killed by signal 9: Out of memory"),
        ("hanging", 3, 0.2, "slow", "no answer within 0.2 s"),
    ],
)
def test_a_process_that_is_no_more_is_told(
    message: dict[str, Any], name: str, batch: int, cap: float, status: str, reason: str
) -> None:
    work = inputs.draw(Problem("other", RecurrentSpec("gru", 5, 4), batch, 7), "inference")
    inputs.save(work, Path(message["inputs"]))
    with Process(source(name), 1) as process:
        process.answer(60)
        with pytest.raises(Lost) as caught:
            process.ask(message, cap)
        assert (caught.value.status, caught.value.reason) == (status, reason)
        assert not process.alive


def test_a_process_that_does_not_start_is_told() -> None:
    with Process(source("leaving"), 1) as process, pytest.raises(Lost) as caught:
        process.answer(60)
    assert (caught.value.status, caught.value.reason) == ("failed", "ended with status 3: ImportError: no library")
    with Process(source("missing"), 1) as process:
        assert process.answer(60) == {
            "status": "missing",
            "reason": "No module named 'a_framework_that_nobody_has'",
        }


def test_more_threads_than_cores_are_refused() -> None:
    with pytest.raises(mr.InvalidCall, match="4096 threads need as many cores"):
        Process(source("right"), 4096)
