"""`assert_layers_agree`: asserts that two layers are one function, for any two that `multirnn.adoption.adopt` takes."""

from __future__ import annotations  # or naming np.random.Generator loads numpy.random

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from decimal import ROUND_CEILING, Context
from operator import methodcaller
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from multirnn.adoption import Adopted, adopt, adopt_both
from multirnn.comparison import batched, place, widened, widened_output
from multirnn.diagnosis import first_divergence
from multirnn.errors import InvalidCall, MultirnnError
from multirnn.layer import Output, State
from multirnn.numerics import TOLERANCE, Difference, difference, draw_call, draw_cotangent
from multirnn.registry import build
from multirnn.spec import RecurrentSpec
from multirnn.weights import Array, Weights, fold_biases

__all__ = ["Agreement", "Disagreement", "assert_layers_agree"]

MODES = ("eager", "compiled")

# pytest hides this file in the traceback of a disagreement; it shows other errors in full.
__tracebackhide__ = methodcaller("errisinstance", AssertionError)

Answers = dict[str, Array]
"""The arrays of an answer by name: "output", "final h", "gradient of x", "gradient of initial c", "gradient of layers.0.…"."""

Found = Mapping[str, Difference]


class Disagreement(AssertionError):
    """Two layers gave different numbers.

    Attributes:
        smallest: the smallest tolerance that would pass, in eps; infinite if none would.
        where: the worst element, in words.
    """

    def __init__(self, message: str, smallest: float, where: str) -> None:
        super().__init__(message)
        self.smallest = smallest
        self.where = where


@dataclass(frozen=True, slots=True, repr=False)
class Agreement:
    """How closely two layers agree; it prints as a few lines.

    Attributes:
        titles: the titles of A and B.
        spec: the spec of A.
        forms: the forms that were run.
        eps: the largest normwise difference of each quantity over all forms, in units of eps.
        tolerance: the tolerance in the same units.
        notes: what was not compared, and mistakes that could not show.
    """

    titles: tuple[str, str]
    spec: RecurrentSpec
    forms: tuple[str, ...]
    eps: Mapping[str, float]
    tolerance: float
    notes: tuple[str, ...] = ()

    @property
    def worst(self) -> tuple[str, float]:
        """The quantity that differs most, and by how many eps."""
        return max(self.eps.items(), key=lambda item: item[1])

    def __str__(self) -> str:
        name, eps = self.worst
        return "\n".join(
            [
                f"A, {self.titles[0]}, and B, {self.titles[1]}, agree in {len(self.eps)} quantities ({', '.join(self.forms)}).",
                f"The worst is {name}: {eps:.3g} eps of {self.spec.dtype}, and {self.tolerance:g} are allowed.",
                *self.notes,
            ]
        )

    __repr__ = __str__


def assert_layers_agree(
    a: Any,
    b: Any,
    *,
    spec: RecurrentSpec | None = None,
    x: ArrayLike | None = None,
    state: State | None = None,
    lengths: ArrayLike | None = None,
    gradients: bool = True,
    counts: bool = True,
    forms: Sequence[str] = ("eager",),
    tolerance: float | None = None,
    seed: int = 0,
) -> Agreement:
    """Assert that two layers agree in outputs, final states, gradients and number of parameters.

    Gradients of x and of the initial state are compared, and those of the weights if both sides can be read. The notes of
    the result list everything that could not be compared.

    Args:
        a: a multirnn Layer; a framework's own layer, module, model or compiled function; or a plain callable
            `f(x, h0) -> (y, h)` on NumPy arrays. See `multirnn.adoption.adopt`.
        b: the same.
        spec: the spec of a side whose spec cannot be read; defaults to the other side's.
        x: `(batch, time, input_size)`, or `(time, input_size)`. Unless given, x, an initial state and ragged lengths are
            drawn by `draw_call(spec, seed)`, if both sides take them.
        state: the initial state for that x; zero unless given.
        lengths: `(batch,)` integers for that x; every row is full unless given.
        gradients: compare them, under random cotangents.
        counts: compare the numbers of trainable parameters, by each framework's own counting.
        forms: "eager", or "compiled" (`torch.compile`, `jax.jit`, `tf.function`), or both. A side without a compiled form
            runs eagerly against the compiled one.
        tolerance: the number of eps that count as rounding; `TOLERANCE` unless given.
        seed: seeds all drawing.

    Raises:
        Disagreement: an `AssertionError`: the numbers differ. It says which, where, by how much, and which side is wrong.
        AssertionError: the specs or the numbers of parameters differ, or one returned no sequence or states.
        InvalidCall: neither spec can be read, one of them cannot be run, or x, state or lengths do not fit.
    """
    forms = (forms,) if isinstance(forms, str) else tuple(forms)
    if not forms or not set(forms) <= set(MODES):
        raise InvalidCall(f"forms must be one or both of {', '.join(MODES)}, not {forms!r}")
    if x is None and not (state is None and lengths is None):
        raise InvalidCall("a state or lengths belong to an x: pass x too")
    pairs: list[_Pair] = []
    eps: dict[str, float] = {}
    notes: dict[str, None] = {}
    for form in forms:
        pair = _Pair(*adopt_both(a, b, spec=spec, compiled=form == "compiled"), tolerance)
        pairs.append(pair)
        call = pair.draw(seed) if x is None else pair.check(x, state, lengths)
        for name, found in pair.compare(call, gradients=gradients, counts=counts, seed=seed).items():
            eps[name] = max(found.eps, eps.get(name, 0.0))
        notes |= dict.fromkeys(pair.notes)
    return Agreement(pairs[0].titles, pairs[-1].spec, forms, eps, pairs[-1].tolerance, tuple(notes))


