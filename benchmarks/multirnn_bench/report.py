"""Results as tables in Markdown: the best of ours against the best peer, the ranking, and what was not timed and why.

A row that is wrong, refused, failed, killed or too slow has no time here, only its reason.
"""

from collections.abc import Iterator
from typing import Any

from multirnn_bench.quantities import NONE, count, eps, few, seconds, share
from multirnn_bench.results import Results
from multirnn_bench.standing import View, label, views

__all__ = ["markdown"]


def markdown(results: Results) -> str:
    """The report on what `results.read` returns: a section for every mode and number of threads."""
    allowed = results.header.get("machine", {}).get("allowed_cores")
    cores = f", {count(len(allowed), 'core')}" if allowed else ""
    table = _escaped(results.header.get("table", "unnamed"))
    lines = [f"# Recurrent layers on {_escaped(results.processor)}", ""]
    lines += [f"Table {table}{cores}, {count(len(results.rows), 'row')}; times are medians.", ""]
    for view in views(results.rows):
        lines += [f"## {view.title[:1].upper()}{view.title[1:]}", "", *_sections(view)]
    return "\n".join(lines).rstrip() + "\n"


def _sections(view: View) -> Iterator[str]:
    if mean := view.duel_mean:
        yield from (
            "| problem | best of ours | time | share of limit | best peer | time | ratio |",
            "|---|---|--:|--:|---|--:|--:|",
        )
        for duel in view.duels:
            ours, peer, ratio = duel.ours, duel.peer, duel.ratio
            verdict = "no difference" if ratio.holds_one else f"{ratio.value:.2f}"
            cells = duel.problem, label(ours), seconds(ours["median"]), share(ours.get("share"))
            yield _line(*cells, label(peer), seconds(peer["median"]), f"{verdict} ({ratio.low:.2f}–{ratio.high:.2f})")
        lowest = min(duel.ratio.value for duel in view.duels)
        yield ""
        yield (
            f"The best peer takes **{mean.value:.2f}** times as long as the best of ours, in the geometric mean of "
            f"{count(len(view.duels), 'problem')} ({mean.low:.2f}–{mean.high:.2f}); the lowest ratio is {lowest:.2f}."
        )
        yield ""
    yield from (
        "| contender | fastest on | times the best | share of limit | worst error | timed | not timed |",
        "|---|--:|--:|--:|--:|--:|--:|",
    )
    for one in view.standings:
        behind = f"{one.behind.value:.2f}" if one.behind else NONE
        counts = len(one.timed), len(one.rows) - len(one.timed)
        yield _line(one.name, one.wins, behind, share(one.share), eps(one.error), *counts)
    yield ""
    if view.reasons:
        yield from ("Not timed:", "")
        for (name, status, reason), rows in view.reasons.items():
            problems = few([row["problem"]["name"] for row in rows])
            yield f"- {_escaped(name)}, {status}: {_escaped(reason)} ({_escaped(problems)})"
        yield ""


def _line(*cells: Any) -> str:
    return f"| {' | '.join(map(_escaped, cells))} |"


def _escaped(value: Any) -> str:
    """Text for a cell of a Markdown table."""
    text = " ".join(str(value).split()).replace("\\", "\\\\")
    for character in "|<>*_`[]":
        text = text.replace(character, f"&#{ord(character)};" if character in "|<>" else f"\\{character}")
    return text
