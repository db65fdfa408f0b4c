"""What several tests of the benchmarks use: small problems, a machine whose limits are known, a file of peers."""

from pathlib import Path
from typing import Any

from multirnn_bench.limits import Ceilings, Limits
from multirnn_bench.problems import Problem

PEERS = Path(__file__).with_name("bench_contenders.py")
SMALL = Problem("small", "gru", 3, 7, 5, 4)
RAGGED = Problem("ragged", "lstm", 3, 7, 5, 4, num_layers=2, bidirectional=True, lengths=(0, 7))
LIMITS = Limits(
    {"L1": 2**15, "L2": 2**20},
    {1: Ceilings({"float32": 1e11, "float64": 5e10}, {}, dict.fromkeys(("L1", "L2", "L3", "memory"), 1e10), {})},
)
MACHINE = {"processor": "one", "cores": 2}


def a_header(**values: Any) -> dict[str, Any]:
    return {"table": "own", "machine": MACHINE, "limits": {}, "settings": {"threads": [1]}} | values
