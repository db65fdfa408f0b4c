"""The pytest plugin, in pytest runs of its own: on backends that need no framework, and of which one's is missing."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import PathDistribution, version
from pathlib import Path
from xml.etree import ElementTree as ET

import hypothesis  # noqa: F401  # loaded once here, and not anew in every run
import pytest

from multirnn import registry
from multirnn.numerics import TOLERANCE

pytest_plugins = ["pytester"]

INSTALLED = """
[multirnn.backends]
absent = offered_absent:BACKEND
numpy = multirnn_numpy:BACKEND
plain = offered_plain:BACKEND
"""

NEEDED = """Metadata-Version: 2.1
Name: offered
Version: 7.5
Provides-Extra: absent
Requires-Dist: numpy>=2.0
Requires-Dist: a-framework[gpu]>=3; extra == "absent"
Requires-Dist: pytest; extra == "absent"
"""

PLAIN = """
import multirnn as mr
from multirnn.protocol import accept
from multirnn_numpy import NumpyBackend

class Plain(NumpyBackend):
    name = "plain"

    def refuses(self, spec):
        return None if spec.cell == "simple_rnn" else f"it is too plain for a {spec.cell}"

    def build(self, weights, *, device=None):
        accept(self, weights.spec)
        return super().build(weights, device=device)

BACKEND = Plain()
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A folder for tests, where three backends are installed: NumPy's, a picky one, and one without its framework."""
    about = pytester.mkdir("offered-7.5.dist-info")
    (about / "entry_points.txt").write_text(INSTALLED)
    (about / "METADATA").write_text(NEEDED)
    points = PathDistribution(about).entry_points
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: points.select(group=group))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    registry._points.cache_clear()
    pytester.makepyfile(offered_plain=PLAIN, offered_absent="import a_framework_that_is_nowhere\nBACKEND = None")
    pytester.syspathinsert()
    yield pytester
    registry._points.cache_clear()


def run(project: pytest.Pytester, *options: str) -> pytest.RunResult:
    return project.runpytest_inprocess("-p", "multirnn", "-p", "no:cacheprovider", "--strict-markers", "-ra", *options)


def said(result: pytest.RunResult, *lines: str) -> None:
    """The output has these lines, in this order, as they stand here."""
    result.stdout.fnmatch_lines([re.sub(r"[\[\]?]", lambda match: f"[{match[0]}]", line) for line in lines])


USE = """
import sys
from multirnn.protocol import Backend

def test_named(rnn_backend_name):
    assert (f"offered_{rnn_backend_name}" in sys.modules) == False

def test_loaded(rnn_backend, rnn_backend_name):
    assert isinstance(rnn_backend, Backend)
    assert rnn_backend.name == rnn_backend_name
"""


# --- The fixtures and the option -------------------------------------------------------------------------------------


def test_a_test_runs_on_every_installed_backend_and_skips_without_its_framework(project: pytest.Pytester) -> None:
    project.makepyfile(USE)
    result = run(project, "-v")
    result.assert_outcomes(passed=5, skipped=1)
    output = result.stdout.str()
    for test, outcome in (
        ("test_named[absent]", "PASSED"),
        ("test_loaded[absent]", "SKIPPED"),
        ("test_loaded[plain]", "PASSED"),
    ):
        assert re.search(rf"::{re.escape(test)} {outcome}", output), test
    missing = "backend 'absent' needs 'a_framework_that_is_nowhere', which is not installed"
    said(result, f'SKIPPED*: {missing}: pip install "offered[absent]"')


def test_the_versions_are_shown_where_the_fixture_is_used(project: pytest.Pytester) -> None:
    test = project.makepyfile(USE)
    absent = f"absent (a-framework is not installed, pytest {version('pytest')})"
    said(run(project), f"rnn_backend: {absent}, numpy (numpy {version('numpy')}), plain (offered 7.5)")
    said(run(project, "--rnn-backends=numpy"), f"rnn_backend: numpy (numpy {version('numpy')})")
    assert "rnn_backend" not in run(project, "-q").stdout.str()
    test.write_text("def test_other(): pass")
    assert "rnn_backend" not in run(project).stdout.str()


