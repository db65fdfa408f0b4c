"""Which mistake makes two layers differ? The known ones are made on the right side, until it is wrong in the same way.

B is asked a few calls: small batches, with initial states and lengths, and gradients where it has them. A is realised
by NumPy in float64. Where B answers differently, each mistake of the catalogue is made in that realisation: alone; in
one layer and direction only; and two of them together. A mistake is named where it gives B's answers, all of them,
within the tolerance of the dtype. So however it was guessed, what is named is proven on numbers.
"""

from __future__ import annotations  # or naming np.random.Generator loads numpy.random

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from multirnn.adoption import Adopted, adopt, known_spec
from multirnn.assembly import Plumbing
from multirnn.catalogue import mistakes_for
from multirnn.compare import TOLERANCE, tolerance
from multirnn.divergence import Divergence, first_divergence
from multirnn.errors import InvalidCall, MultirnnError, Unrepresentable
from multirnn.layer import Lengths, Output, State
from multirnn.mistakes import Build, Change, Mistake, Runs, composed
from multirnn.registry import backend
from multirnn.spec import RecurrentSpec
from multirnn.weights import Array, Weights, fold_biases, split_biases

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

__all__ = ["Diagnosis", "Explanation", "diagnose"]

Mistakes = tuple[Mistake, ...]
Answer = dict[str, Array]


@dataclass(frozen=True, slots=True)
class Explanation:
    """What makes B differ, in words.

    Attributes:
        mistakes: of the catalogue, the one nearest to the framework first; empty where two specs say it already.
        sentence: what B does and what would be right.
        fix: what to do about it; it begins with "Fix:".
    """

    mistakes: Mistakes
    sentence: str
    fix: str


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Diagnosis:
    """Whether two layers are the same function, and what is wrong with the second where they are not.

    Attributes:
        spec: of A.
        titles: of A and of B.
        subject: whom the causes are said of: "B"; "A", where it is A that does not compute what its own weights say.
        equal: whether they agree in all that was asked; then nothing else is said of a cause.
        causes: what explains all of B's answers; empty where nothing in the catalogue does.
        ambiguous: whether there is more than one cause: they are the same function on everything that B takes.
        remarks: facts beside the cause: in what the specs differ, whether B's own weights are A's.
        calls: how many calls B was asked.
        eps: the largest normwise difference of what B answered from what A would, in eps; infinite where an answer is
            missing, of another shape, or not finite.
        divergence: where B first parts from A, where no cause explains it; else None.
        corrected: weights with which B is right, where any are: A's for a layer that computes rightly with its own, else
            A's turned round so that the mistake turns them back. None where no weights help.
    """

    spec: RecurrentSpec
    titles: tuple[str, str]
    equal: bool
    subject: str = "B"
    causes: tuple[Explanation, ...] = ()
    remarks: tuple[str, ...] = ()
    calls: int = 0
    eps: float = 0.0
    divergence: Divergence | None = None
    corrected: Weights | None = None

    @property
    def ambiguous(self) -> bool:
        """Whether several causes are left that no call of B tells apart."""
        return len(self.causes) > 1

    def to_dict(self) -> dict[str, Any]:
        """All that was found, in values that JSON has; of the corrected weights only whether there are any."""
        return {
            "equal": self.equal,
            "a": self.titles[0],
            "b": self.titles[1],
            "subject": self.subject,
            "spec": self.spec.to_dict(),
            "causes": [
                {
                    "mistakes": [mistake.name for mistake in cause.mistakes],
                    "sentence": cause.sentence,
                    "fix": cause.fix,
                }
                for cause in self.causes
            ],
            "ambiguous": self.ambiguous,
            "remarks": list(self.remarks),
            "calls": self.calls,
            "eps": self.eps if np.isfinite(self.eps) else None,
            "divergence": None if self.divergence is None else self.divergence.to_dict(),
            "corrected": self.corrected is not None,
        }

    def to_json(self, indent: int | None = 2) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False, allow_nan=False)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        yield Text(self._title, style="bold")
        for line in self._verdict():
            fix = line.lstrip().startswith("Fix:")
            yield Text(line, style="green" if self.equal else "cyan" if fix else "red")
        if self.divergence is not None:
            yield self.divergence
        yield from map(Text, self.remarks)

    def __str__(self) -> str:
        divergence = [] if self.divergence is None else [str(self.divergence)]
        return "\n".join([self._title, *self._verdict(), *divergence, *self.remarks])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from html import escape

        said = [self._title, *self._verdict(), *self.remarks]
        divergence = "" if self.divergence is None else self.divergence._repr_html_()
        return f"<div>{''.join(f'<p>{escape(line)}</p>' for line in said)}{divergence}</div>"

    @property
    def _title(self) -> str:
        return f"A: {self.titles[0]}; B: {self.titles[1]}; {self.spec!r}"

    def _verdict(self) -> Iterator[str]:
        if self.equal:
            yield (
                f"A and B are the same function: {self.calls} calls agree within {self.eps:.2g} eps of "
                f"{self.spec.dtype}, and {TOLERANCE[self.spec.dtype]} count as equal."
            )
        elif self.ambiguous:
            yield f"{self._differ}, and no call of {self.subject} tells these {len(self.causes)} explanations apart:"
            for place, cause in enumerate(self.causes, 1):
                yield f"{place}. {cause.sentence}"
                yield f"   {cause.fix}"
        elif self.causes:
            yield self.causes[0].sentence
            yield self.causes[0].fix
        else:
            yield f"{self._differ}, and none of the known mistakes explains it, alone or two together."

    @property
    def _differ(self) -> str:
        return "A and B differ" if self.subject == "B" else "A does not compute what its own weights say"


