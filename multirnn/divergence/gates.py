"""Which gate it is: from the weights where both sides are known by them, and from calls where they tell."""

import numpy as np

from multirnn.divergence.measures import Pair, in_eps, worst
from multirnn.divergence.stepping import Known, Side
from multirnn.spec import RecurrentSpec
from multirnn.weights import Array, Weights

__all__ = ["gate_errors", "measured_gru"]


def gate_errors(pair: Pair) -> dict[str, Array]:
    """The normwise error of every gate that is known on both sides, in the steps of `pair.steps`: `(passes, time)`, in eps.

    What calls alone tell of an LSTM is f, o and the product i*g.
    """
    if pair.steps is None or not pair.steppable(pair.b):
        return {}
    if len(pair.spec.form.gates) == 1:
        return {pair.spec.form.candidate: pair.own}
    a, b = _gates(pair, pair.a), _gates(pair, pair.b)
    if "i*g" in b and "i" in a:
        a["i*g"] = a["i"] * a["g"]
    elif "i*g" in a and "i" in b:
        b["i*g"] = b["i"] * b["g"]
    names = [name for name in (*pair.spec.form.gates, "i*g") if name in a and name in b]
    sizes = {name: worst(pair.by_step(a[name])) for name in names}
    return {name: in_eps(pair.gap(b[name], a[name])[None], sizes[name][None], pair.eps) for name in names}


def _gates(pair: Pair, side: Side) -> dict[str, Array]:
    """The gates of a side in these steps, as far as they are known: `(passes, rows, hidden_size)` each."""
    assert pair.steps is not None
    known = pair.reference if side is pair.a else None
    if side is pair.b and side.layer.readable:
        weights = Known(side.layer.weights())
        known = weights if pair.does(side, weights) else None
    if isinstance(known, Known):
        gates = known.gates(pair.steps.x, pair.steps.states)
        return dict(zip(pair.spec.form.gates, np.moveaxis(gates, 2, 0), strict=True))
    return _measured_lstm(pair, side) if pair.spec.cell == "lstm" else {}


def _measured_lstm(pair: Pair, side: Side) -> dict[str, Array]:
    """The gates of an LSTM by its steps alone.

    Where h is fixed, c' = f * c + i * g is a straight line in c: f is its slope, i * g its value at zero; and o = h' / a(c').
    """
    assert pair.steps is not None
    x, states = pair.steps.x, pair.steps.states
    base = side.step(x, states)
    f, ig, o = np.full((3, *base.shape[1:]), np.nan)
    for layer in range(pair.spec.num_layers):  # a layer at a time: another c below is another input above
        here = slice(layer * pair.directions, (layer + 1) * pair.directions)
        higher = states.copy()
        higher[1, here] += 1
        other = side.step(x, higher)
        f[here] = other[1, here] - base[1, here]
        ig[here] = base[1, here] - f[here] * states[1, here]
        down, up = (_activated(pair.spec, made[1, here]) for made in (base, other))
        larger = np.abs(up) > np.abs(down)  # divided by what is near zero, o would be rounding
        below = np.where(larger, up, down)
        o[here] = np.where(larger, other[0, here], base[0, here]) / np.where(below == 0, 1, below)
    return {"f": f, "i*g": ig, "o": o}


def _activated(spec: RecurrentSpec, values: Array) -> Array:
    """The activation of a spec: a simple RNN of one unit without recurrence is nothing else."""
    one = RecurrentSpec("simple_rnn", 1, 1, bias="none", activation=spec.activation, dtype="float64")
    weights = Weights(one, {name: np.full(shape, float("_ih" in name)) for name, shape in one.shapes.items()})
    return Known(weights).step(values.reshape(-1, 1), np.zeros((1, 1, values.size, 1))).reshape(values.shape)


def measured_gru(pair: Pair, place: int, step: int, row: int, unit: int) -> tuple[str | None, str]:
    """The gate of one unit of a GRU that differs, by steps alone; and what to say of it.

    Along a direction d of h that no gate of this unit sees, U_q d = 0 for all of them, with d_unit = 1, the new state is
    a straight line, h' = (1 - z) * n + z * h: its slope is z, and what is left is n. That holds in whatever order the
    blocks of U are read. r is told from n by a state of which U_n h + d_n = 0, where r makes no difference.
    """
    unknown = " Which gate it is cannot be told from its calls"
    if not isinstance(pair.reference, Known) or not pair.steppable(pair.b):
        return None, f"{unknown}."
    if not pair.spec.reset_after:
        return None, f"{unknown}: where r comes before the recurrent product, the r of every unit enters every n."
    assert pair.steps is not None
    arrays = pair.reference.weights.at(*pair.passes[place])
    U = arrays["weight_hh"][:, unit]
    at = step * len(pair.call.x) + row
    x, states = pair.steps.x[at : at + 1], pair.steps.states[:, :, at : at + 1]
    h = states[0, place, 0]
    d_n = arrays["bias_hh"][-1, unit] if "bias_hh" in arrays else 0.0
    unseen = _solved(np.vstack([U, np.eye(len(h))[unit]]), np.array([0.0, 0, 0, 1]))
    silent = _solved(np.vstack([U, np.eye(len(h))[unit]]), np.array([0.0, 0, -(U[2] @ h + d_n), 0]))
    if unseen is None or silent is None:
        return None, f"{unknown}: {len(h)} units are too few to move one that its gates do not see."
    moves = np.array([0 * h, unseen, 2 * unseen, silent, silent + unseen])
    rows = np.repeat(states, len(moves), axis=2)
    rows[0, place] += moves
    rows = rows.astype(pair.dtype).astype(np.float64)
    xs = np.repeat(x, len(moves), axis=0)
    a, b = (side.step(xs, rows)[0, place, :, unit] for side in (pair.reference, pair.b))
    room = 64 * pair.limit * max(1.0, float(np.abs(rows[0, place]).max()))
    if not np.isfinite([a, b]).all():
        return None, f"{unknown}."
    if abs(b[2] - 2 * b[1] + b[0]) > room:
        return None, f"{unknown}: they see other units of h than those of {pair.A} do."
    z = [made[1] - made[0] for made in (a, b)]
    n = [(made[0] - slope * h[unit]) / max(1 - slope, room) for made, slope in zip((a, b), z, strict=True)]
    n_silent = [
        (made[3] - (made[4] - made[3]) * rows[0, place, 3, unit]) / max(1 - (made[4] - made[3]), room)
        for made in (a, b)
    ]
    off = {"z": abs(z[1] - z[0]), "n": abs(n[1] - n[0])}
    gate = max(off, key=lambda name: off[name])
    if off[gate] <= room:
        return None, " Its z and n agree."
    if gate == "n" and off["z"] <= room and abs(n_silent[1] - n_silent[0]) <= room:
        return "r", " Its z agrees, and so does n where r makes no difference to it: it is r."
    values = z if gate == "z" else n
    return gate, f" Of its gates, {gate} differs most: {values[1]:.4g} where that of {pair.A} is {values[0]:.4g}."


def _solved(matrix: Array, right: Array) -> Array | None:
    """The shortest exact solution; None where there is none of a size that rounding leaves alone."""
    solution, *_ = np.linalg.lstsq(matrix, right, rcond=None)
    exact = np.allclose(matrix @ solution, right, atol=1e-9)
    return solution if exact and np.abs(solution).max() < 100 else None
