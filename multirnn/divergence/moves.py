"""What people do to states and to outputs between layers, in words and as functions: states `(parts, passes, …)`."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from multirnn.spec import RecurrentSpec
from multirnn.weights import Array

__all__ = ["Move", "lowest_everywhere", "state_orders", "states_ignored"]

Move = Callable[[Array], Array]


def state_orders(spec: RecurrentSpec) -> Iterator[tuple[str, Move]]:
    """Other orders of the states, in words and as a function of `(parts, passes, …)`."""
    if len(spec.form.states) == 2:
        yield "with h and c swapped", lambda states: states[::-1]
        if spec.num_layers * len(spec.directions) > 1:
            for place, (layer, direction) in enumerate(spec.passes):
                yield f"with h and c swapped in layer {layer} {direction}", _swapped(place)
    layers, directions = spec.num_layers, len(spec.directions)
    places = np.arange(layers * directions).reshape(layers, directions)
    orders = {
        "by direction, then by layer": places.T.ravel(),
        "by layer where they are meant by direction": np.argsort(places.T.ravel()),
        "with the directions swapped": places[:, ::-1].ravel(),
        "from the last layer to the first": places[::-1].ravel(),
        "from the last to the first": places[::-1, ::-1].ravel(),
    }
    seen = {tuple(places.ravel())}
    for says, order in orders.items():
        if tuple(order) not in seen:
            seen.add(tuple(order))
            yield says, lambda states, order=order: states[:, order]  # type: ignore[misc]


def _swapped(place: int) -> Move:
    def move(states: Array) -> Array:
        made = states.copy()
        made[:, place] = states[::-1, place]
        return made

    return move


def lowest_everywhere(spec: RecurrentSpec) -> Move:
    """The states of layer 0 in every layer."""
    return lambda states: states[:, np.tile(np.arange(len(spec.directions)), spec.num_layers)]


def states_ignored(spec: RecurrentSpec) -> Iterator[tuple[str, Move]]:
    """States of which some are zero, in words and as a function of `(parts, passes, …)`."""

    def zeroed(where: Any) -> Move:
        def move(states: Array) -> Array:
            made = states.copy()
            made[where] = 0
            return made

        return move

    yield "the initial state that it is given", zeroed(...)
    if len(spec.form.states) == 2:
        yield from ((f"the initial {name}", zeroed(part)) for part, name in enumerate(spec.form.states))
    if spec.bidirectional:
        yield from ((f"the initial states {way}", zeroed(np.s_[:, d::2])) for d, way in enumerate(spec.directions))
    directions = len(spec.directions)
    for layer in range(1, spec.num_layers):
        yield f"the initial states above layer {layer - 1}", zeroed(np.s_[:, layer * directions :])
    for layer in range(spec.num_layers) if spec.num_layers > 1 else ():
        yield f"the initial state of layer {layer}", zeroed(np.s_[:, layer * directions : (layer + 1) * directions])
    for place, (layer, direction) in enumerate(spec.passes):
        yield f"the initial state of layer {layer} {direction}", zeroed(np.s_[:, place])
