"""Where two layers part first, held against mistakes whose place is known."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import multirnn as mr
from multirnn.adoption import AdoptedLayer, adopt
from multirnn.assembly import Assembly, Plumbing
from multirnn.catalogue import MISTAKES, mistakes_for
from multirnn.compare import draw_call
from multirnn.divergence import Divergence, first_divergence
from multirnn.mistakes import Change, Mistake
from multirnn.plot import plot_divergence

# The pairs are those on which `diagnose` is measured.
_source = spec_from_file_location("diagnosis_benchmark", Path(__file__).parents[1] / "benchmarks" / "diagnosis.py")
assert _source
assert _source.loader
experiment = module_from_spec(_source)
_source.loader.exec_module(experiment)

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


# --- Drawn pairs, of which the place is known ------------------------------------------------------------------------


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


@pytest.mark.parametrize("seed", range(10))
def test_layer_direction_and_step_of_a_planted_mistake_are_found(seed: int) -> None:
    """In every pair where they are defined; of a layer, and of a function of which only calls are known."""
    rng = np.random.default_rng(seed)
    counts: Counter[str] = Counter()
    while counts.total() < 30:
        spec = draw_spec(rng)
        applying = [m for m in mistakes_for(spec) if m.shows != "gradients" and m.shows != "count"]
        family = rng.choice(sorted({m.family for m in applying}))
        mistake = rng.choice([m for m in applying if m.family == family])
        passes = list(spec.passes)
        one = int(rng.integers(len(passes))) if rng.integers(3) == 0 and family != "axes" else None
        weights = mr.initialise(spec, rng)
        if one is not None and not mistake.applies(weights.part(*passes[one]).spec):
            continue
        drawn = int(rng.integers(2**30))
        x, state, lengths = draw_call(spec, drawn)
        x = np.where((np.arange(TIME) < lengths[:, None])[:, :, None], x, 0)  # padding is zero, whoever reads it
        wide = mr.State(*(part.astype("float64") for part in state if part is not None))
        wrong, expected = planted(mistake, weights, one, x.astype("float64"), wide)
        if expected is None:
            continue
        known = mistake.shows == "lengths" or rng.integers(2) == 0
        found = first_divergence(BUILD(weights), wrong if known else adopt(as_function(wrong), spec=spec), seed=drawn)
        where = f"{mistake.name} in {'all passes' if one is None else passes[one]} of {spec}: {found.says}"
        assert (found.kind, *place_of(found)) == ("mistake", *expected), where
        counts[found.pattern] += 1
    print(counts.total(), "pairs:", dict(counts))


@pytest.mark.parametrize(("mistakes", "pairs"), [(1, 60), (2, 40)])
def test_layer_direction_and_step_in_the_pairs_of_the_diagnosis(mistakes: int, pairs: int) -> None:
    """With two mistakes it is the earlier; either, where both go wrong after equally many steps of one layer."""
    found = Counter()
    for pair in experiment.draw_pairs(1, pairs, mistakes):
        weights, spec = pair.weights, pair.weights.spec
        shown = [mistake for mistake in pair.mistakes if mistake.shows not in ("gradients", "count")]
        if any(mistake.family == "axes" for mistake in shown):  # the call that B takes has no lengths
            shown = [mistake for mistake in shown if mistake.shows != "lengths"]
        x, state, lengths = draw_call(spec, 0)
        if not pair.only_calls:
            x = np.where((np.arange(TIME) < lengths[:, None])[:, :, None], x, 0)
        wide = mr.State(*(part.astype("float64") for part in state if part is not None))
        if shown and all(map(in_weights, shown)):
            changed = weights
            for mistake in reversed(shown):
                changed = mistake.realise.weights(changed)
            parts = {at: changed.part(*at) for at in spec.passes}
            places = [first_wrong_pass(weights, parts, x.astype("float64"), wide)]
        else:
            places = [planted(mistake, weights, None, x.astype("float64"), wide)[1] for mistake in shown]
        if not places or None in places:
            found["not defined"] += 1
            continue
        first = min(map(run_until, places))
        place = place_of(first_divergence(pair.right, pair.wrong))
        names = " + ".join(mistake.name for mistake in pair.mistakes)
        assert place in [at for at in places if run_until(at) == first], f"{names} in {spec}"
        found["right"] += 1
    print(dict(found))


def run_until(place: Place) -> tuple[int, int]:
    """The layer, and how many steps its direction had run."""
    layer, direction, step = place
    return layer, step if direction == "forward" else LAST - step


@pytest.mark.parametrize("seed", range(30))
def test_of_the_same_stack_nothing_is_found(seed: int) -> None:
    spec = draw_spec(np.random.default_rng(seed))
    weights = mr.initialise(spec, seed)
    for other in (BUILD(weights), Assembly(BUILD, weights, Plumbing()), adopt(as_function(BUILD(weights)), spec=spec)):
        found = first_divergence(BUILD(weights), other, seed=seed)
        assert (found.kind, found.pattern, place_of(found)) == ("none", "", (None, None, None))
        assert np.nanmax(found.own) <= found.to_dict()["tolerance_eps"]


def test_no_backend_parts_from_the_reference_and_a_mistake_in_each_is_found(backend: mr.Backend) -> None:
    weights = stack("gru", hidden_size=6, num_layers=1)
    if reason := backend.refuses(weights.spec):
        pytest.skip(reason)
    wrong = edited(weights, "layers.0.backward.", lambda a: a[[1, 0, 2]])
    assert first_divergence(BUILD(weights), backend.build(weights)).kind == "none"
    found = first_divergence(BUILD(weights), backend.build(wrong))
    assert place_of(found) == (0, "backward", LAST)
    assert found.gate in ("r", "z")


# --- Only from some step on ------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(("at", "since"), list(product(product((0, 1), ("forward", "backward")), (1, 3, LAST))))
def test_a_drift_is_found_at_its_step(at: tuple[int, str], since: int) -> None:
    weights = stack("gru")
    x, state, _ = draw_call(weights.spec, 5)
    wrong = Drifting(weights, at, since, lambda part: part * part.dtype.type(1.01))
    found = first_divergence(BUILD(weights), AdoptedLayer(wrong), x, state)
    assert place_of(found) == (*at, since if at[1] == "forward" else LAST - since)
    assert found.pattern == ("late" if since > 1 else "order of time")
    assert "after" in found.says or "follow one another" in found.says


def test_a_clipped_state_is_found_where_it_is_first_clipped() -> None:
    weights = stack("simple_rnn", activation="relu", bidirectional=False)
    x, state, _ = draw_call(weights.spec, 3)
    outputs = [BUILD(weights)(x[:, :steps], state).state.h[0].max() for steps in range(1, TIME + 1)]
    limit = sorted(outputs)[-2]  # of the lowest layer: passed once, by its largest state
    wrong = Drifting(weights, (0, "forward"), 0, lambda part: np.minimum(part, limit))
    found = first_divergence(BUILD(weights), AdoptedLayer(wrong), x, state)
    assert place_of(found) == (0, "forward", int(np.argmax(outputs)))
    assert found.values is not None
    np.testing.assert_allclose(found.values, (max(outputs), limit), rtol=mr.tolerance("float32"))


def test_a_recurrent_mistake_shows_when_there_is_a_state() -> None:
    """From zero the first step agrees."""
    weights = stack("lstm")
    x, _, _ = draw_call(weights.spec, 2)
    wrong = edited(weights, "layers.0.backward.", lambda a: a.swapaxes(1, 2), "weight_hh")
    found = first_divergence(BUILD(weights), BUILD(wrong), x)
    assert (found.pattern, *place_of(found)) == ("recurrence", 0, "backward", LAST - 1)
    assert "From zero states it does not" in found.says


# --- What is said ----------------------------------------------------------------------------------------------------

SAID = {
    "gates i g f o": ("arithmetic", "other weights or other equations"),
    "recurrent kernel transposed": ("recurrence", "From zero states it does not"),
    "initial state ignored": ("initial state", "does not use the initial state"),
    "initial c ignored": ("initial state", "does not use the initial c"),
    "initial state forward alone": ("initial state", "does not use the initial states backward"),
    "initial state in the lowest layer alone": ("initial state", "above layer 0"),
    "initial state of the lowest layer in all": ("order of states", "of layer 0 in every layer"),
    "initial states by direction": ("order of states", "takes the initial states"),
    "final states backward first": ("order of states", "hands back the final states with the directions swapped"),
    "final h and c swapped": ("order of states", "h and c swapped"),
    "reverse state at the wrong end": ("final state", "after step 6, where that after step 0 belongs"),
    "reverse output not flipped": ("hand-over", "hands the outputs of layer 0 backward on in the other order"),
    "reverse input not flipped": ("order of time", "round in time and not its inputs"),
    "backward direction runs forward": ("order of time", "runs layer 0 backward the other way"),
    "runs backward in time": ("order of time", "from its last step to its first"),
    "runs backward in time, outputs flipped back": ("order of time", "flipped back"),
    "output backward‖forward": ("output", "other direction's outputs"),
    "backward‖forward between layers": ("hand-over", "directions swapped"),
    "directions interleaved": ("hand-over", "unit by unit"),
    "output before the step": ("hand-over", "before each step"),
    "batch and time swapped": ("rows", "alone cannot be run"),
    "directions mixed with rows": ("rows", "alone gives another output"),
    "padding run through": ("lengths", "runs through the padding"),
    "mask one step too long": ("lengths", "one step longer"),
    "mask one step too short": ("lengths", "one step shorter"),
    "empty rows run for one step": ("lengths", "rows of length 0"),
    "last output repeated at padding": ("lengths", "should be zero there"),
    "final state at the padded end": ("lengths", "only the final states"),
    "gradient of the recurrent kernel missing": ("gradient", "is zero"),
    "gradient of the biases doubled": ("gradient", "is 2 times"),
    "gradient truncated half-way": ("gradient", "is another"),
}


@pytest.mark.parametrize("name", SAID)
def test_the_pattern_is_named_and_explained(name: str) -> None:
    weights = stack("lstm", bias="double")
    pattern, words = SAID[name]
    found = first_divergence(BUILD(weights), made(name, weights), seed=4)
    assert (found.kind, found.pattern) == ("mistake", pattern)
    assert words in found.says
    assert pattern == "gradient" or found.layer is not None


ONE_LAYER = {
    "reverse output not flipped": "not flipped back",
    "output before the step": "before each step",
    "directions interleaved": "sequence that is not made of them",
}


@pytest.mark.parametrize("name", ONE_LAYER)
def test_outputs_of_a_single_layer(name: str) -> None:
    weights = stack("gru", num_layers=1)
    found = first_divergence(BUILD(weights), made(name, weights))
    assert (found.pattern, found.quantity) == ("output", "output")
    assert ONE_LAYER[name] in found.says


def test_a_state_swapped_in_one_pass() -> None:
    weights = stack("lstm")
    wrong, place = planted(MISTAKES["initial h and c swapped"], weights, 2, *draw_call(weights.spec)[:2])
    found = first_divergence(BUILD(weights), wrong)
    assert place_of(found) == place
    assert "h and c swapped in layer 1 forward" in found.says


def test_what_is_not_a_function() -> None:
    weights = stack("gru")
    right, rng = BUILD(weights), np.random.default_rng(0)

    def dropped(x: np.ndarray, h0: np.ndarray) -> Any:
        y, (h,) = as_function(right)(x, h0)
        return y * (rng.random(y.shape) > 0.5).astype(y.dtype), h

    found = first_divergence(right, dropped)
    assert (found.pattern, *place_of(found)) == ("repetition", None, None, None)
    assert "draws at random" in found.says


def test_what_is_not_a_number() -> None:
    weights = stack("gru")

    def broken(x: np.ndarray, h0: np.ndarray) -> Any:
        y, (h,) = as_function(BUILD(weights))(x, h0)
        h[3] = np.nan
        return y, h

    found = first_divergence(BUILD(weights), broken)
    assert (found.kind, *place_of(found)) == ("mistake", 1, "backward", LAST)
    assert json.loads(found.to_json())["values"][1] is None


def test_lengths_of_a_side_that_is_not_known_by_its_weights() -> None:
    weights = stack("simple_rnn", bidirectional=False)
    right = BUILD(weights)

    class Hidden:
        spec = weights.spec

        def __call__(self, x: Any, state: Any = None, *, lengths: Any = None) -> mr.Output:
            return right(x, state, lengths=lengths)

    found = first_divergence(AdoptedLayer(Hidden()), made("padding run through", weights))
    assert (found.pattern, found.layer) == ("lengths", 0)


def test_a_function_without_states() -> None:
    """Where it neither takes nor hands back a state, the last layer is seen alone, from zero."""
    weights = stack("lstm")

    def outputs_of(weights: mr.Weights) -> Callable[..., Any]:
        return lambda x: BUILD(weights)(x).sequence

    assert first_divergence(BUILD(weights), outputs_of(weights)).kind == "none"
    gates = edited(weights, "layers.1.backward.", lambda a: a[[0, 2, 1, 3]])
    assert place_of(first_divergence(BUILD(weights), outputs_of(gates))) == (1, "backward", LAST)
    kernel = edited(weights, "layers.1.forward.", lambda a: a.swapaxes(1, 2), "weight_hh")
    found = first_divergence(BUILD(weights), outputs_of(kernel))
    assert place_of(found) == (1, "forward", 1)
    assert "only the last layer is seen" in found.says


def test_two_functions() -> None:
    weights = stack("lstm")
    wrong = edited(weights, "layers.1.backward.", lambda a: a[[0, 1, 2, 3]] * a.dtype.type(1.1))
    right, other = (adopt(as_function(BUILD(w)), spec=w.spec) for w in (weights, wrong))
    assert first_divergence(right, right).kind == "none"
    found = first_divergence(right, other)
    assert place_of(found) == (1, "backward", LAST)
    assert found.gate in ("f", "i*g", "o")


@pytest.mark.parametrize("name", ["initial state ignored", "reverse output not flipped"])
def test_it_may_be_a_that_is_wrong(name: str) -> None:
    weights = stack("gru")
    wrong, right = made(name, weights), BUILD(weights)
    found, other = first_divergence(wrong, right), first_divergence(right, wrong)
    assert place_of(found) == place_of(other)
    assert found.titles == other.titles[::-1]
    assert found.values == (other.values and other.values[::-1])
    assert found.says.replace("A", "?") == other.says.replace("B", "?").replace("A", "B")


def test_what_the_call_does_not_show_is_mentioned() -> None:
    weights = stack("gru")
    x, _, _ = draw_call(weights.spec)
    found = first_divergence(BUILD(weights), as_function(made("initial state ignored", weights)), x)
    assert found.kind == "none"
    assert "an initial state would show it" in found.says


def test_a_call_that_b_does_not_take() -> None:
    weights = stack("gru")

    def short(x: np.ndarray, h0: np.ndarray) -> Any:
        return as_function(BUILD(weights))(x[:, 1:], h0)

    found = first_divergence(BUILD(weights), short)
    assert (found.kind, found.pattern, found.layer) == ("mistake", "call", None)
    assert "must be (batch, time" in found.says
    assert np.isnan(found.own).all()


# --- Gates -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cell", "gate"), [("lstm", g) for g in "ifgo"] + [("gru", g) for g in "rzn"])
@pytest.mark.parametrize("known", [True, False])
def test_the_gate_is_found(cell: str, gate: str, known: bool) -> None:
    """By the weights; and by calls, of an LSTM and of a GRU that resets after the product."""
    weights = stack(cell, hidden_size=6)
    index = weights.spec.form.gates.index(gate)

    def change(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array[index] *= -1
        return array

    wrong = BUILD(edited(weights, "layers.1.forward.", change))
    found = first_divergence(BUILD(weights), wrong if known else as_function(wrong))
    assert (found.layer, found.direction) == (1, "forward")
    assert found.gate == ("i*g" if not known and gate in "ig" else gate)
    if known:
        place = 2
        agreeing = [name for name in found.gates if name != gate and (gate, name) != ("r", "n")]  # n is made of r
        limit = found.to_dict()["tolerance_eps"]
        assert all(found.gates[name][place].max() <= limit < found.gates[gate][place].max() for name in agreeing)


def test_a_gate_that_calls_do_not_tell() -> None:
    weights = stack("gru", reset_after=False, bias="single")
    wrong = edited(weights, "layers.0.forward.", lambda a: a[[1, 0, 2]])
    found = first_divergence(BUILD(weights), as_function(BUILD(wrong)))
    assert found.gate is None
    assert "cannot be told from its calls" in found.says
    assert first_divergence(BUILD(weights), BUILD(wrong)).gate in ("r", "z")
    few = stack("gru", hidden_size=3)
    found = first_divergence(BUILD(few), as_function(BUILD(edited(few, "layers.0.forward.", lambda a: a[[1, 0, 2]]))))
    assert found.gate is None
    assert "too few" in found.says


def test_another_kernel_is_not_taken_for_another_gate() -> None:
    weights = stack("gru", hidden_size=6)
    wrong = edited(weights, "layers.0.forward.", lambda a: a.swapaxes(1, 2), "weight_hh")
    found = first_divergence(BUILD(weights), as_function(BUILD(wrong)))
    assert found.gate is None
    assert "other units of h" in found.says


def test_gates_that_are_put_together_in_another_way() -> None:
    weights = stack("lstm")
    relu = mr.Weights(replace(weights.spec, activation="relu"), weights.arrays)
    found = first_divergence(BUILD(weights), BUILD(relu))
    assert (found.pattern, found.gate) == ("arithmetic", "g")


# --- Rounding --------------------------------------------------------------------------------------------------------


def chaotic(dtype: str) -> mr.Weights:
    weights = mr.initialise(mr.RecurrentSpec("simple_rnn", 5, 24, dtype=dtype), seed=0)
    return mr.Weights(weights.spec, {name: 8 * array for name, array in weights.arrays.items()})


def test_rounding_that_grows_is_not_a_mistake() -> None:
    """A chaotic stack, whose states are as far apart as they can be after 50 steps."""
    x = np.random.default_rng(0).standard_normal((3, 120, 5)).astype("float32")
    narrow = BUILD(chaotic("float32"))
    wide = BUILD(chaotic("float32").astype("float64"))
    for pair in ((narrow, wide), (wide, narrow)):
        found = first_divergence(*pair, x)
        assert (found.kind, found.pattern) == ("rounding", "")
        assert found.eps > found.to_dict()["tolerance_eps"] > np.nanmax(found.own) > 0
        assert found.growth[0, 0] < 10 < 1e6 < found.growth[0, -1]


def test_a_mistake_in_a_chaotic_stack_is_not_rounding() -> None:
    x = np.random.default_rng(0).standard_normal((3, 120, 5)).astype("float32")
    weights = chaotic("float32")
    wrong = Drifting(weights, (0, "forward"), 9, lambda part: 0.9 * part)
    found = first_divergence(BUILD(weights), AdoptedLayer(wrong), x)
    assert (found.kind, *place_of(found)) == ("mistake", 0, "forward", 9)


def test_float32_against_float64_is_rounding() -> None:
    weights = stack("lstm")
    x, state, lengths = draw_call(weights.spec, 1)
    found = first_divergence(BUILD(weights), BUILD(weights.astype("float64")), x, state, lengths=lengths)
    assert found.kind == "rounding"
    assert 0 < np.nanmax(found.growth) < found.to_dict()["tolerance_eps"]


def test_cancellation_is_not_a_mistake() -> None:
    """Large products that cancel in a step: its error is that of the products."""
    weights = stack("simple_rnn", num_layers=1, bidirectional=False)
    huge = edited(weights, "layers.0.forward.", lambda a: 1000 * a, "weight_ih")
    x = np.random.default_rng(0).standard_normal((5, TIME, 5)).astype("float32")
    kernel = huge.arrays["layers.0.forward.weight_ih"][0].astype("float64")
    inside = np.eye(5) - np.linalg.pinv(kernel) @ kernel
    x = (x @ inside.astype("float32")).astype("float32")
    found = first_divergence(BUILD(huge), BUILD(huge.astype("float64")), x)
    assert found.kind == "rounding"


def test_a_slip_into_float32_is_a_mistake() -> None:
    weights = stack("lstm", dtype="float64")
    for name in ("computed in float32", "output rounded to float32"):
        found = first_divergence(BUILD(weights), made(name, weights))
        assert (found.kind, *place_of(found)) == ("mistake", *FORWARD)


# --- Calls -----------------------------------------------------------------------------------------------------------


def test_an_unbatched_call() -> None:
    weights = stack("gru")
    wrong = edited(weights, "layers.0.backward.", lambda a: a[[1, 0, 2]])
    x, state, _ = draw_call(weights.spec)
    one = mr.State(state.h[:, 0])
    for lengths in (None, 4):
        found = first_divergence(BUILD(weights), BUILD(wrong), x[0], one, lengths=lengths)
        assert (found.layer, found.direction, found.shape) == (0, "backward", (1, TIME, 5))


@pytest.mark.parametrize("shape", [(3, 0, 5), (0, 3, 5)])
def test_without_a_step_there_is_no_divergence(shape: tuple[int, ...]) -> None:
    weights = stack("gru")
    wrong = edited(weights, "layers.0.backward.", lambda a: a[[1, 0, 2]])
    found = first_divergence(BUILD(weights), BUILD(wrong), np.zeros(shape, "float32"))
    assert found.kind == "none"
    assert "No divergence" in str(found)
    assert found._repr_html_()


def test_what_cannot_be_compared_is_refused() -> None:
    layer = BUILD(stack("gru"))
    with pytest.raises(mr.InvalidCall, match="A has hidden_size=4 and B 6"):
        first_divergence(layer, BUILD(stack("gru", hidden_size=6)))
    with pytest.raises(mr.InvalidCall, match="belong to an x"):
        first_divergence(layer, layer, lengths=[1])
    with pytest.raises(mr.InvalidCall, match="x must have the shape"):
        first_divergence(layer, layer, np.zeros((2, 3, 4), "float32"))


# --- Shown -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def found() -> Divergence:
    weights = stack("lstm", num_layers=3)
    wrong = BUILD(edited(weights, "layers.1.backward.", lambda a: a[[0, 2, 1, 3]]))
    return first_divergence(BUILD(weights), adopt(as_function(wrong), spec=weights.spec))


def test_json_has_all_of_it(found: Divergence) -> None:
    read = json.loads(found.to_json())
    assert read == json.loads(json.dumps(found.to_dict()))
    assert (read["layer"], read["direction"], read["step"], read["gate"]) == (1, "backward", LAST, "i*g")
    assert np.shape(read["own"]) == np.shape(read["growth"]) == (6, TIME)
    assert read["own"][4] == [None] * TIME  # above a layer that parts at every step
    assert mr.RecurrentSpec.from_dict(read["spec"]) == found.spec


def test_the_table_fits_a_narrow_terminal(found: Divergence, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = str(found).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "First divergence: layer 1, backward, step 6, gate i*g"
    rows = [line.split() for line in lines if line.split()[1:2] in (["forward"], ["backward"])]
    assert [(row[0], row[1], row[2]) for row in rows] == [
        ("0", "forward", "–"),
        ("0", "backward", "–"),
        ("1", "forward", "–"),
        ("1", "backward", "6"),
        ("2", "forward", "echo"),
        ("2", "backward", "echo"),
    ]
    assert "…" not in str(found)


def test_html_is_escaped(found: Divergence) -> None:
    shown = replace(found, titles=("<b>", "B"), says="a < b")._repr_html_()
    assert "&lt;b&gt;" in shown
    assert "a &lt; b" in shown
    assert "<td>echo</td>" in shown


def test_the_picture_has_a_panel_for_steps_for_growth_and_for_gates(found: Divergence) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.collections import QuadMesh

    figure = plot_divergence(found)
    figure.draw_without_rendering()
    steps, growth, gates, bar = figure.axes
    names = [f"layer {layer} {direction}" for layer, direction in found.spec.passes]
    assert [label.get_text() for label in steps.get_yticklabels()] == names
    assert [label.get_text() for label in gates.get_yticklabels()] == ["f", "o", "i*g"]
    (frame,) = steps.patches
    assert frame.get_xy() == (LAST - 0.5, 3 - 0.5)
    assert "eps of float32" in bar.get_ylabel()
    for panel, errors in ((steps, found.own), (growth, found.growth)):
        (mesh,) = (child for child in panel.get_children() if isinstance(child, QuadMesh))
        np.testing.assert_array_equal(np.ma.getmaskarray(mesh.get_array()), np.isnan(errors))


def test_the_picture_of_one_pass_and_no_gates() -> None:
    pytest.importorskip("matplotlib")
    weights = stack("simple_rnn", num_layers=1, bidirectional=False)
    found = first_divergence(BUILD(weights), made("recurrent kernel transposed", weights))
    figure = plot_divergence(found)
    figure.draw_without_rendering()
    assert len(figure.axes) == 3  # steps, growth and the bar of colours
    assert found.gate == "h"
