"""`multirnn bench`: what it prints, how it is interrupted, and its exit status."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from bench_examples import LIMITS, PEERS
from click.testing import CliRunner, Result
from multirnn_bench import limits
from multirnn_bench.contenders import PEERS as SHIPPED
from multirnn_bench.limits import Limits
from multirnn_bench.results import read

from multirnn.cli import main

OWN = ("--cell", "gru", "--hidden", "4", "--batch", "3", "--time", "7", "--threads", "1", "--minutes", "0")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., Result]]:
    """The command in this process and in an empty folder; the machine's limits are known."""
    monkeypatch.setattr(limits, "measure", lambda *threads, dtypes: LIMITS)
    monkeypatch.setattr(limits, "measure_again", lambda found: found)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(main, ["bench", *map(str, arguments)], env={"COLUMNS": "200"})


def with_peers(*names: str) -> list[str]:
    return ["--peers", str(PEERS), *(word for name in names for word in ("--contender", name))]


def test_a_problem_of_ones_own_is_run(bench: Callable[..., Result]) -> None:
    found = bench(*OWN, "--mode", "gradients", *with_peers("right", "refusing"), "--out", "r.jsonl")
    assert found.exit_code == 0, found.output
    assert "gru-t7-b3-i4-h4 gradients, 1 thread" in found.stdout
    assert "refused: refusing: it has no such layer" in found.stdout
    assert {row["status"] for row in read("r.jsonl").rows} == {"timed", "refused"}
    same = bench("compare", "r.jsonl", "r.jsonl", "--json")
    assert same.exit_code == 0
    assert not json.loads(same.stdout)["regressed"]


def test_what_is_wrong_is_shown_without_a_time_and_exits_with_1(bench: Callable[..., Result]) -> None:
    found = bench(*OWN, *with_peers("right", "wrong"), "--json")
    assert found.exit_code == 1
    shown = json.loads(found.stdout)
    assert not shown["ok"]
    assert Path(shown["file"]).exists()
    wrong = next(row for row in shown["rows"] if row["contender"]["name"] == "wrong")
    assert (wrong["status"], wrong["median"]) == ("wrong", None)


def test_what_failed_exits_with_2(bench: Callable[..., Result]) -> None:
    found = bench(*OWN, *with_peers("right", "raising"))
    assert found.exit_code == 2
    assert "failed: raising: ValueError" in found.stdout


def test_a_peer_that_is_not_installed_is_no_missing_backend(bench: Callable[..., Result]) -> None:
    found = bench(*OWN, "--backend", "numpy", *with_peers("right", "missing"))
    assert found.exit_code == 0, found.output
    assert "left out: missing: No module named 'a_framework_that_nobody_has'" in found.stdout


def test_the_peers_that_ship_run_unless_backends_are_named(bench: Callable[..., Result]) -> None:
    assert SHIPPED is not None
    for given in ((), ("--peers", SHIPPED)):  # naming them makes none twice
        found = bench(*OWN, *given, "--contender", "NumPy loop", "--json")
        assert found.exit_code == 0, found.output
        (row,) = json.loads(found.stdout)["rows"]
        assert (row["contender"]["name"], row["contender"]["kind"]) == ("NumPy loop", "peer")
        Path(json.loads(found.stdout)["file"]).unlink()
    found = bench(*OWN, "--backend", "numpy", "--contender", "NumPy loop")
    assert found.exit_code == 2
    assert "no contender is named 'NumPy loop'; there are numpy, numpy fast, numpy frozen\n" in found.stderr


def test_what_cannot_be_written_is_told_before_anything_is_measured(
    bench: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*threads: int, dtypes: Sequence[str]) -> Limits:
        raise AssertionError

    monkeypatch.setattr(limits, "measure", measured)
    Path("there.jsonl").write_text("")
    for out, sentence in (("there.jsonl", "there.jsonl exists"), ("none/r.jsonl", "there is no folder none")):
        found = bench(*OWN, *with_peers("right"), "--out", out)
        assert found.exit_code == 2
        assert sentence in found.output


