"""What is promised of speed over the standard table, read off a file of its results.

    multirnn bench standard --out benchmarks/results/standard.jsonl
    python benchmarks/goals.py benchmarks/results/standard.jsonl                        print; 0 when every goal is held, else 1
    python benchmarks/goals.py benchmarks/results/standard.jsonl --write "AMD Zen 4"    and write it to results/goals; named
                                                                                        by the processor unless it is named

Ratios are theirs over ours in one round of one interleaved run, and of them the median over the rounds that both were in: so
a host that is slower for a while slows both. A row a number of threads; a mean is the geometric one over the problems. Only
rows that were verified and timed take part.
"""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from operator import itemgetter
from pathlib import Path
from statistics import median
from typing import Any

from multirnn_bench.results import read
from multirnn_bench.statistics import geometric_mean

RESULTS = Path(__file__).parent / "results" / "goals"
"""A file for every kind of processor."""

TORCH = ("torch", "torch.nn*")
KERAS = ("keras", "Keras*")


@dataclass(frozen=True)
class Goal:
    """One sentence about two sides, each of which is the best of its contenders on each problem.

    Attributes:
        what: in words.
        ours, theirs: names of contenders, in which `*` stands for other letters; `"ours"` and `"peer"` are all of a kind.
        mode: of the rows.
        cells: of the problems; all unless given.
        mean: what the geometric mean has to reach.
        least: what no problem may be below.
    """

    what: str
    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    mode: str = "inference"
    cells: tuple[str, ...] = ("simple_rnn", "lstm", "gru")
    mean: float | None = None
    least: float | None = None


GOALS = (
    Goal("the best of ours against the best peer", ("ours",), ("peer",), mean=1.15, least=0.95),
    Goal("torch fast against torch.nn.RNN", ("torch fast",), TORCH, cells=("simple_rnn",), mean=1.5),
    Goal("torch fast against torch.nn.GRU", ("torch fast",), TORCH, cells=("gru",), mean=1.5),
    Goal("torch fast against torch.nn.LSTM", ("torch fast",), TORCH, cells=("lstm",), least=0.95),
    Goal("Keras fast against Keras' own layers", ("keras fast",), KERAS, mean=2.0),
    Goal("JAX fast against flax.nnx.RNN", ("jax fast",), ("flax.nnx.RNN",), mean=1.5),
    Goal("NumPy fast against the textbook loop", ("numpy fast",), ("NumPy loop",), mean=1.4, least=1.0),
    Goal("JAX fast against plain autodiff of the hoisted scan", ("jax fast",), ("JAX scan",), "training", mean=1.4),
    Goal("JAX fast against torch.nn.RNN", ("jax fast",), TORCH, "training", ("simple_rnn",), mean=2.5),
    Goal(
        "torch fast against torch.nn.RNN and GRU", ("torch fast",), TORCH, "training", ("simple_rnn", "gru"), 2.0, 1.0
    ),
    Goal("NumPy fast against torch.nn.RNN", ("numpy fast",), TORCH, "training", ("simple_rnn",), mean=1.3),
)
SHARES = {"simple_rnn": 0.4, "lstm": 0.6, "gru": 0.6}
"""Of the machine's limit, that the best of ours reaches in inference of up to 512 units and from 8 rows on."""


@dataclass(frozen=True)
class Judged:
    """A goal over the problems of one number of threads.

    Attributes:
        mode, threads: of the rows.
        what: in words.
        problems: how many took part.
        mean: the geometric mean of the ratios, or of the shares.
        low, high: its interval.
        least: the smallest of them.
        where: the problem with the smallest.
        goal: in words.
        held: whether it is reached.
    """

    mode: str
    threads: int
    what: str
    problems: int
    mean: float
    low: float
    high: float
    least: float
    where: str
    goal: str
    held: bool


Row = dict[str, Any]


