"""The strategies: what they draw, that the gates stay open, and what examples shrink to."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st

import multirnn as mr
from multirnn.activations import ACTIVATIONS, Activation
from multirnn.cells import CELLS
from multirnn.spec import BIASES, DTYPES
from multirnn.testing import strategies as rnn

REPEATABLE = settings(
    max_examples=200,
    derandomize=True,
    database=None,
    deadline=None,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)
SIMPLEST = mr.RecurrentSpec("simple_rnn", input_size=1, hidden_size=1, bias="none")


def drawn(strategy: st.SearchStrategy, examples: int = 200) -> list:
    """What a strategy gives, the same in every run."""
    found = []

    @settings(REPEATABLE, max_examples=examples)
    @given(strategy)
    def draw(example) -> None:
        found.append(example)

    draw()
    return found


# --- Specs -----------------------------------------------------------------------------------------------------------


def test_specs_are_of_every_kind() -> None:
    found = drawn(rnn.specs(), 500)
    for field, values in {
        "cell": CELLS,
        "num_layers": (1, 2, 3),
        "bidirectional": (False, True),
        "bias": BIASES,
        "reset_after": (False, True),
        "dtype": DTYPES,
        "hidden_size": range(1, 14),
        "input_size": range(1, 7),
    }.items():
        assert {getattr(spec, field) for spec in found} == set(values), field
    assert {Activation.of(spec.activation).name for spec in found} == set(ACTIVATIONS)
    assert len({spec.recurrent_activation for spec in found}) == 3


def test_a_field_is_one_value_or_several() -> None:
    found = drawn(rnn.specs(cell="gru", bias=["double", "none"], num_layers=(2, 4), hidden_size=5, dtype="float64"))
    assert {(spec.cell, spec.hidden_size, spec.dtype) for spec in found} == {("gru", 5, "float64")}
    assert {spec.bias for spec in found} == {"double", "none"}
    assert {spec.num_layers for spec in found} == {2, 4}
    relu = Activation("elu", 0.5)
    assert {spec.activation for spec in drawn(rnn.specs(activation=relu), 20)} == {relu}


def test_what_describes_no_layer_is_left_out() -> None:
    assert {spec.cell for spec in drawn(rnn.specs(reset_after=False), 50)} == {"gru"}
    assert {spec.cell for spec in drawn(rnn.specs(recurrent_activation="tanh"), 50)} == {"lstm", "gru"}
    with pytest.raises(mr.InvalidSpec, match="reset_after=False describes a form of the GRU"):
        drawn(rnn.specs(cell="lstm", reset_after=False))
    with pytest.raises(mr.InvalidSpec, match="hidden_size must be a positive integer, not 0"):
        drawn(rnn.specs(hidden_size=0))


class Picky:
    """Takes one of all combinations, none of whose fields has its default."""

    name = "picky"
    differentiable = False

    def refuses(self, spec: mr.RecurrentSpec) -> str | None:
        wanted = replace(spec, cell="gru", reset_after=True, num_layers=2, bidirectional=True, bias="double")
        wanted = replace(wanted, activation="softsign", recurrent_activation="tanh", dtype="float64")
        return None if spec == wanted else f"it takes {wanted!r} alone"

    def build(self, weights: mr.Weights, *, device: str | None = None) -> mr.Layer:
        raise AssertionError("drawing builds nothing")

    read = versions = build


def test_a_backend_is_asked_before_drawing_so_that_nothing_is_drawn_in_vain() -> None:
    @settings(REPEATABLE, suppress_health_check=[])
    @given(rnn.specs(backend=Picky()))
    def accepted(spec: mr.RecurrentSpec) -> None:
        assert Picky().refuses(spec) is None

    accepted()
    with pytest.raises(mr.Unsupported, match=r"backend 'picky' refuses all of these specs, .* alone"):
        drawn(rnn.specs(cell="lstm", backend=Picky()))


def test_a_backend_is_drawn_for_by_its_name() -> None:
    pytest.importorskip("torch")
    found = drawn(rnn.specs(backend="torch"))
    assert not [reason for spec in found if (reason := mr.backend("torch").refuses(spec))]
    assert {(spec.cell, spec.activation) for spec in found} == {
        ("simple_rnn", "tanh"),
        ("simple_rnn", "relu"),
        ("lstm", "tanh"),
        ("gru", "tanh"),
    }
    with pytest.raises(mr.UnknownBackend, match="did you mean 'torch'"):
        drawn(rnn.specs(backend="troch"))


# --- Weights and calls -----------------------------------------------------------------------------------------------


def test_calls_are_of_every_kind_and_fit_the_weights() -> None:
    ragged, stateful, whole, nothing = 0, 0, 0, 0
    for weights, (x, state, lengths) in drawn(rnn.problems(), 120):
        spec = weights.spec
        output = mr.build(weights, "numpy")(x, state, lengths=lengths)
        assert x.dtype == spec.dtype
        assert output.sequence.shape == (*x.shape[:2], spec.output_size)
        stateful += state is not None
        ragged += lengths is not None and len(set(lengths.tolist())) > 1
        nothing += lengths is not None and 0 in lengths
        whole += lengths is not None and x.shape[1] in lengths
    assert min(ragged, stateful, whole, nothing) > 20


def test_sizes_are_as_asked_and_may_be_none() -> None:
    spec = mr.RecurrentSpec("lstm", 3, 4)
    assert {x.shape for x in drawn(rnn.inputs(spec, batch=[0, 2], time=0), 30)} == {(0, 0, 3), (2, 0, 3)}
    for x, state, lengths in drawn(rnn.calls(spec, batch=5, time=7), 30):
        assert x.shape == (5, 7, 3)
        assert state is None or [part.shape for part in state] == [(1, 5, 4)] * 2
        assert lengths is None or (lengths.dtype == np.int64 and lengths.shape == (5,))
    layer = mr.build(spec, "numpy")
    for cotangent in drawn(rnn.cotangents(spec, batch=2, time=3), 5):
        layer.vjp(np.ones((2, 3, 3), "float32"), cotangent=cotangent)


def test_no_example_hides_a_mistake_in_zeros() -> None:
    arrays = [array for weights, call in drawn(rnn.problems(), 50) for array in (*weights.arrays.values(), call.x)]
    assert all(array.all() for array in arrays)


def test_random_weights_are_the_same_for_a_seed_and_apart_in_every_gate() -> None:
    spec = mr.RecurrentSpec("lstm", 3, 5, num_layers=2, bidirectional=True)
    weights = rnn.random_weights(spec, 7)
    assert weights == rnn.random_weights(spec, 7) != rnn.random_weights(spec, 8)
    flat = np.concatenate([array.ravel() for array in weights.arrays.values()])
    assert len(np.unique(flat)) == len(flat)


def preactivations(weights: mr.Weights, x: np.ndarray, state: mr.State | None) -> Iterator[np.ndarray]:
    """What goes into the gates of every layer and direction, `(gates, batch, time, hidden_size)`; of the GRU's candidate
    before the reset gate, which makes it smaller."""
    spec = weights.spec
    outputs: list[np.ndarray] = []
    for place, (layer, direction) in enumerate(spec.passes):
        part, arrays = weights.part(layer, direction), weights.at(layer, direction)
        turn = slice(None, None, -1 if direction == "backward" else 1)
        start = None if state is None else mr.State(*(each[place : place + 1] for each in state if each is not None))
        output = mr.build(part, "numpy")(x[:, turn], start).sequence
        first = np.zeros_like(output[:, :1]) if start is None else start.h[0][:, None]
        previous = np.concatenate([first, output[:, :-1]], axis=1)
        recurrent = np.einsum("ghk,btk->gbth", arrays["weight_hh"], previous)
        if "bias_hh" in arrays:
            recurrent[-len(arrays["bias_hh"]) :] += arrays["bias_hh"][:, None, None]
        bias = arrays["bias_ih"][:, None, None] if "bias_ih" in arrays else 0
        yield np.einsum("ghk,btk->gbth", arrays["weight_ih"], x[:, turn]) + bias + recurrent
        outputs.append(output[:, turn])
        if len(outputs) == len(spec.directions):
            x, outputs = np.concatenate(outputs, axis=2), []


@pytest.mark.parametrize("sizes", [{}, {"input_size": [16, 64], "hidden_size": [16, 64], "activation": "linear"}])
def test_gates_are_neither_saturated_nor_idle(sizes) -> None:
    found = [
        np.abs(part).ravel()
        for weights, (x, state, _) in drawn(rnn.problems(rnn.specs(**sizes)), 80)
        for part in preactivations(weights, x, state)
    ]
    sizes = np.concatenate(found)
    assert np.mean(sizes < 2) > 0.99
    assert sizes.max() < 5
    assert np.median(sizes) > 0.2


# --- Shrinking -------------------------------------------------------------------------------------------------------


def shrunk(strategy: st.SearchStrategy, fails: Callable[..., bool]):
    return find(strategy, fails, settings=settings(REPEATABLE, max_examples=1000))


def test_a_spec_shrinks_to_the_simplest() -> None:
    assert shrunk(rnn.specs(), lambda spec: True) == SIMPLEST


@pytest.mark.parametrize(
    "needed",
    [
        {"cell": "gru"},
        {"cell": "gru", "reset_after": False},
        {"num_layers": 3},
        {"bidirectional": True},
        {"bias": "double"},
        {"dtype": "float64"},
        {"cell": "lstm", "num_layers": 2, "bidirectional": True, "hidden_size": 3},
    ],
    ids=str,
)
def test_a_spec_keeps_what_the_failure_needs_and_nothing_else(needed) -> None:
    found = shrunk(rnn.specs(), lambda spec: all(getattr(spec, name) == value for name, value in needed.items()))
    assert found == replace(SIMPLEST, **needed)


def disagrees(problem, wrong: Callable[[mr.Weights, rnn.Call], mr.Output]) -> bool:
    weights, (x, state, lengths) = problem
    right = mr.build(weights, "numpy")(x, state, lengths=lengths)
    return not np.array_equal(right.sequence, wrong(*problem).sequence)


def test_a_layer_that_forgets_its_initial_state_is_shown_on_one_step_of_one_unit() -> None:
    def forgetful(weights: mr.Weights, call: rnn.Call) -> mr.Output:
        return mr.build(weights, "numpy")(call.x, lengths=call.lengths)

    weights, call = shrunk(rnn.problems(), lambda problem: disagrees(problem, forgetful))
    assert weights.spec == SIMPLEST
    assert call.x.shape == (1, 1, 1)
    assert call.state is not None
    assert call.lengths is None


def test_a_layer_that_runs_padding_through_is_shown_on_one_row_of_one_step() -> None:
    def through(weights: mr.Weights, call: rnn.Call) -> mr.Output:
        return mr.build(weights, "numpy")(call.x, call.state)

    weights, call = shrunk(rnn.problems(), lambda problem: disagrees(problem, through))
    assert weights.spec == SIMPLEST
    assert call.x.shape == (1, 1, 1)
    assert call.state is None
    assert call.lengths.tolist() == [0]


def test_a_transposed_recurrent_matrix_needs_two_units_and_two_steps() -> None:
    def transposed(weights: mr.Weights, call: rnn.Call) -> mr.Output:
        arrays = {
            name: array.swapaxes(1, 2) if name.endswith("weight_hh") else array
            for name, array in weights.arrays.items()
        }
        return mr.build(mr.Weights(weights.spec, arrays), "numpy")(call.x, call.state, lengths=call.lengths)

    weights, call = shrunk(rnn.problems(), lambda problem: disagrees(problem, transposed))
    assert weights.spec == replace(SIMPLEST, hidden_size=2)
    assert (call.x.shape, call.state, call.lengths) == ((1, 2, 1), None, None)


def test_a_failure_says_how_its_weights_are_made_again() -> None:
    @settings(REPEATABLE)
    @given(rnn.weights(SIMPLEST))
    def fails(weights: mr.Weights) -> None:
        raise AssertionError

    with pytest.raises(AssertionError) as failure:
        fails()
    said = "".join(failure.value.__notes__)
    assert "random_weights(" in said
    assert "seed=0" in said


# --- Without Hypothesis ----------------------------------------------------------------------------------------------


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_testing_does_not_load_hypothesis() -> None:
    assert run("import sys, multirnn.testing; print({'hypothesis', 'pytest'} & {*sys.modules})") == "set()"


def test_without_hypothesis_the_sentence_says_what_to_install() -> None:
    missing = """
import sys
sys.modules["hypothesis"] = None
try:
    from multirnn.testing import strategies
except ImportError as error:
    print(type(error).__name__, error)
"""
    assert run(missing) == (
        "MissingFramework the strategies need 'hypothesis', which is not installed: pip install \"multirnn[testing]\""
    )
