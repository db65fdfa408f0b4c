"""The command line as tests run it: in this process or in one of its own, with frameworks or without."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from multirnn.cli import main

FRAMEWORKS = ("torch", "tensorflow", "keras", "jax", "jaxlib", "flax", "onnxruntime")
RNN = ("--cell", "simple_rnn", "--input", "10", "--hidden", "3")
LSTM = ("--cell", "lstm", "--input", "10", "--hidden", "3")
GRU = ("--cell", "gru", "--input", "10", "--hidden", "3")
SMALL = ("--window", "7", "--windows", "3", "--hidden", "5")


def run(*args: object, **environment: str) -> Result:
    """The command line in this process, as wide as no table is cut."""
    return CliRunner().invoke(main, [str(arg) for arg in args], env={"COLUMNS": "200", **environment})


def start(*args: object, prelude: str = "", **options: Any) -> "subprocess.Popen[str]":
    """The command line in a process of its own, after some Python."""
    # What a shell starts in the background ignores SIGINT, and so do its children: these tests may be among them.
    heed = "import signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{heed}\n{prelude}\nfrom multirnn.cli import main\nmain(prog_name='multirnn')"
    command = [sys.executable, "-c", code, *map(str, args)]
    # No width is asked for unless a test does: the runner of these tests may stand in a terminal.
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment, **options}
    return subprocess.Popen(command, text=True, **options)


def run_apart(*args: object, **options: Any) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of the command line in a process of its own."""
    process = start(*args, **options)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def without(*packages: str) -> str:
    """Python after which these packages are not installed: nothing finds them."""
    return f"""
from importlib.machinery import PathFinder
find = PathFinder.find_spec
def find_spec(cls, name, path=None, target=None):
    return None if name.partition(".")[0] in {packages!r} else find(name, path, target)
PathFinder.find_spec = classmethod(find_spec)
"""


def install(site: Path, name: str, source: str) -> dict[str, str]:
    """A backend of somebody else's in a folder, and the environment in which it is found by its true entry point."""
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (site / f"multirnn_{name}.py").write_text(source)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[multirnn.backends]\n{name} = multirnn_{name}:BACKEND\n")
    return {**os.environ, "PYTHONPATH": str(site), "COLUMNS": "200"}


STRANGER = """
import multirnn as mr
from multirnn.protocol import accept

class Stranger:
    name = {name!r}
    differentiable = True
    def refuses(self, spec):
        return {reason!r}
    def build(self, weights, *, device=None):
        accept(self, weights.spec)
        changed = {{name: array * {factor} for name, array in weights.arrays.items()}}
        return mr.backend("numpy").build(mr.Weights(weights.spec, changed))
    def read(self, native):
        raise mr.Unrepresentable("nothing to read")
    def versions(self):
        return {{"stranger": "1.0"}}

BACKEND = Stranger()
"""
