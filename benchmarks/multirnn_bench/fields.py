"""The fields that a line of results must have.

A file may have been edited, cut, or written by another program: the first missing or invalid field is named in a
sentence. Other fields are kept.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from multirnn.errors import InvalidData
from multirnn.protocol import MODES
from multirnn_bench.limits import Limits

__all__ = ["STATUSES", "fault_of_header", "fault_of_row"]

STATUSES = ("timed", "wrong", "refused", "failed", "killed", "slow")
"""The outcome of a contender on a problem; only "timed" has times."""

Kind = tuple[str, Callable[[Any], bool]]
"""What a value must be, in words and as a test."""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _or_null(kind: Kind) -> Kind:
    words, test = kind
    return f"{words}, or null", lambda value: value is None or test(value)


OBJECT: Kind = "an object", lambda value: isinstance(value, dict)
TEXT: Kind = "a text", _is_text
WORDS: Kind = "a text, or null", lambda value: value is None or isinstance(value, str)
COUNT: Kind = "a positive integer", lambda value: isinstance(value, int) and _is_positive(value)
NUMBER: Kind = "a number", _is_number
TIME: Kind = "a positive number", _is_positive
TIMES: Kind = (
    "positive numbers, at least one",
    lambda value: isinstance(value, list) and bool(value) and all(map(_is_positive, value)),
)
COUNTS: Kind = (
    "integers, one a round",
    lambda value: isinstance(value, list) and all(isinstance(one, int) for one in value),
)
LENGTHS: Kind = (
    "the shortest and the longest row",
    lambda value: isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)),
)

PAIRS: Kind = (
    "pairs of positive numbers",
    lambda value: (
        isinstance(value, list)
        and all(isinstance(one, list) and len(one) == 2 and all(map(_is_positive, one)) for one in value)
    ),
)

NEEDED: Mapping[str, Kind] = {
    "problem": OBJECT,
    "problem.name": TEXT,
    "mode": (f"one of {', '.join(MODES)}", lambda value: value in MODES),
    "threads": COUNT,
    "contender": OBJECT,
    "contender.name": TEXT,
    "status": (f"one of {', '.join(STATUSES)}", lambda value: value in STATUSES),
}
"""Required in every row: its identity and outcome."""

SHOWN: Mapping[str, Kind] = {
    "problem.cell": TEXT,
    **dict.fromkeys(("problem.batch", "problem.time", "problem.input_size", "problem.hidden_size"), COUNT),
    "contender.kind": ("'ours' or 'peer'", lambda value: value in ("ours", "peer")),
}
"""Required in every row: what tables and charts sort by."""

TIMED: Mapping[str, Kind] = {
    **dict.fromkeys(("median", "low", "high"), TIME),
    "rounds": TIMES,
    "stable": ("true or false", lambda value: isinstance(value, bool)),
}
"""Required in a timed row."""

KNOWN: Mapping[str, Kind] = {
    "reason": WORDS,
    "problem.lengths": _or_null(LENGTHS),
    "round_numbers": _or_null(COUNTS),
    "boundaries": _or_null(PAIRS),
    **dict.fromkeys(("contender.versions", "contender.flags"), _or_null(OBJECT)),
    **dict.fromkeys(("flops", "bytes", "parameters", "limit_s", "share", "boundary_median"), _or_null(NUMBER)),
    **dict.fromkeys(("error_eps", "allowed_eps", "import_s", "prepare_s", "first_call_s"), _or_null(NUMBER)),
    **dict.fromkeys(("peak_memory_bytes", "added_memory_bytes", "steal", "taken", "repetitions"), _or_null(NUMBER)),
}
"""Optional."""

HEADER: Mapping[str, Kind] = {"table": TEXT, "machine": OBJECT, "limits": OBJECT, "settings": OBJECT}


def fault_of_row(row: Mapping[str, Any]) -> str:
    """The first fault of a row, in words; empty if there is none."""
    if fault := _first_fault(row, {**NEEDED, **SHOWN}) or _first_fault(row, KNOWN, optional=True):
        return fault
    if row["status"] != "timed":
        return ""
    numbers = row.get("round_numbers")
    fault = _first_fault(row, TIMED)
    if not fault and numbers is not None and len(numbers) != len(row["rounds"]):
        return f"its round_numbers are {len(numbers)}, and its rounds {len(row['rounds'])}"
    return fault


def fault_of_header(header: Mapping[str, Any]) -> str:
    """The first fault of a header, in words; empty if there is none."""
    if fault := _first_fault(header, HEADER):
        return fault
    if header["limits"]:
        try:
            Limits.from_dict(header["limits"])
        except InvalidData as error:
            return str(error)
    return ""


def _first_fault(values: Mapping[str, Any], kinds: Mapping[str, Kind], *, optional: bool = False) -> str:
    for name, (words, test) in kinds.items():
        value: Any = values
        for part in name.split("."):
            if part not in value:
                break
            value = value[part]
        else:
            if not test(value):
                return f"its {name} must be {words}, not {_short(value)}"
            continue
        if not optional:
            return f"it has no {name}"
    return ""


def _short(value: Any, letters: int = 40) -> str:
    text = repr(value)
    return text if len(text) <= letters else f"{text[:letters]}…"
