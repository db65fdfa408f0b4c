"""The spec is a value: its fields and defaults, its counts and shapes, its forms on paper, and what it refuses."""

import copy
import json
import pickle
import re
from dataclasses import fields
from itertools import product
from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multirnn import Activation, InvalidSpec, MultirnnError, RecurrentSpec
from multirnn.activations import ACTIVATIONS
from multirnn.cells import CELLS, FORMS

numbers = st.floats(min_value=-4, max_value=4)
scales = st.floats(min_value=2**-10, max_value=4)
activations = st.one_of(
    st.sampled_from([name for name in ACTIVATIONS if name != "hard_sigmoid"]),
    st.builds(Activation, st.just("elu"), alpha=scales),
    st.builds(Activation, st.just("hard_sigmoid"), alpha=scales, beta=numbers),
)


@st.composite
def specs(draw: st.DrawFn) -> RecurrentSpec:
    """Any spec that can exist, of sizes that no test here multiplies out."""
    cell = draw(st.sampled_from(list(CELLS)))
    sizes = st.integers(1, 2**40)
    return RecurrentSpec(
        cell,
        draw(sizes),
        draw(sizes),
        num_layers=draw(st.integers(1, 5)),
        bidirectional=draw(st.booleans()),
        bias=draw(st.sampled_from(["", "none", "single", "double"])),
        reset_after=cell != "gru" or draw(st.booleans()),
        activation=draw(activations),
        recurrent_activation="sigmoid" if cell == "simple_rnn" else draw(activations),
        dtype=draw(st.sampled_from(["float32", "float64"])),
    )


# --- Fields, counts, shapes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS)
def test_the_fields_and_their_defaults(cell: str) -> None:
    spec = RecurrentSpec(cell, input_size=10, hidden_size=3)
    assert {field.name: getattr(spec, field.name) for field in fields(spec)} == {
        "cell": cell,
        "input_size": 10,
        "hidden_size": 3,
        "num_layers": 1,
        "bidirectional": False,
        "bias": "double" if cell == "gru" else "single",
        "reset_after": True,
        "activation": "tanh",
        "recurrent_activation": "sigmoid",
        "dtype": "float32",
    }


def test_the_reset_before_gru_has_single_biases_by_default() -> None:
    assert RecurrentSpec("gru", 10, 3, reset_after=False).bias == "single"


COUNTS = {  # none, single, double; 10 inputs, 3 units
    ("simple_rnn", True): (39, 42, 45),
    ("lstm", True): (156, 168, 180),
    ("gru", True): (117, 129, 135),
    ("gru", False): (117, 126, 135),
}


@pytest.mark.parametrize(("cell", "reset_after"), COUNTS)
def test_the_counts_that_every_backend_has_to_reach(cell: str, reset_after: bool) -> None:
    counts = [
        RecurrentSpec(cell, 10, 3, bias=bias, reset_after=reset_after).parameter_count
        for bias in ("none", "single", "double")
    ]
    assert tuple(counts) == COUNTS[cell, reset_after]


def test_a_stack_counts_every_layer_and_direction() -> None:
    # (I=5, H=3) forward and backward, then twice (2H=6, H=3): 2 * (3*5 + 3*3 + 3) + 2 * 2 * (3*6 + 3*3 + 3).
    assert RecurrentSpec("simple_rnn", 5, 3, num_layers=3, bidirectional=True).parameter_count == 174


def test_the_shape_of_every_parameter() -> None:
    spec = RecurrentSpec("gru", 5, 4, num_layers=2, bidirectional=True, bias="single")
    assert dict(spec.shapes) == {
        f"layers.{layer}.{direction}.{name}": shape
        for layer, direction in [(0, "forward"), (0, "backward"), (1, "forward"), (1, "backward")]
        for name, shape in {
            "weight_ih": (3, 4, 8 if layer else 5),
            "weight_hh": (3, 4, 4),
            "bias_ih": (3, 4),
            "bias_hh": (1, 4),
        }.items()
    }
    assert list(spec.shapes)[4] == "layers.0.backward.weight_ih"


def test_every_form_of_a_cell_has_one_spelling() -> None:
    assert list(FORMS) == ["simple_rnn", "lstm", "gru reset after", "gru reset before"]
    for name, form in FORMS.items():
        assert form.form == name
        assert RecurrentSpec(form.name, 5, 4, reset_after=form.reset_after).form is form
    assert {form.name for form in FORMS.values()} == set(CELLS)


@pytest.mark.parametrize(
    ("cell", "reset_after", "bias", "biases"),
    [
        (cell, after, bias, biases)
        for cell, after, gates in [(form.name, form.reset_after, len(form.gates)) for form in FORMS.values()]
        for bias, biases in {
            "none": [],
            "single": [("bias_ih", (gates, 4))] + [("bias_hh", (1, 4))] * (cell == "gru" and after),
            "double": [("bias_ih", (gates, 4)), ("bias_hh", (gates, 4))],
        }.items()
    ],
)
def test_the_biases_of_each_form(
    cell: str, reset_after: bool, bias: str, biases: list[tuple[str, tuple[int, ...]]]
) -> None:
    shapes = RecurrentSpec(cell, 5, 4, bias=bias, reset_after=reset_after).shapes
    assert [(name.rpartition(".")[2], shape) for name, shape in shapes.items()][2:] == biases


