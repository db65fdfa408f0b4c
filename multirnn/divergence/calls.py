"""Where whole calls part, though single steps agree: repetition, rows, outputs, final states, the order of time."""

from collections.abc import Iterator

import numpy as np

from multirnn.divergence.measures import Marks, Pair, Parted, Rearranged
from multirnn.divergence.record import Divergence
from multirnn.divergence.report import at, final_report, output_report, report
from multirnn.divergence.stepping import Known, Seen, unknown
from multirnn.numerics import distances

__all__ = ["mixed_rows", "repetition", "whole_calls"]


def repetition(pair: Pair) -> Divergence | None:
    """Whether two calls of B on the same input give two outputs."""
    if not pair.parted(pair.b(*pair.call), pair.outputs[1]).any:
        return None
    return report(
        pair,
        pattern="repetition",
        quantity="output",
        blank=True,
        says=f"Two calls of {pair.B} on the same input give two outputs: it draws at random, or keeps something from call "
        "to call.",
    )


def mixed_rows(pair: Pair) -> Divergence | None:
    """Whether a row alone is run in another way than in its batch."""
    expected, found = pair.full_outputs
    if len(found.sequence) < 2:
        return None
    row = int(np.argmax(distances(found.sequence, expected.sequence).max(axis=(1, 2), initial=0)))
    one = slice(row, row + 1)
    x, states, _ = pair.full
    try:
        alone = pair.b(x[one], None if states is None else states[:, :, one])
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        name = f"{type(error).__name__}: {error}".splitlines()[0]
        says = f"Row {row} alone cannot be run by {pair.B}, and in the batch it can ({name}): batch and time may be swapped."
    else:
        if not pair.parted(alone, Seen(found.sequence[one], found.final[:, :, one])).any:
            return None
        says = (
            f"Row {row} alone gives another output of {pair.B} than in the batch: its rows get into one another, as "
            "where batch and time are swapped."
        )
    parted = pair.parted(found, expected)
    wrong = parted.final.any(axis=0)
    place = 0
    if not wrong.any():
        place, _ = pair.first(pair.of_top(parted.sequence))
    elif layer := pair.passes[int(np.argmax(wrong))][0]:
        others = -x
        others[row] = x[row]
        mixed = not pair.alike(pair.b(others, states).final[:, :, one], found.final[:, :, one])
        # The states below are right: if those here hang on other rows, what is handed up does.
        place = (layer - 1) * pair.directions if mixed else int(np.argmax(wrong))
    return report(
        pair,
        pattern="rows",
        place=place,
        step=pair.first_step(place),
        quantity="output",
        row=row,
        blank=True,
        says=says,
    )


def whole_calls(pair: Pair) -> Divergence | None:
    """Where full calls part, though all single steps agree."""
    expected, found = pair.full_outputs
    parted = pair.parted(found, expected)
    if not parted.any:
        return None
    if not parted.final.any() and not unknown(found.final).any():
        return _output(pair, expected, found, parted)
    if not parted.sequence.any():
        return _final_states(pair, expected, found, parted)
    return _order_of_time(pair, found) or _late(pair, expected, found, parted)


def _output(pair: Pair, expected: Seen, found: Seen, parted: Parted) -> Divergence:
    """All states are right, and the sequence is not."""
    place, step = pair.first(pair.of_top(parted.sequence))
    half = place - len(pair.passes) + pair.directions
    a, b = pair.halves(expected.sequence), pair.halves(found.sequence)
    way = pair.passes[place][1]
    if pair.alike(a[half, ::-1], b[half]):
        says = f"hands the outputs of {way} out in the other order of time: they are not flipped back, or flipped once more"
    elif pair.directions == 2 and pair.alike(a[1 - half], b[half]):
        says = f"hands out the other direction's outputs where those of {way} belong"
    elif pair.trajectory and pair.alike(pair.trajectory.before[0, place], b[half]):
        says = f"hands out the states of {way} before each step, in place of those after it"
    else:
        says = f"hands out a {way} sequence that is not made of them"
    says = f"All states of {pair.B} are those of {pair.A}, but it {says}."
    return output_report(pair, "output", place, step, a[half], b[half], says)


def _final_states(pair: Pair, expected: Seen, found: Seen, parted: Parted) -> Divergence:
    """The sequence is right, and final states are not."""
    place = int(np.argmax(parted.final.any(axis=0)))
    part = int(np.argmax(parted.final[:, place]))
    a, b = expected.final[part, place], found.final[part, place]
    end = pair.last_step(place)
    layer, direction = pair.passes[place]
    says = f"The outputs agree, and the final state of layer {layer} {direction} does not"
    if taken := next(_taken_from(pair, b), None):
        says += f": {pair.B} hands back {taken}, where that after step {end} belongs"
    return final_report(pair, "final state", place, end, part, a, b, f"{says}.")


def _taken_from(pair: Pair, state: np.ndarray) -> Iterator[str]:
    """Which state of A it is, in words."""
    if pair.trajectory is not None:
        for part, name in enumerate(pair.spec.form.states):
            for place, (layer, direction) in enumerate(pair.passes):
                for step in range(pair.time):
                    if pair.alike(pair.trajectory.after[part, place, step], state):
                        yield f"{name} of layer {layer} {direction} after step {step}"


# --- The order of time -----------------------------------------------------------------------------------------------


