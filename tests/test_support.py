"""What each backend takes: the rules say what it answered, and the table that is made of them leaves nothing out."""

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import multirnn as mr
from multirnn.cells import FORMS
from multirnn.cli import main
from multirnn.protocol import Backend
from multirnn.support import AXES, Support, ask, axis_value, grid
from multirnn.support_table import LABELS, Summary, summarise

Refuses = Callable[[mr.RecurrentSpec], str | None]
SPECS = list(grid())


def installed() -> tuple[list[Backend], list[str]]:
    """All backends that can be loaded, and the sentences of those that cannot."""
    backends: list[Backend] = []
    missing: list[str] = []
    for name in mr.backends():
        try:
            backends.append(mr.backend(name))
        except mr.MissingFramework as error:
            missing.append(str(error))
    return backends, missing


class Stranger:
    """A backend of which only the answers matter."""

    name = "stranger"
    differentiable = True

    def __init__(self, answer: Refuses) -> None:
        self.answer = answer

    def refuses(self, spec: mr.RecurrentSpec) -> str | None:
        return self.answer(spec)

    def build(self, weights: mr.Weights, *, device: str | None = None) -> mr.Layer:
        raise NotImplementedError

    def read(self, native: object) -> mr.Weights:
        raise NotImplementedError

    def versions(self) -> dict[str, str]:
        return {"stranger": "1.0"}


# --- The table, read as a person reads it ----------------------------------------------------------------------------


def value(spec: mr.RecurrentSpec, axis: str) -> str:
    """What the table calls the value of a spec."""
    if axis == "form":
        return spec.form.form
    if axis == "bidirectional":
        return "both" if spec.bidirectional else "forward"
    return str(getattr(spec, axis))


@cache
def holds(words: str, found: str) -> bool:
    """Whether "all", "all but a, b" or "a, b" has the value in it."""
    names = re.split(r", (?![^(]*\))", words.removeprefix("all but "))
    return words == "all" or (found in names) != words.startswith("all but ")


def is_of(cells: str, spec: mr.RecurrentSpec) -> bool:
    """Whether a list of cells, or of forms of cells, has that of the spec; an empty one has all."""
    return not cells or bool({spec.cell, value(spec, "form")} & set(cells.split(", ")))


def applies(where: str, spec: mr.RecurrentSpec) -> bool:
    """Whether a note says that it is of such specs."""
    for part in where.split(" / "):
        cells, _, fields = part.rpartition("with ") if "with " in part else (part, "", "")
        axes = {label: axis for axis, label in LABELS.items()}
        said = [re.fullmatch(rf"({'|'.join(axes)}) (.*)", field) for field in fields.split(" and ") if field]
        if is_of(cells.strip(), spec) and all(one and holds(one[2], value(spec, axes[one[1]])) for one in said):
            return True
    return False


def reader(summary: Summary, column: int) -> Callable[[mr.RecurrentSpec], bool]:
    """What a reader of the table and its notes takes a backend to say: which specs it accepts."""
    backend = summary.titles[column].partition(" ")[0]
    refused = {(row.label, row.of) for row in summary.cells if row.answers[column].text == "no"}
    labels = [row.label for row in summary.fields]
    fields = [
        (axis, row.of if labels.count(label) > 1 else "", row.answers[column].text)
        for axis, label in list(LABELS.items())[2:]
        for row in summary.fields
        if row.label == label and row.answers[column].text != "all"
    ]
    wheres = [note.where for note in summary.notes if note.backend == backend and note.where]

    def accepts(spec: mr.RecurrentSpec) -> bool:
        return (
            (value(spec, "form"), spec.bias) not in refused
            and all(holds(text, value(spec, axis)) for axis, cells, text in fields if concerns(axis, cells, spec))
            and not any(applies(where, spec) for where in wheres)
        )

    return accepts


def concerns(axis: str, cells: str, spec: mr.RecurrentSpec) -> bool:
    return is_of(cells, spec) and not (axis == "recurrent_activation" and len(spec.form.gates) == 1)


def assert_says_all(backend: Backend, support: Support) -> None:
    """The rules give back every answer, the table every acceptance, and the notes every sentence."""
    summary = summarise([support])
    notes = [re.escape(note.reason).replace("…", ".*") for note in summary.notes]
    accepts = reader(summary, 0)
    specs = [spec for spec in SPECS if value(spec, "form") in support.axes["form"]]
    answers = [backend.refuses(spec) for spec in specs]
    for spec, answer in zip(specs, answers, strict=True):
        assert support.refuses(spec) == answer, spec
        assert accepts(spec) is (answer is None), spec
    for sentence in set(answers) - {None}:
        assert any(re.fullmatch(note, str(sentence)) for note in notes), sentence
    assert (support.asked, support.accepted.sum()) == (len(specs), answers.count(None))