def diagnose(
    a: Any,
    b: Any,
    *,
    spec: RecurrentSpec | None = None,
    x: ArrayLike | None = None,
    state: State | None = None,
    lengths: ArrayLike | None = None,
    seed: int = 0,
) -> Diagnosis:
    """Name the mistake that makes B differ from A.

    Args:
        a: the right side: a `Layer`, or a framework's own layer whose weights can be read.
        b: the side in question: a `Layer`, a framework's own layer, or a function `f(x, h0) -> (y, h)` on NumPy arrays.
        spec: what B is meant to be, where it does not say so itself; A's unless given.
        x: `(batch, time, input_size)`; a call of your own beside those that are drawn.
        state: the initial state of that call.
        lengths: `(batch,)` integers, of that call.
        seed: of the calls that are drawn.

    Raises:
        InvalidCall: A has no weights that can be read; or B cannot be called, or not with x, state and lengths.
    """
    right = adopt(a)
    if not right.readable:
        raise InvalidCall(
            f"A, {right.title}, has no weights that can be read; pass the side that is right as A, a Layer or a "
            "framework's own layer"
        )
    weights = right.weights()
    wrong = adopt(b, spec=None if known_spec(b) else spec or weights.spec)
    titles = right.title, wrong.title
    if unlike := _unlike(weights.spec, wrong.spec):
        return Diagnosis(weights.spec, titles, False, causes=(unlike,), eps=float("inf"))
    given = [] if x is None else [_given(wrong.spec, x, state, lengths)]
    itself = _Examination(right, weights, np.random.default_rng(seed))
    if not itself.explains(itself.layer, itself.probes[:1], itself.bound):
        return itself.diagnosis("A", titles)
    return _Examination(wrong, weights, np.random.default_rng(seed), given).diagnosis("B", titles, right)


# --- The calls -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """A call, in float64; with a cotangent it asks for gradients and not for outputs."""

    x: Array
    state: State | None = None
    lengths: Lengths | None = None
    cotangent: Output | None = None


def _given(spec: RecurrentSpec, x: ArrayLike, state: State | None, lengths: ArrayLike | None) -> Probe:
    """The caller's own call, batched, of numbers that the dtype of the spec holds."""

    def wide(value: ArrayLike) -> Array:
        return np.asarray(value, spec.dtype).astype("float64")

    array = wide(x)
    initial = None if state is None else _each(state, wide)
    if array.ndim == 2:
        array = array[None]
        initial = None if initial is None else _each(initial, lambda part: part[:, None])
    return Probe(array, initial, None if lengths is None else np.atleast_1d(np.asarray(lengths)))


