"""The end of a process' output: a pipe that is always drained, with its last bytes kept."""

import os
import threading

__all__ = ["Said"]

KEPT = 2**14  # bytes
CHUNK = 2**16  # the capacity of a pipe
LATE = 1.0  # seconds to wait while a child of the process still holds the pipe


class Said:
    """A pipe for a process' output; a file would hold all of it, and endless output would fill the disk."""

    def __init__(self) -> None:
        self._reading, self.writing = os.pipe()  # close `writing` here once the process has it
        self._tail = b""
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        with os.fdopen(self._reading, "rb", buffering=0) as pipe:
            while chunk := pipe.read(CHUNK):
                self._tail = (self._tail + chunk)[-KEPT:]

    def last_line(self) -> str:
        """The last line that is not blank, once the process has ended; empty if there is none."""
        self._thread.join(LATE)
        lines = self._tail.decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")