# --- Answers and rules -----------------------------------------------------------------------------------------------


def test_the_grid_is_every_combination() -> None:
    specs = SPECS
    assert len(specs) == len(set(specs)) == 3 * 2 * 2 * 2 * 9 * (1 + 3 * 9)
    assert {spec.form for spec in specs} == set(FORMS.values())
    for one in FORMS.values():
        for axis, other in product(list(AXES)[1:], repeat=2):
            if "recurrent_activation" in (axis, other) and len(one.gates) == 1:
                continue
            pairs = {(getattr(spec, axis), getattr(spec, other)) for spec in specs if spec.form is one}
            assert pairs >= {(a, b) for a in AXES[axis] for b in AXES[other] if axis != other}


def test_the_summary_says_what_the_backend_answers(backend: Backend) -> None:
    assert_says_all(backend, ask(backend))


def test_the_table_of_all_backends_says_what_each_answers() -> None:
    backends, _ = installed()
    summary = summarise([ask(one) for one in backends])
    for column, one in enumerate(backends):
        accepts = reader(summary, column)
        for spec in SPECS:
            assert accepts(spec) is (one.refuses(spec) is None), (one.name, spec)
    numbers = [number for row in (*summary.cells, *summary.fields) for entry in row.answers for number in entry.notes]
    assert list(dict.fromkeys(numbers)) == [note.number for note in summary.notes], "in the order in which they are met"


def test_keras_on_an_engine_that_has_no_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("keras")
    monkeypatch.setattr("multirnn_keras.engines.ENGINE", "jax")
    keras = mr.backend("keras")
    support = ask(keras)
    assert_says_all(keras, support)
    (dtype,) = [row for row in summarise([support]).fields if row.label == "dtype"]
    assert dtype.of == "float32, float64"
    assert str(dtype.answers[0]) == "float32 [5]"
    assert [rule.where for rule in support.rules if "engine" in rule.reason] == [{"dtype": ("float64",)}]


def by_conditions(*conditions: tuple[str, dict[str, tuple[object, ...]]]) -> Refuses:
    """Refuses as most backends do: the first condition that holds has the sentence."""

    def refuses(spec: mr.RecurrentSpec) -> str | None:
        for sentence, where in conditions:
            found = {"form": value(spec, "form")} | {axis: getattr(spec, axis) for axis in list(AXES)[1:]}
            if all(found[axis] in values for axis, values in where.items()):
                return sentence.format(spec=spec)
        return None

    return refuses


LSTMS: tuple[object, ...] = ("lstm",)
ODD: dict[str, Refuses] = {
    "nothing but one": lambda spec: (
        None if spec == mr.RecurrentSpec("simple_rnn", 5, 3, dtype=spec.dtype) else "the simple RNN with tanh only"
    ),
    "everything": lambda spec: "it never does",
    "two at once": by_conditions(
        ("no wide LSTM that runs both ways", {"form": LSTMS, "bidirectional": (True,), "dtype": ("float64",)}),
        ("no second bias", {"bias": ("double",)}),
    ),
    "a corner of what is refused anyway": by_conditions(
        ("no float64 there", {"form": LSTMS, "dtype": ("float64",), "bias": ("none", "single")}),
        ("no LSTM", {"form": LSTMS}),
    ),
    "one sentence, two causes": lambda spec: (
        "cannot" if (spec.bias == "none" and spec.num_layers == 2) or spec.dtype == "float64" else None
    ),
    "quotes the whole spec": lambda spec: f"no kernel for {spec}" if spec.num_layers > 1 else None,
    "quotes without quotation marks": lambda spec: (
        f"gates by {spec.recurrent_activation} are unknown here" if spec.recurrent_activation != "sigmoid" else None
    ),
    "both activations at once": lambda spec: (
        f"{spec.activation!r} with {spec.recurrent_activation!r}"
        if spec.activation == spec.recurrent_activation
        else None
    ),
    "no sentence is no refusal": lambda spec: None if spec.bias != "none" else "one bias at least, please",
}


@pytest.mark.parametrize("refuses", ODD.values(), ids=ODD.keys())
def test_odd_refusals_are_all_there(refuses: Refuses) -> None:
    stranger = Stranger(refuses)
    assert_says_all(stranger, ask(stranger))


