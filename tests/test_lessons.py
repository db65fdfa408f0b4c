"""Every lesson runs in a process of its own and prints its results; on NumPy alone, too.

A lesson asserts its own claims, so a wrong one ends it with an error.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import multirnn as mr

LESSONS = Path(__file__).parent.parent / "docs" / "lessons"

# Lines of the output, by the framework that they need.
SHOWN = {
    "1-plain-loop": {
        "numpy": [
            "(100, 32) -> output (100, 64)",
            "h[49] changes by 0e+00",
            "   9  ",
            "    numpy",
        ],
        "jax": ["    jax"],
        "keras": ["    keras"],
        "torch": ["    torch"],
    },
    "2-forty-two-or-forty-five": {
        "numpy": [" 42  in all", "numpy, two biases moved", " 42  numpy"],
        "jax": [" 42  jax"],
        "keras": ["(None, 3)", "Total params: 42", " 42  keras"],
        "torch": [" 45  in all", "torch, two biases moved", "buffers / 버퍼: bias_hh_l0", " 42  torch"],
    },
    "3-forward-and-backward": {
        "numpy": ["against numpy", "W for U", "= for +=", "state not reset", "chunks of 30"],
        "jax": ["against jax"],
        "keras": ["against keras"],
        "torch": ["against torch"],
    },
    "4-outputs-and-states": {
        "numpy": [
            "(1, 10, 8)  (1, 1, 8)  one layer / 1층: numpy",
            "(1, 10, 8)  (2, 1, 8)  two layers / 2층: numpy",
            "(1, 10, 16) (4, 1, 8)  two layers, both ways / 2층, 양방향: numpy",
            "holds / 성립: numpy",
        ],
        "jax": ["holds / 성립: jax"],
        "keras": ["holds / 성립: keras"],
        "torch": ["(1, 10, 16) (4, 1, 8)  two layers, both ways / 2층, 양방향\n", "holds / 성립: torch.nn.RNN"],
    },
    "5-one-and-many": {
        "numpy": ["many to one", "one to many, then zeros", "one to many, fed back", "many to many", "]  numpy"],
        "jax": ["]  jax"],
        "keras": ["]  keras"],
        "torch": ["]  torch"],
    },
    "6-training-parity": {
        "numpy": ["numpy  float64", "numpy  float32", "tomorrow as today"],
        "jax": ["jax    float64", "jax    float32"],
        "keras": ["keras  float32"],  # float64 only where Keras' engine has it
        "torch": ["torch  float64", "torch  float32"],
    },
}

# A finder for which these packages are not installed.
ALONE = """
import runpy, sys
from importlib.machinery import PathFinder

class Alone(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        absent = name in ("jax", "keras", "matplotlib", "tensorflow", "torch")
        return None if absent else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Alone
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def code(lesson: str) -> str:
    """The code cells of a lesson, one after another."""
    text = (LESSONS / f"{lesson}.md").read_text("utf-8")
    return "\n\n".join(re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))


def run(lesson: str, folder: Path, *before: str) -> str:
    """The output of a lesson that runs as a script and has to succeed; pictures go to the folder."""
    script = folder / f"{lesson}.py"
    script.write_text(code(lesson), "utf-8")
    environment = {**os.environ, "PYTHONUTF8": "1", "TMPDIR": str(folder)}
    command = [sys.executable, *before, str(script)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


def missing(name: str) -> str:
    """The sentence on a framework that is not installed; empty for one that is."""
    try:
        mr.backend(name)
    except mr.MissingFramework as error:
        return str(error)
    return ""


def test_there_are_six_and_the_index_has_them_in_order() -> None:
    lessons = sorted(path.stem for path in LESSONS.glob("*.md") if path.stem != "README")
    assert lessons == list(SHOWN)
    assert re.findall(r"\]\((.*)\.md\)", (LESSONS / "README.md").read_text("utf-8")) == lessons


@pytest.mark.parametrize("lesson", SHOWN)
def test_shows_what_it_is_there_to_show(lesson: str, tmp_path: Path) -> None:
    printed = run(lesson, tmp_path)
    for framework, lines in SHOWN[lesson].items():
        for line in [f"left out / 제외: {sentence}"] if (sentence := missing(framework)) else lines:
            assert line in printed
    picture = tmp_path / "training_parity.png"
    if f"picture / 그림: {picture}" in printed:
        assert picture.read_bytes().startswith(b"\x89PNG")
    else:
        assert lesson != "6-training-parity" or "no picture" in printed


def test_the_columns_of_the_first_lesson_stand_apart(tmp_path: Path) -> None:
    lines = run("1-plain-loop", tmp_path).splitlines()
    (place,) = (place for place, line in enumerate(lines) if line.split()[:2] == ["step", "loop"])
    head, *rows = (re.findall(r"\S+", line) for line in lines[place : place + 11])
    assert head == ["step", "loop", *(name for name in mr.backends() if not missing(name))]
    assert {len(row) for row in rows} == {len(head)}
    ends = [[match.end() for match in re.finditer(r"\S+", line)] for line in lines[place : place + 11]]
    assert all(end == ends[0] for end in ends)


@pytest.mark.parametrize("lesson", SHOWN)
def test_runs_on_numpy_alone(lesson: str, tmp_path: Path) -> None:
    printed = run(lesson, tmp_path, "-c", ALONE)
    for line in SHOWN[lesson]["numpy"]:
        assert line in printed
    for extra in ("jax", "keras", "torch"):
        assert f"left out / 제외: backend {extra!r} needs" in printed
        assert f'pip install "multirnn[{extra}]"' in printed


@pytest.mark.parametrize("lesson", SHOWN)
def test_every_heading_is_in_both_languages(lesson: str) -> None:
    headings = re.findall(r"^#+ .*\d\. .*$", (LESSONS / f"{lesson}.md").read_text("utf-8"), re.MULTILINE)
    assert headings
    assert [heading for heading in headings if not re.search("[가-힣]", heading)] == []


@pytest.mark.parametrize("lesson", SHOWN)
def test_is_a_notebook(lesson: str) -> None:
    """With the same cells, for those who open it in Jupyter."""
    jupytext = pytest.importorskip("jupytext")
    notebook = jupytext.read(LESSONS / f"{lesson}.md")
    cells = [cell["source"] for cell in notebook.cells if cell["cell_type"] == "code"]
    assert "\n\n".join(f"{cell}\n" for cell in cells) == code(lesson)
    assert notebook.metadata["kernelspec"]["name"] == "python3"
