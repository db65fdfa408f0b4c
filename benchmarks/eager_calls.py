"""Eager calls of fast PyTorch layers, each in a process of its own with one version of multirnn; `whole_models.py` times them.

python benchmarks/eager_calls.py WHAT    answers every line of its input, a message of `multirnn_bench.rounds`
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multirnn_bench.machine import thread_variables
from multirnn_bench.worker import block, warm

ROOT = Path(__file__).parent.parent
THREADS = 2
CALLS = {  # the cell, and whether gradients are computed too
    "FastLSTM, one step of 8 units, a batch of 1: a call": ("lstm", False),
    "FastGRU, one step of 8 units, a batch of 1: a call": ("gru", False),
    "FastLSTM, one step of 8 units, a batch of 1: forward and backward": ("lstm", True),
}


@dataclass(frozen=True)
class Served:
    """A process that makes one of `CALLS` with the version of multirnn in a folder."""

    process: Any

    @classmethod
    @contextmanager
    def of(cls, folder: Path, what: str) -> Iterator["Served"]:
        """Start it, and end it."""
        paths = folder, folder / "backends", ROOT / "benchmarks"
        environment = os.environ | thread_variables(THREADS) | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
        command, pipe = [sys.executable, __file__, what], subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as process:
            found = cls(process)
            runs = found.ask({"repetitions": 1, "settle": 0.0}, 60.0)["of"]
            if not Path(runs).is_relative_to(folder):
                raise ValueError(f"{runs} runs, not the version in {folder}")
            yield found
            process.stdin.close()  # it then ends

    def ask(self, message: Mapping[str, Any], cap: float) -> dict[str, Any]:
        """The answer to a message: the seconds of a call."""
        print(json.dumps(message), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())


@contextmanager
def older(revision: str) -> Iterator[Path]:
    """A folder with the version of multirnn of a commit, its recurrence compiled."""
    with tempfile.TemporaryDirectory() as name:
        folder, kernel = Path(name), "multirnn/kernel"
        git = ["git", "-C", str(ROOT)]
        files = subprocess.run([*git, "archive", revision, "multirnn", "backends"], check=True, capture_output=True)
        subprocess.run(["tar", "-x", "-C", name], input=files.stdout, check=True)
        same = [*git, "diff", "--quiet", revision, "--", f"{kernel}/source", f"{kernel}/build.py"]
        if subprocess.run(same).returncode:
            build = [sys.executable, "-m", "multirnn.kernel.build"]
            subprocess.run(build, cwd=name, env=os.environ | {"PYTHONPATH": name}, check=True)
        else:
            for library in (ROOT / kernel).glob("recurrence.*"):
                shutil.copy(library, folder / kernel)
        yield folder


def timed(call: Callable[[], Any], repetitions: int, settle: float) -> dict[str, Any]:
    """Answer a message of `multirnn_bench.rounds`: settle, then the seconds of a call."""
    start = time.perf_counter()
    while time.perf_counter() - start < settle:
        call()
    return {"status": "timed", "seconds": block(call, repetitions)}


def made(what: str) -> Callable[[], None]:
    """One of `CALLS`."""
    import torch

    import multirnn as mr

    cell, trains = CALLS[what]
    torch.set_num_threads(THREADS)
    layer = mr.build(mr.RecurrentSpec(cell, 8, 8), "torch", implementation="fast").native
    x = torch.ones(1, 1, 8)

    def infer() -> None:
        with torch.no_grad():
            layer(x)

    def train() -> None:
        y, _ = layer(x)
        y.sum().backward()

    return train if trains else infer


def main(what: str) -> None:
    """Answer until the input ends; an answer says too where multirnn lies."""
    import multirnn as mr

    call = made(what)
    warm(call)
    for line in sys.stdin:
        message = json.loads(line)
        print(json.dumps(timed(call, message["repetitions"], message["settle"]) | {"of": mr.__file__}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
