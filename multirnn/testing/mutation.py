"""Mutation score: how many backends with a deliberate mistake a test catches.

    def check(backend):
        layer = backend.build(weights)
        np.testing.assert_allclose(layer(x).sequence, expected, rtol=1e-5)

    print(mutation_score(check))

A check is any function of a backend that raises if it fails. It runs once on the right backend, where it must pass, and
then once on every `Mutant` whose mistake makes a difference to the stacks it built.
"""

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, cast

from numpy.typing import ArrayLike

from multirnn.errors import InvalidCall, Unsupported
from multirnn.layer import Gradients, Layer, Output, State, Stream
from multirnn.mistakes import MISTAKES
from multirnn.mistakes.change import Mistake, Runs
from multirnn.protocol import Backend, accept
from multirnn.registry import backend as load_backend
from multirnn.spec import RecurrentSpec
from multirnn.weights import Weights

__all__ = ["Mutant", "Score", "mutants", "mutation_score"]


class _Around:
    """A backend whose `build` records the specs; everything else is the inner backend's."""

    def __init__(self, backend: str | Backend, mistake: str = "") -> None:
        self.inner = inner = load_backend(backend)
        self.name, self.differentiable = inner.name + mistake, inner.differentiable
        self.refuses, self.read, self.versions = inner.refuses, inner.read, inner.versions
        self.built: list[RecurrentSpec] = []

    def build(self, weights: Weights, *, device: str | None = None) -> Layer:
        """The inner backend's layer."""
        layer = self.inner.build(weights, device=device)
        self.built.append(weights.spec)
        return layer

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # while it is being copied
            raise AttributeError(name)
        return getattr(self.inner, name)


class Mutant(_Around):
    """A backend with one mistake.

    It counts parameters and returns weights as the right one does. It builds the right layer if the mistake makes no
    difference to the spec, or if its framework cannot make it, such as a mistake in gradients where there are none.

    Args:
        backend: the right backend.
        mistake: one of `multirnn.mistakes.MISTAKES`, or your own.

    Attributes:
        inner: the right backend.
        mistake: the mistake.
        built: the specs of the layers built with the mistake.
    """

    def __init__(self, backend: str | Backend, mistake: Mistake) -> None:
        super().__init__(backend, f' with the mistake "{mistake.name}"')
        self.mistake = mistake

    def build(self, weights: Weights, *, device: str | None = None) -> Layer:
        """The wrong layer.

        Raises:
            Unsupported: the right backend refuses the spec.
        """
        accept(self.inner, weights.spec)
        build = partial(self.inner.build, device=device)
        in_gradients = self.mistake.shows == "gradients"
        if not self.mistake.applies(weights.spec) or (in_gradients and not self.inner.differentiable):
            return build(weights)
        try:
            wrong = self.mistake.realise(build, weights)
        except Unsupported:  # as PyTorch, which has no GRU with the reset before the product
            return build(weights)
        self.built.append(weights.spec)
        return cast("Layer", MutantLayer(weights, wrong, build))


class MutantLayer:
    """Runs wrong; everything else comes from the right layer, built on demand."""

    def __init__(self, weights: Weights, wrong: Runs, build: Callable[[Weights], Layer]) -> None:
        self.spec = weights.spec
        self._given, self._wrong, self._build = weights, wrong, build

    def __call__(self, x: ArrayLike, state: State | None = None, *, lengths: ArrayLike | None = None) -> Output:
        return self._wrong(x, state, lengths=lengths)

    def vjp(self, *arguments: Any, **keywords: Any) -> Gradients:
        return self._wrong.vjp(*arguments, **keywords)

    def stream(self) -> Stream:
        return Stream(cast("Any", self))

    @cached_property
    def _right(self) -> Layer:
        return self._build(self._given)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # while it is being copied
            raise AttributeError(name)
        return getattr(self._right, name)


def mutants(backend: str | Backend = "numpy") -> tuple[Mutant, ...]:
    """The backend with each known mistake, one at a time."""
    return tuple(Mutant(backend, mistake) for mistake in MISTAKES.values())


