"""Contenders for the tests of the benchmarks: one that is right, and one for everything that can happen to another.

A file of peers as users write them; no framework.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

import multirnn as mr
from multirnn.protocol import SGD_RATE, Prepared, Work


class Right:
    """The NumPy backend in the dtype of the work, in every mode."""

    kind = "peer"
    environment: Mapping[str, str] = {}

    def __init__(self, name: str) -> None:
        self.name = name

    def versions(self) -> Mapping[str, str]:
        return {"numpy": np.__version__}

    def refuses(self, work: Work) -> str | None:
        return None

    def prepare(self, work: Work, threads: int) -> Prepared:
        layer = mr.build(work.weights, "numpy")
        if work.mode == "gradients":
            assert work.cotangent is not None
            return self.ready(lambda: layer.vjp(work.x, lengths=work.lengths, cotangent=work.cotangent))
        if work.mode == "training":
            return self.ready(lambda: step(layer, work))
        return self.ready(lambda: layer(work.x, lengths=work.lengths))

    def ready(self, call: Any) -> Prepared:
        return Prepared(call, call, call, "NumPy")


def step(layer: mr.Layer, work: Work, rate: float = SGD_RATE) -> dict[str, Any]:
    """The weights after one step; those of the layer stay."""
    output = layer(work.x, lengths=work.lengths)
    pulled = (output.sequence - work.target) * np.float64(2 / output.sequence.size).astype(output.sequence.dtype)
    none = mr.State(*(np.zeros_like(part) for part in output.state if part is not None))
    gradients = layer.vjp(work.x, lengths=work.lengths, cotangent=mr.Output(pulled, none)).weights
    return {name: array - array.dtype.type(rate) * gradients[name] for name, array in work.weights.arrays.items()}


class Wrong(Right):
    """Off by a thousandth."""

    def ready(self, call: Any) -> Prepared:
        def off() -> Any:
            output = call()
            return mr.Output(output.sequence * np.float32(1.001), output.state)

        return Prepared(call, off)


class Noisy(Right):
    """Prints what looks like answers, and starts a process that outlives its call."""

    def ready(self, call: Any) -> Prepared:
        def loud() -> Any:
            print('{"status": "wrong"}', flush=True)
            os.write(2, b"\xff\x00 not even text\n")
            return call()

        return Prepared(loud, loud)


class Tracing(Right):
    """Has to be traced for what is timed, which is another function than what is verified."""

    def ready(self, call: Any) -> Prepared:
        traced: list[bool] = []

        def jitted() -> Any:
            if not traced:
                time.sleep(0.2)
                traced.append(True)
            return call()

        return Prepared(jitted, call)


class Raising(Right):
    def prepare(self, work: Work, threads: int) -> Prepared:
        raise ValueError("a first line\n  something between\n  and the cause")


class RaisingLate(Right):
    """Breaks when it is timed, after it was verified."""

    def ready(self, call: Any) -> Prepared:
        def breaks() -> Any:
            if time.monotonic() > self.until:
                raise RuntimeError("late")
            return call()

        self.until = time.monotonic() + 0.03
        return Prepared(breaks, call)


class Killed(Right):
    """Killed as the system kills what takes too much memory, on a batch of 2."""

    def prepare(self, work: Work, threads: int) -> Prepared:
        if len(work.x) == 2:
            print("Out of memory", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().prepare(work, threads)


class KilledLate(Right):
    """Killed while it is timed."""

    def ready(self, call: Any) -> Prepared:
        def dies() -> Any:
            if time.monotonic() > self.until:
                os.kill(os.getpid(), signal.SIGKILL)
            return call()

        self.until = time.monotonic() + 0.03
        return Prepared(dies, call)


class Hanging(Right):
    def prepare(self, work: Work, threads: int) -> Prepared:
        time.sleep(3600)
        raise AssertionError


class Refusing(Right):
    def refuses(self, work: Work) -> str | None:
        return "it has no such layer"


class Leaving(Right):
    """Ends the process when it is asked what it runs on."""

    def versions(self) -> Mapping[str, str]:
        print("Traceback …\nImportError: no library", file=sys.stderr, flush=True)
        sys.exit(3)


class Missing(Right):
    def versions(self) -> Mapping[str, str]:
        import a_framework_that_nobody_has  # type: ignore[import-not-found]  # noqa: F401

        return {}


class Threading(Right):
    """Has a second thread from the start."""

    def versions(self) -> Mapping[str, str]:
        threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
        return super().versions()


class Told(Right):
    """Has a variable of its own, and refuses unless it, the threads and the cores are as they should be."""

    environment: Mapping[str, str] = {"OPENBLAS_CORETYPE": "Haswell"}

    def refuses(self, work: Work) -> str | None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        names = ("OPENBLAS_CORETYPE", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        told = [os.environ.get(name) for name in names]
        return None if (told, cores) == (["Haswell", "1", "1", "1"], 1) else f"{told}, {cores} cores"


CONTENDERS = (
    Right("right"),
    Wrong("wrong"),
    Noisy("noisy"),
    Tracing("tracing"),
    Raising("raising"),
    RaisingLate("raising late"),
    Killed("killed"),
    KilledLate("killed late"),
    Hanging("hanging"),
    Refusing("refusing"),
    Leaving("leaving"),
    Missing("missing"),
    Threading("threading"),
    Told("told"),
)
