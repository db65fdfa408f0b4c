"""Results on a terminal: a line a row, or the fastest of many, and why some rows have no time."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from multirnn.cli.console import heading, table
from multirnn.tables import Column, Content, Styled, Table
from multirnn_bench.quantities import NONE, bytes_, count, factor, seconds, share
from multirnn_bench.results import Results
from multirnn_bench.standing import Row, label, reasons

__all__ = ["summary"]

FEW = 48  # rows shown one by one
STYLES = {"wrong": "bold red", "failed": "red", "killed": "red", "slow": "yellow", "refused": "dim"}  # the worst first


def summary(found: Results, out: Path, missing: Mapping[str, str]) -> Iterator[Content]:
    """The tables and sentences to print; `missing` has the reason for each contender without its framework."""
    rows = found.rows
    yield heading(f"{found.header['table']}: {found.processor}")
    yield ""
    yield _each(rows) if len(rows) <= FEW else _fastest(rows)
    yield ""
    for name, reason in missing.items():
        yield f"left out: {name}: {reason}"
    order = list(STYLES)
    for (name, status, reason), alike in sorted(reasons(rows).items(), key=lambda item: order.index(item[0][1])):
        more = f" and {len(alike) - 1} more" if len(alike) > 1 else ""
        yield Styled(f"{status}: {name}: {reason} ({_where(alike[0])}{more})", STYLES[status])
    if unstable := sum(row["status"] == "timed" and not row["stable"] for row in rows):
        yield Styled(
            f"{unstable} of {len(rows)} rows are unstable (~): the middle half of their rounds is spread over more than a "
            "tenth of the median. Is the machine doing anything else?",
            "yellow",
        )
    yield f"results: {out} (multirnn bench report {out} --html report.html)"


def _where(row: Row) -> str:
    return f"{row['problem']['name']} {row['mode']}, {count(row['threads'], 'thread')}"


def _groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows by problem, mode and threads; in each group the fastest first, then those without a time."""
    groups: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["median"] if row["status"] == "timed" else math.inf):
        groups.setdefault(_where(row), []).append(row)
    return {where: groups[where] for where in dict.fromkeys(map(_where, rows))}


def _time(row: Row) -> str:
    return seconds(row["median"]) + ("" if row["stable"] else " ~")


def _each(rows: Sequence[Row]) -> Table:
    """A line a row, under a line for problem, mode and threads; narrow terminals drop columns, which the file has."""
    numbers = [Column(name, True) for name in ("time", "times", "of limit", "eps")]
    spare = [Column(name, True, spare=True) for name in ("quartiles", "first call", "memory")]
    made = Table("contender", *numbers, *spare)
    for where, group in _groups(rows).items():
        made.add_section()
        made.add_row(Styled(where, "bold"))
        for row in group:
            name = f"  {label(row)}"
            if row["status"] != "timed":
                made.add_row(name, Styled(row["status"], STYLES[row["status"]]))
                continue
            error = row.get("error_eps")
            made.add_row(
                name,
                _time(row),
                factor(row["median"] / group[0]["median"]),
                share(row.get("share")),
                NONE if error is None else f"{error:.1f}",
                f"{seconds(row['low'])} to {seconds(row['high'])}",
                seconds(row.get("first_call_s")),
                bytes_(row.get("added_memory_bytes")),
            )
    return made


def _fastest(rows: Sequence[Row]) -> Table:
    """A line for each problem, mode and number of threads: the fastest of ours, the fastest peer, their ratio."""
    made = table(
        "problem",
        "fastest of ours",
        "time",
        "of limit",
        "fastest peer",
        "its time",
        "ratio",
        right=("time", "of limit", "its time", "ratio"),
    )
    for where, group in _groups(rows).items():
        timed = [row for row in group if row["status"] == "timed"]
        ours, peer = (
            next((row for row in timed if row["contender"]["kind"] == kind), None) for kind in ("ours", "peer")
        )
        made.add_row(
            where,
            *((label(ours), _time(ours), share(ours.get("share"))) if ours else ("", "", "")),
            *((label(peer), _time(peer)) if peer else ("", "")),
            factor(peer["median"] / ours["median"]) if ours and peer else "",
        )
    return made
