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
        objects: list[str] = []
        commands: list[list[str]] = []

        def compile_to(name: str, source: str, *flags: str) -> None:
            objects.append(str(Path(folder, name)))
            commands.append([*compiler, *FLAGS.split(), *flags, "-c", str(SOURCE / source), "-o", objects[-1]])

        for instructions, instruction_flags in INSTRUCTIONS.items():
            for dtype, dtype_flag in DTYPES.items():
                name = f"{instructions}_{dtype}"
                flags = [*instruction_flags.split(), *dtype_flag.split()]
                compile_to(f"{name}.o", "recurrence.c", f"-DNAME(x)=multirnn_##x##_{name}", *flags)
        compile_to("team.o", "team.c")
        compile_to("entry.o", "entry.c", f'-DFINGERPRINT="{fingerprint()}"')
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