def _drawn(
    spec: RecurrentSpec,
    rng: np.random.Generator,
    batch: int,
    time: int,
    *,
    from_zero: bool = False,
    lengths: Sequence[int] | None = None,
    gradients: bool = False,
    scale: float = 1.0,
) -> Probe:
    """Numbers that the dtype of the spec holds exactly."""

    def normal(*shape: int) -> Array:
        return (scale * rng.standard_normal(shape)).astype(spec.dtype).astype("float64")

    def a_state() -> State:
        return State(
            *(normal(spec.num_layers * len(spec.directions), batch, spec.hidden_size) for _ in spec.form.states)
        )

    return Probe(
        normal(batch, time, spec.input_size),
        None if from_zero else a_state(),
        None if lengths is None else rng.permutation(lengths),
        Output(normal(batch, time, spec.output_size), a_state()) if gradients else None,
    )


def _each(state: State, change: Callable[[Array], Array]) -> State:
    return State(change(state.h), None if state.c is None else change(state.c))


def _asked(layer: Runs, probe: Probe, dtype: str) -> Answer:
    """What a layer answers, by name, in float64."""

    def cast(part: Array) -> Array:
        return part.astype(dtype)

    x, lengths = cast(probe.x), probe.lengths
    state = None if probe.state is None else _each(probe.state, cast)
    if probe.cotangent is None:
        output = layer(x, state, lengths=lengths)
        named: dict[str, Array | None] = {"output": output.sequence, **_state_parts("final", output.state)}
    else:
        cotangent = Output(cast(probe.cotangent.sequence), _each(probe.cotangent.state, cast))
        found = layer.vjp(x, state, lengths=lengths, cotangent=cotangent)
        weights = {f"gradient of {name}": array for name, array in found.weights.items()}
        named = {"gradient of x": found.x, **_state_parts("gradient of initial", found.state), **weights}
    return {name: np.asarray(array, "float64") for name, array in named.items() if array is not None}


def _state_parts(prefix: str, state: State) -> dict[str, Array | None]:
    return {f"{prefix} {name}": part for name, part in zip(("h", "c"), state, strict=True)}


def _apart(actual: Answer, expected: Answer) -> float:
    """The worst normwise difference of what is expected; infinite where it is not there, or nothing is."""
    if not expected:
        return float("inf") if actual else 0.0
    return max(_distance(actual.get(name), array) for name, array in expected.items())


def _distance(actual: Array | None, expected: Array) -> float:
    """max|actual - expected| / max|expected|, over what is finite in both; infinite where only one is."""
    if actual is None or actual.shape != expected.shape:
        return float("inf")
    scale = float(np.abs(expected).max(initial=0))
    if not np.isfinite(scale):
        finite = np.isfinite(expected)
        return _distance(actual[finite], expected[finite]) if (finite == np.isfinite(actual)).all() else float("inf")
    largest = float(np.abs(actual - expected).max(initial=0))
    if largest == 0:
        return 0.0
    return largest / scale if scale and np.isfinite(largest) else float("inf")


# --- The search ------------------------------------------------------------------------------------------------------


class Effect(NamedTuple):
    """In which parts of an answer a mistake does not show, and which parts it alone does not explain."""

    silent: frozenset[str]
    unfit: frozenset[str]


