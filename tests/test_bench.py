"""The harness of the benchmarks: tables, verification, processes, rounds, files of results and the command."""

import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import multirnn as mr
from multirnn.bench import inputs, limits, rounds, verify
from multirnn.bench.contenders import Absent, Source, find
from multirnn.bench.limits import Ceilings, Limits
from multirnn.bench.machine import describe
from multirnn.bench.ours import Ours
from multirnn.bench.problems import TABLES, Entry, Problem, Table, read_table
from multirnn.bench.process import Lost, Process
from multirnn.bench.results import Writer, read
from multirnn.bench.run import Progress, Run, settings
from multirnn.bench.work import MODES, Work
from multirnn.cli import main

PEERS = Path(__file__).with_name("bench_contenders.py")
SMALL = Problem("small", "gru", 3, 7, 5, 4)
RAGGED = Problem("ragged", "lstm", 3, 7, 5, 4, num_layers=2, bidirectional=True, lengths=(0, 7))
LIMITS = Limits(
    {"L1": 2**15, "L2": 2**20},
    {1: Ceilings({"float32": 1e11, "float64": 5e10}, {}, dict.fromkeys(("L1", "L2", "L3", "memory"), 1e10), {})},
)
MACHINE = {"processor": "one", "cores": 2}


# --- Tables ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLES)
def test_the_problems_of_a_table_have_names_of_their_own_and_survive_json(name: str) -> None:
    table = TABLES[name]()
    assert len({entry.problem.name for entry in table.entries}) == len(table.entries)
    for entry in table.entries:
        assert Problem.from_dict(json.loads(json.dumps(entry.problem.to_dict()))) == entry.problem
        assert set(entry.modes) <= set(MODES)


def test_deepbench_is_complete_and_times_the_recurrence_alone() -> None:
    problems = [entry.problem for entry in TABLES["deepbench"]().entries]
    counts = Counter((problem.name.split("-")[0], problem.cell) for problem in problems)
    # baidu-research/DeepBench, code/kernels/rnn_problems.h: 53 of training, 69 + 3 of inference
    assert counts == {
        ("training", "simple_rnn"): 12,
        ("training", "lstm"): 22,
        ("training", "gru"): 19,
        ("inference", "simple_rnn"): 2,
        ("inference", "lstm"): 16,
        ("inference", "gru"): 54,
    }
    assert {(problem.input_size, problem.recurrent_only) for problem in problems} == {(1, True)}
    assert {problem.activation for problem in problems if problem.cell == "simple_rnn"} == {"relu"}


def test_standard_has_the_shapes_that_are_published_and_every_mode() -> None:
    entries = {entry.problem.name: entry for entry in TABLES["standard"]().entries}
    for name in ("rnn-t672-b1-i32-h32", "lstm-t25-b4-i512-h512", "gru-t375-b1-i1024-h1024", "rnn-t30-b128-i128-h128"):
        assert name in entries
    assert {mode for entry in entries.values() for mode in entry.modes} == set(MODES)
    assert entries["ragged-lstm-t100-b32-i256-h256"].problem.lengths == (10, 100)
    assert entries["stacked-gru-t100-b16-i128-h128"].problem.spec.output_size == 256


def test_parts_of_a_table_are_the_table() -> None:
    table = TABLES["deepbench"]()
    parts = [table.only(part=(number, 10)) for number in range(1, 11)]
    assert sorted(entry.problem.name for part in parts for entry in part.entries) == sorted(
        entry.problem.name for entry in table.entries
    )
    assert {len(part.entries) for part in parts} == {12, 13}


