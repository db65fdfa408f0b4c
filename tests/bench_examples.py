"""What several tests of the benchmarks use: small problems, a machine whose limits are known, a file of peers."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from multirnn_bench.limits import Ceilings, Limits
from multirnn_bench.problems import Problem
from multirnn_bench.results import Writer

from multirnn.spec import RecurrentSpec

PEERS = Path(__file__).with_name("bench_contenders.py")
SMALL = Problem("small", RecurrentSpec("gru", 5, 4), 3, 7)
RAGGED = Problem("ragged", RecurrentSpec("lstm", 5, 4, num_layers=2, bidirectional=True), 3, 7, lengths=(0, 7))
LIMITS = Limits(
    {"L1": 2**15, "L2": 2**20},
    {1: Ceilings.of({"float32": 1e11, "float64": 5e10}, dict.fromkeys(("L1", "L2", "L3", "memory"), 1e10))},
)
MACHINE = {"processor": "one", "cores": 2}


def varied(problem: Problem, **changes: Any) -> Problem:
    """The problem with other fields, its own or of its spec."""
    of_spec = {field.name: changes.pop(field.name) for field in fields(RecurrentSpec) if field.name in changes}
    return replace(problem, spec=replace(problem.spec, **of_spec), **changes)


def a_header(**values: Any) -> dict[str, Any]:
    return {"table": "own", "machine": MACHINE, "limits": {}, "settings": {"threads": [1]}} | values


def begun(path: Path, header: dict[str, Any], *, resume: bool = False) -> Writer:
    """A writer of a file with this header, new or resumed."""
    writer = Writer(path, resume=resume)
    try:
        writer.begin(header)
    except BaseException:
        writer.__exit__()
        raise
    return writer
