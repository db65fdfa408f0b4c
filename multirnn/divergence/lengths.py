"""Where calls with lengths part, though full ones agree: padding that is run through, lengths that are taken for others."""

import numpy as np

from multirnn.divergence.measures import Pair, Parted, apart, largest_at
from multirnn.divergence.record import Divergence
from multirnn.divergence.report import final_report, output_report
from multirnn.divergence.stepping import Known, Seen
from multirnn.layer import Lengths

__all__ = ["lengths", "lengths_too"]


def lengths(pair: Pair) -> Divergence | None:
    """What B does with lengths; None if there are none, or full calls part too."""
    given = pair.call.lengths
    if given is None or pair.parted(*reversed(pair.full_outputs)).any:
        return None
    expected, found = pair.expected(pair.call), pair.outputs[1]
    parted = pair.parted(found, expected)
    if not parted.any:
        return None
    if not parted.final.any():
        return _outputs(pair, expected, found, parted)
    return _states(pair, given, expected, found, parted)


def lengths_too(pair: Pair) -> Divergence | None:
    """What B does with lengths in passes that are right in full calls, where other passes are not."""
    if pair.call.lengths is None:
        return None
    expected, found = pair.expected(pair.call), pair.outputs[1]
    wrong = pair.parted(*reversed(pair.full_outputs)).final.any(axis=0)
    parted = pair.parted(found, expected)
    parted = parted._replace(final=parted.final & ~wrong)
    return _states(pair, pair.call.lengths, expected, found, parted) if parted.final.any() else None


def _outputs(pair: Pair, expected: Seen, found: Seen, parted: Parted) -> Divergence:
    """All final states are right, and outputs are not."""
    a, b = pair.halves(expected.sequence), pair.halves(found.sequence)
    assert pair.call.lengths is not None
    valid = (np.arange(pair.time) < pair.call.lengths[:, None]).T[None, :, :, None]
    inside = parted.sequence & (apart(np.where(valid, b, a), a) > pair.room[0, -pair.directions :])
    if inside.any():
        place, step = pair.first(pair.of_top(inside))
        says = "Full rows agree, and so do the final states of the others; the outputs of the others do not."
    else:
        step = int(np.argmax(parted.sequence.any(axis=0)))
        place = int(np.argmax(pair.of_top(parted.sequence)[:, step]))
        says = f"Only what {pair.B} hands out at padding differs; it should be zero there."
    half = place - len(pair.passes) + pair.directions
    return output_report(pair, "lengths", place, step, a[half], b[half], says)


def _states(pair: Pair, given: Lengths, expected: Seen, found: Seen, parted: Parted) -> Divergence:
    """Final states are wrong: of the lowest layer where some are, the direction that goes wrong first."""
    wrong = parted.final.any(axis=0)
    layer = pair.passes[int(np.argmax(wrong))][0]
    places = [place for place in map(int, np.flatnonzero(wrong)) if pair.passes[place][0] == layer]
    guesses = [(guess[0], place, guess) for place in places if (guess := _taken_for(pair, given, place, found))]
    place, step = places[0], None
    says = "the states of rows that end in padding differ"
    if guesses:
        _, place, (_, step, says) = min(guesses)
    part = int(np.argmax(parted.final[:, place]))
    a, b = expected.final[part, place], found.final[part, place]
    if step is None and not parted.sequence.any():
        row, _ = largest_at(a, b)
        step = 0 if pair.passes[place][1] == "backward" else max(int(given[row]) - 1, 0)
        says = "only the final states of rows that end in padding differ"
    layer, direction = pair.passes[place]
    says = (
        f"Full rows agree, but {says}, first in layer {layer} {direction}{'' if step is None else f' at step {step}'}."
    )
    return final_report(pair, "lengths", place, step, part, a, b, says)


def _taken_for(pair: Pair, given: Lengths, place: int, found: Seen) -> tuple[int, int, str] | None:
    """With which lengths B has run a pass: how many steps it was right, its first wrong step, and what to say."""
    if not isinstance(pair.reference, Known):
        return None
    short = given[given < pair.time]
    forward = pair.passes[place][1] == "forward"
    first, last = int(short.min(initial=pair.time)), int(short.max(initial=0))
    for says, other, step in (
        ("runs through the padding", np.full_like(given, pair.time), first if forward else pair.time - 1),
        ("runs rows of length 0 for one step", np.maximum(given, 1), 0),
        ("takes rows for one step longer", np.minimum(given + 1, pair.time), first if forward else last),
        (
            "takes rows for one step shorter",
            np.maximum(given - 1, 0),
            (int(given[given > 0].min(initial=pair.time)) if forward else int(given.max())) - 1,
        ),
    ):
        run = pair.seen(pair.reference.run(pair.call.x, pair.initial, other))
        if pair.alike(run.final[:, place], found.final[:, place]):
            return step if forward else 0, step, f"{pair.B} {says}"
    return None
