"""The charts of a report, as HTML and inline SVG that need nothing else.

One language for all of them: the colour says on which framework a contender runs, the mark which of its layers it is:
a disc for ours made fast, a square where its weights are frozen, a ring for ours that is the framework's own layer, a
diamond for a peer. Widths are in percent
and text in pixels, so that a chart narrows on a phone and its text does not.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from multirnn.cells import CELLS
from multirnn.layer import FAST, FROZEN, NATIVE
from multirnn_bench import quantities
from multirnn_bench.markup import Markup, join, tag
from multirnn_bench.standing import View, label

__all__ = ["MARKS", "Palette", "duels", "errors", "heat", "shares", "times", "where_time_goes"]

Row = Mapping[str, Any]

FAMILIES = ("numpy", "torch", "keras", "jax", "onnx", "flax")
"""Names searched for in a contender's; each has a colour of its own, `--f0` and on, and all others share one."""

MARKS = tag(
    "svg",
    tag(
        "defs",
        tag("circle", id="fast", r=5),
        tag("rect", id="frozen", x=-4.4, y=-4.4, width=8.8, height=8.8),
        tag("circle", id="native", r=4, class_="hollow"),
        tag("path", id="peer", d="M0-5.6 5.6 0 0 5.6-5.6 0z"),
    ),
    width=0,
    height=0,
    class_="marks",
    aria_hidden="true",
)
"""The marks, which every chart refers to."""

MADE = (NATIVE, FAST, FROZEN)
LETTERS = {"wrong": "W", "refused": "R", "failed": "F", "killed": "K", "slow": "S"}