class _Call(NamedTuple):
    """A call of both; `state` is None if it is zero, `lengths` if every row is full."""

    x: Array
    state: State | None
    lengths: ArrayLike | None


class _Pair:
    """Two adopted layers of one spec, and notes about comparing them."""

    def __init__(self, a: Adopted, b: Adopted, allowed: float | None) -> None:
        self.a, self.b = a, b
        self.titles = a.title, b.title
        self.spec = a.spec
        self.tolerance = TOLERANCE[a.spec.dtype] if allowed is None else allowed
        self.notes = [f"Note: {letter} {side.remark}." for letter, side in (("A", a), ("B", b)) if side.remark]
        self._named = f"A, {a.title}, and B, {b.title},"
        apart = [field.name for field in fields(a.spec) if getattr(a.spec, field.name) != getattr(b.spec, field.name)]
        if set(apart) - {"bias"}:  # two forms of the biases may be one function
            said = " and ".join(f"{name} ({getattr(a.spec, name)!r}, {getattr(b.spec, name)!r})" for name in apart)
            raise AssertionError(f"{self._named} are of two specs, which differ in {said}.")

    # --- Calls -------------------------------------------------------------------------------------------------------

    def draw(self, seed: int) -> _Call:
        """A call that both take."""
        x, state, lengths = draw_call(self.spec, seed)
        return _Call(
            x,
            state if self._both("takes_state", "the initial state is zero: {} takes none") else None,
            lengths if self._both("takes_lengths", "all rows are full: {} takes no lengths") else None,
        )

    def check(self, x: ArrayLike, state: State | None, lengths: ArrayLike | None) -> _Call:
        """The user's own call; InvalidCall if it does not fit the spec, or not both sides."""
        build(self.spec, "numpy")(x, state, lengths=lengths)  # raises if the call does not fit
        for side in (self.a, self.b):
            if lengths is not None and not side.takes_lengths:
                raise InvalidCall(f"{side.title} takes no lengths: leave them out")
            if state is not None and not side.takes_state:
                raise InvalidCall(f"{side.title} takes no initial state: leave it out")
        return _Call(*batched(x, state, lengths, self.spec))

    def _both(self, ability: str, note: str) -> bool:
        """Whether both sides have an ability; adds a note if not."""
        unable = [name for name, side in (("A", self.a), ("B", self.b)) if not getattr(side, ability)]
        if unable:
            self.notes.append(f"Note: {note.format(unable[0])}.")
        return not unable

    # --- Answers -----------------------------------------------------------------------------------------------------

    def compare(self, call: _Call, *, gradients: bool, counts: bool, seed: int) -> dict[str, Difference]:
        """The difference of every quantity that both have; AssertionError if they do not agree."""
        ours, theirs = (_outputs(side, call) for side in (self.a, self.b))
        without = [letter for letter, parts in (("A", ours), ("B", theirs)) if "final h" not in parts]
        if without:
            self.notes.append(f"Note: final states are not compared: {' and '.join(without)} returned none.")
        cotangent = None
        if gradients and self._both("differentiable", "gradients are not compared: {} has none"):
            self._both("readable", "gradients of weights are not compared: those of {} cannot be read")
            cotangent = draw_cotangent(self.spec, len(call.x), call.x.shape[1], np.random.default_rng(seed + 1))
            if without:
                cotangent = Output(cotangent.sequence, State(*(0 * part for part in cotangent.state.parts)))
            ours |= _gradients(self.a, call, cotangent)
            theirs |= _gradients(self.b, call, cotangent)
        self._note_zero_biases()
        ours, theirs = self._comparable(ours, theirs)
        found = {name: difference(theirs[name], ours[name]) for name in ours}
        failed = {name: one for name, one in found.items() if not one.eps <= self.tolerance}
        miscount = self._miscount() if counts else ""
        if failed:
            worst = _worst(failed)
            lines = [*self._report(call, cotangent, ours, theirs, found, failed), miscount, *self.notes]
            where = f"{worst}{place(self.spec, worst, failed[worst].where)}"
            raise Disagreement("\n".join(filter(None, lines)), _rounded_up(failed[worst].eps), where)
        if miscount:
            raise AssertionError(
                "\n".join([f"{self._named} are one function, and not one model.", miscount, *self.notes])
            )
        return found

    def _comparable(self, ours: Answers, theirs: Answers) -> tuple[Answers, Answers]:
        """The quantities of both, in one form of the biases, all of one shape and dtype, else AssertionError."""
        for name in {**ours, **theirs}:
            for letter, side, parts in (("A", self.a, ours), ("B", self.b, theirs)):
                if parts.get(name) is None and _expected(side, name, parts):
                    raise AssertionError(f"{self._named} do not agree: {letter} has no {name}.")
        ours, theirs = _common(ours, theirs)
        for name, array in ours.items():
            if array.shape != theirs[name].shape:
                raise AssertionError(
                    f"{self._named} do not agree: {name} has the shape {array.shape} in A and {theirs[name].shape} in B."
                )
            for letter, dtype in (("A", array.dtype), ("B", theirs[name].dtype)):
                if dtype != self.spec.dtype:
                    raise AssertionError(
                        f"{self._named} do not agree: {name} is {dtype} in {letter}, not {self.spec.dtype}."
                    )
        return ours, theirs

    def _note_zero_biases(self) -> None:
        for name, side in (("A", self.a), ("B", self.b)):
            biases = [array for key, array in side.weights().arrays.items() if "bias" in key] if side.readable else []
            if biases and not any(array.any() for array in biases):
                self.notes.append(
                    f"Note: the biases of {name} are all zero, so that some mistakes in them cannot show."
                )
                return

    def _miscount(self) -> str:
        counted = self.a.parameter_count, self.b.parameter_count
        if None in counted:
            self.notes.append(f"Note: parameters are not counted: nothing counts those of {'AB'[counted.index(None)]}.")
        elif counted[0] != counted[1]:
            forms = self.a.spec.bias, self.b.spec.bias
            why = f" The biases are in two forms, {forms[0]!r} and {forms[1]!r}." if forms[0] != forms[1] else ""
            return f"A counts {counted[0]} trainable parameters and B {counted[1]}.{why} Leave it out by counts=False."
        return ""

    # --- The report of a difference ----------------------------------------------------------------------------------

    def _report(
        self, call: _Call, cotangent: Output | None, ours: Answers, theirs: Answers, found: Found, failed: Found
    ) -> Iterator[str]:
        yield f"{self._named} do not agree."
        weights = {name: one for name, one in failed.items() if name.startswith("gradient of layers.")}
        for name in [*(name for name in failed if name not in weights), *([_worst(weights)] if weights else [])]:
            where, eps = failed[name].where, failed[name].eps
            a, b = _two(float(ours[name][where]), float(theirs[name][where]))
            yield f"  {name}{place(self.spec, name, where)}: A {a}, B {b}, {eps:.2g} eps apart"
        agreeing = [name for name in found if name not in failed]
        yield f"  {len(failed)} of {len(found)} quantities differ" + (
            f"; equal: {', '.join(agreeing)}." if 0 < len(agreeing) <= 4 else "."
        )
        yield self._allowed(failed[_worst(failed)])
        yield from self._who(call, cotangent, _worst(failed))
        yield from self._where(call)

    def _allowed(self, worst: Difference) -> str:
        text = f"Allowed are {self.tolerance:g} eps of {self.spec.dtype}"
        if not np.isfinite(worst.eps):
            return f"{text}; no tolerance would pass: there are values that are not finite, or not zero where all should be."
        text += f"; the smallest tolerance that would pass is {_rounded_up(worst.eps):g}, a relative error of {worst.normwise:.1g}."
        if self.spec.dtype == "float64" and worst.normwise <= TOLERANCE["float32"] * float(np.finfo("float32").eps):
            text += " That is the size of rounding in float32: somewhere float64 is left."
        return text

    def _who(self, call: _Call, cotangent: Output | None, name: str) -> Iterator[str]:
        """Which side misses the reference in a quantity: NumPy in float64 with the readable weights."""
        weights = [side.weights() if side.readable else None for side in (self.a, self.b)]
        yield from _apart(*weights)
        known = [one for one in weights if one is not None]
        if not known:
            return
        off = []
        for letter, side, own in zip("AB", (self.a, self.b), weights, strict=True):
            reference = _reference(own or known[0], call, cotangent)
            mine, right = _common(_outputs(side, call) | _gradients(side, call, cotangent), reference)
            if name in mine:
                off.append((letter, difference(mine[name], right[name]).eps))
        if off:
            said = " and ".join(f"{letter} {eps:.2g} eps" for letter, eps in off)
            whose = "their own weights" if len(known) == 2 else f"the weights of {'A' if weights[0] else 'B'}"
            wrong = [letter for letter, eps in off if not eps <= self.tolerance]
            verdict = f": {' and '.join(wrong)} {'is' if len(wrong) == 1 else 'are'} wrong" if wrong else ""
            yield f"In {name}, the reference in float64 with {whose} is missed by {said}{verdict}."

    def _where(self, call: _Call) -> Iterator[str]:
        if self.a.compiled or self.b.compiled:
            yield "It is the compiled form that was run."
            return
        try:
            divergence = first_divergence(self.a, self.b, call.x, call.state, lengths=call.lengths)
        except MultirnnError as error:
            yield f"Where they part first is not known: {error}"
            return
        if divergence.kind == "mistake":
            yield f"{divergence.title}. {divergence.says}"
        if self.a.readable or self.b.readable:
            yield f"What the mistake may be: print(mr.diagnose({'a, b' if self.a.readable else 'b, a'}))."


