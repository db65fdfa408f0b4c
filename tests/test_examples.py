"""Every lesson runs, in a process of its own, and shows what it is there to show; on NumPy alone, too.

What a lesson claims it asserts itself, so that it ends with an error where a claim is wrong.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import multirnn as mr

EXAMPLES = Path(__file__).parent.parent / "examples"

# What has to stand in the output, by the framework that it takes.
SHOWN = {
    "01_plain_loop.py": {
        "numpy": [
            "(100, 32) -> output (100, 64)",
            "h[49] changes by 0e+00",
            "4 features, 8 units",
            "   9  ",
            "    numpy",
        ],
        "jax": ["    jax"],
        "keras": ["    keras"],
        "torch": ["    torch"],
    },
    "02_forty_two_or_forty_five.py": {
        "numpy": [" 42  in all", "numpy, two biases moved", " 42  numpy"],
        "jax": [" 42  jax"],
        "keras": ["(None, 3)", "Total params: 42", " 42  keras"],
        "torch": [" 45  in all", "torch, two biases moved", "buffers / 버퍼: bias_hh_l0", " 42  torch"],
    },
    "03_cell_forward_backward.py": {
        "numpy": ["against numpy", "W for U", "= for +=", "state not reset", "One step hides them", "chunks of 30"],
        "jax": ["against jax"],
        "keras": ["against keras"],
        "torch": ["against torch"],
    },
    "04_output_and_state_shapes.py": {
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
    "05_one_and_many.py": {
        "numpy": ["many to one", "one to many, then zeros", "one to many, fed back", "many to many", "]  numpy"],
        "jax": ["]  jax"],
        "keras": ["]  keras"],
        "torch": ["]  torch"],
    },
    "06_training_parity.py": {
        "numpy": ["numpy  float64", "numpy  float32", "tomorrow as today"],
        "jax": ["jax    float64", "jax    float32"],
        "keras": ["keras  float32"],  # float64 only where Keras' engine has it
        "torch": ["torch  float64", "torch  float32"],
    },
}

# Python's own finder, to which these are not installed: the import fails as it does where they are not.
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


def run(*arguments: str | Path) -> str:
    """What a script prints; it has to end well."""
    command = [sys.executable, *map(str, arguments)]
    environment = {**os.environ, "PYTHONUTF8": "1"}
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


def test_there_are_six_and_the_index_has_them_in_order():
    scripts = sorted(path.name for path in EXAMPLES.glob("*.py"))
    assert scripts == list(SHOWN)
    assert re.findall(r"\]\((.*\.py)\)", (EXAMPLES / "README.md").read_text("utf-8")) == scripts


@pytest.mark.parametrize("lesson", SHOWN)
def test_shows_what_it_is_there_to_show(lesson, tmp_path):
    picture = tmp_path / "picture.png"
    printed = run(EXAMPLES / lesson, picture)
    for framework, lines in SHOWN[lesson].items():
        for line in [f"left out / 제외: {sentence}"] if (sentence := missing(framework)) else lines:
            assert line in printed
    if f"picture / 그림: {picture}" in printed:
        assert picture.read_bytes().startswith(b"\x89PNG")
    else:
        assert lesson != "06_training_parity.py" or "no picture" in printed


def test_the_columns_of_the_first_lesson_stand_apart():
    lines = run(EXAMPLES / "01_plain_loop.py").splitlines()
    (place,) = (place for place, line in enumerate(lines) if line.split()[:2] == ["step", "loop"])
    head, *rows = (re.findall(r"\S+", line) for line in lines[place : place + 11])
    assert head == ["step", "loop", *(name for name in mr.backends() if not missing(name))]
    assert {len(row) for row in rows} == {len(head)}
    ends = [[match.end() for match in re.finditer(r"\S+", line)] for line in lines[place : place + 11]]
    assert all(end == ends[0] for end in ends)


@pytest.mark.parametrize("lesson", SHOWN)
def test_runs_on_numpy_alone(lesson):
    printed = run("-c", ALONE, EXAMPLES / lesson)
    for line in SHOWN[lesson]["numpy"]:
        assert line in printed
    for extra in ("jax", "keras", "torch"):
        assert f"left out / 제외: backend {extra!r} needs" in printed
        assert f'pip install "multirnn[{extra}]"' in printed


@pytest.mark.parametrize("lesson", SHOWN)
def test_every_heading_is_in_both_languages(lesson):
    text = (EXAMPLES / lesson).read_text("utf-8")
    headings = re.findall(r'print\("(?:\\n)?\d\. .*', text)
    assert [heading for heading in headings if not re.search("[가-힣]", heading)] == []
    assert re.search("[가-힣]", text.split('"""')[1])