def test_two_files_with_nothing_in_common_are_not_called_equal(bench: Callable[..., Result]) -> None:
    for name in ("right", "noisy"):
        bench(*OWN, *with_peers(name), "--out", f"{name}.jsonl")
    found = bench("compare", "right.jsonl", "noisy.jsonl")
    assert found.exit_code == 2
    assert "have no row in common" in found.output


def test_a_slow_contender_is_no_failure(bench: Callable[..., Result]) -> None:
    found = bench(*OWN, *with_peers("hanging"), "--cap", "0.3")
    assert found.exit_code == 0
    assert "slow: hanging: no answer within 0.3 s" in found.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("smok",), "no table 'smok': there are smoke, standard, deepbench"),
        (("smoke", "--cell", "gru", "--hidden", "4"), "are two runs: leave one out"),
        (("--batch", "3"), "--batch describes a problem of your own: give its --cell too"),
        (("--layers", "2"), "--layers describes a problem of your own"),
        (("--cell", "gru"), "give its --hidden too"),
        (("smoke", "--resume"), "name it with --out"),
        (("smoke", "--disturbed", "0.02"), "runs a part of a file again: give --resume too"),
        (("smoke", "--threads", "1,x"), "numbers of threads with commas between them"),
        (("smoke", "--threads", "4096"), "4096 threads need as many cores"),
        (("smoke", "--part", "4/3"), "the parts of 3 are 1/3 to 3/3, not 4/3"),
        (("smoke", "--part", "some"), "a part is N/M, as in 3/10"),
        ((*OWN, "--lengths", "few"), "the shortest and the longest row, as in 10-100"),
        (("list", "smok"), "no table 'smok'"),
        (("compare", "none.jsonl", "none.jsonl"), "none.jsonl cannot be read"),
    ],
)
def test_what_is_used_wrongly_is_told(bench: Callable[..., Result], arguments: Sequence[str], sentence: str) -> None:
    found = bench(*arguments)
    assert found.exit_code != 0
    assert sentence in found.output + str(found.exception)
    assert not list(Path().iterdir())


def test_the_problems_of_a_table_are_listed(bench: Callable[..., Result]) -> None:
    assert "training-gru-t1500-b32-h2816" in bench("list").stdout
    listed = json.loads(bench("list", "smoke", "--json").stdout)
    assert listed["smoke"][0]["problem"]["name"] == "rnn-t96-b1-i64-h64"


