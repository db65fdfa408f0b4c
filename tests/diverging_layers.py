"""Layers that part from a right one, and the places where they do."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import multirnn as mr
from multirnn.diagnosis import Divergence
from multirnn.mistakes import MISTAKES
from multirnn.mistakes.change import Change, Mistake
from multirnn.mistakes.plumbing import Assembly, Plumbing

BUILD = mr.backend("numpy").build
TIME = 7  # of the calls that `draw_call` draws
Place = tuple[int | None, str | None, int | None]


def place_of(found: Divergence) -> Place:
    return found.layer, found.direction, found.step


def assert_headline_and_table_agree(found: Divergence) -> None:
    """The row of the pass in the headline shows its step, and no other row parts earlier."""
    rows = [line.split() for line in str(found).splitlines() if line.split()[1:2] in (["forward"], ["backward"])]
    parts = {(int(layer), direction): at for layer, direction, at, *_ in rows}
    assert list(parts) == list(found.spec.passes)
    for layer, direction, step in found.parting:
        if layer is not None:
            assert parts.pop((layer, direction)) == ("?" if step is None else str(step))
    assert set(parts.values()) <= {"–", "echo"}
    where = [f"layer {found.layer}", found.direction] if found.layer is not None else []
    assert all(word in found.title for word in [*where, f"step {found.step}" if found.step is not None else ""])


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
IN_ALL: dict[str, Place] = {  # where a mistake that is not in the weights parts, made in all passes
    "output rounded to float32": FORWARD,
    "initial state ignored": FORWARD,
    "initial h ignored": FORWARD,
    "initial c ignored": FORWARD,
    "initial state in the lowest layer alone": (1, "forward", 0),
    "initial state ignored in the lowest layer": FORWARD,
    "initial state ignored in the top layer": (2, "forward", 0),
    "initial state of the lowest layer in all": (1, "forward", 0),
    "initial state forward alone": BACKWARD,
    "initial state backward alone": FORWARD,
    "initial states by direction": BACKWARD,
    "initial states meant by direction": BACKWARD,
    "initial states backward first": FORWARD,
    "initial states from the top": FORWARD,
    "initial states from the last to the first": FORWARD,
    "initial h and c swapped": FORWARD,
    "final states by direction": (0, "backward", 0),
    "final states meant by direction": (0, "backward", 0),
    "final states backward first": (0, "forward", LAST),
    "final states from the top": (0, "forward", LAST),
    "final states from the last to the first": (0, "forward", LAST),
    "final h and c swapped": (0, "forward", LAST),
    "final state before the last step": (0, "forward", LAST),
    "reverse state at the wrong end": (0, "backward", 0),
    "reverse output not flipped": BACKWARD,
    "reverse input not flipped": BACKWARD,
    "backward direction runs forward": BACKWARD,
    "runs backward in time": FORWARD,
    "runs backward in time, outputs flipped back": FORWARD,
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
IN_STACKS: dict[str, Place] = {  # where they part in a stack, which does not show the outputs of its lower layers
    "reverse output not flipped": (1, "forward", 1),  # a sequence of one step is its own reverse
    "reverse input not flipped": (0, "backward", LAST - 1),
    "backward direction runs forward": (0, "backward", LAST - 1),
    "runs backward in time": (0, "forward", 1),
    "runs backward in time, outputs flipped back": (0, "forward", 1),
    "backward‖forward between layers": (1, "forward", 0),
    "directions interleaved": (1, "forward", 0),
    "directions mixed with rows": (1, "forward", 0),
    "output before the step": (1, "forward", 0),
}
IN_OUTPUT = {  # by step, in the output of the last layer
    "output backward‖forward": 0,
    "forward output in both halves": None,
    "output time-major": 0,
}
AT_FIRST = ("output rounded to float32", "initial state ignored", "initial h ignored", "initial c ignored")
IN_TIME = ("runs backward in time", "runs backward in time, outputs flipped back")
IN_ONE_AT_FIRST = (*AT_FIRST, "initial h and c swapped", "output before the step", *IN_TIME)
IN_ONE_AT_LAST = ("final h and c swapped", "final state before the last step")


def in_weights(mistake: Mistake) -> bool:
    change = mistake.realise
    return isinstance(change, Change) and change.weights is not None


def planted(
    mistake: Mistake, weights: mr.Weights, one: int | None, x: np.ndarray, state: mr.State
) -> tuple[Any, Place | None]:
    """The wrong layer, with the mistake in all passes or in one, and where it is; None where that is not defined."""
    spec, passes = weights.spec, list(weights.spec.passes)
    top = spec.num_layers - 1
    if one is None:
        layer = mistake.realise(BUILD, weights)
        if mistake.name in IN_OUTPUT:
            step = IN_OUTPUT[mistake.name]
            return layer, (top, "forward", step) if step is not None else (top, "backward", LAST)
        if not in_weights(mistake):
            place = IN_STACKS.get(mistake.name) if top else None
            if mistake.name == "reverse output not flipped" and top == 1:
                place = (1, "forward", 0)  # the last layer shows every output
            return layer, place or IN_ALL.get(mistake.name)
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
        if at[0] < top and mistake.name == "output before the step":
            return layer, (at[0] + 1, "forward", 0)
        if at[0] < top and mistake.name in IN_TIME:
            return layer, (*at, abs(first - 1))
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
