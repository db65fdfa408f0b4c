"""A backend that is none of ours, installed as its users install it, and what backends/README.md tells of it."""

import json
import os
import re
import subprocess
import sys
from inspect import get_annotations
from pathlib import Path
from typing import Any

import pytest

import multirnn as mr
from multirnn.boundary import BoundaryLayer
from multirnn.protocol import Backend, Trains

ROOT = Path(mr.__file__).parent.parent
EXAMPLE = ROOT / "tests" / "third_party"
README = (ROOT / "backends" / "README.md").read_text()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example in it, as pip installs it; nothing is downloaded."""
    target = tmp_path_factory.mktemp("site-packages")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-index", "--no-deps"]
    command = [*pip, "--no-build-isolation", "--target", str(target), str(EXAMPLE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


def run(installed: Path, code: str) -> Any:
    """What a program prints as JSON in an interpreter that has the example."""
    path = os.pathsep.join(filter(None, [str(installed), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", f"import json\nimport multirnn as mr\n{code}"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


USED = """
import sys
listed = mr.backends()
early = "multirnn_textbook" in sys.modules
spec = mr.RecurrentSpec("simple_rnn", 5, 4)
layer = mr.build(spec, "textbook", seed=3)
try:
    mr.build(mr.RecurrentSpec("gru", 5, 4), "textbook")
except mr.Unsupported as error:
    refusal = str(error)
row = mr.compare(mr.RecurrentSpec("gru", 5, 4), backends="textbook").rows[0]
print(json.dumps({
    "listed": listed,
    "early": early,
    "native": type(layer.native).__module__,
    "read": mr.read(layer.native) == mr.initialise(spec, 3),
    "refusal": refusal,
    "row": [row.verdict, row.reason],
    "verdicts": {row.backend: row.verdict for row in mr.compare(spec, backends=["numpy", "textbook"]).rows},
}))
"""


def test_it_is_found_built_read_and_compared_by_its_name(installed: Path) -> None:
    reason = "the textbook has the simple RNN only, one layer in one direction, with tanh and bias='single'"
    assert run(installed, USED) == {
        "listed": sorted([*mr.backends(), "textbook"]),
        "early": False,
        "native": "multirnn_textbook",
        "read": True,
        "refusal": f"backend 'textbook' refuses {mr.RecurrentSpec('gru', 5, 4)!r}: {reason}",
        "row": ["refuses", reason],
        "verdicts": {"numpy": "equal", "textbook": "equal"},
    }


WITHOUT_THE_FORGET = """
import multirnn_textbook
from multirnn.testing import check_backend
states = multirnn_textbook.TextbookLayer.states
class Forgetful(multirnn_textbook.TextbookLayer):
    def states(self, inputs):
        return states(self, multirnn_textbook.Inputs(inputs.x, mr.State(0 * inputs.state.h), inputs.lengths))
held = check_backend(multirnn_textbook.BACKEND)
multirnn_textbook.TextbookLayer = Forgetful
try:
    check_backend(multirnn_textbook.BACKEND)
except AssertionError as error:
    print(json.dumps([held, str(error)]))
"""


def test_the_conformance_suite_holds_it_and_would_catch_it(installed: Path) -> None:
    held, caught = run(installed, WITHOUT_THE_FORGET)
    assert held > 50
    assert re.match(r"backend 'textbook' fails \d+ of \d+ checks\nagrees: simple_rnn, ", caught)


# --- The page ----------------------------------------------------------------------------------------------------------------


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_the_page_shows_the_files_that_are_installed() -> None:
    assert blocks("toml") == [(EXAMPLE / "pyproject.toml").read_text()]
    assert blocks("python")[0] == (EXAMPLE / "multirnn_textbook.py").read_text()


def test_the_page_names_all_that_is_asked_for() -> None:
    of_a_backend = {
        name
        for protocol in (Backend, Trains)
        for name in vars(protocol) | get_annotations(protocol)
        if not name.startswith("_")
    }
    assert of_a_backend | BoundaryLayer.__abstractmethods__ == set(re.findall(r"^\| `(\w+)", README, re.MULTILINE))


def test_the_pages_other_code_runs(installed: Path) -> None:
    check_all, check_by_check = blocks("python")[1:]
    program = f"{check_all}\n{check_by_check}\ntest_conformance.pytestmark[0].args[1][0].values[0](BACKEND)\nprint(1)"
    assert run(installed, program) == 1
