"""The calls made of a layer, its answers, and the distance between two answers."""

from __future__ import annotations  # or naming np.random.Generator loads numpy.random

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from multirnn.layer import Lengths, Output, State
from multirnn.mistakes.change import Runs
from multirnn.numerics import difference
from multirnn.spec import RecurrentSpec
from multirnn.weights import Array

__all__ = ["Answer", "Probe", "apart", "ask", "distance", "drawn_probe", "each", "given_probe"]

Answer = dict[str, Array]


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """A call, in float64. With a cotangent it asks for gradients instead of outputs."""

    x: Array
    state: State | None = None
    lengths: Lengths | None = None
    cotangent: Output | None = None


def given_probe(spec: RecurrentSpec, x: ArrayLike, state: State | None, lengths: ArrayLike | None) -> Probe:
    """The caller's own call, batched, rounded to the dtype of the spec."""

    def wide(value: ArrayLike) -> Array:
        return np.asarray(value, spec.dtype).astype("float64")

    array = wide(x)
    initial = None if state is None else each(state, wide)
    if array.ndim == 2:
        array = array[None]
        initial = None if initial is None else each(initial, lambda part: part[:, None])
    return Probe(array, initial, None if lengths is None else np.atleast_1d(np.asarray(lengths)))


def drawn_probe(
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
    """A drawn call, of numbers that the dtype of the spec represents exactly."""

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


def each(state: State, change: Callable[[Array], Array]) -> State:
    """Every part of a state changed."""
    return State(change(state.h), None if state.c is None else change(state.c))


def ask(layer: Runs, probe: Probe, dtype: str) -> Answer:
    """The answer of a layer, by name, in float64."""

    def cast(part: Array) -> Array:
        return part.astype(dtype)

    x, lengths = cast(probe.x), probe.lengths
    state = None if probe.state is None else each(probe.state, cast)
    if probe.cotangent is None:
        output = layer(x, state, lengths=lengths)
        named: dict[str, Array | None] = {"output": output.sequence, **_state_parts("final", output.state)}
    else:
        cotangent = Output(cast(probe.cotangent.sequence), each(probe.cotangent.state, cast))
        found = layer.vjp(x, state, lengths=lengths, cotangent=cotangent)
        weights = {f"gradient of {name}": array for name, array in found.weights.items()}
        named = {"gradient of x": found.x, **_state_parts("gradient of initial", found.state), **weights}
    return {name: np.asarray(array, "float64") for name, array in named.items() if array is not None}


def _state_parts(prefix: str, state: State) -> dict[str, Array | None]:
    return {f"{prefix} {name}": part for name, part in zip(("h", "c"), state, strict=True)}


def apart(actual: Answer, expected: Answer) -> float:
    """The largest normwise difference from the expected arrays; infinite if one is missing or unexpected."""
    if not expected:
        return float("inf") if actual else 0.0
    return max(distance(actual.get(name), array) for name, array in expected.items())


def distance(actual: Array | None, expected: Array) -> float:
    """The normwise `difference`; infinite if the array is missing or has another shape."""
    if actual is None or actual.shape != expected.shape:
        return float("inf")
    return difference(actual, expected).normwise
