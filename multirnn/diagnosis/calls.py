"""The calls made of two layers, their answers, and the distance between two answers.

Numbers are float64, and such that the dtypes compared represent them. States are one array `(parts, passes, batch,
hidden_size)`: the parts are h, and c for an LSTM; the passes are in the order of `RecurrentSpec.passes`.
"""

from __future__ import annotations  # or naming np.random.Generator loads numpy.random

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from multirnn.layer import Lengths, Output, State
from multirnn.mistakes.change import Runs
from multirnn.numerics import difference
from multirnn.spec import RecurrentSpec
from multirnn.weights import Array

__all__ = ["Answer", "Probe", "Seen", "answer", "apart", "distance", "drawn_call", "given_call", "unlike"]

Answer = dict[str, Array]


class Seen(NamedTuple):
    """An output or its cotangent."""

    sequence: Array  # (batch, time, directions * hidden_size)
    final: Array


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """A call; with a cotangent it asks for gradients instead of outputs."""

    x: Array  # (batch, time, input_size), zero at padding
    states: Array | None = None
    lengths: Lengths | None = None  # None if every row is full
    cotangent: Seen | None = None


def given_call(
    x: ArrayLike, state: State | None, lengths: ArrayLike | None, dtype: str, cotangent: Output | None = None
) -> Probe:
    """The caller's own call, batched, rounded to a dtype."""
    batched = np.ndim(x) != 2

    def wide(part: ArrayLike, axis: int) -> Array:
        rounded = np.asarray(part, dtype).astype("float64")
        return rounded if batched else np.expand_dims(rounded, axis)

    def states(state: State) -> Array:
        return np.stack([wide(part, 1) for part in state.parts])

    array = wide(x, 0)
    steps = None if lengths is None else np.atleast_1d(np.asarray(lengths))
    seen = None if cotangent is None else Seen(wide(cotangent.sequence, 0), states(cotangent.state))
    return Probe(_zero_at_padding(array, steps), None if state is None else states(state), steps, seen)


def _zero_at_padding(x: Array, lengths: Lengths | None) -> Array:
    if lengths is None or lengths.shape != x.shape[:1]:
        return x
    return np.where((np.arange(x.shape[1]) < lengths[:, None])[:, :, None], x, 0)


def drawn_call(
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
    """A drawn call, rounded to the dtype of the spec."""

    def normal(*shape: int) -> Array:
        return (scale * rng.standard_normal(shape)).astype(spec.dtype).astype("float64")

    states = len(spec.form.states), spec.num_layers * len(spec.directions), batch, spec.hidden_size
    x, initial = normal(batch, time, spec.input_size), None if from_zero else normal(*states)
    steps = None if lengths is None else rng.permutation(lengths)
    cotangent = Seen(normal(batch, time, spec.output_size), normal(*states)) if gradients else None
    return Probe(_zero_at_padding(x, steps), initial, steps, cotangent)


def answer(layer: Runs, call: Probe, dtype: str) -> Answer:
    """The answer of a layer that computes in this dtype, by name, in float64; unknown states are left out."""
    x, state = call.x.astype(dtype), None if call.states is None else State(*call.states.astype(dtype))
    if call.cotangent is None:
        output = layer(x, state, lengths=call.lengths)
        named = {"sequence": output.sequence, **{f"final {n}": part for n, part in output.state._asdict().items()}}
    else:
        sequence, final = (part.astype(dtype) for part in call.cotangent)
        found = layer.vjp(x, state, lengths=call.lengths, cotangent=Output(sequence, State(*final)))
        initial = {f"the initial {n}": part for n, part in found.state._asdict().items()}
        named = {f"gradient of {n}": part for n, part in {"x": found.x, **initial, **found.weights}.items()}
    # A copy: a layer may reuse its output buffer.
    return {name: np.array(array, "float64") for name, array in named.items() if array is not None}


def apart(actual: Answer, expected: Answer) -> float:
    """The largest distance from the expected arrays; infinite if one is missing or unexpected."""
    if not expected:
        return float("inf") if actual else 0.0
    return max(distance(actual.get(name), array) for name, array in expected.items())


def distance(actual: Array | None, expected: Array) -> float:
    """The normwise `difference`; infinite if the array is missing or has another shape."""
    if actual is None or actual.shape != expected.shape:
        return float("inf")
    return difference(actual, expected).normwise


def unlike(a: RecurrentSpec, b: RecurrentSpec) -> list[str]:
    """The fields by which two stacks do not take the same input and states."""
    shape = ("cell", "input_size", "hidden_size", "num_layers", "bidirectional")
    return [name for name in shape if getattr(a, name) != getattr(b, name)]
