"""The distance between two layers, and how much of it rounding may explain: `Pair`.

A gap is max|a-b| over rows and units. Its room is the tolerance, or the distance that A itself moves if its input, states
and weights are moved by the tolerance. So neither a long chaotic sequence nor cancellation in one step counts as a mistake.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from multirnn.diagnosis.calls import Probe, Seen
from multirnn.diagnosis.divergence import Divergence, Parting
from multirnn.diagnosis.stepping import Known, Side, Trajectory, perturbed, unknown
from multirnn.numerics import coarser, difference, distances, magnitude, normwise, tolerance
from multirnn.weights import Array

__all__ = ["Marks", "Pair", "Parted", "apart", "in_eps", "worst"]

Marks = NDArray[np.bool_]

CHAOS = 4
"""The room of calls, as a multiple of the distance that A moves: runs of a chaotic stack end as far apart as its states are
large, and one moved run measures that only to a factor of two."""


class Parted(NamedTuple):
    """Where two outputs differ by more than rounding."""

    sequence: Marks  # (directions, time)
    final: Marks  # (parts, passes)

    @property
    def any(self) -> bool:
        """Whether they do."""
        return bool(self.sequence.any() or self.final.any())


class Steps(NamedTuple):
    """Every single step of a call: inputs, states before and after, their size, and the room of the states after."""

    x: Array
    states: Array
    made: Array
    size: Array
    room: Array


class Pair:
    """The side taken as right, the suspect and a call; every measure is lazy."""

    def __init__(self, a: Side, b: Side, call: Probe, seed: int, letters: tuple[str, str] = ("A", "B")) -> None:
        self.a, self.b, self.seed = a, b, seed
        self.A, self.B = letters
        self.call, self.cotangent = replace(call, cotangent=None), call.cotangent
        self.full = self.call if call.lengths is None else replace(self.call, lengths=None)
        self.spec = a.spec
        self.passes = list(a.spec.passes)
        self.directions = len(a.spec.directions)
        self.time: int = call.x.shape[1]
        self.dtype = coarser(a.spec.dtype, b.spec.dtype)
        self.limit = tolerance(self.dtype)
        self.eps = float(np.finfo(self.dtype).eps)
        self.rng = np.random.default_rng(seed)
        self.unknown: Array = np.full((len(self.passes), self.time), np.nan)

    def swapped(self) -> Pair:
        """B taken as right, and A as the suspect."""
        return Pair(self.b, self.a, replace(self.call, cotangent=self.cotangent), self.seed, (self.B, self.A))

    def in_turn(self, values: np.ndarray) -> np.ndarray:
        """Values `(…, passes, time)` in the order in which passes run, from original time; and the other way round."""
        backward = np.array([direction == "backward" for _, direction in self.passes])
        return np.where(backward[:, None], values[..., ::-1], values)

    def time_of(self, place: int, steps: int) -> int:
        """The step that a pass runs after so many others, in original time; the last one for -1."""
        steps = steps % self.time if self.time else 0
        return self.time - 1 - steps if self.passes[place][1] == "backward" else steps

    def place(self, parting: Parting) -> int:
        """The place of a pass in `passes`."""
        return next(place for place, one in enumerate(self.passes) if one == parting[:2])

    def partings(self, marks: Marks) -> tuple[Parting, ...]:
        """The first marked step of every pass, of marks `(passes, time)`, in the order of `order`."""
        first = np.argmax(self.in_turn(marks), axis=1) if self.time else []
        found = [
            Parting(*self.passes[place], self.time_of(place, int(steps)))
            for place, steps in enumerate(first)
            if marks[place].any()
        ]
        return tuple(sorted(found, key=self.order))

    def order(self, parting: Parting) -> tuple[float, float, bool]:
        """Sorts passes that part: the lower layer first, then the one that ran fewer steps, then forward."""
        layer, direction, step = parting
        if layer is None or direction is None or step is None:
            return np.inf, np.inf, True
        return layer, self.time - 1 - step if direction == "backward" else step, direction == "backward"

    # --- Calls -------------------------------------------------------------------------------------------------------

    @cached_property
    def initial(self) -> Array:
        """The initial states, zero where the call has none."""
        if self.call.states is not None:
            return self.call.states
        return np.zeros((len(self.spec.form.states), len(self.passes), len(self.call.x), self.spec.hidden_size))

    @cached_property
    def outputs(self) -> tuple[Seen, Seen]:
        """The outputs of both for the call."""
        return self.a(self.call), self.b(self.call)

    @cached_property
    def shown(self) -> Probe:
        """The call that shows the difference: the full one, or the one with lengths if full calls agree."""
        if self.call.lengths is None or self.parted(*self.answers(self.full)).any:
            return self.full
        return self.call

    def answers(self, call: Probe) -> tuple[Seen, Seen]:
        """The expected output of a call, and B's."""
        return self.expected(call), self.outputs[1] if call is self.call else self.b(call)

    @cached_property
    def far(self) -> float:
        """The largest normwise difference of the outputs."""
        a, b = self.outputs
        pairs = [(a.sequence, b.sequence), *zip(a.final, b.final, strict=True)]
        known = [~(unknown(u) | unknown(v)) for u, v in pairs]
        return max(difference(v[k], u[k]).normwise for (u, v), k in zip(pairs, known, strict=True))

    def expected(self, call: Probe) -> Seen:
        """The output of A; from its weights if they are known."""
        if not isinstance(self.reference, Known):
            return self.a(call)
        ran = self.reference.run(call.x, self.initial if call.states is None else call.states, call.lengths)
        if not call.x.shape[1]:
            return Seen(ran.sequence, self.initial)
        final = [ran.after[:, place, 0 if way == "backward" else -1] for place, (_, way) in enumerate(self.passes)]
        return Seen(ran.sequence, np.stack(final, axis=1))  # the states stay at padding

    def parted(self, expected: Seen, found: Seen) -> Parted:
        """Where two outputs part; they may have fewer steps than the call."""
        room = self.room[0, -self.directions :, : found.sequence.shape[1]]
        return Parted(
            apart(self.halves(found), self.halves(expected)) > room,
            apart(found.final, expected.final) > self.room.max(axis=2, initial=self.limit),
        )

    def halves(self, seen: Seen) -> Array:
        """A sequence by direction: `(directions, time, batch, hidden_size)`."""
        sequence = seen.sequence
        return sequence.reshape(*sequence.shape[:2], self.directions, self.spec.hidden_size).transpose(2, 1, 0, 3)

    def of_top(self, marks: Marks) -> Marks:
        """Marks of the sequence, `(directions, time)`, as marks of the last layer, `(passes, time)`."""
        made = np.zeros((len(self.passes), marks.shape[1]), bool)
        made[-len(marks) :] = marks
        return made

    # --- What A is ---------------------------------------------------------------------------------------------------

    @cached_property
    def _referred(self) -> tuple[Known | Side | None, Steps | None]:
        if self.call.x.size and self.a.layer.readable:
            known = Known(self.a.layer.weights())
            if steps := self.steps_of(self.a, known):
                return known, steps
        return (self.a, self._steps(self.a)) if self.steppable(self.a) else (None, None)

    @property
    def reference(self) -> Known | Side | None:
        """A by its weights if its steps agree with them, else A by its steps; None if neither is known."""
        return self._referred[0]

    @property
    def steps(self) -> Steps | None:
        """The single steps of A; from zero if B takes no state."""
        return self._referred[1]

    def steps_of(self, side: Side, known: Known) -> Steps | None:
        """The steps of these weights; None if the side makes other ones."""
        steps = self._steps(known)
        if side.layer.takes_state and (self.gap(side.step(steps.x, steps.states), steps.made) > steps.room).any():
            return None
        return steps

    def _steps(self, reference: Known | Side) -> Steps:
        """All steps of all rows as one batch, from states that both dtypes represent."""
        before = reference.run(self.call.x, self.initial).before.astype(self.dtype).astype(np.float64)
        x = self.call.x.swapaxes(0, 1).reshape(-1, self.call.x.shape[2])
        states = before.reshape(*before.shape[:2], -1, before.shape[4])
        if not self.b.layer.takes_state:
            states = np.zeros_like(states)
        made = reference.step(x, states)
        size = np.maximum(worst(self.by_step(states)), worst(self.by_step(made)))
        moved = reference.moved(self.limit, self.rng)
        there = moved.step(perturbed(x, self.limit, self.rng), perturbed(states, self.limit, self.rng))
        return Steps(x, states, made, size, np.maximum(self.gap(there, made), self.limit * size))

    def steppable(self, side: Side) -> bool:
        """Whether a side can be stepped from a given state to the next."""
        if not side.layer.takes_state or not self.call.x.size:
            return False
        known = side is self.b and self.steps is not None
        stepped = self.found if known else side.step(self.call.x[:, 0], self.initial)
        return not unknown(stepped).any()  # a state that is not handed back

    @cached_property
    def faithful(self) -> bool:
        """Whether A agrees with its weights in single steps and in whole calls."""
        return isinstance(self.reference, Known) and not any(
            self.parted(self.expected(call), self.a(call)).any for call in {self.call, self.full}
        )

    @cached_property
    def trajectory(self) -> Trajectory | None:
        """The states of A over the full call; None if neither its weights nor its steps are known."""
        return None if self.reference is None else self.reference.run(self.call.x, self.initial)

    @cached_property
    def room(self) -> Array:
        """The room of full calls: `(parts, passes, time)`, increasing in running order."""
        if self.reference is None or self.trajectory is None:
            largest = magnitude(self.a(self.full).sequence, "float64")
            return np.full((*self.initial.shape[:2], self.time), self.limit * largest)
        x, states = (perturbed(array, self.limit, self.rng) for array in (self.call.x, self.initial))
        moved = self.reference.moved(self.limit, self.rng).run(x, states)
        gap = CHAOS * apart(moved.after, self.trajectory.after)
        return np.asarray(np.maximum(self._accumulated(gap), self.limit * self.size))

    @cached_property
    def size(self) -> Array:
        """The largest state of A up to each step: `(parts, passes, time)`."""
        if self.trajectory is None:
            return self.room / self.limit
        return self._accumulated(np.maximum(worst(self.trajectory.before), worst(self.trajectory.after)))

    def _accumulated(self, values: Array) -> Array:
        """The running maximum in running order, of `(parts, passes, time)`."""
        return self.in_turn(np.maximum.accumulate(self.in_turn(values), axis=2))

    # --- Single steps of both from the states of A -------------------------------------------------------------------

    @cached_property
    def found(self) -> Array:
        """The states that B makes of the same rows."""
        assert self.steps is not None
        return self.b.step(self.steps.x, self.steps.states)

    def by_step(self, rows: Array) -> Array:
        """`(…, rows, hidden_size)` as `(…, time, batch, hidden_size)`."""
        return rows.reshape(*rows.shape[:-2], self.time, len(self.call.x), rows.shape[-1])

    def gap(self, a: Array, b: Array) -> Array:
        """The gap of two arrays of rows: `(…, time)`."""
        return apart(self.by_step(a), self.by_step(b))

    @cached_property
    def own(self) -> Array:
        """The normwise error of every single step of B, in eps: `(passes, time)`."""
        if self.steps is None:
            return self.unknown
        return in_eps(self.gap(self.found, self.steps.made), self.steps.size, self.eps)

    @cached_property
    def separate(self) -> Array:
        """`own`, with NaN above a layer that parts in the same step: that error is an echo."""
        own, parted = self.own.copy(), np.any(self.own_parted, axis=0)
        for place, (layer, _) in enumerate(self.passes):
            own[place, parted[: layer * self.directions].any(axis=0)] = np.nan
        return own

    @cached_property
    def own_parted(self) -> Marks:
        """Which single steps part: `(parts, passes, time)`."""
        if self.steps is None:
            return np.zeros((*self.initial.shape[:2], self.time), bool)
        return np.asarray(self.gap(self.found, self.steps.made) > self.steps.room)

    # --- B running on by itself --------------------------------------------------------------------------------------

    @cached_property
    def growth(self) -> Array:
        """The error of B running on by single steps, in eps: `(passes, time)`; `seen_growth` if B cannot be stepped."""
        if self.trajectory is None or not self.steppable(self.b):
            return self.seen_growth
        after = self.b.run(self.call.x, self.initial).after
        return in_eps(apart(after, self.trajectory.after), self.size, self.eps)

    @cached_property
    def seen_growth(self) -> Array:
        """The error that the call of B shows: of the last layer at every step, of the others at their last step."""
        growth = self.unknown.copy()
        expected, found = self.answers(self.shown)
        final = apart(found.final, expected.final)
        for place in range(len(self.passes) if self.time else 0):
            end = self.time_of(place, -1)
            growth[place, end] = in_eps(final[:, place, None], self.size[:, place, end, None], self.eps)[0]
        top = slice(-self.directions, None)
        sequence = apart(self.halves(found), self.halves(expected))
        growth[top] = np.fmax(growth[top], in_eps(sequence[None], self.size[:1, top], self.eps))
        return growth

    # --- The record --------------------------------------------------------------------------------------------------

    def report(
        self,
        *,
        kind: str = "mistake",
        parting: Sequence[Parting] = (),
        elements: tuple[Array, Array] | None = None,
        size: float | None = None,
        measured: str = "stepped",
        **found: Any,
    ) -> Divergence:
        """The record of this pair; of `elements` of A and of B, `(rows, units)`, it names those furthest apart.

        `growth` is `measured` by single steps ("stepped"), as the call shows ("seen"), or not: then `own` is not either.
        """
        titles, turn = (self.a.layer.title, self.b.layer.title), -1 if self.A == "B" else 1
        if elements is not None:
            gap = distances(*elements[::-1])
            row, unit = map(int, np.unravel_index(int(np.argmax(gap)), gap.shape))
            found |= {"row": row, "unit": unit, "values": tuple(float(made[row, unit]) for made in elements)}
            if size is not None:
                found["eps"] = float(normwise(gap.max(), size) / self.eps)
        values = found.pop("values", None)
        growth = {"stepped": "growth", "seen": "seen_growth", "": "unknown"}[measured]
        return Divergence(
            kind=kind,
            spec=self.spec,
            titles=titles if turn == 1 else (titles[1], titles[0]),
            shape=self.call.x.shape,
            dtype=self.dtype,
            own=self.separate if measured else self.unknown,
            growth=getattr(self, growth),
            parting=tuple(parting),
            values=values and values[::turn],
            **found,
        )


def apart(a: Array, b: Array) -> Array:
    """The largest of the `distances` over rows and units, the last two axes; NaN if one is unknown."""
    gaps = np.where(unknown(a) | unknown(b), np.nan, distances(a, b))
    return np.asarray(gaps.max(axis=(-2, -1), initial=0))


def worst(a: Array) -> Array:
    """The largest finite |a| over the last two axes."""
    return np.asarray(np.max(np.abs(a), axis=(-2, -1), where=np.isfinite(a), initial=0))


def in_eps(gap: Array, size: Array, eps: float) -> Array:
    """The largest known error of gaps `(parts, …)` relative to sizes, in eps; NaN if none is known."""
    relative = normwise(gap, size)
    largest = np.where(np.isnan(relative), -1, relative).max(axis=0, initial=-1)
    return np.asarray(np.where(largest < 0, np.nan, largest) / eps)