class _Examination:
    """A layer in question, the right weights in NumPy's float64, and what becomes of these under mistakes."""

    def __init__(self, wrong: Adopted, weights: Weights, rng: np.random.Generator, given: Sequence[Probe] = ()) -> None:
        self.wrong, self.weights, self.rng = wrong, weights, rng
        self.spec = replace(weights.spec, dtype=wrong.spec.dtype)
        self.bound = max(tolerance(weights.spec.dtype), tolerance(wrong.spec.dtype))
        self.wide = weights.astype("float64")
        self.own = wrong.weights().astype("float64") if wrong.readable else None
        self.declared = _declared(weights.spec, wrong.spec)
        self.mistakes = mistakes_for(self.spec)
        self.build: Build = backend("numpy").build
        self.layer = self.build(self.wide)
        self.answers: dict[Probe, Answer] = {}
        self.alone: dict[str, Runs] = {}
        self.lowest = self.wide.part(0, "forward")
        self.changed: dict[tuple[str, bool], Weights] = {}
        self.alike: dict[str, bool] = {}
        self.explained_parts: dict[Probe, frozenset[str]] = {}
        self.right: dict[Probe, Answer] = {}
        self.effects: dict[tuple[str, Probe], Effect] = {}
        self.probes = [*given, *self._probes()]

    def diagnosis(self, subject: str, titles: tuple[str, str], right: Adopted | None = None) -> Diagnosis:
        """What there is to say; where nothing explains it, with the first divergence from `right`."""
        eps = max(_apart(self.right_answer(probe), self.asked(probe)) for probe in self.probes)
        equal = eps <= self.bound
        causes = [] if equal else self._explanations()
        count = _counts_wrongly(self.wrong, subject) if equal else None
        return Diagnosis(
            self.weights.spec,
            titles,
            equal and count is None,
            subject,
            tuple(_explained(mistakes, subject) for mistakes in causes) if count is None else (count,),
            tuple(self._remarks(subject, equal)),
            len(self.answers),
            eps / self.bound * TOLERANCE[self.spec.dtype],
            None if equal or causes or right is None else first_divergence(right, self.wrong),
            self._corrected(causes[0]) if causes else None,
        )

    # What is asked

    def _probes(self) -> Iterator[Probe]:
        """What tells whether it is right; of one shape, since frameworks compile for each.

        As many rows as steps, since what mixes these up takes no initial state otherwise.
        """
        lengths = (0, 5, 5, 1, 3)
        yield self._draw(5, 5)
        yield self._draw(5, 5, from_zero=True)
        if self.wrong.takes_lengths:
            yield self._draw(5, 5, lengths=lengths)
        if self.wrong.differentiable:
            yield self._draw(5, 5, gradients=True)
            if self.wrong.takes_lengths:
                yield self._draw(5, 5, lengths=lengths, gradients=True)

    def _single_steps(self) -> Iterator[Probe]:
        """What is quickly answered, and parts the mistakes: from zero no recurrent matrix shows, and so on."""
        yield self._draw(1, 1)
        yield self._draw(1, 1, from_zero=True)
        no_input = self._draw(1, 1)
        yield replace(no_input, x=np.zeros_like(no_input.x))

    def _further_probes(self) -> Iterator[Probe]:
        """What may tell two explanations apart: other shapes, and numbers that are small, and large."""
        for batch, time, scale in ((3, 7, 1.0), (4, 4, 1.0), (1, 1, 1.0), (2, 2, 0.1), (5, 5, 5.0), (6, 2, 1.0)):
            lengths = [time, *(row % time for row in range(batch - 1))] if self.wrong.takes_lengths else None
            yield self._draw(batch, time, scale=scale)
            yield self._draw(batch, time, scale=scale, lengths=lengths)
            if self.wrong.differentiable:
                yield self._draw(batch, time, scale=scale, lengths=lengths, gradients=True)

    def _draw(self, batch: int, time: int, *, from_zero: bool = False, **how: Any) -> Probe:
        return _drawn(self.spec, self.rng, batch, time, from_zero=from_zero or not self.wrong.takes_state, **how)

    def asked(self, probe: Probe) -> Answer:
        """What it answers, asked once; without the gradients of weights where its weights are not the right ones."""
        if probe not in self.answers:
            answer = self._answer(probe)
            if self.own is None or self.own != self.wide:
                answer = {name: array for name, array in answer.items() if not name.startswith("gradient of layers.")}
            self.answers[probe] = answer
        return self.answers[probe]

    def _answer(self, probe: Probe) -> Answer:
        try:
            return _asked(self.wrong, probe, self.wrong.spec.dtype)
        except InvalidCall:
            if not any(self.answers.values()):
                raise
            return {}  # it takes some calls, and not this one

    def expected(self, layer: Runs, probe: Probe) -> Answer:
        """What a layer of NumPy's answers, with or without mistakes; nothing to calls that it cannot take."""
        try:
            return _asked(layer, probe, "float64")
        except (MultirnnError, ValueError, IndexError):
            return {}

    def right_answer(self, probe: Probe) -> Answer:
        """What the right layer answers, asked once."""
        if probe not in self.right:
            self.right[probe] = self.expected(self.layer, probe)
        return self.right[probe]

    def explains(self, layer: Runs, probes: Sequence[Probe], bound: float) -> bool:
        """Whether this layer answers as the one in question; it stops at the first probe in which it does not."""
        return all(_apart(self.expected(layer, probe), self.asked(probe)) <= bound for probe in probes)

    # What explains the answers

    def _explanations(self) -> list[Mistakes]:
        """What gives the answers: the simplest explanations, as many as no further call tells apart."""
        for hypotheses in (self._as_declared, self._singles, self._confined, self._pairs):
            found = [mistakes for mistakes in hypotheses() if self._explained_by(mistakes)]
            found = [m for m in found if self._bound(*m) == self.bound] or found
            unordered = {frozenset(mistake.name for mistake in m): m for m in reversed(found)}
            if left := self._told_apart(list(unordered.values())[::-1]):
                return left
        return []

    def _explained_by(self, mistakes: Mistakes) -> bool:
        return self.explains(self._with(*mistakes), self.probes, self._bound(*mistakes))

    def _with(self, *mistakes: Mistake) -> Runs:
        """The right layer with these mistakes; of one mistake, made once."""
        if len(mistakes) != 1:
            return composed(self.build, *mistakes)(self.wide)
        name = mistakes[0].name
        if name not in self.alone:
            self.alone[name] = mistakes[0].realise(self.build, self.wide)
        return self.alone[name]

    def _bound(self, *mistakes: Mistake) -> float:
        """What counts as rounding; of mistakes that compute in float32, that of float32."""
        narrow = any(self._changed(mistake).spec.dtype == "float32" for mistake in mistakes)
        return max(self.bound, tolerance("float32")) if narrow else self.bound

    def _changed(self, mistake: Mistake, lowest: bool = False) -> Weights:
        """The weights that a mistake makes of the right ones, or of the lowest pass alone; made once."""
        key = mistake.name, lowest
        if key not in self.changed:
            self.changed[key] = _change(mistake, self.lowest if lowest else self.wide)
        return self.changed[key]

    def _as_declared(self) -> Iterator[Mistakes]:
        """What its spec says it is, where that is not what it is to be."""
        if self.declared:
            yield self.declared

    def _singles(self) -> Iterator[Mistakes]:
        for mistake in self.mistakes:
            yield (mistake,)
            if self.declared:
                yield (*self.declared, mistake)

    def _confined(self) -> Iterator[Mistakes]:
        """Mistakes in one layer and direction only, where all that this one does not reach is right."""
        passes = list(self.spec.passes)
        probe = self.probes[0]
        actual, expected = self.asked(probe), self.expected(self.layer, probe)
        right = [
            all(
                _distance(expected[name][place], actual[name][place]) <= self.bound
                for name in actual
                if name.startswith("final")
            )
            for place in range(len(passes))
        ]
        for layer, direction in passes if len(passes) > 1 else ():
            beside = [place for place, other in enumerate(passes) if other[0] <= layer and other != (layer, direction)]
            if all(right[place] for place in beside):
                for mistake in mistakes_for(replace(self.weights.part(layer, direction).spec, dtype=self.spec.dtype)):
                    yield (_only_in(mistake, layer, direction),)

    def _pairs(self) -> Iterator[Mistakes]:
        """Two of different families, in both orders where they may matter.

        Most are ruled out by what each does alone: where one does not show, the other has to explain B; and what one
        mistake explains, or none, is not the work of two others. Mistakes in the weights may bring one another to light,
        and others undo one another, so those pairs are tried if nothing else is found.
        """
        steps = list(self._single_steps())
        calls = [*steps, *(probe for probe in self.probes if probe.cotangent is None)]
        rest = []
        found = False
        for one, other in combinations(self.mistakes, 2):
            if one.family == other.family:
                continue
            if self._fit_together(one, other, calls) and not self._needless(one, other, steps):
                for mistakes in self._orders(one, other, steps[0]):
                    found = found or self._explained_by(mistakes)
                    yield mistakes
            else:
                rest.append((one, other))
        for one, other in () if found else rest:
            if _in_weights(one) and _in_weights(other):
                worth_trying = not self._needless(one, other, steps)
            else:
                alike = self._acts_alike(one) or self._acts_alike(other)
                worth_trying = not alike and self._fit_together(one, other, calls)
            if worth_trying:
                yield from self._orders(one, other, steps[0])

    def _fit_together(self, one: Mistake, other: Mistake, probes: Sequence[Probe]) -> bool:
        """Whether each explains B wherever the other does not show."""
        effects = ((self._effect(one, probe), self._effect(other, probe)) for probe in probes)
        return not any(a.silent & b.unfit or b.silent & a.unfit for a, b in effects)

    def _needless(self, one: Mistake, other: Mistake, probes: Sequence[Probe]) -> bool:
        """Whether something that neither explains is right, or explained by a mistake alone."""
        return any(
            self._effect(one, probe).unfit & self._effect(other, probe).unfit & self._explained_parts(probe)
            for probe in probes
        )

    def _explained_parts(self, probe: Probe) -> frozenset[str]:
        """The parts of an answer that are right, or explained by one mistake alone."""
        if probe not in self.explained_parts:
            right, asked = self.right_answer(probe), self.asked(probe)
            parts = {name for name, array in asked.items() if _distance(right.get(name), array) <= self.bound}
            parts.update(*(asked.keys() - self._effect(mistake, probe).unfit for mistake in self.mistakes))
            self.explained_parts[probe] = frozenset(parts)
        return self.explained_parts[probe]

    def _effect(self, mistake: Mistake, probe: Probe) -> Effect:
        """What a mistake alone does to an answer; looked at once."""
        key = mistake.name, probe
        if key not in self.effects:
            right, asked = self.right_answer(probe), self.asked(probe)
            answer = self.expected(self._with(mistake), probe)
            bound = self._bound(mistake)
            self.effects[key] = Effect(
                frozenset(name for name in asked if _distance(answer.get(name), right[name]) <= self.bound),
                frozenset(name for name in asked if not _distance(answer.get(name), asked[name]) <= bound),
            )
        return self.effects[key]

    def _orders(self, one: Mistake, other: Mistake, step: Probe) -> Iterator[Mistakes]:
        """Two mistakes together, in the orders that explain the outputs of a single step."""
        bound = self._bound(one, other)
        if _in_weights(one) and _in_weights(other):
            first, second = self._both(one, other, step), self._both(other, one, step)
            if self._weights_explain(first, step, bound):
                yield one, other
            if first != second and self._weights_explain(second, step, bound):
                yield other, one
        elif _of_parts(one) or _of_parts(other):
            for inner, outer in ((one, other), (other, one)):
                # What is in how the passes are put together is nearest to the framework, or around what is in a pass.
                fits = inner.applies(self.lowest.spec) if _of_parts(outer) else _of_parts(inner)
                if fits and self.explains(self._around(inner, outer), [step], bound):
                    yield inner, outer
        else:
            inner, outer = (other, one) if _in_weights(other) else (one, other)
            if self.explains(self._around(inner, outer), [step], bound):
                yield inner, outer
                yield outer, inner  # of the same outputs, and maybe of other gradients
            elif not _in_weights(inner) and self.explains(self._around(outer, inner), [step], bound):
                yield outer, inner

    def _both(self, inner: Mistake, outer: Mistake, step: Probe) -> Weights:
        """The weights that two mistakes make; of the lowest pass alone where that shows as much."""
        alike = "final h" in self.asked(step) and self._acts_alike(inner) and self._acts_alike(outer)
        return _change(inner, self._changed(outer, alike))

    def _acts_alike(self, mistake: Mistake) -> bool:
        """Whether a mistake does to the weights of the lowest pass what it does to them in the whole stack."""
        if mistake.name not in self.alike:
            self.alike[mistake.name] = (
                _in_weights(mistake)
                and mistake.applies(self.lowest.spec)
                and self._changed(mistake, lowest=True) == self._changed(mistake).part(0, "forward")
            )
        return self.alike[mistake.name]

    def _weights_explain(self, weights: Weights, step: Probe, bound: float) -> bool:
        """Whether the lowest pass of these weights ends in B's states, a part of the work; or all of it, without states."""
        ends = {name: array[:1] for name, array in self.asked(step).items() if name.startswith("final")}
        if not ends:
            return self.explains(self.build(weights), [step], bound)
        first = replace(step, state=None if step.state is None else _each(step.state, lambda part: part[:1]))
        answer = self.expected(self.build(weights.part(0, "forward")), first)
        return all(_distance(answer.get(name), array) <= bound for name, array in ends.items())

    def _around(self, inner: Mistake, outer: Mistake) -> Runs:
        """The outer mistake around the layer that the inner one made already."""

        def build(weights: Weights) -> Runs:
            return self._with(inner) if weights is self.wide else inner.realise(self.build, weights)

        return outer.realise(build, self.wide)

    def _told_apart(self, found: list[Mistakes]) -> list[Mistakes]:
        """Those that are left after calls in which they would answer differently."""
        for probe in self._further_probes():
            if len(found) < 2:
                break
            first, *others = [self.expected(self._with(*mistakes), probe) for mistakes in found]
            if any(_apart(answer, first) > self.bound for answer in others):
                found = [m for m in found if self.explains(self._with(*m), [probe], self._bound(*m))]
        return found

    # What else there is to say

    def _remarks(self, subject: str, equal: bool) -> Iterator[str]:
        spec, wanted = self.wrong.spec, self.weights.spec
        for mistake in self.declared:
            yield f"{subject} {mistake.says}."
        if spec.bias != wanted.bias:
            yield (
                f'{subject} has bias="{spec.bias}" and {spec.parameter_count} parameters, where bias="{wanted.bias}" '
                f"has {wanted.parameter_count}."
            )
        if spec.dtype != wanted.dtype:
            yield f"{subject} computes in {spec.dtype}, and the right weights are {wanted.dtype}."
        if equal or self.own is None or subject == "A":
            return
        if self.own == self.wide:
            yield f"{subject}'s weights are the right ones: the mistake is in what it does with them."
        elif self._true_to_its_own():
            yield f"{subject} computes rightly what its own weights say: {self._which_differ(self.own)}."

    def _which_differ(self, own: Weights) -> str:
        if own.spec.shapes != self.wide.spec.shapes:
            return "the mistake is in them"
        wrong = [name for name, array in own.arrays.items() if not np.array_equal(array, self.wide.arrays[name])]
        few = wrong if len(wrong) <= 3 else [*wrong[:2], f"{len(wrong) - 2} more"]
        return f"they differ from the right ones in {' and '.join(few)}, of {len(own.arrays)} arrays"

    def _true_to_its_own(self) -> bool:
        """Whether it computes what its own weights say."""
        calls = [probe for probe in self.probes if probe.cotangent is None]
        return self.own is not None and self.explains(self.build(self.own), calls, self.bound)

    def _corrected(self, mistakes: Mistakes) -> Weights | None:
        """Weights with which it would be right; proven."""
        calls = [probe for probe in self.probes if probe.cotangent is None]
        if self._true_to_its_own():
            return _in_form_of(self.wrong.spec, self.wide)
        turned = self.wide
        for mistake in mistakes:
            if mistake.undo is None:
                return None
            turned = mistake.undo(turned)
        mended = composed(self.build, *mistakes)(turned)
        if any(_apart(self.expected(mended, p), self.expected(self.layer, p)) > self.bound for p in calls):
            return None
        return _in_form_of(self.wrong.spec, turned)


