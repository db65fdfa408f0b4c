"""Damages files of every format and reads them: only errors of ours may come out, soon, and nothing may be written.

    python tests/formats_fuzz.py --inputs 200000
    python tests/formats_fuzz.py --seed 4711 --inputs 1            one input again, with its traceback
    python tests/formats_fuzz.py --guided --inputs 50000           guided by the lines of the readers that inputs reach

An input is a valid file (`formats_seeds.py`) with damage (`formats_damage.py`). A guided run damages further what reached a
line that no input before it had reached; its inputs depend on each other, so one that goes wrong is kept in this folder.
"""

import argparse
import faulthandler
import json
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import formats_seeds
from formats_damage import damaged

import multirnn as mr
from multirnn import formats

LONGEST = 2.0
"""Seconds that any input may take."""
TRACED = 20
"""How many times as long the lines of a reader may take while they are traced."""
MEMORY = 4 << 30
"""Bytes of address space beside what is used at the start, in a run of its own."""

CHUNK = 2000
"""Inputs that one process reads."""


class Finding(NamedTuple):
    """An input that a reader does not take as it should."""

    seed: int
    suffix: str
    said: str
    traced: str = ""

    @property
    def place(self) -> str:
        """Where it was raised: one fault is told once."""
        lines = [line for line in self.traced.splitlines() if line.startswith("  File") and "/multirnn/" in line]
        return f"{self.said[:10]} {lines[-1] if lines else ''}"


def examined(path: Path, number: int, longest: float = LONGEST) -> Finding | None:
    """Reads a file; what is wrong with it, if anything is."""
    began, suffix, finding = time.perf_counter(), path.name.partition(".")[2], None
    try:
        found = formats.inspect(path)
        if found:
            formats.load(path, found[0].name)
    except mr.MultirnnError as error:
        if len(str(error)) > 2000 or not str(error).startswith(str(path)):
            finding = Finding(number, suffix, f"no sentence about the file: {str(error)[:200]!r}", _trace(error))
    except Exception as error:  # noqa: BLE001  # that is what is looked for
        finding = Finding(number, suffix, f"{type(error).__name__}: {str(error)[:200]}", _trace(error))
    if (took := time.perf_counter() - began) > longest:
        finding = Finding(number, suffix, f"it took {took:.1f} s")
    if [one.name for one in path.parent.iterdir()] != [path.name]:
        finding = Finding(number, suffix, "something was written")
    return finding


class Lines:
    """The lines of the readers that inputs reach."""

    FOLDER = str(Path(formats.__file__).parent)

    def __init__(self) -> None:
        self.reached: set[tuple[str, int]] = set()

    def __enter__(self) -> "Lines":
        sys.settrace(self._called)
        return self

    def __exit__(self, *error: object) -> None:
        sys.settrace(None)

    def _called(self, frame: Any, event: str, argument: Any) -> Any:
        return self._line if frame.f_code.co_filename.startswith(self.FOLDER) else None

    def _line(self, frame: Any, event: str, argument: Any) -> Any:
        self.reached.add((frame.f_code.co_filename, frame.f_lineno))
        return self._line


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


# --- Processes -------------------------------------------------------------------------------------------------------


def read_all(numbers: range, folder: Path, suffixes: Sequence[str], guided: bool = False) -> None:
    """Reads so many damaged files, and prints a line of JSON for each that is not taken as it should be."""
    lines = Lines()
    longest = TRACED * LONGEST if guided else LONGEST
    faulthandler.enable()
    seeds = [seed for seed in formats_seeds.seeds(folder) if seed[0] in suffixes or not suffixes]
    room = folder / "inputs"
    room.mkdir(exist_ok=True)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
    for number in numbers:
        suffix, data = damaged(seeds, number)
        path = room / f"{number}{suffix}"
        path.write_bytes(data)
        faulthandler.dump_traceback_later(3 * longest, exit=True)
        before = len(lines.reached)
        with lines if guided else nullcontext():
            finding = examined(path, number, longest)
        if len(lines.reached) > before:
            seeds.append((suffix, data))
        faulthandler.cancel_dump_traceback_later()
        path.unlink()
        if finding is not None:
            if guided:
                Path(f"formats-fuzz-{number}{suffix}").write_bytes(data)
            print(json.dumps(finding), flush=True)
    print(_peak())


def _peak() -> int:
    """The most memory of this process in MB; `ru_maxrss` would be that of the process that started it, if it had more."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) >> 10


def fuzz(inputs: int, seed: int, suffixes: Sequence[str] = (), *, guided: bool = False) -> tuple[list[Finding], int]:
    """What is wrong with so many inputs, and the most memory that a process took, in MB.

    They are read in processes of their own: a library may crash, or never return.
    """
    findings: list[Finding] = []
    peak, start = 0, seed
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        while start < seed + inputs:
            end = min(start + CHUNK, seed + inputs)
            words = ["--alone", name, "--seed", str(start), "--inputs", str(end - start), "--only", *suffixes]
            words += ["--guided"] if guided else []
            done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=False)
            lines = done.stdout.splitlines()
            findings += [Finding(*json.loads(line)) for line in lines if line.startswith("[")]
            if done.returncode == 0:
                peak, start = max(peak, int(lines[-1])), end
                continue
            left = list((folder / "inputs").iterdir()) if (folder / "inputs").exists() else []
            if not left:
                raise RuntimeError(done.stderr)
            number, _, suffix = left[0].name.partition(".")
            findings.append(Finding(int(number), suffix, f"the process ended: {done.returncode}", done.stderr))
            left[0].unlink()
            start = int(number) + 1
    return findings, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[], metavar="SUFFIX", help="of the files that are damaged")
    parser.add_argument("--guided", action="store_true", help="damage further what reached new lines of the readers")
    parser.add_argument("--alone", type=Path, metavar="FOLDER", help="in this process; used by itself")
    given = parser.parse_args()
    if given.alone:
        read_all(range(given.seed, given.seed + given.inputs), given.alone, given.only, given.guided)
        return
    findings, peak = fuzz(given.inputs, given.seed, given.only, guided=given.guided)
    places = Counter(finding.place for finding in findings)
    for finding in findings:
        if places.pop(finding.place, 0):  # one fault is told once
            print(f"--seed {finding.seed} {finding.suffix}: {finding.said}\n{finding.traced}")
    print(f"{given.inputs} inputs, {len(findings)} of them wrong; at most {peak} MB of memory")
    if findings:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
