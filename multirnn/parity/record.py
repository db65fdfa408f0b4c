"""What was found: a row for every backend and optimiser, as a table, in a notebook, and as JSON."""

from __future__ import annotations  # or naming np.random.Generator loads numpy.random

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from multirnn.compare import TOLERANCE, Difference, Part
from multirnn.parity.optimiser import Optimiser
from multirnn.spec import RecurrentSpec
from multirnn.weights import Array

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table

__all__ = ["Parity", "Trained", "worse_eps"]


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """What was found of one backend with one optimiser.

    Attributes:
        backend: its name.
        title: its name with the engine that it runs on, `keras (tensorflow)`.
        verdict: "equal"; "explained", beyond the bound for the reason in `causes`; "differs"; "refuses", the spec or to
            train; "missing", its framework is not installed. The last two are of all optimisers.
        reason: why it refuses or is missing.
        versions: of what it runs on.
        optimiser: with the hyper-parameters that it had.
        bias: the form of the biases that it trained.
        losses: before each step, `(steps,)`.
        curve: the difference of the losses from the reference's.
        weights: the difference of the final weights, of the worst array; the biases as one where only their form
            differs.
        causes: sentences that explain the difference together.
        residual: what is left of the difference, in eps, when the reference is trained under these causes.
    """

    backend: str
    title: str
    verdict: str
    reason: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    optimiser: Optimiser | None = None
    bias: str = ""
    losses: Array | None = None
    curve: Difference | None = None
    weights: Part | None = None
    causes: tuple[str, ...] = ()
    residual: float | None = None

    @property
    def eps(self) -> float | None:
        """The worse of both differences."""
        return None if self.curve is None or self.weights is None else worse_eps(self.curve, self.weights)


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Parity:
    """A row for every backend and optimiser; it prints as a table, shows itself in a notebook, and exports JSON.

    Attributes:
        spec: what the reference trained.
        shape: of the input, `(batch, time, input_size)`.
        steps: how many.
        target: whose the target was, in words.
        defaults: whether each framework had the biases and the epsilon that it has by default.
        optimisers: of the reference, by name.
        reference: its losses before each step, `(steps,)`, by the name of the optimiser.
        growth: how many times as large rounding was after the training, by the name of the optimiser.
        rows: by backend, then by optimiser.
    """

    spec: RecurrentSpec
    shape: tuple[int, ...]
    steps: int
    target: str
    defaults: bool
    optimisers: Mapping[str, Optimiser]
    reference: Mapping[str, Array]
    growth: Mapping[str, float]
    rows: tuple[Trained, ...]

    @property
    def ok(self) -> bool:
        """Whether every difference is within its bound or explained, and at least one backend was trained."""
        verdicts = {row.verdict for row in self.rows}
        return bool(verdicts & {"equal", "explained"}) and "differs" not in verdicts

    def bound(self, optimiser: str) -> float:
        """The largest difference from the reference that counts as rounding, in eps."""
        return TOLERANCE[self.spec.dtype] * self.growth[optimiser]

    def to_dict(self) -> dict[str, Any]:
        """All that was found, in values that JSON has; infinite differences are null."""
        return {
            "ok": self.ok,
            "spec": self.spec.to_dict(),
            "shape": list(self.shape),
            "steps": self.steps,
            "loss": _LOSS,
            "target": self.target,
            "defaults": self.defaults,
            "optimisers": [
                {
                    "name": name,
                    **optimiser.hyper_parameters,
                    "growth": self.growth[name],
                    "bound_eps": self.bound(name),
                    "reference": self.reference[name].tolist(),
                }
                for name, optimiser in self.optimisers.items()
            ],
            "rows": [_row_to_dict(row) for row in self.rows],
        }

    def to_json(self, indent: int | None = 2) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False, allow_nan=False)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        yield Text(self._title, style="bold")
        yield self._table()
        for line in self._sentences:
            yield Text(line)
        yield Text(f"{self._caption}\n")

    def _table(self) -> Table:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
        for name in _COLUMNS:
            table.add_column(name, justify="right" if name in _NUMBERS else "left", overflow="fold")
        for row in self.rows:
            cells = [Text(cell) for cell in self._cells(row)]
            cells[_COLUMNS.index("verdict")].stylize(_STYLES.get(row.verdict, "yellow"))
            table.add_row(*cells)
        return table

    def __str__(self) -> str:
        from io import StringIO

        from rich.console import Console

        text = StringIO()
        Console(file=text, width=150, color_system=None).print(self)
        return "\n".join(line.rstrip() for line in text.getvalue().rstrip().splitlines())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from html import escape

        head = "".join(f"<th>{escape(name)}</th>" for name in _COLUMNS)
        rows = (self._cells(row) for row in self.rows)
        body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>" for cells in rows)
        foot = "<br>".join(escape(line) for line in (*self._sentences, *self._caption.splitlines()))
        return (
            f"<table><caption>{escape(self._title)}</caption><thead><tr>{head}</tr></thead>"
            f"<tbody>{body}</tbody><tfoot><tr><td colspan={len(_COLUMNS)}>{foot}</td></tr></tfoot></table>"
        )

    def _cells(self, row: Trained) -> tuple[str, ...]:
        if row.optimiser is None or row.losses is None or row.curve is None or row.weights is None:
            return row.title, *"––––––", row.verdict, ""
        name = row.optimiser.name
        losses = (f"{row.losses[place]:.6g}" for place in (0, -1))
        errors = (f"{eps:.3g}" for eps in (row.curve.eps, row.weights.difference.eps, self.bound(name)))
        return row.title, name, *losses, *errors, row.verdict, row.weights.where

    @property
    def _title(self) -> str:
        batch, time, _ = self.shape
        return f"{self.spec!r} trained for {self.steps} steps on batch {batch}, time {time}"

    @property
    def _sentences(self) -> list[str]:
        """Why a row is not equal, one sentence a cause or reason, the same one once."""
        told: dict[str, list[str]] = {}
        for row in self.rows:
            for sentence in row.causes or (f"{row.title}: {row.reason}",) * bool(row.reason):
                told.setdefault(sentence, []).extend([row.optimiser.name] if row.optimiser else [])
        return [f"{', '.join(names)}: {sentence}" if names else sentence for sentence, names in told.items()]

    @property
    def _caption(self) -> str:
        optimisers = "; ".join(map(str, self.optimisers.values()))
        return (
            f"{optimisers}\n"
            f"loss: {_LOSS}; target: {self.target}\n"
            f"losses, weights: max|a-b| / max|b| against NumPy in float64, in eps of {self.spec.dtype}; "
            f"bound: {TOLERANCE[self.spec.dtype]} times what a shift of the start by one eps grew to"
        )


