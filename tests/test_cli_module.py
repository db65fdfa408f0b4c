"""`python -m multirnn` does what the command does."""

import os
import subprocess
import sys

import pytest
from command_line import GRU, run_apart

import multirnn as mr


def module(*args: str) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    command = [sys.executable, "-m", "multirnn", *args]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_it_prints_what_the_command_prints() -> None:
    done = module("explain", *GRU)
    assert (done.returncode, done.stdout, done.stderr) == run_apart("explain", *GRU)


def test_the_version() -> None:
    assert module("--version").stdout == f"multirnn {mr.__version__}\n"


def test_its_usage_names_the_module() -> None:
    assert "Usage: python -m multirnn [OPTIONS] COMMAND" in module("--help").stdout


@pytest.mark.parametrize("args", [("nope",), ("explain", "--cell", "LSTM", "--input", "10", "--hidden", "3")])
def test_the_exit_status_of_a_wrong_use(args: tuple[str, ...]) -> None:
    done = module(*args)
    assert done.returncode == 2
    assert "python -m multirnn" in done.stderr
    assert "Traceback" not in done.stderr


def test_its_import_runs_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import multirnn.__main__"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