def test_a_table_is_cut_by_name_and_by_mode() -> None:
    table = TABLES["smoke"]()
    assert [entry.problem.cell for entry in table.only(names=["lstm-*"]).entries] == ["lstm"]
    streamed = table.only(modes=["streaming"])
    assert all(entry.modes == ("streaming",) for entry in streamed.entries)
    # Whose backward direction begins at the end cannot be streamed.
    assert {entry.problem.name for entry in table.entries} - {entry.problem.name for entry in streamed.entries} == {
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
    first, second = read_table(path).entries
    assert first == Entry(Problem("gru-t7-b3-i4-h4", "gru", 3, 7, 4, 4, lengths=(2, 7)), ("inference", "gradients"))
    assert second == Entry(Problem("rnn-t5-b1-i2-h6", "simple_rnn", 1, 5, 2, 6, bidirectional=True), ("inference",))


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
    with pytest.raises(mr.InvalidData) as caught:
        read_table(path)
    assert f"{path}, {sentence}" in str(caught.value)


def test_a_bad_file_is_told_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    with pytest.raises(mr.InvalidData, match=r"own\.csv cannot be read: No such file"):
        read_table(path)
    path.write_text("cell,batch,time\n")
    with pytest.raises(mr.InvalidData, match="hidden_size is not there"):
        read_table(path)
    path.write_text("cell,batch,time,hidden_size,colour\n")
    with pytest.raises(mr.InvalidData, match="no column 'colour' is known"):
        read_table(path)
    path.write_text("cell,batch,time,hidden_size\n")
    with pytest.raises(mr.InvalidData, match="holds a header and no problems"):
        read_table(path)
    path.write_text("cell,batch,time,hidden_size\n" + "gru,1,1,x\n" * 7)
    with pytest.raises(mr.InvalidData, match=r"(?s)line 2:.*line 6:.*and 2 more$"):
        read_table(path)


# --- Verification ----------------------------------------------------------------------------------------------------


def right_answer(work: Work) -> Any:
    """By the NumPy backend in the dtype of the work."""
    layer = mr.build(work.weights, "numpy")
    if work.mode == "gradients":
        assert work.cotangent is not None
        return layer.vjp(work.x, lengths=work.lengths, cotangent=work.cotangent)
    return layer(work.x, lengths=work.lengths)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("problem", [SMALL, RAGGED], ids=lambda problem: problem.name)
def test_what_is_drawn_reaches_a_contender(problem: Problem, mode: str, tmp_path: Path) -> None:
    work = inputs.draw(problem, mode, seed=3)
    inputs.save(work, tmp_path)
    found = inputs.load(problem, mode, tmp_path)
    assert found.weights == work.weights
    np.testing.assert_array_equal(found.x, work.x)
    assert work.x.shape == (3, 1 if mode == "streaming" else 7, 5)
    assert (found.lengths is None) == (problem.lengths is None or mode == "streaming")
    assert (found.cotangent is not None, found.target is not None) == (mode == "gradients", mode == "training")
    if found.cotangent is not None and work.cotangent is not None:
        for one, other in zip(found.cotangent.state, work.cotangent.state, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("mode", ["inference", "gradients", "streaming"])
@pytest.mark.parametrize("problem", [SMALL, RAGGED], ids=lambda problem: problem.name)
def test_an_answer_is_right_or_wrong(problem: Problem, mode: str) -> None:
    work = inputs.draw(problem, mode)
    reference = verify.expected(work)
    found = verify.answer(work, right_answer(work))
    error, where = verify.error(work, found, reference)
    assert 0 < error < verify.allowed(problem.spec)
    assert where in reference
    for name in reference:
        one_off = {**found, name: found[name] * np.float32(1.0001)}
        error, where = verify.error(work, one_off, reference)
        assert error > verify.allowed(problem.spec)
        assert where == name


def sgd(work: Work, rate: float) -> dict[str, Any]:
    """The weights after one step, all in float64 until the sum."""
    wide = mr.build(work.weights.astype("float64"), "numpy")
    output = wide(work.x.astype("float64"), lengths=work.lengths)
    pulled = 2 * (output.sequence - work.target) / output.sequence.size
    none = mr.State(*(np.zeros_like(part) for part in output.state if part is not None))
    slopes = wide.vjp(work.x.astype("float64"), lengths=work.lengths, cotangent=mr.Output(pulled, none)).weights
    return {name: (array - rate * slopes[name]).astype("float32") for name, array in work.weights.arrays.items()}


@pytest.mark.parametrize("problem", [SMALL, RAGGED], ids=lambda problem: problem.name)
def test_a_training_step_is_judged_by_its_update(problem: Problem) -> None:
    work = inputs.draw(problem, "training")
    reference = verify.expected(work)
    assert verify.error(work, sgd(work, 0.01), reference)[0] < verify.allowed(problem.spec)
    # A rate that is wrong by a hundredth moves the weights by less than a millionth of themselves.
    assert verify.error(work, sgd(work, 0.0101), reference)[0] > verify.allowed(problem.spec)
    assert verify.error(work, dict(work.weights.arrays), reference)[0] > verify.allowed(problem.spec)


def test_what_cannot_be_compared_is_wrong() -> None:
    work = inputs.draw(SMALL, "inference")
    reference = verify.expected(work)
    found = verify.answer(work, right_answer(work))
    wide = {**found, "sequence": found["sequence"].astype("float64")}
    assert verify.error(work, wide, reference) == (np.inf, "sequence is float64 (3, 7, 4), not float32 (3, 7, 4)")
    assert verify.error(work, {"sequence": found["sequence"]}, reference) == (np.inf, "final h is missing")
    assert verify.error(work, {**found, "final c": found["final h"]}, reference)[0] == np.inf
    assert verify.error(work, {**found, "sequence": found["sequence"] * np.nan}, reference)[0] == np.inf
    with pytest.raises(mr.InvalidCall, match="the result of 'inference' is an Output, not tuple"):
        verify.answer(work, (1, 2))


# --- Our own contenders ----------------------------------------------------------------------------------------------


class Plain:
    """A backend of somebody else, who does not know of benchmarks."""

    name, differentiable = "plain", True

    def __getattr__(self, name: str) -> Any:
        if name in ("build", "refuses", "read", "versions"):
            return getattr(mr.backend("numpy"), name)
        raise AttributeError(name)


@pytest.mark.parametrize("mode", ["inference", "gradients", "streaming"])
def test_any_backend_is_a_contender_through_its_layer(mode: str) -> None:
    contender = Ours(Plain(), "native", "plain")
    work = inputs.draw(SMALL, mode)
    assert contender.refuses(work) is None
    prepared = contender.prepare(work, 1)
    found = verify.answer(work, prepared.result())
    assert verify.error(work, found, verify.expected(work))[0] < verify.allowed(SMALL.spec)
    prepared.call()
    assert "NumPy to NumPy" in prepared.plan


def test_what_a_backend_cannot_do_is_refused() -> None:
    contender = Ours(Plain(), "native", "plain")
    assert "no `prepare` that reaches them" in str(contender.refuses(inputs.draw(SMALL, "training")))
    Plain.differentiable = False
    try:
        assert contender.refuses(inputs.draw(SMALL, "gradients")) == "it is for inference only"
    finally:
        Plain.differentiable = True


def test_an_implementation_that_a_backend_lacks_is_absent() -> None:
    with pytest.raises(Absent):
        Ours(Plain(), "by hand", "plain by hand")


def test_contenders_are_found_by_name_and_none_is_loaded() -> None:
    names = [source.name for source in find(["numpy", "torch"], [PEERS])]
    assert names[:4] == ["numpy", "numpy fast", "torch", "torch fast"]
    assert "killed late" in names[4:]
    assert [source.name for source in find(["numpy"], [PEERS], ["numpy*", "right"])] == ["numpy", "numpy fast", "right"]
    with pytest.raises(mr.InvalidCall, match="no contender is named 'rihgt'"):
        find(["numpy"], [PEERS], ["rihgt"])
    with pytest.raises(mr.InvalidCall, match="two contenders are named 'right'"):
        find(["numpy"], [PEERS, PEERS])


def test_what_is_no_file_of_peers_is_told(tmp_path: Path) -> None:
    with pytest.raises(mr.InvalidData, match="no file or folder of peers"):
        find(["numpy"], [tmp_path / "none"])
    (tmp_path / "nothing_in_it.py").write_text("")
    with pytest.raises(mr.InvalidData, match="needs CONTENDERS"):
        find(["numpy"], [tmp_path])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("def x(:", r"broken\.py cannot be loaded: SyntaxError"),
        ("import a_framework_that_nobody_has", r"broken\.py cannot be loaded: ModuleNotFoundError: No module named"),
        ("1 / 0", r"broken\.py cannot be loaded: ZeroDivisionError"),
        ("CONTENDERS = (1,)", r"broken\.py: 1 in CONTENDERS is no contender: it has no name, kind"),
    ],
)
def test_a_broken_file_of_peers_is_told_with_its_name(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "broken.py").write_text(text)
    for _ in range(2):  # what broke is not taken for loaded the second time
        with pytest.raises(mr.InvalidData, match=sentence):
            find(["numpy"], [tmp_path])


