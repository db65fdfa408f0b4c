"""The documents cannot lie: their code runs, and their tables are generated here.

`make readme` writes the generated parts again.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import multirnn as mr
from multirnn.cells import CELLS, FORMS
from multirnn.conventions import CONVENTIONS, Convention
from multirnn.formats import FORMATS
from multirnn.formats.fitting import fitted
from multirnn.mistakes import MISTAKES, mistakes_for
from multirnn.numerics import TOLERANCE
from multirnn.support import AXES, ask
from multirnn.support_table import Line, summarise
from multirnn.testing import cases

ROOT = Path(__file__).parent.parent
RUN = ("README.md", "docs/conventions.md", "docs/backends.md", "docs/diagnosis.md", "docs/files.md", "docs/testing.md")
RUN += ("docs/whole-models.md",)
"""The documents whose Python code runs, each from top to bottom in a namespace of its own."""
GENERATED_IN = (*RUN, "benchmarks/RESULTS.md")
"""The documents with generated parts."""
LINKING = (*GENERATED_IN, "docs/command-line.md", "docs/benchmarks.md", "CONTRIBUTING.md", "SECURITY.md")
LINKING += ("backends/README.md", "docs/lessons/README.md", "benchmarks/NOTES.md")
NAMES = {"jax": "JAX", "keras": "Keras", "numpy": "NumPy", "onnxruntime": "ONNX Runtime", "torch": "PyTorch"}


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def support() -> str:
    """What every backend answers about the grid of `multirnn.support`, and each reason why not."""
    supports = [ask(mr.backend(name)) for name in mr.backends()]
    summary = summarise(supports)
    titles = [NAMES.get(one.name, one.name) + one.title.removeprefix(one.name) for one in supports]

    def entries(row: Line) -> list[str]:
        signs = {"yes": "✓", "no": "–"}
        return [
            signs.get(entry.text, entry.text)
            + (f"<sup>{', '.join(map(str, entry.notes))}</sup>" if entry.notes else "")
            for entry in row.answers
        ]

    cells = []
    for row in summary.cells:
        form = FORMS[row.label]
        spec = mr.RecurrentSpec(form.name, 10, 3, bias=row.of, reset_after=form.reset_after)
        name, _, rest = row.label.partition(" ")
        cells.append([f"`{name}` {rest}".rstrip(), f'`"{row.of}"`', str(spec.parameter_count), *entries(row)])
    fields = [[row.label, row.of, *entries(row)] for row in summary.fields]
    notes = [f"<sup>{note.number}</sup> {note}" for note in summary.notes]
    return "\n\n".join(
        [
            table(["cell", "bias", "parameters (10 → 3)", *titles], cells),
            table(["field", "", *titles], fields),
            "<br>\n".join([f"All activations: {', '.join(map(str, AXES['activation']))}", *notes, *other_engines()]),
        ]
    )


def other_engines() -> Iterator[str]:
    """What Keras refuses on JAX and on PyTorch, and not on TensorFlow: asked in processes of their own."""
    known = ask(mr.backend("keras")).to_dict()["rules"]
    main = [sys.executable, "-c", "from multirnn.cli import main; main()"]
    for engine in ("jax", "torch"):
        command = [*main, "backends", "--support", "--json", "--backend", "keras"]
        done = subprocess.run(command, capture_output=True, env=os.environ | {"KERAS_BACKEND": engine}, check=True)
        for rule in json.loads(done.stdout)["backends"][0]["rules"]:
            if rule not in known:
                where = ", ".join(f"{axis} {' or '.join(map(str, values))}" for axis, values in rule["where"].items())
                yield f"{NAMES['keras']} ({engine}), {where}: {rule['reason']}"


def observed() -> str:
    found = json.loads((ROOT / "tests/observed.json").read_text())
    rows = []
    for name, dtypes in found.items():
        for dtype, row in dtypes.items():
            worst = f"{row['worst_eps']:.2g}" if row["worst_eps"] else "0 (it is the reference)"
            bound = TOLERANCE[dtype]
            first, _, rest = name.partition(" ")
            title = f"{NAMES[first]} {rest}".strip()
            rows.append([title, dtype, f"{row['accepted']} of {row['drawn']}", worst, str(bound)])
    return table(["backend", "dtype", "specs accepted", "worst difference (eps)", "allowed (eps)"], rows)


def wrong() -> str:
    kinds = {name.partition(":")[0] for name, _ in cases()}
    cells = ", ".join(
        f"{len(mistakes_for(mr.RecurrentSpec(cell, 4, 4, 2, True)))} as {'an' if cell == 'lstm' else 'a'} {cell}"
        for cell in CELLS
    )
    return (
        f"Each of {len(MISTAKES)} known mistakes, from a gate order to a mask off by one, is made on every backend and caught "
        f"by one of {len(cases())} checks of {len(kinds)} kinds. Two layers in both directions can have {cells}."
    )


def mutation() -> str:
    """The beginning of what the example above it prints."""
    names = code_run("docs/testing.md")
    lines = str(names["mutation_score"](names["outputs_are_close"])).splitlines()
    shown = [*lines[: lines.index("", 2) + 2], "  …"]
    return "\n".join(["```text", *shown, "```"])


def diagnosis() -> str:
    return f"```text\n{code_run('docs/diagnosis.md')['diagnosis']}\n```"


def replacement() -> str:
    return f"```text\n{code_run('docs/whole-models.md')['replacement']}\n```"


def rates() -> str:
    found = json.loads((ROOT / "benchmarks/results/diagnosis.json").read_text())["by_planted_mistakes"]
    none, one, two = (found[planted] for planted in ("0", "1", "2"))
    return (
        f"`diagnose` names the right cause of {one['right']} of {one['pairs']} drawn pairs with one planted mistake, and of "
        f"{two['right']} of {two['pairs']} pairs with two. It names none for {none['right']} of {none['pairs']} equal pairs "
        "(`benchmarks/diagnosis.py`)."
    )


def plugin() -> str:
    added = json.loads((ROOT / "benchmarks/results/plugin.json").read_text())["wall_ms"]["added"]
    return f"adds {added:.0f} ms to a run that does not use it"


def compare() -> str:
    """What the code above it prints, without the errors, which a machine's arithmetic changes."""
    comparison = mr.compare(mr.RecurrentSpec("gru", 4, 8, bidirectional=True))
    rows = [[row.title, str(row.parameters), row.verdict] for row in comparison.rows]
    return table(["backend", "parameters", "verdict"], rows)


