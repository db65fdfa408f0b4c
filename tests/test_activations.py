"""The activations as data: names, parameters with their defaults and limits, and the formulas that they stand for."""

import copy
import pickle
import re

import numpy as np
import pytest

import multirnn as mr
from multirnn import Activation, InvalidSpec
from multirnn.activations import ACTIVATIONS

GIVEN = {"hard_sigmoid": {"alpha": 0.2, "beta": 0.5}, "elu": {"alpha": 0.7}}  # what has parameters, with some


def test_a_name_says_it_all_except_of_the_hard_sigmoid() -> None:
    for name, definition in ACTIVATIONS.items():
        if name == "hard_sigmoid":
            continue
        assert Activation(name).parameters == dict(definition.parameters)
        assert Activation.of(name) == Activation(name)
    assert Activation("elu").alpha == 1


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_a_value(name: str) -> None:
    one = Activation(name, **GIVEN.get(name, {}))
    again = [
        eval(repr(one)),
        pickle.loads(pickle.dumps(one)),
        copy.deepcopy(one),
        Activation.of(one),
        Activation.of({"name": name, **one.parameters}),
        Activation.of(one.short),
    ]
    assert all(other == one and hash(other) == hash(one) for other in again)
    assert one.short == (one if one.parameters else name)
    with pytest.raises(AttributeError):
        one.alpha = 2.0  # type: ignore[misc]


def test_how_it_is_shown() -> None:
    assert str(Activation("tanh")) == "tanh"
    assert str(Activation("hard_sigmoid", alpha=1 / 6, beta=0.5)) == "hard_sigmoid(alpha=0.166667, beta=0.5)"
    assert repr(Activation("hard_sigmoid", alpha=0.2, beta=0.5)) == "Activation('hard_sigmoid', alpha=0.2, beta=0.5)"


def test_any_real_number_is_a_parameter_and_becomes_a_float() -> None:
    for number in (1, 1.0, np.float32(1), np.float64(1), np.int16(1)):
        assert type(Activation("elu", alpha=number).alpha) is float  # type: ignore[arg-type]
        assert Activation("elu", alpha=number) == Activation("elu")  # type: ignore[arg-type]


BOTH_HARD_SIGMOIDS = (
    "'hard_sigmoid' means two functions: Activation('hard_sigmoid', alpha=0.2, beta=0.5) is the one of Keras 2 and "
    "ONNX, Activation('hard_sigmoid', alpha=1/6, beta=0.5) the one of Keras 3 and torch"
)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (("gelu",), f"no activation named 'gelu'; there are {', '.join(sorted(ACTIVATIONS))}"),
        ((["tanh"],), f"no activation named ['tanh']; there are {', '.join(sorted(ACTIVATIONS))}"),
        (("hard_sigmoid",), BOTH_HARD_SIGMOIDS),
        (("hard_sigmoid", 0.2), BOTH_HARD_SIGMOIDS),
        (("hard_sigmoid", None, 0.5), BOTH_HARD_SIGMOIDS),
        (("tanh", 1.0), "activation 'tanh' has no parameter 'alpha', but it was given 1.0"),
        (("elu", 1.0, 0.5), "activation 'elu' has no parameter 'beta', but it was given 0.5"),
        (("elu", 0), "'alpha' of activation 'elu' must be greater than zero, not 0"),
        (("hard_sigmoid", -0.2, 0.5), "'alpha' of activation 'hard_sigmoid' must be greater than zero, not -0.2"),
        (("elu", float("nan")), "'alpha' of activation 'elu' must be a finite number, not nan"),
        (
            ("hard_sigmoid", 0.2, float("inf")),
            "'beta' of activation 'hard_sigmoid' must be a finite number, not inf",
        ),
        (("elu", True), "'alpha' of activation 'elu' must be a finite number, not True"),
        (("elu", "1"), "'alpha' of activation 'elu' must be a finite number, not '1'"),
    ],
)
def test_an_impossible_activation_is_refused_with_its_sentence(values: tuple[object, ...], sentence: str) -> None:
    with pytest.raises(InvalidSpec, match=f"^{re.escape(sentence)}$"):
        Activation(*values)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_formula_is_what_the_reference_computes(name: str) -> None:
    """One step of one unit, h' = a(x): with W = 1 and U = 0 the reference shows the activation itself."""
    activation = Activation(name, **GIVEN.get(name, {}))
    spec = mr.RecurrentSpec("simple_rnn", 1, 1, bias="none", activation=activation, dtype="float64")
    ones = {name: np.ones(shape) for name, shape in spec.shapes.items()}
    ones["layers.0.forward.weight_hh"] *= 0
    points = np.linspace(-5, 5, 41)  # both ends of every hard sigmoid, and zero
    computed = mr.build(mr.Weights(spec, ones), "numpy")(points[:, None, None]).sequence.ravel()

    formula = ACTIVATIONS[name].formula.replace("|x|", "abs(x)")
    functions = {"exp": np.exp, "tanh": np.tanh, "max": max, "clip": np.clip, "abs": abs}
    written = np.array([eval(formula, {**functions, **activation.parameters, "x": x}) for x in points])
    assert mr.difference(computed, written).normwise <= mr.tolerance("float64")


def _hard_sigmoid(activation: Activation, points: np.ndarray) -> np.ndarray:
    return np.clip(activation.alpha * points + activation.beta, 0, 1)


KERAS_3, KERAS_2 = Activation("hard_sigmoid", 1 / 6, 0.5), Activation("hard_sigmoid", 0.2, 0.5)
POINTS = np.linspace(-5, 5, 41)


def test_one_hard_sigmoid_is_of_torch() -> None:
    torch = pytest.importorskip("torch")
    theirs = torch.nn.functional.hardsigmoid(torch.tensor(POINTS)).numpy()
    assert mr.difference(theirs, _hard_sigmoid(KERAS_3, POINTS)).normwise <= mr.tolerance("float64")
    assert mr.difference(theirs, _hard_sigmoid(KERAS_2, POINTS)).normwise > mr.tolerance("float64")


def test_and_of_keras_3() -> None:
    keras = pytest.importorskip("keras")
    theirs = np.asarray(keras.activations.hard_sigmoid(keras.ops.convert_to_tensor(POINTS, "float64")))
    assert mr.difference(theirs, _hard_sigmoid(KERAS_3, POINTS)).normwise <= mr.tolerance("float64")


def test_the_other_is_of_onnx() -> None:
    onnx = pytest.importorskip("onnx")
    attributes = onnx.defs.get_schema("HardSigmoid").attributes
    theirs = {name: attributes[name].default_value.f for name in ("alpha", "beta")}
    assert theirs == {name: np.float32(value) for name, value in KERAS_2.parameters.items()}