def _in_weights(mistake: Mistake) -> bool:
    """Whether a mistake is in the weights alone, so that the outputs are those of other weights."""
    change = mistake.realise
    return isinstance(change, Change) and change.weights is not None and not (change.inputs or change.output)


def _change(mistake: Mistake, weights: Weights) -> Weights:
    """The weights that a mistake makes of these; the same where it is not in the weights."""
    change = mistake.realise
    return change.weights(weights) if isinstance(change, Change) and change.weights is not None else weights


def _of_parts(mistake: Mistake) -> bool:
    """Whether a mistake is in how the passes of a stack are put together."""
    return isinstance(mistake.realise, Plumbing)


def _only_in(mistake: Mistake, layer: int, direction: str) -> Mistake:
    """The mistake in one layer and direction, all else right."""

    def realise(build: Build, weights: Weights) -> Runs:
        passes = iter(weights.spec.passes)

        def one(part: Weights) -> Runs:
            return mistake.realise(build, part) if next(passes) == (layer, direction) else build(part)

        return Plumbing()(one, weights)

    def undo(weights: Weights) -> Weights:
        assert mistake.undo is not None
        part = mistake.undo(weights.part(layer, direction)).at(0, "forward")
        mended = {f"layers.{layer}.{direction}.{name}": array for name, array in part.items()}
        return Weights(weights.spec, {**weights.arrays, **mended})

    where = f"in layer {layer} {direction} alone"
    return replace(
        mistake,
        name=f"{mistake.name}, {where}",
        says=f"{mistake.says}, {where}",
        fix=f"{mistake.fix.rstrip('.')}, {where}",
        realise=realise,
        undo=undo if mistake.undo else None,
    )


