"""Weights: what they accept, how they are drawn, and how the form of their biases changes.

The bounds of the statistical tests are sized for a false alarm below one in a million: sqrt(log(2e6) / 2n) is that of
Dvoretzky, Kiefer and Wolfowitz for the empirical distribution of n numbers, 5.3 deviations that of a normal one.
"""

import copy
import math
import pickle
import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

import multirnn as mr
from multirnn import cells
from multirnn.numerics import draw_call
from multirnn.weights import SCHEMES

SPEC = mr.RecurrentSpec("gru", 5, 4, num_layers=2, bidirectional=True, bias="single")
FORMS = [(form.name, form.reset_after) for form in cells.FORMS.values()]


def drawn(spec: mr.RecurrentSpec = SPEC, seed: int = 3) -> mr.Weights:
    return mr.initialise(spec, seed)


# --- The arrays ----------------------------------------------------------------------------------------------------------


def test_they_are_copied_in_and_cannot_be_written() -> None:
    arrays = {name: np.array(array) for name, array in drawn().arrays.items()}
    weights = mr.Weights(SPEC, arrays)
    arrays["layers.0.forward.weight_ih"][:] = 7
    assert weights == drawn()
    with pytest.raises(ValueError, match="read-only"):
        weights.arrays["layers.0.forward.weight_ih"][0, 0, 0] = 7
    with pytest.raises(TypeError):
        weights.arrays["layers.0.forward.weight_ih"] = arrays["layers.0.forward.weight_ih"]  # type: ignore[index]


def test_they_stand_in_canonical_order_and_in_rows() -> None:
    arrays = {name: np.asfortranarray(array) for name, array in reversed(drawn().arrays.items())}
    weights = mr.Weights(SPEC, arrays)
    assert list(weights.arrays) == list(SPEC.shapes)
    assert all(array.flags.c_contiguous for array in weights.arrays.values())


def test_one_layer_and_direction_by_last_names() -> None:
    weights = drawn()
    at = weights.at(1, "backward")
    assert list(at) == ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]
    assert all(array is weights.arrays[f"layers.1.backward.{name}"] for name, array in at.items())


def test_equal_by_value() -> None:
    weights = drawn()
    assert weights == drawn()
    assert weights != drawn(seed=4)
    assert weights != weights.astype("float64")
    assert weights != SPEC
    other = dict(weights.arrays)
    other["layers.1.backward.bias_hh"] = np.nextafter(other["layers.1.backward.bias_hh"], np.float32(1))
    assert weights != mr.Weights(SPEC, other)
    with pytest.raises(TypeError, match="unhashable"):
        hash(weights)


def test_they_travel() -> None:
    for again in (pickle.loads(pickle.dumps(drawn())), copy.deepcopy(drawn()), copy.copy(drawn())):
        assert again == drawn()
        assert not again.arrays["layers.0.forward.weight_ih"].flags.writeable


def test_astype_widens_exactly_and_narrows_to_nearest() -> None:
    narrow = drawn()
    assert narrow.astype("float64").astype("float32") == narrow
    assert narrow.astype("float64").spec == replace(SPEC, dtype="float64")
    wide = drawn(replace(SPEC, dtype="float64"))
    assert all(
        np.array_equal(array, wide.arrays[name].astype("float32"))
        for name, array in wide.astype("float32").arrays.items()
    )
    with pytest.raises(mr.InvalidSpec, match="dtype must be one of"):
        narrow.astype("float16")


def test_how_they_are_shown() -> None:
    assert repr(drawn()) == f"<Weights of {SPEC!r}: {SPEC.parameter_count} parameters>"


RNN = mr.RecurrentSpec("simple_rnn", 5, 4)
RNN_NAMES = "layers.0.forward.weight_ih, layers.0.forward.weight_hh, layers.0.forward.bias_ih"
GOOD = {name: np.zeros(shape, "float32") for name, shape in RNN.shapes.items()}


