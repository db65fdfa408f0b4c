"""The table of conventions, held against the frameworks themselves: names, shapes and order, and the function.

Only equality of the functions sees a wrong order of the gates, and only with weights and biases that are random.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from convention_stacks import INVERTED, Arrays, keras_names, stack

import multirnn as mr
from multirnn.cells import CELLS, FORMS, cell_form
from multirnn.conventions import CONVENTIONS
from multirnn.packing import BLOCK, layout
from multirnn.spec import BIASES, DTYPES

HELD = {  # the forms of the biases that each convention has a place for
    "torch": {
        "simple_rnn": {"none", "single", "double"},
        "lstm": {"none", "single", "double"},
        "gru reset after": {"none", "double"},
        "gru reset before": set(),
    },
    "keras": {
        "simple_rnn": {"none", "single"},
        "lstm": {"none", "single"},
        "gru reset after": {"none", "double"},
        "gru reset before": {"none", "single"},
    },
    "onnx": {form: {"none", "double"} for form in FORMS},
    "flax-linen": {
        "simple_rnn": {"single"},
        "lstm": {"single"},
        "gru reset after": {"single"},
        "gru reset before": set(),
    },
    "flax-nnx": {"simple_rnn": {"single"}, "lstm": {"single"}, "gru reset after": {"single"}},
    "keras-cudnn": {"lstm": {"double"}, "gru reset after": {"double"}},
    "haiku": {"simple_rnn": {"single", "double"}, "lstm": {"single"}, "gru reset before": {"single"}},
    "equinox": {"lstm": {"none", "single"}, "gru reset after": {"none", "single"}},
    "tensorflow-v1": {"simple_rnn": {"single"}, "lstm": {"single"}, "gru reset before": {"single"}},
    "textbook": {"simple_rnn": {"none", "single"}},
    "textbook-rows": {"simple_rnn": {"none", "single"}},
}
ONE_WAY = {"haiku", "textbook", "textbook-rows"}  # no bidirectional layers
HELD_FORMS = [
    (convention, form, bias)
    for convention, forms in HELD.items()
    for form, biases in forms.items()
    for bias in sorted(biases)
]


def of(framework: str) -> list[Any]:
    """The forms that a convention holds, as cases of a test."""
    return [
        pytest.param(form, bias, id=f"{form}-{bias}")
        for convention, form, bias in HELD_FORMS
        if convention == framework
    ]


def read_back(arrays: Mapping[str, Any], convention: str, spec: mr.RecurrentSpec) -> mr.Weights:
    return mr.from_arrays(arrays, convention=convention, reset_after=spec.reset_after if spec.cell == "gru" else None)


def representable(weights: mr.Weights, convention: str) -> mr.Weights:
    """The weights with zeros where a convention has no array, and in steps that adding a forget offset does not round."""
    zero = CONVENTIONS[convention].zero.get(weights.spec.form.form, ("nothing",))
    offset = CONVENTIONS[convention].forget_offset
    return mr.Weights(
        weights.spec,
        {
            name: np.round(array * 1024) / 1024 if offset else array * (not name.endswith(zero))
            for name, array in weights.arrays.items()
        },
    )


def drawn_input(spec: mr.RecurrentSpec) -> np.ndarray:
    return np.random.default_rng(2).standard_normal((3, 7, spec.input_size)).astype(spec.dtype)


def assert_reference(output: np.ndarray, weights: mr.Weights, x: np.ndarray) -> None:
    """That a framework's output is that of the NumPy backend in float64."""
    expected = mr.build(weights.astype("float64"), "numpy")(x.astype("float64")).sequence
    assert mr.difference(output, expected).normwise <= mr.tolerance(output.dtype)


# --- There and back ------------------------------------------------------------------------------------------------------


