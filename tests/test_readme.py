"""README.md cannot lie: its code runs, and its tables are those that are generated here.

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

import pytest

import multirnn as mr
from multirnn.catalogue import MISTAKES, mistakes_for
from multirnn.cells import FORMS
from multirnn.compare import TOLERANCE
from multirnn.support import AXES, ask
from multirnn.support_table import Row, summarise
from multirnn.testing import cases

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
NAMES = {"jax": "JAX", "keras": "Keras", "numpy": "NumPy", "torch": "PyTorch"}


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def support() -> str:
    """What every backend answers about the grid of `multirnn.support`, and each reason why not."""
    supports = [ask(mr.backend(name)) for name in mr.backends()]
    summary = summarise(supports)
    titles = [NAMES.get(one.name, one.name) + one.title.removeprefix(one.name) for one in supports]

    def entries(row: Row) -> list[str]:
        signs = {"yes": "✓", "no": "–"}
        return [
            signs.get(entry.text, entry.text)
            + (f"<sup>{', '.join(map(str, entry.notes))}</sup>" if entry.notes else "")
            for entry in row.entries
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
            rows.append([NAMES[name], dtype, f"{row['accepted']} of {row['drawn']}", worst, str(bound)])
    return table(["backend", "dtype", "specs accepted", "worst difference (eps)", "allowed (eps)"], rows)


def wrong() -> str:
    kinds = {name.partition(":")[0] for name, _ in cases()}
    cells = ", ".join(f"{len(mistakes_for(mr.RecurrentSpec(cell, 4, 4, 2, True)))} of a {cell}" for cell in mr.CELLS)
    return (
        f"each of {len(MISTAKES)} known mistakes, from a gate order to a mask that is off by one ({cells} in two layers both "
        f"ways), is made on every backend and caught by one of {len(cases())} checks of {len(kinds)} kinds."
    )


def mutation() -> str:
    """The beginning of what the example above it prints."""
    names = code_run()
    lines = str(names["mutation_score"](names["outputs_are_close"])).splitlines()
    shown = [*lines[: lines.index("", 2) + 2], "  …"]
    return "\n".join(["```text", *shown, "```"])


def diagnosis() -> str:
    return f"```text\n{code_run()['diagnosis']}\n```"


def rates() -> str:
    found = json.loads((ROOT / "benchmarks/results/diagnosis.json").read_text())["by_planted_mistakes"]
    none, one, two = (found[planted] for planted in ("0", "1", "2"))
    return (
        f"Over {one['pairs']} drawn pairs with one planted mistake the cause that is named is the right one in "
        f"{one['right']}, over {two['pairs']} with two in {two['right']}; over {none['pairs']} equal pairs none is named "
        f"in {none['right']} (`benchmarks/diagnosis.py`)."
    )


def plugin() -> str:
    added = json.loads((ROOT / "benchmarks/results/plugin.json").read_text())["wall_ms"]["added"]
    return f"adds {added:.0f} ms to a run that does not use it"


def compare() -> str:
    """Rows without numbers that a machine's arithmetic changes: they are in the section above."""
    comparison = mr.compare(mr.RecurrentSpec("gru", 4, 8, bidirectional=True))
    rows = [[row.title, str(row.parameters), row.verdict] for row in comparison.rows]
    return f"`{comparison.spec!r}`:\n\n" + table(["backend", "parameters", "verdict"], rows)


def speed() -> str:
    return pairs(json.loads((ROOT / "benchmarks/results/foundation.json").read_text())["results"])


def pairs(results: list[dict[str, Any]]) -> str:
    """Pairs as `benchmarks/foundation.py` measures them, a row each."""
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


def disturbance(found: dict[str, Any]) -> str:
    """What else ran beside a standard run."""
    share = f"{found['taken']['median']:.1%}, at most {found['taken']['most']:.0%}"
    told = f"{found['name']}: the host took a part of the cores, in the median {share} while a row was timed"
    if again := found["rows"]["again"]:
        told += f";\n{again} of {found['rows']['all']} rows were timed again, where it had taken more than 2 %"
    return told + "."


def fast() -> str:
    """The wrapper, the cost of a step and the memory, as `benchmarks/fast.py` measures them."""
    found = json.loads((ROOT / "benchmarks/results/fast.json").read_text())
    memory = []
    for row in found["memory"]:
        shape = ", ".join(map(str, row["shape"]))
        times = f"{row['bytes'] / row['minimum']:.2f}"
        memory.append([row["what"], row["cell"], shape, f"{row['bytes'] / 1e6:.0f}", times, held(row)])
    head = ["memory of", "cell", "B, T, I, H", "input and one call, MB", "times the minimum, goal 1.3", ""]
    return "\n\n".join([pairs(found["results"]), table(head, memory)])


@cache
def code_run() -> dict[str, Any]:
    """The names that the Python code of the README leaves behind, run from top to bottom."""
    names: dict[str, Any] = {"MY_BACKEND": mr.backend("numpy")}
    for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL):
        exec(compile(block, "README.md", "exec"), names)
    return names


GENERATED: dict[str, Callable[[], str]] = {
    "support": support,
    "observed": observed,
    "wrong": wrong,
    "mutation": mutation,
    "diagnosis": diagnosis,
    "rates": rates,
    "plugin": plugin,
    "compare": compare,
    "speed": speed,
    "goals": goals,
    "fast": fast,
}


def needs_all_backends() -> None:
    for name in mr.backends():
        try:
            mr.backend(name)
        except mr.MissingFramework as error:
            pytest.skip(f"README.md tells of all backends; {error}")


@pytest.mark.parametrize("name", GENERATED)
def test_generated_part_is_current(name: str, request: pytest.FixtureRequest) -> None:
    needs_all_backends()
    text = README.read_text()
    pattern = re.compile(rf"(<!-- generated: {name} -->)(.*?)(<!-- end -->)", re.DOTALL)
    part = GENERATED[name]()
    part = part if "\n" not in part else f"\n{part}\n"
    assert pattern.search(text), f"README.md has no part named {name}"
    if request.config.getoption("--write-readme"):
        README.write_text(pattern.sub(lambda match: match[1] + part + match[3], text))
        return
    found = pattern.search(text)
    assert found is not None
    assert found[2] == part, "README.md is not what is generated now: run `make readme`"


def test_python_code_runs() -> None:
    needs_all_backends()
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) >= 4
    assert {"layer", "diagnosis", "outputs_are_close"} <= code_run().keys()


def test_links_lead_somewhere() -> None:
    for document in ("README.md", "CONTRIBUTING.md", "backends/README.md", "examples/README.md"):
        path = ROOT / document
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{document} links to {target}"
