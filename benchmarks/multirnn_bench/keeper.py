"""What a contender has started, and the process that ends all of it when a benchmark is gone.

Contenders are stopped while others are timed. Where the benchmark itself is killed they, and whatever they have started,
would stay stopped for ever, and nobody would know why memory is short. So a benchmark has one more process, this file run
by itself: it waits until its standard input is closed, which no way to die can prevent, and then kills every contender
that it was told of.

It stands by itself and imports the standard library alone: it lives as long as a benchmark, and is small. Linux only.
"""

import os
import signal
import sys
import time
from collections.abc import Iterable

__all__ = ["MARK", "end", "family"]

MARK = "MULTIRNN_BENCH_CONTENDER"
"""The variable by which a contender's helpers are known, also those that left its group and its session."""

GRACE = 0.05  # seconds after which what was being started while others were killed is looked for
LOOKS = 100  # at most; a process that cannot be killed is in the hands of the system


def family(leader: int, mark: str) -> list[int]:
    """The processes of a contender that live: of its group, of its session, and all that inherited its mark.

    Args:
        leader: the process that the contender began with.
        mark: the value of `MARK` in its environment.
    """
    variable = f"{MARK}={mark}".encode()
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and _is_of(int(name), leader, variable)]


def _is_of(process: int, leader: int, variable: bytes) -> bool:
    try:
        with open(f"/proc/{process}/stat", "rb") as file:  # pathlib takes longer to import than all else
            state, _, group, session = file.read().rpartition(b")")[2].split()[:4]
        if state in (b"Z", b"X"):
            return False
        if leader in (int(group), int(session)):
            return True
        with open(f"/proc/{process}/environ", "rb") as file:
            return variable in file.read().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):  # it has ended, or is somebody else's
        return False


def end(contenders: Iterable[tuple[int, str]]) -> None:
    """Kill all processes of these contenders, stopped or not, and what they start meanwhile.

    Args:
        contenders: leader and mark of each.
    """
    left = list(contenders)
    for _ in range(LOOKS):
        found = {process for leader, mark in left for process in family(leader, mark)}
        for process in found:
            try:
                os.kill(process, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):  # it has ended, or has become somebody else's
                continue
        if not found:
            return
        time.sleep(GRACE)


def main() -> None:
    """Read `leader mark` of each that is started and `-leader` of each that is ended; kill the others at the end."""
    kept: dict[int, str] = {}
    for line in sys.stdin:
        leader, _, mark = line.strip().partition(" ")
        if mark:
            kept[int(leader)] = mark
        else:
            kept.pop(-int(leader), None)
    end(kept.items())


if __name__ == "__main__":
    main()