def _in_form_of(spec: RecurrentSpec, weights: Weights) -> Weights | None:
    """The same function in another dtype and with another form of the biases, where there is one."""
    try:
        if spec.bias == "double":
            weights = split_biases(weights)
        elif spec.bias != weights.spec.bias:
            weights = fold_biases(weights)
    except Unrepresentable:
        return None
    return weights.astype(spec.dtype) if weights.spec.shapes == spec.shapes else None


# --- In words --------------------------------------------------------------------------------------------------------


def _explained(mistakes: Mistakes, subject: str) -> Explanation:
    sentences = [f"{'It also' if place else subject} {mistake.says}." for place, mistake in enumerate(mistakes)]
    return Explanation(mistakes, " ".join(sentences), f"Fix: {'; and '.join(_lower(m.fix) for m in mistakes)}.")


def _declared(right: RecurrentSpec, wrong: RecurrentSpec) -> Mistakes:
    """In what two specs of one shape make two functions, as mistakes."""

    def mistake(name: str) -> Mistake:
        value, wanted = getattr(wrong, name), getattr(right, name)

        def change(weights: Weights) -> Weights:
            # With two biases all forms of a cell have the same arrays.
            weights = weights if weights.spec.bias == "none" else split_biases(weights)
            return Weights(replace(weights.spec, **{name: value}), weights.arrays)

        return Mistake(
            name=f"{name}={value!r}",
            family=name,
            says=f"has {name}={value!r}, where {name}={wanted!r} would be right",
            fix=f"build it with {name}={wanted!r}",
            applies=lambda spec: True,
            realise=Change(weights=change),
        )

    names = ("reset_after", "activation", "recurrent_activation")
    return tuple(mistake(name) for name in names if getattr(right, name) != getattr(wrong, name))


