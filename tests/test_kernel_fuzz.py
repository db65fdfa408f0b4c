"""The compiled recurrence on random problems and random paths, under the sanitizers; longer by `python tests/kernel_fuzz.py`."""

import re
from pathlib import Path

import kernel_fuzz
import pytest
from kernel_fuzz import MEMORY, REPORTED, THREADS, Build, builds, command, compile_driver, run_driver

from multirnn.kernel import build

SEED = 20_000
PROBLEMS = 2000  # of all builds together, under AddressSanitizer and UBSan
# So few problems run in a second, and compiling with -O1 takes ten; without, three, and every access is still checked.
FEW = (*MEMORY, "-O0")


@pytest.fixture(scope="module", params=[FEW, THREADS], ids=["memory", "threads"])
def sanitizer(request, tmp_path_factory):
    """The flags of a sanitizer that runs here; skipped with a sentence where there is none."""
    compiler = build._compiler()
    if compiler is None:
        pytest.skip("no C compiler was found")
    source = tmp_path_factory.mktemp("empty") / "empty.c"
    source.write_text("int main(void) { return 0; }\n")
    program = source.with_suffix("")
    compiled = command(*compiler, *request.param, source, "-o", program)
    if compiled.returncode:
        pytest.skip(f"{compiler[0]} has no such sanitizer: {last_line(compiled.stderr)}")
    started = command(program)
    if started.returncode:
        pytest.skip(f"the sanitizer does not start here: {last_line(started.stderr)}")
    return request.param


def last_line(text):
    return text.strip().rpartition("\n")[2]


def driver(folder: Path, kind: Build, *flags: str) -> Path:
    program = folder / "kernel_fuzz"
    compiled = compile_driver(program, kind, flags)
    assert compiled.returncode == 0, compiled.stderr
    return program


@pytest.mark.parametrize("kind", builds(), ids="-".join)
def test_random_problems_on_random_paths(kind, sanitizer, tmp_path):
    program = driver(tmp_path, kind, *sanitizer)
    problems = PROBLEMS // len(builds())
    done = run_driver(program, kind, SEED, *((problems, 0) if sanitizer is FEW else (problems // 8, 3)))
    assert done.returncode == 0, done.stdout + done.stderr
    late = re.search(r"(\d+) pieces were done for others, and (\d+) phases missed", done.stdout)
    assert late is not None
    assert min(map(int, late.groups())) > 0, "no thread was late, so that nothing was shown of late threads"


MISTAKES = {
    "the cell takes another panel": ("forward.h", "along ? panel_of(m, n)", "panels > 1 ? panel_of(m, n)"),
    "one unit too many is read": ("matrix.h", "load_part(from + unit, m->units - unit)", "load(from + unit)"),
    "one row too many is written": ("forward.h", "t < k->call->time; t++)", "t <= k->call->time; t++)"),
    "lengths are not checked": ("recurrence.c", "> call->time)", "> call->time + 1)"),
    "backward takes the caller's lengths": (
        "recurrence.c",
        "stashed_lengths(&stash, call.batch) :",
        "given->lengths :",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found(mistake, tmp_path, monkeypatch):
    """Each is found at the first instruction set that this machine has."""
    if build._compiler() is None:
        pytest.skip("no C compiler was found")
    name, right, wrong = MISTAKES[mistake]
    source = tmp_path / "source"
    source.mkdir()
    for path in build.SOURCE.iterdir():
        text = path.read_text()
        if path.name == name:
            assert text.count(right) == 1
            text = text.replace(right, wrong)
        (source / path.name).write_text(text)
    monkeypatch.setattr(kernel_fuzz.build, "SOURCE", source)
    kind = builds()[0]
    done = run_driver(driver(tmp_path, kind, *FEW), kind, SEED, PROBLEMS)
    assert done.returncode != 0, done.stdout


def test_a_race_is_reported(tmp_path):
    """No thread hands over what it wrote, once to acquire is to relax."""
    relaxed = ("-U__ATOMIC_ACQUIRE", "-D__ATOMIC_ACQUIRE=__ATOMIC_RELAXED")
    kind = builds()[-1]
    done = run_driver(driver(tmp_path, kind, *THREADS, *relaxed), kind, SEED, PROBLEMS, callers=3)
    assert (done.returncode, "ThreadSanitizer: data race" in done.stderr) == (REPORTED, True), done.stdout + done.stderr
