"""Where gradients part, if the outputs agree."""

from typing import Any

import numpy as np

from multirnn.divergence.measures import Pair
from multirnn.divergence.record import Divergence, Parting
from multirnn.divergence.report import report
from multirnn.divergence.stepping import Known, Seen
from multirnn.layer import Output, State
from multirnn.numerics import distances, magnitude, normwise
from multirnn.registry import backend
from multirnn.weights import Array, Weights

__all__ = ["gradients"]

Pulled = dict[str, Array]
"""Gradients by name, in float64."""


def gradients(pair: Pair) -> Divergence | None:
    """The first gradient of B to differ, in the order of backpropagation; None if all agree or a side has none."""
    if not (pair.a.layer.differentiable and pair.b.layer.differentiable):
        return None
    expected, room, found = _pulled_back(pair)
    parted = {}
    for name, array in expected.items():
        if name in found and found[name].shape == array.shape:
            gap = distances(found[name], array).max(initial=0)
            if not gap <= room[name]:
                parted[name] = float(normwise(gap, magnitude(array, array.dtype)) / pair.eps)
    return _report(pair, parted, expected, found) if parted else None


def _pulled_back(pair: Pair) -> tuple[Pulled, dict[str, float], Pulled]:
    """The expected gradients of a cotangent, their room, and B's gradients."""
    x, states, lengths = pair.call
    sequence, final = pair.cotangent or _drawn(pair)
    if lengths is not None:
        sequence[np.arange(pair.time) >= lengths[:, None]] = 0

    def pull(layer: Any, dtype: str) -> Pulled:
        state = None if states is None else State(*states.astype(dtype))
        cotangent = Output(sequence.astype(dtype), State(*final.astype(dtype)))
        made = layer.vjp(x.astype(dtype), state, lengths=lengths, cotangent=cotangent)
        named = {
            **made.weights,
            **{f"the initial {n}": part for n, part in zip("hc", made.state, strict=True)},
            "x": made.x,
        }
        return {name: np.asarray(array, np.float64) for name, array in named.items() if array is not None}

    found = pull(pair.b.layer, pair.b.spec.dtype)
    if not isinstance(pair.reference, Known):
        expected = pull(pair.a.layer, pair.a.spec.dtype)
        return expected, {name: pair.limit * magnitude(array, array.dtype) for name, array in expected.items()}, found
    build = backend("numpy").build
    expected = pull(build(pair.reference.weights), "float64")
    other: Weights = pair.reference.moved(pair.limit, pair.rng).weights
    moved = pull(build(other), "float64")
    room = {
        name: max(pair.limit * magnitude(array, array.dtype), distances(moved[name], array).max(initial=0))
        for name, array in expected.items()
    }
    return expected, room, found


def _drawn(pair: Pair) -> Seen:
    random = np.random.default_rng(pair.seed)
    sequence = random.standard_normal((*pair.call.x.shape[:2], pair.spec.output_size)).astype(pair.dtype)
    return Seen(sequence, random.uniform(-1, 1, pair.initial.shape).astype(pair.dtype))


def _report(pair: Pair, parted: dict[str, float], expected: Pulled, found: Pulled) -> Divergence:
    name = _first_back(parted)
    a, b = expected[name], found[name]
    worst = tuple(int(i) for i in np.unravel_index(int(np.argmax(distances(b, a))), a.shape))
    place: tuple[int | None, str | None] = (None, None)
    where: dict[str, Any] = {}
    if name.startswith("layers."):
        place = _pass(name)
        where["gate"] = pair.spec.form.gates[worst[0]] if len(a) > 1 else pair.spec.form.candidate
        where["unit"] = worst[1]
    elif name == "x":
        where["row"], _, where["unit"] = worst
    else:
        place = pair.passes[worst[0]]
        _, where["row"], where["unit"] = worst
    step = None
    if "x" in parted:
        far = distances(found["x"], expected["x"]).max(axis=(0, 2))
        step = int(np.flatnonzero(far > pair.limit * magnitude(expected["x"], expected["x"].dtype))[-1])
    others = {_pass(other) for other in parted if other.startswith("layers.")} - {place}
    return report(
        pair,
        probe="gradient",
        parting=[Parting(*place, step), *(Parting(*other, None) for other in sorted(others, reverse=True))],
        quantity=f"gradient of {name}",
        values=(float(a[worst]), float(b[worst])),
        eps=parted[name],
        says=f"Outputs and final states agree; the gradient of {name} does not. It is the first to differ in the backward pass: "
        f"{len(parted)} of {len(expected)} gradients part.",
        **where,
    )


def _pass(name: str) -> tuple[int, str]:
    _, layer, direction, _ = name.split(".")
    return int(layer), direction


def _first_back(parted: dict[str, float]) -> str:
    """The first in the backward pass: a weight of the highest layer, else an initial state, else x."""
    weights = [name for name in parted if name.startswith("layers.")]
    if not weights:
        return max((name for name in parted if name != "x"), key=lambda name: parted[name], default="x")
    top = max(int(name.split(".")[1]) for name in weights)
    here = [name for name in weights if int(name.split(".")[1]) == top]
    forward = [name for name in here if ".forward." in name]
    return max(forward or here, key=lambda name: parted[name])