def start_bench(path: Path, *arguments: str, before: str = "") -> "subprocess.Popen[str]":
    """The command in a process of its own; contenders are never done, unless there is little time."""
    code = f"""
import signal, sys
{before}
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background of a shell
sys.path.insert(0, {str(Path(__file__).parent)!r})
from multirnn_bench import limits
from multirnn_bench.limits import Ceilings, Limits
from multirnn_bench.machine import describe
limits.measure = lambda *threads, dtypes: Limits.from_dict({LIMITS.to_dict()!r})
limits.measure_again = lambda found: found
from multirnn.cli import main
main(prog_name="multirnn")
"""
    line = [sys.executable, "-c", code, "bench", "run", str(path), "--out", str(path.with_suffix(".jsonl")), *arguments]
    return subprocess.Popen(line, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_whole_rows_and_is_resumed(tmp_path: Path, how: signal.Signals) -> None:
    path = tmp_path / "own.csv"
    path.write_text("cell,batch,time,hidden_size\n" + "".join(f"gru,{batch},7,4\n" for batch in range(3, 12)))
    arguments = ("--threads", "1", *with_peers("right", "refusing"))
    out = path.with_suffix(".jsonl")
    process = start_bench(path, *arguments, "--minutes", "0.2")
    deadline = time.monotonic() + 60
    while (
        process.poll() is None
        and time.monotonic() < deadline
        and (not out.exists() or out.read_bytes().count(b"\n") < 4)
    ):
        time.sleep(0.01)
    process.send_signal(how)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    rows = read(out).rows
    assert f"interrupted: {len(rows)} rows are in {out}, and --resume goes on with them" in said
    assert 3 <= len(rows) < 18
    assert out.read_bytes().endswith(b"\n")
    again = start_bench(path, *arguments, "--minutes", "0", "--resume")
    _, said = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert len(read(out).rows) == 18
    assert len(out.read_text().splitlines()) == 19  # nothing was run twice
    other = start_bench(path, "--threads", "1", *with_peers("right"), "--seed", "1", "--resume")
    _, said = other.communicate(timeout=60)
    assert other.returncode != 0
    assert "cannot be resumed" in said


def a_table(path: Path, problems: int) -> Path:
    path.write_text("cell,batch,time,hidden_size\n" + "".join(f"gru,{3 + n},7,4\n" for n in range(problems)))
    return path


def test_two_runs_on_one_file_do_not_both_write(tmp_path: Path) -> None:
    path = a_table(tmp_path / "own.csv", 3)
    arguments = ("--threads", "1", *with_peers("right", "refusing"), "--resume")
    out = path.with_suffix(".jsonl")
    first = start_bench(path, *arguments, "--minutes", "0.2")
    while first.poll() is None and not (out.exists() and out.stat().st_size):
        time.sleep(0.01)
    second = start_bench(path, *arguments, "--minutes", "0")
    said = second.communicate(timeout=60)
    assert second.returncode == 2, said
    assert f"another run is writing to {out}; wait until it is over" in said[1]
    _, said_first = first.communicate(timeout=120)
    assert first.returncode == 0, said_first
    assert len(read(out).rows) == 6
    assert len(out.read_text().splitlines()) == 7


def test_a_full_disk_says_what_is_saved_and_is_resumed(tmp_path: Path) -> None:
    path = a_table(tmp_path / "own.csv", 4)
    arguments = ("--threads", "1", *with_peers("right", "refusing"), "--minutes", "0", "--resume")
    out = path.with_suffix(".jsonl")
    full = start_bench(
        path, *arguments, before="import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, -1))"
    )
    _, said = full.communicate(timeout=60)
    assert full.returncode == 2, said
    rows = len(read(out).rows)
    assert 0 < rows < 8
    assert f"{out} cannot be written: File too large; {rows} row" in said
    assert "--resume goes on from there" in said
    again = start_bench(path, *arguments)
    _, said = again.communicate(timeout=60)
    assert again.returncode == 0, said
    assert len(out.read_text().splitlines()) == 9


def test_a_row_without_a_problem_is_told_with_its_line(bench: Callable[..., Result]) -> None:
    assert bench(*OWN, *with_peers("right"), "--out", "r.jsonl").exit_code == 0
    header, row = map(json.loads, Path("r.jsonl").read_text().splitlines())
    del row["problem"]
    Path("r.jsonl").write_text(json.dumps(header) + "\n" + json.dumps(row) + "\n")
    for command in (
        ("report", "r.jsonl"),
        ("compare", "r.jsonl", "r.jsonl"),
        (*OWN, *with_peers("right"), "--out", "r.jsonl", "--resume"),
    ):
        found = bench(*command)
        assert found.exit_code == 2, found.output
        assert "r.jsonl, line 2: not a row of results: it has no problem" in found.output


def test_help_loads_no_framework() -> None:
    code = """
import sys
from click.testing import CliRunner
from multirnn_bench.cli.bench import command
for arguments in (["--help"], ["run", "--help"], ["list", "smoke"]):
    assert CliRunner().invoke(command, arguments).exit_code == 0
print([name for name in ("torch", "tensorflow", "keras", "jax", "onnxruntime", "multirnn_numpy") if name in sys.modules])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