def test_files_of_one_name_in_two_folders_are_two_and_share_what_lies_beside_them(tmp_path: Path) -> None:
    for name in ("one", "other"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "_named.py").write_text(f"NAME = {name!r}\n")
        lines = "from ._named import NAME\nclass Peer:\n  name, kind = NAME, 'peer'\n  versions = refuses = prepare = None\n"
        (folder / "peer.py").write_text(lines + "CONTENDERS = (Peer(),)\n")
    assert [source.name for source in find([], [tmp_path / "one", tmp_path / "other"])] == ["one", "other"]


# --- The process of a contender --------------------------------------------------------------------------------------


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
        assert 0 < estimated["seconds"] <= estimated["first_call_s"] < 1
        timed = process.ask({"do": "time", "what": "call", "repetitions": 3, "settle": 0}, 60)
        assert 0 < timed["seconds"] < 1
        finished = process.ask({"do": "finish"}, 60)
        if sys.platform == "linux":
            assert finished["peak_memory_bytes"] > 2**20


def test_a_process_has_its_variables_and_cores_before_anything_loads(message: dict[str, Any]) -> None:
    with Process(source("told"), 1) as process:
        assert process.answer(60)["flags"]["OPENBLAS_CORETYPE"] == "Haswell"
        answer = process.ask(message, 60)
        assert answer["status"] == "ready", answer["reason"]


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
    work = inputs.draw(Problem("other", "gru", batch, 7, 5, 4), "inference")
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


