"""The process of one contender with a number of threads: prepares, verifies and times on request.

It reads and writes JSON lines on two descriptors of its own, so that output of a framework does no harm. An exception
of the contender is answered as "failed", and the process goes on.
"""

import ctypes
import gc
import itertools
import json
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from multirnn.errors import MissingFramework
from multirnn.protocol import Prepared
from multirnn_bench import inputs, verify
from multirnn_bench.contenders import Contender, load
from multirnn_bench.machine import blas_libraries, describe
from multirnn_bench.ours import NoImplementation
from multirnn_bench.problems import Problem

__all__ = ["block", "main", "serve", "warm"]

LONGEST = 300  # characters of a line of a reason
ESTIMATE = 0.005  # seconds of calls to estimate one
QUIET = 0.02  # seconds of all estimates of a contender; the least counts
PARTS = 9  # of a block; the clock costs 0.1 µs a part
LONG = 0.02  # seconds of a call; cold caches then do not matter
WARMING_CALLS = 4  # at most
WARMING = 1.0  # seconds; no further one begins later
PAGE_FAULT = 1e-5  # seconds, if the host must find the page too
NEXT_TO_NOTHING = 0.01  # of a call


def main() -> None:
    """Serve the contender that the arguments name, until the parent process ends."""
    if sys.platform == "linux":  # a stopped process would not notice that its pipe was closed
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    reading, writing = int(sys.argv[1]), int(sys.argv[2])
    for descriptor in (reading, writing):
        os.set_inheritable(descriptor, False)  # a process that a framework starts must not keep the pipe open
    source, threads = json.loads(sys.argv[3]), int(sys.argv[4])
    with os.fdopen(reading) as messages, os.fdopen(writing, "w") as answers:

        def say(answer: Mapping[str, Any]) -> None:
            answers.write(json.dumps({"number": 0, **answer}) + "\n")
            answers.flush()

        start = time.perf_counter()
        try:
            contender = load(source)
            versions = dict(contender.versions())
            for package in versions:
                if find_spec(package):  # a framework that a peer imports late
                    import_module(package)
        except NoImplementation:
            say({"status": "absent"})
            return
        except (MissingFramework, ModuleNotFoundError) as error:
            say({"status": "missing", "reason": str(error)})
            return
        seconds = time.perf_counter() - start
        gc.collect()
        gc.freeze()  # the imported framework: collecting PyTorch's objects takes 0.1 s each time
        machine = describe()
        told = {
            "versions": versions,
            "flags": machine["variables"] | source["environment"],
            "features": machine["features"],
            "implementations": list(getattr(contender, "implementations", ())),
        }
        say({"status": "started", "import_s": seconds, **told})
        for answer in serve(contender, threads, (json.loads(line) for line in messages)):
            say(answer)


