"""Whatever a contender does, whoever times it goes on within a bounded time, and nothing of it is left behind."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bench_examples import LIMITS, SMALL, a_header, begun
from multirnn_bench import inputs, keeper, verify
from multirnn_bench.contenders import Source, find
from multirnn_bench.problems import Case, ProblemTable
from multirnn_bench.process import RESTS, Lost, Process
from multirnn_bench.results import read
from multirnn_bench.run import Run, settings

HOSTILE = Path(__file__).with_name("hostile_contenders.py")
SOON = 30.0  # seconds in which anything here is over, on a busy machine

pytestmark = pytest.mark.skipif(not RESTS, reason="processes are stopped, and found in /proc, on Linux only")


@pytest.fixture(autouse=True)
def _contenders_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HOSTILE.parent), prepend=os.pathsep)


def source(name: str) -> Source:
    return next(one for one in find([], [HOSTILE]) if one.name == name)


def a_message(folder: Path) -> dict[str, Any]:
    work = inputs.draw(SMALL, "inference")
    inputs.save(work, folder / "inputs")
    inputs.save_arrays(verify.expected(work), folder / "reference")
    folders = {"inputs": str(folder / "inputs"), "reference": str(folder / "reference")}
    return {"do": "prepare", "problem": SMALL.to_dict(), "mode": "inference", "boundary": False, **folders}


def wait_for(there: Callable[[], bool]) -> None:
    until = time.monotonic() + SOON
    while not there():
        assert time.monotonic() < until
        time.sleep(0.01)


def state(process: int) -> str:
    """The letter of a process' state; empty where there is none."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def gone(process: int) -> bool:
    return state(process) in ("", "Z", "X")


@pytest.mark.parametrize(
    ("name", "status", "reason"),
    [
        ("closing", "failed", "closed its pipe and did not end, so it was killed: all closed"),
        ("garbage", "failed", "what it wrote is no answer"),
        ("nested", "failed", "what it wrote is no answer"),
        ("endless", "failed", "it answered with more than"),
        ("partial", "slow", "no answer within 3 s"),
        ("dripping", "slow", "no answer within 3 s"),
        ("stopping", "slow", "no answer within 3 s"),
    ],
)
def test_no_contender_is_waited_for_longer_than_the_cap(tmp_path: Path, name: str, status: str, reason: str) -> None:
    with Process(source(name), 1) as process:
        process.answer(60)
        start = time.monotonic()
        with pytest.raises(Lost, match=reason) as caught:
            process.ask(a_message(tmp_path), 3)
        assert time.monotonic() - start < SOON
        assert caught.value.status == status
        assert not process.alive
        assert gone(process.thread_ids()[0] if process.thread_ids() else process._family[0])
        with pytest.raises(Lost, match="was ended before"):
            process.send({"do": "finish"})


def test_an_answer_that_nobody_asked_for_is_not_taken_for_one(tmp_path: Path) -> None:
    with Process(source("cheating"), 1) as process:
        process.answer(60)
        process.ask(a_message(tmp_path), 60)
        time.sleep(0.05)
        with pytest.raises(Lost, match=r"what it wrote is no answer: .*1e-12") as caught:
            process.ask({"do": "time", "what": "call", "repetitions": 1, "settle": 0}, 60)
        assert caught.value.status == "failed"


def test_a_second_answer_is_not_taken_for_the_next(tmp_path: Path) -> None:
    with Process(source("talkative"), 1) as process:
        process.answer(60)
        wait_for(lambda: bool(select.select([process], [], [], 0)[0]))
        with pytest.raises(Lost, match="answered when nobody had asked") as caught:
            process.ask(a_message(tmp_path), 60)
        assert caught.value.status == "failed"


def test_what_a_contender_prints_is_not_kept_but_its_end(tmp_path: Path) -> None:
    with Process(source("flooding"), 1) as process:
        process.answer(60)
        assert process.ask(a_message(tmp_path), 60)["status"] == "ready"
        assert len(process._said._tail) < 2**20
        os.kill(process._family[0], signal.SIGKILL)
        with pytest.raises(Lost, match=r"killed by signal 9: .*flood"):
            process.ask({"do": "finish"}, 60)


