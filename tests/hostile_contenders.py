"""Contenders that do to whoever times them what a program can do: pipes closed, garbage, floods, helpers left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench_contenders import Right

from multirnn.protocol import Prepared, Work

PIPES = range(3, 64)
ENDLESS = 3600


def write_everywhere(text: bytes) -> None:
    for descriptor in PIPES:
        try:
            os.write(descriptor, text)
        except OSError:
            continue


class Closing(Right):
    """Closes all its pipes and lives on."""

    def prepare(self, work: Work, threads: int) -> Prepared:
        print("all closed", flush=True)
        os.closerange(PIPES.start, PIPES.stop)
        time.sleep(ENDLESS)
        raise AssertionError


class ClosingLate(Right):
    """Closes its pipes once it is timed, and ignores whoever asks it to end."""

    def ready(self, call: Any) -> Prepared:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)

        def closes() -> Any:
            os.closerange(PIPES.start, PIPES.stop)
            time.sleep(ENDLESS)

        return Prepared(closes, call)


class Garbage(Right):
    def prepare(self, work: Work, threads: int) -> Prepared:
        write_everywhere(b"\xff\x00 no answer\n")
        return super().prepare(work, threads)


class Cheating(Right):
    """Answers by itself, and so fast as nobody is."""

    def ready(self, call: Any) -> Prepared:
        def cheats() -> Any:
            if time.monotonic() > self.until:
                write_everywhere(b'{"status": "timed", "seconds": 1e-12}\n')
            return call()

        self.until = time.monotonic() + 0.03
        return Prepared(cheats, call)


class Talkative(Right):
    """Has a helper in another session that says what nobody asked for."""

    def versions(self) -> Mapping[str, str]:
        if not os.fork():
            os.setsid()
            time.sleep(1.5)
            write_everywhere(b'{"status": "ready"}\n')
            time.sleep(ENDLESS)
        return super().versions()


class Nested(Right):
    def prepare(self, work: Work, threads: int) -> Prepared:
        write_everywhere(b"[" * 50_000 + b"\n")
        return super().prepare(work, threads)


class Partial(Right):
    """Begins a line that it never finishes."""

    def prepare(self, work: Work, threads: int) -> Prepared:
        write_everywhere(b'{"status": ')
        time.sleep(ENDLESS)
        raise AssertionError


class Dripping(Right):
    """Always says something, and never a line."""

    def prepare(self, work: Work, threads: int) -> Prepared:
        while True:
            write_everywhere(b"x")
            time.sleep(0.005)


class Endless(Right):
    def prepare(self, work: Work, threads: int) -> Prepared:
        while True:
            write_everywhere(b"x" * 4096)


class Flooding(Right):
    """Prints more than a disk should hold, and is right."""

    def prepare(self, work: Work, threads: int) -> Prepared:
        for _ in range(2000):
            os.write(2, b"flood " * 10_000)
        return super().prepare(work, threads)


class Stopping(Right):
    """Stops itself."""

    def prepare(self, work: Work, threads: int) -> Prepared:
        os.kill(os.getpid(), signal.SIGSTOP)
        return super().prepare(work, threads)


class Helped(Right):
    """Has helpers: one as usual, one without its variables, one in a session of its own, and one that holds its pipes.

    Their numbers are in the file that HELPERS names.
    """

    def versions(self) -> Mapping[str, str]:
        stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(3600)"
        command = [sys.executable, "-S", "-c", stubborn]
        helpers = [
            subprocess.Popen(command).pid,
            subprocess.Popen(command, env={}).pid,
            subprocess.Popen(command, start_new_session=True).pid,
        ]
        if not (forked := os.fork()):
            time.sleep(ENDLESS)
        Path(os.environ["HELPERS"]).write_text(json.dumps([os.getpid(), *helpers, forked]))
        return super().versions()


CONTENDERS = (
    Right("right"),
    Closing("closing"),
    ClosingLate("closing late"),
    Garbage("garbage"),
    Cheating("cheating"),
    Talkative("talkative"),
    Nested("nested"),
    Partial("partial"),
    Dripping("dripping"),
    Endless("endless"),
    Flooding("flooding"),
    Stopping("stopping"),
    Helped("helped"),
)
