"""The problems: a `Problem` is a stack and the shape of its input; a `ProblemTable` is problems and the modes of each.

A table is a CSV file; three that ship have names. The header must have the columns `cell`, `batch`, `time` and
`hidden_size`, and may have any other field of a problem or its spec, and `modes`, separated by spaces:

    cell,batch,time,hidden_size,modes
    gru,32,100,256,inference training
"""

from __future__ import annotations  # or naming np.random.Generator loads numpy.random

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from functools import partial
from importlib.resources import as_file, files
from io import StringIO
from pathlib import Path
from typing import Any, Self

from multirnn.errors import InvalidCall, InvalidData, InvalidSpec
from multirnn.protocol import MODES
from multirnn.spec import RecurrentSpec

__all__ = ["TABLES", "Case", "Problem", "ProblemTable", "read_table"]

STACK = tuple(field.name for field in fields(RecurrentSpec))


@dataclass(frozen=True)
class Problem:
    """A recurrent stack and the shape of its input; `InvalidSpec` if the input is impossible.

    `recurrent_only` asks for the recurrence alone. Every layer has an input projection, so the input has one feature,
    whose projection costs 1/hidden_size of the recurrence.
    """

    name: str  # unique in its table
    spec: RecurrentSpec
    batch: int
    time: int
    lengths: tuple[int, int] | None = None  # the range of the rows' lengths, drawn uniformly; None: every row is full
    recurrent_only: bool = False

    def __post_init__(self) -> None:
        for name in ("batch", "time"):
            if getattr(self, name) < 1:
                raise InvalidSpec(f"{name} must be a positive integer, not {getattr(self, name)!r}")
        if self.recurrent_only and self.spec.input_size != 1:
            raise InvalidSpec(
                f"with recurrent_only input_size must be 1, since that is how it is run; not {self.spec.input_size}"
            )
        if self.lengths is not None:
            shortest, longest = self.lengths
            if not 0 <= shortest <= longest <= self.time:
                raise InvalidSpec(
                    f"lengths must be the shortest and the longest row, from 0 to time={self.time}, "
                    f"not {shortest} to {longest}"
                )
            object.__setattr__(self, "lengths", (shortest, longest))

    @classmethod
    def shaped(cls, cell: str, time: int, batch: int, input_size: int, hidden_size: int, **more: Any) -> Self:
        """A problem named by its shape, `lstm-t150-b16-i256-h256`, unless `more` fields have a `name`."""
        name = f"{'rnn' if cell == 'simple_rnn' else cell}-t{time}-b{batch}-i{input_size}-h{hidden_size}"
        sizes = {"cell": cell, "time": time, "batch": batch, "input_size": input_size, "hidden_size": hidden_size}
        return cls.from_dict({"name": name, **sizes, **more})

    def to_dict(self) -> dict[str, Any]:
        """The fields of the problem and its spec side by side, as JSON values."""
        spec = self.spec.to_dict()
        del spec["version"]
        lengths = None if self.lengths is None else list(self.lengths)
        own = {"batch": self.batch, "time": self.time, "lengths": lengths, "recurrent_only": self.recurrent_only}
        return {"name": self.name, **spec, **own}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The problem that `to_dict` wrote; `InvalidSpec` if a field is unknown or a value is impossible."""
        if unknown := set(values) - {*STACK, *OWN}:
            raise InvalidSpec(f"a problem has no field {min(unknown)!r}")
        spec = RecurrentSpec(**{name: value for name, value in values.items() if name in STACK})
        return cls(spec=spec, **{name: value for name, value in values.items() if name in OWN})


OWN = tuple(field.name for field in fields(Problem) if field.name != "spec")


@dataclass(frozen=True)
class Case:
    """A problem and the modes in which it is timed."""

    problem: Problem
    modes: tuple[str, ...]


@dataclass(frozen=True)
class ProblemTable:
    """Problems to be timed together, and how.

    In the modes of `boundary` the call from NumPy to NumPy is timed too, with the first number of threads: some
    contenders trace it once more.
    """

    name: str
    cases: tuple[Case, ...]
    threads: tuple[int, ...] = (1, 2)
    seconds: float | None = None  # of a run, to which rounds and blocks are cut; None: as long as it takes
    cap: float = 120.0  # seconds after which a contender without an answer is given up
    boundary: tuple[str, ...] = MODES
    boundaries: int | None = None  # rounds in which it is timed, None: all; if few, short calls alone

    def only(
        self, *, names: Sequence[str] = (), modes: Sequence[str] = (), part: tuple[int, int] | None = None
    ) -> Self:
        """The table cut down to patterns of names, to modes instead of its own, and to part (n, m), n from 1.

        Raises `InvalidCall` where a pattern matches nothing, or nothing is left.
        """
        cases = self.cases
        for name in names:
            if not any(fnmatchcase(case.problem.name, name) for case in cases):
                raise InvalidCall(f"table {self.name!r} has no problem {name!r}; `multirnn bench list` shows them")
        if names:
            cases = tuple(case for case in cases if any(fnmatchcase(case.problem.name, name) for name in names))
        if part:
            number, count = part
            cases = cases[number - 1 :: count]
        kept = (
            (case.problem, tuple(mode for mode in modes or case.modes if _has(case.problem, mode))) for case in cases
        )
        cases = tuple(Case(problem, left) for problem, left in kept if left)
        if not cases:
            raise InvalidCall(f"nothing of table {self.name!r} is left to run; ask for fewer parts or another mode")
        return replace(self, cases=cases)


def _has(problem: Problem, mode: str) -> bool:
    """Whether the mode exists: a stack that reads the end first cannot be streamed."""
    return mode != "streaming" or not problem.spec.bidirectional


# --- Tables in CSV files ---------------------------------------------------------------------------------------------

FEW = 3  # rounds of the call from NumPy to NumPy in the named tables, where it is shown and not judged

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    # Six shapes that between them reach every kind of bound.
    "smoke": {"threads": (1,), "seconds": 35, "cap": 10, "boundary": ("streaming",)},
    # The shapes of small devices, of DeepBench, of glample/rnn-benchmarks (30 steps), of PyTorch's fastrnns (100 steps,
    # 64 x 512) and of translation and speech. A training step costs three inferences, so few are trained.
    "standard": {"seconds": 16 * 60, "cap": 45, "boundary": ("inference", "streaming")},
    # All recurrent problems of Baidu DeepBench; those of its training set with their gradients. It times the recurrence
    # alone, its simple RNN has the activation ReLU, and its backward pass is the gradient of weights and input, without
    # an update: baidu-research/DeepBench, code/nvidia/rnn_bench.cu.
    "deepbench": {},
}


def _named(name: str) -> ProblemTable:
    with as_file(files("multirnn_bench") / "tables" / f"{name}.csv") as path:
        return replace(read_table(path), name=name, boundaries=FEW, **SETTINGS[name])


TABLES: Mapping[str, Callable[[], ProblemTable]] = {name: partial(_named, name) for name in SETTINGS}

NEEDED = ("cell", "batch", "time", "hidden_size")
SHOWN = 5  # sentences about bad rows; more would hide the first


def read_table(path: Path | str) -> ProblemTable:
    """The table in a CSV file; `InvalidData` has a sentence for each bad row with its line."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidData(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is not UTF-8'}") from None
    reader = csv.DictReader(StringIO(text), skipinitialspace=True)
    columns = [name.strip() for name in reader.fieldnames or ()]
    if missing := [name for name in NEEDED if name not in columns]:
        raise InvalidData(
            f"{path}: its first line must name the columns {', '.join(NEEDED)}; {_list(missing)} not there"
        )
    if unknown := [name for name in columns if name not in _READERS]:
        raise InvalidData(
            f"{path}: no column {', '.join(map(repr, unknown))} is known; there are {', '.join(_READERS)}"
        )
    reader.fieldnames = columns
    cases: dict[str, Case] = {}
    complaints = []
    for row in reader:
        try:
            case = _case(row)
            if (name := case.problem.name) in cases:
                raise InvalidSpec(f"a problem named {name!r} stands above already; give it another name")
        except InvalidSpec as error:
            complaints.append(f"line {reader.line_num}: {error}")
        else:
            cases[name] = case
    if complaints:
        more = f"\nand {len(complaints) - SHOWN} more" if len(complaints) > SHOWN else ""
        raise InvalidData("\n".join(f"{path}, {complaint}" for complaint in complaints[:SHOWN]) + more)
    if not cases:
        raise InvalidData(f"{path} holds a header and no problems below it")
    return ProblemTable(path.name, tuple(cases.values()))


