"""The fields that a line of results must have; a file may have been edited, cut, or written by another program."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from multirnn.errors import InvalidData
from multirnn.protocol import MODES
from multirnn_bench.limits import Limits

__all__ = ["STATUSES", "fault_of_header", "fault_of_row"]

STATUSES = ("timed", "wrong", "refused", "failed", "killed", "slow")  # only "timed" has times

Kind = tuple[str, Callable[[Any], bool]]  # what a value must be, in words and as a test


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _positive(value: Any) -> bool:
    return _number(value) and value > 0


def _list_of(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(test, value))


def _one_of(*names: str) -> Kind:
    return f"one of {', '.join(names)}", lambda value: value in names


def _or_null(words: str, test: Callable[[Any], bool]) -> Kind:
    return f"{words}, or null", lambda value: value is None or test(value)


OBJECT: Kind = "an object", lambda value: isinstance(value, dict)
TEXT: Kind = "a text", lambda value: isinstance(value, str) and bool(value)
COUNT: Kind = "a positive integer", lambda value: isinstance(value, int) and _positive(value)

REQUIRED: Mapping[str, Kind] = {
    "problem": OBJECT,
    "problem.name": TEXT,
    "mode": _one_of(*MODES),
    "threads": COUNT,
    "contender": OBJECT,
    "contender.name": TEXT,
    "status": _one_of(*STATUSES),
    "problem.cell": TEXT,
    **dict.fromkeys(("problem.batch", "problem.time", "problem.input_size", "problem.hidden_size"), COUNT),
    "contender.kind": _one_of("ours", "peer"),
}
TIMED: Mapping[str, Kind] = {  # also required in a timed row
    **dict.fromkeys(("median", "low", "high"), ("a positive number", _positive)),
    "rounds": ("positive numbers, at least one", lambda value: bool(value) and _list_of(_positive)(value)),
    "stable": ("true or false", lambda value: isinstance(value, bool)),
}
OPTIONAL: Mapping[str, Kind] = {
    "reason": _or_null("a text", lambda value: isinstance(value, str)),
    "problem.lengths": _or_null(
        "the shortest and the longest row", lambda value: _list_of(_number)(value) and len(value) == 2
    ),
    "round_numbers": _or_null("integers, one a round", _list_of(lambda value: isinstance(value, int))),
    "boundaries": _or_null(
        "pairs of positive numbers", _list_of(lambda pair: _list_of(_positive)(pair) and len(pair) == 2)
    ),
    **dict.fromkeys(("contender.versions", "contender.flags"), _or_null(*OBJECT)),
    **dict.fromkeys(
        (
            *("flops", "bytes", "parameters", "limit_s", "share", "boundary_median", "error_eps", "allowed_eps"),
            *("import_s", "prepare_s", "first_call_s", "peak_memory_bytes", "added_memory_bytes"),
            *("steal", "taken", "repetitions"),
        ),
        _or_null("a number", _number),
    ),
}
HEADER: Mapping[str, Kind] = {"table": TEXT, "machine": OBJECT, "limits": OBJECT, "settings": OBJECT}


def fault_of_row(row: Mapping[str, Any]) -> str:
    """The first fault of a row, in words; empty if there is none."""
    fault = _first_fault(row, REQUIRED) or _first_fault(row, OPTIONAL, optional=True)
    if fault or row["status"] != "timed":
        return fault
    if fault := _first_fault(row, TIMED):
        return fault
    numbers = row.get("round_numbers")
    if numbers is not None and len(numbers) != len(row["rounds"]):
        return f"its round_numbers are {len(numbers)}, and its rounds {len(row['rounds'])}"
    return ""


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
                shown = repr(value)
                return f"its {name} must be {words}, not {shown if len(shown) <= 40 else f'{shown[:40]}…'}"
            continue
        if not optional:
            return f"it has no {name}"
    return ""
