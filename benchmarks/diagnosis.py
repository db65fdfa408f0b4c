"""How often `diagnose` names the right mistake, and how long it takes.

    python benchmarks/diagnosis.py            200 equal pairs, 500 with one mistake, 200 with two; writes results/diagnosis.json
    python benchmarks/diagnosis.py --quick    a tenth of them, nothing written

A pair is a stack and the same stack with drawn mistakes, over cells, biases, layers, directions and dtypes. A quarter of
the wrong ones show calls only. A named cause is right if it makes the planted function, gradients included, on calls drawn
here and not by the diagnosis. Times are CPU seconds of one core.
"""

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

import multirnn as mr
from multirnn.cells import CELLS
from multirnn.diagnosis import Diagnosis, diagnose
from multirnn.diagnosis.calls import answer, apart, drawn_call
from multirnn.mistakes import MISTAKES, mistakes_for
from multirnn.mistakes.change import Mistake, Runs, composed
from multirnn.mistakes.plumbing import Plumbing
from multirnn.numerics import tolerance
from multirnn.testing.mutation import MutantLayer

RESULTS = Path(__file__).parent / "results" / "diagnosis.json"
PAIRS = {0: 200, 1: 500, 2: 200}  # by the number of planted mistakes
GOALS = {0: 1.0, 1: 0.99, 2: 0.95}
BUILD = mr.backend("numpy").build


class Planted(MutantLayer):
    """A layer that says it is right."""

    def __init__(self, weights: mr.Weights, *mistakes: Mistake) -> None:
        super().__init__(weights, composed(BUILD, *mistakes)(weights), BUILD)


def function(layer: Runs) -> Callable[..., Any]:
    def port(x: Any, h0: Any) -> Any:
        state = mr.State(*h0) if isinstance(h0, tuple) else mr.State(h0)
        output = layer(x, state)
        return output.sequence, tuple(output.state) if layer.spec.cell == "lstm" else output.state.h

    return port


@dataclass
class PortPair:
    """A stack, the mistakes planted in it, and whether the wrong side is a layer or shows calls only."""

    weights: mr.Weights
    mistakes: tuple[Mistake, ...]
    only_calls: bool

    @property
    def right(self) -> Any:
        """The right side."""
        return BUILD(self.weights)

    @property
    def wrong(self) -> Any:
        """The side in question."""
        planted = Planted(self.weights, *self.mistakes)
        return function(planted) if self.only_calls else planted

    def is_explained_by(self, *mistakes: Mistake) -> bool:
        """Whether these are the same mistakes, or make the same function as far as it is shown."""
        if {mistake.name for mistake in mistakes} == {mistake.name for mistake in self.mistakes}:
            return True  # in two orders, what computes in float32 rounds in two ways
        wide = self.weights.astype("float64")
        layers = [composed(BUILD, *these)(wide) for these in (mistakes, self.mistakes)]
        return same(*layers, dtype=self.weights.spec.dtype, only_calls=self.only_calls)


def draw_spec(rng: np.random.Generator, hidden: tuple[int, int] = (2, 7)) -> mr.RecurrentSpec:
    cell = str(rng.choice(list(CELLS)))
    return mr.RecurrentSpec(
        cell,
        input_size=int(rng.integers(2, 6)),
        hidden_size=int(rng.integers(*hidden)),
        num_layers=int(rng.integers(1, 4)),
        bidirectional=bool(rng.integers(2)),
        bias=str(rng.choice(["none", "single", "double"])),
        reset_after=cell != "gru" or bool(rng.integers(2)),
        dtype=str(rng.choice(["float32", "float64"])),
    )


def draw_pairs(seed: int, count: int, mistakes: int) -> Iterator[PortPair]:
    """Pairs with so many planted mistakes, of different families; each makes a difference."""
    rng = np.random.default_rng(seed)
    drawn = 0
    while drawn < count:
        weights = mr.initialise(draw_spec(rng), rng)
        known = mistakes_for(weights.spec)
        chosen = [known[place] for place in rng.choice(len(known), mistakes, replace=False)]
        # Mistakes in the plumbing are innermost, nearest to the framework; there can be one.
        chosen.sort(key=lambda mistake: not isinstance(mistake.realise, Plumbing))
        plumbing = sum(isinstance(mistake.realise, Plumbing) for mistake in chosen)
        if len({mistake.family for mistake in chosen}) < mistakes or plumbing > 1:
            continue
        pair = PortPair(weights, tuple(chosen), bool(rng.random() < 0.25))
        if not any(pair.is_explained_by(*chosen[:k], *chosen[k + 1 :]) for k in range(mistakes)):
            drawn += 1
            yield pair