def serve(contender: Contender, threads: int, messages: Iterator[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """An answer to each message.

    Messages, each with a "number" that its answer repeats:
        {"do": "prepare", "problem", "mode", "inputs", "reference", "boundary"}: inputs and reference are folders of
            arrays; boundary says whether the call from NumPy to NumPy is timed too.
        {"do": "estimate"}: the seconds of a call.
        {"do": "time", "what": "call" or "boundary", "repetitions", "settle"}
        {"do": "finish"}
    """
    seat = _Session(contender, threads)
    for message in messages:
        do: Callable[..., dict[str, Any]] = getattr(seat, message["do"])
        try:
            answer = do(**{name: value for name, value in message.items() if name not in ("do", "number")})
        except Exception as error:  # noqa: BLE001  # foreign code: its error is the answer
            seat.prepared = None
            answer = {"status": "failed", "reason": _reason(error)}
        yield answer | {"number": message["number"]}


class _Session:
    """A contender and its prepared problem."""

    def __init__(self, contender: Contender, threads: int) -> None:
        self.contender, self.threads = contender, threads
        self.prepared: Prepared | None = None
        self.memory: int | None = None  # before the problem
        self.peak: int | None = None  # of the input and the first calls
        self.seconds = 0.0  # of a call, about
        self.settled = False

    def prepare(
        self, problem: Mapping[str, Any], mode: str, inputs: str, reference: str, boundary: bool
    ) -> dict[str, Any]:
        """Prepare a problem, and verify the first answer against the reference."""
        self.prepared = None
        gc.collect()
        _release_memory()
        self.memory = _memory("VmRSS")
        answer = self._verified(Problem.from_dict(problem), mode, Path(inputs), Path(reference))
        if answer["status"] != "ready" or self.prepared is None:
            self.prepared = None
            return answer
        call, through = self.prepared.call, self.prepared.boundary if boundary else None
        _release_memory()
        with suppress(OSError):  # without permission, the peak of the whole process remains
            Path("/proc/self/clear_refs").write_text("5")  # proc_pid_clear_refs(5)
        seconds = warm(call)
        self.peak = _memory("VmHWM")  # before arrays are converted from and to NumPy
        if through is not None and through is not call:
            through()  # traced here
        kind = None if through is None else "same" if through is call else "other"
        answer |= {"boundary": kind, "blas": blas_libraries()}
        # Tracing may happen only now: the verified call may be another function.
        answer["first_call_s"] = max(answer["first_call_s"], seconds[0])
        self.seconds = seconds[-1]
        if not self.settled:
            gc.freeze()  # modules that a framework imports on first use
            self.settled = True
        return answer

    def _verified(self, problem: Problem, mode: str, given: Path, reference: Path) -> dict[str, Any]:
        work = inputs.load(problem, mode, given)
        if reason := self.contender.refuses(work):
            return {"status": "refused", "reason": reason}
        start = time.perf_counter()
        prepared = self.contender.prepare(work, self.threads)
        ready = time.perf_counter()
        result = prepared.result()
        first = time.perf_counter()
        found, where = verify.error(work, verify.answer(work, result), inputs.load_arrays(reference))
        allowed = verify.allowed(problem.spec)
        wrong, reason = not found <= allowed, where
        if found < math.inf:
            reason = f"{where} is {found:.3g} eps from the float64 reference, where {allowed:.3g} are allowed"
        self.prepared = prepared  # all of it: a closure of `result` may hold the buffers that `call` writes to
        return {
            "status": "wrong" if wrong else "ready",
            "reason": reason if wrong else "",
            "error_eps": found if found < math.inf else None,
            "allowed_eps": allowed,
            "plan": prepared.plan,
            "prepare_s": ready - start,
            "first_call_s": first - ready,
        }

    def estimate(self) -> dict[str, Any]:
        """The seconds of a call, while nothing else runs."""
        assert self.prepared is not None
        call, start = self.prepared.call, time.perf_counter()
        seconds, repetitions = math.inf, 1
        while True:
            seconds = min(seconds, block(call, repetitions))
            if seconds * repetitions < ESTIMATE:
                repetitions *= 2
            elif time.perf_counter() - start > QUIET:
                break
        self.seconds = seconds
        return {"status": "estimated", "seconds": seconds}

    def time(self, what: str, repetitions: int, settle: float) -> dict[str, Any]:
        """The seconds of one call, from a block of calls; for "boundary" also the seconds of the call in turns with it."""
        assert self.prepared is not None
        calls = [self.prepared.call]
        if what == "boundary":
            assert self.prepared.boundary is not None
            calls, repetitions = [self.prepared.boundary, *calls], math.ceil(repetitions / 2)
        if self.seconds > LONG:
            time.sleep(settle)
        else:
            start = time.perf_counter()
            while time.perf_counter() - start < settle:
                calls[0]()
        seconds, *beside = in_turns(repetitions, *calls)
        return {"status": "timed", "seconds": seconds, "beside": beside}

    def finish(self) -> dict[str, Any]:
        """The memory that the problem took; releases it."""
        self.prepared = None
        added = None if self.peak is None or self.memory is None else max(self.peak - self.memory, 0)
        return {"status": "finished", "peak_memory_bytes": self.peak, "added_memory_bytes": added}


def _reason(error: Exception) -> str:
    """The error in one line: the first and the last of its message; TensorFlow names the cause in the last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    shown = lines if len(lines) == 1 else [lines[0], "…", lines[-1]]
    return f"{type(error).__name__}: {' '.join(line[:LONGEST] for line in shown)}"


# --- Time ------------------------------------------------------------------------------------------------------------


def block(call: Callable[[], Any], repetitions: int) -> float:
    """The seconds of a call; see `in_turns`."""
    return in_turns(repetitions, call)[0]


def in_turns(repetitions: int, *calls: Callable[[], Any]) -> list[float]:
    """The seconds of each call: the median over the parts of a block, which one disturbed call cannot move.

    In each part the calls take turns of some milliseconds, after one that is not timed: it meets the caches as the
    other has left them. As in `timeit`, garbage collection is off.
    """
    parts = min(repetitions, PARTS)
    seconds: list[list[float]] = [[] for _ in calls]
    gc.disable()
    try:
        for part in range(parts):
            number = (repetitions + part) // parts
            for call, spent in zip(calls, seconds, strict=True):
                if len(calls) > 1:
                    call()
                start = time.perf_counter()
                for _ in itertools.repeat(None, number):
                    call()
                spent.append((time.perf_counter() - start) / number)
    finally:
        gc.enable()
    return list(map(median, seconds))


def warm(call: Callable[[], Any]) -> list[float]:
    """Call until a call takes almost no new memory from the system, at most `WARMING_CALLS` times; the seconds of each.

    Each new page is a fault. A second call of `torch.nn.RNN` at (32,30,1024,1024) had 13,052 and took 1.9 times as long
    as the fourth, which had none.
    """
    seconds: list[float] = []
    while len(seconds) < WARMING_CALLS and sum(seconds) < WARMING:
        faults = _faults()
        seconds.append(block(call, 1))
        if (_faults() - faults) * PAGE_FAULT < NEXT_TO_NOTHING * seconds[-1]:
            break
    return seconds


# --- Memory ----------------------------------------------------------------------------------------------------------


def _memory(name: str) -> int | None:
    """Bytes of a field of /proc/self/status; None where there is no such file."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":")), None)


def _faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _release_memory() -> None:
    """Return free memory to the system, so that the next problem does not start with it."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


if __name__ == "__main__":
    main()