def _order_of_time(pair: Pair, found: Seen) -> Divergence | None:
    """Whether passes run the other way, or hand their outputs on the wrong way round."""
    if not isinstance(pair.reference, Known):
        return None
    x, initial = pair.full.x, pair.initial
    reverse = pair.seen(pair.reference.run(x[:, ::-1], initial))
    for sequence, how in ((reverse.sequence, "in that order"), (reverse.sequence[:, ::-1], "flipped back")):
        if not pair.parted(found, Seen(sequence, reverse.final)).any:
            says = f"runs over the sequence from its last step to its first, and hands the outputs out {how}"
            return _turned(pair, "order of time", 0, says)
    backward = [direction == "backward" for _, direction in pair.passes]
    for turn_in, turn_out in ((True, True), (True, False), (False, True)):
        for places in _groups(pair):
            turned = [turn != (place in places) for place, turn in enumerate(backward)]
            turned_in, turned_out = turned if turn_in else backward, turned if turn_out else backward
            run = pair.reference.run(x, initial, turned_in=turned_in, turned_out=turned_out)
            if pair.parted(found, pair.seen(run, turned_in)).any:
                continue
            layer, direction = pair.passes[places[0]]
            says = {
                (True, True): f"runs layer {layer} {direction} the other way in time",
                (
                    True,
                    False,
                ): f"turns the outputs of layer {layer} {direction} round in time and not its inputs, or the inputs alone",
                (False, True): f"hands the outputs of layer {layer} {direction} on in the other order of time",
            }[turn_in, turn_out]
            also = (
                "" if len(places) == 1 else f", and those of {len(places) - 1} other{'s' * (len(places) > 2)} likewise"
            )
            return _turned(pair, "order of time" if turn_in else "hand-over", places[0], says + also)
    return None


def _turned(pair: Pair, pattern: str, place: int, says: str) -> Divergence:
    return report(
        pair,
        pattern=pattern,
        place=place,
        step=pair.first_step(place),
        quantity="h" if pattern == "order of time" else "output",
        stepped=False,
        says=f"Every single step agrees, but {pair.B} {says}.",
    )


def _groups(pair: Pair) -> Iterator[list[int]]:
    """The passes that may be wrong together: one; of one direction all, or all but the last layer's; or all."""
    places = list(range(len(pair.passes)))
    yield from ([place] for place in places)
    for way in pair.spec.directions:
        same = [place for place in places if pair.passes[place][1] == way]
        yield from (group for group in (same, same[:-1]) if len(group) > 1)
    if pair.spec.bidirectional:
        yield places


# --- Not from the first step on --------------------------------------------------------------------------------------


def _late(pair: Pair, expected: Seen, found: Seen, parted: Parted) -> Divergence:
    """Where the shortest calls part that do."""
    marks = np.zeros((len(pair.passes), pair.time), bool)
    for direction in pair.spec.directions:
        steps, wrong = _shortest(pair, direction)
        for place in map(int, np.flatnonzero(wrong)):
            marks[place, abs(pair.first_step(place) - (steps - 1))] = True
    if not marks.any():
        marks = pair.of_top(parted.sequence)
    place, step = pair.first(marks)
    run = abs(step - pair.first_step(place))
    layer, _ = pair.passes[place]
    says = f"Single steps of {pair.B} agree, and calls part {at(pair, place, step)}: "
    if run > 1:
        says += f"it goes wrong only after {run} steps."
    elif layer:
        says += f"it is how its steps follow one another, or what comes up from layer {layer - 1}."
    else:
        says += "it is how its steps follow one another."
    if unknown(found.final).any():
        says += f" {pair.B} hands back no states, so that only the last layer is seen."
    pattern = "late" if run > 1 else "order of time"
    half = place - len(pair.passes) + pair.directions
    if half >= 0 and parted.sequence[half, step]:
        a, b = (pair.halves(seen.sequence)[half] for seen in (expected, found))
        return output_report(pair, pattern, place, step, a, b, says)
    part = int(np.argmax(parted.final[:, place]))
    a, b = expected.final[part, place], found.final[part, place]
    return final_report(pair, pattern, place, step, part, a, b, says)


def _shortest(pair: Pair, direction: str) -> tuple[int, Marks]:
    """How many steps of a direction it takes to part, and which of its passes then do; by bisection."""
    wrong = _parting(pair, direction, pair.time)
    low, high = 0, pair.time
    while wrong.any() and high - low > 1:
        middle = (low + high) // 2
        shorter = _parting(pair, direction, middle)
        low, high, wrong = (low, middle, shorter) if shorter.any() else (middle, high, wrong)
    return high, wrong


def _parting(pair: Pair, direction: str, steps: int) -> Marks:
    """Which passes of a direction part in a call of its first steps: `(passes,)`.

    The other direction starts from where it has come to, so that all passes run as they do in the whole call.
    """
    cut = pair.time - steps if direction == "backward" else steps - 1
    x = pair.full.x[:, cut:] if direction == "backward" else pair.full.x[:, :steps]
    states = pair.call.states
    if pair.trajectory is not None and pair.b.layer.takes_state and not isinstance(pair, Rearranged):
        states = pair.initial.copy()
        for place, (_, way) in enumerate(pair.passes):
            if way != direction:
                states[:, place] = pair.trajectory.before[:, place, cut]
        states = states.astype(pair.dtype).astype(np.float64)
    call = pair.full._replace(x=x, states=states)
    parted = pair.parted(pair.b(*call), pair.expected(call))
    wrong = parted.final.any(axis=0) | pair.of_top(parted.sequence).any(axis=1)
    return np.asarray(wrong & np.array([way == direction for _, way in pair.passes]))