@pytest.mark.parametrize(
    ("spec", "changes", "sentence"),
    [
        (
            RNN,
            {"layers.0.forward.bias_ih": None},
            f"no array for layers.0.forward.bias_ih, which {RNN!r} has",
        ),
        (
            replace(SPEC, num_layers=1),
            dict.fromkeys(GOOD),
            "no array for layers.0.forward.weight_ih, layers.0.forward.weight_hh, layers.0.forward.bias_ih, "
            "layers.0.forward.bias_hh, layers.0.backward.weight_ih, layers.0.backward.weight_hh and 2 more, "
            f"which {replace(SPEC, num_layers=1)!r} has",
        ),
        (
            RNN,
            {"layers.0.forward.bias_hh": np.zeros((1, 4), "float32")},
            f"{RNN!r} has no parameter layers.0.forward.bias_hh; it has {RNN_NAMES}",
        ),
        (
            RNN,
            {"layers.0.forward.weight_ih": np.zeros((1, 5, 4), "float32")},
            "layers.0.forward.weight_ih must have the shape (1, 4, 5), not (1, 5, 4)",
        ),
        (
            RNN,
            {"layers.0.forward.weight_hh": np.zeros((1, 4, 4))},
            "layers.0.forward.weight_hh must be float32, as the spec says, not float64; convert it first",
        ),
        (
            RNN,
            {"layers.0.forward.weight_hh": np.zeros((1, 4, 4), ">f4")},
            "layers.0.forward.weight_hh must be float32, as the spec says, not >f4; convert it first",
        ),
    ],
)
def test_arrays_that_are_not_the_specs_are_refused_with_a_sentence(
    spec: mr.RecurrentSpec, changes: dict[str, np.ndarray | None], sentence: str
) -> None:
    arrays = {name: array for name, array in (GOOD | changes).items() if array is not None}
    with pytest.raises(mr.InvalidWeights, match=f"^{re.escape(sentence)}$") as caught:
        mr.Weights(spec, arrays)
    assert isinstance(caught.value, ValueError)


# --- Drawing -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
def test_one_seed_gives_one_set_of_weights(scheme: str) -> None:
    wide = mr.initialise(replace(SPEC, dtype="float64"), 3, scheme)
    assert mr.initialise(SPEC, 3, scheme) == mr.initialise(SPEC, np.random.default_rng(3), scheme)
    assert mr.initialise(SPEC, 3, scheme) == wide.astype("float32")
    assert mr.initialise(SPEC, 4, scheme) != mr.initialise(SPEC, 3, scheme)
    drawn_arrays = [array.tobytes() for array in wide.arrays.values() if array.any()]
    assert len(set(drawn_arrays)) == len(drawn_arrays)


def test_the_default_is_torchs() -> None:
    assert mr.initialise(SPEC) == mr.initialise(SPEC, 0, "torch")


def test_a_scheme_that_there_is_not() -> None:
    with pytest.raises(mr.InvalidSpec, match=r"^no initialisation scheme 'glorot'; there are torch, keras, flax$"):
        mr.initialise(SPEC, 0, "glorot")


# Sizes at which no two schemes have like input weights: U(0.089), U(0.105), N(0.180).
LSTM = mr.RecurrentSpec("lstm", 31, 127)