@pytest.mark.parametrize("seed", range(8))
def test_drawn_refusals_are_all_there(seed: int) -> None:
    draw = random.Random(seed)
    conditions = []
    for number in range(draw.randint(1, 6)):
        axes = draw.sample(list(AXES), draw.randint(1, 3))
        where = {axis: tuple(draw.sample(AXES[axis], draw.randint(1, len(AXES[axis]) - 1))) for axis in axes}
        quoted = draw.choice(["", " of {spec.activation!r}", " of {spec.recurrent_activation}", " of {spec!r}"])
        conditions.append((f"reason {number % 4}{quoted}", where))
    stranger = Stranger(by_conditions(*conditions))
    support = ask(stranger, cells=["lstm", "gru"])
    assert_says_all(stranger, support)


def test_conditions_are_found_again_and_activations_are_not_repeated() -> None:
    torch_like = by_conditions(
        ("not {spec.activation!r}", {"activation": tuple(a for a in AXES["activation"] if a != "tanh")}),
        ("no float64", {"dtype": ("float64",)}),
        ("no biases on two layers", {"bias": ("single", "double"), "num_layers": (2,)}),
    )
    rules = ask(Stranger(torch_like)).rules
    assert [rule.reason for rule in rules] == ["not {activation!r}", "no float64", "no biases on two layers"]
    assert rules[1].where == {"dtype": ("float64",)}
    assert rules[2].where == {"bias": ("single", "double"), "num_layers": (2,)}
    summary = summarise([ask(Stranger(torch_like))])
    assert [str(note) for note in summary.notes] == [
        "with bias single, double and layers 2: no biases on two layers",
        "not …",
        "no float64",
    ]


def test_what_a_spec_cannot_say_is_read_from_the_backend() -> None:
    class Inference(Stranger):
        differentiable = False
        takes_lengths = False

    for backend, said in ((Inference(lambda spec: None), "no"), (Stranger(lambda spec: None), "yes")):
        rows = {row.label: str(row.answers[0]) for row in summarise([ask(backend)]).fields}
        assert (rows["lengths"], rows["gradients"]) == (said, said)


def test_a_cell_alone() -> None:
    support = ask(mr.backend("numpy"), cells=["gru"])
    assert support.axes["form"] == ("gru reset after", "gru reset before")
    assert {row.label for row in summarise([support]).cells} == {"gru reset after", "gru reset before"}


def test_no_backend_makes_no_table() -> None:
    assert (summarise([]).cells, summarise([]).notes) == ((), ())


# --- The command -----------------------------------------------------------------------------------------------------

FRAMEWORKS = ("torch", "tensorflow", "keras", "jax", "onnxruntime")

PICKY = """
import multirnn as mr
from multirnn.protocol import accept

class Picky:
    name = "picky"
    differentiable = False
    takes_lengths = False
    def refuses(self, spec):
        if spec.bidirectional and spec.dtype == "float64":
            return "picky runs backwards in float32 only"
        if spec.cell == "gru":
            return "picky has no gru, " + ("whatever its reset gate does" if spec.reset_after else "least of all this one")
        if spec.activation != "tanh":
            return f"picky has tanh, not {spec.activation!r}"
    def build(self, weights, *, device=None):
        accept(self, weights.spec)
    def read(self, native):
        raise mr.Unrepresentable("nothing to read")
    def versions(self):
        return {"picky": "1.0"}

BACKEND = Picky()
"""


def run(*args: str, columns: int = 80) -> Result:
    return CliRunner().invoke(main, ["backends", "--support", *args], env={"COLUMNS": str(columns)})


@pytest.fixture
def picky(tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """Runs the command where somebody else's backend is installed, and some packages are not."""
    info = tmp_path / "picky-1.0.dist-info"
    info.mkdir()
    (tmp_path / "multirnn_picky.py").write_text(PICKY)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: picky\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[multirnn.backends]\npicky = multirnn_picky:BACKEND\n")

    def run(*args: str, without: tuple[str, ...] = FRAMEWORKS, columns: int = 80) -> tuple[int, str, str]:
        hide = "".join(f"sys.modules[{name!r}] = None\n" for name in without)
        code = f"import sys\n{hide}from multirnn.cli import main\nmain(prog_name='multirnn')"
        done = subprocess.run(
            [sys.executable, "-c", code, "backends", "--support", *args],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(tmp_path), "COLUMNS": str(columns)},
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.mark.parametrize("columns", [80, 120])
def test_it_prints_plainly_within_the_width(columns: int) -> None:
    result = run("--backend", "numpy", "--backend", "numpy", columns=columns)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == "What each backend takes"
    assert lines[1].split() == ["cell", "bias", "numpy"]
    assert lines[3].split() == ["simple_rnn", "none", "yes"]
    assert "\x1b" not in result.stdout
    assert all(len(line) <= columns and line == line.rstrip() for line in lines)
    assert "Why not" not in result.stdout


def test_the_table_of_all_fits_80_columns_and_has_every_sentence() -> None:
    result = run()
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines)
    words = " ".join(result.stdout.split())
    backends, sentences = installed()
    for backend in backends:
        sentences.append(backend.refuses(mr.RecurrentSpec("gru", 5, 3, reset_after=False, bias="double")) or "")
    assert [sentence for sentence in sentences if sentence not in words] == []


