"""Where single steps part, given the same input and states, and why: states, what comes up from below, or arithmetic."""

from typing import NamedTuple

import numpy as np

from multirnn.divergence.calls import whole_calls
from multirnn.divergence.gates import gate_errors, measured_gru
from multirnn.divergence.lengths import lengths
from multirnn.divergence.measures import Pair, Rearranged, Steps, gaps, largest_at
from multirnn.divergence.moves import Move, lowest_everywhere, state_orders, states_ignored
from multirnn.divergence.record import Divergence
from multirnn.divergence.report import at, report
from multirnn.divergence.stepping import Known
from multirnn.weights import Array

__all__ = ["single_steps"]


class _Where(NamedTuple):
    """The first element that parts; fields of a `Divergence`."""

    place: int
    step: int
    quantity: str
    row: int
    unit: int
    values: tuple[float, float]
    eps: float


def single_steps(pair: Pair) -> Divergence | None:
    """What is wrong with the single steps of B; None if they are those of A."""
    if pair.steps is None or not pair.own_parted.any():
        return None
    where = _where(pair, pair.steps)
    for explain in (_other_states, _handed_up):
        if found := explain(pair, pair.steps, where):
            return found
    return _arithmetic(pair, pair.steps, where)


def _where(pair: Pair, steps: Steps) -> _Where:
    place, step = pair.first(np.any(pair.own_parted, axis=0))
    part = int(np.flatnonzero(pair.own_parted[:, place, step])[-1])  # c comes before h in a step
    a, b = (pair.by_step(made)[part, place, step] for made in (steps.made, pair.found))
    row, unit = largest_at(a, b)
    values = float(a[row, unit]), float(b[row, unit])
    return _Where(place, step, pair.spec.form.states[part], row, unit, values, float(pair.own[place, step]))


def _explained(pair: Pair, steps: Steps, made: Array, places: slice = slice(None)) -> bool:
    """Whether B makes what stands in `made`, of some passes, and not what A makes."""
    a, b, made = (states[:, places] for states in (steps.made, pair.found, made))
    return pair.alike(made, b) and bool(np.nanmax(gaps(made, b)) < 0.1 * np.nanmax(gaps(a, b)))


# --- States ----------------------------------------------------------------------------------------------------------


def _other_states(pair: Pair, steps: Steps, where: _Where) -> Divergence | None:
    """Whether the steps are right, of other states than were given, or with their results in other places."""
    reference, spec = pair.reference, pair.spec
    assert reference is not None
    if not pair.b.layer.takes_state:
        return None
    zeros = np.zeros_like(steps.states)
    from_zero, found_from_zero = reference.step(steps.x, zeros), pair.b.step(steps.x, zeros)
    orders = list(state_orders(spec))
    taken_as = [*orders, *([("of layer 0 in every layer", lowest_everywhere(spec))] if spec.num_layers > 1 else [])]
    for out_says, out in (("", _unchanged), *orders):
        if not pair.alike(out(from_zero), found_from_zero):
            continue
        if out_says and _explained(pair, steps, out(steps.made)):
            at_the_end = {"step": pair.last_step(where.place), "quantity": f"final {where.quantity}"}
            found = report(
                pair,
                pattern="order of states",
                says=f"The steps of {pair.B} are those of {pair.A}, but it hands back the final states {out_says}.",
                **{**where._asdict(), **at_the_end},
            )
            return _or_earlier(pair, found, _unchanged, out)
        for in_says, taken in taken_as:
            if _explained(pair, steps, out(reference.step(steps.x, taken(steps.states)))):
                also = f", and hands the final states back {out_says}" if out_says else ""
                found = report(
                    pair,
                    pattern="order of states",
                    says=f"The steps of {pair.B} are those of {pair.A}, but it takes the initial states {in_says}{also}.",
                    **where._asdict(),
                )
                return _or_earlier(pair, found, taken, out)
        for in_says, taken in states_ignored(spec):
            if _explained(pair, steps, out(reference.step(steps.x, taken(steps.states)))):
                found = report(
                    pair,
                    pattern="initial state",
                    says=f"From zero the steps of {pair.B} are those of {pair.A}: it does not use {in_says}.",
                    **where._asdict(),
                )
                return _or_earlier(pair, found, taken, out)
    return None


def _unchanged(states: Array) -> Array:
    return states