# --- Rounds ----------------------------------------------------------------------------------------------------------


class Sitting:
    """Answers as a process would, and writes down who was asked."""

    def __init__(self, name: str, asked: list[str], lost_after: int = 1000) -> None:
        self.name, self.asked, self.left = name, asked, lost_after

    def ask(self, message: dict[str, Any], cap: float) -> dict[str, Any]:
        if self.left == 0:
            raise Lost("killed", "killed by signal 9")
        self.left -= 1
        self.asked.append(self.name)
        return {"status": "timed", "seconds": 0.1}


def entrants(counts: Sequence[int], asked: list[str], **options: Any) -> list[rounds.Entrant]:
    return [
        rounds.Entrant(Sitting(str(place), asked, **options), rounds.Plan(count, 1))  # type: ignore[arg-type]
        for place, count in enumerate(counts)
    ]


def test_rounds_are_interleaved_and_shuffled() -> None:
    asked: list[str] = []
    taking_part = entrants([9, 9, 9, 9], asked)
    rounds.interleave(taking_part, stolen=lambda: None)
    orders = [tuple(asked[first : first + 4]) for first in range(0, len(asked), 4)]
    assert [sorted(order) for order in orders] == [["0", "1", "2", "3"]] * 9
    assert len(set(orders)) > 3
    assert all(entrant.numbers == list(range(9)) for entrant in taking_part)


def test_who_is_in_few_rounds_has_them_spread_over_all() -> None:
    fast, slow = entrants([9, 3], [])
    rounds.interleave([fast, slow], stolen=lambda: None)
    assert fast.numbers == list(range(9))
    assert slow.numbers == [2, 5, 8]
    assert len(slow.rounds) == 3


def test_who_dies_is_left_out_from_then_on() -> None:
    asked: list[str] = []
    one, other = entrants([5], asked)[0], entrants([5], asked, lost_after=2)[0]
    rounds.interleave([one, other], stolen=lambda: None)
    assert len(one.rounds) == 5
    assert other.lost is not None
    assert (other.lost.status, len(other.rounds)) == ("killed", 2)


def test_a_round_in_which_time_was_stolen_is_run_again() -> None:
    asked: list[str] = []
    taking_part = entrants([4], asked)
    clock = iter([0.0, 0.0, 0.0, 0.0, 0.5] + [0.5] * 100)  # before and after each round: half a second in the second
    share, again = rounds.interleave(taking_part, stolen=lambda: next(clock))
    assert (again, len(asked), taking_part[0].numbers) == (1, 5, [0, 1, 2, 3])
    assert share == 0

    always = (float(second) for second in range(1000))
    share, again = rounds.interleave(entrants([4], asked), stolen=lambda: next(always))
    assert again == 2  # at most half of the rounds, and then they count as they are
    assert share is not None
    assert share > 1


