"""What a divergence says: the probe that shows it, where it parts, and the gate."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from diverging_layers import (
    BUILD,
    LAST,
    as_function,
    assert_headline_and_table_agree,
    edited,
    made,
    place_of,
    planted,
    stack,
)

import multirnn as mr
from multirnn.adoption import AdoptedLayer, adopt
from multirnn.diagnosis import first_divergence
from multirnn.mistakes import MISTAKES, mistakes_for
from multirnn.numerics import draw_call

# --- The probe that shows it -----------------------------------------------------------------------------------------

SHOWN = {
    "gates i g f o": ("step", "Given the same input and states"),
    "recurrent kernel transposed": ("step", "Given the same input and states"),
    "initial state ignored": ("step", "in layer 0 forward at step 0"),
    "initial c ignored": ("step", "in layer 0 forward at step 0"),
    "initial state forward alone": ("step", "in layer 0 backward at step 6"),
    "initial state in the lowest layer alone": ("step", "the output of layer 0, may differ already"),
    "initial state of the lowest layer in all": ("step", "in layer 1 forward at step 0"),
    "initial states by direction": ("step", "in layer 0 backward at step 6"),
    "final states backward first": ("final state", "the final state of layer 0 forward does not"),
    "final h and c swapped": ("final state", "the final state of layer 0 forward does not"),
    "reverse state at the wrong end": ("final state", "the final state of layer 0 backward does not"),
    "reverse output not flipped": ("call in part", "the output of layer 0, may differ already"),
    "reverse input not flipped": ("call in part", "in layer 0 backward at step 5, after 1 that agree"),
    "backward direction runs forward": ("call in part", "in layer 0 backward at step 5, after 1 that agree"),
    "runs backward in time": ("call in part", "in layer 0 forward at step 1, after 1 that agree"),
    "runs backward in time, outputs flipped back": ("call in part", "in layer 0 forward at step 1"),
    "output backward‖forward": ("output", "All final states agree; outputs do not"),
    "backward‖forward between layers": ("step", "the output of layer 0, may differ already"),
    "directions interleaved": ("step", "the output of layer 0, may differ already"),
    "output before the step": ("step", "the output of layer 0, may differ already"),
    "batch and time swapped": ("rows", "but not alone"),
    "directions mixed with rows": ("rows", "alone than in the batch"),
    "padding run through": ("call in part", "Full rows agree. With lengths"),
    "mask one step too long": ("call in part", "Full rows agree. With lengths"),
    "mask one step too short": ("call in part", "Full rows agree. With lengths"),
    "empty rows run for one step": ("call in part", "Full rows agree. With lengths"),
    "last output repeated at padding": ("output", "outputs at padding do not"),
    "final state at the padded end": ("call in part", "in layer 1 forward at step 0"),
    "gradient of the recurrent kernel missing": ("gradient", "the gradient of layers.1.forward.weight_hh does not"),
    "gradient of the biases doubled": ("gradient", "the first to differ in the backward pass"),
    "gradient truncated half-way": ("gradient", "the first to differ in the backward pass"),
}


@pytest.mark.parametrize("name", SHOWN)
def test_it_comes_from_the_probe_that_shows_it(name: str) -> None:
    weights = stack("lstm", bias="double")
    probe, words = SHOWN[name]
    found = first_divergence(BUILD(weights), made(name, weights), seed=4)
    assert (found.kind, found.probe) == ("mistake", probe)
    assert words in found.says
    assert found.layer is not None


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_headline_and_table_never_contradict_each_other(cell: str) -> None:
    """Of every known mistake, as a layer and as a function."""
    weights = stack(cell)
    for mistake in mistakes_for(weights.spec):
        wrong = mistake.realise(BUILD, weights)
        for b in (wrong, adopt(as_function(wrong), spec=weights.spec)):
            assert_headline_and_table_agree(first_divergence(BUILD(weights), b))


def test_swapped_final_states_part_at_their_last_step() -> None:
    """Layers and directions swapped: the headline said step 0 and the table 6."""
    weights = stack("lstm")
    found = first_divergence(BUILD(weights), made("final states by direction", weights))
    assert found.title == "First divergence: layer 0, backward, step 0"
    assert found.parting == ((0, "backward", 0), (1, "forward", LAST))
    assert_headline_and_table_agree(found)


def test_swapped_final_states_of_a_single_layer_part_at_their_last_step() -> None:
    weights = stack("gru", num_layers=1)
    found = first_divergence(BUILD(weights), as_function(made("final states backward first", weights)))
    assert found.title == f"First divergence: layer 0, forward, step {LAST}"
    assert found.parting == ((0, "forward", LAST), (0, "backward", 0))
    assert_headline_and_table_agree(found)


@pytest.mark.parametrize("name", ["reverse output not flipped", "output before the step", "directions interleaved"])
def test_outputs_of_a_single_layer(name: str) -> None:
    weights = stack("gru", num_layers=1)
    found = first_divergence(BUILD(weights), made(name, weights))
    assert (found.probe, found.quantity) == ("output", "output")
    assert "All final states agree; outputs do not" in found.says


def test_a_state_swapped_in_one_pass() -> None:
    weights = stack("lstm")
    wrong, place = planted(MISTAKES["initial h and c swapped"], weights, 2, *draw_call(weights.spec)[:2])
    found = first_divergence(BUILD(weights), wrong)
    assert place_of(found) == place


def test_what_is_not_a_function() -> None:
    weights = stack("gru")
    right, rng = BUILD(weights), np.random.default_rng(0)

    def dropped(x: np.ndarray, h0: np.ndarray) -> Any:
        y, (h,) = as_function(right)(x, h0)
        return y * (rng.random(y.shape) > 0.5).astype(y.dtype), h

    found = first_divergence(right, dropped)
    assert (found.probe, *place_of(found)) == ("repetition", None, None, None)
    assert "draws random numbers" in found.says


def test_what_is_not_a_number() -> None:
    weights = stack("gru")

    def broken(x: np.ndarray, h0: np.ndarray) -> Any:
        y, (h,) = as_function(BUILD(weights))(x, h0)
        h[3] = np.nan
        return y, h

    found = first_divergence(BUILD(weights), broken)
    assert (found.kind, *place_of(found)) == ("mistake", 1, "backward", 0)  # where its final state is taken
    assert json.loads(found.to_json())["values"][1] is None


def test_lengths_of_a_side_that_is_not_known_by_its_weights() -> None:
    weights = stack("simple_rnn", bidirectional=False)
    right = BUILD(weights)

    class Hidden:
        spec = weights.spec

        def __call__(self, x: Any, state: Any = None, *, lengths: Any = None) -> mr.Output:
            return right(x, state, lengths=lengths)

    found = first_divergence(AdoptedLayer(Hidden()), made("padding run through", weights))
    assert (found.probe, found.layer) == ("call in part", 0)


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
    assert "pass an initial state to see it" in found.says


def test_a_call_that_b_does_not_take() -> None:
    weights = stack("gru")

    def short(x: np.ndarray, h0: np.ndarray) -> Any:
        return as_function(BUILD(weights))(x[:, 1:], h0)

    found = first_divergence(BUILD(weights), short)
    assert (found.kind, found.probe, found.layer) == ("mistake", "call", None)
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
    assert "cannot be told from calls" in found.says
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
    assert "is not linear along" in found.says


def test_gates_that_are_put_together_in_another_way() -> None:
    weights = stack("lstm")
    relu = mr.Weights(replace(weights.spec, activation="relu"), weights.arrays)
    found = first_divergence(BUILD(weights), BUILD(relu))
    assert (found.probe, found.gate) == ("step", "g")
