"""Files of results: written row by row, resumed, and read."""

from pathlib import Path
from typing import Any

import pytest
from bench_examples import a_header

import multirnn as mr
from multirnn.bench.results import Writer, read, taken


def a_row(problem: str = "small", status: str = "timed", **values: Any) -> dict[str, Any]:
    contender = {"name": values.pop("contender", "right")}
    return {
        "problem": {"name": problem},
        "mode": "inference",
        "threads": 1,
        "contender": contender,
        "status": status,
    } | values


def test_rows_are_on_the_disk_as_they_come(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with Writer.create(path, a_header()) as writer:
        for count in range(3):
            assert len(read(path).rows) == count
            writer.write(a_row(str(count)))
    assert read(path).header["table"] == "own"
    assert [row["problem"]["name"] for row in read(path).rows] == ["0", "1", "2"]


@pytest.mark.parametrize("half", [b'{"kind": "row", "prob', b'{"kind": "row"}', b"\xff\xfe"])
def test_a_line_that_was_never_finished_is_left_out_and_overwritten(tmp_path: Path, half: bytes) -> None:
    path = tmp_path / "r.jsonl"
    with Writer.create(path, a_header()) as writer:
        writer.write(a_row("first"))
    with path.open("ab") as file:
        file.write(half)
    assert [row["problem"]["name"] for row in read(path).rows] == ["first"]
    with Writer.resume(path, a_header()) as writer:
        assert [row["problem"]["name"] for row in writer.rows] == ["first"]
        writer.write(a_row("second"))
    assert [row["problem"]["name"] for row in read(path).rows] == ["first", "second"]


def test_of_two_rows_the_later_counts(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with Writer.create(path, a_header()) as writer:
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
    Writer.create(path, a_header()).__exit__()
    for changed in (
        {"machine": {"processor": "another", "cores": 2}},
        {"table": "smoke"},
        {"settings": {"threads": [1, 2]}},
    ):
        with pytest.raises(mr.InvalidCall, match=r"cannot be resumed: its .* not the same, .* there and .* here"):
            Writer.resume(path, a_header(**changed))
    with pytest.raises(mr.InvalidCall, match=r"its settings are not the same, threads\[0\] is 1 there and 2 here"):
        Writer.resume(path, a_header(settings={"threads": [2]}))
    with pytest.raises(mr.InvalidCall, match="exists; --resume goes on with it"):
        Writer.create(path, a_header())
    with pytest.raises(mr.InvalidCall, match="cannot be written"):
        Writer.create(tmp_path / "none" / "r.jsonl", a_header())


def test_a_file_that_was_interrupted_before_its_header_is_begun_again(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"kind": "hea')
    Writer.resume(path, a_header()).__exit__()
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
    with pytest.raises(mr.InvalidData, match=sentence):
        read(path)
