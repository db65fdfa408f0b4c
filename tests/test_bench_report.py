"""The report: everything is there, nothing is loaded, what is not timed has no time, and hostile names stay text."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_examples import varied
from multirnn_bench import quantities
from multirnn_bench.charts import FAMILIES, LETTERS, looks
from multirnn_bench.fields import STATUSES
from multirnn_bench.page import html
from multirnn_bench.problems import Problem
from multirnn_bench.report import markdown
from multirnn_bench.results import Results, read
from multirnn_bench.standing import views
from multirnn_bench.statistics import quartiles

from multirnn.errors import MissingFramework
from multirnn.spec import RecurrentSpec

EMPTY = ("br", "col", "input", "link", "meta")  # elements of HTML that have no content
HOSTILE = """</script><script>alert("1")</script> | <b onclick='x'> & *`_ \\"""
CELLS = {"simple_rnn": 11, "lstm": 13, "gru": 17}
CONTENDERS = {"numpy fast": 1.0, "torch": 1.6, "flax nnx.RNN": 2.0, HOSTILE: 3.0}


def row(problem: Problem, name: str, milliseconds: float, seed: int, **changes: Any) -> dict[str, Any]:
    rounds = [float(x) for x in 1e-3 * milliseconds * np.exp(np.random.default_rng(seed).normal(0, 0.01, 7))]
    low, median, high = quartiles(rounds)
    kind, implementation = (
        ("ours", "fast" if "fast" in name else "native") if name in list(CONTENDERS)[:2] else ("peer", "")
    )
    made = {
        "kind": "row", "problem": problem.to_dict(), "mode": "inference", "threads": 1,
        "contender": {"name": name, "kind": kind, "implementation": implementation, "versions": {"numpy": "2.4.6"},
                      "flags": {"OMP_NUM_THREADS": "1"}, "plan": ""},
        "status": "timed", "reason": "", "error_eps": 3.25, "allowed_eps": 64, "parameters": 187, "flops": 10**6 * problem.spec.hidden_size,
        "bytes": 4096, "import_s": 0.1, "prepare_s": 0.01, "first_call_s": 0.02, "rounds": rounds, "repetitions": 9,
        "median": median, "low": low, "high": high, "stable": True, "boundary_median": median, "peak_memory_bytes": 2**20,
        "steal": 0.0, "limit_s": 4e-4, "share": 4e-4 / median,
    }  # fmt: skip
    return made | changes


def not_timed(problem: Problem, name: str, status: str, **changes: Any) -> dict[str, Any]:
    times = dict.fromkeys(
        ("median", "low", "high", "stable", "boundary_median", "peak_memory_bytes", "share", "first_call_s")
    )
    error = {"error_eps": 12345.0 if status == "wrong" else None}
    return row(
        problem, name, 1, 0, status=status, reason=f"it is {status}: {HOSTILE}", rounds=[], **times, **error, **changes
    )


def sample() -> Results:
    rows = []
    for place, (cell, hidden) in enumerate(CELLS.items()):
        problem = Problem(f"{cell} {hidden}", RecurrentSpec(cell, 5, hidden), 3, 7)
        rows += [row(problem, name, ms * (place + 1), seed) for seed, (name, ms) in enumerate(CONTENDERS.items())]
    lasting = varied(problem, name=HOSTILE, lengths=(1, 7), num_layers=2, bidirectional=True, dtype="float64", bias="")
    rows += [row(lasting, "numpy fast", 1, 9)]
    rows += [not_timed(lasting, f"{status}er", status) for status in STATUSES if status != "timed"]
    rows += [row(problem, name, ms, 5, mode="training", threads=2) for name, ms in CONTENDERS.items()]
    header = {"kind": "header", "version": 1, "table": HOSTILE, "machine": {"processor": HOSTILE, "allowed_cores": [0, 1]},
              "limits": {}, "settings": {"rounds": 7}}  # fmt: skip
    return Results(header, rows)


class Page(HTMLParser):
    """Fails where tags are not balanced; keeps the elements, and the text of each row of the table of all rows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: dict[str, list[str]] = {}
        self.titles = ""
        self.texts: list[str] = []
        self._row: list[str] | None = None
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        assert len(given) == len(attributes), f"<{name}> has an attribute twice"
        self.elements.append((name, given))
        if name not in EMPTY:
            self.open.append(name)
        if name == "tr":
            self._row = self.rows.setdefault(given["id"] or "", []) if "id" in given else None
        if name in ("td", "th") and self._row is not None:
            self._row.append("")

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name, f"</{name}> closes nothing"

    def handle_data(self, text: str) -> None:
        if not self.open or self.open[-1] in ("script", "style"):
            return
        self.texts.append(text)
        if self._row and {"td", "th"} & set(self.open):
            self._row[-1] += text


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(html(sample()))


# --- HTML --------------------------------------------------------------------------------------------------------------------------


def test_every_row_is_there(page: Page) -> None:
    results = sample()
    assert list(page.rows) == [f"row-{number}" for number in range(len(results.rows))]
    for one, cells in zip(results.rows, page.rows.values(), strict=True):
        assert cells[:4] == [one["problem"]["name"], one["mode"], str(one["threads"]), one["contender"]["name"]]
        assert cells[4] == one["status"]
        assert cells[13] == one["reason"]


def test_what_is_not_timed_has_a_reason_and_no_time(page: Page) -> None:
    results = sample()
    for one, cells in zip(results.rows, page.rows.values(), strict=True):
        assert (cells[5:8] == ["–"] * 3) == (one["status"] != "timed")
    letters = [
        given
        for name, given in page.elements
        if name == "td" and set((given.get("class") or "").split()) & set(LETTERS)
    ]
    assert len(letters) == len(LETTERS)
    fastest = [given for name, given in page.elements if name == "td" and "best" in (given.get("class") or "").split()]
    assert {results.rows[int(given["data-row"] or -1)]["status"] for given in fastest} == {"timed"}


def test_nothing_is_loaded_from_anywhere(page: Page) -> None:
    for name, given in page.elements:
        assert name not in ("iframe", "img", "object", "embed", "base")
        assert "src" not in given
        for reference in ("href", "xlink:href", "action", "data", "poster"):
            assert (given.get(reference) or "#").startswith(("#", "data:,")), (name, given)
        assert not [attribute for attribute in given if attribute.startswith("on")]
    text = html(sample())
    assert not re.search(r"@import|url\(|https?://|fetch\(|XMLHttp|import\(", text)


def test_a_hostile_name_stays_text(page: Page) -> None:
    assert sum(name == "script" for name, _ in page.elements) == 1
    assert not [name for name, _ in page.elements if name == "b" and "onclick" in _]
    assert any(HOSTILE in text for text in page.texts)


def test_the_mark_says_which_of_ours_it_is_and_ours_stand_before_peers() -> None:
    problem = Problem("one", RecurrentSpec("lstm", 5, 7), 2, 3)
    made = {"torch frozen": "frozen", "torch fast": "fast", "torch": "native"}
    rows = [row(problem, "torch.nn", 1, 0)]
    for name, implementation in made.items():
        contender = {"name": name, "kind": "ours", "implementation": implementation}
        rows.append(row(problem, name, 1, 0, contender=contender))
    found = looks(rows)
    assert list(found) == ["torch", "torch fast", "torch frozen", "torch.nn"]
    drawn = Page(html(Results({}, rows))).elements
    for name, mark in {**made, "torch.nn": "peer"}.items():
        own = {given["href"] for kind, given in drawn if kind == "use" and given["class"] == found[name].classes}
        assert own == {f"#{mark}"}
        assert mark in {given.get("id") for _, given in drawn}


def test_every_mark_leads_to_a_row(page: Page) -> None:
    marked = [given["data-row"] for _, given in page.elements if "data-row" in given]
    assert marked
    assert {f"row-{number}" for number in marked} <= set(page.rows)


def places(shares: list[float]) -> list[tuple[str, float, float]]:
    """The contenders of a chart of these shares in the order in which they are drawn, where, and where 100 % is."""
    problem = Problem("p", RecurrentSpec("gru", 5, 11), 3, 7)
    rows = [row(problem, f"c{place}", 1, 0, share=share) for place, share in enumerate(shares)]
    card = re.search("<h2>How much of the machine.*?(?=</section>)", html(Results({}, rows)), re.DOTALL)
    assert card is not None
    drawn = Page(card[0]).elements
    limit = next(given["x1"] for _, given in drawn if given.get("class") == "one")
    marks = [given for name, given in drawn if name == "use" and "data-row" in given]
    return [(f"c{mark['data-row']}", float(mark["x"].rstrip("%")), float(limit.rstrip("%"))) for mark in marks]


@pytest.mark.parametrize("shares", [[1.12, 1.05, 0.97], [1.31, 0.2, 1.3], [9.0, 1.1]])
def test_who_is_beyond_the_limit_stands_where_it_is(shares: list[float]) -> None:
    found = places(shares)
    for name, place, limit in found:
        assert place == pytest.approx(shares[int(name[1:])] * limit, abs=0.02)
        assert place <= 100
    assert found[-1][0] == "c0"  # the best is drawn on top of the others


def test_where_nobody_is_beyond_the_limit_it_is_the_end_of_the_axis() -> None:
    assert {limit for _, _, limit in places([1.0, 0.5])} == {100.0}


def test_there_is_a_view_for_every_mode_and_number_of_threads(page: Page) -> None:
    found = [
        (given["data-mode"], given["data-threads"]) for name, given in page.elements if given.get("class") == "view"
    ]
    assert found == [("inference", "1"), ("training", "2")]


def test_a_file_without_rows_or_with_none_timed_is_a_page() -> None:
    header = sample().header
    Page(html(Results(header, [])))
    Page(html(Results({}, [not_timed(Problem("p", RecurrentSpec("gru", 5, 11), 3, 7), "torch", "failed")])))
    assert markdown(Results(header, []))


@pytest.mark.parametrize(
    "missing", ["share", "limit_s", "flops", "import_s", "peak_memory_bytes", "error_eps", "boundary_median"]
)
def test_what_is_not_known_is_left_out(missing: str) -> None:
    results = sample()
    text = html(Results(results.header, [one | {missing: None} for one in results.rows]))
    Page(text)
    shown = {piece.strip() for piece in re.findall(r">([^<]*)<", text)}
    assert not shown & {"None", "null", "nan", "undefined"}


def test_the_style_names_every_colour() -> None:
    text = html(sample())
    assert all(f"--f{place}:" in text for place in range(len(FAMILIES) + 1))
    used, defined = set(re.findall(r"var\((--[\w-]+)", text)), set(re.findall(r"(--[\w-]+):", text))
    assert used <= defined


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_it_opens_in_a_browser(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    # What the page's own script cannot tell of itself: whether it raised, and what came of a press.
    probe = """<script>
    addEventListener("error", event => document.title = "raised: " + event.message);
    addEventListener("load", () => {
      document.querySelector('[data-mode-choice="training"]').click();
      document.querySelector('[data-threads-choice="2"]').click();
      document.querySelectorAll(".rows th")[5].click();
      const shown = [...document.querySelectorAll("tr.row")].filter(row => !row.hidden).map(row => row.dataset.id);
      const mark = document.querySelector(".view.shown use[data-row]"), press = new MouseEvent("click", { bubbles: true });
      mark.dispatchEvent(press);
      const opened = document.querySelector("tr.detail.open").previousElementSibling.dataset.id === mark.dataset.row;
      document.querySelector(".chip").click();
      const left = [...document.querySelectorAll("tr.row")].filter(row => !row.hidden).length;
      document.title = JSON.stringify([shown, document.querySelectorAll(".view.shown").length, opened, left]);
    });</script></head>"""
    file.write_text(html(sample()).replace("</head>", probe, 1), encoding="utf-8")
    quiet = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
    )
    command = [str(BROWSER), *quiet, f"--user-data-dir={tmp_path / 'browser'}", "--dump-dom", file.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    title = re.search(r"<title>(.*?)</title>", shown, re.DOTALL)
    assert title
    results = sample()
    training = [number for number, one in enumerate(results.rows) if one["mode"] == "training"]
    fastest_first = sorted(training, key=lambda number: results.rows[number]["median"])
    assert json.loads(title[1]) == [[str(number) for number in fastest_first], 1, True, len(training) - 1]


# --- Markdown ----------------------------------------------------------------------------------------------------------------------


def tables(text: str) -> Iterator[list[str]]:
    """The lines of each table."""
    for block in text.split("\n\n"):
        lines = block.splitlines()
        if lines and lines[0].startswith("|"):
            yield lines


def test_the_tables_of_markdown_are_whole() -> None:
    text = markdown(sample())
    found = list(tables(text))
    assert len(found) == 4  # ours against theirs, and who stands where, in two views
    for lines in found:
        assert len({line.count("|") for line in lines}) == 1
    assert "<b" not in text
    assert "<script" not in text


def test_markdown_tells_the_duels_and_the_reasons() -> None:
    text = markdown(sample())
    (duel, *_) = views(sample().rows)[0].duels
    ours, peer = (quantities.seconds(one["median"]) for one in (duel.ours, duel.peer))
    share, ratio = (
        quantities.share(duel.ours["share"]),
        f"{duel.ratio.value:.2f} ({duel.ratio.low:.2f}–{duel.ratio.high:.2f})",
    )
    assert f"| simple\\_rnn 11 | numpy fast | {ours} | {share} | flax nnx.RNN | {peer} | {ratio} |" in text
    for status in set(STATUSES) - {"timed"}:
        assert f"- {status}er, {status}: it is {status}" in text
    assert "12345" not in text


def test_no_difference_is_said() -> None:
    problem = Problem("p", RecurrentSpec("gru", 5, 11), 3, 7)
    rows = [row(problem, "numpy fast", 1, 0), row(problem, "peer", 1, 1)]
    assert "no difference" in markdown(Results({}, rows))


# --- Standing ----------------------------------------------------------------------------------------------------------------------


def test_only_what_was_timed_can_win() -> None:
    problem = Problem("p", RecurrentSpec("gru", 5, 11), 3, 7)
    rows = [row(problem, "slow", 5, 0), row(problem, "quick and wrong", 1, 1, status="wrong", reason="off")]
    (view,) = views(rows)
    assert view.best["p"]["contender"]["name"] == "slow"
    assert [(one.name, one.wins, len(one.timed)) for one in view.standings] == [
        ("slow", 1, 1),
        ("quick and wrong", 0, 0),
    ]
    assert view.standings[1].behind is None


def test_a_duel_is_between_the_best_of_both_sides() -> None:
    view = views(sample().rows)[0]
    assert [duel.problem for duel in view.duels] == ["simple_rnn 11", "lstm 13", "gru 17"]
    for duel in view.duels:
        assert (duel.ours["contender"]["name"], duel.peer["contender"]["name"]) == ("numpy fast", "flax nnx.RNN")
        assert duel.ratio.low < 2 < duel.ratio.high


# --- Words -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (quantities.seconds, 1.32e-5, "13.2 µs"),
        (quantities.seconds, 0.0009999, "1.00 ms"),
        (quantities.seconds, 0.001, "1 ms"),
        (quantities.seconds, 0.00123, "1.23 ms"),
        (quantities.seconds, 431e-9, "431 ns"),
        (quantities.seconds, 75.0, "75 s"),
        (quantities.seconds, None, "–"),
        (quantities.operations, 33_600_000, "33.6 MFLOP"),
        (quantities.bytes_, 2**20, "1 MiB"),
        (quantities.factor, 1.415, "1.42"),
        (quantities.factor, 1234.5, "1,234"),
        (quantities.share, 0.831, "83 %"),
        (quantities.share, 0.0043, "0.4 %"),
    ],
)  # fmt: skip
def test_quantities(function: Any, value: float | None, text: str) -> None:
    assert function(value) == text


def test_without_jinja_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingFramework, match=r'pip install "multirnn\[bench\]"'):
        html(sample())
    assert markdown(sample())


def test_a_file_that_was_written_is_read(tmp_path: Path) -> None:
    results = sample()
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in (results.header, *results.rows)))
    assert html(read(file)) == html(results)
