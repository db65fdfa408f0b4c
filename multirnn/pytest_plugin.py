"""The pytest plugin: tests that run on every installed backend. pytest finds it by its entry point.

    def test_mine(rnn_backend):
        layer = mr.build(spec, rnn_backend)

The fixtures `rnn_backend`, a loaded `multirnn.protocol.Backend`, and `rnn_backend_name`, its name with nothing loaded, make one
test for each backend. `--rnn-backends numpy,torch` restricts them. A marker chooses for a test, a class or a module
(`pytestmark`). Markers add up; a backend that one of them excludes is skipped with its reason:

    @pytest.mark.rnn_backends("torch", "jax")                           # skipped on every other backend
    @pytest.mark.rnn_backends("torch", reason="looks at a state_dict")  # the same, and says why
    @pytest.mark.rnn_backends(skip="keras", reason="too slow there")    # a name or several; the reason has to be given
    @pytest.mark.rnn_backends(refusal="skip")                           # `Unsupported` skips, with the backend's reason

For `refusal` the marker closest to the test counts; "fail" is the default. A framework that is not installed skips its
tests, with what to install; named by `--rnn-backends` it fails them. A broken installation fails its own tests, with its
error, and no other backend's.

After a run, the failures of `multirnn.testing.assert_layers_agree` are listed with the smallest tolerance at which each
would have passed. JUnit files have it as the property `rnn_smallest_tolerance_eps`.

Every pytest run imports this file, which imports neither NumPy nor a framework.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Generator, Sequence
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from multirnn.protocol import Backend

OPTION = "--rnn-backends"
MARKER = "rnn_backends"
SMALLEST, WHERE = "rnn_smallest_tolerance_eps", "rnn_where"
# A user property of the report, which xdist and JUnit files keep -> an attribute of the Disagreement.
PROPERTIES = {SMALLEST: "smallest", WHERE: "where"}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds `--rnn-backends`."""
    parser.getgroup("multirnn").addoption(
        OPTION,
        metavar="NAMES",
        help="run the tests that use rnn_backend on these backends alone, separated by commas; "
        "a framework that is not installed fails them",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Registers the marker, and refuses unknown names."""
    config.addinivalue_line(
        "markers",
        f'{MARKER}(*names, skip=(), reason="", refusal="fail"): run on these backends, or on all but those to skip; '
        'refusal="skip" skips where a backend refuses a spec. See multirnn.pytest_plugin.',
    )
    if (names := _asked_for(config)) is not None:
        if not names:
            raise pytest.UsageError(f"{OPTION} takes the names of backends, separated by commas")
        if reason := _names_refuse(names):
            raise pytest.UsageError(f"{OPTION}: {reason}")


# --- On which backends -----------------------------------------------------------------------------------------------

# Of scope "module", so that a module's own fixtures can use them, and Hypothesis does not complain.


@pytest.fixture(scope="module")
def rnn_backend_name(request: pytest.FixtureRequest) -> str:
    """The name of every installed backend, one after another; its framework may be missing."""
    return str(request.param)


@pytest.fixture(scope="module")
def rnn_backend(request: pytest.FixtureRequest, rnn_backend_name: str) -> Backend:
    """Every installed backend, one after another; skipped if its framework is missing, failed if that is broken."""
    from multirnn.registry import Absent, present

    found = present(rnn_backend_name)
    if not isinstance(found, Absent):
        return found
    if found.verdict == "missing" and _asked_for(request.config) is None:
        pytest.skip(found.reason)
    pytest.fail(f"{found.name}: {found.reason}" if found.verdict == "broken" else found.reason, pytrace=False)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Makes one test for each backend, skipped where a marker says so."""
    if "rnn_backend_name" not in metafunc.fixturenames:
        return
    from multirnn.registry import backends

    markers = list(metafunc.definition.iter_markers(MARKER))
    for marker in markers:
        _check(marker)
    parameters = []
    for name in _asked_for(metafunc.config) or backends():
        reasons = [reason for marker in markers if (reason := _marker_refuses(marker, name))]
        parameters.append(pytest.param(name, marks=[pytest.mark.skip(reason=reason) for reason in reasons[:1]]))
    metafunc.parametrize("rnn_backend_name", parameters, indirect=True)


def _asked_for(config: pytest.Config) -> list[str] | None:
    """The names given to `--rnn-backends`, each once; None where it is not given."""
    given: str | None = config.getoption(OPTION)
    return given if given is None else list(dict.fromkeys(filter(None, map(str.strip, given.split(",")))))


def _names_refuse(names: Collection[str]) -> str | None:
    """None if all are names of installed backends, else a sentence about the first that is not."""
    from multirnn.errors import UnknownBackend
    from multirnn.registry import backend, backends

    try:
        for name in names:
            if name not in backends():
                backend(name)
    except UnknownBackend as error:
        return str(error)
    return None


def _check(marker: pytest.Mark) -> None:
    """Raise for a wrong marker: an error of its file, on every backend."""
    skipped = _names(marker.kwargs.get("skip", ()))
    reason = _names_refuse([*marker.args, *skipped])
    if unknown := set(marker.kwargs) - {"skip", "reason", "refusal"}:
        reason = f"no argument is called {min(unknown)!r}; there are names, skip, reason and refusal"
    elif skipped and not marker.kwargs.get("reason"):
        reason = "skip needs a reason"
    elif marker.kwargs.get("refusal", "fail") not in ("fail", "skip"):
        reason = f"refusal must be 'fail' or 'skip', not {marker.kwargs['refusal']!r}"
    if reason:
        raise pytest.Collector.CollectError(f"@pytest.mark.{MARKER}: {reason}")


def _marker_refuses(marker: pytest.Mark, name: str) -> str | None:
    """None if a marker allows a backend, else the reason why not."""
    reason: str = marker.kwargs.get("reason", "")
    if name in _names(marker.kwargs.get("skip", ())):
        return reason
    if marker.args and name not in marker.args:
        return f"runs on {', '.join(marker.args)} alone" + (f": {reason}" if reason else "")
    return None


def _names(given: str | Collection[str]) -> Collection[str]:
    return (given,) if isinstance(given, str) else given


# --- The report of a test --------------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turns a refused spec into a skip where a marker says so, and reports the smallest tolerance of a disagreement."""
    error = call.excinfo.value if call.excinfo else None
    refused = _is("multirnn.errors", "Unsupported", error) and _refusals_skip(item)
    if refused:
        call.excinfo = pytest.CallInfo.from_call(lambda: pytest.skip(str(error)), call.when).excinfo
    elif _is("multirnn.testing.agreement", "Disagreement", error):
        item.user_properties += [(name, getattr(error, attribute)) for name, attribute in PROPERTIES.items()]
    report = yield
    if refused:  # else the location of every skip would be this file
        path, line, _ = item.reportinfo()
        report.longrepr = str(path), (line or 0) + 1, f"Skipped: {error}"
    return report


def _is(module: str, name: str, error: BaseException | None) -> bool:
    """Whether an error is of a class of ours, without loading the class."""
    return error is not None and isinstance(error, getattr(sys.modules.get(module), name, ()))


def _refusals_skip(item: pytest.Item) -> bool:
    said = (marker.kwargs["refusal"] for marker in item.iter_markers(MARKER) if "refusal" in marker.kwargs)
    return next(said, "fail") == "skip"


# --- The report of a run ---------------------------------------------------------------------------------------------


def pytest_report_collectionfinish(config: pytest.Config, items: Sequence[pytest.Item]) -> list[str]:
    """The backends and their versions, if a test uses them; loads nothing."""
    used = any("rnn_backend_name" in getattr(item, "fixturenames", ()) for item in items)
    if not used or config.get_verbosity() < 0:
        return []
    from importlib.metadata import entry_points

    points = entry_points(group="multirnn.backends")
    names = _asked_for(config) or sorted(points.names)
    return [f"rnn_backend: {', '.join(_with_versions(points[name]) for name in names)}"]


def _with_versions(point: EntryPoint) -> str:
    """A backend with the versions of the extra of its name, else of the package of its name, else of its distribution."""
    from importlib.metadata import PackageNotFoundError, version

    if point.dist is None:
        return point.name
    needed = point.dist.requires or ()
    extra = [line for line in needed if re.search(rf"""extra == ['"]{point.name}['"]""", line)]
    packages = [re.split(r"[^\w.-]", line)[0] for line in extra or needed]
    said = []
    for package in packages if extra else [point.name if point.name in packages else point.dist.name]:
        try:
            said.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            said.append(f"{package} is not installed")
    return f"{point.name} ({', '.join(said)})"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Lists the smallest tolerance that would pass of every failed agreement, the largest first."""
    found = []
    for report in terminalreporter.getreports("failed") + terminalreporter.getreports("error"):
        said = dict(getattr(report, "user_properties", ()))  # the report of a collection error has none
        if PROPERTIES.keys() <= said.keys():
            found.append((said[SMALLEST], report.nodeid, said[WHERE]))
    if found:
        terminalreporter.section("smallest tolerance that would pass")
        for smallest, test, where in sorted(found, reverse=True):
            terminalreporter.line(f"{smallest:>10.3g} eps  {test}: {where}")
