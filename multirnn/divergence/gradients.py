"""Where gradients part, though the outputs agree."""

from typing import Any

import numpy as np

from multirnn.divergence.measures import Pair
from multirnn.divergence.record import Divergence
from multirnn.divergence.report import report
from multirnn.divergence.stepping import Known
from multirnn.layer import Output, State
from multirnn.numerics import distances, magnitude
from multirnn.registry import backend
from multirnn.weights import Array, Weights

__all__ = ["gradients"]

Pulled = dict[str, Array]
"""Gradients by the name of what they are of, in float64."""


def gradients(pair: Pair) -> Divergence | None:
    """The first gradient of B that is wrong on its way back; None if all agree, or a side has none."""
    if not (pair.a.layer.differentiable and pair.b.layer.differentiable):
        return None
    expected, room, found = _pulled_back(pair)
    parted = {}
    for name, array in expected.items():
        if name in found and found[name].shape == array.shape:
            gap = distances(found[name], array).max(initial=0)
            if not gap <= room[name]:
                parted[name] = float(gap / (magnitude(array, array.dtype) or 1) / pair.eps)
    return _report(pair, parted, expected, found) if parted else None


def _pulled_back(pair: Pair) -> tuple[Pulled, dict[str, float], Pulled]:
    """What a random cotangent is pulled back to: as expected, how far off that may be, and as found."""
    x, states, lengths = pair.call
    random = np.random.default_rng(pair.seed)
    sequence = random.standard_normal((*x.shape[:2], pair.spec.output_size)).astype(pair.dtype)
    final = random.uniform(-1, 1, pair.initial.shape).astype(pair.dtype)
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


def _report(pair: Pair, parted: dict[str, float], expected: Pulled, found: Pulled) -> Divergence:
    name = _first_back(parted)
    a, b = expected[name], found[name]
    worst = tuple(int(i) for i in np.unravel_index(int(np.argmax(distances(b, a))), a.shape))
    where: dict[str, Any] = {}
    if name.startswith("layers."):
        _, layer, direction, _ = name.split(".")
        where["place"] = pair.passes.index((int(layer), direction))
        where["gate"] = pair.spec.form.gates[worst[0]] if len(a) > 1 else pair.spec.form.candidate
        where["unit"] = worst[1]
    elif name == "x":
        where["row"], _, where["unit"] = worst
    else:
        where["place"], where["row"], where["unit"] = worst
    if "x" in parted:
        far = distances(found["x"], expected["x"]).max(axis=(0, 2))
        where["step"] = int(np.flatnonzero(far > pair.limit * magnitude(expected["x"], expected["x"].dtype))[-1])
    return report(
        pair,
        pattern="gradient",
        quantity=f"gradient of {name}",
        values=(float(a[worst]), float(b[worst])),
        eps=parted[name],
        says=f"Outputs and final states agree, but the gradient of {name} {_how(pair, a, b)}; it is the first on the way "
        f"back that does not agree. Of {len(expected)} gradients {len(parted)} part.",
        **where,
    )


def _how(pair: Pair, a: Array, b: Array) -> str:
    """How a gradient differs, in words."""
    if not b.any():
        return f"of {pair.B} is zero"
    factor = float((a * b).sum() / ((a * a).sum() or 1))
    if np.abs(b - factor * a).max() <= 16 * pair.limit * np.abs(b).max():
        return f"of {pair.B} is {factor:.4g} times that of {pair.A}"
    return f"of {pair.B} is another than of {pair.A}"


def _first_back(parted: dict[str, float]) -> str:
    """The first on the way back: of the weights of the highest layer, or of the initial states, or of x."""
    weights = [name for name in parted if name.startswith("layers.")]
    if not weights:
        return max((name for name in parted if name != "x"), key=lambda name: parted[name], default="x")
    top = max(int(name.split(".")[1]) for name in weights)
    here = [name for name in weights if int(name.split(".")[1]) == top]
    forward = [name for name in here if ".forward." in name]
    return max(forward or here, key=lambda name: parted[name])