class Palette:
    """Which class and which mark each contender has, everywhere in a report.

    Args:
        rows: all of a report.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        first: dict[str, Row] = {}
        for row in rows:
            first.setdefault(label(row), row)
        self.contenders = dict(sorted(first.items(), key=lambda item: self._order(*item)))
        self.numbers = {name: number for number, name in enumerate(self.contenders)}

    def _order(self, name: str, row: Row) -> tuple[bool, int, int]:
        """Ours first, then by framework, its own layer before the fast and the frozen one."""
        contender = row["contender"]
        made = contender.get("implementation")
        return contender["kind"] != "ours", self._family(name), MADE.index(made) if made in MADE else 0

    def _family(self, name: str) -> int:
        return next((place for place, word in enumerate(FAMILIES) if word in name.lower()), len(FAMILIES))

    def classes(self, name: str) -> str:
        """Of everything that stands for this contender: its colour, and what the legend switches by."""
        return f"c f{self._family(name)} c{self.numbers[name]}"

    def mark(self, name: str, **attributes: Any) -> Markup:
        """The mark of this contender at a place in an SVG."""
        contender = self.contenders[name]["contender"]
        made = contender.get("implementation")
        which = "peer" if contender["kind"] == "peer" else made if made in MADE else NATIVE
        return tag("use", href=f"#{which}", class_=self.classes(name), **attributes)

    def swatch(self, name: str) -> Markup:
        """The mark by itself, before a name in text."""
        return tag("svg", self.mark(name, x=7, y=7), class_="swatch")

    def legend(self) -> Markup:
        """All contenders as buttons that show them alone, or not at all."""
        buttons = (
            tag("button", self.swatch(name), name, type="button", class_=f"chip c{number}", data_contender=number)
            for name, number in self.numbers.items()
        )
        return tag("div", *buttons, class_="legend", role="group", aria_label="contenders")


# --- A row a problem -------------------------------------------------------------------------------------------------


def shares(view: View, palette: Palette, ids: Mapping[int, int]) -> Markup:
    """The share of the machine's limit that each contender reaches, a line a problem, from 0 to at least 100 %.

    Args:
        view: what is shown.
        palette: of the report.
        ids: the number of each row in the table of all rows, by the identity of the row.
    """
    known = [row for row in view.rows if row["status"] == "timed" and row.get("share") is not None]
    if not known:
        return _nothing("no share of the limit is known: the limits were not measured")
    last = 20 * math.ceil(5 * max(1.0, *(float(row["share"]) for row in known)))
    step = 20 * math.ceil(last / 200)
    ticks = [(f"{100 * tick / last:.2f}%", f"{tick} %") for tick in range(0, last + 1, step)]

    def place(row: Row) -> str:
        return f"{100 * 100 * float(row['share']) / last:.2f}%"

    grid = tag("g", *(tag("line", x1=x, x2=x, y1=0, y2=26) for x, _ in ticks), class_="grid")
    limit = tag("line", x1=f"{1e4 / last:.2f}%", x2=f"{1e4 / last:.2f}%", y1=0, y2=26, class_="one")
    lines = []
    for problem, rows in view.problems.items():
        # The best is drawn last, on top of all.
        there = sorted((row for row in known if row["problem"]["name"] == problem), key=lambda row: float(row["share"]))
        if not there:
            continue
        best = there[-1]
        marks = [palette.mark(label(row), x=place(row), y=13, data_row=ids[id(row)]) for row in there]
        span = tag("line", x1=place(there[0]), x2=place(best), y1=13, y2=13, class_="span")
        note = join(tag("b", quantities.share(best["share"])), " ", tag("span", label(best), class_="of"))
        lines.append(_line(_problem(problem, next(iter(rows.values()))), _track(grid, limit, span, *marks), note))
    return _lines(lines, _axis(ticks), "share of the limit")


def duels(view: View, palette: Palette, ids: Mapping[int, int]) -> Markup:
    """The best of ours against the best peer, a line a problem: to the right ours is faster, to the left the peer."""
    if not view.duels:
        return _nothing("no problem was timed by one of ours and by a peer")
    ends = [math.log2(end) for duel in view.duels for end in (duel.ratio.low, duel.ratio.high)]
    left, right = min(-0.5, *ends) - 0.1, max(1, *ends) + 0.1

    def place(ratio: float) -> float:
        return 100 * (math.log2(ratio) - left) / (right - left)

    step = max(1, math.ceil((right - left) / 6))
    powers = [power for power in range(math.ceil(left), math.floor(right) + 1) if power % step == 0]
    ticks = [(f"{place(2.0**power):.2f}%", f"{2.0**power:g}×" if power >= 0 else f"1/{2**-power}×") for power in powers]
    zero = place(1)
    lines = []
    for duel in view.duels:
        at, low, high = place(duel.ratio.value), place(duel.ratio.low), place(duel.ratio.high)
        side = "even" if duel.ratio.holds_one else "won" if duel.ratio.value > 1 else "lost"
        bar = tag(
            "rect", x=f"{min(at, zero):.2f}%", y=6, width=f"{abs(at - zero):.2f}%", height=14, rx=2,
            class_=f"duel {side}", data_row=ids[id(duel.ours)],
        )  # fmt: skip
        whisker = tag("line", x1=f"{low:.2f}%", x2=f"{high:.2f}%", y1=13, y2=13, class_="whisker")
        centre = tag("line", x1=f"{zero:.2f}%", x2=f"{zero:.2f}%", y1=0, y2=26, class_="one")
        names = join(
            palette.swatch(label(duel.ours)),
            label(duel.ours),
            tag("i", " to "),
            palette.swatch(label(duel.peer)),
            label(duel.peer),
        )
        note = join(tag("b", f"{quantities.factor(duel.ratio.value)}×"), " ", tag("span", names, class_="of"))
        grid = tag("g", *(tag("line", x1=x, x2=x, y1=0, y2=26) for x, _ in ticks), class_="grid")
        lines.append(_line(_problem(duel.problem, duel.ours), _track(grid, centre, bar, whisker), note))
    return _lines(lines, _axis(ticks), "time of the best peer over the best of ours", "long")


def errors(view: View, palette: Palette, ids: Mapping[int, int]) -> Markup:
    """The error of every verified result in eps, a line a contender; to the right of the bound it is wrong."""
    known = [row for row in view.rows if row.get("error_eps") is not None]
    if not known:
        return _nothing("no errors were recorded")
    bounds = [row["allowed_eps"] for row in known if row.get("allowed_eps")]
    ends = [max(0.1, float(row["error_eps"])) for row in known] + bounds
    low, high = math.floor(math.log10(min(ends))), math.ceil(math.log10(max(ends)) + 0.1)

    def place(eps: float) -> str:
        return f"{1 + 98 * (math.log10(max(eps, 10.0**low)) - low) / (high - low):.2f}%"

    step = max(1, math.ceil((high - low) / 6))
    ticks = [
        (place(10.0**power), f"{10.0**power:g}" if power < 5 else f"1e{power}") for power in range(low, high + 1, step)
    ]
    lines = []
    for name in palette.numbers:
        own = [row for row in known if label(row) == name]
        if not own:
            continue
        bound = [
            tag("line", x1=place(eps), x2=place(eps), y1=0, y2=26, class_="bound")
            for eps in sorted({row["allowed_eps"] for row in own if row.get("allowed_eps")})
        ]
        marks = [palette.mark(name, x=place(row["error_eps"]), y=13, data_row=ids[id(row)]) for row in own]
        worst = max(float(row["error_eps"]) for row in own)
        wrong = sum(row["status"] == "wrong" and label(row) == name for row in view.rows)
        note = join(tag("b", f"{worst:.3g} eps"), tag("span", f" {wrong} wrong", class_="bad") if wrong else None)
        grid = tag("g", *(tag("line", x1=x, x2=x, y1=0, y2=26) for x, _ in ticks), class_="grid")
        lines.append(_line(join(palette.swatch(name), name), _track(grid, *bound, *marks), note, palette.classes(name)))
    return _lines(lines, _axis(ticks), "largest difference from the float64 reference, in eps of the dtype")


def _line(name: Any, track: Markup, note: Any, classes: str = "") -> Markup:
    return tag(
        "div", tag("div", name, class_="name"), track, tag("div", note, class_="note"), class_=f"line {classes}".strip()
    )


def _lines(lines: Sequence[Markup], axis: Markup, title: str, classes: str = "") -> Markup:
    foot = tag("div", tag("div", class_="name"), axis, tag("div", class_="note"), class_="line foot")
    return tag("div", *lines, foot, tag("p", title, class_="axis-title"), class_=f"lines {classes}".strip())


def _track(*drawn: Markup) -> Markup:
    return tag("svg", *drawn, class_="track", height=26, width="100%")


def _axis(ticks: Sequence[tuple[str, str]]) -> Markup:
    """Words under an axis; those at its ends stay within it."""
    ends = {"0.00%": "start", "100.00%": "end"}
    words = (tag("text", text, x=x, y=14, text_anchor=ends.get(x, "middle")) for x, text in ticks)
    return tag("svg", *words, class_="track axis", height=20, width="100%")


def _problem(name: str, row: Row) -> Markup:
    return tag("span", name, title=quantities.shape(row["problem"]))


def _nothing(why: str) -> Markup:
    return tag("p", f"Nothing to draw: {why}.", class_="nothing")


# --- A column a contender --------------------------------------------------------------------------------------------


def heat(view: View, palette: Palette, ids: Mapping[int, int]) -> Markup:
    """The time of every contender on every problem over the best time of that problem; letters where there is none."""
    names = [name for name in palette.numbers if any(label(row) == name for row in view.rows)]
    heads = (
        tag("th", tag("span", palette.swatch(name), name), scope="col", class_=f"tilted {palette.classes(name)}")
        for name in names
    )
    head = tag("tr", tag("th", "problem", scope="col"), *heads)
    body = []
    for problem, rows in view.problems.items():
        cells = [_heat_cell(view, rows.get(name), ids, palette.classes(name)) for name in names]
        body.append(tag("tr", tag("th", _problem(problem, next(iter(rows.values()))), scope="row"), *cells))
    table = tag("table", tag("thead", head), tag("tbody", *body), class_="heat")
    met = dict.fromkeys(row["status"] for row in view.rows if row["status"] != "timed")
    key = [join(tag("b", LETTERS.get(status, "?"), class_=f"cell {status}"), f" {status}") for status in met]
    scale = join(tag("b", "1.0", class_="cell best"), " the fastest; ", "other numbers: how many times its time")
    return join(tag("div", table, class_="scroll"), tag("p", scale, *(join(" · ", one) for one in key), class_="key"))


def _heat_cell(view: View, row: Row | None, ids: Mapping[int, int], classes: str) -> Markup:
    if row is None:
        return tag("td", "", class_="none")
    if row["status"] != "timed":
        return tag("td", LETTERS.get(row["status"], "?"), class_=f"{row['status']} {classes}", data_row=ids[id(row)])
    behind = view.behind(row)
    # From 1 to 8 times the best time, in the logarithm, the colour fades.
    heat = max(0, round(100 * (1 - math.log2(behind) / 3)))
    text = f"{behind:.1f}" if behind < 9.95 else f"{behind:.0f}" if behind < 999.5 else ">999"
    best = "best " if row is view.best[row["problem"]["name"]] else ""
    return tag("td", text, class_=f"{best}{classes}", style=f"--heat:{heat}%", data_row=ids[id(row)])


def where_time_goes(view: View, palette: Palette, calls: int = 100) -> Markup:
    """The waits of a user: import, preparation, first call, many calls; medians over problems, a line a contender."""
    parts: dict[str, list[float]] = {}
    for name in palette.numbers:
        own = [row for row in view.rows if row["status"] == "timed" and label(row) == name]
        if own:
            columns = [[float(row.get(part) or 0) for row in own] for part in ("import_s", "prepare_s", "first_call_s")]
            parts[name] = [
                *(_middle(column) for column in columns),
                calls * _middle([float(row["median"]) for row in own]),
            ]
    if not parts:
        return _nothing("nothing was timed")
    longest = max(sum(values) for values in parts.values())
    lines = []
    for name, values in sorted(parts.items(), key=lambda item: sum(item[1])):
        bars, at = [], 0.0
        for place, value in enumerate(values):
            width = 100 * value / longest
            bars.append(
                tag(
                    "rect",
                    tag("title", f"{PARTS[place]}: {quantities.seconds(value)}"),
                    x=f"{at:.2f}%",
                    y=5,
                    width=f"{width:.2f}%",
                    height=16,
                    class_=f"part{place}",
                )
            )
            at += width
        note = join(
            tag("b", quantities.seconds(sum(values))),
            " ",
            tag("span", f"first after {quantities.seconds(sum(values[:3]))}", class_="of"),
        )
        lines.append(_line(join(palette.swatch(name), name), _track(*bars), note, palette.classes(name)))
    names = (*PARTS[:3], f"{calls:,} calls")
    key = [join(tag("i", class_=f"box part{place}"), f" {name} ") for place, name in enumerate(names)]
    ticks = [
        (f"{100 * value / longest:.2f}%", quantities.seconds(value) if value else "0")
        for value in _round_ticks(longest)
    ]
    return join(
        tag("p", *key, class_="key"),
        _lines(lines, _axis(ticks), "time from the start of the process, each part a median over problems"),
    )


PARTS = ("import", "prepare", "first call", "calls")


def _round_ticks(longest: float) -> list[float]:
    """From 0 in steps of 1, 2 or 5 of a power of ten, at most five of them."""
    power = 10.0 ** math.floor(math.log10(longest))
    step = next(part * power for part in (0.2, 0.5, 1, 2) if longest < 5.5 * part * power)
    return [step * place for place in range(int(longest / step) + 1)]


def _middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


# --- Time over size --------------------------------------------------------------------------------------------------

WIDTH, HEIGHT = 380, 290
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 38


def times(view: View, palette: Palette, ids: Mapping[int, int]) -> Markup:
    """Time over the work in a call, both logarithmic, a panel a cell: a mark a contender, and the limit below them all.

    Two lines, through the best of ours and the best peer; one for each of twenty contenders would hide all of them.
    """
    timed = [row for row in view.rows if row["status"] == "timed" and row.get("flops")]
    cells = dict.fromkeys(row["problem"]["cell"] for row in timed)
    panels = [_panel(cell, [row for row in timed if row["problem"]["cell"] == cell], palette, ids) for cell in cells]
    return tag("div", *panels, class_="panels") if panels else _nothing("nothing was timed")


def _panel(cell: str, rows: Sequence[Row], palette: Palette, ids: Mapping[int, int]) -> Markup:
    limits = {float(row["flops"]): float(row["limit_s"]) for row in rows if row.get("limit_s")}
    across = _Scale([float(row["flops"]) for row in rows], LEFT, WIDTH - RIGHT)
    up = _Scale([float(row["median"]) for row in rows] + list(limits.values()), HEIGHT - BOTTOM, TOP)
    drawn = [
        *(tag("line", x1=at, x2=at, y1=TOP, y2=HEIGHT - BOTTOM) for _, at in across.ticks),
        *(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at) for _, at in up.ticks),
    ]
    texts = [
        *(
            tag("text", quantities.operations(value), x=at, y=HEIGHT - BOTTOM + 16, class_="middle")
            for value, at in across.ticks
        ),
        *(
            tag("text", quantities.seconds(value), x=LEFT - 6, y=f"{float(at) + 4:.1f}", class_="end")
            for value, at in up.ticks
        ),
    ]
    floor = [(across.at(size), up.at(least)) for size, least in sorted(limits.items())]
    limit = []
    if floor:
        outline = " ".join(f"{x},{y}" for x, y in floor)
        bottom = HEIGHT - BOTTOM
        limit = [
            tag("polygon", points=f"{floor[0][0]},{bottom} {outline} {floor[-1][0]},{bottom}", class_="floor"),
            tag("polyline", points=outline, class_="floor-line"),
        ]
    best: dict[tuple[str, str], Row] = {}
    for row in sorted(rows, key=lambda row: row["median"], reverse=True):
        best[row["contender"]["kind"], row["problem"]["name"]] = row
    lines = []
    for kind in ("peer", "ours"):
        own = sorted((row for (of, _), row in best.items() if of == kind), key=lambda row: row["flops"])
        points = " ".join(f"{across.at(row['flops'])},{up.at(row['median'])}" for row in own)
        if len(own) > 1:
            lines.append(tag("polyline", points=points, class_=f"path {kind}"))
    leading = {id(row) for row in best.values()}
    marks = [
        palette.mark(
            label(row),
            x=across.at(row["flops"]),
            y=up.at(row["median"]),
            data_row=ids[id(row)],
            **({} if id(row) in leading else {"opacity": 0.3}),
        )
        for row in sorted(rows, key=lambda row: id(row) in leading)
    ]
    picture = tag(
        "svg",
        tag("g", *drawn, class_="grid"), *limit, *lines, *marks, tag("g", *texts, class_="ticks"),
        tag("text", "work in a call", x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 5, class_="middle quiet"),
        viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=f"{cell}: time over work",
    )  # fmt: skip
    return tag("figure", tag("figcaption", _cell_title(cell)), picture)


def _cell_title(cell: str) -> str:
    """What people call it, in short."""
    return CELLS[cell].title.partition(" (")[0].partition(",")[0] if cell in CELLS else cell


class _Scale:
    """A logarithmic axis from `start` to `end` in the units of an SVG that shows all values."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        low, high = (math.log10(limit(values)) for limit in (min, max))
        room = max(0.04 * (high - low), (1.01 - high + low) / 2)  # a power of ten, at least, is in it
        self.low, self.high, self.start, self.end = low - room, high + room, start, end

    def at(self, value: float) -> str:
        part = (math.log10(value) - self.low) / (self.high - self.low)
        return f"{self.start + part * (self.end - self.start):.1f}"

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Powers of ten, or every second or third, so that there are at most six."""
        powers = range(math.ceil(self.low), math.floor(self.high) + 1)
        step = max(1, math.ceil(len(powers) / 6))
        return [(10.0**power, self.at(10.0**power)) for power in powers[::step]]
