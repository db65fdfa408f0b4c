"""Results as tables in Markdown; `page` has the same as HTML.

The best of ours against the best peer, the ranking, and what was not timed and why. A row that is wrong, refused, failed,
killed or too slow has no time here, only its reason.
"""

from collections.abc import Iterator
from typing import Any

from multirnn_bench import quantities
from multirnn_bench.results import Results
from multirnn_bench.standing import View, duel_mean, label, reasons, views

__all__ = ["markdown"]


def markdown(results: Results) -> str:
    """The report: a section for every mode and number of threads.

    Args:
        results: from `multirnn_bench.results.read`.
    """
    machine = results.header.get("machine", {})
    cores = f", {quantities.count(len(machine['allowed_cores']), 'core')}" if machine.get("allowed_cores") else ""
    lines = [f"# Recurrent layers on {_cell(results.processor)}", ""]
    lines += [
        f"Table {_cell(results.header.get('table', 'unnamed'))}{cores}, {quantities.count(len(results.rows), 'row')}; times are medians.",
        "",
    ]
    for view in views(results.rows):
        lines += [f"## {_capital(view.title)}", "", *_duel_lines(view), *_standing_lines(view), *_reason_lines(view)]
    return "\n".join(lines).rstrip() + "\n"


def _duel_lines(view: View) -> Iterator[str]:
    mean = duel_mean(view.duels)
    if mean is None:
        return
    yield "| problem | best of ours | time | share of limit | best peer | time | ratio |"
    yield "|---|---|--:|--:|---|--:|--:|"
    for duel in view.duels:
        ours, peer, ratio = duel.ours, duel.peer, duel.ratio
        verdict = "no difference" if ratio.holds_one else f"{ratio.value:.2f}"
        cells = (duel.problem, label(ours), quantities.seconds(ours["median"]), quantities.share(ours.get("share")))
        against = (label(peer), quantities.seconds(peer["median"]), f"{verdict} ({ratio.low:.2f}–{ratio.high:.2f})")
        yield _line(*cells, *against)
    lowest = min(duel.ratio.value for duel in view.duels)
    yield ""
    yield (
        f"The best peer takes **{mean.value:.2f}** times as long as the best of ours, in the geometric mean of "
        f"{quantities.count(len(view.duels), 'problem')} ({mean.low:.2f}–{mean.high:.2f}); the lowest ratio is {lowest:.2f}."
    )
    yield ""


def _standing_lines(view: View) -> Iterator[str]:
    yield "| contender | fastest on | times the best | share of limit | worst error | timed | not timed |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    for one in view.standings:
        behind = f"{one.behind.value:.2f}" if one.behind else "–"
        error = "–" if one.error is None else f"{one.error:.3g} eps"
        counts = (len(one.timed), len(one.rows) - len(one.timed))
        yield _line(one.name, one.wins, behind, quantities.share(one.share), error, *counts)
    yield ""


def _reason_lines(view: View) -> Iterator[str]:
    found = reasons(view.rows)
    if not found:
        return
    yield "Not timed:"
    yield ""
    for (name, status, reason), rows in found.items():
        yield f"- {_cell(name)}, {status}: {_cell(reason)} ({_cell(quantities.few([row['problem']['name'] for row in rows]))})"
    yield ""


def _line(*cells: Any) -> str:
    return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def _cell(value: Any) -> str:
    """Text escaped for a table of Markdown."""
    text = " ".join(str(value).split()).replace("\\", "\\\\")
    for character in "|<>*_`[]":
        text = text.replace(character, f"&#{ord(character)};" if character in "|<>" else f"\\{character}")
    return text


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
