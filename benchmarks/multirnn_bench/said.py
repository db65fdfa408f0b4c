"""The last of what a process prints, whatever it prints: a pipe that is always read, of which the end is kept."""

import os
import threading

__all__ = ["Said"]

KEPT = 2**14  # bytes
CHUNK = 2**16  # what a pipe holds
LATE = 1.0  # seconds that a process which outlives another may go on holding the pipe


class Said:
    """A pipe for a process' output.

    A file would hold all of it, and a process that prints without end would fill the disk.

    Attributes:
        writing: the descriptor that the process is given; to be closed once it has it.
    """

    def __init__(self) -> None:
        self._reading, self.writing = os.pipe()
        self._tail = b""
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        with os.fdopen(self._reading, "rb", buffering=0) as pipe:
            while chunk := pipe.read(CHUNK):
                self._tail = (self._tail + chunk)[-KEPT:]

    def last_line(self) -> str:
        """The last line that is not blank, of a process that has ended; empty where there is none."""
        self._thread.join(LATE)
        lines = self._tail.decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")