# --- Answers ---------------------------------------------------------------------------------------------------------


def _outputs(side: Adopted, call: _Call) -> Answers:
    try:
        output = side(call.x, call.state, lengths=call.lengths)
    except InvalidCall as error:  # the call fits, so the answer does not
        raise AssertionError(str(error)) from error
    parts = {"output": output.sequence, "final h": output.state.h, "final c": output.state.c}
    return {name: array for name, array in parts.items() if array is not None}


def _gradients(side: Adopted, call: _Call, cotangent: Output | None) -> Answers:
    if cotangent is None:
        return {}
    found = side.vjp(call.x, call.state, lengths=call.lengths, cotangent=cotangent)
    parts = {"gradient of x": found.x}
    if side.takes_state:
        parts |= {f"gradient of initial {name}": getattr(found.state, name) for name in side.spec.form.states}
    return parts | {f"gradient of {name}": array for name, array in found.weights.items()}


def _expected(side: Adopted, name: str, parts: Mapping[str, Any]) -> bool:
    """Whether a side must have a quantity that the other has."""
    if name.startswith("gradient of layers."):
        return side.readable and name.removeprefix("gradient of ") in side.spec.shapes
    if name.startswith("gradient of initial "):
        return side.takes_state
    return name != "final h" and (name != "final c" or "final h" in parts)


