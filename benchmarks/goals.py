"""The goals for speed over the standard table, judged by a file of its results.

    multirnn bench standard --out benchmarks/results/standard.jsonl
    python benchmarks/goals.py benchmarks/results/standard.jsonl                        print; 0 if all goals are met, else 1
    python benchmarks/goals.py benchmarks/results/standard.jsonl --write "AMD Zen 4"    and write it to results/goals, under
                                                                                        this name or the processor's

A ratio is their time over ours: the median over the rounds that both were in, which slow spells of the host hit alike. A mean
is the geometric one over the problems. Only verified and timed rows take part.
"""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from operator import itemgetter
from pathlib import Path
from statistics import median
from typing import Any

from multirnn_bench.results import read
from multirnn_bench.standing import Row, View, label, views
from multirnn_bench.statistics import geometric_mean, shared_rounds

RESULTS = Path(__file__).parent / "results" / "goals"  # a file for every kind of processor
TORCH = ("torch", "torch.nn*")
KERAS = ("keras", "Keras*")
SHARE = "share of the limit (up to 512 units, 8 rows or more)"


@dataclass(frozen=True)
class Goal:
    """A bound on ratios of two sides, each the best of its contenders on each problem; or on shares of the limit.

    Without `theirs`: on the shares of ours in problems of up to 512 units and from 8 rows on.
    """

    what: str
    ours: tuple[str, ...]  # names of contenders, with `*` for other letters; "ours" and "peer" are all of a kind
    theirs: tuple[str, ...]
    mode: str = "inference"
    cells: tuple[str, ...] = ("simple_rnn", "lstm", "gru")
    mean: float | None = None  # lower bound of the geometric mean
    least: float | None = None  # lower bound of every problem

    @property
    def words(self) -> str:
        """The bounds."""
        if not self.theirs:
            return f"never below {self.least:.0%}"
        bounds = [f"{self.mean:g} in the mean"] if self.mean else []
        return ", ".join(bounds + ([f"never below {self.least:g}"] if self.least else []))

    def values(self, view: View) -> Iterator[tuple[str, float]]:
        """The ratio, or the share, of every problem that has one."""
        for name, rows in view.problems.items():
            timed = [row for row in rows.values() if row["status"] == "timed"]
            ours, theirs = ([row for row in timed if _is_one_of(row, names)] for names in (self.ours, self.theirs))
            if not ours or ours[0]["problem"]["cell"] not in self.cells:
                continue
            problem = ours[0]["problem"]
            if theirs:
                yield name, paired(min(theirs, key=itemgetter("median")), min(ours, key=itemgetter("median")))
            elif not self.theirs and problem["hidden_size"] <= 512 and problem["batch"] >= 8:
                yield name, max(row["share"] for row in ours)


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
    *(
        Goal(f"{cell}: the best of ours, {SHARE}", ("ours",), (), cells=(cell,), least=share)
        for cell, share in {"simple_rnn": 0.4, "lstm": 0.6, "gru": 0.6}.items()
    ),
)


def judged(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Every goal, for every number of threads, as it is written; one without rows is left out."""
    seen = {(view.mode, view.threads): view for view in views(rows)}
    found = []
    for threads in sorted({row["threads"] for row in rows if row["status"] == "timed"}):
        for goal in GOALS:
            view = seen.get((goal.mode, threads))
            values = dict(goal.values(view)) if view else {}
            if values:
                where = min(values, key=lambda name: values[name])
                mean, least = geometric_mean(list(values.values())), values[where]
                held = mean.value >= (goal.mean or 0) and least >= (goal.least or 0)
                of = {"mode": goal.mode, "threads": threads, "what": goal.what, "problems": len(values)}
                interval = {"mean": mean.value, "low": mean.low, "high": mean.high}
                found.append({**of, **interval, "least": least, "where": where, "goal": goal.words, "held": held})
    return found


def paired(above: Row, below: Row) -> float:
    """The median of the ratios of two rows in the rounds that both were in; of their medians, if there are none."""
    ratios = [a / b for a, b in zip(*shared_rounds(above, below), strict=True)]
    return median(ratios) if ratios else float(above["median"] / below["median"])


def _is_one_of(row: Row, names: tuple[str, ...]) -> bool:
    return row["contender"]["kind"] in names or any(fnmatchcase(label(row), name) for name in names)


def main(arguments: list[str]) -> int:
    from rich.console import Console
    from rich.table import Table

    results = read(Path(arguments[0]))
    found = judged(results.rows)
    table = Table("mode", "threads", "what", "problems", "mean", "least", "where", "goal", "held")
    for one in found:
        mean, least = f"{one['mean']:.2f} ({one['low']:.2f}–{one['high']:.2f})", f"{one['least']:.2f}"
        shown = one | {"mean": mean, "least": least, "held": "yes" if one["held"] else "NO"}
        table.add_row(*(str(shown[str(column.header)]) for column in table.columns))
    Console(width=200).print(table)
    if arguments[1:2] == ["--write"]:
        name = " ".join(arguments[2:]) or results.header["machine"]["processor"]
        taken = [row["taken"] for row in results.rows if row["rounds"]]  # by the host, while the row was timed
        written = {
            "name": name,
            "machine": results.header["machine"],
            "taken": {"median": median(taken), "most": max(taken)},
            "rows": {"all": len(results.rows), "again": results.again},
            "goals": found,
        }
        path = RESULTS / f"{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
        path.write_text(json.dumps(written, indent=2, ensure_ascii=False) + "\n")
    return 0 if found and all(one["held"] for one in found) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
