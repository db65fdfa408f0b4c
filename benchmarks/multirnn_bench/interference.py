"""What the host takes of the cores of a guest: the time that it tells, and the pace that it does not.

A core of a guest may be a thread of a core whose other thread computes for somebody else, or for this guest. No time is
stolen then, and all takes up to 1.9 times as long, for a tenth of a second or for minutes. It is seen in a computation
that never changes, timed before and after what it is asked of, on the same cores at once.
"""

import os
import time
from bisect import insort
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from multirnn_bench.alone import allowed_cores
from multirnn_bench.machine import steal

__all__ = ["TAKEN", "UNTAKEN", "Interference", "Pace", "Taken"]

TAKEN = 0.02
"""Of the cores, from which on a block is disturbed. Stolen time is told in hundredths of a second, more of a short block."""

FIRST = 20  # computations, before it is told what is usual
NUMBERS = 2048  # of each of two vectors: both in L1
PRODUCTS = 4096  # of these vectors in a computation: 0.35 ms on Zen 4; fewer are over before another core has begun
TRIES = 2  # of which the shorter counts: an interrupt is no pace
SLOWER = 1.3  # times the usual: so long take 5 in 1000 by themselves, and nearly all of two on cores that are one


class Pace:
    """How many times as long as usual a computation takes, on as many cores at once as one asks for.

    The usual is the lower quartile of all that were timed until then.
    """

    def __init__(self) -> None:
        self._cores: list[tuple[ThreadPoolExecutor, Callable[[], float]]] = []  # each its thread and its computation
        self._seconds: dict[int, list[float]] = {}  # by how many cores; sorted

    def __call__(self, cores: int) -> float:
        """Of so many cores, the first of those that this process may run on; of the slowest of them."""
        known = self._seconds.setdefault(cores, [])
        while len(known) < FIRST:
            insort(known, self._slowest(cores))
        seconds = self._slowest(cores)
        insort(known, seconds)
        return seconds / known[len(known) // 4]

    def end(self) -> None:
        """End its threads; once is enough, and twice does no harm."""
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
    """The computation, which tells its seconds: products of two vectors, a loop in NumPy's C that no other thread waits for."""
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
    """Which part of the cores the host took meanwhile.

    Attributes:
        stolen: by the time that it told; 0 if it tells none.
        slowed: by what a computation took, before it or after it.
    """

    stolen: float
    slowed: float

    @property
    def most(self) -> float:
        """The larger of both, since each hides a part of the other."""
        return max(self)


UNTAKEN = Taken(0.0, 0.0)


class Interference:
    """Watches what the host takes.

    Args:
        pace: how many times as long as usual a computation takes on so many cores.
        stolen: seconds that the host has given to others until now; None if not told.
    """

    def __init__(
        self,
        pace: Callable[[int], float] = lambda cores: 1.0,
        stolen: Callable[[], float | None] = steal,
    ) -> None:
        self._pace, self._stolen = pace, stolen

    def watch(self, cores: int) -> Callable[[], Taken]:
        """Begin to watch so many cores; what it returns tells what was taken until it is called."""
        pace, stolen, start = self._pace(cores), self._stolen(), time.monotonic()

        def taken() -> Taken:
            seconds = time.monotonic() - start
            share = stolen_share(stolen, self._stolen(), seconds, cores)
            return Taken(share, slowed_share(max(pace, self._pace(cores))))

        return taken


def stolen_share(before: float | None, after: float | None, seconds: float, cores: int) -> float:
    """Which part of the time of its cores the host gave to others; 0 if not told.

    Args:
        before: seconds that the host had given to others when it began.
        after: the same when it ended.
        seconds: between them.
        cores: how many it had; what is stolen of those that idle is not counted.
    """
    return ((after or 0.0) - (before or 0.0)) / (seconds * cores) if seconds else 0.0


def slowed_share(pace: float) -> float:
    """Which part of the work that is usual was not done: none, if it is no more than computations differ by themselves."""
    return 1 - 1 / pace if pace > SLOWER else 0.0