def test_the_option_chooses(project: pytest.Pytester) -> None:
    project.makepyfile(USE)
    result = run(project, "-v", "--rnn-backends", "plain, numpy,plain")
    result.assert_outcomes(passed=4)
    said(result, "*::test_named[plain]*", "*::test_named[numpy]*")


def test_a_backend_that_was_asked_for_by_name_has_to_be_there(project: pytest.Pytester) -> None:
    project.makepyfile(USE)
    result = run(project, "--rnn-backends=absent")
    result.assert_outcomes(passed=1, errors=1)
    said(
        result,
        "backend 'absent' needs 'a_framework_that_is_nowhere', which is not installed: pip install \"offered[absent]\"",
    )
    assert "Traceback" not in result.stdout.str()
    assert "def rnn_backend(" not in result.stdout.str()


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ("numpi", "--rnn-backends: no backend named 'numpi'; installed: absent, numpy, plain; did you mean 'numpy'?"),
        (" , ", "--rnn-backends takes the names of backends, separated by commas"),
    ],
)
def test_a_name_that_is_of_no_backend_is_a_usage_error(project: pytest.Pytester, names: str, sentence: str) -> None:
    result = run(project, f"--rnn-backends={names}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"ERROR: {sentence}" in result.stderr.str()


def test_a_fixture_of_a_module_may_be_made_from_it(project: pytest.Pytester) -> None:
    project.makepyfile("""
        import pytest
        import multirnn as mr

        @pytest.fixture(scope="module")
        def layer(rnn_backend):
            return mr.build(mr.RecurrentSpec("simple_rnn", 2, 3), rnn_backend)

        @pytest.mark.parametrize("time", [1, 2])
        def test_layer(layer, time):
            assert layer([[0.0, 0.0]] * time).sequence.shape == (time, 3)
    """)
    run(project).assert_outcomes(passed=4, skipped=2)


def test_hypothesis_draws_many_examples_for_one_backend(project: pytest.Pytester) -> None:
    project.makepyfile("""
        from hypothesis import given, settings
        import multirnn as mr
        from multirnn.testing import strategies as rnn

        @settings(max_examples=5, deadline=None)
        @given(problem=rnn.problems(rnn.specs(cell="simple_rnn")))
        def test_drawn(rnn_backend, problem):
            weights, (x, state, lengths) = problem
            assert mr.build(weights, rnn_backend)(x, state, lengths=lengths).sequence.shape[:2] == x.shape[:2]
    """)
    run(project, "-p", "hypothesispytest").assert_outcomes(passed=2, skipped=1)


def test_a_project_may_have_a_fixture_of_this_name_itself(project: pytest.Pytester) -> None:
    project.makepyfile("""
        import pytest

        @pytest.fixture(params=["mine", "yours"])
        def rnn_backend(request):
            return request.param

        def test_own(rnn_backend):
            assert rnn_backend in ("mine", "yours")

        @pytest.mark.parametrize("rnn_backend", [1, 2, 3])
        def test_direct(rnn_backend):
            assert rnn_backend in (1, 2, 3)
    """)
    run(project).assert_outcomes(passed=5)


# --- The marker ------------------------------------------------------------------------------------------------------


def test_the_marker_selects_and_skips_with_a_reason(project: pytest.Pytester) -> None:
    project.makepyfile("""
        import pytest

        @pytest.mark.rnn_backends("plain")
        def test_one(rnn_backend_name):
            assert rnn_backend_name == "plain"

        @pytest.mark.rnn_backends("plain", "numpy", reason="they run without a framework")
        def test_two(rnn_backend_name):
            assert rnn_backend_name in ("plain", "numpy")

        @pytest.mark.rnn_backends(skip="plain", reason="it is slow")
        @pytest.mark.rnn_backends(skip=["absent"], reason="it is away")
        class TestMany:
            def test_three(self, rnn_backend_name):
                assert rnn_backend_name == "numpy"

            @pytest.mark.rnn_backends(skip="numpy", reason="it is odd")
            def test_four(self, rnn_backend_name):
                raise AssertionError("no backend is left")
    """)
    result = run(project, "-v", "--no-fold-skipped")
    result.assert_outcomes(passed=1 + 2 + 1, skipped=2 + 1 + 2 + 3)
    output = result.stdout.str()
    for test, reason in (
        ("test_one[absent]", "runs on plain alone"),
        ("test_one[numpy]", "runs on plain alone"),
        ("test_two[absent]", "runs on plain, numpy alone: they run without a framework"),
        ("TestMany::test_three[absent]", "it is away"),
        ("TestMany::test_three[plain]", "it is slow"),
        ("TestMany::test_four[absent]", "it is away"),
        ("TestMany::test_four[numpy]", "it is odd"),
        ("TestMany::test_four[plain]", "it is slow"),
    ):
        assert re.search(rf"^SKIPPED .*::{re.escape(test)} - Skipped: {reason}$", output, re.MULTILINE), test


def test_what_the_marker_selects_the_option_does_not_add(project: pytest.Pytester) -> None:
    project.makepyfile("""
        import pytest
        pytestmark = pytest.mark.rnn_backends("plain")

        def test_one(rnn_backend): pass
    """)
    run(project, "--rnn-backends=numpy").assert_outcomes(skipped=1)
    run(project, "--rnn-backends=numpy,plain").assert_outcomes(skipped=1, passed=1)


@pytest.mark.parametrize(
    ("marker", "sentence"),
    [
        ('"numpi"', "no backend named 'numpi'; installed: absent, numpy, plain; did you mean 'numpy'?"),
        ('skip=["nympy"], reason="x"', "no backend named 'nympy'; * did you mean 'numpy'?"),
        ('skip="numpy"', "skip needs a reason"),
        ('only="numpy"', "no argument is called 'only'; there are names, skip, reason and refusal"),
        ('refusal="pass"', "refusal must be 'fail' or 'skip', not 'pass'"),
    ],
)
def test_a_wrong_marker_is_an_error_of_its_file(project: pytest.Pytester, marker: str, sentence: str) -> None:
    project.makepyfile(f"""
        import pytest

        @pytest.mark.rnn_backends({marker})
        def test_one(rnn_backend): pass
    """)
    result = run(project)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    said(result, f"@pytest.mark.rnn_backends: {sentence}")
    assert "Traceback" not in result.stdout.str()


REFUSED = """
import pytest
import multirnn as mr

GRU = mr.RecurrentSpec("gru", 2, 3)

@pytest.fixture(scope="module")
def layer(rnn_backend):
    return mr.build(GRU, rnn_backend)

def test_failing(rnn_backend):
    mr.build(GRU, rnn_backend)

@pytest.mark.rnn_backends(refusal="skip")
class TestSkipping:
    def test_called(self, rnn_backend):
        mr.build(GRU, rnn_backend)

    def test_set_up(self, layer):
        pass

    def test_set_up_again(self, layer):
        pass

    def test_another_error(self, rnn_backend):
        raise mr.InvalidCall("of another kind")

    @pytest.mark.rnn_backends(refusal="fail")
    def test_taken_back(self, rnn_backend):
        mr.build(GRU, rnn_backend)

@pytest.mark.rnn_backends(refusal="skip")
def test_without_the_fixture():
    from offered_plain import BACKEND
    mr.build(GRU, BACKEND)
"""


def test_a_refusal_is_a_failure_or_a_skip_with_the_backends_reason(project: pytest.Pytester) -> None:
    path = project.makepyfile(REFUSED)
    result = run(project, "-v", "--rnn-backends=numpy,plain")
    result.assert_outcomes(passed=5, failed=1 + 2 + 1, skipped=4)
    refusal = "backend 'plain' refuses RecurrentSpec('gru', input_size=2, hidden_size=3): it is too plain for a gru"
    output = result.stdout.str()
    for test in ("test_called", "test_set_up", "test_set_up_again", "test_without_the_fixture"):
        line = next(i for i, text in enumerate(REFUSED.split("\n")) if f"def {test}(" in text)
        marked = line - 1 if test == "test_without_the_fixture" else line  # a function begins at its decorator
        assert f"SKIPPED [1] {path.name}:{marked}: {refusal}" in output
    assert len(re.findall(rf"^E +multirnn.errors.Unsupported: {re.escape(refusal)}$", output, re.MULTILINE)) == 2
    assert output.count("InvalidCall: of another kind\n\n") == 2


# --- Disagreements ---------------------------------------------------------------------------------------------------

DISAGREEING = """
import multirnn as mr
from multirnn.testing import assert_layers_agree

WEIGHTS = mr.initialise(mr.RecurrentSpec("gru", 5, 4), 1)
GATES = {name: array[[1, 0, 2]] for name, array in WEIGHTS.arrays.items()}

def test_same(rnn_backend):
    assert_layers_agree(mr.build(WEIGHTS, "numpy"), mr.build(WEIGHTS, rnn_backend))

def test_swapped(rnn_backend):
    assert_layers_agree(mr.build(mr.Weights(WEIGHTS.spec, GATES), rnn_backend), mr.build(WEIGHTS, "numpy"))
"""


def test_a_disagreement_is_shown_without_our_frames_and_summed_up(project: pytest.Pytester) -> None:
    project.makepyfile(DISAGREEING)
    result = run(project, "--rnn-backends=numpy", "--junitxml=junit.xml")
    result.assert_outcomes(passed=1, failed=1)
    assert "multirnn/testing" not in result.stdout.str()
    assert ">       assert_layers_agree(" in result.stdout.str()
    said(result, "*= smallest tolerance that would pass =*", "* eps  *::test_swapped[numpy]: *")
    smallest = float(re.search(r"^ *(\S+) eps  \S+::test_swapped\[numpy\]: ", result.stdout.str(), re.MULTILINE)[1])
    assert smallest > 100 * TOLERANCE["float32"]
    properties = {each.get("name"): each.get("value") for each in ET.parse(project.path / "junit.xml").iter("property")}
    assert float(properties["rnn_smallest_tolerance_eps"]) == smallest
    assert properties["rnn_where"]


# --- With other tools ------------------------------------------------------------------------------------------------


def test_xdist_finds_the_same_tests_in_every_worker(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xdist")
    project.makepyfile(DISAGREEING + USE)
    result = project.runpytest_subprocess(
        *("-p", "multirnn", "-p", "xdist", "-n", "2", "--strict-markers", "--rnn-backends=numpy", "-v")
    )
    result.assert_outcomes(passed=3, failed=1)
    said(result, "*= smallest tolerance that would pass =*", "* eps  *::test_swapped[numpy]: *")


def test_the_marker_and_the_fixtures_are_described(project: pytest.Pytester) -> None:
    said(run(project, "--markers"), '@pytest.mark.rnn_backends(*names, skip=(), reason="", refusal="fail"): run on *')
    said(run(project, "--fixtures"), "rnn_backend_name [module scope] -- *", "rnn_backend [module scope] -- *")
    said(run(project, "--help"), "  --rnn-backends=NAMES*")


# --- What it costs ---------------------------------------------------------------------------------------------------

IDLE = """
import json, sys
import pytest
before = set(sys.modules)
code = pytest.main(["-q", "-p", "no:hypothesispytest", "-p", "no:jaxtyping", "-p", "no:cacheprovider"])
loaded = {name.partition(".")[0] for name in set(sys.modules)} & {
    "numpy", "rich", "click", "hypothesis", "torch", "tensorflow", "keras", "jax", "matplotlib",
}
ours = sorted(name for name in sys.modules if name.startswith("multirnn"))
print("\\n" + json.dumps([code, sorted(loaded), ours]))
"""


def test_a_run_that_does_not_use_it_loads_the_plugin_alone(tmp_path: Path) -> None:
    (tmp_path / "test_other.py").write_text("def test_other():\n    pass\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    done = subprocess.run(
        [sys.executable, "-c", IDLE], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [0, [], ["multirnn", "multirnn.pytest_plugin"]]
