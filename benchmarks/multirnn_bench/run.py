"""A run: every problem of a table, in every mode, by every contender with each number of threads.

Processes stay alive from problem to problem; one that dies is restarted for the next. Contenders prepare in parallel,
one a core, and are then timed in turns. Rows are written when a problem's rounds are over; refusals and failures, at
once.
"""

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import Any

from multirnn.layer import NATIVE
from multirnn_bench import inputs, verify
from multirnn_bench.alone import GaugeError
from multirnn_bench.contenders import Source
from multirnn_bench.interference import TAKEN, UNTAKEN, Interference, Pace
from multirnn_bench.limits import Limits, bytes_moved, flops
from multirnn_bench.machine import free_memory, steal
from multirnn_bench.problems import Problem, ProblemTable
from multirnn_bench.process import START_CAP, Lost, Seat, at_once
from multirnn_bench.results import DONE, NotSaved, Writer, key, taken
from multirnn_bench.rounds import ROUNDS, Entrant, interleave, unstable
from multirnn_bench.statistics import quartiles

__all__ = ["Progress", "Run", "settings"]

MEASURED_AGAIN = 120.0  # seconds between measurements of the limits; one takes 2 or 3 s
USABLE_MEMORY = 0.6  # share of the free memory; the frameworks themselves need the rest
ESTIMATES = 2  # tries at most, while the hypervisor interferes
TRIED = 9  # calls at the limit that must fit under the cap: three to prepare, by a contender three times as slow
LONG = 0.02  # seconds of a call at the limit; from here on, the first round is the estimate
CONVERTED = 0.01  # seconds of a call at the limit; beyond, conversion from and to NumPy is too small to see
WEIGHT = 18  # a call of 1 s at the limit gets 18 times the time of a problem of short calls
OVERHEAD = 3  # arrays that a contender holds for each of the problem: NumPy's, its own, its output


@dataclass(frozen=True)
class Progress:
    """Progress of a run."""

    done: int  # rows
    total: int
    doing: str


def settings(table: ProblemTable, threads: Sequence[int], seed: int) -> dict[str, Any]:
    """The settings that a resumed run must share."""
    problems = [[case.problem.name, *case.modes] for case in table.cases]
    return {"problems": problems, "threads": list(threads), "seed": seed}


@dataclass(frozen=True)
class _Task:
    """A problem in one mode, and the folder of its inputs and its reference."""

    problem: Problem
    mode: str
    folder: Path

    @property
    def title(self) -> str:
        return f"{self.problem.name} {self.mode}"


