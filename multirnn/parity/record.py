"""What was found: a row for every backend and optimiser, as a table, in a notebook, and as JSON."""

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
    """What was found of one backend with one optimiser.

    Attributes:
        backend: its name.
        title: its name with the engine that it runs on, `keras (tensorflow)`.
        verdict: "equal"; "explained", beyond the bound for the reason in `causes`; "differs"; "refuses", the spec or to
            train; "missing", its framework is not installed; "broken", what is installed cannot be loaded. The last
            three are of all optimisers.
        reason: why it refuses, is missing or is broken.
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
class Parity(Shown):
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
        """All that was found, in values that JSON has; what is infinite or not a number is null."""
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
        """Why a row is not equal, one sentence a cause or reason, the same one once."""
        told: dict[str, list[str]] = {}
        for row in self.rows:
            for sentence in row.causes or tuple(f"{row.title}: {reason}" for reason in [_reason(row)] if reason):
                told.setdefault(sentence, []).extend([row.optimiser.name] if row.optimiser else [])
        return [f"{', '.join(names)}: {sentence}" if names else sentence for sentence, names in told.items()]


_LOSS = "mean of (sequence - target)² over the valid steps"
_STYLES = {"equal": "green", "explained": "cyan", "differs": "bold red"}


def _reason(row: Trained) -> str:
    """Why it is not equal, where no cause explains it."""
    return row.reason or (f"worst weight {row.weights.where}" if row.verdict == "differs" and row.weights else "")


def _row_to_dict(row: Trained) -> dict[str, Any]:
    optimiser = None if row.optimiser is None else {"name": row.optimiser.name, **row.optimiser.hyper_parameters}
    values = {
        "backend": row.backend,
        "title": row.title,
        "verdict": row.verdict,
        "reason": row.reason,
        "versions": row.versions,
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
    """The worse of the differences of the losses and of the weights, in eps."""
    return max(curve.eps, weights.difference.eps)
