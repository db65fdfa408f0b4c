"""The cost of the pytest plugin in a run that does not use it: pytest in an empty folder, with and without it, interleaved.

    python benchmarks/plugin.py            measure, print, and write results/plugin.json
    python benchmarks/plugin.py --quick    a tenth of the rounds, nothing written

A round is a run with the plugin and one with `-p no:multirnn`, in an order that changes from round to round; the figure is
the median over rounds of the difference. Processor time is measured beside wall time, which on a busy machine depends on
other processes. Third-party plugins are off.
"""

import json
import os
import platform
import resource
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory

from multirnn_bench.machine import describe

RESULTS = Path(__file__).parent / "results" / "plugin.json"
ROUNDS = 60
GOAL = 20.0  # milliseconds
OTHERS = ("hypothesispytest", "xdist", "xdist.looponfail", "cacheprovider")
WITHOUT = ("-p", "no:multirnn")
# Bytecode is kept, as users have it: without it pytest compiles plugins in every run, 10 ms here.
NOT_FOR_IT = ("PYTHONDONTWRITEBYTECODE", "PYTEST_ADDOPTS", "PYTEST_PLUGINS", "PYTEST_DISABLE_PLUGIN_AUTOLOAD")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in NOT_FOR_IT}


def run(folder: str, *options: str) -> tuple[float, float]:
    """Milliseconds of wall time and of processor time that a run of pytest takes."""
    off = [option for name in OTHERS for option in ("-p", f"no:{name}")]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "pytest", "-q", *off, *options]
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 5, done.stderr  # no tests were collected
    return 1000 * wall, 1000 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def rounds(count: int) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """The times without the plugin and with it; the first run of each is a warm-up that writes the bytecode."""
    found: dict[tuple[str, ...], list[tuple[float, float]]] = {WITHOUT: [], (): []}
    with TemporaryDirectory() as folder:
        for number in range(count + 1):
            for options in sorted(found, reverse=bool(number % 2)):
                found[options].append(run(folder, *options))
    return found[WITHOUT][1:], found[()][1:]


def summary(without: list[float], with_it: list[float]) -> dict[str, float]:
    low, middle, high = quantiles((b - a for a, b in zip(without, with_it, strict=True)), n=4)
    found = {"without": median(without), "with": median(with_it), "added": middle, "low": low, "high": high}
    return {name: round(value, 2) for name, value in found.items()}


def main(arguments: list[str]) -> int:
    quick = arguments == ["--quick"]
    without, with_it = rounds(ROUNDS // 10 if quick else ROUNDS)
    found = {
        kind: summary([each[place] for each in without], [each[place] for each in with_it])
        for place, kind in enumerate(("wall_ms", "processor_ms"))
    }
    held = found["wall_ms"]["added"] <= GOAL
    for kind, row in found.items():
        print(
            f"{kind:>12}: {row['added']:.1f} added to {row['without']:.0f} (quartiles {row['low']:.1f} to {row['high']:.1f})"
        )
    print(f"at most {GOAL:g} ms: {'held' if held else 'NOT HELD'}")
    if not quick:
        packages = {name: version(name) for name in ("pytest", "multirnn")}
        about = {"processor": describe()["processor"], "python": platform.python_version(), **packages}
        result = {"machine": about, "rounds": ROUNDS, "goal_ms": GOAL, "held": held, **found}
        RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
