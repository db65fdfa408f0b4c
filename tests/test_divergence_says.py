"""What is said of where two layers part: the pattern, its words, and the gate."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from diverging_layers import BUILD, LAST, as_function, edited, made, place_of, planted, stack

import multirnn as mr
from multirnn.adoption import AdoptedLayer, adopt
from multirnn.catalogue import MISTAKES
from multirnn.compare import draw_call
from multirnn.divergence import first_divergence

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
