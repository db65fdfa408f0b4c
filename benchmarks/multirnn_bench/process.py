"""The contenders' processes: started on demand, asked, and given up when they die or do not answer."""

import json
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

from multirnn.errors import InvalidCall
from multirnn_bench import keeper
from multirnn_bench.contenders import Source
from multirnn_bench.machine import allowed_cores, thread_variables
from multirnn_bench.said import Said

__all__ = ["RESTS", "START_CAP", "Lost", "Process", "Seat", "at_once"]

# Whether an idle contender is stopped, so that its threads do not spin on another's cores. Outside Linux a stopped
# process would outlive its parent.
RESTS = sys.platform == "linux"

BOOT = """
import os, sys
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {cores})
if os.read({messages}, 1):  # the keeper knows this process; else the parent died
    from multirnn_bench.worker import main
    main()
"""  # cores are bound before anything is imported: thread pools count them when they are created

# Seconds between waking a process and asking it: threads that wake together may be queued on one core, beside an idle
# one, for a whole block. That happened to 6 of 100 blocks on two threads, and to 1 or 2 of 100 after 1 or 3 ms.
WAKING = 0.001 if RESTS else 0.0
START_CAP = 120.0  # seconds for imports; TensorFlow's take 5, from a cold disk 30
ENDING = 2.0  # seconds to end after closing the pipe, and to disappear after being killed
LOOK = 0.5  # seconds between checks that a silent process is alive
LONGEST_ANSWER = 2**20  # bytes; usual are a few thousand
LONGEST = 300  # characters of a reason
SHOWN = 60  # characters of an invalid answer

# By message, the statuses of its answers and the fields each must have.
ANSWERS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "start": {
        "started": ("import_s", "versions", "flags", "features", "implementations"),
        "absent": (),
        "missing": ("reason",),
    },
    "prepare": {
        "ready": ("boundary", "error_eps", "allowed_eps", "first_call_s"),
        **dict.fromkeys(("wrong", "refused", "failed"), ("reason",)),
    },
    "estimate": {"estimated": ("seconds",), "failed": ("reason",)},
    "time": {"timed": ("seconds", "beside"), "failed": ("reason",)},
    "finish": {"finished": ("peak_memory_bytes", "added_memory_bytes"), "failed": ("reason",)},
}


class Lost(Exception):
    """The process has ended or was given up: its status is "killed", "failed" or "slow"."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class Process:
    """The process of a contender, bound to as many cores as it has threads; a context manager that ends it.

    Raises `InvalidCall` where there are fewer cores than threads, and `Lost` if the system starts no more processes.
    """

    def __init__(self, source: Source, threads: int, place: int = 0) -> None:
        if len(allowed_cores()) < threads:
            raise InvalidCall(
                f"{threads} threads need as many cores, and this process may run on {len(allowed_cores())}"
            )
        cores = _cores(threads, place)
        self.source, self.threads = source, threads
        self._said, self._buffer, self._ended = Said(), b"", False
        self._asked_to, self._number = "start", 0
        self._reading, answers = os.pipe()
        messages, self._writing = os.pipe()
        arguments = [str(messages), str(answers), json.dumps(source.to_dict()), str(threads)]
        command: Sequence[str] = [sys.executable, "-c", BOOT.format(cores=cores, messages=messages), *arguments]
        mark = secrets.token_hex(8)
        try:
            self._process = subprocess.Popen(  # noqa: S603  # ourselves
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._said.writing,
                stderr=self._said.writing,
                pass_fds=(messages, answers),
                env={**os.environ, **thread_variables(threads), **source.environment, keeper.MARK: mark},
                start_new_session=True,  # Ctrl-C reaches the harness alone, and children end with the contender
            )
        except OSError as error:
            os.close(self._reading)
            os.close(self._writing)
            raise Lost("failed", f"no process can be started: {error.strerror}") from None
        finally:
            for descriptor in (messages, answers, self._said.writing):
                os.close(descriptor)
        self._family = self._process.pid, mark
        KEEPER.keep(*self._family)
        os.write(self._writing, b"\n")
        self.asked = time.monotonic()  # when it was started or last sent a message

    @property
    def alive(self) -> bool:
        """Whether it can be asked; False once it is known to have ended."""
        return not self._ended and self._process.returncode is None

    @property
    def over(self) -> bool:
        """Whether it has ended; its children may still hold its pipe open."""
        return self._process.poll() is not None

    def fileno(self) -> int:
        """The descriptor that is readable when there is an answer, for `select`."""
        return self._reading

    def bind(self, place: int = 0) -> None:
        """Bind it, and its children, to as many cores as it has threads, from index `place` on.

        All contenders are timed on the same cores, from index 0; while none is timed, they may prepare on others.
        """
        if hasattr(os, "sched_setaffinity"):
            for process in keeper.family(*self._family) if RESTS else [self._process.pid]:
                for thread in _threads(process):
                    with suppress(ProcessLookupError):  # it has ended
                        os.sched_setaffinity(thread, _cores(self.threads, place))

    def thread_ids(self) -> list[int]:
        """Its own threads, on Linux; empty when it has ended."""
        return _threads(self._process.pid)

    def ask(self, message: Mapping[str, Any], cap: float) -> dict[str, Any]:
        """Send a message and return the answer, within `cap` seconds; see `send` and `answer`."""
        self.send(message)
        return self.answer(cap)

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message of `multirnn_bench.worker.serve`; `Lost` if the process has ended."""
        if self._ended:
            raise Lost("failed", "it was ended before")
        if self._buffer or select.select([self._reading], [], [], 0)[0]:
            if not self._buffer:
                self._receive()
            raise self._nonsense("it answered when nobody had asked")
        self._signal(signal.SIGCONT)
        time.sleep(WAKING)
        self._asked_to, self._number = message["do"], self._number + 1
        try:
            os.write(self._writing, json.dumps({**message, "number": self._number}).encode() + b"\n")
        except BrokenPipeError:
            raise self._lost() from None
        self.asked = time.monotonic()

    def answer(self, cap: float) -> dict[str, Any]:
        """The answer to the last message (the first: to the start) within `cap` seconds of it; or `Lost`."""
        until = self.asked + cap
        while b"\n" not in self._buffer:
            over, left = self.over, until - time.monotonic()
            ready, _, _ = select.select([self._reading], [], [], 0.0 if over else min(max(0.0, left), LOOK))
            if ready:
                self._receive()
            elif over:
                raise self._lost()
            if left <= 0 and b"\n" not in self._buffer:
                self.end()
                raise Lost("slow", f"no answer within {cap:.3g} s")
        self._signal(signal.SIGSTOP)
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: Any = None
        with suppress(ValueError, RecursionError):
            answer = json.loads(line)
        status = answer.get("status") if isinstance(answer, dict) else None
        fields = ANSWERS[self._asked_to].get(status) if isinstance(status, str) else None
        if fields is None or not set(fields) <= set(answer) or answer.pop("number", None) != self._number:
            raise self._nonsense(f"what it wrote is no answer: {line[:SHOWN].decode(errors='replace')!r}")
        return dict(answer)

    def _receive(self) -> None:
        """Read available bytes into the buffer; `Lost` if the pipe is closed or the answer too long."""
        chunk = os.read(self._reading, 2**16)
        if not chunk:
            raise self._lost()
        self._buffer += chunk
        if len(self._buffer) > LONGEST_ANSWER:
            raise self._nonsense(f"it answered with more than {LONGEST_ANSWER} bytes")

    def _signal(self, number: int) -> None:
        """Stop or continue it and its children."""
        if RESTS:
            with suppress(ProcessLookupError):  # it has ended; the next answer says so
                os.killpg(self._process.pid, number)

    def end(self) -> None:
        """Kill the process and its children; idempotent."""
        if self._ended:
            return
        self._ended = True
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._wait()
        KEEPER.end(*self._family)
        os.close(self._reading)
        os.close(self._writing)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def _wait(self) -> int | None:
        try:
            return self._process.wait(ENDING)
        except subprocess.TimeoutExpired:
            return None

    def _lost(self) -> Lost:
        """Why it ended, with the last line that it printed."""
        status = self._wait()
        self.end()
        what = f"ended with status {status}"
        if status is None:
            what = "closed its pipe and did not end, so it was killed"
        elif status < 0:
            what = f"killed by signal {-status}"
        if last := self._said.last_line():
            what += f": {last[:LONGEST]}"
        return Lost("killed" if status is not None and status < 0 else "failed", what)

    def _nonsense(self, what: str) -> Lost:
        """Kill it: it wrote an invalid answer, so no other can be trusted."""
        self.end()
        return Lost("failed", f"{what}; it was killed")