def speed() -> str:
    return pairs(json.loads((ROOT / "benchmarks/results/foundation.json").read_text())["results"])


def pairs(results: list[dict[str, Any]]) -> str:
    """Pairs as `benchmarks/overhead.py` reads them, a row each."""
    rows = []
    for r in results:
        shape = ", ".join(map(str, r["shape"])) or "–"
        ratio = f"{r['ratio']:.2f} ({r['low']:.2f}–{r['high']:.2f})"
        rows.append([r["what"], shape, f"{r['ours']:.0f}", f"{r['theirs']:.0f}", ratio, r["goal"], held(r)])
    head = ["what", "B, T, I, H", "ours, µs", "theirs, µs", "theirs / ours (quartiles)", "goal", ""]
    return table(head, rows)


def held(result: dict[str, Any]) -> str:
    return "held" if result["held"] else "**not held**"


def goals() -> str:
    """A column for every kind of processor."""
    machines = [json.loads(path.read_text()) for path in sorted((ROOT / "benchmarks/results/goals").iterdir())]
    cells: dict[tuple[str, int, str, str], list[str]] = {}
    for found in machines:
        for r in found["goals"]:
            least = f"least {r['least']:.2f} at `{r['where']}`"
            text = f"{r['mean']:.2f} ({r['low']:.2f}–{r['high']:.2f}), {least}, {held(r)}"
            cells.setdefault((r["mode"], r["threads"], r["what"], r["goal"]), []).append(text)
    rows = [[mode, str(threads), what, goal, *texts] for (mode, threads, what, goal), texts in cells.items()]
    judged = table(["mode", "threads", "what", "goal", *(found["name"] for found in machines)], rows)
    return "\n\n".join([judged, *map(disturbance, machines)])


SHOWN = {
    ("inference", "torch fast against torch.nn.RNN"): "PyTorch fast against `nn.RNN`",
    ("inference", "torch fast against torch.nn.GRU"): "PyTorch fast against `nn.GRU`",
    ("inference", "torch fast against torch.nn.LSTM"): "PyTorch fast against `nn.LSTM`",
    ("training", "torch fast against torch.nn.RNN and GRU"): "PyTorch fast against `nn.RNN` and `nn.GRU`, training",
    ("inference", "Keras fast against Keras' own layers"): "Keras fast against Keras' own layers",
    ("inference", "JAX fast against flax.nnx.RNN"): "JAX fast against `flax.nnx.RNN`",
    ("inference", "NumPy fast against the textbook loop"): "NumPy fast against the textbook loop",
}
"""The goals that README.md shows, by mode and name, and what it calls them."""