def test_every_hostile_contender_has_its_row_and_the_others_their_times(tmp_path: Path) -> None:
    table = ProblemTable("own", (Case(SMALL, ("inference",)),), (1,), seconds=0, cap=4)
    names = ("right", "closing", "closing late", "garbage", "cheating", "partial", "dripping", "flooding")
    sources = [source(name) for name in names]
    path = tmp_path / "r.jsonl"
    with (
        begun(path, a_header(settings=settings(table, (1,), 0))) as writer,
        Run(table, sources, (1,), writer, LIMITS) as running,
    ):
        running()
    rows = {row["contender"]["name"]: row for row in read(path).rows}
    assert {name: row["status"] for name, row in rows.items()} == {
        "right": "timed",
        "closing": "failed",
        "closing late": "failed",
        "garbage": "failed",
        "cheating": "failed",
        "partial": "slow",
        "dripping": "slow",
        "flooding": "timed",
    }
    assert all(row["reason"] for row in rows.values() if row["status"] != "timed")


# --- What is left behind -------------------------------------------------------------------------------------------------


@pytest.fixture
def helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[int]]:
    """The numbers of the contender with helpers and of its helpers, once they are known."""
    path = tmp_path / "helpers.json"
    monkeypatch.setenv("HELPERS", str(path))

    def found() -> list[int]:
        wait_for(lambda: path.exists() and path.read_text().endswith("]"))
        numbers: list[int] = json.loads(path.read_text())
        assert len(numbers) == 5
        return numbers

    return found


def test_a_contender_is_ended_with_all_its_helpers(helpers: Callable[[], list[int]]) -> None:
    with Process(source("helped"), 1) as process:
        process.answer(60)
        numbers = helpers()
        assert set(numbers) == set(keeper.family(*process._family))
    assert all(gone(number) for number in numbers)


def test_one_that_dies_while_it_is_stopped_is_told_though_a_helper_holds_its_pipes(
    tmp_path: Path, helpers: Callable[[], list[int]]
) -> None:
    with Process(source("helped"), 1) as process:
        process.answer(60)
        contender, *others = helpers()
        wait_for(lambda: state(contender) == "T")
        os.kill(contender, signal.SIGKILL)
        wait_for(lambda: gone(contender))
        start = time.monotonic()
        with pytest.raises(Lost, match="killed by signal 9"):
            process.ask(a_message(tmp_path), 600)
        assert time.monotonic() - start < SOON
        assert all(gone(number) for number in others)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV], ids=lambda how: how.name)
@pytest.mark.parametrize("at", ["stopped", "starting"])
def test_nothing_is_left_of_a_benchmark_that_is_killed(
    helpers: Callable[[], list[int]], how: signal.Signals, at: str
) -> None:
    code = """
import sys, time
from pathlib import Path
from multirnn_bench.contenders import find
from multirnn_bench.process import Process
process = Process(next(one for one in find([], [Path(sys.argv[1])]) if one.name == "helped"), 1)
if sys.argv[2] == "stopped":
    process.answer(60)
print("ready", flush=True)
time.sleep(3600)
"""
    with subprocess.Popen([sys.executable, "-c", code, str(HOSTILE), at], stdout=subprocess.PIPE, text=True) as bench:
        assert bench.stdout is not None
        assert bench.stdout.readline() == "ready\n"
        numbers = helpers()
        if at == "stopped":
            wait_for(lambda: state(numbers[1]) == "T")
        bench.send_signal(how)
    wait_for(lambda: all(gone(number) for number in numbers))


def test_nothing_is_left_of_the_command_that_is_killed(
    tmp_path: Path, helpers: Callable[[], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    code = f"""
from multirnn_bench import limits
limits.measure = lambda *threads, dtypes: limits.Limits.from_dict({LIMITS.to_dict()!r})
limits.measure_again = lambda found: found
from multirnn.cli import main
main()
"""
    problem = ["bench", "--cell", "gru", "--hidden", "4", "--threads", "1", "--cap", "600"]
    peers = ["--peers", str(HOSTILE), "--contender", "helped", "--contender", "dripping"]
    monkeypatch.chdir(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", code, *problem, *peers], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as bench:
        numbers = helpers()
        assert bench.stderr is not None
        while "inference" not in bench.stderr.readline():
            assert bench.poll() is None
        bench.kill()
    wait_for(lambda: all(gone(number) for number in numbers))


def test_the_keeper_is_started_again_when_somebody_has_killed_it(helpers: Callable[[], list[int]]) -> None:
    from multirnn_bench.process import KEEPER

    with Process(source("right"), 1) as first:
        first.answer(60)
        assert KEEPER._process is not None
        KEEPER._process.kill()
        KEEPER._process.wait()
        with Process(source("helped"), 1) as process:
            process.answer(60)
            assert KEEPER._process.poll() is None
    assert all(gone(number) for number in helpers())
    assert KEEPER._process is None
