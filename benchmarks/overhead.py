"""The cost of the wrapper, of a step, of memory and of start-up, read off a run of `overhead.csv`.

    multirnn bench benchmarks/overhead.csv …            the whole command is in the Makefile
    python benchmarks/overhead.py FILE [--write]        print, and write results/foundation.json and results/fast.json

The wrapper is the layer called from NumPy to NumPy. It is compared with the framework's own call on its own arrays (see
each backend's `bench.py`) and with code written by hand (`counterparts.py`), in one process, in turns of milliseconds.
Ratios are the counterpart's time over ours in one round; of them the quartiles. Memory is the growth of the process by
the input and the calls. Start-up is measured here: two processes in turn.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from multirnn_bench.limits import minimum_memory
from multirnn_bench.problems import Problem
from multirnn_bench.results import Results, read
from multirnn_bench.statistics import shared_rounds

RESULTS = Path(__file__).parent / "results"
MEMORY = 1.3  # times the minimum
STARTS = 21

Row = Mapping[str, Any]
# In words, and whether it is held by ours and theirs, in microseconds, and theirs / ours.
Goal = tuple[str, Callable[[float, float, float], bool]]

THIN: Goal = "within 10 % plus 50 µs", lambda ours, theirs, ratio: 1 / ratio <= 1.1 + 50 / theirs
FLAT: Goal = "a step costs the same within 15 %", lambda ours, theirs, ratio: 1 / ratio <= 1.15
THINNEST: tuple[Goal, Goal] = (  # of one step, and of more
    ("at most 10 µs more", lambda ours, theirs, ratio: ours - theirs <= 10),
    ("at most 1 % more", lambda ours, theirs, ratio: 1 / ratio <= 1.01),
)


def at_least(factor: float) -> Goal:
    return f"at least {factor:g} times as fast", lambda ours, theirs, ratio: ratio >= factor


@dataclass(frozen=True)
class TimedPair:
    """Ours against theirs: microseconds, theirs and the difference in the median; of theirs / ours the quartiles."""

    what: str
    shape: Sequence[int]
    ours: float
    theirs: float
    ratio: float
    low: float
    high: float
    goal: str
    held: bool

    @classmethod
    def of(
        cls, what: str, shape: Sequence[int], ours: Sequence[float], theirs: Sequence[float], goal: Goal
    ) -> "TimedPair":
        """From the seconds of the same rounds."""
        low, ratio, high = quantiles([b / a for a, b in zip(ours, theirs, strict=True)], n=4)
        more = median(a - b for a, b in zip(ours, theirs, strict=True))
        times = 1e6 * (median(theirs) + more), 1e6 * median(theirs)
        return cls(what, shape, *times, ratio, low, high, goal[0], goal[1](*times, ratio))


def shape(row: Row) -> list[int]:
    return [row["problem"][name] for name in ("batch", "time", "input_size", "hidden_size")]


def beside(row: Row, what: str, goal: Goal) -> TimedPair:
    """The call from NumPy to NumPy of a row against the timed call beside it."""
    return TimedPair.of(what, shape(row), *zip(*row["boundaries"], strict=True), goal)


def foundation(results: Results) -> Iterator[TimedPair]:
    """NumPy against the textbook loop and PyTorch; the wrappers of the native layers."""
    rows = {
        (row["problem"]["name"], row["mode"], row["contender"]["name"]): row
        for row in results.rows
        if row["status"] == "timed" and row["problem"]["name"].startswith("loop-")
    }
    problems = list(dict.fromkeys(name for name, _, _ in rows))
    for rival, mode, what, first, others in (
        ("NumPy loop", "inference", "NumPy inference against the textbook loop", 1.8, 1.0),
        ("torch.nn", "gradients", "NumPy training step against torch.nn.RNN", 1.2, 1.2),
    ):
        for name in problems:
            goal = at_least(first if name == problems[0] else others)
            ours, theirs = rows[name, mode, "numpy"], rows[name, mode, rival]
            yield TimedPair.of(what, shape(ours), *shared_rounds(ours, theirs), goal)
    calls = {
        "torch": "torch layer against the raw module",
        "keras": "Keras layer against the raw model in a tf.function",
        "jax": "JAX layer against the raw jitted apply on a JAX array",
    }
    for contender, what in calls.items():
        yield from (beside(rows[name, "inference", contender], what, THIN) for name in problems)


def fast(results: Results) -> Iterator[TimedPair]:
    """The wrapper of every implementation, and the cost of a step of the fast ones."""
    rows = [row for row in results.rows if row["status"] == "timed" and row.get("boundaries")]
    for row in rows:
        name = row["contender"]["name"]
        if row["problem"]["name"].startswith("wrapper-"):
            hand = name.endswith(" by hand")
            against = "same by hand" if hand else "raw call"
            what = f"{name.removesuffix(' by hand')}: the layer, from NumPy to NumPy, against the {against}"
            yield beside(row, what, THINNEST[row["problem"]["time"] > 1])
    for row in rows:
        backend, found, _ = row["contender"]["name"].partition(" in calls of")
        if found and row["problem"]["name"].startswith("steps-"):
            yield beside(row, f"{backend}, {row['problem']['cell']}: one call against calls of 100 steps each", FLAT)


def memory(results: Results) -> Iterator[dict[str, Any]]:
    """The memory of the fast implementations, beside the least that holds input, output and parameters."""
    for row in results.rows:
        contender, problem = row["contender"]["name"], row["problem"]
        if row["status"] == "timed" and problem["name"].startswith("memory-") and contender.endswith(" fast"):
            used, least = row["added_memory_bytes"], minimum_memory(Problem.from_dict(problem))
            sizes = {"shape": shape(row), "bytes": used, "minimum": least}
            yield {"what": contender, "cell": problem["cell"], **sizes, "held": used <= MEMORY * least}


def start_up() -> Iterator[TimedPair]:
    """A fresh interpreter that imports multirnn, and the command; neither loads a framework."""
    python, multirnn = sys.executable, str(Path(sys.executable).parent / "multirnn")
    more: Goal = "at most 100 ms more", lambda ours, theirs, ratio: ours - theirs <= 100_000
    whole: Goal = "under 300 ms", lambda ours, theirs, ratio: ours < 300_000
    imports = [python, "-c", "import multirnn; multirnn.build"], [python, "-c", "import numpy"]
    helps = [multirnn, "--help"], [python, "-c", "pass"]
    for what, commands, goal in (
        ("import multirnn, and its first use, against import numpy", imports, more),
        ("multirnn --help against python -c pass", helps, whole),
    ):
        rounds = [[seconds(command) for command in commands] for _ in range(STARTS + 1)][1:]  # one warms the caches
        yield TimedPair.of(what, (), *zip(*rounds, strict=True), goal)


def seconds(command: Sequence[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def main(arguments: list[str]) -> int:
    from rich.console import Console
    from rich.table import Table

    results = read(arguments[0])
    pairs = {"foundation": [*foundation(results), *start_up()], "fast": list(fast(results))}
    held = list(memory(results))
    table = Table("what", "B, T, I, H", "ours µs", "theirs µs", "ratio", "quartiles", "goal", "held")
    for one in (pair for group in pairs.values() for pair in group):
        numbers = f"{one.ours:.0f}", f"{one.theirs:.0f}", f"{one.ratio:.2f}", f"{one.low:.2f}–{one.high:.2f}"
        table.add_row(one.what, str(list(one.shape)), *numbers, one.goal, "yes" if one.held else "NO")
    console = Console(width=170)
    console.print(table)
    for row in held:
        times = row["bytes"] / row["minimum"]
        console.print(f"{row['what']}, {row['cell']}: {times:.2f} times the least memory, goal {MEMORY}: {row['held']}")
    if arguments[1:] == ["--write"]:
        machine = results.header["machine"]
        about = {"processor": machine["processor"], **machine["versions"]}
        for name, group in pairs.items():
            found = {"machine": about, "results": [asdict(one) for one in group]}
            found |= {"memory": held} if name == "fast" else {}
            (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    return 0 if all(one.held for group in pairs.values() for one in group) and all(row["held"] for row in held) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
