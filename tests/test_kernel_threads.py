"""The threads of the compiled recurrence under ThreadSanitizer, which reports a race before it makes a wrong number."""

import os
import subprocess
from pathlib import Path

import pytest

from multirnn.compare import tolerance
from multirnn.kernel import build

DRIVER = Path(__file__).with_name("kernel_threads.c")
# Of any instruction set: the vectors do not matter. More optimisation takes longer to compile, and gains nothing.
FLAGS = (*build.FLAGS.split(), "-O1", "-g", "-fsanitize=thread")
REPORTED = 66


def run(*command: object) -> "subprocess.CompletedProcess[str]":
    # At the first race, which may leave threads waiting for ever.
    environment = {**os.environ, "TSAN_OPTIONS": f"halt_on_error=1:exitcode={REPORTED}"}
    return subprocess.run([str(word) for word in command], env=environment, capture_output=True, text=True, timeout=240)


def last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The C compiler, whose ThreadSanitizer runs here; skipped with a sentence where there is none."""
    found = build._compiler()
    if found is None:
        pytest.skip("no C compiler was found")
    source = tmp_path_factory.mktemp("empty") / "empty.c"
    source.write_text("int main(void) { return 0; }\n")
    program = source.with_suffix("")
    compiled = run(*found, *FLAGS, source, "-o", program)
    if compiled.returncode:
        pytest.skip(f"{found[0]} has no ThreadSanitizer: {last_line(compiled.stderr)}")
    started = run(program)
    if started.returncode:
        pytest.skip(f"ThreadSanitizer does not start here: {last_line(started.stderr)}")
    return list(found)


def run_driver(compiler: list[str], program: Path, *flags: str) -> "subprocess.CompletedProcess[str]":
    compiled = run(*compiler, *FLAGS, *flags, "-I", build.SOURCE, DRIVER, "-lm", "-o", program)
    assert compiled.returncode == 0, compiled.stderr
    return run(program, tolerance("float32"))


def test_threads_have_no_race_and_change_no_result(compiler: list[str], tmp_path: Path) -> None:
    done = run_driver(compiler, tmp_path / "kernel_threads")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_race_would_be_reported(compiler: list[str], tmp_path: Path) -> None:
    """Nobody who is waited for hands over what it wrote, once to acquire is to relax."""
    relaxed = ("-U__ATOMIC_ACQUIRE", "-D__ATOMIC_ACQUIRE=__ATOMIC_RELAXED")
    done = run_driver(compiler, tmp_path / "kernel_threads", *relaxed)
    assert (done.returncode, "ThreadSanitizer: data race" in done.stderr) == (REPORTED, True), done.stdout + done.stderr
