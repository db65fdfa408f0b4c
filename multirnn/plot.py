"""Pictures of errors: of every backend over time, and of two layers over layer and time.

They need matplotlib, the extra `plot`; without it MissingFramework is raised. A figure belongs to no window.
"""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np

from multirnn.atomic import replacing
from multirnn.comparison import Comparison
from multirnn.diagnosis import Divergence
from multirnn.errors import InvalidCall, MissingFramework
from multirnn.numerics import TOLERANCE
from multirnn.parity import Parity
from multirnn.weights import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["picture_format", "plot_curves", "plot_errors", "write_figure"]


def plot_errors(comparisons: Mapping[str, Comparison]) -> "Figure":
    """The error over the time steps, a column a comparison: of the outputs above, of the input's gradient below."""
    figure, panels = _grid(list(comparisons), 2, 6.5, "time step", sharey=True)
    figure.suptitle("How far each backend is from NumPy in float64: max|a−b| at each step, over max|b|")
    for column, comparison in zip(panels.T, comparisons.values(), strict=True):
        _draw_errors(column[0], comparison, {row.title: row.output_steps for row in comparison.rows})
        _draw_errors(column[1], comparison, {row.title: row.gradient_steps for row in comparison.rows})
    highest = max((TOLERANCE[comparison.spec.dtype] for comparison in comparisons.values()), default=1)
    panels[0, 0].set_ylim(top=max(panels[0, 0].get_ylim()[1], 2 * highest))  # they all share it
    dtypes = dict.fromkeys(comparison.spec.dtype for comparison in comparisons.values())
    units = " and ".join(f"eps of {dtype}, {np.finfo(dtype).eps:.2g}" for dtype in dtypes)
    panels[0, 0].set_ylabel(f"outputs ({units})")
    panels[1, 0].set_ylabel(f"gradient of x ({units})")
    _add_legend(figure)
    return figure


def plot_curves(parities: Mapping[str, Parity]) -> "Figure":
    """The losses of every backend over each other, a column a parity, a row an optimiser; they share the optimisers."""
    names = list(dict.fromkeys(name for parity in parities.values() for name in parity.optimisers))
    figure, panels = _grid(list(parities), len(names), 2.4 * len(names) + 1.5, "step")
    figure.suptitle("Each framework's own optimisers, from one start: the loss before each step")
    for column, parity in zip(panels.T, parities.values(), strict=True):
        for panel, name in zip(column, names, strict=True):
            _draw_curves(panel, parity, name)
    for panel, name in zip(panels[:, 0], names, strict=True):
        panel.set_ylabel(f"{name}: loss")
    for line in _add_legend(figure):
        line.set_linestyle("-")
    return figure


def _grid(titles: list[str], rows: int, height: float, xlabel: str, *, sharey: bool = False) -> tuple["Figure", Array]:
    """A figure and its panels `(rows, titles)` over one axis of time."""
    _require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(7.5, 4.2 * len(titles) + 1), height), layout="constrained")
    panels = figure.subplots(rows, len(titles), sharex="col", sharey=sharey, squeeze=False)
    for panel, title in zip(panels[0], titles, strict=True):
        panel.set_title(title)
    for panel in panels[-1]:
        panel.set_xlabel(xlabel)
    for panel in panels.flat:
        panel.set_yscale("log")
        panel.grid(alpha=0.25)
    return figure, panels


def _add_legend(figure: "Figure") -> list[Any]:
    """A legend of all lines with a name, below the panels; its lines."""
    lines = {str(line.get_label()): line for panel in figure.axes for line in panel.get_lines()}
    named = {name: line for name, line in lines.items() if not name.startswith("_")}
    if not named:
        return []
    columns = min(len(named), 5)
    legend = figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=columns, frameon=False)
    return list(legend.get_lines())


def _draw_errors(panel: "Axes", comparison: Comparison, errors: Mapping[str, Array | None]) -> None:
    """The errors of one quantity, a line a backend, and the line that they must not cross."""
    dtype = comparison.spec.dtype
    for place, (title, steps) in enumerate(errors.items()):
        if steps is not None:
            # Zero has no place on a logarithmic axis: the line breaks there. Styles cycle so that equal lines show.
            eps = np.where(steps > 0, steps / np.finfo(dtype).eps, np.nan)
            panel.plot(eps, ("-", "--", ":", "-.")[place % 4], color=f"C{place}", label=title, lw=1.5)
    panel.axhline(TOLERANCE[dtype], color="black", lw=1)
    at: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "xytext": (0, -4), "textcoords": "offset points"}
    panel.annotate(f"equal: at most {TOLERANCE[dtype]} eps", (0.01, TOLERANCE[dtype]), **at, va="top", fontsize=8)