class Run:
    """A run over a table, without the rows that `writer` has already; a context manager that ends all processes.

    Of a problem that is timed `again`, the calmer time counts.
    """

    def __init__(
        self,
        table: ProblemTable,
        sources: Sequence[Source],
        threads: Sequence[int],  # each a row of its own
        writer: Writer,
        limits: Limits,
        *,
        seed: int = 0,  # of weights, inputs, cotangents and the order in the rounds
        measure: Callable[[Limits], Limits] | None = None,  # every MEASURED_AGAIN and at the end; the higher ones count
        again: float = math.inf,  # a problem with interference above this share of the cores is timed again by all
        tell: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        self.table, self.writer, self.limits, self.seed, self._tell = table, writer, limits, seed, tell
        self._measure, self._measured = measure, time.monotonic()
        self.missing: dict[str, str] = {}  # contenders whose framework is not installed: name to reason
        self._pace = Pace()
        self._host = Interference(self._pace)
        self._fewest = min(threads)
        self._seats = [Seat(source, n) for source in sources for n in threads]
        self._tasks = [(case.problem, mode) for case in table.cases for mode in case.modes]
        done = [row for row in writer.rows if row["status"] in DONE]
        self._before = {where: share for where, share in taken(done).items() if share > again}
        self._done = {
            key(row)
            for row in done
            if row["status"] != "timed" or (row["problem"]["name"], row["mode"]) not in self._before
        }
        self._slow = [
            (row["contender"]["name"], row["mode"], Problem.from_dict(row["problem"]))
            for row in writer.rows
            if row["status"] == "slow"
        ]

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *error: object) -> None:
        for seat in self._seats:
            seat.end()
        self._pace.end()

    def __call__(self) -> None:
        """Start the contenders and run every problem that is not done yet; `NotSaved` if it cannot be written."""
        begun = time.monotonic()
        self._start()
        weights = [1 + WEIGHT * self._limit(problem, mode) for problem, mode in self._tasks]
        left = [weight if self._todo(*task) else 0.0 for task, weight in zip(self._tasks, weights, strict=True)]
        # A resumed run gets the remaining part of the time.
        budget = math.inf if self.table.seconds is None else self.table.seconds * sum(left) / sum(weights)
        for place, (problem, mode) in enumerate(self._tasks):
            if not (todo := self._todo(problem, mode)):
                continue
            share = (begun + budget - time.monotonic()) * left[place] / sum(left[place:])
            for heat in _heats(todo, problem, mode):
                try:
                    folder = tempfile.TemporaryDirectory(prefix="multirnn-bench-")
                except OSError as error:
                    raise self._no_room(error) from None
                with folder:
                    self._race(_Task(problem, mode, Path(folder.name)), heat, share * len(heat) / len(todo))
            if time.monotonic() - self._measured > MEASURED_AGAIN:
                self._measure_again()
        if any(left):
            self._measure_again()

    def _measure_again(self) -> None:
        """Measure the limits while all contenders are stopped, and write those that are higher than before."""
        if self._measure is None:
            return
        self._say("measuring again what this machine can do")
        with suppress(GaugeError):  # the present limits stand
            found = self._measure(self.limits)
            if found != self.limits:
                self.limits = found
                self.writer.write_limits(found)
        self._measured = time.monotonic()

    def _todo(self, problem: Problem, mode: str) -> list[Seat]:
        return [seat for seat in self._seats if (problem.name, mode, seat.threads, seat.source.name) not in self._done]

    # --- Starting ----------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Start every process once, to leave out contenders that are missing."""
        absent: set[str] = set()
        implementations: dict[str, Sequence[str]] = {}  # by backend, reported by its first contender

        def launch(seat: Seat, place: int) -> bool:
            source = seat.source
            if source.implementation not in implementations.get(source.where, [source.implementation]):
                absent.add(source.name)
                return False
            self._say(f"loading {source.name}")
            seat.launch(place)
            return True

        first = sorted(self._seats, key=lambda seat: seat.source.implementation not in ("", NATIVE))
        for seat in at_once(first, launch, START_CAP):
            with suppress(Lost):  # becomes a row of every problem
                seat.start()
            hello, name = seat.hello, seat.source.name
            if hello.get("status") == "absent":
                absent.add(name)
            if hello.get("status") == "missing":
                self.missing[name] = hello["reason"]
            if hello.get("implementations"):
                implementations[seat.source.where] = hello["implementations"]
        out = [seat for seat in self._seats if seat.source.name in absent | set(self.missing)]
        for seat in out:
            seat.end()
            self._seats.remove(seat)

    def _limit(self, problem: Problem, mode: str) -> float:
        """The least seconds of a call, with the fewest threads."""
        return self.limits.seconds(problem, mode, self._fewest)

    def _slower_before(self, task: _Task, seat: Seat) -> str:
        """The name of a smaller problem that was too slow for the contender; empty if there is none."""
        problem, mode = task.problem, task.mode
        for name, before, smaller in self._slow:
            alike = (name, before, smaller.spec.cell) == (seat.source.name, mode, problem.spec.cell)
            if alike and smaller.time <= problem.time and flops(smaller, mode) <= flops(problem, mode):
                return smaller.name
        return ""

    # --- One problem -------------------------------------------------------------------------------------------------

    def _race(self, task: _Task, seats: Sequence[Seat], share: float) -> None:
        """Prepare and verify each, then time all of them in turns."""
        start, limit = time.monotonic(), self._limit(task.problem, task.mode)
        if beyond := self._beyond(task, limit):
            for seat in seats:
                self._write(task, seat, beyond)
            return
        self._say(f"{task.title}: reference")
        work = inputs.draw(task.problem, task.mode, self.seed)
        try:
            inputs.save(work, task.folder / "inputs")
            inputs.save_arrays(verify.expected(work), task.folder / "reference")
        except OSError as error:
            raise self._no_room(error) from None
        del work
        ready = self._prepared(task, seats, limit)
        if limit < LONG:
            ready = [(seat, answer) for seat, answer in ready if self._estimated(task, seat, answer)]
        if not ready:
            return
        rounds = ROUNDS[1] if self.table.boundaries is None else self.table.boundaries
        entrants = [
            Entrant(
                seat.start(),
                threads=seat.threads,
                boundaries=rounds if answer["boundary"] == "other" else 0,
                cap=self.table.cap,
                seconds=answer.get("seconds"),
            )
            for seat, answer in ready
        ]
        self._say(f"{task.title}: rounds")
        at = datetime.now(UTC).isoformat(timespec="seconds")
        interleave(entrants, self.seed, self._host, start + share)
        rows = [
            (seat, answer | {"measured_at": at} | self._timed(task, seat, entrant, answer))
            for (seat, answer), entrant in zip(ready, entrants, strict=True)
        ]
        before = self._before.get((task.problem.name, task.mode), math.inf)
        if fmean(taken.most for entrant in entrants for taken in entrant.taken or [UNTAKEN]) < before:
            for seat, found in rows:
                self._write(task, seat, found)

    def _beyond(self, task: _Task, limit: float) -> dict[str, Any]:
        """The row of every contender if the problem takes more time or memory than there is; empty if not."""
        if TRIED * limit > self.table.cap:
            reason = f"a call needs {limit:.3g} s at best, too much where all is given up after {self.table.cap:.3g} s"
            return {"status": "slow", "reason": reason}
        needed, free = verify.memory_of_reference(task.problem, task.mode), free_memory()
        if needed > USABLE_MEMORY * free:
            reason = f"the float64 reference needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} are free"
            return {"status": "refused", "reason": reason}
        return {}

    def _no_room(self, error: OSError) -> NotSaved:
        why = f"inputs cannot be written to {tempfile.gettempdir()}: {error.strerror or error}"
        return NotSaved(self.writer.what_is_saved(why))

    def _prepared(self, task: _Task, seats: Sequence[Seat], limit: float) -> list[tuple[Seat, dict[str, Any]]]:
        """The verified contenders, bound to the timing cores, with their answers; writes rows of the others."""

        def ask(seat: Seat, place: int) -> bool:
            if smaller := self._slower_before(task, seat):
                reason = f"not tried, since {smaller} was too much for it"
                self._write(task, seat, {"status": "slow", "reason": reason})
                return False
            self._say(f"{task.title}: {seat.source.name}")
            asked = task.mode in self.table.boundary and seat.threads == self._seats[0].threads
            message: dict[str, Any] = {"do": "prepare", "problem": task.problem.to_dict(), "mode": task.mode}
            message |= {name: str(task.folder / name) for name in ("inputs", "reference")}
            message |= {"boundary": asked and (limit < CONVERTED or self.table.boundaries is None)}
            try:
                process = seat.start()
                process.bind(place)
                process.send(message)
            except Lost as lost:
                self._write(task, seat, self._gone(task, seat, lost))
                return False
            return True

        answers = {id(seat): self._answer(task, seat, "ready") for seat in at_once(seats, ask, self.table.cap)}
        ready = [(seat, answer) for seat in seats if (answer := answers.get(id(seat)))]
        for seat, _ in ready:
            seat.start().bind()
        return ready

    def _estimated(self, task: _Task, seat: Seat, answer: dict[str, Any]) -> bool:
        """Add the seconds of a call to the answer, while nothing else runs; False if the contender was lost."""
        assert seat.process is not None
        for _ in range(ESTIMATES):
            watched = self._host.watch(seat.threads)
            try:
                seat.process.send({"do": "estimate"})
            except Lost as lost:
                self._write(task, seat, answer | self._gone(task, seat, lost))
                return False
            estimated = self._answer(task, seat, "estimated", answer)
            if not estimated:
                return False
            answer["seconds"] = min(answer.get("seconds", math.inf), estimated["seconds"])
            if watched().most <= TAKEN:
                break
        return True

    def _answer(
        self, task: _Task, seat: Seat, status: str, before: Mapping[str, Any] = MappingProxyType({})
    ) -> dict[str, Any]:
        """The answer to the last message; if its status is another, the row is written and the result is empty."""
        assert seat.process is not None
        try:
            answer = seat.process.answer(self.table.cap)
        except Lost as lost:
            answer = self._gone(task, seat, lost)
        if answer["status"] == status:
            return answer
        self._write(task, seat, {**before, **answer})
        return {}

    def _timed(self, task: _Task, seat: Seat, entrant: Entrant, answer: dict[str, Any]) -> dict[str, Any]:
        """The measured fields of a row, from the rounds and the final answer of the contender."""
        memory: dict[str, Any] = {}
        lost = entrant.lost
        if lost is None:
            try:
                memory = entrant.process.ask({"do": "finish"}, self.table.cap)
                if memory["status"] != "finished":
                    lost = Lost(memory["status"], memory["reason"])
            except Lost as late:
                lost = late
        if lost is not None:
            return self._gone(task, seat, lost)
        low, median, high = quartiles(entrant.rounds)
        limit = self.limits.seconds(task.problem, task.mode, seat.threads)
        boundary = quartiles([seconds for seconds, _ in entrant.through])[1] if entrant.through else None
        return {
            "status": "timed",
            "reason": "",
            "rounds": entrant.rounds,
            "round_numbers": entrant.numbers,
            "repetitions": entrant.plan.repetitions,
            "steal": None if steal() is None else fmean(one.stolen for one in entrant.taken),
            "taken": fmean(one.most for one in entrant.taken),
            "blocks_again": entrant.again,
            "median": median,
            "low": low,
            "high": high,
            "stable": not unstable(low, median, high),
            "boundary_median": median if answer["boundary"] == "same" else boundary,
            "boundaries": entrant.through or None,
            "peak_memory_bytes": memory["peak_memory_bytes"],
            "added_memory_bytes": memory["added_memory_bytes"],
            "limit_s": limit,
            "share": limit / median,
        }

    def _gone(self, task: _Task, seat: Seat, lost: Lost) -> dict[str, Any]:
        if seat.process is not None and not seat.process.alive:
            seat.end()
        if lost.status == "slow":
            self._slow.append((seat.source.name, task.mode, task.problem))
        return {"status": lost.status, "reason": lost.reason}

    def _write(self, task: _Task, seat: Seat, found: dict[str, Any]) -> None:
        problem, source, hello = task.problem, seat.source, seat.hello
        contender = {"name": source.name, "kind": source.kind, "implementation": source.implementation}
        contender |= {name: hello.get(name, empty) for name, empty in TOLD.items()}
        row = {
            "problem": problem.to_dict(),
            "mode": task.mode,
            "threads": seat.threads,
            "contender": {**contender, "plan": found.get("plan", ""), "blas": found.get("blas")},
            **{name: found.get(name) for name in MEASURED},
            "parameters": problem.spec.parameter_count,
            "flops": flops(problem, task.mode),
            "bytes": bytes_moved(problem, task.mode),
            "import_s": hello.get("import_s"),
        }
        self.writer.write(row)
        self._done.add(key(row))

    def _say(self, doing: str) -> None:
        self._tell(Progress(len(self._done), len(self._tasks) * len(self._seats), doing))


# By the process of a contender when it starts, and their values if it does not.
TOLD: Mapping[str, Any] = {"versions": {}, "flags": {}, "features": []}
MEASURED = (
    *("status", "reason", "error_eps", "allowed_eps", "prepare_s", "first_call_s", "rounds", "round_numbers"),
    *("repetitions", "median", "low", "high", "stable", "boundary_median", "boundaries", "peak_memory_bytes"),
    *("added_memory_bytes", "steal", "taken", "blocks_again", "measured_at", "limit_s", "share"),
)


def _heats(seats: Sequence[Seat], problem: Problem, mode: str) -> Iterator[Sequence[Seat]]:
    """The contenders in groups that fit into memory together; usually one group."""
    fit = max(1, int(USABLE_MEMORY * min(free_memory(), 1e18) / (OVERHEAD * bytes_moved(problem, mode))))
    for first in range(0, len(seats), fit):
        yield seats[first : first + fit]
