"""The tables of problems that are timed: those that are there, their parts, and a table of one's own."""

import json
from collections import Counter
from pathlib import Path

import pytest
from multirnn_bench.problems import TABLES, Case, Problem, read_table

import multirnn as mr
from multirnn.errors import InvalidData
from multirnn.protocol import MODES
from multirnn.spec import RecurrentSpec


@pytest.mark.parametrize("name", TABLES)
def test_the_problems_of_a_table_have_names_of_their_own_and_survive_json(name: str) -> None:
    table = TABLES[name]()
    assert len({case.problem.name for case in table.cases}) == len(table.cases)
    for case in table.cases:
        assert Problem.from_dict(json.loads(json.dumps(case.problem.to_dict()))) == case.problem
        assert set(case.modes) <= set(MODES)


def test_deepbench_is_complete_and_times_the_recurrence_alone() -> None:
    problems = [case.problem for case in TABLES["deepbench"]().cases]
    counts = Counter((problem.name.split("-")[0], problem.spec.cell) for problem in problems)
    # baidu-research/DeepBench, code/kernels/rnn_problems.h: 53 of training, 69 + 3 of inference
    assert counts == {
        ("training", "simple_rnn"): 12,
        ("training", "lstm"): 22,
        ("training", "gru"): 19,
        ("inference", "simple_rnn"): 2,
        ("inference", "lstm"): 16,
        ("inference", "gru"): 54,
    }
    assert {(problem.spec.input_size, problem.recurrent_only) for problem in problems} == {(1, True)}
    assert {problem.spec.activation for problem in problems if problem.spec.cell == "simple_rnn"} == {"relu"}


def test_standard_has_the_shapes_that_are_published_and_every_mode() -> None:
    cases = {case.problem.name: case for case in TABLES["standard"]().cases}
    for name in ("rnn-t672-b1-i32-h32", "lstm-t25-b4-i512-h512", "gru-t375-b1-i1024-h1024", "rnn-t30-b128-i128-h128"):
        assert name in cases
    assert {mode for case in cases.values() for mode in case.modes} == set(MODES)
    assert cases["ragged-lstm-t100-b32-i256-h256"].problem.lengths == (10, 100)
    assert cases["stacked-gru-t100-b16-i128-h128"].problem.spec.output_size == 256


def test_parts_of_a_table_are_the_table() -> None:
    table = TABLES["deepbench"]()
    parts = [table.only(part=(number, 10)) for number in range(1, 11)]
    assert sorted(case.problem.name for part in parts for case in part.cases) == sorted(
        case.problem.name for case in table.cases
    )
    assert {len(part.cases) for part in parts} == {12, 13}


def test_a_table_is_cut_by_name_and_by_mode() -> None:
    table = TABLES["smoke"]()
    assert [case.problem.spec.cell for case in table.only(names=["lstm-*"]).cases] == ["lstm"]
    streamed = table.only(modes=["streaming"])
    assert all(case.modes == ("streaming",) for case in streamed.cases)
    # Whose backward direction begins at the end cannot be streamed.
    assert {case.problem.name for case in table.cases} - {case.problem.name for case in streamed.cases} == {
        "stacked-rnn-t100-b16-i128-h128"
    }
    with pytest.raises(mr.InvalidCall, match="no problem 'lsmt'"):
        table.only(names=["lsmt"])
    with pytest.raises(mr.InvalidCall, match="nothing of table 'smoke' is left"):
        table.only(part=(7, 7))


CSV = """\
cell, batch, time, hidden_size, input_size, lengths, bidirectional, modes
gru, 3, 7, 4, , 2-7, , inference gradients
simple_rnn, 1, 5, 6, 2, , true,
"""


def test_a_table_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text("\ufeff" + CSV, encoding="utf-8")
    first, second = read_table(path).cases
    assert first == Case(
        Problem("gru-t7-b3-i4-h4", RecurrentSpec("gru", 4, 4), 3, 7, lengths=(2, 7)), ("inference", "gradients")
    )
    assert second == Case(
        Problem("rnn-t5-b1-i2-h6", RecurrentSpec("simple_rnn", 2, 6, bidirectional=True), 1, 5), ("inference",)
    )


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("gru,3,7,x,,,,,", "line 2: hidden_size must be a positive integer, not 'x'"),
        ("gru,0,7,4,,,,,", "line 2: batch must be a positive integer, not '0'"),
        ("gru,3,7", "line 2: it has fewer cells than the header"),
        ("gru,3,7,4,,,,,inference,more", "line 2: it has more cells than the header"),
        ("gur,3,7,4,,,,,", "line 2: cell must be one of 'simple_rnn', 'lstm', 'gru', not 'gur'"),
        ("gru,,7,4,,,,,", "line 2: batch is empty"),
        ("gru,3,7,4,,,,,inferrence", "line 2: no mode 'inferrence'; there are inference, gradients"),
        ("gru,3,7,4,,2-9,,,", "line 2: lengths must be the shortest and the longest row, from 0 to time=7, not 2 to 9"),
        ("gru,3,7,4,,seven,,,", "line 2: lengths are the shortest and the longest row, as in 10-100, not 'seven'"),
        ("gru,3,7,4,,,yes,,", "line 2: bidirectional must be true or false, not 'yes'"),
        ("gru,3,7,4,,,true,,streaming", "line 2: a bidirectional stack has no mode 'streaming'"),
        ("gru,3,7,4,2,,,true,", "line 2: with recurrent_only input_size must be 1"),
        ("gru,3,7,4,,,,,\ngru,3,7,4,,,,,", "line 3: a problem named 'gru-t7-b3-i4-h4' stands above already"),
    ],
)
def test_a_bad_row_is_told_with_its_line(tmp_path: Path, row: str, sentence: str) -> None:
    path = tmp_path / "own.csv"
    path.write_text(f"cell,batch,time,hidden_size,input_size,lengths,bidirectional,recurrent_only,modes\n{row}\n")
    with pytest.raises(InvalidData) as caught:
        read_table(path)
    assert f"{path}, {sentence}" in str(caught.value)


def test_a_bad_file_is_told_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    with pytest.raises(InvalidData, match=r"own\.csv cannot be read: No such file"):
        read_table(path)
    path.write_text("cell,batch,time\n")
    with pytest.raises(InvalidData, match="hidden_size is not there"):
        read_table(path)
    path.write_text("cell,batch,time,hidden_size,colour\n")
    with pytest.raises(InvalidData, match="no column 'colour' is known"):
        read_table(path)
    path.write_text("cell,batch,time,hidden_size\n")
    with pytest.raises(InvalidData, match="holds a header and no problems"):
        read_table(path)
    path.write_text("cell,batch,time,hidden_size\n" + "gru,1,1,x\n" * 7)
    with pytest.raises(InvalidData, match=r"(?s)line 2:.*line 6:.*and 2 more$"):
        read_table(path)
