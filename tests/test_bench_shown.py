"""What a benchmark shows on a terminal: no number is broken, no line is too wide, and reasons stand below."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bench_examples import LIMITS, PEERS
from multirnn_bench.cli.rows import FEW, summary
from multirnn_bench.problems import Problem
from multirnn_bench.quantities import seconds
from multirnn_bench.results import Results

from multirnn.cli.console import show

STACKED = Problem.shaped(
    "gru", 100, 16, 128, 128, name="stacked-gru-t100-b16-i128-h128", num_layers=2, bidirectional=True, dtype="float64"
)
CONTENDERS = {"onnxruntime": 6.185e-5, "torch frozen": 1.23e-4, "torch.nn.LSTM, inference mode": 0.0123}
REASON = "the operator has no such activation, and computes something else where it is asked for it " * 2


def rows(problems: int) -> list[dict[str, Any]]:
    made = []
    for number in range(problems):
        problem = STACKED.to_dict() | {"name": f"{STACKED.name}-{number}"}
        common = {"problem": problem, "mode": "inference", "threads": 2}
        for name, median in CONTENDERS.items():
            times = {"median": median, "low": 0.9 * median, "high": 1.1 * median, "stable": number % 2 == 0}
            contender = {"name": name, "kind": "peer" if "torch.nn" in name else "ours"}
            known = {"share": 0.43, "error_eps": 3.2, "first_call_s": 0.0123, "added_memory_bytes": 2**20}
            made.append({**common, "contender": contender, "status": "timed", "reason": "", **times, **known})
        contender = {"name": "keras fast", "kind": "ours"}
        made.append({**common, "contender": contender, "status": "refused", "reason": REASON})
    return made


def shown(found: list[dict[str, Any]], width: int, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    header = {"table": "standard", "machine": {"processor": "Intel(R) Xeon(R) Processor @ 2.10GHz"}}
    show(*summary(Results(header, found), Path("r.jsonl"), {"jax": "backend 'jax' needs 'jax'"}))
    text: str = capsys.readouterr().out
    return text


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("problems", [2, FEW])
def test_numbers_are_whole_and_lines_fit(
    width: int, problems: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = rows(problems)
    text = shown(found, width, monkeypatch, capsys)
    assert max(map(len, text.splitlines())) <= width
    for unit in ("µs", "ms", "%"):  # no number is on the line before its unit
        assert not re.search(rf"^\s*{unit}\b", text, re.MULTILINE)
    table, _, below = text.partition("left out:")
    assert "activation" not in table
    assert " ".join(below.split()).count(REASON.strip()) == 1
    fastest = seconds(CONTENDERS["onnxruntime"])
    assert len(re.findall(rf"{fastest}(?: ~)?\s", table)) >= problems


@pytest.mark.parametrize("width", [60, 80, 120])
def test_every_contender_stands_beside_its_time(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = shown(rows(2), width, monkeypatch, capsys).splitlines()
    for name, median in CONTENDERS.items():
        own = [line for line in lines if line.startswith(f"  {name} ") and seconds(median) in line]
        assert len(own) == 2
    assert ("quartiles" in " ".join(lines)) == (width == 120)


def test_what_a_row_does_not_tell_is_a_dash(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = rows(1)
    for row in found:
        for name in ("share", "error_eps", "first_call_s", "added_memory_bytes"):
            row.pop(name, None)
    text = shown(found, 120, monkeypatch, capsys)
    assert "–" in next(line for line in text.splitlines() if "onnxruntime" in line)


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_a_piped_run_has_no_colours_and_its_table_alone_on_stdout(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    code = f"""
from multirnn_bench import limits
limits.measure = lambda *threads, dtypes: limits.Limits.from_dict({LIMITS.to_dict()!r})
limits.measure_again = lambda found: found
from multirnn.cli import main
main(prog_name="multirnn")
"""
    problem = ["bench", "--cell", "gru", "--hidden", "4", "--time", "7", "--threads", "1", "--minutes", "0"]
    peers = ["--peers", str(PEERS), "--contender", "right", "--contender", "refusing", "--out", "r.jsonl"]
    for variables in ({"NO_COLOR": "1"}, {"COLUMNS": "60"}):
        (tmp_path / "r.jsonl").unlink(missing_ok=True)
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
        run = subprocess.run(
            [sys.executable, "-c", code, *problem, *peers, *arguments],
            cwd=tmp_path, env=environment | variables, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert "\x1b" not in run.stdout
        assert "inference" in run.stderr
        if arguments:
            assert json.loads(run.stdout)["ok"]
        else:
            assert "refused: refusing: it has no such layer" in " ".join(run.stdout.split())
            assert max(map(len, run.stdout.splitlines())) <= int(variables.get("COLUMNS", 80))