def _lower(sentence: str) -> str:
    """A sentence that goes on inside another one."""
    return (sentence[:1].lower() + sentence[1:]).rstrip(".")


def _counts_wrongly(layer: Adopted, subject: str) -> Explanation | None:
    """A layer that is the right function and has another number of parameters than its spec."""
    count, expected = layer.parameter_count, layer.spec.parameter_count
    if not layer.readable or count in (None, expected):
        return None
    return Explanation(
        (),
        f"{subject} is the right function, and counts {count} trainable parameters where its spec has {expected}.",
        "Fix: count every trainable array once, and no constant; a zero bias that is only kept is a buffer.",
    )


def _unlike(a: RecurrentSpec, b: RecurrentSpec) -> Explanation | None:
    """Two stacks that cannot be the same function, by what they take and hand out."""
    words = {
        "cell": "is a {}, and A a {}",
        "input_size": "takes {} features, and A {}",
        "hidden_size": "has {} units, and A {}",
        "num_layers": "has {} layers, and A {}",
        "bidirectional": "has bidirectional={}, and A {}",
    }
    found = [
        text.format(getattr(b, name), getattr(a, name))
        for name, text in words.items()
        if getattr(a, name) != getattr(b, name)
    ]
    if not found:
        return None
    wanted = ", ".join(f"{name}={getattr(a, name)!r}" for name in words if getattr(a, name) != getattr(b, name))
    return Explanation((), f"B {'; it '.join(found)}.", f"Fix: build B with {wanted}.")
