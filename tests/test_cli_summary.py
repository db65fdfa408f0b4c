"""`multirnn summary`."""

import json
import re

import pytest
from command_line import LSTM, RNN, run

import multirnn as mr


def test_summary_of_three_units_on_ten_inputs() -> None:
    lines = run("summary", *RNN, "--time", "2").stdout.splitlines()
    assert lines[0] == "RecurrentSpec('simple_rnn', input_size=10, hidden_size=3)"
    assert lines[1].split() == ["layer", "sequence", "last", "state", "parameters"]
    assert re.split("  +", lines[3]) == ["layers.0 (simple_rnn)", "(None, 2, 3)", "h (None, 3)", "42"]
    assert lines[-1] == "parameters: 42 (168 bytes of float32)"


def test_summary_of_a_stack_that_runs_both_ways() -> None:
    found = json.loads(run("summary", *LSTM, "--layers", "2", "--bidirectional", "--dtype", "float64", "--json").stdout)
    spec = mr.RecurrentSpec("lstm", 10, 3, num_layers=2, bidirectional=True, dtype="float64")
    assert mr.RecurrentSpec.from_dict(found["spec"]) == spec
    assert [layer["name"] for layer in found["layers"]] == ["layers.0", "layers.1"]
    assert [layer["sequence"] for layer in found["layers"]] == [[None, None, 6]] * 2
    states = found["layers"][1]["last_state"]
    assert list(states) == ["h forward", "c forward", "h backward", "c backward"]
    assert all(shape == [None, 3] for shape in states.values())
    assert sum(layer["parameters"] for layer in found["layers"]) == found["parameters"] == spec.parameter_count
    assert found["bytes"] == 8 * spec.parameter_count


@pytest.mark.parametrize(
    ("text", "activation"),
    [
        ("relu", "relu"),
        ("elu", mr.Activation("elu", alpha=1.0)),
        ("elu:0.5", mr.Activation("elu", alpha=0.5)),
        ("hard_sigmoid:1/6,0.5", mr.Activation("hard_sigmoid", alpha=1 / 6, beta=0.5)),
        ("hard_sigmoid:0.2,1/2", mr.Activation("hard_sigmoid", alpha=0.2, beta=0.5)),
    ],
)
def test_activations_with_numbers(text: str, activation: str | mr.Activation) -> None:
    found = json.loads(run("summary", *LSTM, "--activation", text, "--json").stdout)
    assert mr.RecurrentSpec.from_dict(found["spec"]).activation == activation
