"""Results as one HTML page that needs no network: charts, every row, and the machine.

A row that is wrong, refused, failed, killed or too slow has no time here, only its reason.
"""

from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

from multirnn_bench import charts, quantities
from multirnn_bench.charts import Palette
from multirnn_bench.machine import VARIABLES
from multirnn_bench.markup import Markup, join, tag
from multirnn_bench.results import Results
from multirnn_bench.standing import Row, View, duel_mean, label, reasons, views

__all__ = ["html"]


def html(results: Results) -> str:
    """The page.

    Charts and tables are complete without the script, which shows one view at a time, filters, sorts, and shows the row
    behind a mark. Nothing is loaded from anywhere, and every name and reason is escaped.

    Args:
        results: from `multirnn_bench.results.read`.
    """
    palette, seen = Palette(results.rows), views(results.rows)
    ids = {id(row): number for number, row in enumerate(results.rows)}
    title = f"Recurrent layers on {results.processor}"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("link", rel="icon", href="data:,"),  # or a browser asks for one
        tag("title", title),
        tag("style", _source("report.css")),
    )
    body = tag(
        "body",
        charts.MARKS,
        _top(title, results),
        _bar(seen, palette),
        tag(
            "main",
            *(_view(view, palette, ids) for view in seen),
            tag("p", "Nothing was run in this mode with so many threads.", class_="absent nothing", hidden=True),
            _all_rows(results.rows, palette, seen),
            _machine(results),
            tag(
                "footer",
                "Written by multirnn bench. Times are medians over interleaved rounds; every result was verified first.",
            ),
        ),
        tag("script", _source("report.js")),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _source(name: str) -> Markup:
    """A file beside this one: style or script."""
    return Markup(files("multirnn_bench").joinpath(name).read_text(encoding="utf-8"))


def _top(title: str, results: Results) -> Markup:
    machine = results.header.get("machine", {})
    facts = [
        quantities.count(len({row["problem"]["name"] for row in results.rows}), "problem"),
        quantities.count(len({label(row) for row in results.rows}), "contender"),
        quantities.count(len(results.rows), "row"),
        quantities.count(len(machine["allowed_cores"]), "core") if machine.get("allowed_cores") else None,
        machine.get("python"),
        machine.get("kernel"),
        results.header.get("settings", {}).get("started"),
    ]
    return tag(
        "header",
        tag("p", f"multirnn bench · table {results.header.get('table', 'unnamed')}", class_="kicker"),
        tag("h1", title),
        tag("p", " · ".join(str(fact) for fact in facts if fact), class_="facts"),
        class_="top",
    )


def _bar(seen: Sequence[View], palette: Palette) -> Markup:
    modes = [
        tag("button", mode, type="button", data_mode_choice=mode) for mode in dict.fromkeys(view.mode for view in seen)
    ]
    counts = [
        tag("button", quantities.count(threads, "thread"), type="button", data_threads_choice=threads)
        for threads in sorted({view.threads for view in seen})
    ]
    return tag(
        "div",
        tag(
            "div",
            tag("div", *modes, class_="choice", role="group", aria_label="mode"),
            tag("div", *counts, class_="choice", role="group", aria_label="threads"),
            tag("button", "Dark", type="button", class_="theme"),
            palette.legend(),
        ),
        class_="bar needs-script",
    )


def _view(view: View, palette: Palette, ids: Mapping[int, int]) -> Markup:
    return tag(
        "section",
        tag("h2", view.title, class_="view-title"),
        tag("div", *_tiles(view), class_="tiles"),
        _card(
            "Ours against theirs",
            "On every problem the best of our realisations against the best peer, each at its best. The thin line is the "
            "95 % interval of the ratio; where it crosses the middle there is no difference, and the bar is grey.",
            charts.duels(view, palette, ids),
        ),
        _card(
            "How much of the machine each one uses",
            "The least time that this machine allows, by the highest ceilings that were measured before the run and during it, "
            "over the time taken. Right of the line at 100 % the ceiling was measured too low, as on a shared machine it can be.",
            charts.shares(view, palette, ids),
        ),
        _card(
            "Who is fastest, and by how much",
            "Times over the best time of the row.",
            charts.heat(view, palette, ids),
        ),
        _card(
            "Time over size",
            "A call's time over its work, both logarithmic. The green line joins the best of ours, the grey one the best peers; "
            "who is behind them is pale. The grey floor is the machine's limit.",
            charts.times(view, palette, ids),
        ),
        _card(
            "Where the time goes",
            "From the start of a process to the end of a hundred calls: what is paid once, and what is paid again.",
            charts.where_time_goes(view, palette),
        ),
        _card("Standing", "Over all problems of this view.", _standings(view, palette)),
        _card(
            "Errors",
            "Every result was held against the float64 reference before anything was timed. Right of the dashed line it is wrong.",
            charts.errors(view, palette, ids),
        ),
        _not_timed(view, palette),
        class_="view",
        data_mode=view.mode,
        data_threads=view.threads,
    )


def _card(title: str, words: str, *content: Markup) -> Markup:
    return tag("section", tag("h2", title), tag("p", words), *content, class_="card")


def _tiles(view: View) -> Iterator[Markup]:
    if mean := duel_mean(view.duels):
        lowest = min(duel.ratio.value for duel in view.duels)
        over = f"geometric mean of {len(view.duels)} ({mean.low:.2f} to {mean.high:.2f}); lowest {lowest:.2f}×"
        words = f"as fast as the best peer, the best of ours: {over if len(view.duels) > 1 else 'on one problem'}"
        yield _tile(f"{quantities.factor(mean.value)}×", words)
    if view.best:
        first = view.standings[0]
        yield _tile(
            first.name, f"fastest most often: on {first.wins} of {quantities.count(len(view.best), 'problem')}", "words"
        )
    if known := [row for row in view.rows if row["status"] == "timed" and row.get("share") is not None]:
        nearest = max(known, key=lambda row: float(row["share"]))
        yield _tile(
            quantities.share(nearest["share"]),
            f"nearest to the limit: {label(nearest)} on {nearest['problem']['name']}",
        )
    timed = sum(row["status"] == "timed" for row in view.rows)
    others = {status: sum(row["status"] == status for row in view.rows) for status in charts.LETTERS}
    rest = ", ".join(f"{count} {status}" for status, count in others.items() if count) or "all that was asked for"
    yield _tile(f"{timed} timed", rest)


def _tile(figure: str, words: str, classes: str = "") -> Markup:
    return tag("div", tag("b", figure, class_=classes or None), tag("span", words), class_="tile")


def _standings(view: View, palette: Palette) -> Markup:
    heads = ("contender", "fastest on", "times the best", "share of limit", "worst error", "timed", "not timed")
    head = tag("tr", *(tag("th", name, class_="right" if place else None) for place, name in enumerate(heads)))
    body = []
    for one in view.standings:
        behind = (
            f"{quantities.factor(one.behind.value)} ({one.behind.low:.2f}–{one.behind.high:.2f})" if one.behind else "–"
        )
        cells = (
            str(one.wins),
            behind,
            quantities.share(one.share),
            "–" if one.error is None else f"{one.error:.3g} eps",
            str(len(one.timed)),
            str(len(one.rows) - len(one.timed)),
        )
        name = tag("td", palette.swatch(one.name), one.name)
        body.append(
            tag("tr", name, *(tag("td", cell, class_="right") for cell in cells), class_=palette.classes(one.name))
        )
    return tag("div", tag("table", tag("thead", head), tag("tbody", *body), class_="plain"), class_="scroll")


def _not_timed(view: View, palette: Palette) -> Markup | None:
    found = reasons(view.rows)
    if not found:
        return None
    body = [
        tag(
            "tr",
            tag("td", palette.swatch(name), name),
            tag("td", tag("span", status, class_=f"status {status}")),
            tag("td", len(rows), class_="right"),
            tag("td", reason, class_="long"),
            tag("td", quantities.few([row["problem"]["name"] for row in rows]), class_="long"),
            class_=palette.classes(name),
        )
        for (name, status, reason), rows in found.items()
    ]
    head = tag("tr", *(tag("th", name) for name in ("contender", "status", "rows", "reason", "problems")))
    table = tag("table", tag("thead", head), tag("tbody", *body), class_="plain")
    return _card(
        "Not timed, and why", "None of these has a time anywhere on this page.", tag("div", table, class_="scroll")
    )


# --- Every row -------------------------------------------------------------------------------------------------------

COLUMNS = (
    *("problem", "mode", "threads", "contender", "status", "time a call", "times the best", "share of limit", "error"),
    *("first call", "prepare", "import", "peak memory", "reason"),
)
RIGHT = {"threads", *COLUMNS[5:13]}


def _all_rows(rows: Sequence[Row], palette: Palette, seen: Sequence[View]) -> Markup:
    of = {(view.mode, view.threads): view for view in seen}
    body = [
        made
        for number, row in enumerate(rows)
        for made in (_row(number, row, of[row["mode"], row["threads"]], palette), _details(row))
    ]
    head = tag("tr", *(tag("th", name, scope="col", class_="right" if name in RIGHT else None) for name in COLUMNS))
    statuses = dict.fromkeys(row["status"] for row in rows)
    tools = tag(
        "div",
        tag("input", type="search", id="search", placeholder="Filter: words of a row", aria_label="filter"),
        tag(
            "select",
            tag("option", "any status", value=""),
            *(tag("option", one) for one in statuses),
            id="status",
            aria_label="status",
        ),
        tag("label", tag("input", type="checkbox", id="every"), " all modes and threads"),
        tag("span", class_="count"),
        class_="filter needs-script",
    )
    table = tag("table", tag("thead", head), tag("tbody", *body), class_="plain rows")
    return _card(
        "Every row",
        "Press a head to sort, a row for all that is known of it.",
        tools,
        tag("div", table, class_="rows-box"),
    )


def _row(number: int, row: Row, view: View, palette: Palette) -> Markup:
    timed = row["status"] == "timed"
    name = label(row)
    unstable = timed and row.get("stable") is False
    mark = tag("span", " ±", class_="unstable", title="unstable: the rounds are far apart") if unstable else None
    error = row.get("error_eps")
    measured: tuple[tuple[Any, Any], ...] = (
        (row["median"] if timed else None, join(quantities.seconds(row["median"]), mark) if timed else "–"),
        (view.behind(row), quantities.factor(view.behind(row))) if timed else (None, "–"),
        (row.get("share") if timed else None, quantities.share(row.get("share") if timed else None)),
        (error, "–" if error is None else f"{error:.3g} eps"),
        *((row.get(part), quantities.seconds(row.get(part))) for part in ("first_call_s", "prepare_s", "import_s")),
        (row.get("peak_memory_bytes"), quantities.bytes_(row.get("peak_memory_bytes"))),
    )
    return tag(
        "tr",
        tag("td", row["problem"]["name"]),
        tag("td", row["mode"]),
        tag("td", row["threads"], class_="right"),
        tag("td", palette.swatch(name), name),
        tag("td", tag("span", row["status"], class_=f"status {row['status']}")),
        *(
            tag("td", text, class_="right", data_value="" if value is None else f"{value:.6g}")
            for value, text in measured
        ),
        tag("td", row.get("reason") or "", class_="long"),
        class_="row",
        id=f"row-{number}",
        data_id=number,
        data_mode=row["mode"],
        data_threads=row["threads"],
        data_status=row["status"],
        data_contender=palette.numbers[name],
    )


def _details(row: Row) -> Markup:
    pairs = (join(tag("dt", name), tag("dd", value)) for name, value in _facts(row) if value)
    return tag("tr", tag("td", tag("dl", *pairs), colspan=len(COLUMNS), class_="more"), class_="detail")


def _facts(row: Row) -> Iterator[tuple[str, str]]:
    """All known facts of a row, in words; unknown ones are empty."""
    problem, contender = row["problem"], row["contender"]
    yield "shape", quantities.shape(problem)
    yield (
        "cell",
        ", ".join(str(problem[name]) for name in ("cell", "activation", "dtype") if problem.get(name))
        + (f", bias {problem['bias']}" if problem.get("bias") else ""),
    )
    yield (
        "what ran",
        ", ".join(str(contender[name]) for name in ("kind", "implementation", "plan") if contender.get(name)),
    )
    yield "versions", _pairs(contender.get("versions"))
    flags = contender.get("flags") or {}
    yield "flags", _pairs({name: flags[name] for name in flags if name not in VARIABLES})  # those are the threads
    blas = contender.get("blas") or ()
    yield "libraries", "; ".join(" ".join(f"{name} {value}" for name, value in one.items() if value) for one in blas)
    yield "parameters", f"{row['parameters']:,}" if row.get("parameters") else ""
    yield "work", f"{quantities.operations(row.get('flops'))}, {quantities.bytes_(row.get('bytes'))} moved"
    if row["status"] == "timed":
        yield "rate", quantities.operations(row["flops"] / row["median"], per="/s") if row.get("flops") else ""
        yield "quartiles", f"{quantities.seconds(row.get('low'))} to {quantities.seconds(row.get('high'))}"
        rounds = ", ".join(quantities.seconds(value) for value in row["rounds"])
        yield "rounds", f"{len(row['rounds'])} of {row.get('repetitions') or 1} calls: {rounds}"
        yield "stable", "no: the rounds are far apart" if row.get("stable") is False else ""
        yield "from NumPy to NumPy", quantities.seconds(row["boundary_median"]) if row.get("boundary_median") else ""
        yield "memory added", quantities.bytes_(row["added_memory_bytes"]) if row.get("added_memory_bytes") else ""
        yield "measured at", str(row.get("measured_at") or "")
    yield "limit", quantities.seconds(row["limit_s"]) if row.get("limit_s") else ""
    yield "allowed error", f"{row['allowed_eps']:g} eps" if row.get("allowed_eps") else ""
    yield "time stolen by the host", quantities.share(row["steal"]) if row.get("steal") else ""
    yield "taken by the host, told or not", quantities.share(row["taken"]) if row.get("taken") else ""
    yield "reason", row.get("reason") or ""


def _pairs(values: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{name} {value}" for name, value in (values or {}).items())


def _machine(results: Results) -> Markup:
    """The header of the file, a line a fact."""
    header = results.header
    facts = {
        **header.get("machine", {}),
        **{f"setting: {name}": value for name, value in header.get("settings", {}).items()},
    }
    lines = [
        join(tag("dt", name.replace("_", " ")), tag("dd", _value(name, value)))
        for name, value in facts.items()
        if value
    ]
    for threads, found in header.get("limits", {}).get("ceilings", {}).items():
        words = [f"{dtype} {quantities.operations(rate, per='/s')}" for dtype, rate in found["products"].items()]
        words += [f"{level} {quantities.bytes_(rate, per='/s')}" for level, rate in found["bandwidths"].items()]
        lines.append(
            join(tag("dt", f"ceilings, {quantities.count(int(threads), 'thread')}"), tag("dd", ", ".join(words)))
        )
    return _card("The machine", "What the figures were taken on, and with which settings.", tag("dl", *lines))


def _is_flat(value: Any) -> bool:
    """Whether a setting is a word or a list of words; the problems of a table are in its rows."""
    return not isinstance(value, list | dict) or not any(isinstance(one, list | dict) for one in value)


def _value(name: str, value: Any) -> str:
    if name == "caches":
        return ", ".join(f"{level} {quantities.bytes_(size)}" for level, size in value.items())
    if name.endswith("_bytes"):
        return quantities.bytes_(value)
    if isinstance(value, Mapping):
        return _pairs(value)
    if isinstance(value, list | tuple):
        return ", ".join(_pairs(one) if isinstance(one, Mapping) else str(one) for one in value)
    return str(value)
