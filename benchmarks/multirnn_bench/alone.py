"""Measurements in fresh processes, bound to cores and with thread settings in place before anything is imported.

A BLAS and a thread pool read the environment and count their cores when they are loaded; so a gauge, a function of
`multirnn_bench.gauges`, runs in an interpreter of its own.
"""

import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, Any

from multirnn.errors import InvalidCall

__all__ = ["GaugeError", "measure_alone", "measure_together"]

CAP = 120.0  # seconds until a gauge is given up; each measures for less than one, and TensorFlow loads for 30
LONGEST = 60  # characters shown of an invalid answer


class GaugeError(InvalidCall):
    """A measurement failed; the message is its last line of output."""


def measure_alone(gauge: str, *arguments: Any, cores: Sequence[int] = (), environment: Mapping[str, str] = {}) -> Any:
    """Run a gauge in a process of its own, bound to `cores`; if empty, to the cores of this process."""
    return measure_together(gauge, *arguments, cores=[cores], environment=environment)[0]


def measure_together(
    gauge: str, *arguments: Any, cores: Sequence[Sequence[int]], environment: Mapping[str, str] = {}
) -> list[Any]:
    """The results of a function of `multirnn_bench.gauges` in several processes that start measuring together.

    `arguments` are JSON values; `cores` are those of each process. `GaugeError` if one fails or does not answer in time.
    """
    processes = [_started(gauge, arguments, bound, environment) for bound in cores]
    try:
        for process in processes:
            if not select.select([_pipe(process.stdout)], [], [], CAP)[0]:
                raise GaugeError(f"the gauge {gauge!r} failed: it was not loaded within {CAP:g} s")
            _pipe(process.stdout).readline()  # it is loaded
        for process in processes:
            with suppress(BrokenPipeError):  # it has ended, and its status tells more
                _pipe(process.stdin).write("\n")
                _pipe(process.stdin).flush()
        return [_finished(gauge, process) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _started(
    gauge: str, arguments: Sequence[Any], cores: Sequence[int], environment: Mapping[str, str]
) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "multirnn_bench.gauges", json.dumps([gauge, arguments, list(cores)])]
    pipe = subprocess.PIPE
    return subprocess.Popen(  # noqa: S603  # this interpreter, on a module of ours
        command, text=True, env={**os.environ, **environment}, stdin=pipe, stdout=pipe, stderr=pipe
    )


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def _finished(gauge: str, process: "subprocess.Popen[str]") -> Any:
    out = error = ""
    try:
        with suppress(BrokenPipeError):  # of the line that it was sent
            out, error = process.communicate(timeout=CAP)
    except subprocess.TimeoutExpired:
        raise GaugeError(f"the gauge {gauge!r} failed: no answer within {CAP:g} s") from None
    if process.returncode or not out.strip():
        last = (error.strip().splitlines() or [f"it ended with status {process.returncode}"])[-1]
        raise GaugeError(f"the gauge {gauge!r} failed: {last}")
    answer = out.strip().splitlines()[-1]  # a framework may have printed lines before it
    try:
        return json.loads(answer)
    except ValueError:
        raise GaugeError(f"the gauge {gauge!r} failed: it answered {answer[:LONGEST]!r}") from None
