"""Builds and runs `kernel_fuzz.c`: the compiled recurrence on random problems and random paths, under the sanitizers.

    python tests/kernel_fuzz.py --problems 50000            AddressSanitizer and UBSan, over every instruction set and dtype
    python tests/kernel_fuzz.py --problems 5000 --threads   ThreadSanitizer

A problem that goes wrong is printed with its seed; `--seed N --problems 1` runs it alone.
"""

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from multirnn import kernel
from multirnn.kernel import build
from multirnn.numerics import tolerance

HERE = Path(__file__).parent
DRIVER = HERE / "kernel_fuzz.c"
LOWERED = HERE / "kernel_lowered.h"
MEMORY = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
THREADS = ("-O1", "-fsanitize=thread")
REPORTED = 66
"""The exit status after a report of ThreadSanitizer."""


class Build(NamedTuple):
    """One of the library's builds."""

    instructions: str
    dtype: str

    @property
    def flags(self) -> tuple[str, ...]:
        return (*build.INSTRUCTIONS[self.instructions].split(), *build.DTYPES[self.dtype].split())


def builds() -> list[Build]:
    """Those that this machine runs."""
    names = kernel.instruction_sets() or ("baseline",)
    return [Build(instructions, dtype) for instructions in names for dtype in build.DTYPES]


def command(*words: object, folder: Path | None = None) -> "subprocess.CompletedProcess[str]":
    options = {
        "TSAN_OPTIONS": f"halt_on_error=1:exitcode={REPORTED}",  # a race may leave threads waiting for ever
        "ASAN_OPTIONS": "detect_leaks=0",  # it reports the workers, which wait for the next call when the process ends
        "LC_ALL": "C",
    }
    return subprocess.run(
        [str(w) for w in words], env={**os.environ, **options}, cwd=folder, capture_output=True, text=True, timeout=1500
    )


def compile_driver(program: Path, kind: Build, flags: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """Compile the driver, and with it the sources under lowered thresholds, for one build."""
    compiler = build._compiler()
    assert compiler is not None, "no C compiler was found"
    sources = ("-I", build.SOURCE, "-I", HERE, "-include", LOWERED, DRIVER, "-lm")
    fixed = shlex.split(build.FLAGS.replace("-O3", "-g").replace("-fvisibility=hidden", ""))
    return command(
        *compiler, *fixed, *flags, *kind.flags, '-DFINGERPRINT="fuzz"', *sources, "-o", program, folder=program.parent
    )


def run_driver(
    program: Path, kind: Build, seed: int, problems: int, callers: int = 0
) -> "subprocess.CompletedProcess[str]":
    """Run it; the status is 0 where every problem was right and no sanitizer complained."""
    return command(program, seed, problems, tolerance(kind.dtype), callers, folder=program.parent)


def fuzz(seed: int, problems: int, flags: Sequence[str], callers: int) -> Iterator[tuple[Build, str]]:
    """Every build with its share of the problems; yields what each said, and ends at the first that fails."""
    kinds = builds()
    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds:
            program = Path(folder, "_".join(kind))
            compiled = compile_driver(program, kind, flags)
            if compiled.returncode:
                raise SystemExit(compiled.stderr)
            done = run_driver(program, kind, seed, -(-problems // len(kinds)), callers)
            yield kind, done.stdout + done.stderr
            if done.returncode:
                raise SystemExit(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--problems", type=int, default=2000, help="of all builds together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", action="store_true", help="under ThreadSanitizer, from several threads at once")
    given = parser.parse_args()
    flags, callers = (THREADS, 3) if given.threads else (MEMORY, 0)
    for kind, said in fuzz(given.seed, given.problems, flags, callers):
        sys.stdout.write(f"{kind.instructions} {kind.dtype}: {said}")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