def _draw_curves(panel: "Axes", parity: Parity, name: str) -> None:
    """The curves of one optimiser, dashed in turn so that lines show which cover each other."""
    rows = [row for row in parity.rows if row.optimiser is not None and row.optimiser.name == name]
    for place, row in enumerate(rows):
        if row.losses is not None:
            turn = (2 * place, (2, 2 * len(rows) - 2)) if len(rows) > 1 else "-"
            panel.plot(row.losses, color=f"C{place}", lw=3, linestyle=turn, dash_capstyle="butt", label=row.title)


def plot_divergence(divergence: Divergence) -> "Figure":
    """The error over layer and time, a row a pass, layer 0 at the bottom: of single steps, and of B running on by itself.

    If gates are known, a third panel shows the gates of the first pass that parts, a row a gate.
    """
    _require_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    passes = list(divergence.spec.passes)
    names = [f"layer {layer} {direction}" for layer, direction in passes]
    here = (divergence.layer, divergence.direction)
    place = next((place for place, at in enumerate(passes) if at == here), None)
    rows: list[tuple[str, Array, list[str], int | None]] = [
        ("One step, from the states of A: where an error is made", divergence.own, names, place),
        ("B running on by itself: where the error goes", divergence.growth, names, place),
    ]
    gates = {} if place is None else {name: errors[place] for name, errors in divergence.gates.items()}
    if len(gates) > 1:
        gate = list(gates).index(divergence.gate) if divergence.gate in gates else None
        rows.append((f"The gates of {names[place or 0]}, one step", np.array(list(gates.values())), list(gates), gate))
    height = 1.9 + sum(0.75 + 0.3 * len(labels) for _, _, labels, _ in rows)
    figure = Figure(figsize=(8.5, height), layout="constrained")
    says = "\n".join(wrap(divergence.says, 105))
    figure.suptitle(f"{divergence.title}\n{says}", fontsize=10, x=0.01, horizontalalignment="left")
    panels = figure.subplots(len(rows), 1, sharex=True, squeeze=False, height_ratios=[1 + len(row[2]) for row in rows])
    eps = float(np.finfo(divergence.dtype).eps)
    limit = float(np.log10(TOLERANCE[divergence.dtype]))
    levels = limit - 3, limit, float(-np.log10(eps))
    meshes: list[Any] = []
    for panel, (title, errors, labels, mark) in zip(panels[:, 0], rows, strict=True):
        meshes.append(_heat(panel, errors, labels, levels))
        panel.set_title(title, fontsize=9, loc="left")
        if mark is not None and divergence.step is not None:  # a frame around the cell of the first divergence
            corner = divergence.step - 0.5, mark - 0.5
            panel.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="black", lw=2, clip_on=False, zorder=3))
    panels[-1, 0].set_xlabel("time step (hatched: cannot be seen)")
    bar = figure.colorbar(meshes[0], ax=panels[:, 0], extend="both", pad=0.02)
    powers = [power for power in range(-2, 16, 2) if levels[0] <= power <= levels[2] and abs(power - limit) > 1]
    bar.set_ticks([*powers, limit], labels=[*(f"$10^{{{power}}}$" for power in powers), "parts"])
    bar.set_label(f"max|a−b| / max|a|, in eps of {divergence.dtype} ({eps:.2g})", fontsize=9)
    return figure


def _heat(panel: "Axes", errors: Array, labels: list[str], levels: tuple[float, float, float]) -> Any:
    """Errors `(rows, time)` in eps as colours, unknown ones hatched; the mesh, for the bar of colours.

    The levels are the lowest power of ten, the one at which the two part and the colour turns, and the highest.
    """
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.ticker import MaxNLocator

    low, limit, high = levels
    time = errors.shape[1]
    with np.errstate(divide="ignore"):  # no error at all is as low as the colours go
        shown = np.clip(np.log10(errors), low - 1, high + 1)
    panel.patch.set(hatch="////", facecolor="white", edgecolor="0.8")
    edges = (np.arange(size + 1) - 0.5 for size in (time, len(errors)))
    colours: dict[str, Any] = {"norm": TwoSlopeNorm(limit, low, high), "cmap": "RdYlBu_r", "edgecolors": "white"}
    mesh = panel.pcolormesh(*edges, np.ma.masked_invalid(shown), **colours, linewidth=0.8 if time <= 60 else 0)
    panel.set_yticks(range(len(labels)), labels, fontsize=8)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.tick_params(length=2)
    return mesh


def picture_format(path: str | PathLike[str]) -> str:
    """The format of a picture by the suffix of its name; InvalidCall if there is none such, or no folder for it."""
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
    """Write a picture, its format by the suffix, as `picture_format` has it."""
    form = picture_format(path)
    with replacing(Path(path), InvalidCall) as file:
        figure.savefig(file, format=form)


def _require_matplotlib() -> None:
    try:
        import matplotlib as mpl  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise MissingFramework(
            'a picture needs matplotlib, which is not installed: pip install "multirnn[plot]"'
        ) from error
