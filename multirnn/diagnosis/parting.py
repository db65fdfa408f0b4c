"""Where two layers part: outputs, by rows, final states, single steps and the shortest call; then gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from multirnn.diagnosis.calls import Answer, Probe, Seen, answer
from multirnn.diagnosis.divergence import Divergence, Parting
from multirnn.diagnosis.gate_errors import differing_gate
from multirnn.diagnosis.pair import Marks, Pair, Parted
from multirnn.diagnosis.stepping import Known, unknown
from multirnn.numerics import difference, distances, magnitude, normwise
from multirnn.registry import backend

__all__ = ["gradients_part", "outputs_part"]

Answers = tuple[Seen, Seen]  # of A and of B


def outputs_part(pair: Pair) -> Divergence | None:
    """Where the answers of A and B to the call part; None if nothing but rounding is found."""
    if pair.parted(pair.outputs[1], pair.b(pair.call)).any:
        says = f"Two equal calls of {pair.B} give different outputs: it draws random numbers, or keeps a state."
        return pair.report(probe="repetition", quantity="output", measured="", says=says)
    answers = pair.answers(pair.shown)
    parted = pair.parted(*answers)
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


def _rows(pair: Pair, answers: Answers, parted: Parted) -> Divergence | None:
    """Whether the row with the largest error gives other outputs alone than in its batch."""
    expected, found = answers
    if len(found.sequence) < 2 or not parted.any:
        return None
    row = int(np.argmax(distances(found.sequence, expected.sequence).max(axis=(1, 2), initial=0)))
    one = slice(row, row + 1)
    states = pair.full.states
    try:
        alone = pair.b(Probe(pair.full.x[one], None if states is None else states[:, :, one]))
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        name = f"{type(error).__name__}: {error}".splitlines()[0]
        says = f"{pair.B} runs row {row} in the batch but not alone ({name})."
    else:
        if not pair.parted(Seen(found.sequence[one], found.final[:, :, one]), alone).any:
            return None
        says = f"Row {row} gives other outputs of {pair.B} alone than in the batch: its rows depend on one another."
    parting = [Parting(*pair.passes[place], pair.time_of(place, 0)) for place in _wrong_at_the_end(parted)]
    parting = parting or list(pair.partings(pair.of_top(parted.sequence)))
    return pair.report(probe="rows", parting=parting, quantity="output", row=row, measured="", says=says)


def _final_states(pair: Pair, answers: Answers, parted: Parted) -> Divergence:
    """All outputs of full rows agree, and final states do not: each parts at its last step."""
    places = _wrong_at_the_end(parted)
    parting = tuple(Parting(*pair.passes[p], pair.time_of(p, -1) if pair.time else None) for p in places)
    layer, direction, _ = parting[0]
    says = f"All outputs agree; the final state of layer {layer} {direction} does not."
    return _report(pair, "final state", parting, answers, says)


def _wrong_at_the_end(parted: Parted) -> list[int]:
    """The places of the passes whose final states part."""
    return [int(place) for place in np.flatnonzero(parted.final.any(axis=0))]


def _outputs(pair: Pair, answers: Answers, parted: Parted) -> Divergence:
    """All final states agree, and outputs do not."""
    parting = pair.partings(pair.of_top(parted.sequence))
    says = "All final states agree; outputs do not."
    lengths = pair.shown.lengths
    if lengths is not None:
        valid = (np.arange(pair.time) < lengths[:, None])[:, :, None]
        expected, found = answers
        if not pair.parted(expected, Seen(np.where(valid, found.sequence, expected.sequence), found.final)).any:
            says = "All final states and valid outputs agree; outputs at padding do not."
    return _report(pair, "output", parting, answers, says, final=False)


def _report(
    pair: Pair, probe: str, parting: tuple[Parting, ...], answers: Answers, says: str, *, final: bool = True
) -> Divergence:
    """The record of an element of a final state of the first of `parting`, or of the sequence if that is of the last layer."""
    place = pair.place(parting[0])
    if final:
        part = int(pair.parted(*answers).final[:, place].argmax())
        quantity = f"final {pair.spec.form.states[part]}"
        a, b = at = answers[0].final[part, place], answers[1].final[part, place]
    else:
        quantity, step = "output", parting[0].step or 0
        a, b = (pair.halves(seen)[place - len(pair.passes)] for seen in answers)
        at = a[step], b[step]
    size = magnitude(a, a.dtype)
    return pair.report(
        probe=probe, parting=parting, quantity=quantity, elements=at, size=size, measured="seen", says=says
    )


def _single_steps(pair: Pair) -> Divergence | None:
    """Where single steps part, given the same input and states."""
    if pair.steps is None or not pair.own_parted.any():
        return None
    parting = pair.partings(np.any(pair.own_parted, axis=0) & ~np.isnan(pair.separate))
    place, step = pair.place(parting[0]), parting[0].step or 0
    part = int(np.flatnonzero(pair.own_parted[:, place, step])[-1])  # c comes before h in a step
    a, b = (pair.by_step(made)[part, place, step] for made in (pair.steps.made, pair.found))
    row, unit = np.unravel_index(int(np.argmax(distances(a, b))), a.shape)
    quantity = pair.spec.form.states[part]
    gate, gates, gates_say = differing_gate(pair, place, step, int(row), int(unit))
    return pair.report(
        probe="step",
        parting=parting,
        quantity=quantity,
        elements=(a, b),
        eps=float(pair.own[place, step]),
        gate=gate,
        gates=gates,
        says=f"Given the same input and states, {pair.B} makes another {quantity} than {pair.A} "
        f"{_at(pair, parting[0])}.{_from_below(parting[0])}{gates_say}",
    )


def _at(pair: Pair, parting: Parting) -> str:
    layer, direction, step = parting
    first = step == (pair.time - 1 if direction == "backward" else 0)
    return f"in layer {layer} {direction} at step {step}{', the first that it runs' * first}"


def _from_below(parting: Parting) -> str:
    if not parting.layer:
        return ""
    return f" Its input, the output of layer {parting.layer - 1}, may differ already: no call shows it."


class _Shortest(NamedTuple):
    steps: int  # the fewest of a direction after which B parts
    wrong: Marks  # (passes,): those that then do
    answers: Answers


def _shortest_call(pair: Pair, answers: Answers, parted: Parted) -> Divergence:
    """Where the shortest beginning of the call that parts does; single steps agree, or cannot be taken."""
    shortest = _shortest(pair, pair.shown)
    marks = _marked(pair, shortest) | pair.of_top(parted.sequence)
    if not marks.any():
        for place in _wrong_at_the_end(parted):
            marks[place, pair.time_of(place, -1)] = True
    parting = pair.partings(marks)
    first = parting[0]
    place = pair.place(first)
    run = abs((first.step or 0) - pair.time_of(place, 0))
    says = "Full rows agree. With lengths, calls" if pair.shown.lengths is not None else "Calls"
    if pair.shown.lengths is None and pair.steps is not None:
        says = "Single steps from given states agree. Calls"
    says += f" part {_at(pair, first)}{f', after {run} that agree' * bool(run)}.{_from_below(first)}"
    if unknown(answers[1].final).any():
        says += f" {pair.B} hands back no states, so only the last layer is seen."
    half = place - len(pair.passes) + pair.directions
    if half >= 0 and parted.sequence[half, first.step]:
        return _report(pair, "call in part", parting, answers, says, final=False)
    return _report(pair, "call in part", parting, shortest[first.direction or "forward"].answers, says)


def _earlier(pair: Pair, found: Divergence, parted: Parted) -> Divergence:
    """The divergence of full calls; or an earlier one of calls with lengths, in a pass that is right in full calls."""
    if pair.call.lengths is None or not pair.time:
        return found
    right = ~parted.final.any(axis=0)
    shortest = {way: made._replace(wrong=made.wrong & right) for way, made in _shortest(pair, pair.call).items()}
    parting = pair.partings(_marked(pair, shortest))
    if not parting or pair.order(found.parting[0]) <= pair.order(parting[0]):
        return found
    says = f"With lengths, calls part {_at(pair, parting[0])}; full rows part elsewhere."
    return _report(pair, "call in part", parting, shortest[parting[0].direction or "forward"].answers, says)


def _marked(pair: Pair, shortest: dict[str, _Shortest]) -> Marks:
    marks = np.zeros((len(pair.passes), pair.time), bool)
    for found in shortest.values():
        for place in map(int, np.flatnonzero(found.wrong)):
            marks[place, pair.time_of(place, found.steps - 1)] = True
    return marks


def _shortest(pair: Pair, call: Probe) -> dict[str, _Shortest]:
    """The shortest parting call of every direction, by bisection."""
    shortest = {}
    for direction in pair.spec.directions:
        low, found = 0, _first_steps(pair, call, direction, pair.time)
        while found.wrong.any() and found.steps - low > 1:
            middle = (low + found.steps) // 2
            shorter = _first_steps(pair, call, direction, middle)
            low, found = (low, shorter) if shorter.wrong.any() else (middle, found)
        shortest[direction] = found
    return shortest


def _first_steps(pair: Pair, call: Probe, direction: str, steps: int) -> _Shortest:
    """The passes of a direction that part in a call of its first steps.

    The other direction starts from the states that it has reached there, so that every pass runs as in the whole call.
    """
    backward = direction == "backward"
    cut = pair.time - steps if backward else steps - 1
    lengths, states, trajectory = call.lengths, call.states, pair.trajectory
    if lengths is not None:
        reference = pair.reference
        trajectory = reference.run(call.x, pair.initial, lengths) if isinstance(reference, Known) else None
    if states is not None and trajectory is not None:
        states = pair.initial.copy()
        for place, (_, way) in enumerate(pair.passes):
            if way != direction:
                reached = trajectory.before[:, place, cut]
                if lengths is not None and way == "backward":  # at padding it has not started
                    reached = np.where((lengths > cut)[:, None], reached, states[:, place])
                states[:, place] = reached
        states = states.astype(pair.dtype).astype(np.float64)
    if lengths is not None:
        lengths = np.clip(lengths - (cut if backward else 0), 0, steps)
    answers = pair.answers(Probe(call.x[:, slice(cut, None) if backward else slice(steps)], states, lengths))
    parted = pair.parted(*answers)
    wrong = parted.final.any(axis=0) | pair.of_top(parted.sequence).any(axis=1)
    same = np.array([way == direction for _, way in pair.passes])
    return _Shortest(steps, np.asarray(wrong & same), answers)


def gradients_part(pair: Pair) -> Divergence | None:
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
    if not parted:
        return None
    name = _first_back(parted)
    a, b = expected[name], found[name]
    worst = difference(b, a).where
    place: tuple[int | None, str | None] = (None, None)
    where: dict[str, Any]
    if "layers." in name:
        gate = pair.spec.form.gates[worst[0]] if len(a) > 1 else pair.spec.form.candidate
        place, where = _pass(name), {"gate": gate, "unit": worst[1]}
    elif name == "gradient of x":
        where = {"row": worst[0], "unit": worst[2]}
    else:
        place, where = pair.passes[worst[0]], {"row": worst[1], "unit": worst[2]}
    step = None
    if "gradient of x" in parted:
        far = distances(found["gradient of x"], expected["gradient of x"]).max(axis=(0, 2))
        step = int(np.flatnonzero(far > pair.limit * magnitude(expected["gradient of x"], "float64"))[-1])
    others = {_pass(other) for other in parted if "layers." in other} - {place}
    return pair.report(
        probe="gradient",
        parting=[Parting(*place, step), *(Parting(*other, None) for other in sorted(others, reverse=True))],
        quantity=name,
        values=(float(a[worst]), float(b[worst])),
        eps=parted[name],
        says=f"Outputs and final states agree; the {name} does not. It is the first to differ in the backward pass: "
        f"{len(parted)} of {len(expected)} gradients part.",
        **where,
    )


def _pulled_back(pair: Pair) -> tuple[Answer, dict[str, float], Answer]:
    """The expected gradients of a cotangent, their room, and B's gradients."""
    rng = np.random.default_rng(pair.seed)
    shape = (*pair.call.x.shape[:2], pair.spec.output_size)
    sequence, final = pair.cotangent or (rng.standard_normal(shape), rng.uniform(-1, 1, pair.initial.shape))
    sequence, final = (part.astype(pair.dtype).astype("float64") for part in (sequence, final))
    if pair.call.lengths is not None:
        sequence[np.arange(pair.time) >= pair.call.lengths[:, None]] = 0
    call = replace(pair.call, cotangent=Seen(sequence, final))
    found = answer(pair.b.layer, call, pair.b.spec.dtype)
    build, known = backend("numpy").build, pair.reference
    if not isinstance(known, Known):
        expected = moved = answer(pair.a.layer, call, pair.a.spec.dtype)
    else:
        expected = answer(build(known.weights), call, "float64")
        moved = answer(build(known.moved(pair.limit, pair.rng).weights), call, "float64")
    room = {
        name: max(pair.limit * magnitude(array, array.dtype), distances(moved[name], array).max(initial=0))
        for name, array in expected.items()
    }
    return expected, room, found


def _pass(name: str) -> tuple[int, str]:
    _, layer, direction, _ = name.split(".")
    return int(layer), direction


def _first_back(parted: dict[str, float]) -> str:
    """The first in the backward pass: a weight of the highest layer, forward before backward, else a state, else x."""
    weights = [name for name in parted if "layers." in name]
    if weights:
        return max(weights, key=lambda name: (*_pass(name), parted[name]))  # "forward" > "backward"
    return max((name for name in parted if name != "gradient of x"), key=parted.__getitem__, default="gradient of x")