def test_a_plan_fits_into_the_time_there_is() -> None:
    for seconds in (1e-5, 1e-3, 0.1, 3.0):
        roomy, tight = rounds.plan(seconds, 10.0), rounds.plan(seconds, 0.0)
        assert 5 == tight.rounds <= roomy.rounds <= 11
        assert roomy.repetitions * seconds >= 0.04
        assert tight.repetitions <= max(1, round(0.01 / seconds))
        if roomy.rounds > 5:
            assert roomy.rounds * roomy.repetitions * seconds <= 10
    assert rounds.plan(1e-5, 10.0).rounds == 11


def test_what_short_calls_leave_of_their_share_is_for_long_ones() -> None:
    calls = [rounds.Call(0.2), rounds.Call(0.15, True), rounds.Call(0.11)]
    assert [one.rounds for one in rounds.plans(calls, 4.5)] == [7, 6, 11]
    assert [one.rounds for one in rounds.plans(calls, float("inf"))] == [11, 11, 11]
    # Late, a long call is timed less often, and a short one never less than five times.
    assert [one.rounds for one in rounds.plans(calls, 0.0)] == [3, 3, 3]
    assert [one.rounds for one in rounds.plans([rounds.Call(1e-4), rounds.Call(1.1e-4)], 0.0)] == [5, 5]


def test_what_is_far_behind_is_timed_less_often_where_time_is_short() -> None:
    calls = [rounds.Call(1.0), rounds.Call(1e-3), rounds.Call(1.9e-3), rounds.Call(2.1e-3), rounds.Call(4e-3, False, 2)]
    assert [one.rounds for one in rounds.plans(calls, 0.0)] == [
        2,
        5,
        5,
        3,
        5,
    ]  # the last is the only one with two threads
    assert [one.rounds for one in rounds.plans(calls, float("inf"))][1:] == [11, 11, 11, 11]


def test_what_is_not_planned_is_planned_by_its_first_round_which_counts() -> None:
    asked: list[str] = []
    one, other = (rounds.Entrant(Sitting(name, asked)) for name in "ab")  # type: ignore[arg-type]
    dying = rounds.Entrant(Sitting("c", asked, lost_after=0))  # type: ignore[arg-type]
    rounds.interleave([one, other, dying], stolen=lambda: None, until=time.monotonic())
    assert one.numbers == other.numbers == [0, 1, 2, 3, 4]  # calls of a tenth of a second, without time to spare
    assert len(asked) == 10
    assert dying.lost is not None


def test_processes_with_one_number_of_threads_are_timed_after_each_other() -> None:
    asked: list[str] = []
    taking_part = entrants([9] * 6, asked)
    for place, entrant in enumerate(taking_part):
        entrant.threads = 1 + place // 3
    rounds.interleave(taking_part, stolen=lambda: None)
    orders = ["".join(asked[first : first + 6]) for first in range(0, len(asked), 6)]
    assert all(set(order[:3]) in (set("012"), set("345")) for order in orders)
    assert {order[0] in "012" for order in orders} == {True, False}


def test_a_block_that_is_too_short_is_made_longer() -> None:
    class Quick(Sitting):
        def ask(self, message: dict[str, Any], cap: float) -> dict[str, Any]:
            self.asked.append(message["repetitions"])
            return {"status": "timed", "seconds": 1e-5}

    asked: list[Any] = []
    entrant = rounds.Entrant(Quick("quick", asked), rounds.Plan(3, 2))  # type: ignore[arg-type]
    rounds.interleave([entrant], stolen=lambda: None)
    assert asked == [2, 1000, 1000]
    assert entrant.plan == rounds.Plan(3, 1000)


def test_unstable_is_told_by_the_quartiles() -> None:
    assert rounds.unstable(0.9, 1.0, 1.01)
    assert not rounds.unstable(0.99, 1.0, 1.01)


# --- Files of results ------------------------------------------------------------------------------------------------


def a_row(problem: str = "small", status: str = "timed", **values: Any) -> dict[str, Any]:
    contender = {"name": values.pop("contender", "right")}
    return {
        "problem": {"name": problem},
        "mode": "inference",
        "threads": 1,
        "contender": contender,
        "status": status,
    } | values


def a_header(**values: Any) -> dict[str, Any]:
    return {"table": "own", "machine": MACHINE, "limits": {}, "settings": {"threads": [1]}} | values


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


# --- A run -----------------------------------------------------------------------------------------------------------