def test_a_stranger_and_what_is_missing_at_80_columns(picky: Callable[..., tuple[int, str, str]]) -> None:
    status, out, err = picky()
    assert (status, err) == (0, "")
    assert all(len(line) <= 80 for line in out.splitlines())
    rows = [re.split("  +", line.strip()) for line in out.splitlines()]
    assert ["cell", "bias", "numpy", "picky"] in rows
    assert ["lstm", "none", "yes", "yes"] in rows
    assert ["gru reset after", "none", "yes", "no [1]"] in rows
    assert ["gru reset before", "none", "yes", "no [2]"] in rows
    assert ["directions", "forward, both", "all", "all, but [3]"] in rows
    assert ["activation", "all", "tanh [4]"] in rows
    assert ["dtype", "float32, float64", "all", "all, but [3]"] in rows
    assert ["lengths", "yes", "no"] in rows
    assert ["gradients", "yes", "no"] in rows
    assert ["[1]", "picky", "picky has no gru, whatever its reset gate does"] in rows
    assert ["[4]", "picky", "picky has tanh, not …"] in rows
    assert "with directions both and dtype float64: picky runs backwards in float32 only" in " ".join(out.split())
    for name in ("torch", "keras", "jax"):
        assert any(row[:2] == [name, "missing"] for row in rows)
        assert f'pip install "multirnn[{name}]"' in " ".join(out.split())


def test_json_has_all_that_is_needed_to_give_back_the_answers(picky: Callable[..., tuple[int, str, str]]) -> None:
    status, out, err = picky("--json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert found["axes"] == {axis: [axis_value(value) for value in values] for axis, values in AXES.items()}
    assert found["forms"]["gru reset before"] == {"cell": "gru", "reset_after": False}
    rows = {row["name"]: row for row in found["backends"]}
    assert rows["torch"]["status"] == "missing"
    assert 'pip install "multirnn[torch]"' in rows["torch"]["reason"]
    assert rows["numpy"]["rules"] == []
    row = rows["picky"]
    assert (row["differentiable"], row["takes_lengths"], row["versions"]) == (False, False, {"picky": "1.0"})
    namespace: dict[str, Stranger] = {}
    exec(PICKY, namespace)
    accepted = 0
    for spec in SPECS:
        values = {axis: spec.to_dict()[axis] for axis in list(AXES)[1:]} | {"form": value(spec, "form")}
        fits = [rule for rule in row["rules"] if all(values[axis] in some for axis, some in rule["where"].items())]
        answer = fits[0]["reason"].replace("{activation!r}", repr(spec.activation)) if fits else None
        assert answer == namespace["BACKEND"].refuses(spec)
        accepted += answer is None
    assert (row["asked"], row["accepted"]) == (len(SPECS), accepted)


def test_it_is_restricted_to_backends_and_cells(picky: Callable[..., tuple[int, str, str]]) -> None:
    status, out, _ = picky("--backend", "picky", "--cell", "lstm", "--json")
    found = json.loads(out)
    assert status == 0
    assert [row["name"] for row in found["backends"]] == ["picky"]
    assert found["axes"]["form"] == ["lstm"]
    assert found["backends"][0]["asked"] == 3 * 2 * 2 * 2 * 9 * 9
    status, out, err = picky("--backend", "torch", "--backend", "numpy", without=("torch",))
    assert status == 3
    assert err == "Error: backend 'torch' needs 'torch', which is not installed: pip install \"multirnn[torch]\"\n"
    assert re.search(r"^gradients +yes$", out, re.MULTILINE)


def test_a_cell_restricts_what_is_refused_too() -> None:
    result = CliRunner().invoke(main, ["backends", "--backend", "numpy", "--cell", "lstm", "--json"])
    assert json.loads(result.stdout)["backends"][0]["refuses"] == []
    assert CliRunner().invoke(main, ["backends", "--cell", "rnn"]).exit_code == 2