@given(specs())
def test_counts_shapes_and_sizes_belong_together(spec: RecurrentSpec) -> None:
    assert spec.parameter_count == sum(prod(shape) for shape in spec.shapes.values())
    assert spec.output_size == len(spec.directions) * spec.hidden_size
    assert len(list(spec.passes)) == spec.num_layers * len(spec.directions)
    assert {tuple(name.split(".")[1:3]) for name in spec.shapes} == {(str(k), d) for k, d in spec.passes}
    with pytest.raises(TypeError):
        spec.shapes["layers.0.forward.weight_ih"] = ()  # type: ignore[index]


def test_the_gates_and_states_of_the_cells() -> None:
    assert {name: (cell.gates, cell.candidate, cell.states) for name, cell in CELLS.items()} == {
        "simple_rnn": (("h",), "h", ("h",)),
        "lstm": (("i", "f", "g", "o"), "g", ("h", "c")),
        "gru": (("r", "z", "n"), "n", ("h",)),
    }
    after, before = RecurrentSpec("gru", 5, 4).form, RecurrentSpec("gru", 5, 4, reset_after=False).form
    assert [a for a, b in zip(after.equations, before.equations, strict=True) if a != b] == [
        "n  = a(W_n x + b_n + r * (U_n h + d_n))"
    ]


# --- Equality, and the forms on paper ----------------------------------------------------------------------------------


@given(specs())
def test_a_spec_comes_back_from_every_form(spec: RecurrentSpec) -> None:
    again = [
        RecurrentSpec.from_dict(spec.to_dict()),
        RecurrentSpec.from_json(spec.to_json()),
        RecurrentSpec.from_dict(json.loads(json.dumps(spec.to_dict(), allow_nan=False))),
        eval(repr(spec), {"RecurrentSpec": RecurrentSpec, "Activation": Activation}),
        pickle.loads(pickle.dumps(spec)),
        copy.deepcopy(spec),
    ]
    assert all(one == spec and hash(one) == hash(spec) and repr(one) == repr(spec) for one in again)


@given(specs(), specs())
def test_specs_are_equal_exactly_where_all_fields_are(one: RecurrentSpec, other: RecurrentSpec) -> None:
    assert (one == other) == (one.to_dict() == other.to_dict())


def test_equal_however_it_was_written() -> None:
    plain = RecurrentSpec("gru", 10, 3)
    assert plain == RecurrentSpec(
        "gru",
        np.int64(10),  # type: ignore[arg-type]
        np.uint8(3),  # type: ignore[arg-type]
        bias="double",
        activation=Activation("tanh"),
        recurrent_activation={"name": "sigmoid"},  # type: ignore[arg-type]
        dtype=np.float32,  # type: ignore[arg-type]
    )
    assert plain.to_json() == RecurrentSpec("gru", np.int64(10), 3, dtype=np.dtype("float32")).to_json()  # type: ignore[arg-type]
    assert plain != RecurrentSpec("gru", 10, 3, bias="single")
    assert plain != "gru"


def test_a_repr_names_only_what_is_not_the_default() -> None:
    assert repr(RecurrentSpec("gru", 10, 3)) == "RecurrentSpec('gru', input_size=10, hidden_size=3)"
    assert (
        repr(RecurrentSpec("gru", 10, 3, reset_after=False, bias="double", activation="elu"))
        == "RecurrentSpec('gru', input_size=10, hidden_size=3, bias='double', reset_after=False, "
        "activation=Activation('elu', alpha=1.0))"
    )


def test_the_written_form_is_this_one() -> None:
    """Specs are stored with people's weights: a change here needs a new version."""
    spec = RecurrentSpec("lstm", 10, 3, recurrent_activation=Activation("hard_sigmoid", 0.2, 0.5))
    assert spec.to_dict() == {
        "version": 1,
        "cell": "lstm",
        "input_size": 10,
        "hidden_size": 3,
        "num_layers": 1,
        "bidirectional": False,
        "bias": "single",
        "reset_after": True,
        "activation": "tanh",
        "recurrent_activation": {"name": "hard_sigmoid", "alpha": 0.2, "beta": 0.5},
        "dtype": "float32",
    }


def test_what_is_not_written_has_its_default() -> None:
    given = {"version": 1, "cell": "gru", "input_size": 10, "hidden_size": 3}
    assert RecurrentSpec.from_dict(given) == RecurrentSpec("gru", 10, 3)


def test_a_spec_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        RecurrentSpec("gru", 10, 3).hidden_size = 4  # type: ignore[misc]


# --- Refusals ----------------------------------------------------------------------------------------------------------

