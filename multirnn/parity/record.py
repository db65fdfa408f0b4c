"""The results of `train_parity`: a row for every backend and optimiser, as a table, in a notebook, and as JSON."""

from __future__ import annotations  # or naming np.random.Generator loads numpy.random

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from multirnn.comparison import Part
from multirnn.numerics import TOLERANCE, Difference
from multirnn.parity.optimiser import Optimiser
from multirnn.spec import RecurrentSpec
from multirnn.tables import Column, Content, Shown, Styled, Table, json_value
from multirnn.weights import Array

__all__ = ["Parity", "Trained", "worse_eps"]


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """One backend with one optimiser.

    Attributes:
        backend: its name.
        title: its name with its engine, `keras (tensorflow)`.
        verdict: "equal"; "explained", beyond the bound for the reasons in `causes`; "differs"; "refuses", the spec or to
            train; "missing", its framework is not installed; "broken", the framework cannot be loaded. The last three
            have one row for all optimisers.
        reason: why it refuses, is missing or is broken.
        versions: of its framework.
        optimiser: with its hyper-parameters.
        bias: the form of its biases.
        losses: before each step, `(steps,)`.
        curve: the difference of the losses from the reference's.
        weights: the difference of the final weights in the worst array; of the sums of the biases if their forms differ.
        causes: sentences that explain the difference together.
        residual: the difference in eps that remains when the reference trains under these causes.
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
        """The larger of both differences."""
        return None if self.curve is None or self.weights is None else worse_eps(self.curve, self.weights)


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Parity(Shown):
    """A row for every backend and optimiser; it prints as a table, shows itself in a notebook, and exports JSON.

    Attributes:
        spec: of the reference.
        shape: of the input, `(batch, time, input_size)`.
        steps: their number.
        target: its origin, in words.
        defaults: whether each framework had its own default biases and epsilon.
        optimisers: of the reference, by name.
        reference: its losses before each step, `(steps,)`, by the name of the optimiser.
        growth: the factor by which training magnified rounding, by the name of the optimiser.
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
        """Everything, as JSON values; infinities and NaN are null."""
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

    def _contents(self) -> Iterator[Content]:
        batch, time, _ = self.shape
        yield Styled(f"{self.spec!r} trained for {self.steps} steps on batch {batch}, time {time}", "bold")
        numbers = (Column(name, number=True) for name in ("first loss", "last loss", "losses", "weights", "bound"))
        worst = Column("worst weight", whole=True, spare=True)
        table = Table("backend", "optimiser", *numbers, "verdict", worst, keys=2)
        for row in self.rows:
            table.add_row(*self._cells(row))
        yield table
        yield ""
        yield from self._sentences()
        yield "; ".join(map(str, self.optimisers.values()))
        yield f"loss: {_LOSS}; target: {self.target}"
        yield (
            f"losses, weights: max|a-b| / max|b| against NumPy in float64, in eps of {self.spec.dtype}; "
            f"bound: {TOLERANCE[self.spec.dtype]} times what a shift of the start by one eps grew to"
        )

    def _cells(self, row: Trained) -> tuple[str, ...]:
        verdict = Styled(row.verdict, _STYLES.get(row.verdict, "yellow"))
        if row.optimiser is None or row.losses is None or row.curve is None or row.weights is None:
            return row.title, *"––––––", verdict, ""
        name = row.optimiser.name
        losses = (f"{row.losses[place]:.6g}" for place in (0, -1))
        errors = (f"{eps:.3g}" for eps in (row.curve.eps, row.weights.difference.eps, self.bound(name)))
        return row.title, name, *losses, *errors, verdict, row.weights.where

    def _sentences(self) -> list[str]:
        """The distinct causes and reasons of rows that are not equal."""
        told: dict[str, list[str]] = {}
        for row in self.rows:
            reason = row.reason
            if row.verdict == "differs" and row.weights and not reason:
                reason = f"worst weight {row.weights.where}"
            for sentence in row.causes or ([f"{row.title}: {reason}"] if reason else []):
                told.setdefault(sentence, []).extend([row.optimiser.name] if row.optimiser else [])
        return [f"{', '.join(names)}: {sentence}" if names else sentence for sentence, names in told.items()]


_LOSS = "mean of (sequence - target)² over the valid steps"
_STYLES = {"equal": "green", "explained": "cyan", "differs": "bold red"}


def _row_to_dict(row: Trained) -> dict[str, Any]:
    optimiser = None if row.optimiser is None else {"name": row.optimiser.name, **row.optimiser.hyper_parameters}
    values = {
        **{name: getattr(row, name) for name in ("backend", "title", "verdict", "reason", "versions")},
        "optimiser": optimiser,
        "bias": row.bias,
        "losses": row.losses,
        "curve_eps": row.curve.eps if row.curve else None,
        "weights_eps": row.weights.difference.eps if row.weights else None,
        "where": row.weights.where if row.weights else None,
        "causes": row.causes,
        "residual_eps": row.residual,
    }
    return {name: json_value(value) for name, value in values.items()}


def worse_eps(curve: Difference, weights: Part) -> float:
    """The larger difference, in eps."""
    return max(curve.eps, weights.difference.eps)
