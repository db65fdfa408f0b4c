"""`diagnose`: which mistakes explain the answers of a layer: alone, in one layer and direction only, or two together."""

from __future__ import annotations  # or naming np.random.Generator loads numpy.random

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from multirnn.adoption import Adopted, adopt, known_spec
from multirnn.diagnosis.calls import Answer, Probe, answer, apart, distance, drawn_call, given_call, unlike
from multirnn.diagnosis.divergence import Divergence
from multirnn.diagnosis.hypotheses import changed, declared, in_weights, of_parts, only_in
from multirnn.diagnosis.locating import located
from multirnn.diagnosis.verdict import Diagnosis, Mistakes, explained, miscounted, of_another_shape
from multirnn.errors import InvalidCall, MultirnnError, Unrepresentable
from multirnn.layer import State
from multirnn.mistakes import mistakes_for
from multirnn.mistakes.change import Build, Mistake, Runs, composed
from multirnn.numerics import coarser, tolerance
from multirnn.registry import backend
from multirnn.spec import RecurrentSpec
from multirnn.weights import Weights, fold_biases, split_biases

__all__ = ["diagnose"]


@np.errstate(all="ignore")
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
        b: the suspect: a `Layer`, a framework's own layer, or a function `f(x, h0) -> (y, h)` on NumPy arrays.
        spec: the spec of B, if it cannot be read from B; A's unless given.
        x: `(batch, time, input_size)`; a call of your own, beside the drawn ones.
        state: the initial state of that call.
        lengths: `(batch,)` integers of that call.
        seed: seeds the drawn calls.

    Raises:
        InvalidCall: A has no readable weights, or B does not take the calls.
    """
    right = adopt(a)
    if not right.readable:
        raise InvalidCall(
            f"A, {right.title}, has no readable weights; pass the right side as A, a Layer or a framework's own layer"
        )
    weights = right.weights()
    wrong = adopt(b, spec=None if known_spec(b) else spec or weights.spec)
    titles = right.title, wrong.title
    if fields := unlike(weights.spec, wrong.spec):
        dtype = coarser(weights.spec.dtype, wrong.spec.dtype)
        causes = (of_another_shape(weights.spec, wrong.spec, fields),)
        return Diagnosis(weights.spec, titles, False, causes=causes, eps=float("inf"), dtype=dtype)
    given = [] if x is None else [given_call(x, state, lengths, wrong.spec.dtype)]
    itself = _Examination(right, weights, seed)
    if not itself.explains(itself.layer, itself.calls[:1], itself.bound):
        return itself.diagnosis("A", titles)
    return _Examination(wrong, weights, seed, given).diagnosis("B", titles, right)


ROOM = 2**28  # bytes of wrong layers that are cached, and of weights; larger stacks are built again

Parts = frozenset[str]


class _Effect(NamedTuple):
    silent: Parts  # the parts of an answer that a mistake leaves right
    unfit: Parts  # those that it does not explain


class _Examination:
    """A suspect layer, the right weights in NumPy's float64, and the right layer with mistakes."""

    def __init__(self, wrong: Adopted, weights: Weights, seed: int, given: Sequence[Probe] = ()) -> None:
        self.wrong, self.weights, self.rng = wrong, weights, np.random.default_rng(seed)
        self.spec = replace(weights.spec, dtype=wrong.spec.dtype)
        self.dtype = coarser(weights.spec.dtype, wrong.spec.dtype)
        self.bound = tolerance(self.dtype)
        self.wide = weights.astype("float64")
        self.own = wrong.weights().astype("float64") if wrong.readable else None
        self.declared = declared(weights.spec, wrong.spec)
        self.mistakes = mistakes_for(self.spec)
        self.build: Build = backend("numpy").build
        self.layer = self.build(self.wide)
        self.lowest = self.wide.part(0, "forward")
        self.answers: dict[Probe, Answer] = {}
        room = ROOM // (8 * weights.spec.parameter_count)
        self._alone = lru_cache(room)(lambda mistake: mistake.realise(self.build, self.wide))
        self._lowest_changed = lru_cache(room)(lambda mistake: changed(mistake, self.lowest))
        self._narrow = cache(lambda mistake: changed(mistake, self.wide).spec.dtype == "float32")
        self._acts_alike = cache(self._changes_alike)
        self._effect = cache(self._effect_of)
        self._explained_parts = cache(self._all_explained)
        self.right_answer = cache(lambda call: self.expected(self.layer, call))
        self.calls = [*given, *self._first_calls()]
        self._forward_calls = [call for call in self.calls if call.cotangent is None]

    def diagnosis(self, subject: str, titles: tuple[str, str], right: Adopted | None = None) -> Diagnosis:
        eps = max(apart(self.right_answer(call), self.asked(call)) for call in self.calls)
        equal = eps <= self.bound
        causes = [] if equal else self._explanations()
        count = miscounted(self.wrong, subject) if equal else None
        return Diagnosis(
            self.weights.spec,
            titles,
            equal and count is None,
            subject,
            tuple(explained(mistakes, subject) for mistakes in causes) if count is None else (count,),
            tuple(self._remarks(subject, equal, causes)),
            len(self.answers),
            eps / float(np.finfo(self.dtype).eps),
            self.dtype,
            None if equal or right is None else self._divergence(right, explained=bool(causes)),
            self._corrected(causes[0]) if causes else None,
        )

    def _divergence(self, right: Adopted, *, explained: bool) -> Divergence | None:
        """Where the two part, in the first call that shows it; None if a single call does not locate it."""
        call = next(call for call in self.calls if not apart(self.right_answer(call), self.asked(call)) <= self.bound)
        found = located(right, self.wrong, call)
        return None if found.kind == "none" or (explained and found.kind == "rounding") else found

    def _first_calls(self) -> Iterator[Probe]:
        # One shape: frameworks compile for each. Square: a layer that swaps batch and time takes no other state.
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
        """Short calls that separate mistakes: from a zero state no recurrent matrix shows, and so on."""
        yield self._draw(1, 1)
        yield self._draw(1, 1, from_zero=True)
        no_input = self._draw(1, 1)
        yield replace(no_input, x=np.zeros_like(no_input.x))

    def _further_calls(self) -> Iterator[Probe]:
        """Calls that may tell two explanations apart: other shapes, small and large numbers."""
        for batch, time, scale in ((3, 7, 1.0), (4, 4, 1.0), (1, 1, 1.0), (2, 2, 0.1), (5, 5, 5.0), (6, 2, 1.0)):
            lengths = [time, *(row % time for row in range(batch - 1))] if self.wrong.takes_lengths else None
            yield self._draw(batch, time, scale=scale)
            yield self._draw(batch, time, scale=scale, lengths=lengths)
            if self.wrong.differentiable:
                yield self._draw(batch, time, scale=scale, lengths=lengths, gradients=True)

    def _draw(self, batch: int, time: int, *, from_zero: bool = False, **how: Any) -> Probe:
        return drawn_call(self.spec, self.rng, batch, time, from_zero=from_zero or not self.wrong.takes_state, **how)

    def asked(self, call: Probe) -> Answer:
        """The suspect's answer, cached; without gradients of weights if its weights are not the right ones."""
        if call not in self.answers:
            try:
                found = answer(self.wrong, call, self.wrong.spec.dtype)
            except InvalidCall:
                if not any(self.answers.values()):
                    raise
                found = {}  # it refuses this call only
            if self.own is None or self.own != self.wide:
                found = {name: array for name, array in found.items() if not name.startswith("gradient of layers.")}
            self.answers[call] = found
        return self.answers[call]

    def expected(self, layer: Runs, call: Probe) -> Answer:
        """The answer of a NumPy layer, with or without mistakes; empty if it cannot take the call."""
        try:
            return answer(layer, call, "float64")
        except (MultirnnError, ValueError, IndexError):
            return {}

    def explains(self, layer: Runs, calls: Sequence[Probe], bound: float) -> bool:
        """Whether this layer answers as the suspect does; stops at the first difference."""
        return all(apart(self.expected(layer, call), self.asked(call)) <= bound for call in calls)

    def _explanations(self) -> list[Mistakes]:
        """The simplest explanations of the answers that no further call tells apart."""
        as_declared = [self.declared] if self.declared else []
        for hypotheses in (as_declared, self._singles(), self._confined(), self._pairs()):
            found = [mistakes for mistakes in hypotheses if self._explained_by(mistakes)]
            found = [m for m in found if self._bound(*m) == self.bound] or found
            unordered = {frozenset(mistake.name for mistake in m): m for m in reversed(found)}
            if left := self._told_apart(list(unordered.values())[::-1]):
                return left
        return []

    def _explained_by(self, mistakes: Mistakes) -> bool:
        return self.explains(self._with(*mistakes), self.calls, self._bound(*mistakes))

    def _with(self, *mistakes: Mistake) -> Runs:
        return self._alone(*mistakes) if len(mistakes) == 1 else composed(self.build, *mistakes)(self.wide)

    def _bound(self, *mistakes: Mistake) -> float:
        """The tolerance; float32's for mistakes that compute in float32."""
        return max(self.bound, tolerance("float32")) if any(map(self._narrow, mistakes)) else self.bound

    def _singles(self) -> Iterator[Mistakes]:
        for mistake in self.mistakes:
            yield (mistake,)
            if self.declared:
                yield (*self.declared, mistake)

    def _confined(self) -> Iterator[Mistakes]:
        """Mistakes in one layer and direction only, if every pass that this one does not feed is right."""
        passes = list(self.spec.passes)
        actual, expected = self.asked(self.calls[0]), self.right_answer(self.calls[0])
        ends = [name for name in actual if name.startswith("final")]
        right = {
            one: all(distance(expected[name][place], actual[name][place]) <= self.bound for name in ends)
            for place, one in enumerate(passes)
        }
        for layer, direction in passes if len(passes) > 1 else ():
            if all(right[other] for other in passes if other[0] <= layer and other != (layer, direction)):
                for mistake in mistakes_for(replace(self.weights.part(layer, direction).spec, dtype=self.spec.dtype)):
                    yield (only_in(mistake, layer, direction),)

    def _pairs(self) -> Iterator[Mistakes]:
        """Two of different families, in both orders if the order matters.

        Where one does not show, the other must explain B; and a part that a single mistake explains is hardly the work
        of two others. Mistakes in the weights may reveal or undo one another, so pairs ruled out are tried last.
        """
        steps = list(self._single_steps())
        calls = [*steps, *self._forward_calls]
        rest = []
        found = False
        for one, other in combinations(self.mistakes, 2):
            if one.family == other.family:
                continue
            if self._fit_together(one, other, calls) and not self._miss(one, other, steps, self._explained_parts):
                for mistakes in self._orders(one, other, steps[0]):
                    found = found or self._explained_by(mistakes)
                    yield mistakes
            else:
                rest.append((one, other))
        for one, other in () if found else rest:
            if in_weights(one) and in_weights(other):
                worth_trying = not self._miss(one, other, steps, self._right_parts)
            else:
                alike = self._acts_alike(one) or self._acts_alike(other)
                worth_trying = not alike and self._fit_together(one, other, calls)
            if worth_trying:
                yield from self._orders(one, other, steps[0])

    def _fit_together(self, one: Mistake, other: Mistake, calls: Sequence[Probe]) -> bool:
        """Whether each mistake explains B wherever the other does not show."""
        effects = ((self._effect(one, call), self._effect(other, call)) for call in calls)
        return not any(a.silent & b.unfit or b.silent & a.unfit for a, b in effects)

    def _miss(self, one: Mistake, other: Mistake, calls: Sequence[Probe], parts: Callable[[Probe], Parts]) -> bool:
        """Whether neither mistake explains some of these parts."""
        return any(self._effect(one, p).unfit & self._effect(other, p).unfit & parts(p) for p in calls)

    def _right_parts(self, call: Probe) -> Parts:
        right = self.right_answer(call)
        return frozenset(n for n, array in self.asked(call).items() if distance(right.get(n), array) <= self.bound)

    def _all_explained(self, call: Probe) -> Parts:
        """The parts of an answer that are right or explained by a single mistake."""
        parts = (self.asked(call).keys() - self._effect(mistake, call).unfit for mistake in self.mistakes)
        return self._right_parts(call).union(*parts)

    def _effect_of(self, mistake: Mistake, call: Probe) -> _Effect:
        right, asked, bound = self.right_answer(call), self.asked(call), self._bound(mistake)
        found = self.expected(self._with(mistake), call)
        return _Effect(
            frozenset(name for name in asked if distance(found.get(name), right[name]) <= self.bound),
            frozenset(name for name in asked if not distance(found.get(name), asked[name]) <= bound),
        )

    def _orders(self, one: Mistake, other: Mistake, step: Probe) -> Iterator[Mistakes]:
        """Two mistakes together, in the orders that explain the outputs of a single step."""
        bound = self._bound(one, other)
        if in_weights(one) and in_weights(other):
            first, second = self._both(one, other, step), self._both(other, one, step)
            if self._weights_explain(first, step, bound):
                yield one, other
            if first != second and self._weights_explain(second, step, bound):
                yield other, one
        elif of_parts(one) or of_parts(other):
            for inner, outer in ((one, other), (other, one)):
                # A mistake in the plumbing is innermost, or around a mistake in a pass.
                fits = inner.applies(self.lowest.spec) if of_parts(outer) else of_parts(inner)
                if fits and self.explains(self._around(inner, outer), [step], bound):
                    yield inner, outer
        else:
            inner, outer = (other, one) if in_weights(other) else (one, other)
            if self.explains(self._around(inner, outer), [step], bound):
                yield inner, outer
                yield outer, inner  # the outputs agree, the gradients may not
            elif not in_weights(inner) and self.explains(self._around(outer, inner), [step], bound):
                yield outer, inner

    def _both(self, inner: Mistake, outer: Mistake, step: Probe) -> Weights:
        """The weights after two mistakes; of the lowest pass alone if that shows as much."""
        alike = "final h" in self.asked(step) and self._acts_alike(inner) and self._acts_alike(outer)
        return changed(inner, self._lowest_changed(outer) if alike else changed(outer, self.wide))

    def _changes_alike(self, mistake: Mistake) -> bool:
        """Whether a mistake changes the lowest pass alone as it does within the stack."""
        return (
            in_weights(mistake)
            and mistake.applies(self.lowest.spec)
            and self._lowest_changed(mistake) == changed(mistake, self.wide).part(0, "forward")
        )

    def _weights_explain(self, weights: Weights, step: Probe, bound: float) -> bool:
        """Whether the lowest pass of these weights ends in B's final states, or the whole stack if there are none."""
        ends = {name: array[:1] for name, array in self.asked(step).items() if name.startswith("final")}
        if not ends:
            return self.explains(self.build(weights), [step], bound)
        first = replace(step, states=None if step.states is None else step.states[:, :1])
        found = self.expected(self.build(weights.part(0, "forward")), first)
        return all(distance(found.get(name), array) <= bound for name, array in ends.items())

    def _around(self, inner: Mistake, outer: Mistake) -> Runs:
        """The outer mistake around the cached layer of the inner one."""

        def build(weights: Weights) -> Runs:
            return self._with(inner) if weights is self.wide else inner.realise(self.build, weights)

        return outer.realise(build, self.wide)

    def _told_apart(self, found: list[Mistakes]) -> list[Mistakes]:
        """The explanations that survive calls in which they would answer differently."""
        for call in self._further_calls():
            if len(found) < 2:
                break
            first, *others = [self.expected(self._with(*mistakes), call) for mistakes in found]
            if any(apart(made, first) > self.bound for made in others):
                found = [m for m in found if self.explains(self._with(*m), [call], self._bound(*m))]
        return found

    def _remarks(self, subject: str, equal: bool, causes: list[Mistakes]) -> Iterator[str]:
        spec, wanted = self.wrong.spec, self.weights.spec
        said = {mistake.name for cause in causes for mistake in cause}
        for mistake in (mistake for mistake in self.declared if mistake.name not in said):
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
            yield f"{subject}'s weights are right: the mistake is in their use."
        elif self._true_to_its_own():
            yield f"{subject} is correct for its own weights: {self._which_differ(self.own)}."

    def _which_differ(self, own: Weights) -> str:
        if own.spec.shapes != self.wide.spec.shapes:
            return "the mistake is in them"
        wrong = [name for name, array in own.arrays.items() if not np.array_equal(array, self.wide.arrays[name])]
        few = wrong if len(wrong) <= 3 else [*wrong[:2], f"{len(wrong) - 2} more"]
        return f"they differ from the right ones in {' and '.join(few)}, of {len(own.arrays)} arrays"

    def _true_to_its_own(self) -> bool:
        return self.own is not None and self.explains(self.build(self.own), self._forward_calls, self.bound)

    def _corrected(self, mistakes: Mistakes) -> Weights | None:
        """Weights with which the suspect is right, checked; None if there are none."""
        if self._true_to_its_own():
            return _in_form_of(self.wrong.spec, self.wide)
        turned = self.wide
        for mistake in mistakes:
            if mistake.undo is None:
                return None
            turned = mistake.undo(turned)
        mended = composed(self.build, *mistakes)(turned)
        if any(apart(self.expected(mended, p), self.right_answer(p)) > self.bound for p in self._forward_calls):
            return None
        return _in_form_of(self.wrong.spec, turned)


def _in_form_of(spec: RecurrentSpec, weights: Weights) -> Weights | None:
    """The same function in another dtype and form of the biases; None if there is none."""
    try:
        if spec.bias == "double":
            weights = split_biases(weights)
        elif spec.bias != weights.spec.bias:
            weights = fold_biases(weights)
    except Unrepresentable:
        return None
    return weights.astype(spec.dtype) if weights.spec.shapes == spec.shapes else None
