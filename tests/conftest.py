"""Fixtures of all tests, and the options that write the generated parts of the documents."""

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import multirnn as mr
from multirnn.protocol import Backend

# Most of the time of the tests is XLA compiling a new stack: 3 s each, and 0.7 s like this, in one piece: it would compile
# pieces side by side, and the other core has tests of its own. What `make demo` and the benchmarks run, and
# test_jax_native in a process of its own, is compiled as it is for users.
XLA = ("backend_optimization_level=0", "cpu_use_fusion_emitters=false", "cpu_parallel_codegen_split_count=1")
os.environ.setdefault("XLA_FLAGS", " ".join(f"--xla_{option}" for option in XLA))

pytest.register_assert_rewrite("adopted_layers", "diverging_layers", "kernel_calls", "torch_fast_pairs")  # they assert

Observed = dict[str, dict[str, dict[str, object]]]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("multirnn")
    group.addoption("--observed", type=Path, metavar="FILE", help="write the worst differences that test_agreement saw")
    group.addoption("--write-readme", action="store_true", help="write the generated parts of the documents again")


@pytest.fixture(params=mr.backends())
def backend(request: pytest.FixtureRequest) -> Backend:
    """Every installed backend, one after another; skipped with its own sentence where its framework is missing."""
    try:
        return mr.backend(request.param)
    except mr.MissingFramework as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True, scope="module")
def compiled_functions_are_freed() -> Iterator[None]:
    """Clears JAX's caches: each function that XLA compiles adds some 40 memory maps, and Linux allows 65530 a process."""
    yield
    if jax := sys.modules.get("jax"):
        jax.clear_caches()


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Print a sentence at the end of the run, whichever worker of pytest-xdist says it."""
    return lambda sentence: record_property("tell", sentence)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints how many checks of the conformance suite each backend passes, and the sentences that tests `tell`."""
    passed = terminalreporter.getreports("passed")
    clean = Counter(
        report.nodeid.partition("[")[2].split("-")[0]
        for report in passed
        if "test_agreement.py::test_conformance[" in report.nodeid
    )
    lines = [f"{backend}: {held} checks of the conformance suite hold" for backend, held in sorted(clean.items())]
    lines += sorted(str(value) for report in passed for name, value in report.user_properties if name == "tell")
    if lines:
        terminalreporter.section("counts")
        for line in lines:
            terminalreporter.line(line)


@pytest.fixture(scope="session")
def observed(request: pytest.FixtureRequest):
    """backend -> dtype -> how many specs were drawn and accepted, and the worst difference in eps."""
    found: Observed = {}
    yield found
    if path := request.config.getoption("--observed"):
        worker = os.environ.get("PYTEST_XDIST_WORKER", "")
        path.with_name(path.name + worker).write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """What the workers of pytest-xdist observed, in one file."""
    path = session.config.getoption("--observed")
    if not path or "PYTEST_XDIST_WORKER" in os.environ:
        return
    parts = sorted(path.parent.glob(path.name + "gw*"))
    together: Observed = {}
    for part in parts:
        for backend, dtypes in json.loads(part.read_text()).items():
            for dtype, row in dtypes.items():
                seen = together.setdefault(backend, {}).setdefault(dtype, {**row, "drawn": 0, "accepted": 0})
                if row["worst_eps"] > seen["worst_eps"]:
                    seen |= {"worst_eps": row["worst_eps"], "where": row["where"]}
                seen["drawn"] += row["drawn"]
                seen["accepted"] += row["accepted"]
        part.unlink()
    if parts:
        path.write_text(json.dumps(together, indent=2, sort_keys=True) + "\n")
