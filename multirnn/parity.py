"""Do frameworks train alike? The same start, the same data, the same loss; each with its own optimiser on its own object.

The loss is the mean of `(sequence - target)²` over the valid steps. Unless a target is given, it is the output of a
teacher: the same stack with other weights, on the same input. Every curve of losses and all final weights are held
against the reference, NumPy in float64, whose formulas stand in `multirnn_numpy.training`.

Training magnifies rounding, by a factor of 1 to 1000 in 20 steps, which depends on the stack, the data, the optimiser and
its learning rate. So the factor is measured: the reference is trained again from starts that are shifted by eps of the
dtype, and how far apart they end, in eps, is what the tolerance of one call is multiplied by. The worst that was seen of
frameworks over drawn stacks, in eps times this factor: 17.5 in float32, where the tolerance is 64 (JAX, Adam), and 2.1 in
float64, where it is 256; after 300 steps 12.3, NumPy in float32.

A difference beyond the bound is explained where one of the conventions in `CAUSES` is what makes it: the reference is
trained again under that convention, and the difference has to vanish.
"""

from __future__ import annotations  # or naming np.random.Generator loads numpy.random

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from itertools import combinations
from numbers import Real
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike

from multirnn.backend import Backend
from multirnn.compare import TOLERANCE, Difference, Part, difference, draw_call, worst_part
from multirnn.conventions import CONVENTIONS
from multirnn.errors import InvalidCall, MissingFramework
from multirnn.layer import Lengths
from multirnn.registry import backend as load_backend
from multirnn.registry import backends as installed_backends
from multirnn.spec import RecurrentSpec
from multirnn.weights import Array, Weights, fold_biases, initialise, split_biases, weights_of

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table

__all__ = [
    "CAUSES",
    "OPTIMISERS",
    "STEPS",
    "Batch",
    "Cause",
    "Optimiser",
    "Parity",
    "Setting",
    "Trained",
    "Trains",
    "train_parity",
]


