"""A contender with a number of threads: its process starts on demand; several prepare in parallel, one a core."""

import select
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from multirnn_bench.contenders import Source
from multirnn_bench.limits import flops
from multirnn_bench.machine import allowed_cores
from multirnn_bench.problems import Problem
from multirnn_bench.process import LOOK, Lost, Process

__all__ = ["START_CAP", "Seat", "at_once"]

START_CAP = 120.0  # seconds for imports; TensorFlow's take 5, from a cold disk 30


@dataclass
class Seat:
    """A contender with a number of threads, and its process."""

    source: Source
    threads: int
    process: Process | None = None
    up: bool = False
    hello: dict[str, Any] = field(default_factory=dict)
    lost: Lost | None = None  # while starting: not tried again
    slow: list[tuple[str, Problem]] = field(default_factory=list)

    def launch(self, place: int = 0) -> None:
        """Start the process unless it runs; `start` waits until it is up."""
        if self.lost is None and self.process is None:
            try:
                self.process, self.up = Process(self.source, self.threads, place), False
            except Lost as lost:
                self.lost = lost

    def start(self) -> Process:
        """The process, started unless it runs.

        Raises:
            Lost: it does not start, now or earlier.
        """
        self.launch()
        if self.lost is not None:
            raise self.lost
        assert self.process is not None
        if not self.up:
            try:
                self.hello, self.up = self.process.answer(START_CAP), True
            except Lost as lost:
                self.process = None
                self.lost = Lost(lost.status, f"could not start: {lost.reason}")
                raise self.lost from None
        return self.process

    def end(self) -> None:
        """End the process; it starts again on demand."""
        if self.process is not None:
            self.process.end()
            self.process = None

    def slower_before(self, problem: Problem, mode: str) -> str:
        """The name of a smaller problem that was too slow; empty if there is none."""
        for before, smaller in self.slow:
            alike = before == mode and smaller.spec.cell == problem.spec.cell
            if alike and smaller.time <= problem.time and flops(smaller, mode) <= flops(problem, mode):
                return smaller.name
        return ""


def at_once(seats: Iterable[Seat], begin: Callable[[Seat, int], bool], cap: float) -> Iterator[Seat]:
    """Run seats in parallel, one a core; yields each when it has answered or its time is over.

    Args:
        seats: in the order in which they start.
        begin: starts a seat on the cores from an index on; False if there is no answer to wait for.
        cap: seconds that an answer may take.
    """
    waiting, places = deque(seats), list(range(len(allowed_cores())))
    busy: dict[Process, tuple[Seat, int]] = {}
    while waiting or busy:
        while waiting and places:
            seat = waiting.popleft()
            if begin(seat, places[-1]) and seat.process is not None:
                busy[seat.process] = seat, places.pop()
        over = min((process.asked for process in busy), default=0.0) + cap
        left = max(0.0, over - time.monotonic())
        answered, _, _ = select.select(busy, [], [], min(left, LOOK))
        if not answered and left <= LOOK:
            answered = [process for process in busy if process.asked + cap <= over]
        for process in answered or [process for process in busy if process.over]:
            seat, place = busy.pop(process)
            places.append(place)
            yield seat
