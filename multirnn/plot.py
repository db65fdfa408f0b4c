"""A picture of comparisons: the error of every backend over the time steps. Needs matplotlib, the extra `plot`."""

import os
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from multirnn.compare import TOLERANCE, Comparison
from multirnn.errors import InvalidCall, MissingFramework

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["picture_format", "plot_errors", "write_figure"]


def plot_errors(comparisons: Mapping[str, Comparison]) -> "Figure":
    """The error over the time steps, a column a comparison: of the outputs above, of the input's gradient below.

    Args:
        comparisons: by the title of their column.

    Returns:
        A matplotlib figure that belongs to no window; `figure.savefig(path)` writes it.

    Raises:
        MissingFramework: matplotlib is not installed.
    """
    _require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(7.5, 4.2 * len(comparisons) + 1), 6.5), layout="constrained")
    figure.suptitle("How far each backend is from NumPy in float64: max|a−b| at each step, over max|b|")
    panels = figure.subplots(2, len(comparisons), sharex="col", sharey=True, squeeze=False)
    for column, (title, comparison) in enumerate(comparisons.items()):
        for panel, which in zip(panels[:, column], ("output", "gradient"), strict=True):
            _draw(panel, comparison, which)
        panels[0, column].set_title(title)
        panels[1, column].set_xlabel("time step")
    highest = max((TOLERANCE[comparison.spec.dtype] for comparison in comparisons.values()), default=1)
    panels[0, 0].set_ylim(top=max(panels[0, 0].get_ylim()[1], 2 * highest))  # of all panels: they share it
    units = " and ".join(dict.fromkeys(_unit(comparison) for comparison in comparisons.values()))
    panels[0, 0].set_ylabel(f"outputs ({units})")
    panels[1, 0].set_ylabel(f"gradient of x ({units})")
    lines = {line.get_label(): line for panel in panels.flat for line in panel.get_lines()}
    named = {name: line for name, line in lines.items() if not str(name).startswith("_")}
    if named:
        figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=min(len(named), 5), frameon=False)
    return figure


def _draw(panel: "Axes", comparison: Comparison, which: str) -> None:
    """The errors of one quantity, a line a backend, under the line that they must not cross."""
    dtype = comparison.spec.dtype
    for place, row in enumerate(comparison.rows):
        steps = row.output_steps if which == "output" else row.gradient_steps
        if steps is not None:
            # Zero has no place on a logarithmic axis: the line breaks there. Styles cycle so that equal lines show.
            errors = np.where(steps > 0, steps / np.finfo(dtype).eps, np.nan)
            style = ("-", "--", ":", "-.")[place % 4]
            panel.plot(np.arange(len(errors)), errors, style, color=f"C{place}", label=row.title, lw=1.5)
    panel.axhline(TOLERANCE[dtype], color="black", lw=1)
    panel.annotate(
        f"equal: at most {TOLERANCE[dtype]} eps",
        (0.01, TOLERANCE[dtype]),
        xycoords=("axes fraction", "data"),
        xytext=(0, -4),
        textcoords="offset points",
        verticalalignment="top",
        fontsize=8,
    )
    panel.set_yscale("log")
    panel.grid(alpha=0.25)


def _unit(comparison: Comparison) -> str:
    dtype = comparison.spec.dtype
    return f"eps of {dtype}, {np.finfo(dtype).eps:.2g}"


def picture_format(path: str | PathLike[str]) -> str:
    """The format that the suffix of a picture's name stands for.

    Raises:
        MissingFramework: matplotlib is not installed.
        InvalidCall: there is no such format, or no folder for the picture.
    """
    _require_matplotlib()
    from matplotlib.backend_bases import FigureCanvasBase

    path = Path(path)
    formats = FigureCanvasBase.get_supported_filetypes()
    suffix = path.suffix.lower().removeprefix(".")
    if suffix not in formats:
        raise InvalidCall(
            f"{path}: a picture's name ends in .png, .svg, .pdf or another of {', '.join(sorted(formats))}"
        )
    if not path.parent.is_dir():
        raise InvalidCall(f"{path}: there is no folder {path.parent}; make it first")
    return suffix


def write_figure(figure: "Figure", path: str | PathLike[str]) -> None:
    """Write a picture, its format by the suffix. A reader sees the old file or the new one, never half.

    Raises:
        InvalidCall: as `picture_format`.
    """
    path = Path(path)
    form = picture_format(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        figure.savefig(unfinished, format=form)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _require_matplotlib() -> None:
    try:
        import matplotlib as mpl  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise MissingFramework(
            'a picture needs matplotlib, which is not installed: pip install "multirnn[plot]"'
        ) from error