def test_what_each_convention_holds() -> None:
    assert set(CONVENTIONS) == set(HELD)
    for name, convention in CONVENTIONS.items():
        for form in FORMS:
            both = name not in ONE_WAY
            held = {bias for bias in BIASES if convention.refuses(stack(form, bias, bidirectional=both)) is None}
            assert held == HELD[name].get(form, set()), (name, form)


@pytest.mark.parametrize(("convention", "form", "bias"), HELD_FORMS)
def test_arrays_come_back_exactly(convention: str, form: str, bias: str) -> None:
    for num_layers in (1, 3):
        for bidirectional in (False,) if convention in ONE_WAY else (False, True):
            for dtype in DTYPES:
                spec = stack(form, bias, num_layers=num_layers, bidirectional=bidirectional, dtype=dtype)
                weights = representable(mr.initialise(spec, 1), convention)
                arrays = mr.to_arrays(weights, convention=convention)
                zero = CONVENTIONS[convention].zero.get(form, ())
                left_out = sum(a.size for name, a in weights.arrays.items() if name.rpartition(".")[2] in zero)
                assert sum(array.size for array in arrays.values()) == spec.parameter_count - left_out
                described = [(place.name, place.shape) for place in layout(spec, convention=convention)]
                assert described == [(name, array.shape) for name, array in arrays.items()]
                assert {str(array.dtype) for array in arrays.values()} == {dtype}
                assert read_back(arrays, convention, spec) == weights
                assert read_back(dict(reversed(arrays.items())), convention, spec) == weights


@pytest.mark.parametrize("hidden", [BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 3])
@pytest.mark.parametrize("convention", ["torch", "keras", "onnx"])
def test_arrays_of_more_columns_than_are_transposed_at_a_time(convention: str, hidden: int) -> None:
    weights = mr.initialise(mr.RecurrentSpec("gru", hidden + 2, hidden, bias="double"), 1)
    arrays = mr.to_arrays(weights, convention=convention)
    assert read_back(arrays, convention, weights.spec) == weights
    first = weights.arrays["layers.0.forward.weight_ih"]
    if convention == "keras":
        expected = np.concatenate([first[gate].T for gate in (1, 0, 2)], axis=1)
        assert np.array_equal(arrays["gru/gru_cell/kernel"], expected)


def test_what_is_handed_out_is_the_callers() -> None:
    weights = mr.initialise(mr.RecurrentSpec("simple_rnn", 5, 4))
    before = {name: array.copy() for name, array in weights.arrays.items()}
    for convention in ("torch", "keras", "flax-linen"):
        for array in mr.to_arrays(weights, convention=convention).values():
            assert array.flags.c_contiguous
            array[:] = 7
    assert all(np.array_equal(array, before[name]) for name, array in weights.arrays.items())


@pytest.mark.parametrize("cell", CELLS)
def test_what_no_array_tells_is_taken_as_said(cell: str) -> None:
    gates = {} if cell == "simple_rnn" else {"recurrent_activation": mr.Activation("hard_sigmoid", 0.2, 0.5)}
    spec = mr.RecurrentSpec(cell, 5, 4, activation="relu", **gates)
    weights = mr.initialise(spec)
    assert mr.from_arrays(
        mr.to_arrays(weights, convention="torch"), convention="torch", activation="relu", **gates
    ) == (weights)


# --- Torch ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "bias"), of("torch"))
def test_torch_has_these_arrays_and_computes_this_function(form: str, bias: str) -> None:
    torch = pytest.importorskip("torch")
    spec = stack(form, bias)
    weights = mr.initialise(spec, 1)
    arrays = mr.to_arrays(weights, convention="torch")
    kind = {"simple_rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[spec.cell]
    module = kind(5, 4, num_layers=2, bidirectional=True, bias=bias != "none", batch_first=True)
    native = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    if bias == "single":  # PyTorch's two, of which one stays zero
        native = {name: shape for name, shape in native.items() if "bias_hh" not in name}
        torch.nn.init.zeros_(module.bias_hh_l0)
        for name, value in module.named_parameters():
            if "bias_hh" in name:
                torch.nn.init.zeros_(value)
    assert [(name, array.shape) for name, array in arrays.items()] == list(native.items())

    module.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()}, strict=bias != "single")
    x = drawn_input(spec)
    with torch.no_grad():
        assert_reference(module(torch.tensor(x))[0].numpy(), weights, x)


