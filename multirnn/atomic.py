"""Writes a file whole or not at all."""

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from multirnn.errors import FormatError, MultirnnError

__all__ = ["replacing"]


@contextmanager
def replacing(path: Path, error: type[MultirnnError] = FormatError) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when the block ends without an exception; else `path` stays as it is.

    A link stays a link: the file that it leads to is replaced. A new file has the permissions that the umask leaves, and one
    that replaces another has those of the other.

    Raises:
        FormatError, or `error`: the folder does not exist, cannot be written to, or is full.
    """
    try:
        target = Path(os.path.realpath(path))
        temporary = target.parent / f".{secrets.token_hex(8)}.part"
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except (OSError, ValueError) as failed:
        raise error(f"{path} cannot be written: {getattr(failed, 'strerror', None) or failed}") from failed
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileNotFoundError):
            os.chmod(temporary, stat.S_IMODE(target.stat().st_mode))
        os.replace(temporary, target)
    except BaseException as failed:
        with suppress(OSError):
            os.unlink(temporary)
        if isinstance(failed, OSError) and not isinstance(failed, MultirnnError):
            raise error(f"{path} cannot be written: {failed.strerror or failed}") from failed
        raise
