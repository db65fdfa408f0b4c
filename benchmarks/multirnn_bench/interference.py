"""Interference by the hypervisor: reported steal time, and unreported slowdown.

A guest's core may be one hardware thread of a core whose other thread works for another guest, or for this one. No time
is stolen then, yet everything takes up to 1.9 times as long, for a tenth of a second or for minutes. A fixed
computation, timed on the same cores before and after each block, shows it.
"""

import os
import time
from bisect import insort
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from multirnn_bench.machine import allowed_cores, steal

__all__ = ["TAKEN", "UNTAKEN", "Interference", "Pace", "Taken"]

TAKEN = 0.02
"""Share of the cores above which a block counts as disturbed. Steal time is counted in 10 ms, much of a short block."""

FIRST = 20  # computations before the usual time is known
NUMBERS = 2048  # of each of two vectors: both in L1
PRODUCTS = 4096  # in a computation, 0.35 ms on Zen 4; fewer end before another core has begun
TRIES = 2  # the shorter counts: an interrupt is no slowdown
SLOWER = 1.3  # times the usual: 5 in 1000 alone take longer, and nearly all of two that share one physical core


class Pace:
    """Slowdown: how many times as long as usual a fixed computation takes, on a number of cores at once.

    The usual time is the lower quartile of all times so far.
    """

    def __init__(self) -> None:
        self._cores: list[tuple[ThreadPoolExecutor, Callable[[], float]]] = []  # each its thread and its computation
        self._seconds: dict[int, list[float]] = {}  # by how many cores; sorted

    def __call__(self, cores: int) -> float:
        """The slowdown of the slowest of the first `cores` that this process may run on."""
        known = self._seconds.setdefault(cores, [])
        while len(known) < FIRST:
            insort(known, self._slowest(cores))
        seconds = self._slowest(cores)
        insort(known, seconds)
        return seconds / known[len(known) // 4]

    def end(self) -> None:
        """End its threads; idempotent."""
        for thread, _ in self._cores:
            thread.shutdown()

    def _slowest(self, cores: int) -> float:
        while len(self._cores) < cores:
            core = allowed_cores()[len(self._cores) % len(allowed_cores())]
            self._cores.append((ThreadPoolExecutor(1, initializer=_bind, initargs=(core,)), _computation()))
        begun = [thread.submit(run) for thread, run in self._cores[:cores]]
        return max(one.result() for one in begun)


def _bind(core: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})  # of this thread only


def _computation() -> Callable[[], float]:
    """A function that computes products of two vectors, one loop in NumPy's C, and returns its seconds."""
    import numpy as np

    vector = np.broadcast_to(np.ones(NUMBERS, "float32"), (PRODUCTS, NUMBERS))
    out = np.empty(PRODUCTS, "float32")

    def run() -> float:
        shortest = float("inf")
        for _ in range(TRIES):
            start = time.perf_counter()
            np.vecdot(vector, vector, out=out)
            shortest = min(shortest, time.perf_counter() - start)
        return shortest

    return run


class Taken(NamedTuple):
    """The share of the cores lost to the hypervisor during a block."""

    stolen: float  # by reported steal time; 0 where none is reported
    slowed: float  # by the slowdown of a fixed computation before or after the block

    @property
    def most(self) -> float:
        """The larger share, since each hides part of the other."""
        return max(self)


UNTAKEN = Taken(0.0, 0.0)


@dataclass(frozen=True)
class Interference:
    """Measures interference during a block."""

    pace: Callable[[int], float] = lambda cores: 1.0  # the slowdown on a number of cores; see `Pace`
    stolen: Callable[[], float | None] = steal  # seconds stolen so far; None where the system does not report it

    def watch(self, cores: int) -> Callable[[], Taken]:
        """Start measuring on a number of cores; call the result at the end of the block."""
        pace, stolen, start = self.pace(cores), self.stolen(), time.monotonic()

        def taken() -> Taken:
            seconds = time.monotonic() - start
            share = stolen_share(stolen, self.stolen(), seconds, cores)
            return Taken(share, slowed_share(max(pace, self.pace(cores))))

        return taken


def stolen_share(before: float | None, after: float | None, seconds: float, cores: int) -> float:
    """The stolen share of a block's time on the busy cores; 0 where steal time, before and after it, is not reported."""
    return ((after or 0.0) - (before or 0.0)) / (seconds * cores) if seconds else 0.0


def slowed_share(pace: float) -> float:
    """The share of the usual work that was not done; 0 within the ordinary spread of the computation."""
    return 1 - 1 / pace if pace > SLOWER else 0.0