# --- Keras ---------------------------------------------------------------------------------------------------------------


def keras_model(keras: Any, spec: mr.RecurrentSpec) -> Any:
    kind = {"simple_rnn": keras.layers.SimpleRNN, "lstm": keras.layers.LSTM, "gru": keras.layers.GRU}[spec.cell]
    options = {"reset_after": spec.reset_after} if spec.cell == "gru" else {}
    layers = [
        kind(spec.hidden_size, return_sequences=True, use_bias=spec.bias != "none", **options)
        for _ in range(spec.num_layers)
    ]
    if spec.bidirectional:
        layers = [keras.layers.Bidirectional(layer) for layer in layers]
    return keras.Sequential([keras.Input((None, spec.input_size)), *layers])


def without_counters(path: str) -> str:
    """Keras numbers a name after the first of its kind in a process."""
    return re.sub(r"_\d+(?=/)", "", path)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("form", "bias"), of("keras"))
def test_keras_has_these_arrays_and_computes_this_function(form: str, bias: str, bidirectional: bool) -> None:
    keras = pytest.importorskip("keras")
    spec = stack(form, bias, bidirectional=bidirectional)
    weights = mr.initialise(spec, 1)
    arrays = mr.to_arrays(weights, convention="keras")
    model = keras_model(keras, spec)
    assert [(without_counters(name), array.shape) for name, array in arrays.items()] == [
        (without_counters(v.path.partition("/")[2]), tuple(v.shape)) for v in model.weights
    ]

    model.set_weights(list(arrays.values()))
    x = drawn_input(spec)
    assert_reference(keras.ops.convert_to_numpy(model(x)), weights, x)
    by_path = {v.path: keras.ops.convert_to_numpy(v) for v in model.weights}  # sequential_3/lstm_7/…
    assert read_back(by_path, "keras", spec) == weights


# --- Flax ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("form", "bias"), of("flax-linen"))
def test_flax_has_these_arrays_and_computes_this_function(
    form: str, bias: str, bidirectional: bool, num_layers: int
) -> None:
    linen = pytest.importorskip("flax.linen")
    traverse = pytest.importorskip("flax.traverse_util")
    jax = pytest.importorskip("jax")
    spec = stack(form, bias, bidirectional=bidirectional, num_layers=num_layers)
    weights = mr.initialise(spec, 1)
    arrays = mr.to_arrays(weights, convention="flax-linen")
    kind = {"simple_rnn": linen.SimpleCell, "lstm": linen.LSTMCell, "gru": linen.GRUCell}[spec.cell]

    def one() -> Any:
        run = linen.RNN(kind(spec.hidden_size))
        return linen.Bidirectional(run, linen.RNN(kind(spec.hidden_size))) if bidirectional else run

    module = one() if num_layers == 1 else linen.Sequential([one() for _ in range(num_layers)])
    x = drawn_input(spec)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    native = {name: leaf.shape for name, leaf in traverse.flatten_dict(shapes, sep="/").items()}
    assert {name: array.shape for name, array in arrays.items()} == native

    tree = traverse.unflatten_dict(arrays, sep="/")
    assert_reference(np.asarray(module.apply({"params": tree}, x)), weights, x)
    assert mr.from_arrays(tree, convention="flax-linen") == weights
    assert mr.from_arrays({"params": tree}, convention="flax-linen") == weights


