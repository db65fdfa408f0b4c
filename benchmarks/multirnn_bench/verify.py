"""Verify, then time: every answer is compared with the NumPy backend in float64 first.

The worst normwise difference of an array counts, in eps of the dtype. Above `allowed` the contender computes another
function, and no time of it is shown.

In a training step the update is compared, not the weight, whose size would hide a wrong gradient. Adding the update
rounded the weight, so half an eps of the weight is allowed as well.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from multirnn.errors import InvalidCall
from multirnn.layer import Gradients, Output, State
from multirnn.numerics import difference, distances, magnitude, normwise, tolerance
from multirnn.protocol import SGD_RATE, Work
from multirnn.registry import build
from multirnn.spec import RecurrentSpec
from multirnn.weights import Array
from multirnn_bench.problems import Problem

__all__ = ["allowed", "answer", "error", "expected", "memory_of_reference"]


def allowed(spec: RecurrentSpec) -> float:
    """The largest error that counts as rounding, in eps of the spec's dtype."""
    return tolerance(spec.dtype) / float(np.finfo(spec.dtype).eps)


def expected(work: Work) -> dict[str, Array]:
    """The right answer in float64, by the names of `answer`."""
    layer = build(work.weights.astype("float64"), "numpy")
    x = work.x.astype(np.float64)
    if work.mode in ("inference", "streaming"):
        return answer(work, layer(x, lengths=work.lengths))
    if work.mode == "gradients":
        assert work.cotangent is not None
        sequence, state = work.cotangent
        wide = State(*(part.astype(np.float64) for part in state if part is not None))
        pulled = layer.vjp(x, lengths=work.lengths, cotangent=Output(sequence.astype(np.float64), wide))
        return answer(work, pulled)
    assert work.target is not None
    output = layer(x, lengths=work.lengths)
    cotangent = (output.sequence - work.target) * (2 / output.sequence.size)
    none = State(*(np.zeros_like(part) for part in output.state if part is not None))
    gradients = layer.vjp(x, lengths=work.lengths, cotangent=Output(cotangent, none)).weights
    return {name: -SGD_RATE * gradient for name, gradient in gradients.items()}


def memory_of_reference(problem: Problem, mode: str) -> int:
    """About the bytes that `expected` needs: every layer's sequences in float64, and the arrays of a backward pass."""
    spec, steps = problem.spec, problem.batch * (1 if mode == "streaming" else problem.time)
    kept = 2 if mode in ("inference", "streaming") else 4 + 3 * len(spec.form.gates)
    numbers = spec.output_size * spec.num_layers + spec.input_size
    return 8 * (kept * steps * numbers + 3 * spec.parameter_count)


def answer(work: Work, result: Any) -> dict[str, Any]:
    """The arrays of a result by name; `InvalidCall` if the result is not of the type that the mode asks for."""
    if isinstance(result, Output) and work.mode in ("inference", "streaming"):
        states = zip(("final h", "final c"), result.state, strict=False)
        return {"sequence": result.sequence} | {name: part for name, part in states if part is not None}
    if isinstance(result, Gradients) and work.mode == "gradients":
        return dict(result.weights) | {"x": result.x}
    if isinstance(result, Mapping) and work.mode == "training":
        return dict(result)
    kind = {"gradients": "Gradients", "training": "a mapping of arrays"}.get(work.mode, "an Output")
    raise InvalidCall(f"the result of {work.mode!r} is {kind}, not {type(result).__name__}")


def error(work: Work, found: Mapping[str, Any], reference: Mapping[str, Array]) -> tuple[float, str]:
    """The error in eps of the worst array, and which; infinite, and why, if they cannot be compared."""
    dtype = np.dtype(work.weights.spec.dtype)
    worst, where = 0.0, ""
    for name in {**reference, **found}:
        if name not in found:
            return np.inf, f"{name} is missing"
        if name not in reference:
            return np.inf, f"there is a {name}, which the spec does not have"
        actual, right = np.asarray(found[name]), reference[name]
        if actual.shape != right.shape or actual.dtype != dtype:
            return np.inf, f"{name} is {actual.dtype} {actual.shape}, not {dtype} {right.shape}"
        if work.mode == "training":
            distance = _of_update(actual, work.weights.arrays[name], right)
        else:
            distance = difference(actual, right).eps
        if distance > worst:
            worst, where = distance, name
    return worst, where


def _of_update(after: Array, before: Array, update: Array) -> float:
    """The error of a step in eps of its largest update, less the rounding of the weights to which it was added."""
    eps = float(np.finfo(after.dtype).eps)
    distance = float(np.max(distances(after.astype(np.float64) - before, update)))
    beyond = max(distance - eps / 2 * magnitude(after, after.dtype), 0.0)
    return float(normwise(beyond, magnitude(update, after.dtype))) / eps
