"""The processes of a contender, and the process that kills them all when the benchmark has died.

Contenders are stopped while others are timed. If the benchmark itself is killed, they and their children would stay
stopped for ever, holding memory. So a benchmark has one more process, this file run as a script. It waits until its
standard input is closed, which happens however the benchmark dies, and then kills every contender it was told of.
It imports the standard library alone, to stay small. Linux only.
"""

import os
import signal
import sys
import time
from collections.abc import Iterable

__all__ = ["MARK", "end", "family"]

# The environment variable that marks a contender's children, even those that left its process group and session.
MARK = "MULTIRNN_BENCH_CONTENDER"
GRACE = 0.05  # seconds before looking for processes that started meanwhile
LOOKS = 100  # at most: some processes cannot be killed


def family(leader: int, mark: str) -> list[int]:
    """The living processes of a contender: the group and session of its first process, and all with its mark."""
    variable = f"{MARK}={mark}".encode()
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and _is_of(int(name), leader, variable)]


def _is_of(process: int, leader: int, variable: bytes) -> bool:
    try:
        with open(f"/proc/{process}/stat", "rb") as file:  # pathlib costs more to import than all the rest
            state, _, group, session = file.read().rpartition(b")")[2].split()[:4]
        if state in (b"Z", b"X"):
            return False
        if leader in (int(group), int(session)):
            return True
        with open(f"/proc/{process}/environ", "rb") as file:
            return variable in file.read().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):  # ended, or another user's
        return False


def end(contenders: Iterable[tuple[int, str]]) -> None:
    """Kill all processes of these contenders, by leader and mark, stopped or not, and those they start meanwhile."""
    left = list(contenders)
    for _ in range(LOOKS):
        found = {process for leader, mark in left for process in family(leader, mark)}
        for process in found:
            try:
                os.kill(process, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):  # ended, or another user's by now
                continue
        if not found:
            return
        time.sleep(GRACE)


def main() -> None:
    """Read `leader mark` for each that starts and `-leader` for each that ends; kill the rest at end of file."""
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