PAIR = (Entry(Problem("two", "gru", 2, 7, 5, 4), ("inference",)), Entry(SMALL, ("inference",)))


def run_table(
    table: Table, names: Sequence[str], path: Path, resume: bool = False
) -> tuple[dict[Any, Any], list[Progress]]:
    """The rows by problem and contender, and what was told meanwhile."""
    told: list[Progress] = []
    header = a_header(settings=settings(table, (1,), 0))
    sources = [one for one in find([], [PEERS]) if one.name in names]
    with (
        (Writer.resume if resume else Writer.create)(path, header) as writer,
        Run(table, sources, (1,), writer, LIMITS, tell=told.append) as running,
    ):
        running()
    return {(row["problem"]["name"], row["contender"]["name"]): row for row in read(path).rows}, told


def test_whatever_becomes_of_a_contender_the_others_go_on(tmp_path: Path) -> None:
    table = Table("own", PAIR, (1,), seconds=0, cap=3)
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
    table = Table("own", (Entry(SMALL, ("inference",)),), (1,), seconds=0)
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
    for name in ("import_s", "prepare_s", "first_call_s", "error_eps", "allowed_eps", "repetitions"):
        assert row[name] > 0


def test_who_was_too_slow_is_not_tried_on_more_of_the_same(tmp_path: Path) -> None:
    longer = Problem("longer", "gru", 3, 14, 5, 4)
    other = Problem("other", "lstm", 3, 14, 5, 4)
    modes = ("inference",)
    table = Table("own", (Entry(SMALL, modes), Entry(longer, modes), Entry(other, modes)), (1,), seconds=0, cap=0.3)
    rows, _ = run_table(table, ("hanging",), tmp_path / "r.jsonl")
    reasons = {problem: row["reason"] for (problem, _), row in rows.items()}
    assert {row["status"] for row in rows.values()} == {"slow"}
    assert reasons == {
        "small": "no answer within 0.3 s",
        "longer": "not tried, since small was too much for it",
        "other": "no answer within 0.3 s",
    }


def test_what_no_machine_like_this_can_do_in_time_is_not_tried(tmp_path: Path) -> None:
    large = Problem("large", "gru", 64, 1500, 2816, 2816)  # 92 s by `LIMITS`
    table = Table("own", (Entry(large, ("inference",)), Entry(SMALL, ("inference",))), (1,), seconds=0, cap=3)
    rows, _ = run_table(table, ("right",), tmp_path / "r.jsonl")
    assert rows["large", "right"]["status"] == "slow"
    assert re.search(r"a call needs [\d.]+ s at best, too much", rows["large", "right"]["reason"])
    assert rows["small", "right"]["status"] == "timed"


def test_resume_runs_what_is_missing_and_what_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    table = Table("own", PAIR, (1,), seconds=0, cap=3)
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


# --- The command -----------------------------------------------------------------------------------------------------

OWN = ("--cell", "gru", "--hidden", "4", "--batch", "3", "--time", "7", "--threads", "1", "--minutes", "0")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., Result]]:
    """The command in this process and in an empty folder; the machine's limits are known."""
    monkeypatch.setattr(limits, "measure", lambda *threads, dtypes: LIMITS)
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


def start_bench(path: Path, *arguments: str) -> "subprocess.Popen[str]":
    """The command in a process of its own; contenders are never done, unless there is little time."""
    code = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background of a shell
sys.path.insert(0, {str(Path(__file__).parent)!r})
from multirnn.bench import limits
from multirnn.bench.limits import Ceilings, Limits
from multirnn.bench.machine import describe
limits.measure = lambda *threads, dtypes: Limits.from_dict({LIMITS.to_dict()!r})
from multirnn.cli.bench import command
command(prog_name="multirnn bench")
"""
    line = [sys.executable, "-c", code, "run", str(path), "--out", str(path.with_suffix(".jsonl")), *arguments]
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


def test_help_loads_no_framework() -> None:
    code = """
import sys
from click.testing import CliRunner
from multirnn.cli.bench import command
for arguments in (["--help"], ["run", "--help"], ["list", "smoke"]):
    assert CliRunner().invoke(command, arguments).exit_code == 0
print([name for name in ("torch", "tensorflow", "keras", "jax", "onnxruntime", "multirnn_numpy") if name in sys.modules])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
