"""Do two files hold the same function? `verify`."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from multirnn.formats.found import Found
from multirnn.layer import Output
from multirnn.numerics import difference, draw_call, tolerance
from multirnn.registry import build
from multirnn.weights import Weights, fold_biases

__all__ = ["Verification", "verified"]


@dataclass(frozen=True)
class Verification:
    """The result of `verify`.

    Attributes:
        ok: whether both are the same function.
        a, b: the stacks that were compared.
        exact: whether all arrays are equal bit for bit.
        largest: the largest difference of two numbers in corresponding arrays, and the array; None if the specs differ.
        sorted_difference: the largest difference after sorting both arrays: above zero no reordering explains it.
        error: of outputs and gradients on drawn inputs, normwise; None if the specs differ.
        sentence: the result in words.
    """

    ok: bool
    a: Found
    b: Found
    exact: bool
    largest: tuple[float, str] | None
    sorted_difference: float | None
    error: float | None
    sentence: str

    def __str__(self) -> str:
        return self.sentence

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "ok": self.ok,
            "exact": self.exact,
            "a": self.a.to_dict(),
            "b": self.b.to_dict(),
            "largest": self.largest,
            "sorted_difference": self.sorted_difference,
            "error": self.error,
            "sentence": self.sentence,
        }


def verified(a: Weights, b: Weights, of_a: Found, of_b: Found) -> Verification:
    """Compare two stacks: arrays first, then outputs and gradients on drawn inputs."""
    left, right = a, b
    if a.spec != b.spec and fold_biases(a).spec == fold_biases(b).spec:
        left, right = fold_biases(a), fold_biases(b)
    if left.spec != right.spec:
        return Verification(
            False, of_a, of_b, False, None, None, None, f"not the same: A is {a.spec!r}, and B is {b.spec!r}"
        )
    gaps = {name: float(np.abs(array - right.arrays[name]).max()) for name, array in left.arrays.items()}
    where = max(gaps, key=lambda name: gaps[name])
    arranged = max(
        float(np.abs(np.sort(array, None) - np.sort(right.arrays[name], None)).max())
        for name, array in left.arrays.items()
    )
    error = _error(left, right)
    ok = error <= tolerance(left.spec.dtype)
    if not any(gaps.values()):
        said = (
            f"the same {_count(left)} numbers, bit for bit"
            if left is a
            else "the same function: biases differ in form alone"
        )
    elif ok:
        said = (
            f"the same function: outputs and gradients agree within {error:.1e}; {where} differs by {gaps[where]:.2g}"
        )
    else:
        said = f"not the same: {where} differs by up to {gaps[where]:.2g}, outputs and gradients by {error:.1e}"
        if arranged:
            said += (
                f"; sorted, the numbers still differ by {arranged:.2g}, so no other order of gates or axes explains it"
            )
    return Verification(ok, of_a, of_b, not any(gaps.values()), (gaps[where], where), arranged, error, said)


def _count(weights: Weights) -> str:
    return f"{weights.spec.parameter_count:,}"


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
