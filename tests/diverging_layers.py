"""Layers that part from a right one, and the places where they do."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import multirnn as mr
from multirnn.assembly import Assembly, Plumbing
from multirnn.catalogue import MISTAKES
from multirnn.divergence import Divergence
from multirnn.mistakes import Change, Mistake

BUILD = mr.backend("numpy").build
TIME = 7  # of the calls that `draw_call` draws
Place = tuple[int | None, str | None, int | None]


def place_of(found: Divergence) -> Place:
    return found.layer, found.direction, found.step


def made(mistake: str, weights: mr.Weights) -> Any:
    return MISTAKES[mistake].realise(BUILD, weights)


def edited(weights: mr.Weights, prefix: str, change: Callable[[np.ndarray], np.ndarray], kind: str = "") -> mr.Weights:
    """One pass, or one array of it, changed."""
    arrays = {n: change(a) if n.startswith(prefix) and n.endswith(kind) else a for n, a in weights.arrays.items()}
    return mr.Weights(weights.spec, arrays)


def as_function(layer: Any) -> Callable[..., Any]:
    """What is known of it are its calls."""

    def function(x: np.ndarray, h0: Any) -> Any:
        output = layer(x, mr.State(*h0) if isinstance(h0, tuple) else mr.State(h0))
        return output.sequence, tuple(part for part in output.state if part is not None)

    return function


def stack(cell: str, **fields: Any) -> mr.Weights:
    fields = {"input_size": 5, "hidden_size": 4, "num_layers": 2, "bidirectional": True, **fields}
    return mr.initialise(mr.RecurrentSpec(cell, **fields), seed=1)


def draw_spec(rng: np.random.Generator) -> mr.RecurrentSpec:
    cell = str(rng.choice(["simple_rnn", "lstm", "gru"]))
    hard = cell != "simple_rnn" and rng.integers(3) == 0
    return mr.RecurrentSpec(
        cell,
        input_size=int(rng.choice([2, 3, 5, 7])),
        hidden_size=int(rng.choice([3, 4, 6, 11])),
        num_layers=int(rng.integers(1, 4)),
        bidirectional=bool(rng.integers(2)),
        bias=str(rng.choice(["none", "single", "double"])),
        reset_after=cell != "gru" or bool(rng.integers(2)),
        activation=str(rng.choice(["tanh", "relu", "softsign"])),
        recurrent_activation=mr.Activation("hard_sigmoid", 0.2, 0.5) if hard else "sigmoid",
        dtype=str(rng.choice(["float32", "float64"])),
    )


def first_wrong_pass(
    right: mr.Weights, wrong: Mapping[tuple[int, str], mr.Weights], x: np.ndarray, state: mr.State
) -> Place | None:
    """Where weights, given by pass, first make another step of the same input and states: by its definition.

    Every state of the right stack is had from calls of one layer in one direction that end there.
    """
    spec = right.spec
    for layer in range(spec.num_layers):
        parting, outputs = [], []
        for place, direction in enumerate(spec.directions):
            pair = [BUILD(w.astype("float64")) for w in (right.part(layer, direction), wrong[layer, direction])]
            running = x[:, ::-1] if direction == "backward" else x
            index = layer * len(spec.directions) + place
            now = mr.State(*(part[index : index + 1] for part in state if part is not None))
            steps = []
            for step in range(TIME):
                a, b = (one(running[:, step : step + 1], now) for one in pair)
                differences = [
                    mr.difference(v, u).normwise for u, v in zip(a.state, b.state, strict=True) if u is not None
                ]
                if max(differences) > mr.tolerance(spec.dtype):
                    parting.append((step, place, step if direction == "forward" else TIME - 1 - step))
                steps.append(a.sequence)
                now = a.state
            output = np.concatenate(steps, axis=1)
            outputs.append(output[:, ::-1] if direction == "backward" else output)
        if parting:
            _, place, step = min(parting)
            return layer, spec.directions[place], step
        x = np.concatenate(outputs, axis=2)
    return None


LAST = TIME - 1
FORWARD, BACKWARD = (0, "forward", 0), (0, "backward", LAST)
IN_ALL: dict[str, Place] = {  # of mistakes that are not in the weights, in all passes
    "output rounded to float32": FORWARD,
    "initial state ignored": FORWARD,
    "initial h ignored": FORWARD,
    "initial c ignored": FORWARD,
    "initial state in the lowest layer alone": (1, "forward", 0),
    "initial state of the lowest layer in all": (1, "forward", 0),
    "initial state forward alone": BACKWARD,
    "initial states by direction": BACKWARD,
    "initial states backward first": FORWARD,
    "initial states from the top": FORWARD,
    "initial h and c swapped": FORWARD,
    "final states by direction": (0, "backward", 0),
    "final states backward first": (0, "forward", LAST),
    "final states from the top": (0, "forward", LAST),
    "final h and c swapped": (0, "forward", LAST),
    "reverse state at the wrong end": (0, "backward", 0),
    "reverse output not flipped": BACKWARD,
    "reverse input not flipped": BACKWARD,
    "backward direction runs forward": BACKWARD,
    "runs backward in time": FORWARD,
    "runs backward in time, outputs flipped back": FORWARD,
    "backward‖forward between layers": FORWARD,
    "directions interleaved": FORWARD,
    "directions mixed with rows": FORWARD,
    "output before the step": FORWARD,
    "batch and time swapped": FORWARD,
    "padding run through": FORWARD,  # one row has the length 0
    "padding run through, outputs masked": FORWARD,
    "padding read first backward": BACKWARD,
    "mask one step too long": FORWARD,
    "mask one step too short": FORWARD,  # one row has the length 1
    "empty rows run for one step": FORWARD,
}
IN_OUTPUT = {  # by step, in what the last layer hands out
    "output backward‖forward": 0,
    "output time-major": 0,
}
AT_FIRST = ("output rounded to float32", "initial state ignored", "initial h ignored", "initial c ignored")
IN_ONE_AT_FIRST = (
    *(*AT_FIRST, "initial h and c swapped", "output before the step"),
    *("runs backward in time", "runs backward in time, outputs flipped back"),
)
IN_ONE_AT_LAST = ("final h and c swapped",)


def in_weights(mistake: Mistake) -> bool:
    change = mistake.realise
    return isinstance(change, Change) and change.weights is not None


def planted(
    mistake: Mistake, weights: mr.Weights, one: int | None, x: np.ndarray, state: mr.State
) -> tuple[Any, Place | None]:
    """The wrong layer, with the mistake in all passes or in one, and where it is; None where that is not defined."""
    spec, passes = weights.spec, list(weights.spec.passes)
    if one is None:
        layer = mistake.realise(BUILD, weights)
        if mistake.name in IN_OUTPUT:
            return layer, (spec.num_layers - 1, "forward", IN_OUTPUT[mistake.name])
        if not in_weights(mistake):
            return layer, IN_ALL.get(mistake.name)
        changed = mistake.realise.weights(weights)
        return layer, first_wrong_pass(weights, {at: changed.part(*at) for at in passes}, x, state)
    at = passes[one]
    layer = Assembly(BUILD, weights, Plumbing())
    layer._passes[one] = mistake.realise(BUILD, weights.part(*at))
    if in_weights(mistake):
        parts = {other: weights.part(*other) for other in passes}
        return layer, first_wrong_pass(weights, {**parts, at: mistake.realise.weights(parts[at])}, x, state)
    first = 0 if at[1] == "forward" else LAST
    if mistake.name in IN_ONE_AT_FIRST:
        return layer, (*at, first)
    return layer, (*at, LAST - first) if mistake.name in IN_ONE_AT_LAST else None


class Drifting:
    """A stack that is right in every pass but one, whose state is moved after every step from some step on."""

    def __init__(self, weights: mr.Weights, at: tuple[int, str], since: int, move: Callable[[Any], Any]) -> None:
        self.spec, self.at, self.since, self.move = weights.spec, at, since, move
        self.parts = {place: BUILD(weights.part(*place)) for place in weights.spec.passes}

    def __call__(self, x: np.ndarray, state: mr.State | None = None, *, lengths: Any = None) -> mr.Output:
        assert lengths is None
        finals = []
        for layer in range(self.spec.num_layers):
            halves = []
            for direction in self.spec.directions:
                order = slice(None, None, -1 if direction == "backward" else 1)
                index = len(finals)
                now = state and mr.State(*(part[index : index + 1] for part in state if part is not None))
                outputs = []
                for step, x_t in enumerate(np.swapaxes(x, 0, 1)[order]):
                    now = self.parts[layer, direction](x_t[:, None], now).state
                    if (layer, direction) == self.at and step >= self.since:
                        now = mr.State(*(self.move(part) for part in now if part is not None))
                    outputs.append(now.h[0])
                halves.append(np.stack(outputs, axis=1)[:, order])
                finals.append(now)
            x = np.concatenate(halves, axis=2)
        parts = zip(*finals, strict=True)
        return mr.Output(x, mr.State(*(np.concatenate(part) for part in parts if part[0] is not None)))