_SEEN = {
    "outputs": "in outputs",
    "no state": "only in calls without an initial state",
    "lengths": "only in calls with lengths",
    "gradients": "only in gradients",
    "float64": "only in float64",
}


@dataclass(frozen=True, slots=True)
class Score:
    """The mutants that a check kills. It prints as a sentence and a list of the survivors."""

    backend: str  # the name of the backend
    killed: Mapping[str, str]  # by mistake, how the check failed
    survivors: Mapping[str, str]  # by mistake, what is wrong and was not caught
    not_exercised: Mapping[str, str]  # by mistake, what could not be tried because the framework has no such layer

    @property
    def fraction(self) -> float:
        """The share of killed mutants among those tried."""
        return len(self.killed) / (len(self.killed) + len(self.survivors))

    def __str__(self) -> str:
        tried = len(self.killed) + len(self.survivors)
        lines = [f"kills {len(self.killed)} of {tried} mutants of {self.backend} ({self.fraction:.0%})"]
        for shows, title in _SEEN.items():
            names = [name for name in self.survivors if getattr(MISTAKES.get(name), "shows", "outputs") == shows]
            if names:
                lines += ["", f"survivors seen {title} ({len(names)}):"]
                lines += [f"  {name}: {self.survivors[name]}" for name in names]
        if self.not_exercised:
            lines += ["", f"not tried, since {self.backend} cannot make them: {', '.join(self.not_exercised)}"]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        found = {name: dict(getattr(self, name)) for name in ("killed", "survivors", "not_exercised")}
        return {"backend": self.backend, "fraction": self.fraction, **found}

    def to_json(self, indent: int | None = 2) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False)


def mutation_score(
    check: Callable[[Any], object],
    *,
    backend: str | Backend = "numpy",
    specs: RecurrentSpec | Iterable[RecurrentSpec] | None = None,
    mistakes: Iterable[str | Mistake] | None = None,
) -> Score:
    """Count the mutants that a check kills.

    Args:
        check: a function of a backend that raises if it fails: an AssertionError as of pytest and NumPy, or any other
            exception that fails a test. It must build its layers with the given backend, and always pass on a right one.
        backend: the right backend; NumPy's is fast.
        specs: the specs in which a mistake must make a difference; those that the check builds unless given.
        mistakes: names of known mistakes, or your own; all known ones unless given.

    Raises:
        InvalidCall: the check fails on the right backend, builds no layer there, or no mistake makes a difference to the
            layers it builds.
    """
    right = _Around(backend)
    if (failure := _failure(check, right)) is not None:
        raise InvalidCall(f"the check fails on the right backend too, so it tells nothing: {failure}")
    if not right.built:
        raise InvalidCall("the check builds no layer with the backend that it is given: call backend.build(weights)")
    seen = {specs} if isinstance(specs, RecurrentSpec) else set(right.built if specs is None else specs)
    named = [MISTAKES[m] if isinstance(m, str) else m for m in (MISTAKES if mistakes is None else mistakes)]
    killed, survivors, not_exercised = {}, {}, {}
    for mistake in named:
        if not any(mistake.applies(spec) for spec in seen):
            continue
        mutant = Mutant(right.inner, mistake)
        failure = _failure(check, mutant)
        if not mutant.built:
            if failure is not None:
                raise InvalidCall(f"the check held on the right backend once, and then failed on it: {failure}")
            not_exercised[mistake.name] = mistake.says
        elif failure is None:
            survivors[mistake.name] = mistake.says
        else:
            killed[mistake.name] = failure
    if not killed and not survivors:
        raise InvalidCall(f"none of the {len(named)} mistakes makes a difference to what the check builds")
    return Score(right.name, killed, survivors, not_exercised)


def _failure(check: Callable[[Any], object], backend: _Around) -> str | None:
    """How the check fails, in one line; None if it passes."""
    pytest = sys.modules.get("pytest")  # its `fail` and `raises` do not raise an Exception
    failures = (Exception,) if pytest is None else (Exception, pytest.fail.Exception)
    try:
        check(backend)
    except failures as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        return f"{type(error).__name__}: {first}" if first else type(error).__name__
    return None