# --- What is trained with ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Optimiser:
    """An optimiser by its name and its hyper-parameters; a framework's own is made of them.

    Attributes:
        name: "sgd"; "momentum", SGD with momentum; "adam".
        learning_rate: of all three.
        momentum: of "momentum". There is no dampening, and no look-ahead.
        beta_1, beta_2, epsilon: of "adam".

    Raises:
        InvalidCall: there is no such optimiser, or a number is out of its range.
    """

    name: str
    learning_rate: float
    momentum: float = 0.9
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        if self.name not in _HYPER_PARAMETERS:
            close = get_close_matches(str(self.name), _HYPER_PARAMETERS, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise InvalidCall(f"no optimiser named {self.name!r}; there are {', '.join(_HYPER_PARAMETERS)}{hint}")
        for entry in fields(self)[1:]:
            given = getattr(self, entry.name)
            if not isinstance(given, Real):
                raise InvalidCall(f"{entry.name} of an optimiser must be a number, not {given!r}")
            value = float(given)
            below_one = entry.name in ("momentum", "beta_1", "beta_2")
            if not (0 <= value < 1 if below_one else 0 < value < float("inf")):
                allowed = "from 0 to below 1" if below_one else "positive and finite"
                raise InvalidCall(f"{entry.name} of an optimiser must be {allowed}, not {value:g}")
            object.__setattr__(self, entry.name, value)

    @property
    def hyper_parameters(self) -> dict[str, float]:
        """Those that it has, by name."""
        return {name: getattr(self, name) for name in _HYPER_PARAMETERS[self.name]}

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{name}={value:g}' for name, value in self.hyper_parameters.items())})"


_HYPER_PARAMETERS = {
    "sgd": ("learning_rate",),
    "momentum": ("learning_rate", "momentum"),
    "adam": ("learning_rate", "beta_1", "beta_2", "epsilon"),
}

OPTIMISERS: Mapping[str, Optimiser] = MappingProxyType(
    {
        # Powers of two: the same numbers in float32 and float64. The others are the frameworks' defaults.
        "sgd": Optimiser("sgd", learning_rate=1 / 2),
        "momentum": Optimiser("momentum", learning_rate=1 / 8),
        "adam": Optimiser("adam", learning_rate=1 / 64),
    }
)
"""What is taken of each name."""

STEPS = 20
"""How many are taken unless told otherwise: enough to bring the loss down to a half or less, of a small stack in well under a second on NumPy."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What is trained on, all of it in every step.

    Attributes:
        x: `(batch, time, input_size)`, zero at padding.
        target: `(batch, time, directions * hidden_size)`, zero at padding.
        lengths: `(batch,)`, at least 1 each.
    """

    x: Array
    target: Array
    lengths: Lengths

    @property
    def valid(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which steps are not padding: `(batch, time)`."""
        return np.asarray(np.arange(self.x.shape[1]) < self.lengths[:, None])

    def loss(self, sequence: Array) -> tuple[float, Array]:
        """The mean of `(sequence - target)²` over the valid steps, and its gradient, of the shape of the sequence."""
        error = np.where(self.valid[..., None], sequence - self.target, sequence.dtype.type(0))
        count = int(self.lengths.sum()) * sequence.shape[-1]
        return float((error**2).sum() / count), 2 * error / sequence.dtype.type(count)

    def astype(self, dtype: str) -> Batch:
        """The same in "float32" or "float64"."""
        return Batch(self.x.astype(dtype), self.target.astype(dtype), self.lengths)


@runtime_checkable
class Trains(Protocol):
    """What a `Backend` has besides if it can be held here. A backend without it is a row that says so."""

    def train(self, layer: Any, batch: Batch, optimiser: Optimiser, steps: int) -> Array:
        """Train a layer that this backend built, in place, by the framework's own optimiser on its own object.

        Args:
            layer: what `build` returned.
            batch: of the layer's dtype. The initial state is zero.
            optimiser: which, and with which hyper-parameters.
            steps: how often.

        Returns:
            The loss before every step, `(steps,)`, of the layer's dtype; see `Batch.loss`.
        """
        ...

    def default_epsilon(self) -> float:
        """The epsilon that the framework's Adam has unless told otherwise."""
        ...


# --- What explains a difference ----------------------------------------------------------------------------------------


class Setting(NamedTuple):
    """How a stack is trained.

    Attributes:
        bias: the form of its biases.
        optimiser: with its hyper-parameters.
        form: whose formula of it, "torch" or "keras".
        rounded: whether momentum and the betas of the bias correction are held in float32.
    """

    bias: str
    optimiser: Optimiser
    form: str = "torch"
    rounded: bool = False


@dataclass(frozen=True, slots=True)
class Cause:
    """A convention in which frameworks differ.

    Attributes:
        name: short.
        apply: the reference's setting under the convention of another one; the same setting where both share it.
        sentence: what differs, from the title of the backend, the reference's setting and the other one.
    """

    name: str
    apply: Callable[[Setting, Setting], Setting]
    sentence: Callable[[str, Setting, Setting], str]


def _say_biases(title: str, own: Setting, other: Setting) -> str:
    # Every optimiser here works element by element, so each of two biases that get the same gradient takes the step of a
    # single one. To double the gradient of a single bias would be the same for SGD; Adam divides by its size.
    said = f'{title} has bias="{other.bias}" by default, and the reference bias="{own.bias}"'
    moves = (
        "their sum moves twice as far" if other.bias == "double" else "one alone moves half as far as the sum of two"
    )
    return f"{said}: of two biases each gets the whole gradient and takes the whole step, so {moves}, under Adam too"


def _say_epsilon(title: str, own: Setting, other: Setting) -> str:
    return (
        f"{title} has epsilon={other.optimiser.epsilon:g} by default, and the reference {own.optimiser.epsilon:g}: "
        "it counts where the gradients are not much larger"
    )


def _say_epsilon_hat(title: str, own: Setting, other: Setting) -> str:
    first = (1 - own.optimiser.beta_2) ** -0.5
    return (
        f"{title} adds epsilon to sqrt(v), and the reference to sqrt(v / (1 - beta_2^t)): in step t that is an epsilon "
        f"1 / sqrt(1 - beta_2^t) times as large, {first:.3g} times in the first"
    )


def _say_rounded(title: str, own: Setting, other: Setting) -> str:
    if own.optimiser.name == "momentum":
        return f"{title} has rounded its momentum to float32, also in a stack of float64"
    return (
        f"{title} has rounded the betas of its bias correction to float32, in which 1 - beta_2^t keeps few digits: "
        f"1 - {own.optimiser.beta_2:g} is {float(1 - np.float32(own.optimiser.beta_2)):.6g} there"
    )


CAUSES: tuple[Cause, ...] = (
    Cause("biases", lambda own, other: own._replace(bias=other.bias), _say_biases),
    Cause(
        "epsilon",
        lambda own, other: own._replace(optimiser=replace(own.optimiser, epsilon=other.optimiser.epsilon)),
        _say_epsilon,
    ),
    # The two forms of momentum take the same steps while the learning rate is constant, so there is nothing to explain.
    Cause(
        "epsilon hat",
        lambda own, other: own._replace(form="keras") if own.optimiser.name == "adam" else own,
        _say_epsilon_hat,
    ),
    # TensorFlow makes every number of Python a float32 first (tensorflow/tensorflow#57779), and Keras hands them over in
    # `ops.cast(self.beta_2, variable.dtype)`. In a stack of float32 JAX computes 1 - beta^t in float32 too.
    Cause(
        "rounded",
        lambda own, other: own._replace(rounded=own.optimiser.name != "sgd"),
        _say_rounded,
    ),
)
"""What is tried, singly and together, the fewest first."""


# --- What is found -----------------------------------------------------------------------------------------------------


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
        return None if self.curve is None or self.weights is None else _eps(self.curve, self.weights)


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


# --- The training ------------------------------------------------------------------------------------------------------


def train_parity(
    spec_or_weights: RecurrentSpec | Weights,
    *,
    x: ArrayLike | None = None,
    target: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    optimisers: str | Optimiser | Sequence[str | Optimiser] = ("sgd", "momentum", "adam"),
    steps: int = STEPS,
    learning_rate: float | None = None,
    backends: str | Sequence[str | Backend] | None = None,
    seed: int = 0,
    defaults: bool = False,
) -> Parity:
    """Train one stack on every backend and hold losses and final weights against the reference.

    Args:
        spec_or_weights: the start, or a spec whose start is drawn by `initialise(spec, seed)`.
        x: `(batch, time, input_size)` of the spec's dtype. Unless given, it and its lengths are drawn.
        target: `(batch, time, directions * hidden_size)`; unless given, what a stack with other weights, drawn, says.
        lengths: `(batch,)` integers. Rows of length 0 are left out.
        optimisers: names out of `OPTIMISERS`, or `Optimiser` objects with hyper-parameters of your own.
        steps: how many, on the whole batch each.
        learning_rate: of all optimisers; their own in `OPTIMISERS` unless given.
        backends: a name, or names and Backend objects; all that are installed unless given.
        seed: of what is drawn.
        defaults: give each framework the form of the biases that its layers have by default, which begins as the same
            function, and the default epsilon of its Adam. Where the spec has no biases there are none.

    Raises:
        UnknownBackend: a name that no distribution offers. A framework that is missing and a spec that is refused are rows.
        InvalidCall: x, target or lengths do not fit, there is nothing to train on, an optimiser is none, or the training
            of the reference diverges.
    """
    weights = weights_of(spec_or_weights, seed, "train_parity")
    if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or steps < 1:
        raise InvalidCall(f"steps must be a positive integer, not {steps!r}")
    chosen = _optimisers(optimisers, learning_rate)
    batch = _batch(weights.spec, x, target, lengths, seed)
    reference = _Reference(weights, batch, int(steps), seed)
    own = {name: reference.train(Setting(weights.spec.bias, optimiser)) for name, optimiser in chosen.items()}
    for name, run in own.items():
        if not np.isfinite(run.losses).all():
            raise InvalidCall(f"the training diverges: {chosen[name]} is too fast here; take a smaller learning_rate")
        if reference.bound(chosen[name]) * np.finfo(weights.spec.dtype).eps > _LARGEST_BOUND:
            raise InvalidCall(
                f"{chosen[name]} magnifies rounding {reference.growth(chosen[name]):.0e} times here, so that nothing can be "
                "told of it: take a smaller learning_rate, fewer steps, or float64"
            )
    names = installed_backends() if backends is None else [backends] if isinstance(backends, str) else backends
    return Parity(
        spec=weights.spec,
        shape=batch.x.shape,
        steps=int(steps),
        target="the output of the same stack with other weights" if target is None else "given",
        defaults=defaults,
        optimisers=chosen,
        reference={name: run.losses for name, run in own.items()},
        growth={name: reference.growth(optimiser) for name, optimiser in chosen.items()},
        rows=tuple(row for name in names for row in _rows(name, reference, chosen, defaults)),
    )


def _optimisers(
    given: str | Optimiser | Sequence[str | Optimiser], learning_rate: float | None
) -> dict[str, Optimiser]:
    """The optimisers by name, each once."""
    chosen: dict[str, Optimiser] = {}
    for one in [given] if isinstance(given, str | Optimiser) else given:
        optimiser = one if isinstance(one, Optimiser) else OPTIMISERS.get(one) or Optimiser(one, learning_rate=1)
        if learning_rate is not None:
            optimiser = replace(optimiser, learning_rate=learning_rate)
        if chosen.setdefault(optimiser.name, optimiser) != optimiser:
            raise InvalidCall(f"two optimisers are named {optimiser.name!r}; train with one after the other")
    if not chosen:
        raise InvalidCall(f"there is no optimiser to train with; there are {', '.join(OPTIMISERS)}")
    return chosen


def _batch(
    spec: RecurrentSpec, x: ArrayLike | None, target: ArrayLike | None, lengths: ArrayLike | None, seed: int
) -> Batch:
    """What is trained on: checked, or drawn where it is not given; padding is zero, and no row is empty."""
    if x is None:
        if target is not None or lengths is not None:
            raise InvalidCall("a target or lengths belong to an x: pass x too")
        x, _, lengths = draw_call(spec, seed)
    # Other weights than those of the start, which are drawn by the seed itself.
    teacher = load_backend("numpy").build(initialise(spec, np.random.default_rng((seed, 1))))
    taught = teacher(x, lengths=lengths).sequence  # what does not fit is refused as by any layer
    array = np.asarray(x, spec.dtype)
    if array.ndim != 3:
        raise InvalidCall(f"x must have the shape (batch, time, {spec.input_size}), not {array.shape}")
    if target is not None:
        given = np.asarray(target, None if hasattr(target, "dtype") else spec.dtype)
        if given.shape != taught.shape or given.dtype != spec.dtype:
            raise InvalidCall(
                f"target must be an array of {spec.dtype} of the shape (batch, time, {spec.output_size}) = {taught.shape}, "
                f"as the output, not of {given.dtype} of the shape {given.shape}"
            )
        taught = given
    rows, time = array.shape[:2]
    found = np.full(rows, time) if lengths is None else np.asarray(lengths).astype(np.int64)
    if not found.any():
        raise InvalidCall("there is nothing to train on: x has no valid step")
    batch = Batch(array[found > 0], taught[found > 0], found[found > 0])
    valid = batch.valid[..., None]
    zero = array.dtype.type(0)
    return Batch(np.where(valid, batch.x, zero), np.where(valid, batch.target, zero), batch.lengths)


class _Run(NamedTuple):
    """Losses before each step, and the weights after the last."""

    losses: Array
    weights: Weights


class _Reference:
    """NumPy in float64, trained as any setting says; each setting once."""

    def __init__(self, start: Weights, batch: Batch, steps: int, seed: int) -> None:
        self.start, self.batch, self.steps, self.seed = start, batch, steps, seed
        self._backend: Any = load_backend("numpy")
        self._wide = batch.astype("float64")
        self._runs: dict[Setting, _Run] = {}
        self._growth: dict[Optimiser, float] = {}

    def begin(self, bias: str) -> Weights:
        """The start with the biases in this form: the same function."""
        if bias == self.start.spec.bias:
            return self.start
        return split_biases(self.start) if bias == "double" else fold_biases(self.start)

    def train(self, setting: Setting) -> _Run:
        """The run under this setting."""
        if setting not in self._runs:
            self._runs[setting] = self._train(self.begin(setting.bias).astype("float64"), setting)
        return self._runs[setting]

    def _train(self, start: Weights, setting: Setting) -> _Run:
        layer = self._backend.build(start)
        with np.errstate(over="ignore", invalid="ignore"):  # of a training that diverges
            scalars = self.start.spec.dtype if setting.rounded else ""
            losses = self._backend.train(
                layer, self._wide, setting.optimiser, self.steps, form=setting.form, scalars=scalars
            )
        return _Run(losses, layer.weights())

    def bound(self, optimiser: Optimiser) -> float:
        """The largest difference that counts as rounding, in eps."""
        return TOLERANCE[self.start.spec.dtype] * self.growth(optimiser)

    def growth(self, optimiser: Optimiser) -> float:
        """By how much rounding of the start grows: the largest of a few draws, and not below one."""
        if optimiser not in self._growth:
            self._growth[optimiser] = self._grown(optimiser)
        return self._growth[optimiser]

    def _grown(self, optimiser: Optimiser) -> float:
        setting = Setting(self.start.spec.bias, optimiser)
        eps = float(np.finfo(self.start.spec.dtype).eps)
        wide = self.start.astype("float64")
        rng = np.random.default_rng((self.seed, 2))
        found = [1.0]
        for _ in range(_DRAWS):
            shifted = {name: w + rng.uniform(-eps, eps, w.shape) * np.abs(w).max() for name, w in wide.arrays.items()}
            curve, part = _differences(self._train(Weights(wide.spec, shifted), setting), self.train(setting))
            found.append(max(curve.normwise, part.difference.normwise) / eps)
        return max(found)


_DRAWS = 2
_LARGEST_BOUND = 0.05  # to halve the learning rate changes losses and weights by 0.054 at the least, of 3 to 64 units


def _rows(
    name: str | Backend, reference: _Reference, optimisers: Mapping[str, Optimiser], defaults: bool
) -> Iterator[Trained]:
    """A row an optimiser, or one row that says why there are none."""
    title = name if isinstance(name, str) else name.name
    try:
        backend: Any = load_backend(name)  # which may lack what `Trains` has: then it refuses
    except MissingFramework as error:
        yield Trained(title, title, "missing", str(error))
        return
    if engine := getattr(backend, "engine", None):
        title = f"{backend.name} ({engine})"
    start = reference.begin(_default_bias(backend, reference.start.spec) if defaults else reference.start.spec.bias)
    if reason := _refusal(backend, start.spec, reference.batch):
        yield Trained(backend.name, title, "refuses", reason, backend.versions())
        return
    for optimiser in optimisers.values():
        own = Setting(reference.start.spec.bias, optimiser)
        other = Setting(start.spec.bias, optimiser)
        if defaults and optimiser.name == "adam":
            other = other._replace(optimiser=replace(optimiser, epsilon=backend.default_epsilon()))
        row = Trained(backend.name, title, "", versions=backend.versions(), optimiser=other.optimiser, bias=other.bias)
        layer = backend.build(start)
        losses = backend.train(layer, reference.batch, other.optimiser, reference.steps)
        if getattr(losses, "shape", None) != (reference.steps,) or losses.dtype != start.spec.dtype:
            reason = f"train must return {reference.steps} losses in an array of {start.spec.dtype}, not {losses!r}"
            yield replace(row, verdict="differs", reason=reason)
        else:
            run = _Run(losses, layer.weights())
            yield _judged(replace(row, losses=losses), run, reference, own, other)


def _refusal(backend: Backend, spec: RecurrentSpec, batch: Batch) -> str | None:
    """Why this backend does not train this stack on this batch; None where it does."""
    if reason := backend.refuses(spec):
        return reason
    if not backend.differentiable:
        return "it is for inference only: it has no gradients to train by"
    if not isinstance(backend, Trains):
        return "it has no method train, so its optimisers cannot be compared"
    if not getattr(backend, "takes_lengths", True) and not batch.valid.all():
        return "it runs no batches of unequal lengths; pass an x without lengths"
    return None


def _default_bias(backend: Backend, spec: RecurrentSpec) -> str:
    """The form of the biases that the framework's layers have; the spec's where it has none, or is not in the table."""
    convention = CONVENTIONS.get(backend.name)
    return spec.bias if convention is None or spec.bias == "none" else convention.by_default(spec).bias


def _judged(row: Trained, run: _Run, reference: _Reference, own: Setting, other: Setting) -> Trained:
    """The row with its differences, its verdict, and what explains it."""
    curve, weights = _differences(run, reference.train(own))
    row = replace(row, curve=curve, weights=weights)
    bound = reference.bound(own.optimiser)
    if _eps(curve, weights) <= bound:
        return replace(row, verdict="equal")
    candidates = [cause for cause in CAUSES if cause.apply(own, other) != own]
    for count in range(1, len(candidates) + 1):
        for causes in combinations(candidates, count):
            setting = own
            for cause in causes:
                setting = cause.apply(setting, other)
            residual = _eps(*_differences(run, reference.train(setting)))
            if residual <= bound:
                sentences = tuple(cause.sentence(row.title, own, other) for cause in causes)
                return replace(row, verdict="explained", causes=sentences, residual=residual)
    return replace(row, verdict="differs")


def _differences(actual: _Run, expected: _Run) -> tuple[Difference, Part]:
    """Of the losses, and of the weights; where the biases differ in form, of their sums."""
    a, b = actual.weights, expected.weights
    if a.spec.bias != b.spec.bias:
        a, b = fold_biases(a), fold_biases(b)
    pairs = {name: (a.arrays[name], b.arrays[name]) for name in b.arrays}
    return difference(actual.losses, expected.losses), worst_part(b.spec, pairs)


def _eps(curve: Difference, weights: Part) -> float:
    return max(curve.eps, weights.difference.eps)
