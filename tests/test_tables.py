"""Tables fit the terminal: no word and no number is broken, at any width, in any alphabet."""

import os
import re
from typing import Any

import pytest
from command_line import run, run_apart
from rich.cells import cell_len

import multirnn as mr
from multirnn.diagnosis import first_divergence
from multirnn.numerics import Difference
from multirnn.parity import train_parity
from multirnn.replacement import Kept, Replaced, Replacement
from multirnn.tables import Column, Styled, Table, encodable, json_value, terminal_width

WIDTHS = [60, 80, 100, 150]
SPEC = mr.RecurrentSpec("gru", 4, 3)
TITLE = "나의 순환 신경망 (둘째 층)"


class Refusing:
    """A backend that has a long name and a long reason."""

    name, differentiable, engine = "somebody_elses_recurrent_layers", True, "엔진"

    def refuses(self, spec: mr.RecurrentSpec) -> str:
        return "it applies its reset gate after the recurrent product, and reset_after=False is another function; " * 2

    def build(self, weights: mr.Weights, *, device: str | None = None) -> Any:
        raise AssertionError

    read = build

    def versions(self) -> dict[str, str]:
        return {"somebody": "2026.11.30.post1+cu130"}


class Titled:
    """A layer with a title of its own."""

    spec = SPEC

    def __init__(self, seed: int) -> None:
        self.layer = mr.build(SPEC, "numpy", seed=seed)

    def __call__(self, *args: Any, **options: Any) -> mr.Output:
        return self.layer(*args, **options)

    def vjp(self, *args: Any, **options: Any) -> mr.Gradients:
        return self.layer.vjp(*args, **options)


Titled.__name__ = TITLE


class Undone(Replacement):
    def restore(self) -> None:
        raise AssertionError


WRONG = mr.backend("numpy").build(mr.initialise(SPEC, 1))


@pytest.fixture(scope="module")
def records() -> dict[str, Any]:
    backends = ["numpy", Refusing()]
    right = mr.build(SPEC, "numpy")
    return {
        "comparison": mr.compare(SPEC, backends=backends),  # type: ignore[arg-type]
        "parity": train_parity(SPEC, backends=backends, steps=3),  # type: ignore[arg-type]
        "divergence": first_divergence(right, Titled(1)),
        "diagnosis": mr.diagnose(right, Titled(1)),
        "equal": mr.diagnose(right, Titled(0)),
        "replacement": Undone(
            right,
            [Replaced("module.encoder.layers.12.rnn", "ParametrizedLSTM", "ParametrizedFastLSTM")],
            [Kept("module.decoder.둘째_층", "LSTM", "it projects its state (proj_size=2), which no fast layer does")],
        ),
    }


def words(text: str) -> set[str]:
    return {word for word in text.split() if not set(word) <= set("─")}


def assert_fits(text: str, width: int, wide: str) -> None:
    """No line is longer, and every word is one of the text that has all the room."""
    assert [line for line in text.splitlines() if cell_len(line) > width] == []
    assert [line for line in text.splitlines() if line != line.rstrip()] == []
    assert words(text) <= words(wide)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["comparison", "parity", "divergence", "diagnosis", "equal", "replacement"])