def ratios() -> str:
    """The means of some goals, one thread and two, a column for every kind of processor."""
    machines = [json.loads(path.read_text()) for path in sorted((ROOT / "benchmarks/results/goals").iterdir())]

    def means(found: dict[str, Any], mode: str, what: str) -> str:
        by_threads = {r["threads"]: r["mean"] for r in found["goals"] if (r["mode"], r["what"]) == (mode, what)}
        return " / ".join(f"{by_threads[threads]:.1f}" for threads in sorted(by_threads))

    rows = [[title, *(means(found, *key) for found in machines)] for key, title in SHOWN.items()]
    return table(["one thread / two threads", *(found["name"] for found in machines)], rows)


def disturbance(found: dict[str, Any]) -> str:
    """What else ran beside a standard run."""
    share = f"{found['taken']['median']:.1%}, at most {found['taken']['most']:.0%}"
    told = f"{found['name']}: while a row was timed, the host took this share of the cores: in the median {share}."
    if again := found["rows"]["again"]:
        told += f"\n{again} of {found['rows']['all']} rows, where it took more than 2 %, were timed again."
    return told


def fast() -> str:
    """The wrapper, the cost of a step and the memory, as `benchmarks/overhead.py` reads them."""
    found = json.loads((ROOT / "benchmarks/results/fast.json").read_text())
    memory = []
    for row in found["memory"]:
        shape = ", ".join(map(str, row["shape"]))
        times = f"{row['bytes'] / row['minimum']:.2f}"
        memory.append([row["what"], row["cell"], shape, f"{row['bytes'] / 1e6:.0f}", times, held(row)])
    head = ["memory of", "cell", "B, T, I, H", "input and one call, MB", "times the minimum, goal 1.3", ""]
    return "\n\n".join([pairs(found["results"]), table(head, memory)])


READ_BY = {  # the package that reads and writes a format, where NumPy alone does not
    "keras": "h5py to write", "msgpack": "msgpack", "onnx": "onnx",
}  # fmt: skip
TITLES = {
    "safetensors": "safetensors", "npz": "NumPy", "torch": "PyTorch", "keras": "Keras 1, 2 and 3", "msgpack": "Flax",
    "onnx": "ONNX", "rtneural": "RTNeural", "nam": "Neural Amp Modeler",
}  # fmt: skip


def formats() -> str:
    """The formats of files: suffixes, read, written, how arrays lie in them, and the package that is needed."""
    rows = [
        [
            TITLES[one.name],
            ", ".join(f"`{suffix}`" for suffix in one.suffixes),
            "✓",
            "✓" if one.convention else "–",
            f"`{one.convention}`" + ("" if one.fixed else ", or any that `convention=` names")
            if one.convention
            else "–",
            READ_BY.get(one.name, "–"),
        ]
        for one in FORMATS.values()
    ]
    return table(["format", "suffixes", "read", "written", "convention", "package"], rows)


def converted(form: str, source: Convention, target: Convention) -> str:
    """The sign of a conversion, which is made: exact, rounded, or refused."""
    spec = mr.RecurrentSpec(FORMS[form].name, 5, 4, bias=source.default_bias[form], reset_after=FORMS[form].reset_after)
    given = mr.initialise(spec, 1)
    zero = source.zero.get(form, ("nothing",))
    given = mr.Weights(spec, {name: array * (not name.endswith(zero)) for name, array in given.arrays.items()})
    known = {"reset_after": spec.reset_after} if spec.cell == "gru" else {}
    weights = mr.from_arrays(mr.to_arrays(given, convention=source), convention=source, **known)
    try:
        held, changes = fitted(weights, target)
        arrays = mr.to_arrays(held, convention=target)
    except mr.Unrepresentable:
        return "–"
    back = mr.from_arrays(arrays, convention=target, **known)
    assert all(np.allclose(back.arrays[name], array, rtol=0, atol=2e-7) for name, array in held.arrays.items())
    rounded = [change for change in changes if "rounded" in change]
    assert bool(rounded) or back == held
    return "≈" if rounded else "✓"