_LOSS = "mean of (sequence - target)² over the valid steps"
_COLUMNS = (
    *("backend", "optimiser", "first loss", "last loss"),
    *("losses", "weights", "bound", "verdict", "worst weight"),
)
_NUMBERS = _COLUMNS[2:7]
_STYLES = {"equal": "green", "explained": "cyan", "differs": "bold red"}


def _row_to_dict(row: Trained) -> dict[str, Any]:
    def number(value: float | None) -> float | None:
        return None if value is None or not np.isfinite(value) else value

    optimiser = None if row.optimiser is None else {"name": row.optimiser.name, **row.optimiser.hyper_parameters}
    return {
        "backend": row.backend,
        "title": row.title,
        "verdict": row.verdict,
        "reason": row.reason,
        "versions": dict(row.versions),
        "optimiser": optimiser,
        "bias": row.bias or None,
        "losses": None if row.losses is None else [number(float(loss)) for loss in row.losses],
        "curve_eps": number(row.curve.eps) if row.curve else None,
        "weights_eps": number(row.weights.difference.eps) if row.weights else None,
        "where": row.weights.where if row.weights else None,
        "causes": list(row.causes),
        "residual_eps": number(row.residual),
    }


def worse_eps(curve: Difference, weights: Part) -> float:
    """The worse of the differences of the losses and of the weights, in eps."""
    return max(curve.eps, weights.difference.eps)