def _list(names: list[str]) -> str:
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}"


def _case(row: Mapping[Any, Any]) -> Case:
    """The problem in a row, or `InvalidSpec`."""
    if None in row or None in row.values():
        raise InvalidSpec("it has more cells than the header" if None in row else "it has fewer cells than the header")
    given = {name: value.strip() for name, value in row.items() if value.strip()}
    if empty := [name for name in NEEDED if name not in given]:
        raise InvalidSpec(f"{_list(empty)} empty")
    values = {name: _READERS[name](name, value) for name, value in given.items()}
    modes = values.pop("modes", ("inference",))
    values.setdefault("input_size", 1 if values.get("recurrent_only") else values["hidden_size"])
    problem = Problem.shaped(**values)
    if refused := [mode for mode in modes if not _has(problem, mode)]:
        raise InvalidSpec(f"a bidirectional stack has no mode {refused[0]!r}: its backward direction begins at the end")
    return Case(problem, modes)


def _modes(name: str, value: str) -> tuple[str, ...]:
    if unknown := [mode for mode in value.split() if mode not in MODES]:
        raise InvalidSpec(f"no mode {unknown[0]!r}; there are {', '.join(MODES)}")
    return tuple(value.split())


def _integer(name: str, value: str) -> int:
    if not value.isascii() or not value.isdigit() or int(value) < 1:
        raise InvalidSpec(f"{name} must be a positive integer, not {value!r}")
    return int(value)


def _truth(name: str, value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise InvalidSpec(f"{name} must be true or false, not {value!r}")
    return value.lower() == "true"


def _range(name: str, value: str) -> tuple[int, int]:
    shortest, dash, longest = value.partition("-")
    if not (dash and shortest.strip().isdigit() and longest.strip().isdigit()):
        raise InvalidSpec(f"{name} are the shortest and the longest row, as in 10-100, not {value!r}")
    return int(shortest), int(longest)


_READERS: Mapping[str, Callable[[str, str], Any]] = {
    **dict.fromkeys((*OWN, *STACK), lambda name, value: value),
    **dict.fromkeys(("batch", "time", "input_size", "hidden_size", "num_layers"), _integer),
    **dict.fromkeys(("bidirectional", "reset_after", "recurrent_only"), _truth),
    "lengths": _range,
    "modes": _modes,
}
