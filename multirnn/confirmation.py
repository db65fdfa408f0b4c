"""Is an object the stack that was read from it? Its structure suggests one, and its numbers confirm it.

A backend's `read` recognises the layers of a framework and takes their weights. It cannot see hooks, replaced methods,
operators between two layers, or a layer that is called twice. So `read` also calls the object on a small input and compares
the whole output with the reference, NumPy in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from multirnn.boundary import Inputs
from multirnn.comparison import widened
from multirnn.errors import Unrepresentable
from multirnn.layer import Output, State
from multirnn.numerics import difference, draw_state, tolerance
from multirnn.registry import backend as load_backend
from multirnn.weights import Weights

__all__ = ["confirmed", "probe"]

AMPLIFICATION = 8
"""An exact object may be off by this many times the effect of rounding its weights once: it rounds at every step."""


def probe(weights: Weights, *, ragged: bool = True, state: bool = True, batch: int = 5, time: int = 7) -> Inputs:
    """The call that `confirmed` makes, none of its numbers an integer.

    If ragged, the rows have different lengths, one of them 0. Without `state` the initial state is zero.
    """
    rng, spec = np.random.default_rng(0), weights.spec
    x = rng.standard_normal((batch, time, spec.input_size)).astype(spec.dtype)
    drawn = draw_state(spec, batch, rng)
    if not state:
        drawn = State._make(None if part is None else np.zeros_like(part) for part in drawn)
    if not ragged:
        return Inputs(x, drawn, None, state)
    lengths = np.resize([max(1, 4 * time // 7), time, 0, 1, time], batch)
    return Inputs(np.where((np.arange(time) < lengths[:, None])[:, :, None], x, x.dtype.type(0)), drawn, lengths, state)


def confirmed(weights: Weights, run: Callable[[Inputs], Output], title: str, **call: Any) -> Weights:
    """The weights, once the object that they were read from has computed their function; else Unrepresentable.

    `run` calls the object on NumPy arrays and leaves no trace in it; a part of the output that it does not return is None.
    The title begins a sentence, such as "this GRU"; `call` is as for `probe`: what the object takes.
    """
    inputs = probe(weights, **call)
    found, expected = _parts(run(inputs)), _parts(_reference(weights, inputs))
    for name, array in found.items():
        if array.shape != expected[name].shape:
            raise Unrepresentable(
                f"{title} is not the stack that its weights describe: called on x {inputs.x.shape} it returns {name} of "
                f"the shape {array.shape}, and that stack {expected[name].shape}"
            )
    off = {name: difference(array, expected[name]).normwise for name, array in found.items()}
    if all(part <= tolerance(weights.spec.dtype) for part in off.values()):
        return weights
    nudged = _parts(_reference(_nudged(weights), inputs))
    for name, part in off.items():
        sensitivity = AMPLIFICATION * difference(nudged[name], expected[name]).normwise
        if not part <= tolerance(weights.spec.dtype) + sensitivity:
            raise Unrepresentable(
                f"{title} does not compute the stack that its weights describe: {name} is off by {part:.2g} of its "
                "largest value. Something changes what goes into it, what comes out of it, or what it computes with: "
                "a hook, a replaced method, an operator before or after, a layer that runs twice"
            )
    return weights


def _reference(weights: Weights, inputs: Inputs) -> Output:
    layer = load_backend("numpy").build(weights.astype("float64"))
    return layer(inputs.x.astype("float64"), widened(inputs.state), lengths=inputs.lengths)


def _nudged(weights: Weights) -> Weights:
    """Every weight off by half an eps, up or down: how much rounding alone changes the output of these weights."""
    eps, rng = float(np.finfo(weights.spec.dtype).eps), np.random.default_rng(1)
    wide = weights.astype("float64")
    nudged = {name: w * (1 + eps / 2 * rng.choice((-1.0, 1.0), w.shape)) for name, w in wide.arrays.items()}
    return Weights(wide.spec, nudged)


def _parts(output: Output) -> dict[str, Any]:
    """The arrays of an output that were returned, by their names in a sentence."""
    parts = {"its sequence": output.sequence, "its final h": output.state.h, "its final c": output.state.c}
    return {name: array for name, array in parts.items() if array is not None}
