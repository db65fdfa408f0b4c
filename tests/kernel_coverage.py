"""Which lines and branches of the compiled recurrence the fuzz driver reaches, over every instruction set and dtype.

    python tests/kernel_coverage.py [--problems N]

Prints a table a file, then every line and every branch that no build reached; exits with 1 where a line was missed, or a
branch that `UNREACHED` does not explain.
"""

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kernel_fuzz import Build, builds, command, compile_driver, run_driver

from multirnn.kernel import build

FLAGS = ("-O0", "--coverage", "-fno-builtin-fork")  # gcov's own fork forgets what the handlers of a fork ran
PROBLEMS = 1000
"""Of every build."""

UNREACHED = {
    "multiply(&panel, m.depth, from + r, some, run->zeros": "the rows of one tile are never more than a tile has",
    "block = count > MOST_ROWS": "the gradient of x multiplies the rows of one tile, which need no blocks",
    "const real *from = k ? out : start": "as above: one block",
    "k + some < depth ? packed": "as above: one block",
    "long from_stride = k ?": "as above: one block",
    "memset(at(y, s->row[r], t) + from": "packed rows have no padding, and returned before",
    "load_part((real *)&block[i], lanes)": "here the lanes are fewer than a vector has",
    "smaller(features_of(k, 0)": "layer 0 has no layer below",
    "INLINE long features_of": "layer 0 has no layer below, where it is named as a constant",
    "return s->at + batch * s->batch": "the padding of packed rows, of which there is none",
    "BOTH(": "bounds of the loops that the macro unrolls; sums of outer products have at most WIDTH vectors",
    "if (count >= LANES)": "here the lanes are fewer than a vector has",
    "__builtin_cpu_supports": "this machine has the instructions, or not",
    "strcmp(instructions": "this machine has the instructions, or not",
}
"""A part of the line that a branch is of, and why no problem takes it."""


class Coverage:
    """What was reached: of every line how often, and of every branch of it; several builds are added up."""

    def __init__(self) -> None:
        self.lines: dict[tuple[str, int], int] = defaultdict(int)
        self.branches: dict[tuple[str, int], dict[tuple[int, int], int]] = defaultdict(lambda: defaultdict(int))

    def add(self, report: dict[str, Any]) -> None:
        """Add a report of gcov in JSON. Branches of a line count as the same where two builds have as many there."""
        for file in report["files"]:
            path = Path(file["file"])
            if path.parent.name != "source":
                continue
            found: dict[int, dict[tuple[int, int], int]] = defaultdict(lambda: defaultdict(int))
            for line in file["lines"]:
                self.lines[path.name, line["line_number"]] += line["count"]
                of_line = line["branches"]
                for index, branch in enumerate(of_line):
                    found[line["line_number"]][index, len(of_line)] += branch["count"]
            for number, counts in found.items():
                for key, count in counts.items():
                    self.branches[path.name, number][key] += count

    @property
    def missed_lines(self) -> list[tuple[str, int]]:
        return sorted(place for place, count in self.lines.items() if not count)

    @property
    def missed_branches(self) -> Iterator[tuple[str, int, int]]:
        """The places of lines with branches that were not taken, and how many."""
        for (name, number), counts in sorted(self.branches.items()):
            if missed := sum(not count for count in counts.values()):
                yield name, number, missed


def measure(problems: int, kinds: list[Build]) -> Coverage:
    """Run the driver of every build, and ask gcov."""
    coverage = Coverage()
    with tempfile.TemporaryDirectory() as top:
        for kind in kinds:
            folder = Path(top, "-".join(kind))
            folder.mkdir()
            compiled = compile_driver(folder / "driver", kind, FLAGS)
            if compiled.returncode:
                raise SystemExit(compiled.stderr)
            done = run_driver(folder / "driver", kind, 1, problems)
            if done.returncode:
                raise SystemExit(done.stdout + done.stderr)
            data = sorted(folder.glob("*.gcda"))
            said = command("gcov", "--json-format", "--stdout", "--branch-probabilities", *data, folder=folder)
            for report in said.stdout.splitlines():
                coverage.add(json.loads(report))
    return coverage


def line_of(name: str, number: int) -> str:
    return (build.SOURCE / name).read_text().splitlines()[number - 1].strip()


def reason_of(line: str) -> str | None:
    return next((reason for part, reason in UNREACHED.items() if part in line), None)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--problems", type=int, default=PROBLEMS)
    coverage = measure(parser.parse_args().problems, builds())
    write = sys.stdout.write
    for name in sorted({name for name, _ in coverage.lines}):
        lines = [count for (of, _), count in coverage.lines.items() if of == name]
        branches = [count for (of, _), counts in coverage.branches.items() if of == name for count in counts.values()]
        write(
            f"{name:14} lines {sum(map(bool, lines)):4} of {len(lines):4}   "
            f"branches {sum(map(bool, branches)):4} of {len(branches):4}\n"
        )
    wrong = 0
    for name, number in coverage.missed_lines:
        wrong += 1
        write(f"\n{name}:{number} is not reached: {line_of(name, number)}\n")
    for name, number, missed in coverage.missed_branches:
        line = line_of(name, number)
        reason = reason_of(line)
        wrong += reason is None
        write(
            f"\n{name}:{number} {missed} branch{'es' * (missed > 1)} not taken: {line[:90]}\n  {reason or 'NOT EXPLAINED'}\n"
        )
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