def test_a_record_fits(records: dict[str, Any], name: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    wide = str(records[name])
    monkeypatch.setenv("COLUMNS", str(width))
    assert_fits(str(records[name]), width, wide)
    assert repr(records[name]) == str(records[name])


COMMANDS = {
    "compare": ("compare", "--cell", "gru", "--hidden", 3, "--windows", 3, "--backend", "numpy", "--backend", "torch"),
    "train": ("compare", "--train", "--cell", "gru", "--hidden", 3, "--windows", 3, "--backend", "numpy", "--defaults"),
    "backends": ("backends", "--backend", "numpy", "--backend", "torch"),
    "support": ("backends", "--support", "--backend", "numpy", "--backend", "torch"),
    "summary": ("summary", "--cell", "lstm", "--input", 10000, "--hidden", 3000, "--layers", 3, "--bidirectional"),
    "explain": ("explain", "--cell", "gru", "--input", 1000, "--hidden", 3000, "--layers", 2),
    "diagnose": ("diagnose", "numpy", "torch", "--cell", "gru", "--hidden", 3, "--mistake", "gates z r n"),
    "mistakes": ("diagnose", "--list"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_what_a_command_shows_fits(name: str) -> None:
    status = {"diagnose": 1}.get(name, 0)
    wide = run(*COMMANDS[name], COLUMNS="1000")
    assert wide.exit_code == status, wide.output
    for width in WIDTHS:
        result = run(*COMMANDS[name], COLUMNS=str(width))
        assert result.exit_code == status
        assert_fits(result.stdout, width, wide.stdout)


def test_where_nothing_tells_the_width_it_is_80() -> None:
    status, out, err = run_apart("explain", *map(str, COMMANDS["explain"][1:]))
    assert (status, err) == (0, "")
    assert max(map(cell_len, out.splitlines())) <= 80


@pytest.mark.parametrize("columns", ["0", "", "-5", "wide"])
def test_a_width_that_is_none(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr("sys.__stdout__", None)
    assert terminal_width() == 80


# --- The layout ------------------------------------------------------------------------------------------------------


def table(**options: Any) -> Table:
    made = Table("contender", Column("time", number=True), Column("of limit", number=True), "words", **options)
    made.add_row("pytorch fast (zen4)", "0.061855 ms", "43 %", "a sentence of some length")
    made.add_row("numpy", "inf", "none known", "-")
    return made


def lines(made: Table, width: int) -> list[str]:
    return ["".join(line).rstrip() for line in made.lines(width)]


def test_as_wide_as_it_is() -> None:
    assert lines(table(), 80) == [
        "contender                   time    of limit  words",
        "───────────────────────────────────────────────────────────────────────",
        "pytorch fast (zen4)  0.061855 ms        43 %  a sentence of some length",
        "numpy                        inf  none known  -",
    ]


def test_words_are_broken_and_numbers_are_not() -> None:
    assert lines(table(), 40) == [
        "                           of",
        "contender         time  limit  words",
        "───────────────────────────────────────",
        "pytorch    0.061855 ms   43 %  a",
        "fast                           sentence",
        "(zen4)                         of some",
        "                               length",
        "numpy              inf   none  -",
        "                        known",
    ]


def test_it_goes_on_below_itself() -> None:
    assert lines(table(), 24) == [
        "contender           time",
        "────────────────────────",
        "pytorch      0.061855 ms",
        "fast (zen4)",
        "numpy                inf",
        "",
        "contender       of limit",
        "────────────────────────",
        "pytorch fast        43 %",
        "(zen4)",
        "numpy         none known",
        "",
        "contender    words",
        "───────────────────────",
        "pytorch      a sentence",
        "fast (zen4)  of some",
        "             length",
        "numpy        -",
    ]


def test_spare_columns_go_first() -> None:
    made = Table("name", Column("line", whole=True, spare=True), "words")
    made.add_row("one", "▁▂▃ ▄▅▆", "some words to break")
    assert lines(made, 40)[2] == "one   ▁▂▃ ▄▅▆  some words to break"
    assert lines(made, 30)[2] == "one   some words to break"
    assert made.fits("line", 40)
    assert not made.fits("line", 30)
    assert "▁▂▃ ▄▅▆" in made.html()


def test_a_syllable_of_hangul_takes_two_cells() -> None:
    made = Table("이름", Column("수", number=True))
    made.add_row("순환 신경망", "12")
    made.add_row("LSTM", "3")
    assert lines(made, 80) == ["이름         수", "───────────────", "순환 신경망  12", "LSTM          3"]
    assert lines(made, 10)[2:4] == ["순환    12", "신경망"]


def test_sections_and_cells_that_are_not_given() -> None:
    made = Table("a", "b")
    made.add_section()
    made.add_row("1", "2")
    made.add_section()
    made.add_section()
    made.add_row("3")
    made.add_section()
    assert lines(made, 80)[2:] == ["1  2", "", "3"]
    assert made.rows == [("1", "2"), ("3", "")]


def test_a_command_to_copy_is_not_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    made = Table("what")
    made.add_row('it needs a framework: pip install "multirnn[torch]" brings it')
    assert 'pip install "multirnn[torch]"' in str(made)


def test_styles_are_for_terminals_alone() -> None:
    made = Table("a", "b")
    made.add_row(Styled("x", "red"), "y", style="bold")
    (_, _, (x, _, y)) = made.lines(80)
    assert (x.style, y.style) == ("bold red", "bold")
    assert "\x1b" not in str(made)


# --- Encodings and JSON ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["cp949", "euc_kr", "ascii", "cp1252"])
def test_what_an_encoding_lacks_is_drawn_with_what_it_has(encoding: str) -> None:
    drawn = "– ─── ▁▂█ max|a−b| × ² …"
    assert encodable(drawn, "utf-8") == encodable(drawn, None) == drawn
    encodable(drawn, encoding).encode(encoding)
    assert encodable("오차 …", "cp949") == "오차 …"


def test_a_record_is_printed_where_the_locale_is_korean() -> None:
    prelude = """
import sys, multirnn as mr
spec = mr.RecurrentSpec("gru", 4, 3)
a, b = mr.build(spec, "numpy"), mr.build(spec, "numpy", seed=1)
print("한국어", mr.first_divergence(a, b), mr.compare(spec, backends="numpy"), sep="\\n")
sys.exit(0)
"""
    env = {**os.environ, "PYTHONIOENCODING": "cp949", "PYTHONUTF8": "0", "COLUMNS": "80"}
    status, out, err = run_apart(prelude=prelude, env=env, encoding="cp949")
    assert (status, err) == (0, "")
    assert "한국어" in out
    assert re.search(r"^0 +forward +0 .* [1-8]{3,}$", out, re.MULTILINE)


def test_json_has_neither_nan_nor_infinity() -> None:
    import numpy as np

    value = {
        "a": np.array([[1, np.nan], [np.inf, 2]]),
        "b": (float("-inf"), np.float32(0.5)),
        "c": [None, "x", 3, True],
    }
    assert json_value(value) == {"a": [[1, None], [None, 2]], "b": [None, 0.5], "c": [None, "x", 3, True]}
    assert json_value(np.int64(3)) == 3
    assert Difference(0.0, (), 0.0).eps == 0