BOTH_HARD_SIGMOIDS = (
    "'hard_sigmoid' means two functions: Activation('hard_sigmoid', alpha=0.2, beta=0.5) is the one of Keras 2 and "
    "ONNX, Activation('hard_sigmoid', alpha=1/6, beta=0.5) the one of Keras 3 and torch"
)
NAMES = "elu, hard_sigmoid, linear, relu, sigmoid, softsign, tanh"

IMPOSSIBLE = [
    ({"cell": "rnn"}, "cell must be one of 'simple_rnn', 'lstm', 'gru', not 'rnn'"),
    ({"cell": None}, "cell must be one of 'simple_rnn', 'lstm', 'gru', not None"),
    ({"cell": ["lstm"]}, "cell must be one of 'simple_rnn', 'lstm', 'gru', not ['lstm']"),
    *(
        ({name: value}, f"{name} must be a positive integer, not {value!r}")
        for name, value in product(
            ("input_size", "hidden_size", "num_layers"), (0, -1, 2.0, True, np.True_, "3", None, np.float32(3))
        )
    ),
    *(
        ({name: value}, f"{name} must be True or False, not {value!r}")
        for name, value in product(("bidirectional", "reset_after"), (1, 0, "yes", None))
    ),
    *(
        ({"bias": value}, f"bias must be one of 'none', 'single', 'double', not {value!r}")
        for value in ("both", True, False, None, 0, ["single"])
    ),
    (
        {"cell": "lstm", "reset_after": False},
        "reset_after=False describes a form of the GRU; cell='lstm' has no reset gate",
    ),
    (
        {"cell": "simple_rnn", "reset_after": False},
        "reset_after=False describes a form of the GRU; cell='simple_rnn' has no reset gate",
    ),
    (
        {"cell": "simple_rnn", "recurrent_activation": "tanh"},
        "recurrent_activation is of the gates of an LSTM or GRU; cell='simple_rnn' has none, "
        "so it must stay 'sigmoid', not 'tanh'",
    ),
    *(
        ({name: value}, f"{name}: {sentence}")
        for name in ("activation", "recurrent_activation")
        for value, sentence in [
            ("hard_sigmoid", BOTH_HARD_SIGMOIDS),
            ("gelu", f"no activation named 'gelu'; there are {NAMES}"),
            (None, "an activation is a name or an Activation, not None"),
            (
                {"name": "elu", "slope": 1, 2: 3},
                "an activation has the fields name, alpha and beta, not 'name', 'slope', 2",
            ),
            ({"alpha": 1}, "an activation has the fields name, alpha and beta, not 'alpha'"),
        ]
    ),
    *(
        ({"dtype": value}, f"dtype must be one of 'float32', 'float64', not {shown!r}")
        for value, shown in [
            ("float16", "float16"),
            (np.int32, "int32"),
            (float, "float"),
            (None, None),
            (">f4", ">f4"),
        ]
    ),
]


@pytest.mark.parametrize(("values", "sentence"), IMPOSSIBLE)
def test_an_impossible_value_is_refused_with_its_sentence(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(InvalidSpec, match=f"^{re.escape(sentence)}$") as caught:
        RecurrentSpec(**({"cell": "gru", "input_size": 10, "hidden_size": 3} | values))  # type: ignore[arg-type]
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, MultirnnError)


FIELDS = "cell, input_size, hidden_size, num_layers, bidirectional, bias, reset_after, activation, recurrent_activation, dtype"
SPEC = RecurrentSpec("gru", 10, 3).to_dict()


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (None, "a spec is read from a dictionary of its fields, not from NoneType"),
        ([SPEC], "a spec is read from a dictionary of its fields, not from list"),
        ({}, "this multirnn reads specs of version 1, not None"),
        (SPEC | {"version": 2}, "this multirnn reads specs of version 1, not 2"),
        (SPEC | {"version": "1"}, "this multirnn reads specs of version 1, not '1'"),
        (
            SPEC | {"proj_size": 1, "peephole": True},
            f"a spec has no field 'proj_size', 'peephole'; it has {FIELDS}",
        ),
        ({"version": 1, "cell": "gru"}, "a spec needs the field 'input_size', 'hidden_size'"),
        (SPEC | {"hidden_size": 0}, "hidden_size must be a positive integer, not 0"),
    ],
)
def test_a_dictionary_that_is_no_spec_is_refused_with_its_sentence(values: object, sentence: str) -> None:
    with pytest.raises(InvalidSpec, match=f"^{re.escape(sentence)}$"):
        RecurrentSpec.from_dict(values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "not a spec in JSON: Expecting value: line 1 column 1 (char 0)"),
        ("{", "not a spec in JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ("[]", "a spec is read from a dictionary of its fields, not from list"),
    ],
)
def test_text_that_is_no_spec_is_refused_with_its_sentence(text: str, sentence: str) -> None:
    with pytest.raises(InvalidSpec, match=f"^{re.escape(sentence)}"):
        RecurrentSpec.from_json(text)
