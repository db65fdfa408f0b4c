"""Which gate has the largest error: from the weights of both sides if they are known, else from calls as far as those tell."""

import numpy as np

from multirnn.diagnosis.pair import Pair, in_eps, worst
from multirnn.diagnosis.stepping import Known, Side
from multirnn.numerics import difference, tolerance
from multirnn.spec import RecurrentSpec
from multirnn.weights import Array, Weights

__all__ = ["differing_gate"]


def differing_gate(pair: Pair, place: int, step: int, row: int, unit: int) -> tuple[str | None, dict[str, Array], str]:
    """The gate with the largest error at a step of a pass, the errors of all known gates, and a sentence about them."""
    errors = _gate_errors(pair)
    if not errors and pair.spec.cell == "gru":
        gate, says = _measured_gru(pair, place, step, row, unit)
        return gate, {}, says
    known = {name: error[place, step] for name, error in errors.items() if not np.isnan(error[place, step])}
    if not known:
        return None, errors, " Its gates are not known."
    if "r" in known and known["r"] * pair.eps > 16 * pair.limit:
        known.pop("n", None)  # n depends on r
    gate = max(known, key=lambda name: known[name])
    if known[gate] * pair.eps <= 16 * pair.limit:
        return None, errors, " All known gates agree."
    return gate, errors, f" Gate {gate} has the largest error." if len(known) > 1 else ""


def _gate_errors(pair: Pair) -> dict[str, Array]:
    """The normwise error of every gate known on both sides: `(passes, time)`, in eps."""
    if pair.steps is None or not pair.steppable(pair.b):
        return {}
    if len(pair.spec.form.gates) == 1:
        return {pair.spec.form.candidate: pair.own}
    a, b = _gates(pair, pair.a), _gates(pair, pair.b)
    for one, other in ((a, b), (b, a)):
        if "i*g" in other and "i" in one:
            one["i*g"] = one["i"] * one["g"]
    names = [name for name in (*pair.spec.form.gates, "i*g") if name in a and name in b]
    sizes = {name: worst(pair.by_step(a[name])) for name in names}
    return {name: in_eps(pair.gap(b[name], a[name])[None], sizes[name][None], pair.eps) for name in names}


def _gates(pair: Pair, side: Side) -> dict[str, Array]:
    """The known gates of a side in these steps: `(passes, rows, hidden_size)` each."""
    assert pair.steps is not None
    known = pair.reference if side is pair.a else None
    if side is pair.b and side.layer.readable:
        weights = Known(side.layer.weights())
        known = weights if pair.steps_of(side, weights) else None
    if isinstance(known, Known):
        gates = known.run(pair.steps.x[:, None], pair.steps.states).gates
        assert gates is not None
        return dict(zip(pair.spec.form.gates, np.moveaxis(gates[:, :, 0], 2, 0), strict=True))
    return _measured_lstm(pair, side) if pair.spec.cell == "lstm" else {}


def _measured_lstm(pair: Pair, side: Side) -> dict[str, Array]:
    """All that calls tell: with h fixed, c' = f * c + i * g is linear in c, of slope f; and o = h' / a(c')."""
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
    """The activation of a spec, computed by a simple RNN of one unit without recurrence."""
    one = RecurrentSpec("simple_rnn", 1, 1, bias="none", activation=spec.activation, dtype="float64")
    weights = Weights(one, {name: np.full(shape, float("_ih" in name)) for name, shape in one.shapes.items()})
    return Known(weights).step(values.reshape(-1, 1), np.zeros((1, 1, values.size, 1))).reshape(values.shape)


def _measured_gru(pair: Pair, place: int, step: int, row: int, unit: int) -> tuple[str | None, str]:
    """The gate of one unit of a GRU that differs, from steps alone, and a sentence about it.

    Move h along a direction d with U_q d = 0 for every gate q of this unit and d_unit = 1. Then h' = (1 - z) * n + z * h
    is linear with slope z, and n is the rest; the order in which the blocks of U are read does not matter. A state with
    U_n h + d_n = 0, where r makes no difference, tells r from n.
    """
    unknown = " The gate cannot be told from calls"
    if not isinstance(pair.reference, Known) or not pair.steppable(pair.b):
        return None, f"{unknown}."
    if not pair.spec.reset_after:
        return None, f"{unknown}: with the reset before the recurrent product, the r of every unit enters every n."
    assert pair.steps is not None
    arrays = pair.reference.weights.at(*pair.passes[place])
    U = arrays["weight_hh"][:, unit]
    at = step * len(pair.call.x) + row
    x, states = pair.steps.x[at : at + 1], pair.steps.states[:, :, at : at + 1]
    h = states[0, place, 0]
    d_n = arrays["bias_hh"][-1, unit] if "bias_hh" in arrays else 0.0
    seen = np.vstack([U, np.eye(len(h))[unit]])
    unseen, silent = _solved(seen, [0, 0, 0, 1]), _solved(seen, [0, 0, -(U[2] @ h + d_n), 0])
    if unseen is None or silent is None:
        return None, f"{unknown}: {len(h)} units are too few for a direction of h that its gates do not see."
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
        return None, f"{unknown}: h' is not linear along a direction of h that the gates of {pair.A} do not see."

    def z_and_n(made: Array, start: int) -> tuple[float, float]:
        z = made[start + 1] - made[start]
        return z, (made[start] - z * rows[0, place, start, unit]) / max(1 - z, room)

    (z_a, n_a), (z_b, n_b) = z_and_n(a, 0), z_and_n(b, 0)
    off_z, off_n = abs(z_b - z_a), abs(n_b - n_a)
    if max(off_z, off_n) <= room:
        return None, " z and n agree."
    if off_z <= room and abs(z_and_n(b, 3)[1] - z_and_n(a, 3)[1]) <= room:
        return "r", " z agrees, and so does n where r does not enter it."
    gate, in_a, in_b = ("z", z_a, z_b) if off_z >= off_n else ("n", n_a, n_b)
    return gate, f" Gate {gate} has the largest error: {in_b:.4g} in {pair.B}, {in_a:.4g} in {pair.A}."


def _solved(matrix: Array, right: list[float]) -> Array | None:
    """The shortest exact solution; None if there is none, or none small enough to keep rounding small."""
    solution, *_ = np.linalg.lstsq(matrix, np.array(right, float), rcond=None)
    # A residual is small or near one.
    exact = difference(matrix @ solution, np.array(right, float)).normwise <= 2**20 * tolerance("float64")
    return solution if exact and np.abs(solution).max() < 100 else None
