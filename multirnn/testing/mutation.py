"""Are the tests any good? Backends made wrong on purpose, and how many of them a test notices.

    def check(backend):
        layer = backend.build(weights)
        np.testing.assert_allclose(layer(x).sequence, expected, rtol=1e-5)

    print(mutation_score(check))

A check is any function of a backend that raises where it is not satisfied. It is run once on the right backend, where it
has to hold, and then once on every `Mutant` whose mistake can be seen in the stacks that it built.
"""

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from numpy.typing import ArrayLike

from multirnn.backend import Backend, accept
from multirnn.catalogue import MISTAKES
from multirnn.errors import InvalidCall, Unsupported
from multirnn.layer import Gradients, Layer, Output, State, Stream
from multirnn.mistakes import Mistake, Runs
from multirnn.registry import backend as load_backend
from multirnn.spec import RecurrentSpec
from multirnn.weights import Weights

__all__ = ["Mutant", "Score", "mutants", "mutation_score"]


class _Around:
    """A backend with another `build`, which keeps the specs of what it built."""

    def __init__(self, backend: str | Backend, name: str) -> None:
        self.inner = load_backend(backend)
        self.name = name
        self.differentiable = self.inner.differentiable
        self.built: list[RecurrentSpec] = []

    def refuses(self, spec: RecurrentSpec) -> str | None:
        """What the inner backend says."""
        return self.inner.refuses(spec)

    def build(self, weights: Weights, *, device: str | None = None) -> Layer:
        """The inner backend's layer."""
        layer = self.inner.build(weights, device=device)
        self.built.append(weights.spec)
        return layer

    def read(self, native: Any) -> Weights:
        """What the inner backend reads."""
        return self.inner.read(native)

    def versions(self) -> Mapping[str, str]:
        """Those of the inner backend."""
        return self.inner.versions()

    def __getattr__(self, name: str) -> Any:
        """Whatever else the inner backend has, as `engine` or `devices`."""
        if name == "inner":  # not there yet, while it is being copied
            raise AttributeError(name)
        return getattr(self.inner, name)


class Mutant(_Around):
    """A backend with one mistake in it.

    It counts its parameters and hands back its weights as the right one does, and builds the right layer of a spec on
    which the mistake makes no difference, or of which its framework cannot make it: one in gradients where there are none.

    Args:
        backend: which is made wrong.
        mistake: out of `multirnn.catalogue.MISTAKES`, or one of your own.

    Attributes:
        inner: the right backend.
        mistake: what is wrong.
        built: the specs of the layers that were built with the mistake.
    """

    def __init__(self, backend: str | Backend, mistake: Mistake) -> None:
        inner = load_backend(backend)
        super().__init__(inner, f'{inner.name} with the mistake "{mistake.name}"')
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
        except Unsupported:  # PyTorch has no GRU with the reset before, so nobody can take it by mistake there
            return build(weights)
        self.built.append(weights.spec)
        return MutantLayer(weights, wrong, build)


class MutantLayer:
    """Runs wrong; everything else is asked of the right layer, built when something is."""

    def __init__(self, weights: Weights, wrong: Runs, build: Callable[[Weights], Layer]) -> None:
        self.spec = weights.spec
        self._given = weights
        self._wrong = wrong
        self._build = build

    @cached_property
    def _right(self) -> Layer:
        return self._build(self._given)

    @property
    def differentiable(self) -> bool:
        return getattr(self._right, "differentiable", True)

    @property
    def native(self) -> Any:
        return self._right.native

    @property
    def parameter_count(self) -> int:
        return self._right.parameter_count

    def weights(self) -> Weights:
        return self._right.weights()

    def __call__(self, x: ArrayLike, state: State | None = None, *, lengths: ArrayLike | None = None) -> Output:
        return self._wrong(x, state, lengths=lengths)

    def vjp(
        self, x: ArrayLike, state: State | None = None, *, lengths: ArrayLike | None = None, cotangent: Output
    ) -> Gradients:
        return self._wrong.vjp(x, state, lengths=lengths, cotangent=cotangent)

    def stream(self) -> Stream:
        return Stream(self)


def mutants(backend: str | Backend = "numpy") -> tuple[Mutant, ...]:
    """The backend with each mistake of the catalogue, one at a time."""
    return tuple(Mutant(backend, mistake) for mistake in MISTAKES.values())


_SEEN = {
    "outputs": "seen in outputs",
    "lengths": "seen only in calls with lengths",
    "gradients": "seen only in gradients",
    "float64": "seen only in float64",
}


@dataclass(frozen=True, slots=True)
class Score:
    """How many mutants a check kills. It prints as a sentence and the list of those that survive.

    Attributes:
        backend: the name of the one that was made wrong.
        killed: by the name of its mistake, how the check failed.
        survivors: by the name of its mistake, what is wrong there and was not noticed.
        not_exercised: by the name of its mistake, what could not be tried: the framework has no such layer.
    """

    backend: str
    killed: Mapping[str, str]
    survivors: Mapping[str, str]
    not_exercised: Mapping[str, str]

    @property
    def fraction(self) -> float:
        """The mutants killed, of all that were tried."""
        return len(self.killed) / (len(self.killed) + len(self.survivors))

    def __str__(self) -> str:
        tried = len(self.killed) + len(self.survivors)
        lines = [f"kills {len(self.killed)} of {tried} mutants of {self.backend} ({self.fraction:.0%})"]
        for shows, title in _SEEN.items():
            names = [name for name in self.survivors if _shows(name) == shows]
            if names:
                lines += ["", f"survivors {title} ({len(names)}):"]
                lines += [f"  {name}: {self.survivors[name]}" for name in names]
        if self.not_exercised:
            lines += ["", f"not tried, since {self.backend} cannot make them: {', '.join(self.not_exercised)}"]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """All that was found, in values that JSON has."""
        return {
            "backend": self.backend,
            "fraction": self.fraction,
            "killed": dict(self.killed),
            "survivors": dict(self.survivors),
            "not_exercised": dict(self.not_exercised),
        }

    def to_json(self, indent: int | None = 2) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False)


def _shows(name: str) -> str:
    return MISTAKES[name].shows if name in MISTAKES else "outputs"


def mutation_score(
    check: Callable[[Any], object],
    *,
    backend: str | Backend = "numpy",
    specs: RecurrentSpec | Iterable[RecurrentSpec] | None = None,
    mistakes: Iterable[str | Mistake] | None = None,
) -> Score:
    """Count the mutants that a check kills.

    Args:
        check: a function of a backend that raises where it is not satisfied: an AssertionError as pytest's and NumPy's,
            or any other exception, which would fail a test as well. It has to build its layers with the backend that it
            is given, and to hold every time on a right one.
        backend: which is made wrong; NumPy's is fast.
        specs: where mistakes have to be seen; those of the layers that the check builds unless given.
        mistakes: names of the catalogue or mistakes of your own; the whole catalogue unless given.

    Raises:
        InvalidCall: the check fails on the right backend too, or builds no layer there, or no mistake makes a difference
            to what it builds: nothing can be learned from it.
    """
    right = _Around(backend, load_backend(backend).name)
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
    """How the check fails, in one line; None where it holds."""
    try:
        check(backend)
    except _failures() as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        return f"{type(error).__name__}: {first}" if first else type(error).__name__
    return None


def _failures() -> tuple[type[BaseException], ...]:
    """What fails a test. `pytest.fail` and a `pytest.raises` that sees nothing raise no Exception."""
    pytest = sys.modules.get("pytest")
    return (Exception,) if pytest is None else (Exception, pytest.fail.Exception)
