"""A contender's process as the one who times sees it: started, asked, and given up when it dies or does not answer."""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Self

from multirnn.bench.alone import allowed_cores, thread_variables
from multirnn.bench.contenders import Source
from multirnn.errors import InvalidCall

__all__ = ["RESTS", "Lost", "Process"]

RESTS = sys.platform == "linux"
"""Whether a process is stopped while it is not asked, so that its threads do not spin on the cores of another. Elsewhere one
that is stopped would outlive whoever started it.
"""

BOOT = """
import os, sys
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {cores})
from multirnn.bench.worker import main
main()
"""
"""The cores are bound before anything is imported: pools of threads count them when they are made."""

WAKING = 0.001 if RESTS else 0.0
"""Seconds from when its threads go on until it is asked: threads that wake up at once may be queued on one core, beside an
idle one, for all of a block. Of blocks on two threads 6 of 100 were, and 1 or 2 of 100 after 1 ms or 3.
"""

LONGEST = 300  # letters of a reason


class Lost(Exception):
    """The process is no more.

    Attributes:
        status: "killed", "failed" or "slow".
        reason: in a sentence.
    """

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class Process:
    """The process of a contender; a context manager that ends it.

    Args:
        source: the contender.
        threads: which the process may use; it is bound to as many cores.
        place: among the cores, of the first of them; see `bind`.

    Attributes:
        asked: when it was started or sent a message last, by `time.monotonic`.

    Raises:
        InvalidCall: there are not so many cores.
    """

    def __init__(self, source: Source, threads: int, place: int = 0) -> None:
        if len(allowed_cores()) < threads:
            raise InvalidCall(
                f"{threads} threads need as many cores, and this process may run on {len(allowed_cores())}"
            )
        cores = _cores(threads, place)
        self.source, self.threads = source, threads
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # closed in `end`
        reading, answers = os.pipe()
        messages, self._writing = os.pipe()
        self._reading, self._buffer = reading, b""
        arguments = [str(messages), str(answers), json.dumps(source.to_dict()), str(threads)]
        command: Sequence[str] = [sys.executable, "-c", BOOT.format(cores=cores), *arguments]
        try:
            self._process = subprocess.Popen(  # noqa: S603  # ourselves
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._said,
                stderr=self._said,
                pass_fds=(messages, answers),
                env={**os.environ, **thread_variables(threads), **source.environment},
                start_new_session=True,  # Ctrl-C is for whoever times; and what it starts itself is ended with it
            )
        finally:
            os.close(messages)
            os.close(answers)
        self.asked = time.monotonic()

    @property
    def alive(self) -> bool:
        """Whether it can be asked; what has been found to have ended is not."""
        return self._process.returncode is None

    def fileno(self) -> int:
        """What can be read when there is an answer, for `select`."""
        return self._reading

    def bind(self, place: int = 0) -> None:
        """Bind it to as many cores as it has threads.

        Its pools of threads keep the size that they were made with.

        Args:
            place: among the cores, of the first of them. All are timed on the same cores, those of place 0; while nobody
                is, one may get ready on others.
        """
        if hasattr(os, "sched_setaffinity"):
            for thread in self.thread_ids():
                with suppress(ProcessLookupError):  # it has ended
                    os.sched_setaffinity(thread, _cores(self.threads, place))

    def thread_ids(self) -> list[int]:
        """Of all threads that it has, on Linux; none when it has ended."""
        with suppress(FileNotFoundError):
            return [int(name) for name in os.listdir(f"/proc/{self._process.pid}/task")]
        return []

    def ask(self, message: Mapping[str, Any], cap: float) -> dict[str, Any]:
        """The answer to a message.

        Args:
            message: see `multirnn.bench.worker.serve`.
            cap: seconds that it may take.

        Raises:
            Lost: there will be none; the process has ended.
        """
        self.send(message)
        return self.answer(cap)

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message, to which `answer` is the answer.

        Raises:
            Lost: there will be none; the process has ended.
        """
        self._signal(signal.SIGCONT)
        time.sleep(WAKING)
        try:
            os.write(self._writing, json.dumps(message).encode() + b"\n")
        except BrokenPipeError:
            raise self._lost() from None
        self.asked = time.monotonic()

    def answer(self, cap: float) -> dict[str, Any]:
        """The answer to what was sent; the first tells that it has started, what it runs on, and how long its imports took.

        Args:
            cap: seconds that it may take, from when it was asked.

        Raises:
            Lost: there will be none; the process has ended.
        """
        until = self.asked + cap
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._reading], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                self.end()
                raise Lost("slow", f"no answer within {cap:.3g} s")
            chunk = os.read(self._reading, 2**16)
            if not chunk:
                raise self._lost()
            self._buffer += chunk
        self._signal(signal.SIGSTOP)
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _signal(self, number: int) -> None:
        """Stop it and what it has started, or let them go on."""
        if RESTS:
            with suppress(ProcessLookupError):  # it has ended, which the next answer tells
                os.killpg(self._process.pid, number)

    def end(self) -> None:
        """Kill the process and what it has started; once is enough, and twice does no harm."""
        if self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        if not self._said.closed:
            self._said.close()
            os.close(self._reading)
            os.close(self._writing)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def _lost(self) -> Lost:
        """Why it ended by itself, with the last line that it printed."""
        status = self._process.wait()
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        self.end()
        if status < 0:
            return Lost("killed", _sentence(f"killed by signal {-status}", last))
        return Lost("failed", _sentence(f"ended with status {status}", last))


def _cores(threads: int, place: int) -> set[int]:
    allowed = allowed_cores()
    return {allowed[(place + number) % len(allowed)] for number in range(threads)}


def _sentence(what: str, last: str) -> str:
    return f"{what}: {last[:LONGEST]}" if last else what