# --- ONNX ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("form", "bias"), of("onnx"))
def test_onnx_has_these_arrays_and_computes_this_function(form: str, bias: str, bidirectional: bool) -> None:
    """The reference evaluator, which is an oracle for neither lengths nor activations: full rows, the default ones."""
    onnx = pytest.importorskip("onnx")
    reference = pytest.importorskip("onnx.reference")
    spec = stack(form, bias, bidirectional=bidirectional)
    weights = mr.initialise(spec, 1)
    arrays = mr.to_arrays(weights, convention="onnx")
    x = drawn_input(spec)
    sequence = x.transpose(1, 0, 2)
    for layer in range(spec.num_layers):
        names = [name for name in ("W", "R", "B") if f"layers.{layer}.{name}" in arrays]
        node = onnx.helper.make_node(
            {"simple_rnn": "RNN", "lstm": "LSTM", "gru": "GRU"}[spec.cell],
            ["X", *names],
            ["Y"],
            hidden_size=spec.hidden_size,
            direction="bidirectional" if bidirectional else "forward",
            **({"linear_before_reset": int(spec.reset_after)} if spec.cell == "gru" else {}),
            **({"activations": ["Tanh"] * len(spec.directions)} if spec.cell == "simple_rnn" else {}),
        )
        evaluator = reference.ReferenceEvaluator(node)
        fed = {name: arrays[f"layers.{layer}.{name}"] for name in names}
        (y,) = evaluator.run(None, {"X": sequence, **fed})
        sequence = y.transpose(0, 2, 1, 3).reshape(7, 3, -1)  # (time, directions, batch, hidden_size)
    assert_reference(sequence.transpose(1, 0, 2), weights, x)


# --- What a framework's layer is unless told otherwise ---------------------------------------------------------------------


def by_default(convention: str, cell: str) -> list[tuple[str, tuple[int, ...]]]:
    """The arrays of a layer of 5 inputs and 4 units that nobody told anything else."""
    held = CONVENTIONS[convention]
    reset_after = held.default_reset_after if cell == "gru" else True
    form = cell_form(cell, reset_after).form
    spec = stack(form, held.default_bias[form], num_layers=1, bidirectional=False)
    return [(place.name, place.shape) for place in layout(spec, convention=convention)]


@pytest.mark.parametrize("cell", CELLS)
def test_a_layer_of_torch_by_default(cell: str) -> None:
    torch = pytest.importorskip("torch")
    module = {"simple_rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell](5, 4)
    assert [(name, tuple(value.shape)) for name, value in module.named_parameters()] == by_default("torch", cell)


@pytest.mark.parametrize("cell", CELLS)
def test_a_layer_of_keras_by_default(cell: str) -> None:
    keras = pytest.importorskip("keras")
    layer = {"simple_rnn": keras.layers.SimpleRNN, "lstm": keras.layers.LSTM, "gru": keras.layers.GRU}[cell](
        4, name=cell
    )
    layer.build((None, None, 5))
    assert [(v.path, tuple(v.shape)) for v in layer.weights] == by_default("keras", cell)
    if cell == "gru":
        assert layer.reset_after == CONVENTIONS["keras"].default_reset_after


def test_a_gru_of_onnx_by_default() -> None:
    onnx = pytest.importorskip("onnx")
    after = onnx.defs.get_schema("GRU").attributes["linear_before_reset"].default_value.i
    assert bool(after) == CONVENTIONS["onnx"].default_reset_after


# --- As users have them ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ("lstm_9", "lstm_10"),  # by number, not by letter
        ("model/encoder/lstm", "model/encoder/lstm_1"),
        ("sequential_2/lstm_3", "sequential_2/lstm_10"),
        ("reader", "writer"),  # in the order in which they come
        ("writer", "reader"),
    ],
)
def test_keras_layers_under_other_names(names: tuple[str, str]) -> None:
    weights = mr.initialise(stack("lstm", "single", hidden_size=5), 1)  # layers that only their names tell apart
    for both in (True, False):
        spec = replace(weights.spec, bidirectional=both)
        weights = mr.initialise(spec, 1)
        arrays = keras_names(mr.to_arrays(weights, convention="keras"), *names)
        assert mr.from_arrays(arrays, convention="keras") == weights
        if names[0].rpartition("_")[2].isdigit():
            assert mr.from_arrays(dict(reversed(arrays.items())), convention="keras") == weights