def uniform(bound: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: np.clip((x + bound) / (2 * bound), 0, 1)


def truncated_normal(deviation: float) -> Callable[[np.ndarray], np.ndarray]:
    """Of this deviation after it was cut at two of those before the cut (0.8796 of it is left)."""
    below = np.vectorize(lambda x: 0.5 * (1 + math.erf(x / math.sqrt(2))))
    return lambda x: np.clip((below(x * 0.8796256610342398 / deviation) - below(-2)) / (below(2) - below(-2)), 0, 1)


def assert_distributed(
    values: np.ndarray, distribution: Callable[[np.ndarray], np.ndarray], deviation: float, most: float
) -> None:
    values = np.sort(values.ravel().astype("float64"))
    n = values.size
    assert abs(values).max() <= most * (1 + np.finfo("float32").eps)
    assert abs(values.mean()) < 5.3 * deviation / math.sqrt(n)
    assert abs(values.var() / deviation**2 - 1) < 5.3 * math.sqrt(2 / n)  # a kurtosis of at most 3
    ranks = np.arange(1, n + 1) / n
    assert abs(distribution(values) - ranks).max() < math.sqrt(math.log(2e6) / (2 * n)) + 1 / n


def assert_uniform(values: np.ndarray, bound: float) -> None:
    assert_distributed(values, uniform(bound), bound / math.sqrt(3), bound)


def assert_orthonormal_columns(matrix: np.ndarray) -> None:
    identity = np.eye(matrix.shape[1], dtype=matrix.dtype)
    assert mr.difference(matrix.T @ matrix, identity).normwise <= mr.tolerance(matrix.dtype)


def assert_drawn_as_torch_does(weights: mr.Weights) -> None:
    at = weights.at(0, "forward")
    assert_uniform(at["weight_ih"], 1 / math.sqrt(127))
    assert_uniform(at["weight_hh"], 1 / math.sqrt(127))
    assert_uniform(np.concatenate([array.ravel() for name, array in at.items() if "bias" in name]), 1 / math.sqrt(127))


def assert_drawn_as_keras_does(weights: mr.Weights) -> None:
    at = weights.at(0, "forward")
    assert_uniform(at["weight_ih"], math.sqrt(6 / (31 + 4 * 127)))
    # (hidden_size, gates * hidden_size) has orthonormal rows. A gate alone is no orthogonal matrix, whatever its length.
    assert_orthonormal_columns(at["weight_hh"].reshape(4 * 127, 127))
    for gate in at["weight_hh"]:
        square = gate.T @ gate
        identity = np.eye(127, dtype=square.dtype) * np.trace(square) / 127
        assert mr.difference(square, identity.astype(square.dtype)).normwise > mr.tolerance(square.dtype)
    assert_zero_but_the_forget_bias(at, 1)


def assert_drawn_as_flax_does(weights: mr.Weights) -> None:
    at = weights.at(0, "forward")
    deviation = math.sqrt(1 / 31)
    assert_distributed(at["weight_ih"], truncated_normal(deviation), deviation, 2 * deviation / 0.8796256610342398)
    for gate in at["weight_hh"]:
        assert_orthonormal_columns(gate)
    assert_zero_but_the_forget_bias(at, 0)


def assert_zero_but_the_forget_bias(at: dict[str, np.ndarray], forget: float) -> None:
    assert {gate: set(bias.tolist()) for gate, bias in zip("ifgo", at["bias_ih"], strict=True)} == {
        "i": {0},
        "f": {forget},
        "g": {0},
        "o": {0},
    }
    assert "bias_hh" not in at


AS = {
    "torch": assert_drawn_as_torch_does,
    "keras": assert_drawn_as_keras_does,
    "flax": assert_drawn_as_flax_does,
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_each_scheme_draws_its_own_distribution(scheme: str, dtype: str) -> None:
    AS[scheme](mr.initialise(replace(LSTM, dtype=dtype), 0, scheme))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_and_is_not_taken_for_another(scheme: str) -> None:
    weights = mr.initialise(LSTM, 0, scheme)
    for other in set(SCHEMES) - {scheme}:
        with pytest.raises(AssertionError):
            AS[other](weights)


def test_so_does_torch_itself() -> None:
    torch = pytest.importorskip("torch")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = torch.nn.LSTM(31, 127)
    arrays = {name: value.numpy() for name, value in module.state_dict().items()}
    assert_drawn_as_torch_does(mr.from_arrays(arrays, convention="torch", cell="lstm"))


def test_so_does_keras_itself() -> None:
    keras = pytest.importorskip("keras")
    seeds = {
        "kernel_initializer": keras.initializers.GlorotUniform(0),
        "recurrent_initializer": keras.initializers.Orthogonal(seed=0),
    }
    assert [keras.layers.LSTM(1).get_config()[name]["class_name"] for name in seeds] == ["GlorotUniform", "Orthogonal"]
    layer = keras.layers.LSTM(127, **seeds)
    layer.build((None, None, 31))
    arrays = {v.path: keras.ops.convert_to_numpy(v) for v in layer.weights}
    assert_drawn_as_keras_does(mr.from_arrays(arrays, convention="keras"))


def test_so_does_flax_itself() -> None:
    linen = pytest.importorskip("flax.linen")
    jax = pytest.importorskip("jax")
    tree = linen.RNN(linen.LSTMCell(127)).init(jax.random.key(0), np.zeros((1, 1, 31), "float32"))["params"]
    assert_drawn_as_flax_does(mr.from_arrays(tree, convention="flax-linen"))


def test_upper_layers_are_drawn_by_their_own_sizes() -> None:
    spec = mr.RecurrentSpec("simple_rnn", 31, 127, num_layers=2, bidirectional=True)
    by_scheme = {scheme: mr.initialise(spec, 0, scheme) for scheme in SCHEMES}
    deviation = math.sqrt(1 / (2 * 127))
    for direction in spec.directions:
        torch, keras, flax = (by_scheme[scheme].at(1, direction)["weight_ih"] for scheme in ("torch", "keras", "flax"))
        assert_uniform(torch, 1 / math.sqrt(127))
        assert_uniform(keras, math.sqrt(6 / (2 * 127 + 127)))
        assert_distributed(flax, truncated_normal(deviation), deviation, 2 * deviation / 0.8796256610342398)


@pytest.mark.parametrize("scheme", ["keras", "flax"])
def test_an_orthogonal_matrix_points_everywhere(scheme: str) -> None:
    """Uniform over all such matrices: the trace has mean 0 and variance at most 1. A bare QR leans to one side."""
    spec = mr.RecurrentSpec("gru", 2, 5, dtype="float64")
    traces = [np.trace(mr.initialise(spec, seed, scheme).at(0, "forward")["weight_hh"][0]) for seed in range(400)]
    assert abs(np.mean(traces)) < 5.3 / math.sqrt(len(traces))


@pytest.mark.parametrize("scheme", ["keras", "flax"])
@pytest.mark.parametrize(("cell", "reset_after"), [("simple_rnn", True), ("gru", True), ("gru", False)])
def test_only_the_lstm_has_a_bias_that_is_not_zero(scheme: str, cell: str, reset_after: bool) -> None:
    arrays = mr.initialise(mr.RecurrentSpec(cell, 5, 4, bias="double", reset_after=reset_after), 0, scheme).arrays
    assert not any(array.any() for name, array in arrays.items() if "bias" in name)


def test_of_two_forget_biases_one_is_one() -> None:
    arrays = mr.initialise(mr.RecurrentSpec("lstm", 5, 4, bias="double"), 0, "keras").at(0, "forward")
    assert (arrays["bias_ih"] + arrays["bias_hh"]).tolist() == [[0] * 4, [1] * 4, [0] * 4, [0] * 4]


# --- The form of the biases ----------------------------------------------------------------------------------------------


def assert_same_function(one: mr.Weights, other: mr.Weights) -> None:
    """Outputs, states, and what two forms of the biases share of the gradients."""
    x, state, lengths = draw_call(one.spec, 5)
    a, b = (mr.build(weights, "numpy") for weights in (one, other))
    bound = mr.tolerance("float64")
    output, expected = (layer(x, state, lengths=lengths) for layer in (a, b))
    assert mr.difference(output.sequence, expected.sequence).normwise <= bound
    assert mr.difference(output.state.h, expected.state.h).normwise <= bound
    gradients, wanted = (layer.vjp(x, state, lengths=lengths, cotangent=expected) for layer in (a, b))
    assert mr.difference(gradients.x, wanted.x).normwise <= bound
    name = "layers.0.backward.weight_hh"
    assert mr.difference(gradients.weights[name], wanted.weights[name]).normwise <= bound


def stack(cell: str, reset_after: bool, bias: str) -> mr.Weights:
    spec = mr.RecurrentSpec(
        cell, 5, 4, num_layers=2, bidirectional=True, bias=bias, reset_after=reset_after, dtype="float64"
    )
    return mr.initialise(spec, 7)


@pytest.mark.parametrize(("cell", "reset_after"), FORMS)
def test_folding_keeps_the_function(cell: str, reset_after: bool) -> None:
    double = stack(cell, reset_after, "double")
    folded = mr.fold_biases(double)
    assert folded.spec == replace(double.spec, bias="single")
    assert folded != double
    assert_same_function(folded, double)


@pytest.mark.parametrize(("cell", "reset_after"), FORMS)
@pytest.mark.parametrize("bias", ["none", "single"])
def test_splitting_keeps_the_function(cell: str, reset_after: bool, bias: str) -> None:
    weights = stack(cell, reset_after, bias)
    split = mr.split_biases(weights)
    assert split.spec == replace(weights.spec, bias="double")
    assert_same_function(split, weights)


@pytest.mark.parametrize(("cell", "reset_after"), FORMS)
def test_splitting_and_folding_again_is_exact(cell: str, reset_after: bool) -> None:
    single = stack(cell, reset_after, "single")
    assert mr.fold_biases(mr.split_biases(single)) == single
    assert mr.fold_biases(single) == single
    double = stack(cell, reset_after, "double")
    assert mr.split_biases(double) == double


def test_folding_adds_each_pair_but_leaves_the_candidates() -> None:
    double = stack("gru", True, "double").at(1, "backward")
    folded = mr.fold_biases(stack("gru", True, "double")).at(1, "backward")
    assert np.array_equal(folded["bias_ih"][:2], (double["bias_ih"] + double["bias_hh"])[:2])
    assert np.array_equal(folded["bias_ih"][2], double["bias_ih"][2])
    assert np.array_equal(folded["bias_hh"], double["bias_hh"][2:])


NO_BIASES = 'bias="none" leaves no biases to fold; split_biases adds zero biases'
CANDIDATE = (
    "the recurrent candidate bias d_n of a reset-after GRU cannot be folded: the reset gate multiplies it, "
    "n = a(W_n x + b_n + r * (U_n h + d_n)), and it does not multiply b_n"
)


@pytest.mark.parametrize(("cell", "reset_after"), FORMS)
def test_there_is_nothing_to_fold_without_biases(cell: str, reset_after: bool) -> None:
    with pytest.raises(mr.Unrepresentable, match=f"^{re.escape(NO_BIASES)}$"):
        mr.fold_biases(stack(cell, reset_after, "none"))


@pytest.mark.parametrize("bias", ["single", "double"])
def test_a_candidates_bias_under_the_reset_gate_cannot_be_folded(bias: str) -> None:
    weights = stack("gru", True, bias)
    with pytest.raises(mr.Unrepresentable, match=f"^{re.escape(CANDIDATE)}$"):
        mr.fold_biases(weights, candidate=True)
    zero = mr.initialise(weights.spec, 7, "flax")
    assert not mr.fold_biases(zero, candidate=True).arrays["layers.1.backward.bias_hh"].any()


@pytest.mark.parametrize(("cell", "reset_after"), [form for form in FORMS if form != ("gru", True)])
def test_any_other_candidates_bias_can(cell: str, reset_after: bool) -> None:
    double = stack(cell, reset_after, "double")
    assert mr.fold_biases(double, candidate=True) == mr.fold_biases(double)
