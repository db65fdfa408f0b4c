"""README.md cannot lie: its code runs, and its tables are those that are generated here.

`make readme` writes the generated parts again.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import multirnn as mr
from multirnn.compare import TOLERANCE
from multirnn.spec import BIASES
from multirnn.testing import FORMS

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
NAMES = {"jax": "JAX", "keras": "Keras", "numpy": "NumPy", "torch": "PyTorch"}


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def support() -> str:
    """Asked of every backend: which bias forms of which cell it takes, and why not the others."""
    backends = [mr.backend(name) for name in mr.backends()]
    rows = []
    reasons: dict[str, int] = {}
    for cell, reset_after in FORMS:
        form = f"`{cell}`" + ("" if cell != "gru" else f", `reset_after={reset_after}`")
        for bias in BIASES:
            spec = mr.RecurrentSpec(cell, 10, 3, bias=bias, reset_after=reset_after)
            cells = []
            for backend in backends:
                reason = backend.refuses(spec)
                note = "" if reason is None else f"–<sup>{reasons.setdefault(reason, len(reasons) + 1)}</sup>"
                cells.append(note or "✓")
            rows.append([form, f'`"{bias}"`', str(spec.parameter_count), *cells])
    activated = mr.RecurrentSpec("lstm", 10, 3, activation="relu")
    cells = []
    for backend in backends:
        reason = backend.refuses(activated)
        cells.append("✓" if reason is None else f"–<sup>{reasons.setdefault(reason, len(reasons) + 1)}</sup>")
    rows.append(['`lstm`, `activation="relu"`', "", str(activated.parameter_count), *cells])
    head = ["cell", "bias", "parameters (10 → 3)", *(NAMES.get(backend.name, backend.name) for backend in backends)]
    notes = "<br>\n".join(f"<sup>{number}</sup> {reason}" for reason, number in reasons.items())
    return f"{table(head, rows)}\n\n{notes}"


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
    source = (ROOT / "tests/test_wrong_backends.py").read_text()
    catalogue = source[source.index("MISTAKES: dict") : source.index("\n}\n", source.index("MISTAKES: dict"))]
    return str(len(re.findall(r"^    \"[^\"]+\": ", catalogue, re.MULTILINE)))


def compare() -> str:
    """Rows without numbers that a machine's arithmetic changes: they are in the section above."""
    comparison = mr.compare(mr.RecurrentSpec("gru", 4, 8, bidirectional=True))
    rows = [[row.title, str(row.parameters), row.verdict] for row in comparison.rows]
    return f"`{comparison.spec!r}`:\n\n" + table(["backend", "parameters", "verdict"], rows)


def speed() -> str:
    results = json.loads((ROOT / "benchmarks/results/foundation.json").read_text())["results"]
    rows = []
    for r in results:
        shape = ", ".join(map(str, r["shape"])) or "–"
        held = "held" if r["held"] else "**not held**"
        ratio = f"{r['ratio']:.2f} ({r['low']:.2f}–{r['high']:.2f})"
        rows.append([r["what"], shape, f"{r['ours']:.0f}", f"{r['theirs']:.0f}", ratio, r["goal"], held])
    head = ["what", "B, T, I, H", "ours, µs", "theirs, µs", "theirs / ours (quartiles)", "goal", ""]
    return table(head, rows)


GENERATED: dict[str, Callable[[], str]] = {
    "support": support,
    "observed": observed,
    "wrong": wrong,
    "compare": compare,
    "speed": speed,
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
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)


def test_links_lead_somewhere() -> None:
    for document in ("README.md", "CONTRIBUTING.md", "backends/README.md", "examples/README.md"):
        path = ROOT / document
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{document} links to {target}"