def conversions() -> str:
    """For each cell, every directed conversion of weights with the source's own biases."""
    parts = []
    for form, cell in FORMS.items():
        among = [one for one in CONVENTIONS.values() if form in one.arrays]
        rows = [[f"`{a.name}`", *("" if a is b else converted(form, a, b) for b in among)] for a in among]
        head = ["from ↓ to →", *(f"`{one.name}`" for one in among)]
        parts += [f"**{cell.title}**", table(head, rows)]
    return "\n\n".join(parts)


@cache
def code_run(document: str) -> dict[str, Any]:
    """The names that the Python code of a document leaves behind, run from top to bottom."""
    names: dict[str, Any] = {"MY_BACKEND": mr.backend("numpy")}
    with TemporaryDirectory() as folder, chdir(folder):  # where documents write their files
        for block in code_of(document):
            exec(compile(block, document, "exec"), names)
    return names


def code_of(document: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


GENERATED: dict[str, Callable[[], str]] = {
    "support": support,
    "observed": observed,
    "wrong": wrong,
    "mutation": mutation,
    "diagnosis": diagnosis,
    "replacement": replacement,
    "rates": rates,
    "plugin": plugin,
    "compare": compare,
    "ratios": ratios,
    "speed": speed,
    "goals": goals,
    "fast": fast,
    "formats": formats,
    "conversions": conversions,
}


def needs_all_backends() -> None:
    for name in mr.backends():
        try:
            mr.backend(name)
        except mr.MissingFramework as error:
            pytest.skip(f"the documents show all backends; {error}")


@pytest.mark.parametrize("name", GENERATED)
def test_generated_part_is_current(name: str, request: pytest.FixtureRequest) -> None:
    needs_all_backends()
    pattern = re.compile(rf"(<!-- generated: {name} -->)(.*?)(<!-- end -->)", re.DOTALL)
    part = GENERATED[name]()
    part = part if "\n" not in part else f"\n{part}\n"
    found = [(document, match) for document in GENERATED_IN if (match := pattern.search((ROOT / document).read_text()))]
    assert len(found) == 1, f"the part {name} stands in {[document for document, _ in found] or 'no document'}"
    ((document, match),) = found
    if request.config.getoption("--write-readme"):
        path = ROOT / document
        path.write_text(pattern.sub(lambda match: match[1] + part + match[3], path.read_text()))
        return
    assert match[2] == part, f"{document} is not what is generated now: run `make readme`"


def test_every_generated_part_has_a_generator() -> None:
    marked = [
        name
        for document in GENERATED_IN
        for name in re.findall(r"<!-- generated: (\w+) -->", (ROOT / document).read_text())
    ]
    assert sorted(marked) == sorted(GENERATED)


@pytest.mark.parametrize("document", RUN)
def test_python_code_runs(document: str) -> None:
    needs_all_backends()
    assert code_of(document)
    code_run(document)


def test_the_first_example_needs_numpy_alone(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    exec(compile(code_of("README.md")[0], "README.md", "exec"), names)
    assert names["output"].sequence.shape == (2, 5, 16)
    assert names["output"].state.h.shape == (2, 2, 8)
    assert re.search("^numpy .* equal$", capsys.readouterr().out, re.MULTILINE)


def test_all_documents_with_python_code_run() -> None:
    documents = [path.relative_to(ROOT).as_posix() for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]]
    assert sorted(document for document in documents if code_of(document)) == sorted(RUN)


def test_what_the_code_shows_is_there() -> None:
    needs_all_backends()
    assert {"output", "ported"} <= code_run("README.md").keys()
    assert {"diagnosis"} <= code_run("docs/diagnosis.md").keys()
    assert {"outputs_are_close", "test_padding_is_zero"} <= code_run("docs/testing.md").keys()


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


@pytest.mark.parametrize("document", LINKING)
def test_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    for target, _, anchor in re.findall(r"\]\(([^)#]+)(#([^)]+))?\)", path.read_text()):
        if "://" in target:
            continue
        assert (path.parent / target).exists(), f"{document} links to {target}"
        if anchor:
            assert anchor in anchors(path.parent / target), f"{document} links to {target}#{anchor}"


def anchors(path: Path) -> set[str]:
    """The anchors of its headings, as GitHub forms them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
