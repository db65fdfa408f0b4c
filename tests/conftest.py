"""Fixtures of all tests, and the options that write what README.md shows."""

import json
from pathlib import Path

import pytest

import multirnn as mr

Observed = dict[str, dict[str, dict[str, object]]]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("multirnn")
    group.addoption("--observed", type=Path, metavar="FILE", help="write the worst differences that test_agreement saw")
    group.addoption("--write-readme", action="store_true", help="write the generated parts of README.md again")


@pytest.fixture(params=mr.backends())
def backend(request: pytest.FixtureRequest) -> mr.Backend:
    """Every installed backend, one after another; skipped with its own sentence where its framework is missing."""
    try:
        return mr.backend(request.param)
    except mr.MissingFramework as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def observed(request: pytest.FixtureRequest):
    """backend -> dtype -> how many specs were drawn and accepted, and the worst difference in eps."""
    found: Observed = {}
    yield found
    if path := request.config.getoption("--observed"):
        path.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")