def _common(ours: Answers, theirs: Answers) -> tuple[Answers, Answers]:
    """The quantities of both; of recurrent biases in two forms the candidate's, the last gate's, alone."""
    names = [name for name, array in ours.items() if array is not None and theirs.get(name) is not None]
    rows = {name: min(len(ours[name]), len(theirs[name])) for name in names if "bias_hh" in name}
    return tuple(
        {name: side[name][-rows[name] :] if name in rows else side[name] for name in names} for side in (ours, theirs)
    )  # type: ignore[return-value]


def _reference(weights: Weights, call: _Call, cotangent: Output | None) -> Answers:
    layer = adopt(build(weights.astype("float64"), "numpy"))
    wide = _Call(call.x.astype("float64"), widened(call.state), call.lengths)
    return _outputs(layer, wide) | _gradients(layer, wide, cotangent and widened_output(cotangent))


def _apart(a: Weights | None, b: Weights | None) -> Iterator[str]:
    """Says whether their weights differ, which is then the reason."""
    if a is None or b is None or "none" in (a.spec.bias, b.spec.bias):
        return
    if a.spec.bias != b.spec.bias:
        a, b = fold_biases(a), fold_biases(b)
    found = {name: difference(b.arrays[name], array) for name, array in a.arrays.items()}
    name = _worst(found)
    if found[name].eps > 1:
        where = place(a.spec, f"gradient of {name}", found[name].where)
        yield f"Their weights differ, most in {name}{where}, by {found[name].eps:.2g} eps."


# --- Words -----------------------------------------------------------------------------------------------------------


def _worst(found: Found) -> str:
    return max(found, key=lambda name: found[name].eps)


def _two(a: float, b: float) -> tuple[str, str]:
    """Two numbers, with as few digits as tell them apart."""
    texts = [(f"{a:.{digits}g}", f"{b:.{digits}g}") for digits in (4, 9, 17)]
    return next((pair for pair in texts if pair[0] != pair[1]), texts[-1])


def _rounded_up(eps: float) -> float:
    """To two digits."""
    if not np.isfinite(eps):
        return eps
    return float(Context(prec=2, rounding=ROUND_CEILING).create_decimal(repr(eps)))
