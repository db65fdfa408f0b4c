"""Whole models with PyTorch's layers, with ours, and compiled with ours; and the cost of an eager call beside an older version.

    python benchmarks/whole_models.py                 measure, print; 0 if all goals are met, else 1; four minutes
    python benchmarks/whole_models.py --write         and write results/whole_models.json; refused on a busy machine
    python benchmarks/whole_models.py --rounds 2      a short run
    python benchmarks/whole_models.py --only frame    the rows with this word
    python benchmarks/whole_models.py --before HEAD   beside another version than the one before whole models

The models are those of `tests/whole_models_torch.py`, at sizes that people use. Training is forward, backward and a step of
SGD. The contenders of a row compute the same, which is verified, and take turns in one process, in blocks of some
milliseconds; a block during which the host took more than 2 % of the cores is repeated, and so is a row beside which other
processes had work. Ratios are the time of PyTorch's layers over ours in one round; of them the quartiles.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from eager_calls import CALLS, THREADS, Served, older, timed
from multirnn_bench.alone import measure_together
from multirnn_bench.doctor import CLEARLY, PERIOD
from multirnn_bench.interference import Interference, Pace
from multirnn_bench.machine import allowed_cores, describe
from multirnn_bench.rounds import BLOCK, Entrant, RoundPlan, interleave
from multirnn_bench.statistics import quartiles
from multirnn_bench.worker import warm

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "whole_models.json"
BEFORE = "6bd79c4"  # the version before whole models
ROUNDS = 15
TRIES = 3
STOCK, FAST, COMPILED = "stock", "fast", "compiled"
THEN, NOW = "before", "now"

Call = Callable[[], Any]


# --- What is timed ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """A model, and what is done with it.

    `prepare` makes, of the model and a function that is called as it, the call to time, which returns a tensor to verify.
    """

    what: str
    make: Callable[[], Any]
    prepare: Callable[[Any, Any], Call]
    at_least: float | None = None  # the goal: times as fast as PyTorch's layers


def language_model(vocabulary: int, units: int) -> Callable[[], Any]:
    return lambda: models().LanguageModel(vocabulary, units)


def tokens(vocabulary: int, batch: int, time: int) -> Any:
    import torch

    return torch.randint(vocabulary, (batch, time), generator=torch.Generator().manual_seed(1))


def drawn(*shape: int) -> Any:
    import torch

    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def training(arguments: Callable[[Any], Sequence[Any]]) -> Callable[[Any, Any], Call]:
    """A step of SGD on the mean square of the first output; it returns the loss."""

    def prepare(model: Any, run: Any) -> Call:
        import torch

        optimiser = torch.optim.SGD(model.train().parameters(), lr=1e-4)
        given = arguments(model)

        def call() -> Any:
            optimiser.zero_grad()
            outputs = run(*given)
            loss = (outputs if torch.is_tensor(outputs) else outputs[0]).square().mean()
            loss.backward()
            optimiser.step()
            return loss

        return call

    return prepare


def inference(arguments: Callable[[Any], Sequence[Any]]) -> Callable[[Any, Any], Call]:
    """A call without gradients."""

    def prepare(model: Any, run: Any) -> Call:
        import torch

        model.eval()
        given = arguments(model)

        def call() -> Any:
            with torch.no_grad():
                return run(*given)[0]

        return call

    return prepare


def sentences(model: Any) -> Sequence[Any]:
    """For a tagger: 16 of them, of 4 to 34 words; layers that take lengths are given them."""
    import torch

    model.packs = type(model.lstm) is torch.nn.LSTM
    return tokens(1000, 16, 34), torch.arange(4, 36, 2)


def rollouts(model: Any) -> Sequence[Any]:
    """For a policy: 8 environments, 16 steps, an episode in four of them ends."""
    import torch

    ended = torch.zeros(8, 16, dtype=torch.bool)
    ended[::2, 5] = True
    return drawn(8, 16, 24), ended, *model.start(8)


def enhancer() -> Any:
    return models().Enhancer(bands=64, channels=64, units=64)


TASKS = (
    *(
        Task(
            f"language model with dropout, {units} units, vocabulary {vocabulary}: training, 20 × 35 words",
            language_model(vocabulary, units),
            training(lambda model: [tokens(model.embedding.num_embeddings, 20, 35)]),
            goal,
        )
        for vocabulary, units, goal in ((100, 64, 1.15), (100, 200, 0.97), (5000, 200, 0.97))
    ),
    Task(
        "language model, 64 units, vocabulary 100: the next word",
        language_model(100, 64),
        inference(lambda model: [tokens(100, 1, 1), (drawn(2, 1, 64), drawn(2, 1, 64))]),
        2.0,
    ),
    Task(
        "speech enhancement, two GRUs of 64 units: training, 8 × 100 frames",
        enhancer,
        training(lambda model: [drawn(8, 100, 64), *model.start(8)]),
        3.0,
    ),
    Task(
        "speech enhancement, two GRUs of 64 units: one frame",
        enhancer,
        inference(lambda model: [drawn(1, 1, 64), *model.start(1)]),
        1.2,
    ),
    Task(
        "forecaster, 64 units, closed loop over 12 steps: training, 32 × 96 steps",
        lambda: models().Forecaster(8, 64, horizon=12),
        training(lambda model: [drawn(32, 96, 8)]),
        2.5,
    ),
    Task(
        "tagger, 2 × 64 units both ways, 16 sentences of 4 to 34 words: training",
        lambda: models().Tagger(1000, 10, 64),
        training(sentences),
    ),
    Task(
        "encoder and decoder, LSTMs of 64 units: training, 16 × 30 words to 30",
        lambda: models().Translator(1000, 64),
        training(lambda model: [tokens(1000, 16, 30), tokens(1000, 16, 30)]),
    ),
    Task(
        "policy, LSTM of 64 units, reset where an episode ended: training, 8 × 16 steps one by one",
        lambda: models().Policy(24, 4, 64),
        training(rollouts),
    ),
)
MORE = 2.0  # microseconds that an eager call may take more than before


def models() -> Any:
    """`tests/whole_models_torch.py`."""
    tests = str(ROOT / "tests")
    if tests not in sys.path:
        sys.path.append(tests)
    import whole_models_torch

    return whole_models_torch


def contenders(task: Task) -> dict[str, Call]:
    """The calls of a task, warm, of equal models; `ValueError` if one has another result."""
    import torch

    import multirnn as mr

    torch.manual_seed(0)
    stock = task.make()
    calls: dict[str, Call] = {}
    for name in (STOCK, FAST, COMPILED):
        model = deepcopy(stock)
        if name != STOCK:
            mr.replace_layers(model)
        torch._dynamo.reset()
        run = torch.compile(model, fullgraph=True) if name == COMPILED else model
        calls[name] = task.prepare(model, run)
    verify(task, calls)
    for call in calls.values():
        warm(call)
    return calls


def verify(task: Task, calls: Mapping[str, Call]) -> None:
    """Compiled dropout draws other numbers, so that the loss of a model that drops is held to a tenth there."""
    import torch

    results = {}
    for name, call in calls.items():
        torch.manual_seed(7)
        results[name] = call().detach()
    expected = results[STOCK]
    drops = any(isinstance(part, torch.nn.Dropout) for part in task.make().modules())
    for name, result in results.items():
        bound = 0.1 if drops and name == COMPILED else 1e-4
        error = float((result - expected).abs().max() / expected.abs().max())
        if not error < bound:
            raise ValueError(f"{task.what}, {name}: {error:.2g} from the result of PyTorch's layers")


# --- Timing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Here:
    """A call of this process, timed as a `multirnn_bench` process times one."""

    call: Call

    def ask(self, message: Mapping[str, Any], cap: float) -> dict[str, Any]:
        """The answer to a message of `multirnn_bench.rounds`: the seconds of a call."""
        return timed(self.call, message["repetitions"], message["settle"])


@dataclass
class Row:
    """Times in microseconds, medians; of the ratios, the first contender's over each other's, the quartiles."""

    what: str
    times: dict[str, float]
    ratios: dict[str, tuple[float, float, float]]
    more: float  # microseconds of the second more than of the first
    goal: str = ""
    held: bool | None = None  # None without a goal
    taken: list[float] = field(default_factory=list)  # shares of the cores lost to the host, a block each
    busy: float = 1.0  # see `busy`; the larger of before and after


def measured(what: str, askable: Mapping[str, Any], rounds: int, host: Interference) -> Row:
    """Rounds of blocks, in which all take turns."""
    entrants = {}
    for name, process in askable.items():
        seconds = min(process.ask({"repetitions": 1, "settle": BLOCK[0]}, 60)["seconds"] for _ in range(3))
        repetitions = max(1, round(BLOCK[1] / seconds))
        entrants[name] = Entrant(process, RoundPlan(rounds, repetitions), threads=THREADS)
    interleave(list(entrants.values()), host=host)
    seconds_of = {name: entrant.rounds for name, entrant in entrants.items()}
    first, second, *_ = seconds_of.values()
    ratios = {
        name: quartiles([a / b for a, b in zip(first, seconds, strict=True)])
        for name, seconds in list(seconds_of.items())[1:]
    }
    return Row(
        what,
        {name: 1e6 * median(seconds) for name, seconds in seconds_of.items()},
        ratios,
        1e6 * median(b - a for a, b in zip(first, second, strict=True)),
        taken=[taken.most for entrant in entrants.values() for taken in entrant.taken],
    )


def of_models(tasks: Sequence[Task], rounds: int, host: Interference) -> Iterator[Row]:
    for task in tasks:
        say(task.what)
        processes = {name: Here(call) for name, call in contenders(task).items()}
        row = calmest(partial(measured, task.what, processes, rounds, host))
        if task.at_least is not None:
            row.goal = f"at least {task.at_least:g} times as fast"
            row.held = row.ratios[FAST][1] >= task.at_least
        yield row


def of_eager_calls(names: Sequence[str], revision: str, rounds: int, host: Interference) -> Iterator[Row]:
    if not names:
        return
    with older(revision) as folder:
        for what in names:
            say(what)
            with Served.of(folder, what) as then, Served.of(ROOT, what) as now:
                row = calmest(partial(measured, what, {THEN: then, NOW: now}, rounds, host))
            row.goal, row.held = f"at most {MORE:g} µs more", row.more <= MORE
            yield row


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def busy() -> float:
    """Wall time over processor time of processes that always have work, one a core: the worst. 1 on an idle machine."""
    return max(measure_together("waiting", PERIOD, cores=[[core] for core in allowed_cores()]))


def calmest(measure: Callable[[], Row]) -> Row:
    """The row of an idle machine; after `TRIES` tries, that of the least busy."""
    rows = []
    while len(rows) < TRIES and not (rows and rows[-1].busy <= CLEARLY):
        before = busy()
        rows.append(measure())
        rows[-1].busy = max(before, busy())
    return min(rows, key=lambda row: row.busy)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", default="")
    parser.add_argument("--before", default=BEFORE)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(THREADS)
    pace = Pace()
    host = Interference(pace)
    tasks = [task for task in TASKS if options.only in task.what]
    names = [what for what in CALLS if options.only in what]
    rows = [*of_models(tasks, options.rounds, host), *of_eager_calls(names, options.before, options.rounds, host)]
    pace.end()
    show(rows)
    worst = max(rows, key=lambda row: row.busy)
    if worst.busy > CLEARLY:
        say(f"the machine is busy: beside {worst.what!r}, work took {worst.busy:.2f} times as long as alone")
    if options.write:
        if worst.busy > CLEARLY:
            say("nothing is written")
            return 2
        write(rows, options.rounds)
    return 0 if all(row.held in (True, None) for row in rows) else 1


def show(rows: Sequence[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("what", "µs", "ratios (quartiles)", "goal", "held")
    for row in rows:
        times = ", ".join(f"{name} {value:.0f}" for name, value in row.times.items())
        ratios = ", ".join(f"{name} {mid:.2f} ({low:.2f}–{high:.2f})" for name, (low, mid, high) in row.ratios.items())
        held = {True: "yes", False: "NO", None: "–"}[row.held]
        table.add_row(row.what, times, ratios if NOW not in row.times else f"{row.more:+.2f} µs", row.goal or "–", held)
    console = Console(width=200)
    console.print(table)
    taken = [share for row in rows for share in row.taken]
    console.print(
        f"taken by others while blocks were timed: in the median {median(taken):.1%}, at most {max(taken):.0%}"
    )


def write(rows: Sequence[Row], rounds: int) -> None:
    taken = [share for row in rows for share in row.taken]
    kept = [{name: value for name, value in asdict(row).items() if name != "taken"} for row in rows]
    found = {
        "machine": describe(),
        "threads": THREADS,
        "rounds": rounds,
        "taken": {"median": median(taken), "most": max(taken)},
        "results": kept,
    }
    RESULTS.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
