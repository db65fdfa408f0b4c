"""Results on a terminal: a line a row, or the fastest of many, and why some rows have no time."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from multirnn.cli.console import heading, table
from multirnn.tables import Column, Content, Styled, Table
from multirnn_bench.quantities import NONE, bytes_, count, factor, seconds, share
from multirnn_bench.results import Results

__all__ = ["report"]

FEW = 48  # rows shown one by one


def report(found: Results, out: Path, missing: Mapping[str, str]) -> Iterator[Content]:
    """The tables and sentences to print.

    Args:
        found: the results.
        out: their file.
        missing: contenders whose framework is not installed: name to reason.
    """
    rows = found.rows
    yield heading(f"{found.header['table']}: {found.processor}")
    yield ""
    yield _each(rows) if len(rows) <= FEW else _fastest(rows)
    yield ""
    for name, reason in missing.items():
        yield f"left out: {name}: {reason}"
    yield from _not_timed(rows)
    if shaky := sum(row["status"] == "timed" and not row["stable"] for row in rows):
        yield Styled(
            f"{shaky} of {len(rows)} rows are unstable (~): the middle half of their rounds is spread over more than a "
            "tenth of the median. Is the machine doing anything else?",
            "yellow",
        )
    yield f"results: {out} (multirnn bench report {out} --html report.html)"


STYLES = {"wrong": "bold red", "failed": "red", "killed": "red", "slow": "yellow", "refused": "dim"}


def _not_timed(rows: Sequence[dict[str, Any]]) -> Iterator[Styled]:
    """Why rows have no time: a line for each contender and reason, the worst first."""
    alike: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        if row["status"] != "timed":
            alike.setdefault((row["status"], row["contender"]["name"], row.get("reason") or "no reason"), []).append(
                _where(row)
            )
    for status, style in STYLES.items():
        for (found, name, reason), places in alike.items():
            if found == status:
                more = f" and {len(places) - 1} more" if len(places) > 1 else ""
                yield Styled(f"{status}: {name}: {reason} ({places[0]}{more})", style)


def _where(row: dict[str, Any]) -> str:
    return f"{row['problem']['name']} {row['mode']}, {count(row['threads'], 'thread')}"


def _groups(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The rows by problem, mode and threads; in each group the fastest first, then those without a time."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(_where(row), []).append(row)
    for group in groups.values():
        group.sort(key=lambda row: row["median"] if row["status"] == "timed" else math.inf)
    return groups


def _each(rows: Sequence[dict[str, Any]]) -> Table:
    """A line a row, under a line for problem, mode and threads; narrow terminals drop columns, which the file has."""
    numbers = ("time", "times", "of limit", "eps")
    more = (
        Column("quartiles", True, spare=True),
        Column("first call", True, spare=True),
        Column("memory", True, spare=True),
    )
    made = Table("contender", *(Column(name, True) for name in numbers), *more)
    for where, group in _groups(rows).items():
        made.add_section()
        made.add_row(Styled(where, "bold"))
        for row in group:
            name = f"  {row['contender']['name']}"
            if row["status"] != "timed":
                made.add_row(name, Styled(row["status"], STYLES[row["status"]]))
                continue
            error, best = row.get("error_eps"), group[0]["median"]
            made.add_row(
                name,
                seconds(row["median"]) + ("" if row["stable"] else " ~"),
                factor(row["median"] / best),
                share(row.get("share")),
                NONE if error is None else f"{error:.1f}",
                f"{seconds(row['low'])} to {seconds(row['high'])}",
                seconds(row.get("first_call_s")),
                bytes_(row.get("added_memory_bytes")),
            )
    return made


def _fastest(rows: Sequence[dict[str, Any]]) -> Table:
    """A line for each problem, mode and number of threads: the fastest of ours, the fastest peer, their ratio."""
    made = table(
        "problem", "fastest of ours", "time", "of limit", "fastest peer", "its time", "ratio",
        right=("time", "of limit", "its time", "ratio"),
    )  # fmt: skip
    for where, group in _groups(rows).items():
        best: dict[str, dict[str, Any]] = {}
        for row in group:
            if row["status"] == "timed":
                best.setdefault(row["contender"]["kind"], row)
        ours, peer = best.get("ours"), best.get("peer")
        made.add_row(
            where,
            ours["contender"]["name"] if ours else "",
            seconds(ours["median"]) + ("" if ours["stable"] else " ~") if ours else "",
            share(ours.get("share")) if ours else "",
            peer["contender"]["name"] if peer else "",
            seconds(peer["median"]) + ("" if peer["stable"] else " ~") if peer else "",
            factor(peer["median"] / ours["median"]) if ours and peer else "",
        )
    return made