@dataclass
class Seat:
    """A contender with a number of threads, and its process."""

    source: Source
    threads: int
    process: Process | None = None
    up: bool = False
    hello: dict[str, Any] = field(default_factory=dict)
    lost: Lost | None = None  # while starting: not tried again

    def launch(self, place: int = 0) -> None:
        """Start the process unless it runs; `start` waits until it is up."""
        if self.lost is None and self.process is None:
            try:
                self.process, self.up = Process(self.source, self.threads, place), False
            except Lost as lost:
                self.lost = lost

    def start(self) -> Process:
        """The process, started unless it runs; `Lost` if it does not start, now or earlier."""
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


def at_once(seats: Iterable[Seat], begin: Callable[[Seat, int], bool], cap: float) -> Iterator[Seat]:
    """Run seats in parallel, one a core; yields each when it has answered or its `cap` of seconds is over.

    `begin` starts a seat on the cores from an index on; it returns False if there is no answer to wait for.
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


class _Keeper:
    """The process of `multirnn_bench.keeper`, alive while a contender is; Linux only, where contenders are stopped."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._kept: dict[int, str] = {}

    def keep(self, leader: int, mark: str) -> None:
        self._kept[leader] = mark
        self._tell(f"{leader} {mark}\n")

    def end(self, leader: int, mark: str) -> None:
        if RESTS:
            keeper.end([(leader, mark)])
        self._kept.pop(leader, None)
        self._tell(f"-{leader}\n")
        if not self._kept:
            self._stop()

    def _tell(self, line: str) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            with suppress(BrokenPipeError):  # it was killed
                self._process.stdin.write(line.encode())
                return
            self._stop()
        if RESTS and self._kept:
            self._process = subprocess.Popen(  # noqa: S603  # ourselves
                [sys.executable, "-I", "-S", keeper.__file__],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # survives this process
            )
            assert self._process.stdin is not None
            self._process.stdin.write("".join(f"{leader} {mark}\n" for leader, mark in self._kept.items()).encode())

    def _stop(self) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                self._process.wait(ENDING)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None


KEEPER = _Keeper()


def _cores(threads: int, place: int) -> set[int]:
    allowed = allowed_cores()
    return {allowed[(place + number) % len(allowed)] for number in range(threads)}


def _threads(process: int) -> list[int]:
    with suppress(FileNotFoundError):
        return [int(name) for name in os.listdir(f"/proc/{process}/task")]
    return []