def test_a_layer_that_is_not_the_first_of_its_process() -> None:
    weights = mr.initialise(mr.RecurrentSpec("gru", 5, 4), 1)
    arrays = keras_names(mr.to_arrays(weights, convention="keras"), "sequential_4/gru_7")
    assert mr.from_arrays(arrays, convention="keras") == weights


def test_onnx_initialisers_of_one_node() -> None:
    weights = mr.initialise(mr.RecurrentSpec("lstm", 5, 4, bias="double", bidirectional=True), 1)
    arrays = {name.rpartition(".")[2]: a for name, a in mr.to_arrays(weights, convention="onnx").items()}
    assert mr.from_arrays(arrays, convention="onnx") == weights


# --- The meaning of z ------------------------------------------------------------------------------------------------------


def inverted_gru(arrays: Arrays, x: np.ndarray, gate: Any) -> np.ndarray:
    """h' = z * n + (1 - z) * h with the reset before the product, from Keras-shaped arrays; Haiku's form."""
    names = ("kernel", "recurrent_kernel", "bias")
    kernel, recurrent, bias = (np.split(arrays[f"gru/gru_cell/{name}"], 3, axis=-1) for name in names)
    h = np.zeros((len(x), recurrent[0].shape[0]))
    steps = []
    for step in x.transpose(1, 0, 2):
        z = gate(step @ kernel[0] + h @ recurrent[0] + bias[0])
        r = gate(step @ kernel[1] + h @ recurrent[1] + bias[1])
        n = np.tanh(step @ kernel[2] + (r * h) @ recurrent[2] + bias[2])
        h = z * n + (1 - z) * h
        steps.append(h)
    return np.stack(steps, axis=1)


GATES = {
    "sigmoid": lambda v: 1 / (1 + np.exp(-v)),
    mr.Activation("hard_sigmoid", 0.2, 0.5): lambda v: np.clip(0.2 * v + 0.5, 0, 1),
}


@pytest.mark.parametrize("gate", GATES)
def test_a_z_that_weighs_the_new_state(gate: str | mr.Activation) -> None:
    spec = stack(
        "gru reset before",
        "single",
        num_layers=1,
        bidirectional=False,
        recurrent_activation=gate,
        dtype="float64",
    )
    weights = mr.initialise(spec, 1)
    arrays = mr.to_arrays(weights, convention=INVERTED)
    x = drawn_input(spec)
    assert_reference(inverted_gru(arrays, x, GATES[gate]), weights, x)
    assert mr.from_arrays(arrays, convention=INVERTED, recurrent_activation=gate) == weights
    plain = mr.to_arrays(weights, convention="keras")
    signs = {name: np.split(arrays[name] / plain[name], 3, axis=-1) for name in plain}
    assert all([set(block.ravel()) for block in blocks] == [{-1}, {1}, {1}] for blocks in signs.values())


def test_a_z_of_both_biases_and_of_no_gru() -> None:
    for form, bias in (("gru reset after", "double"), ("lstm", "single"), ("simple_rnn", "none")):
        weights = mr.initialise(stack(form, bias), 1)
        arrays = mr.to_arrays(weights, convention=INVERTED)
        assert read_back(arrays, INVERTED, weights.spec) == weights
        for name, plain in mr.to_arrays(weights, convention="keras").items():
            if form == "gru reset after":
                plain[..., : weights.spec.hidden_size] *= -1  # z, the first block, of both biases too
            assert np.array_equal(arrays[name], plain)