def _or_earlier(pair: Pair, found: Divergence, taken: Move, out: Move) -> Divergence:
    """What was found of the states; or of whole calls, if they part in spite of it, and earlier."""
    rest = Rearranged(pair, taken, out)
    if not rest.parted(pair.outputs[1], rest.expected(pair.call)).any:
        return found
    others = (other for other in (lengths(rest), whole_calls(rest)) if other is not None)
    return min((found, *others), key=pair.order)


# --- What comes up from below ----------------------------------------------------------------------------------------


def _handed_up(pair: Pair, steps: Steps, where: _Where) -> Divergence | None:
    """Whether a layer is right, of other inputs than the outputs of the layer below."""
    layer, directions = pair.passes[where.place][0], pair.directions
    if not layer or not isinstance(pair.reference, Known):
        return None

    below = layer - 1

    def swapped(sequence: Array) -> Array:
        return np.roll(sequence, pair.spec.hidden_size, axis=2)

    def interleaved(sequence: Array) -> Array:
        return sequence.reshape(len(sequence), 1, directions, -1).swapaxes(2, 3).reshape(sequence.shape)

    def before(*late: int) -> Move:
        def handed(sequence: Array) -> Array:
            halves = np.split(sequence[:, 0], directions, axis=1)
            made = [steps.states[0, below * directions + d] if d in late else half for d, half in enumerate(halves)]
            return np.concatenate(made, axis=1)[:, None]

        return handed

    guesses: list[tuple[int, str, Move]] = [
        (0, "its outputs with the directions swapped", swapped),
        (0, "the outputs of its directions unit by unit, in place of side by side", interleaved),
    ]
    for late in ((0, 1), (0,), (1,)) if directions == 2 else ((0,),):
        ways = " and ".join(pair.spec.directions[half] for half in late)
        guesses.append((late[0], f"the states {ways} before each step, in place of those after it,", before(*late)))
    here = slice(layer * directions, (layer + 1) * directions)
    for half, says, move in guesses:
        made = pair.reference.run(steps.x[:, None], steps.states, handed=(below, move)).after[:, :, 0]
        if _explained(pair, steps, made, here):
            place = below * directions + half
            return report(
                pair,
                pattern="hand-over",
                place=place,
                step=pair.first_step(place),
                quantity="output",
                eps=where.eps,
                says=f"The steps of {pair.B} are those of {pair.A}, but layer {below} hands {says} to the layer above.",
            )
    return None


# --- Arithmetic ------------------------------------------------------------------------------------------------------


def _arithmetic(pair: Pair, steps: Steps, where: _Where) -> Divergence:
    assert pair.reference is not None
    zeros = np.zeros_like(steps.states)
    from_zero = pair.reference.step(steps.x, zeros)
    gap = pair.gap(pair.b.step(steps.x, zeros), from_zero)
    still = (gap > pair.step_room(pair.reference, steps.x, zeros, from_zero))[:, where.place].any()
    why = (
        "So it does from zero states: it has other weights or other equations"
        if still
        else "From zero states it does not, so it is what it makes of the state: recurrent weights, or a gate on them"
    )
    gate, errors, gates_say = _gate(pair, where)
    return report(
        pair,
        pattern="arithmetic" if still else "recurrence",
        gate=gate,
        gates=errors,
        says=f"Given the same input and states, {pair.B} makes another {where.quantity} than {pair.A} "
        f"{at(pair, where.place, where.step)}. {why}.{gates_say}",
        **where._asdict(),
    )


def _gate(pair: Pair, where: _Where) -> tuple[str | None, dict[str, Array], str]:
    """The gate that differs most there, the errors of all that are known, and what to say of it."""
    errors = gate_errors(pair)
    if not errors and pair.spec.cell == "gru":
        gate, says = measured_gru(pair, where.place, where.step, where.row, where.unit)
        return gate, {}, says
    there = {name: error[where.place, where.step] for name, error in errors.items()}
    known = {name: error for name, error in there.items() if not np.isnan(error)}
    if not known:
        return None, errors, " Its gates are not known."
    if "r" in known and known["r"] * pair.eps > 16 * pair.limit:
        known.pop("n", None)  # it is made of r
    gate = max(known, key=lambda name: known[name])
    if known[gate] * pair.eps <= 16 * pair.limit:
        return None, errors, " Its gates agree, as far as they are known: it puts them together in another way."
    if len(known) == 1:
        return gate, errors, ""
    return gate, errors, f" Of its gates, {gate} differs most."
