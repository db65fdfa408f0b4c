"""Results as one HTML page that needs no network: charts, every row, and the machine; Jinja2 fills in `templates/`.

A row that is wrong, refused, failed, killed or too slow has no time here, only its reason.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from multirnn.errors import MissingFramework
from multirnn_bench import charts, quantities
from multirnn_bench.machine import VARIABLES
from multirnn_bench.results import Results
from multirnn_bench.standing import label, views

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["html"]


def html(results: Results) -> str:
    """The page of what `results.read` returns; `MissingFramework` without Jinja2.

    Charts and tables are complete without the script, which shows one view at a time, filters, sorts, and shows the row
    behind a mark. Nothing is loaded from anywhere, and every name and reason is escaped.
    """
    rows = [row | {"number": number, "label": label(row)} for number, row in enumerate(results.rows)]
    header, seen = results.header, views(rows)
    for view in seen:
        for row in view.timed:
            row["behind"] = view.behind(row)
    return (
        _environment()
        .get_template("page.html")
        .render(
            processor=results.processor,
            header=header,
            rows=rows,
            views=seen,
            looks=charts.looks(rows),
            machine=header.get("machine", {}),
            settings=header.get("settings", {}),
        )
    )


def _environment() -> "Environment":
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ModuleNotFoundError as error:
        if error.name != "jinja2":
            raise
        raise MissingFramework(
            'a page needs Jinja2, which is not installed: pip install "multirnn[bench]"; --markdown needs nothing'
        ) from error
    made = Environment(
        loader=PackageLoader("multirnn_bench"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for module in (charts, quantities):
        made.globals |= {name: getattr(module, name) for name in module.__all__}
    made.globals |= {"warmth": _warmth, "flags": _flags}
    made.filters["seconds"] = quantities.seconds
    return made


def _warmth(behind: float) -> int:
    """The strength of a cell's colour in percent: it fades from 1 to 8 times the best time, in the logarithm."""
    return max(0, round(100 * (1 - math.log2(behind) / 3)))


def _flags(contender: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of a contender, but for the numbers of threads."""
    return {name: value for name, value in (contender.get("flags") or {}).items() if name not in VARIABLES}
