"""A picture of comparisons: the error of every backend over the time steps. Needs matplotlib, the extra `plot`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from multirnn.compare import TOLERANCE, Comparison
from multirnn.errors import MissingFramework

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_errors"]


def plot_errors(comparisons: Mapping[str, Comparison]) -> "Figure":
    """The error over the time steps, a column a comparison: of the outputs above, of the input's gradient below.

    Args:
        comparisons: by the title of their column.

    Returns:
        A matplotlib figure that belongs to no window; `figure.savefig(path)` writes it.

    Raises:
        MissingFramework: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise MissingFramework(
            'a picture needs matplotlib, which is not installed: pip install "multirnn[plot]"'
        ) from error

    figure = Figure(figsize=(4.2 * len(comparisons) + 1, 6.5), layout="constrained")
    axes = figure.subplots(2, len(comparisons), sharex="col", sharey=True, squeeze=False)
    for column, (title, comparison) in enumerate(comparisons.items()):
        dtype = comparison.spec.dtype
        eps = float(np.finfo(dtype).eps)
        for panel, which in zip(axes[:, column], ("output", "gradient"), strict=True):
            for place, row in enumerate(comparison.rows):
                steps = row.output_steps if which == "output" else row.gradient_steps
                if steps is not None:
                    # Zero has no place on a logarithmic axis: the line breaks there. Styles cycle so that equal lines show.
                    errors = np.where(steps > 0, steps / eps, np.nan)
                    style = ("-", "--", ":", "-.")[place % 4]
                    panel.plot(np.arange(len(errors)), errors, style, color=f"C{place}", label=row.title, lw=1.6)
            panel.axhline(TOLERANCE[dtype], color="black", lw=1, alpha=0.6)
            panel.annotate(
                f"tolerance {TOLERANCE[dtype]} eps",
                (0.01, TOLERANCE[dtype]),
                xycoords=("axes fraction", "data"),
                xytext=(0, 3),
                textcoords="offset points",
                fontsize=8,
            )
            panel.set_yscale("log")
            panel.grid(alpha=0.25)
        axes[0, column].set_title(title)
        axes[1, column].set_xlabel("time step")
    axes[0, 0].set_ylabel("error of the outputs (eps)")
    axes[1, 0].set_ylabel("error of the gradient of x (eps)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure
