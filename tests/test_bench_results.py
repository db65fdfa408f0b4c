"""Files of results: written row by row, resumed, and read."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bench_examples import LIMITS, SMALL, a_header, begun
from multirnn_bench.results import NotSaved, Writer, read, taken

import multirnn as mr
from multirnn.errors import InvalidData


def a_row(problem: str = "small", status: str = "timed", **values: Any) -> dict[str, Any]:
    times = {"median": 1.0, "low": 1.0, "high": 1.0, "rounds": [1.0], "stable": True}
    return {
        "problem": SMALL.to_dict() | {"name": problem},
        "mode": "inference",
        "threads": 1,
        "contender": {"name": "right", "kind": "peer"},
        "status": status,
        **(times if status == "timed" else {"reason": "why"}),
    } | values


def test_rows_are_on_the_disk_as_they_come(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with begun(path, a_header()) as writer:
        for count in range(3):
            assert len(read(path).rows) == count
            writer.write(a_row(str(count)))
    assert read(path).header["table"] == "own"
    assert [row["problem"]["name"] for row in read(path).rows] == ["0", "1", "2"]


@pytest.mark.parametrize("half", [b"", b'{"kind": "row", "prob', b'{"kind": "row"}', b"\xff\xfe"])
def test_a_line_that_was_never_finished_is_left_out_and_overwritten(tmp_path: Path, half: bytes) -> None:
    path = tmp_path / "r.jsonl"
    with begun(path, a_header()) as writer:
        writer.write(a_row("first"))
    with path.open("ab") as file:
        file.write(half)
    assert [row["problem"]["name"] for row in read(path).rows] == ["first"]
    with begun(path, a_header(), resume=True) as writer:
        assert [row["problem"]["name"] for row in writer.rows] == ["first"]
        writer.write(a_row("second"))
    assert [row["problem"]["name"] for row in read(path).rows] == ["first", "second"]


def test_of_two_rows_the_later_counts(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with begun(path, a_header()) as writer:
        for row in (a_row(status="killed"), a_row("other"), a_row()):
            writer.write(row)
    assert [(row["problem"]["name"], row["status"]) for row in read(path).rows] == [
        ("other", "timed"),
        ("small", "timed"),
    ]


def test_what_the_host_took_is_read_from_older_files_too() -> None:
    rows = [a_row(steal=0.0, taken=0.5), a_row(steal=0.25), a_row("other", steal=None), a_row("third", taken=0.125)]
    assert taken(rows) == {("small", "inference"): 0.375, ("third", "inference"): 0.125}


def test_results_of_two_machines_are_not_put_into_one_file(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    begun(path, a_header()).__exit__()
    for changed in (
        {"machine": {"processor": "another", "cores": 2}},
        {"table": "smoke"},
        {"settings": {"threads": [1, 2]}},
    ):
        with pytest.raises(mr.InvalidCall, match=r"cannot be resumed: its .* not the same, .* there and .* here"):
            begun(path, a_header(**changed), resume=True)
    with pytest.raises(mr.InvalidCall, match=r"its settings are not the same, threads\[0\] is 1 there and 2 here"):
        begun(path, a_header(settings={"threads": [2]}), resume=True)
    with pytest.raises(mr.InvalidCall, match="exists; --resume goes on with it"):
        begun(path, a_header())
    with pytest.raises(mr.InvalidCall, match="cannot be written"):
        begun(tmp_path / "none" / "r.jsonl", a_header())


def test_a_file_that_was_interrupted_before_its_header_is_begun_again(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"kind": "hea')
    begun(path, a_header(), resume=True).__exit__()
    assert read(path).header["table"] == "own"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is no file of results"),
        ("{}\n", "is no file of results"),
        ('{"kind": "header", "version": 9}\n', "has results of version 9"),
        ('{"kind": "header", "version": 1}\nnot json\n', "line 2: not JSON"),
        ('{"kind": "header", "version": 1}\n[]\n', "line 2: not an object but list"),
        ('{"kind": "header", "version": 1}\n{"kind": "row", "status": "fine"}\n', "line 2: not a row of results"),
    ],
)
def test_what_is_no_file_of_results_is_told(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(text)
    with pytest.raises(InvalidData, match=sentence):
        read(path)


# --- Faults of rows ------------------------------------------------------------------------------------------------------


def cut(row: dict[str, Any], name: str) -> dict[str, Any]:
    """The row without a field, `of.it` inside another."""
    first, _, rest = name.partition(".")
    return {key: cut(value, rest) if rest and key == first else value for key, value in row.items() if key != name}


def changed(row: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    first, _, rest = name.partition(".")
    return row | {first: changed(row[first], rest, value) if rest else value}


def written(path: Path, *rows: dict[str, Any], **header: Any) -> Path:
    lines = [{"kind": "header", "version": 1, **a_header(), **header}, *({"kind": "row", **row} for row in rows)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


NEEDED = (
    *("problem", "problem.name", "problem.cell", "problem.batch", "problem.hidden_size", "mode", "threads", "status"),
    *("contender", "contender.name", "contender.kind", "median", "low", "high", "rounds", "stable"),
)


@pytest.mark.parametrize("name", NEEDED)
def test_a_row_without_a_field_that_is_needed_is_told_with_its_line(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / "r.jsonl", a_row("first"), cut(a_row(), name))
    with pytest.raises(InvalidData, match=rf"r\.jsonl, line 3: not a row of results: it has no {name}$"):
        read(path)
    with pytest.raises(InvalidData, match="line 3"):
        begun(path, a_header(), resume=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("problem", "small"),
        ("problem.name", ["small"]),
        ("problem.time", "7"),
        ("problem.lengths", 7),
        ("mode", "dreaming"),
        ("threads", True),
        ("threads", 1.5),
        ("contender", None),
        ("contender.name", 3),
        ("contender.kind", "theirs"),
        ("contender.versions", "2.0"),
        ("status", "fine"),
        ("status", ["timed"]),
        ("median", None),
        ("median", -1.0),
        ("median", "1 s"),
        ("rounds", []),
        ("rounds", [1.0, None]),
        ("round_numbers", [1, 2]),
        ("share", "40 %"),
        ("error_eps", {}),
        ("reason", 7),
    ],
)
def test_a_field_of_another_kind_is_told_with_its_line(tmp_path: Path, name: str, value: Any) -> None:
    path = written(tmp_path / "r.jsonl", changed(a_row(), name, value))
    with pytest.raises(InvalidData, match=rf"r\.jsonl, line 2: not a row of results: its {name} "):
        read(path)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_what_is_no_number_is_no_time(tmp_path: Path, number: str) -> None:
    path = written(tmp_path / "r.jsonl", a_row())
    path.write_text(path.read_text().replace('"median": 1.0', f'"median": {number}'))
    with pytest.raises(InvalidData, match="line 2: not "):
        read(path)


@pytest.mark.parametrize(
    "header",
    [{"table": None}, {"machine": []}, {"limits": {"ceilings": 1}}, {"limits": {"caches": {}, "ceilings": {"1": {}}}}],
)
def test_a_header_that_is_none_is_told(tmp_path: Path, header: dict[str, Any]) -> None:
    with pytest.raises(InvalidData, match=r"r\.jsonl, line 1: not the header"):
        read(written(tmp_path / "r.jsonl", **header))


def test_a_header_with_limits_is_one(tmp_path: Path) -> None:
    path = written(tmp_path / "r.jsonl", a_row(error_eps=None, share=None), limits=LIMITS.to_dict())
    assert len(read(path).rows) == 1


# --- Two runs, and a full disk -------------------------------------------------------------------------------------------


def test_two_runs_do_not_write_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with begun(path, a_header()) as writer:
        writer.write(a_row("first"))
        with pytest.raises(mr.InvalidCall, match=r"another run is writing to .*r\.jsonl; wait until it is over"):
            begun(path, a_header(), resume=True)
        assert len(read(path).rows) == 1  # whoever reads may
        writer.write(a_row("second"))
    with begun(path, a_header(), resume=True) as writer:
        assert len(writer.rows) == 2


def test_a_file_is_locked_before_anything_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with Writer(path), pytest.raises(mr.InvalidCall, match="another run is writing"):
        Writer(path, resume=True)
    assert not path.exists()  # nothing came of it
    begun(path, a_header()).__exit__()
    assert read(path).rows == []


def test_another_process_that_was_killed_holds_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    code = f"""
import sys, time
from pathlib import Path
from multirnn_bench.results import Writer
with Writer(Path({str(path)!r})) as writer:
    writer.begin({a_header()!r})
    print("locked", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(mr.InvalidCall, match="another run is writing"):
            begun(path, a_header(), resume=True)
        other.kill()
    with begun(path, a_header(), resume=True) as writer:
        writer.write(a_row())
    assert len(read(path).rows) == 1


def test_what_is_no_file_is_not_written_to() -> None:
    with pytest.raises(mr.InvalidCall, match="is no file that rows can be appended to"):
        Writer(Path(os.devnull), resume=True)


LIMITED = """
import json, resource, sys
from pathlib import Path
from multirnn_bench.results import NotSaved, Writer
header, row, path = json.loads(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3])
with Writer(path) as writer:
    writer.begin(header)
    writer.write(row | {"threads": 1})
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, resource.RLIM_INFINITY))
    for threads in (2, 3):
        try:
            writer.write(row | {"threads": threads})
        except NotSaved as error:
            print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    writer.write(row | {"threads": 4})
"""


def test_a_row_that_cannot_be_written_leaves_no_part_of_it_and_says_what_is_saved(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    arguments = [sys.executable, "-c", LIMITED, json.dumps(a_header()), json.dumps(a_row()), str(path)]
    found = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert found.stdout.splitlines() == 2 * [
        f"{path} cannot be written: File too large; 1 row is saved in {path}, and --resume goes on from there"
    ]
    assert [row["threads"] for row in read(path).rows] == [1, 4]


def test_a_full_disk_before_the_header_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("multirnn_bench.results.os.fsync", full)
    with pytest.raises(NotSaved, match="cannot be written: No space left on device; nothing is saved"):
        begun(tmp_path / "r.jsonl", a_header())
    assert not list(tmp_path.iterdir())
