"""Trains every backend beside the reference, and explains their differences."""

from __future__ import annotations  # or naming np.random.Generator loads numpy.random

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from multirnn.comparison import Part, worst_part
from multirnn.conventions import CONVENTIONS
from multirnn.errors import InvalidCall
from multirnn.numerics import TOLERANCE, Difference, difference, draw_call
from multirnn.parity.causes import CAUSES, Setting
from multirnn.parity.optimiser import OPTIMISERS, STEPS, Batch, Optimiser
from multirnn.parity.record import Parity, Trained, worse_eps
from multirnn.protocol import Backend, Trains, abilities, backend_title, offers
from multirnn.registry import Absent, present
from multirnn.registry import backend as load_backend
from multirnn.registry import backends as installed_backends
from multirnn.spec import RecurrentSpec
from multirnn.weights import Array, Weights, fold_biases, initialise, split_biases, weights_of

__all__ = ["train_parity"]


@np.errstate(all="ignore")  # of a training that diverges
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
    """Train one stack on every backend, and compare losses and final weights with the reference.

    Args:
        spec_or_weights: the start, or a spec whose start is drawn by `initialise(spec, seed)`.
        x: `(batch, time, input_size)` of the spec's dtype. Unless given, it and its lengths are drawn.
        target: `(batch, time, directions * hidden_size)`; unless given, the output of a stack with other, drawn weights.
        lengths: `(batch,)` integers. Rows of length 0 are left out.
        optimisers: names out of `OPTIMISERS`, or `Optimiser` objects.
        steps: their number, each on the whole batch.
        learning_rate: for all optimisers; defaults to theirs in `OPTIMISERS`.
        backends: a name, or names and Backend objects; defaults to all installed ones.
        seed: seeds all drawing.
        defaults: give each framework its own default form of the biases, which begins as the same function, and its
            Adam's default epsilon. A spec without biases has none.

    Raises:
        UnknownBackend: a name that no distribution offers. A backend that is missing, broken or refuses is a row.
        InvalidCall: x, target or lengths do not fit, there is nothing to train on, an optimiser is unknown, or the
            training of the reference diverges.
    """
    weights = weights_of(spec_or_weights, seed, "train_parity")
    if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or steps < 1:
        raise InvalidCall(f"steps must be a positive integer, not {steps!r}")
    chosen = _optimisers(optimisers, learning_rate)
    batch = _batch(weights.spec, x, target, lengths, seed)
    reference = _ReferenceTraining(weights, batch, int(steps), seed)
    own = {name: reference.train(Setting(weights.spec.bias, optimiser)) for name, optimiser in chosen.items()}
    for name, run in own.items():
        if not np.isfinite(run.losses).all():
            raise InvalidCall(f"the training diverges: {chosen[name]} is too fast here; take a smaller learning_rate")
        if reference.bound(chosen[name]) * np.finfo(weights.spec.dtype).eps > _LARGEST_BOUND:
            raise InvalidCall(
                f"{chosen[name]} magnifies rounding {reference.growth(chosen[name]):.0e} times here, so that nothing can be "
                "told about it: take a smaller learning_rate, fewer steps, or float64"
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
    """The training data, checked or drawn; padding is zero, and no row is empty."""
    if x is None:
        if target is not None or lengths is not None:
            raise InvalidCall("a target or lengths belong to an x: pass x too")
        x, _, lengths = draw_call(spec, seed)
    # Not the weights of the start, which `seed` alone draws.
    teacher = load_backend("numpy").build(initialise(spec, np.random.default_rng((seed, 1))))
    taught = teacher(x, lengths=lengths).sequence  # raises if x or lengths do not fit
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


class _ReferenceTraining:
    """NumPy in float64, trained once under each setting."""

    def __init__(self, start: Weights, batch: Batch, steps: int, seed: int) -> None:
        self.start, self.batch, self.steps, self.seed = start, batch, steps, seed
        self._backend: Any = load_backend("numpy")
        self._wide = batch.astype("float64")
        self.train, self.growth = cache(self._train), cache(self._magnified)

    def begin(self, bias: str) -> Weights:
        """The start with the biases in this form: the same function."""
        if bias == self.start.spec.bias:
            return self.start
        return split_biases(self.start) if bias == "double" else fold_biases(self.start)

    def _train(self, setting: Setting, start: Weights | None = None) -> _Run:
        """The losses and final weights under this setting, from its own start unless another is given."""
        layer = self._backend.build(start or self.begin(setting.bias).astype("float64"))
        scalars = self.start.spec.dtype if setting.rounded else ""
        losses = self._backend.train(
            layer, self._wide, setting.optimiser, self.steps, form=setting.form, scalars=scalars
        )
        return _Run(losses, layer.weights())

    def bound(self, optimiser: Optimiser) -> float:
        """The largest difference that counts as rounding, in eps."""
        return TOLERANCE[self.start.spec.dtype] * self.growth(optimiser)

    def _magnified(self, optimiser: Optimiser) -> float:
        """The factor by which training magnifies rounding of the start: the largest of a few draws, at least one."""
        setting = Setting(self.start.spec.bias, optimiser)
        eps = float(np.finfo(self.start.spec.dtype).eps)
        wide = self.start.astype("float64")
        rng = np.random.default_rng((self.seed, 2))
        found = [1.0]
        for _ in range(_DRAWS):
            shifted = {name: w + rng.uniform(-eps, eps, w.shape) * np.abs(w).max() for name, w in wide.arrays.items()}
            curve, part = _differences(self._train(setting, Weights(wide.spec, shifted)), self.train(setting))
            found.append(max(curve.normwise, part.difference.normwise) / eps)
        return max(found)


_DRAWS = 2
_LARGEST_BOUND = 0.05  # halving the learning rate changes losses and weights by at least 0.054, with 3 to 64 units


def _rows(
    name: str | Backend, reference: _ReferenceTraining, optimisers: Mapping[str, Optimiser], defaults: bool
) -> Iterator[Trained]:
    """One row for each optimiser, or one that says why there are none."""
    backend: Any = present(name)  # which may lack what `Trains` has: then it refuses
    if isinstance(backend, Absent):
        yield Trained(backend.name, backend.name, backend.verdict, backend.reason)
        return
    title = backend_title(backend)
    start = reference.begin(_default_bias(backend, reference.start.spec) if defaults else reference.start.spec.bias)
    if reason := _training_refuses(backend, start.spec, reference.batch):
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


def _training_refuses(backend: Backend, spec: RecurrentSpec, batch: Batch) -> str | None:
    """None if this backend trains this stack on this batch, else the reason why not."""
    if reason := backend.refuses(spec):
        return reason
    if not backend.differentiable:
        return "it is for inference only: it has no gradients to train by"
    if not offers(backend, Trains):
        return "it has no method train, so its optimisers cannot be compared"
    if not abilities(backend).takes_lengths and not batch.valid.all():
        return "it runs no batches of unequal lengths; pass an x without lengths"
    return None


def _default_bias(backend: Backend, spec: RecurrentSpec) -> str:
    """The default form of the framework's biases; the spec's if it has none, or the framework is not in the table."""
    convention = CONVENTIONS.get(backend.name)
    return spec.bias if convention is None or spec.bias == "none" else convention.by_default(spec).bias


def _judged(row: Trained, run: _Run, reference: _ReferenceTraining, own: Setting, other: Setting) -> Trained:
    """The row with its differences, verdict and causes."""
    curve, weights = _differences(run, reference.train(own))
    row = replace(row, curve=curve, weights=weights)
    bound = reference.bound(own.optimiser)
    if worse_eps(curve, weights) <= bound:
        return replace(row, verdict="equal")
    candidates = [cause for cause in CAUSES if cause.apply(own, other) != own]
    for count in range(1, len(candidates) + 1):
        for causes in combinations(candidates, count):
            setting = own
            for cause in causes:
                setting = cause.apply(setting, other)
            residual = worse_eps(*_differences(run, reference.train(setting)))
            if residual <= bound:
                sentences = tuple(cause.sentence(row.title, own, other) for cause in causes)
                return replace(row, verdict="explained", causes=sentences, residual=residual)
    return replace(row, verdict="differs")


def _differences(actual: _Run, expected: _Run) -> tuple[Difference, Part]:
    """The differences of the losses and of the weights; of the sums of the biases if their forms differ."""
    a, b = actual.weights, expected.weights
    if a.spec.bias != b.spec.bias:
        a, b = fold_biases(a), fold_biases(b)
    pairs = {name: (a.arrays[name], b.arrays[name]) for name in b.arrays}
    return difference(actual.losses, expected.losses), worst_part(b.spec, pairs)
