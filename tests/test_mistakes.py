"""The catalogue of known mistakes: each makes the difference that it says, and no other; they compose and are undone."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import multirnn as mr
from multirnn.cells import FORMS, Cell
from multirnn.mistakes import MISTAKES, mistakes_for
from multirnn.mistakes.change import Mistake, composed
from multirnn.mistakes.plumbing import Plumbing
from multirnn.numerics import difference, tolerance
from multirnn.spec import BIASES

RIGHT = mr.backend("numpy").build
BATCH = TIME = 5  # equal, or a batch read as time would not fit the states
# Sizes of one, square matrices, a layer as wide as the one below; and gates that are like the candidate.
SIZES = ((3, 4), (4, 4), (8, 4), (2, 1), (1, 3), (1, 1))
STACKS = ((1, False), (1, True), (2, False), (2, True), (3, False))
ACTIVATIONS = (
    ("tanh", "sigmoid"),
    ("sigmoid", "sigmoid"),
    ("linear", mr.Activation("hard_sigmoid", 0.2, 0.5)),
    ("relu", mr.Activation("hard_sigmoid", 1 / 6, 0.4)),
    ("softsign", "softsign"),
)
# Their condition is narrower than the difference they make: elsewhere they have another name, or say what is not so.
NARROWER = {
    "update gate inverted": "a sign does not invert a gate that is not odd about 1/2",
    "forget gate inverted": "a sign does not invert a gate that is not odd about 1/2",
    "input gate tied to the forget gate": "a sign does not invert a gate that is not odd about 1/2",
    "initial h ignored": "without a c it is 'initial state ignored'",
    "initial state forward alone": "there is no backward direction",
    "forward output in both halves": "there is no backward direction",
    "initial state backward alone": "there is no backward direction: it is 'initial state ignored'",
    "initial state ignored in the lowest layer": "in one layer it is 'initial state ignored'",
    "initial state ignored in the top layer": "in two layers it is 'initial state in the lowest layer alone'",
    "final states from the last to the first": "in one layer or direction it has another name",
    "initial states from the last to the first": "in one layer or direction it has another name",
    "final states meant by direction": "in two layers it is 'final states by direction'",
    "initial states meant by direction": "in two layers it is 'initial states by direction'",
    "recurrent candidate bias skipped without a state": "the candidate has no recurrent bias of its own",
    "backward‖forward between layers": "in one layer it is 'output backward‖forward'",
    "recurrent candidate bias dropped": "the candidate has no recurrent bias of its own",
    "both biases dropped": "there is one bias",
    "recurrent bias dropped": "it is the candidate's alone",
}


def drawn_specs(count: int, seed: int) -> Iterator[mr.RecurrentSpec]:
    """Specs of every form, in turn, of float64."""
    rng = np.random.default_rng(seed)
    for place in range(count):
        form = list(FORMS.values())[place % len(FORMS)]
        (inputs, hidden), (layers, both) = SIZES[rng.integers(len(SIZES))], STACKS[rng.integers(len(STACKS))]
        activation, gates = ACTIVATIONS[rng.integers(len(ACTIVATIONS))]
        yield mr.RecurrentSpec(
            form.name,
            inputs,
            hidden,
            num_layers=layers,
            bidirectional=both,
            bias=BIASES[rng.integers(len(BIASES))],
            reset_after=form.reset_after,
            activation=activation,
            recurrent_activation="sigmoid" if len(form.gates) == 1 else gates,
            dtype="float64",
        )


class Call:
    """Weights, a ragged call and a cotangent, none of it zero."""

    def __init__(self, spec: mr.RecurrentSpec, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.spec = spec
        self.weights = mr.Weights(spec, {n: rng.uniform(-1, 1, shape) for n, shape in spec.shapes.items()})
        self.x = rng.standard_normal((BATCH, TIME, spec.input_size))
        self.state = self.draw_state(rng)
        self.lengths = rng.permutation([0, TIME, TIME, 1, 3])
        self.cotangent = mr.Output(rng.standard_normal((BATCH, TIME, spec.output_size)), self.draw_state(rng))

    def draw_state(self, rng: np.random.Generator) -> mr.State:
        shape = (self.spec.num_layers * len(self.spec.directions), BATCH, self.spec.hidden_size)
        return mr.State(*(rng.uniform(-1, 1, shape) for _ in self.spec.form.states))

    def outputs(self, layer: Any, lengths: Any, *, stateless: bool = False) -> list[np.ndarray]:
        sequence, state = layer(self.x, None if stateless else self.state, lengths=lengths)
        return [sequence, *(part for part in state if part is not None)]

    def gradients(self, layer: Any, *, stateless: bool = False) -> list[np.ndarray]:
        state = None if stateless else self.state
        found = layer.vjp(self.x, state, lengths=self.lengths, cotangent=self.cotangent)
        parts = [0 * part if stateless else part for part in found.state if part is not None]
        return [*(found.weights[name] for name in self.spec.shapes), found.x, *parts]


def apart(actual: list[np.ndarray], expected: list[np.ndarray]) -> bool:
    """Whether any two of the arrays differ by more than rounding."""
    pairs = list(zip(actual, expected, strict=True))
    return any(a.shape != b.shape or difference(a, b).normwise > tolerance("float64") for a, b in pairs)


def differs(mistake: Mistake, call: Call) -> bool:
    """Whether what the mistake says has to be looked at is wrong."""
    right, wrong = RIGHT(call.weights), mistake.realise(RIGHT, call.weights)
    if mistake.shows == "gradients":
        return apart(call.gradients(wrong), call.gradients(right))
    lengths = call.lengths if mistake.shows == "lengths" else None
    stateless = mistake.shows == "no state"
    return apart(*(call.outputs(layer, lengths, stateless=stateless) for layer in (wrong, right)))


CALLS = [Call(spec, seed) for seed, spec in enumerate(drawn_specs(40, seed=5))]


@pytest.mark.parametrize("name", MISTAKES)
def test_it_applies_where_it_makes_a_difference(name: str) -> None:
    mistake = MISTAKES[name]
    for call in CALLS:
        if mistake.applies(call.spec):
            assert differs(mistake, call), call.spec
        elif name not in NARROWER:
            try:
                made = differs(mistake, call)
            except (mr.MultirnnError, AssertionError, IndexError, ValueError, KeyError):
                continue  # it cannot be made there at all: the gates of another cell
            assert not made, call.spec


@pytest.mark.parametrize("name", [name for name, mistake in MISTAKES.items() if mistake.shows == "gradients"])
def test_a_mistake_in_the_gradients_leaves_the_outputs_right(name: str) -> None:
    for call in CALLS:
        if MISTAKES[name].applies(call.spec):
            wrong = MISTAKES[name].realise(RIGHT, call.weights)
            assert not apart(call.outputs(wrong, call.lengths), call.outputs(RIGHT(call.weights), call.lengths))


SMOOTH = [Call(spec) for spec in drawn_specs(60, seed=1) if spec.activation == "tanh"]


@pytest.mark.parametrize(
    "name",
    [name for name, mistake in MISTAKES.items() if mistake.shows != "gradients" and mistake.family != "precision"],
)
def test_the_gradients_are_those_of_the_wrong_function(name: str) -> None:
    """Held against a difference quotient along one direction through weights, input and initial state."""
    mistake = MISTAKES[name]
    for call in [call for call in SMOOTH if mistake.applies(call.spec)][:3]:
        rng = np.random.default_rng(7)
        names = list(call.spec.shapes)
        at = [*(call.weights.arrays[n] for n in names), call.x, *(p for p in call.state if p is not None)]
        along = [rng.standard_normal(array.shape) for array in at]

        def value(step: float, call: Call = call, names: list[str] = names, at: Any = at, along: Any = along) -> float:
            moved = [array + step * direction for array, direction in zip(at, along, strict=True)]
            weights = mr.Weights(call.spec, dict(zip(names, moved, strict=False)))
            x, *state = moved[len(names) :]
            given = mr.State(*state) if mistake.shows != "no state" else None
            sequence, final = mistake.realise(RIGHT, weights)(x, given, lengths=call.lengths)
            valid = np.arange(TIME) < call.lengths[:, None]  # what comes back at padding counts as zero
            total = np.sum(call.cotangent.sequence * sequence * valid[:, :, None])
            return total + sum(np.sum(a * b) for a, b in zip(call.cotangent.state, final, strict=True) if a is not None)

        step = 2.0**-17
        quotient = np.array((value(step) - value(-step)) / (2 * step))
        gradients = call.gradients(mistake.realise(RIGHT, call.weights), stateless=mistake.shows == "no state")
        product = np.array(sum(np.sum(a * b) for a, b in zip(gradients, along, strict=True)))
        # A difference quotient has half of the digits.
        assert difference(product, quotient).normwise < tolerance("float64") ** 0.5, call.spec


@pytest.mark.parametrize("name", [name for name, mistake in MISTAKES.items() if mistake.undo])
def test_what_is_undone_is_right(name: str) -> None:
    mistake = MISTAKES[name]
    undo = mistake.undo
    assert undo is not None
    for call in CALLS:
        if mistake.applies(call.spec):
            wrong = mistake.realise(RIGHT, undo(call.weights))
            assert not apart(call.outputs(wrong, call.lengths), call.outputs(RIGHT(call.weights), call.lengths))


@pytest.mark.parametrize("call", CALLS, ids=lambda call: repr(call.spec))
def test_an_assembly_is_the_layer(call: Call) -> None:
    right, assembled = RIGHT(call.weights), Plumbing()(RIGHT, call.weights)
    for lengths in (call.lengths, None):
        assert not apart(call.outputs(assembled, lengths), call.outputs(right, lengths))
    assert not apart(call.gradients(assembled), call.gradients(right))


def test_the_first_of_composed_mistakes_is_the_innermost() -> None:
    call = Call(mr.RecurrentSpec("gru", 3, 4, dtype="float64"))
    order, inverted = MISTAKES["gates z n r"], MISTAKES["update gate inverted"]

    def by_hand(weights: mr.Weights, *edits: Callable[[np.ndarray], np.ndarray]) -> mr.Weights:
        for edit in edits:
            weights = mr.Weights(weights.spec, {name: edit(array) for name, array in weights.arrays.items()})
        return weights

    def reordered(array: np.ndarray) -> np.ndarray:
        return array[[2, 0, 1]]  # stored r z n, read as z n r: what is taken for r is the third block

    def negated(array: np.ndarray) -> np.ndarray:
        return array * np.array([1.0, -1.0, 1.0]).reshape(3, *[1] * (array.ndim - 1))

    both = composed(RIGHT, inverted, order)(call.weights)
    expected = RIGHT(by_hand(call.weights, reordered, negated))
    assert not apart(call.outputs(both, call.lengths), call.outputs(expected, call.lengths))
    other = composed(RIGHT, order, inverted)(call.weights)
    assert apart(call.outputs(other, call.lengths), call.outputs(both, call.lengths))
    assert not apart(call.outputs(composed(RIGHT)(call.weights), None), call.outputs(RIGHT(call.weights), None))


def test_kinds_of_mistakes_compose() -> None:
    """Weights, spec, passes and calls, one around the other; the gradients follow."""
    call = Call(mr.RecurrentSpec("gru", 3, 4, num_layers=2, bidirectional=True, dtype="float64"))
    names = ("reset before", "gates z r n", "reverse output not flipped", "initial state ignored")
    wrong = composed(RIGHT, *(MISTAKES[name] for name in names))(call.weights)
    assert apart(call.outputs(wrong, call.lengths), call.outputs(RIGHT(call.weights), call.lengths))
    gradients = wrong.vjp(call.x, call.state, lengths=call.lengths, cotangent=call.cotangent)
    assert {name: array.shape for name, array in gradients.weights.items()} == dict(call.spec.shapes)
    assert not gradients.state.h.any()


def test_every_wrong_order_of_the_gates_is_a_mistake_of_its_own() -> None:
    for cell, orders in (("lstm", 23), ("gru", 5)):
        spec = mr.RecurrentSpec(cell, 3, 4)
        everywhere = [m for m in mistakes_for(spec) if re.fullmatch(r"gates( [a-z])+", m.name)]
        assert len(everywhere) == orders


def test_an_order_is_described_as_people_meet_it() -> None:
    """In the words of the frameworks; and arrays of another one that were taken as they are are what `undo` makes."""
    z_first = MISTAKES["gates z r n"]
    assert z_first.says == ("reads the GRU blocks as z r n, the order of Keras and ONNX (z r h); they are stored r z n")
    assert z_first.fix == "swap the first two blocks of weight_ih, weight_hh and the biases"
    weights = mr.initialise(mr.RecurrentSpec("lstm", 3, 4, bias="double"), seed=1)
    onnx = mr.to_arrays(weights, convention="onnx")
    stored = onnx["layers.0.W"][0].reshape(4, 4, 3)  # i o f g, by the canonical names
    undo = MISTAKES["gates i o f g"].undo
    assert undo is not None
    np.testing.assert_array_equal(undo(weights).arrays["layers.0.forward.weight_ih"], stored)


def test_the_table_can_be_read() -> None:
    """Distinct names and sentences; what is said has the wrong side for its subject, and the fix is an imperative."""
    assert len({mistake.says for mistake in MISTAKES.values()}) == len(MISTAKES)
    for name, mistake in MISTAKES.items():
        assert name == mistake.name
        assert mistake.says.split()[0].endswith("s"), mistake.says
        assert not mistake.says.endswith("."), mistake.says
        assert mistake.fix[0].islower(), mistake.fix
        assert not mistake.fix.endswith("."), mistake.fix


@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
def test_there_are_many_of_every_cell(form: Cell) -> None:
    spec = mr.RecurrentSpec(
        form.name, 4, 4, num_layers=3, bidirectional=True, reset_after=form.reset_after, bias="double", dtype="float64"
    )
    found = mistakes_for(spec)
    print(f"{form.form}: {len(found)} of {len(MISTAKES)} mistakes apply")
    assert len(found) >= 60
