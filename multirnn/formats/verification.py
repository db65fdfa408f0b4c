"""Do two files hold the same function? `verify`."""

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from multirnn.errors import Unrepresentable
from multirnn.formats.found import Found
from multirnn.layer import Output
from multirnn.numerics import coarser, difference, distances, draw_call, tolerance
from multirnn.registry import build
from multirnn.spec import RecurrentSpec
from multirnn.tables import json_value
from multirnn.weights import Array, Weights, fold_biases, split_biases

__all__ = ["Verification", "verified"]

LARGEST = 2_000_000
"""Parameters of a stack in which known mistakes are looked for: some 15 s."""


@dataclass(frozen=True)
class Verification:
    """The result of `verify`.

    Attributes:
        ok: whether both are the same function.
        a, b: the stacks that were compared.
        exact: whether all arrays are equal bit for bit.
        largest: the largest difference of two numbers in corresponding arrays, and the array; None if the specs differ.
        sorted_difference: the largest difference after sorting both arrays: above zero no reordering explains it.
        error: of outputs and gradients on drawn inputs, normwise; infinite where a NaN leaves nothing to compare; None if
            the specs differ.
        sentence: the result in words.
        causes: the known mistakes that explain the difference, in words; several, if no call tells them apart.
    """

    ok: bool
    a: Found
    b: Found
    exact: bool
    largest: tuple[float, str] | None
    sorted_difference: float | None
    error: float | None
    sentence: str
    causes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.sentence

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; what is not finite is null."""
        return {
            "ok": self.ok,
            "exact": self.exact,
            "a": self.a.to_dict(),
            "b": self.b.to_dict(),
            "largest": json_value(self.largest),
            "sorted_difference": json_value(self.sorted_difference),
            "error": json_value(self.error),
            "sentence": self.sentence,
            "causes": list(self.causes),
        }


def verified(a: Weights, b: Weights, of_a: Found, of_b: Found) -> Verification:
    """Compare two stacks: arrays first, then outputs and gradients on drawn inputs."""
    a, b, assumed = _completed(a, b, of_a, of_b)
    if differing := _differing(a.spec, b.spec):
        return Verification(False, of_a, of_b, False, None, None, None, f"not the same: {differing}")
    left, right, notes = _alike(a, b)
    gaps = _gaps(left, right)
    where = max(gaps, key=lambda name: gaps[name])
    largest, nans = gaps[where], (_nans(left), _nans(right))
    exact = a.spec == b.spec and all(array.tobytes() == b.arrays[name].tobytes() for name, array in a.arrays.items())
    error = 0.0 if not largest else float("inf") if any(nans) else _error(left, right)
    dtype = coarser(a.spec.dtype, b.spec.dtype)
    ok = error <= tolerance(dtype)
    arranged = max(
        float(distances(np.sort(array, None), np.sort(right.arrays[name], None)).max())
        for name, array in left.arrays.items()
    )
    causes: tuple[str, ...] = ()
    if exact:
        said = f"the same {a.spec.parameter_count:,} numbers, bit for bit"
    elif ok:
        said = "the same function: " + "; ".join(notes or _how_close(left, right, largest, where, error))
    else:
        by = (
            f"differs by up to {largest:.2g}"
            if np.isfinite(largest)
            else "has a NaN or an infinity in one of them alone"
        )
        said = f"not the same: {where} {by}"
        if not any(nans):
            causes, why = _causes(left, right, arranged)
            said += f", outputs and gradients by {error:.1e}{why}"
    if any(nans):
        said += f"; of the numbers {nans[0]:,} in A and {nans[1]:,} in B are NaN, so that outputs prove nothing"
    return Verification(ok, of_a, of_b, exact, (largest, where), arranged, error, said + assumed, causes)


def _completed(a: Weights, b: Weights, of_a: Found, of_b: Found) -> tuple[Weights, Weights, str]:
    """Both with what one file leaves unsaid as the other says it, and the end of the sentence that says so."""
    said = ""
    sides = [a, b]
    for place, (own, other) in enumerate(((of_a, of_b), (of_b, of_a))):
        mine, theirs = sides[place], sides[1 - place]
        taken = {name: getattr(theirs.spec, name) for name in own.unsaid if name not in other.unsaid}
        if any(getattr(mine.spec, name) != value for name, value in taken.items()):
            sides[place] = Weights(replace(mine.spec, **taken), mine.arrays)
            values = " and ".join(f"{name}={str(value)!r}" for name, value in taken.items())
            said = f"; {'AB'[place]} does not say its activations, so {values} of {'BA'[place]} are taken for both"
    return sides[0], sides[1], said


def _differing(a: RecurrentSpec, b: RecurrentSpec) -> str:
    """The fields in which two specs describe another function, with both values."""
    names = [field.name for field in fields(a) if field.name not in ("dtype", "bias")]
    found = [f"{name} is {getattr(a, name)!r} in A and {getattr(b, name)!r} in B" for name in names]
    return ", ".join(text for text, name in zip(found, names, strict=True) if getattr(a, name) != getattr(b, name))


def _alike(a: Weights, b: Weights) -> tuple[Weights, Weights, list[str]]:
    """Both in one dtype and one form of biases, and what made them so."""
    notes = []
    if a.spec.dtype != b.spec.dtype:
        dtype = coarser(a.spec.dtype, b.spec.dtype)
        notes.append(f"A is {a.spec.dtype} and B {b.spec.dtype}; rounded to {dtype} they are equal")
        a, b = a.astype(dtype), b.astype(dtype)
    if a.spec.bias != b.spec.bias:
        notes.append(f"A has bias={a.spec.bias!r} and B bias={b.spec.bias!r}; added up they are equal")
        a, b = fold_biases(split_biases(a)), fold_biases(split_biases(b))
    return a, b, notes if not any(_gaps(a, b).values()) else []


def _gaps(a: Weights, b: Weights) -> dict[str, float]:
    return {name: float(distances(array, b.arrays[name]).max()) for name, array in a.arrays.items()}


def _how_close(a: Weights, b: Weights, largest: float, where: str, error: float) -> list[str]:
    """In words, how the arrays differ of two stacks that are one function."""
    if not largest:
        return ["all numbers are equal, and some zeros have another sign"]
    if "bias" in where and a.spec.bias == "double":
        folded = _gaps(fold_biases(a), fold_biases(b))
        if max(folded.values()) <= tolerance(a.spec.dtype) * max(1.0, largest):
            return [f"biases are divided otherwise between input and recurrence, {where} by {largest:.2g}"]
    return [f"outputs and gradients agree within {error:.1e}; {where} differs by {largest:.2g}"]


def _nans(weights: Weights) -> int:
    return sum(int(np.isnan(array).sum()) for array in weights.arrays.values())


def _error(a: Weights, b: Weights) -> float:
    """The worst normwise difference of outputs and gradients, computed in float64."""
    x, state, lengths = draw_call(a.spec, 0)
    wide = [build(weights.astype("float64"), "numpy") for weights in (a, b)]
    given = x.astype("float64"), type(state)(*(part.astype("float64") for part in state.parts))
    outputs = [layer(*given, lengths=lengths) for layer in wide]
    cotangent = Output(np.ones_like(outputs[0].sequence), type(state)(*(np.ones_like(part) for part in given[1].parts)))
    gradients = [layer.vjp(*given, lengths=lengths, cotangent=cotangent) for layer in wide]
    pairs = [(outputs[0].sequence, outputs[1].sequence), (gradients[0].x, gradients[1].x)]
    pairs += [(gradients[0].weights[name], gradients[1].weights[name]) for name in a.arrays]
    return max(difference(*pair).normwise for pair in pairs)


def _causes(a: Weights, b: Weights, arranged: float) -> tuple[tuple[str, ...], str]:
    """The known mistakes that explain why B is another function, and the end of the sentence that says so."""
    if arranged and not _of_the_same_numbers(a, b):
        return (), (
            f"; sorted, the numbers still differ by {arranged:.2g}, so no other order of gates or axes explains it"
        )
    if a.spec.parameter_count > LARGEST:
        return (), f"; with more than {LARGEST:,} parameters, no known mistake was looked for"
    from multirnn.diagnosis import diagnose  # here: a comparison that finds no difference needs none of it

    try:
        found = diagnose(build(a, "numpy"), build(b, "numpy"))
    except Unrepresentable as error:
        return (), f"; no known mistake can be looked for: {error}"
    causes = tuple(cause.sentence for cause in found.causes)
    if not causes:
        return (), "; no known mistake explains it"
    return causes, f"; {' Or: '.join(causes).rstrip('.')}"


def _of_the_same_numbers(a: Weights, b: Weights) -> bool:
    """Whether most numbers of B's matrices are in A's, but for their signs: known mistakes make no new ones there."""
    left, right = (np.concatenate([np.abs(one).ravel() for one in _matrices(weights)]) for weights in (a, b))
    return bool(np.isin(right, left).mean() > 0.5)


def _matrices(weights: Weights) -> list[Array]:
    return [array for array in weights.arrays.values() if array.ndim == 3]