def same(one: Runs, other: Runs, *, dtype: str, only_calls: bool) -> bool:
    """Whether two layers of float64 agree on calls drawn here, within the tolerance of a dtype."""
    draw = partial(drawn_call, replace(one.spec, dtype="float64"), np.random.default_rng(1), 6, 6)
    hows: list[dict[str, Any]] = [{}, {"lengths": (0, 6, 6, 2, 3, 1)}, {"from_zero": True}]
    calls = [draw()] if only_calls else [draw(**how, gradients=pull) for how in hows for pull in (False, True)]
    answers = ([answer(layer, call, "float64") for layer in (one, other)] for call in calls)
    return all(apart(*pair) <= tolerance(dtype) for pair in answers)


@dataclass
class Rates:
    """How many pairs were named rightly, and which were not."""

    mistakes: int  # planted in each
    pairs: int = 0
    right: int = 0
    ambiguous: int = 0
    seconds: list[float] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """The share that was named rightly."""
        return self.right / self.pairs

    def __str__(self) -> str:
        planted = ("equal", "with one mistake", "with two mistakes")[self.mistakes]
        return (
            f"{self.right} of {self.pairs} pairs {planted} named rightly, {self.ambiguous} with several explanations; "
            f"{mean(self.seconds):.2f} s each, {max(self.seconds):.2f} s at most"
        )

    def to_dict(self) -> dict[str, float]:
        """As in `RESULTS`."""
        return {
            "pairs": self.pairs,
            "right": self.right,
            "rate": self.rate,
            "goal": GOALS[self.mistakes],
            "ambiguous": self.ambiguous,
            "seconds_mean": round(mean(self.seconds), 3),
            "seconds_max": round(max(self.seconds), 3),
        }


def measure(mistakes: int, pairs: int, seed: int = 0) -> Rates:
    rates = Rates(mistakes)
    for pair in draw_pairs(seed, pairs, mistakes):
        found, seconds = timed(pair.right, pair.wrong)
        rates.seconds.append(seconds)
        rates.pairs += 1
        rates.ambiguous += found.ambiguous
        named = [cause.mistakes for cause in found.causes]
        if (pair.mistakes and named and all(pair.is_explained_by(*cause) for cause in named)) or (
            not pair.mistakes and found.equal and not named
        ):
            rates.right += 1
        else:
            names = " and ".join(mistake.name for mistake in pair.mistakes)
            rates.missed.append(f"{pair.weights.spec!r}: {names}, only calls: {pair.only_calls}\n{found}")
    return rates


def timed(right: Any, wrong: Any) -> tuple[Diagnosis, float]:
    start = time.process_time()
    return diagnose(right, wrong), time.process_time() - start


def times_at(hidden_size: int) -> dict[str, float]:
    """Seconds of a run, the most that it costs: an LSTM has the most mistakes."""
    seconds = {}
    one_layer = mr.RecurrentSpec("lstm", 8, hidden_size)
    two_layers = replace(one_layer, num_layers=2, bidirectional=True)
    for title, spec in (("one layer", one_layer), ("two layers, bidirectional", two_layers)):
        weights = mr.initialise(spec, 0)
        right, other = BUILD(weights), mr.build(spec, "numpy", seed=1)
        planted = {
            "equal": Planted(weights),
            "one mistake": Planted(weights, MISTAKES["recurrent kernel transposed"]),
            "two mistakes": Planted(weights, MISTAKES["gates i o f g"], MISTAKES["initial state ignored"]),
            "unexplained": other,
        }
        for what, wrong in planted.items():
            seconds[f"{title}, {what}"] = round(timed(right, wrong)[1], 2)
    return seconds


def main() -> None:
    quick = "--quick" in sys.argv[1:]
    found = {}
    for mistakes, pairs in PAIRS.items():
        rates = measure(mistakes, pairs // 10 if quick else pairs)
        print(rates, f"(goal {GOALS[mistakes]:.0%})", *rates.missed, sep="\n", flush=True)
        found[mistakes] = rates.to_dict()
    seconds = times_at(64)
    for title, value in seconds.items():
        print(f"hidden size 64, {title}: {value} s")
    if not quick:
        machine = {"machine": platform.machine(), "cores": os.cpu_count(), "numpy": np.__version__}
        report = {"environment": machine, "by_planted_mistakes": found, "hidden_64_seconds": seconds}
        RESULTS.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
