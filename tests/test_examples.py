"""Every lesson runs, in a process of its own, and says what it is there to say; on NumPy alone, too."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import multirnn as mr

EXAMPLES = Path(__file__).parent.parent / "examples"
FRAMEWORKS = ("jax", "keras", "torch")

SHOWN = {
    "01_plain_loop.py": {
        "numpy": ["input (100, 32) -> output (100, 64)", "h[49] changes by 0e+00", "the same (10, 8)"],
    },
    "02_forty_two_or_forty_five.py": {
        "numpy": ["42  in all", "42  numpy"],
        "jax": ["42  jax"],
        "keras": ["(None, 3)", "Total params: 42", "42  keras"],
        "torch": ["45  in all", "42  torch", "buffers / 버퍼: bias_hh_l0"],
    },
    "03_cell_forward_backward.py": {
        "numpy": ["against numpy", "W for U", "= for +=", "state not reset", "chunks of 30"],
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
        "torch": ["holds / 성립: torch", "holds / 성립: torch.nn.RNN"],
    },
    "05_one_and_many.py": {
        "numpy": ["다대일: (2, 3)", "일대다, 출력을 되먹임: (2, 6, 3)", "다대다, 시점마다: (2, 6, 3)"],
    },
    "06_training_parity.py": {
        "numpy": ["float64  ", "float32  ", "tomorrow as today"],
    },
}
"""What has to stand in the output, by the framework that it takes."""

ALONE = """
import runpy, sys
del sys.argv[0]
# None in sys.modules: an import fails as that of a module that is not installed.
sys.modules |= dict.fromkeys(("jax", "keras", "matplotlib", "tensorflow", "torch"))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(*arguments: str | Path) -> str:
    """What a lesson prints; it has to end well and to complain of nothing."""
    environment = {**os.environ, "PYTHONUTF8": "1"}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, encoding="utf-8", env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


def installed(name: str) -> bool:
    try:
        mr.backend(name)
    except mr.MissingFramework:
        return False
    return True


def test_there_are_six_and_the_index_has_them_all():
    scripts = sorted(path.name for path in EXAMPLES.glob("*.py"))
    assert scripts == sorted(SHOWN)
    assert re.findall(r"\]\((.*\.py)\)", (EXAMPLES / "README.md").read_text("utf-8")) == scripts


@pytest.mark.parametrize("lesson", SHOWN)
def test_shows_what_it_says(lesson, tmp_path):
    picture = tmp_path / "picture.png"
    printed = run(EXAMPLES / lesson, picture)
    for framework, lines in SHOWN[lesson].items():
        if installed(framework):
            assert [line for line in lines if line not in printed] == []
    ...
