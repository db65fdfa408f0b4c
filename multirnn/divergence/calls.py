"""Where the outputs of two layers part: rows, final states, outputs, single steps, and the shortest call that parts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from multirnn.divergence.gates import differing_gate
from multirnn.divergence.measures import Call, Marks, Pair, Parted, largest_at
from multirnn.divergence.record import Divergence, Parting
from multirnn.divergence.report import at, final_report, output_report, report
from multirnn.divergence.stepping import Known, Seen, unknown
from multirnn.numerics import difference, distances

__all__ = ["outputs_part"]


def outputs_part(pair: Pair) -> Divergence | None:
    """Where the answers of A and B to the call part; None if nothing but rounding is found."""
    if found := _repetition(pair):
        return found
    answers = pair.answers(pair.shown)
    parted = pair.parted(answers[1], answers[0])
    full = pair.shown is pair.full
    if full and (found := _rows(pair, answers, parted)):
        return found
    alike = difference(answers[1].sequence, answers[0].sequence).normwise <= pair.limit  # in spite of sensitive steps
    if parted.final.any() and (not pair.time or (full and alike)):
        return _earlier(pair, _final_states(pair, answers, parted), parted)
    if full and (found := _single_steps(pair)):
        return _earlier(pair, found, parted)
    if not parted.any:
        return None
    if not parted.final.any() and not unknown(answers[1].final).any():
        return _outputs(pair, answers, parted)
    found = _shortest_call(pair, answers, parted)
    return _earlier(pair, found, parted) if full else found


# --- Not a function of each row alone --------------------------------------------------------------------------------


def _repetition(pair: Pair) -> Divergence | None:
    """Whether two equal calls of B give two answers."""
    if not pair.parted(pair.b(*pair.call), pair.outputs[1]).any:
        return None
    return report(
        pair,
        probe="repetition",
        quantity="output",
        blank=True,
        says=f"Two equal calls of {pair.B} give different outputs: it draws random numbers, or keeps a state.",
    )


def _rows(pair: Pair, answers: tuple[Seen, Seen], parted: Parted) -> Divergence | None:
    """Whether the row with the largest error gives other outputs alone than in its batch."""
    expected, found = answers
    if len(found.sequence) < 2 or not parted.any:
        return None
    row = int(np.argmax(distances(found.sequence, expected.sequence).max(axis=(1, 2), initial=0)))
    one = slice(row, row + 1)
    x, states, _ = pair.full
    try:
        alone = pair.b(x[one], None if states is None else states[:, :, one])
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        name = f"{type(error).__name__}: {error}".splitlines()[0]
        says = f"{pair.B} runs row {row} in the batch but not alone ({name})."
    else:
        if not pair.parted(alone, Seen(found.sequence[one], found.final[:, :, one])).any:
            return None
        says = f"Row {row} gives other outputs of {pair.B} alone than in the batch: its rows depend on one another."
    parting = [Parting(*pair.passes[place], pair.first_step(place)) for place in _wrong_at_the_end(parted)]
    parting = parting or list(pair.partings(pair.of_top(parted.sequence)))
    return report(pair, probe="rows", parting=parting, quantity="output", row=row, blank=True, says=says)


# --- Whole calls -----------------------------------------------------------------------------------------------------


def _final_states(pair: Pair, answers: tuple[Seen, Seen], parted: Parted) -> Divergence:
    """All outputs of full rows agree, and final states do not: each parts at its last step."""
    steps = {place: pair.last_step(place) if pair.time else None for place in _wrong_at_the_end(parted)}
    parting = [Parting(*pair.passes[place], step) for place, step in steps.items()]
    layer, direction, _ = parting[0]
    says = f"All outputs agree; the final state of layer {layer} {direction} does not."
    return final_report(pair, "final state", parting, answers, says)


def _wrong_at_the_end(parted: Parted) -> list[int]:
    """The places of the passes whose final states part."""
    return [int(place) for place in np.flatnonzero(parted.final.any(axis=0))]


def _outputs(pair: Pair, answers: tuple[Seen, Seen], parted: Parted) -> Divergence:
    """All final states agree, and outputs do not."""
    parting = pair.partings(pair.of_top(parted.sequence))
    says = "All final states agree; outputs do not."
    lengths = pair.shown.lengths
    if lengths is not None:
        valid = (np.arange(pair.time) < lengths[:, None])[:, :, None]
        expected, found = answers
        if not pair.parted(Seen(np.where(valid, found.sequence, expected.sequence), found.final), expected).any:
            says = "All final states and valid outputs agree; outputs at padding do not."
    return output_report(pair, "output", parting, answers, says)


# --- Single steps ----------------------------------------------------------------------------------------------------


def _single_steps(pair: Pair) -> Divergence | None:
    """Where single steps part, given the same input and states."""
    steps = pair.steps
    if steps is None or not pair.own_parted.any():
        return None
    parting = pair.partings(np.any(pair.own_parted, axis=0) & ~np.isnan(pair.separate))
    place, step = pair.place(parting[0]), parting[0].step or 0
    part = int(np.flatnonzero(pair.own_parted[:, place, step])[-1])  # c comes before h in a step
    a, b = (pair.by_step(made)[part, place, step] for made in (steps.made, pair.found))
    row, unit = largest_at(a, b)
    quantity = pair.spec.form.states[part]
    gate, gates, gates_say = differing_gate(pair, place, step, row, unit)
    return report(
        pair,
        probe="step",
        parting=parting,
        quantity=quantity,
        row=row,
        unit=unit,
        values=(float(a[row, unit]), float(b[row, unit])),
        eps=float(pair.own[place, step]),
        gate=gate,
        gates=gates,
        says=f"Given the same input and states, {pair.B} makes another {quantity} than {pair.A} "
        f"{at(pair, parting[0])}.{_from_below(parting[0])}{gates_say}",
    )


def _from_below(parting: Parting) -> str:
    """The other possible place, for layers above the lowest."""
    if not parting.layer:
        return ""
    return f" Its input, the output of layer {parting.layer - 1}, may differ already: no call shows it."


# --- The shortest call -----------------------------------------------------------------------------------------------


class _Shortest(NamedTuple):
    """The fewest steps of a direction after which B parts, the passes that then do, and the answers of A and B."""

    steps: int
    wrong: Marks
    answers: tuple[Seen, Seen]


def _shortest_call(pair: Pair, answers: tuple[Seen, Seen], parted: Parted) -> Divergence:
    """Where the shortest beginning of the call that parts does; single steps agree, or cannot be taken."""
    shortest = {direction: _shortest(pair, pair.shown, direction) for direction in pair.spec.directions}
    marks = _marked(pair, shortest) | pair.of_top(parted.sequence)
    if not marks.any():
        for place in _wrong_at_the_end(parted):
            marks[place, pair.last_step(place)] = True
    parting = pair.partings(marks)
    first = parting[0]
    place = pair.place(first)
    run = abs((first.step or 0) - pair.first_step(place))
    says = "Full rows agree. With lengths, calls" if pair.shown.lengths is not None else "Calls"
    if pair.shown.lengths is None and pair.steps is not None:
        says = "Single steps from given states agree. Calls"
    says += f" part {at(pair, first)}{f', after {run} that agree' * bool(run)}.{_from_below(first)}"
    if unknown(answers[1].final).any():
        says += f" {pair.B} hands back no states, so only the last layer is seen."
    half = place - len(pair.passes) + pair.directions
    if half >= 0 and parted.sequence[half, first.step]:
        return output_report(pair, "call in part", parting, answers, says)
    return final_report(pair, "call in part", parting, shortest[first.direction or "forward"].answers, says)


def _earlier(pair: Pair, found: Divergence, parted: Parted) -> Divergence:
    """The divergence of full calls; or an earlier one of calls with lengths, in a pass that is right in full calls."""
    if pair.call.lengths is None or not pair.time:
        return found
    shortest = {direction: _shortest(pair, pair.call, direction) for direction in pair.spec.directions}
    right = ~parted.final.any(axis=0)
    shortest = {d: s._replace(wrong=s.wrong & right) for d, s in shortest.items()}
    parting = pair.partings(_marked(pair, shortest))
    if not parting or pair.order(found.parting[0]) <= pair.order(parting[0]):
        return found
    says = f"With lengths, calls part {at(pair, parting[0])}; full rows part elsewhere."
    return final_report(pair, "call in part", parting, shortest[parting[0].direction or "forward"].answers, says)


def _marked(pair: Pair, shortest: dict[str, _Shortest]) -> Marks:
    marks = np.zeros((len(pair.passes), pair.time), bool)
    for found in shortest.values():
        for place in map(int, np.flatnonzero(found.wrong)):
            marks[place, abs(pair.first_step(place) - (found.steps - 1))] = True
    return marks


def _shortest(pair: Pair, call: Call, direction: str) -> _Shortest:
    """The shortest parting call of a direction, by bisection."""
    whole = _first_steps(pair, call, direction, pair.time)
    low, found = 0, whole
    while found.wrong.any() and found.steps - low > 1:
        middle = (low + found.steps) // 2
        shorter = _first_steps(pair, call, direction, middle)
        low, found = (low, shorter) if shorter.wrong.any() else (middle, found)
    return found


def _first_steps(pair: Pair, call: Call, direction: str, steps: int) -> _Shortest:
    """The passes of a direction that part in a call of its first steps.

    The other direction starts from the states that it has reached there, so that every pass runs as in the whole call.
    """
    cut = pair.time - steps if direction == "backward" else steps - 1
    kept = slice(cut, None) if direction == "backward" else slice(steps)
    lengths = call.lengths
    if lengths is not None:
        lengths = np.clip(lengths - (cut if direction == "backward" else 0), 0, steps)
    states, trajectory = call.states, pair.trajectory
    if call.lengths is not None:
        reference = pair.reference
        trajectory = reference.run(call.x, pair.initial, call.lengths) if isinstance(reference, Known) else None
    if states is not None and trajectory is not None:
        states = pair.initial.copy()
        for place, (_, way) in enumerate(pair.passes):
            if way != direction:
                reached = trajectory.before[:, place, cut]
                if call.lengths is not None and way == "backward":  # at padding it has not started
                    reached = np.where((call.lengths > cut)[:, None], reached, states[:, place])
                states[:, place] = reached
        states = states.astype(pair.dtype).astype(np.float64)
    answers = pair.answers(Call(call.x[:, kept], states, lengths))
    parted = pair.parted(answers[1], answers[0])
    wrong = parted.final.any(axis=0) | pair.of_top(parted.sequence).any(axis=1)
    same = np.array([way == direction for _, way in pair.passes])
    return _Shortest(steps, np.asarray(wrong & same), answers)