def judged(rows: Sequence[Row]) -> list[Judged]:
    """Every goal, for every number of threads; one without rows is left out."""
    timed = [row for row in rows if row["status"] == "timed"]
    found = []
    for threads in sorted({row["threads"] for row in timed}):
        there = [row for row in timed if row["threads"] == threads]
        for goal in GOALS:
            values = dict(_ratios(goal, there))
            wanted = [f"{goal.mean:g} in the mean"] if goal.mean else []
            wanted += [f"never below {goal.least:g}"] if goal.least else []
            found += _judge(goal.mode, threads, goal.what, values, ", ".join(wanted), goal.mean, goal.least)
        for cell, share in SHARES.items():
            values = dict(_shares(cell, there))
            what = f"{cell}: the best of ours, share of the limit (up to 512 units, 8 rows or more)"
            found += _judge("inference", threads, what, values, f"never below {share:.0%}", None, share)
    return found


def _judge(
    mode: str,
    threads: int,
    what: str,
    values: dict[str, float],
    goal: str,
    mean: float | None,
    least: float | None,
) -> Iterator[Judged]:
    if not values:
        return
    interval = geometric_mean(list(values.values()))
    where = min(values, key=lambda name: values[name])
    held = (mean is None or interval.value >= mean) and (least is None or values[where] >= least)
    measured = interval.value, interval.low, interval.high, values[where]
    yield Judged(mode, threads, what, len(values), *measured, where, goal, held)


def _ratios(goal: Goal, rows: list[Row]) -> Iterator[tuple[str, float]]:
    """The ratio of every problem that both sides have."""
    for name, there in _by_problem(rows, goal.mode):
        if there[0]["problem"]["cell"] not in goal.cells:
            continue
        ours, theirs = (
            [row for row in there if _is_one_of(row["contender"], names)] for names in (goal.ours, goal.theirs)
        )
        if ours and theirs:
            yield name, paired(min(theirs, key=itemgetter("median")), min(ours, key=itemgetter("median")))


def paired(above: Row, below: Row) -> float:
    """The median of the ratios of two rows in the rounds that both were in; of their medians, if there are none."""
    first, second = (dict(zip(row["round_numbers"], row["rounds"], strict=True)) for row in (above, below))
    ratios = [first[number] / second[number] for number in first if number in second]
    return median(ratios) if ratios else float(above["median"] / below["median"])


def _shares(cell: str, rows: list[Row]) -> Iterator[tuple[str, float]]:
    for name, there in _by_problem(rows, "inference"):
        problem = there[0]["problem"]
        if problem["cell"] == cell and problem["hidden_size"] <= 512 and problem["batch"] >= 8:
            shares = [row["share"] for row in there if row["contender"]["kind"] == "ours"]
            if shares:
                yield name, max(shares)


def _by_problem(rows: list[Row], mode: str) -> Iterator[tuple[str, list[Row]]]:
    there = [row for row in rows if row["mode"] == mode]
    for name in dict.fromkeys(row["problem"]["name"] for row in there):
        yield name, [row for row in there if row["problem"]["name"] == name]


def _is_one_of(contender: Row, names: tuple[str, ...]) -> bool:
    return contender["kind"] in names or any(fnmatchcase(contender["name"], name) for name in names)


def taken(rows: Sequence[Row]) -> list[float]:
    """Which part of its cores the host took, while each row was timed."""
    return [row["taken"] for row in rows if row["rounds"]]


def main(arguments: list[str]) -> int:
    """Print what a file of results says of each goal."""
    from rich.console import Console
    from rich.table import Table

    results = read(Path(arguments[0]))
    found = judged(results.rows)
    table = Table("mode", "threads", "what", "problems", "mean", "least", "where", "goal", "held")
    for one in found:
        numbers = f"{one.mean:.2f} ({one.low:.2f}–{one.high:.2f})", f"{one.least:.2f}"
        cells = one.mode, str(one.threads), one.what, str(one.problems), *numbers, one.where, one.goal
        table.add_row(*cells, "yes" if one.held else "NO")
    Console(width=200).print(table)
    if arguments[1:2] == ["--write"]:
        name = " ".join(arguments[2:]) or results.header["machine"]["processor"]
        shares = taken(results.rows)
        rows = {"all": len(results.rows), "again": results.again}
        written = {
            "name": name,
            "machine": results.header["machine"],
            "taken": {"median": median(shares), "most": max(shares)},
            "rows": rows,
            "goals": [asdict(one) for one in found],
        }
        path = RESULTS / f"{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
        path.write_text(json.dumps(written, indent=2, ensure_ascii=False) + "\n")
    return 0 if found and all(one.held for one in found) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
