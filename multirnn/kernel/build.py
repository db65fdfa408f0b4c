"""Compiles `source/*.c` into one library, for every instruction set and dtype.

`hatch_build.py` runs this file when multirnn is installed, so it imports nothing of multirnn;
`python -m multirnn.kernel.build` builds in place.
"""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

__all__ = ["INSTRUCTIONS", "LIBRARY", "build", "fingerprint"]

FOLDER = Path(__file__).parent
SOURCE = FOLDER / "source"
LIBRARY = FOLDER / {"win32": "recurrence.dll", "darwin": "recurrence.dylib"}.get(sys.platform, "recurrence.so")

X86 = {
    "avx512": "-mavx512f -mavx512dq -mavx512bw -mavx512vl -mfma -mprefer-vector-width=512",
    "avx2": "-mavx2 -mfma",
    "baseline": "",
}
# Best first, with their compiler flags.
INSTRUCTIONS: Mapping[str, str] = X86 if platform.machine() in ("x86_64", "AMD64") else {"baseline": ""}
DTYPES = {"float32": "", "float64": "-DDOUBLE"}
# Fused multiply-adds round once. No -ffast-math: infinities and NaN have to stay.
FLAGS = "-std=gnu11 -O3 -fPIC -fvisibility=hidden -fno-math-errno -ffp-contract=fast -pthread"


def fingerprint() -> str:
    """A hash of the sources, to recognise a library built from others."""
    digest = hashlib.sha256()
    for path in sorted(SOURCE.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def build() -> str | None:
    """Compile the library in place; returns None, or why it could not, in a sentence."""
    compiler = _compiler()
    if compiler is None:
        return "no C compiler was found: none in $CC, and no cc, gcc or clang"
    with tempfile.TemporaryDirectory() as folder:
        units = [["team.c"], ["entry.c", f'-DFINGERPRINT="{fingerprint()}"']]
        for (instructions, flags), (dtype, more) in product(INSTRUCTIONS.items(), DTYPES.items()):
            name = f"-DNAME(x)=multirnn_##x##_{instructions}_{dtype}"
            units.insert(0, ["recurrence.c", name, *flags.split(), *more.split()])  # first: they take the longest
        objects = [str(Path(folder, f"{number}.o")) for number in range(len(units))]
        commands = [
            [*compiler, *FLAGS.split(), *flags, "-c", str(SOURCE / source), "-o", made]
            for (source, *flags), made in zip(units, objects, strict=True)
        ]
        # Linked under another name, then renamed: a process may be loading the old library.
        fresh = LIBRARY.with_name(f"{LIBRARY.stem}.{os.getpid()}{LIBRARY.suffix}")
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for reason in pool.map(_run, commands):
                if reason is not None:
                    return reason
        try:
            if (reason := _run([*compiler, "-shared", "-pthread", *objects, "-o", str(fresh)])) is not None:
                return reason
            os.replace(fresh, LIBRARY)
        finally:
            fresh.unlink(missing_ok=True)
    return None


def _compiler() -> Sequence[str] | None:
    if named := os.environ.get("CC"):
        return shlex.split(named)
    return next(([found] for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)


def _run(command: Sequence[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - the user's own compiler
    except OSError as error:
        return f"{command[0]} cannot be run: {error}"
    return None if done.returncode == 0 else f"{shlex.join(command)} failed:\n{done.stderr.strip()}"


if __name__ == "__main__":
    if (failure := build()) is not None:
        raise SystemExit(failure)
