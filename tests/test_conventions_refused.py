"""What a convention has no place for, and arrays with something off: refused by a sentence that names it."""

import re

import numpy as np
import pytest
from convention_stacks import INVERTED, Arrays, keras_names, stack

import multirnn as mr
from multirnn.conventions import CONVENTIONS, Convention

CURES = {
    "none": "split_biases adds zero biases",
    "single": "split_biases makes them double, exactly",
    "double": "fold_biases makes them single, the same function",
}


@pytest.mark.parametrize(
    ("convention", "spec", "sentence"),
    [
        (
            "torch",
            stack("gru reset before", "single"),
            "PyTorch has no GRU whose reset gate acts before the recurrent product",
        ),
        (
            "flax-linen",
            stack("gru reset before", "single"),
            "Flax Linen has no GRU whose reset gate acts before the recurrent product",
        ),
        (
            "torch",
            stack("gru reset after", "single"),
            f'PyTorch holds a gru with bias="none" or bias="double", not bias="single"; {CURES["single"]}',
        ),
        (
            "keras",
            stack("lstm", "double"),
            f'Keras holds an lstm with bias="none" or bias="single", not bias="double"; {CURES["double"]}',
        ),
        (
            "onnx",
            stack("simple_rnn", "single"),
            f'ONNX holds a simple_rnn with bias="none" or bias="double", not bias="single"; {CURES["single"]}',
        ),
        (
            "flax-linen",
            stack("lstm", "none"),
            f'Flax Linen holds an lstm with bias="single", not bias="none"; {CURES["none"]}',
        ),
        (
            INVERTED,
            stack("gru reset after", "double", recurrent_activation="tanh"),
            "the inverted GRU lets z weigh the new state, which negating z's block turns into ours only for a sigmoid, "
            "not for recurrent_activation='tanh'",
        ),
        (
            INVERTED,
            stack("gru reset after", "double", recurrent_activation=mr.Activation("hard_sigmoid", 0.2, 0.4)),
            "the inverted GRU lets z weigh the new state, which negating z's block turns into ours only for a sigmoid, "
            "not for recurrent_activation=Activation('hard_sigmoid', alpha=0.2, beta=0.4)",
        ),
    ],
)
def test_what_a_convention_has_no_place_for(
    convention: str | Convention, spec: mr.RecurrentSpec, sentence: str
) -> None:
    with pytest.raises(mr.Unrepresentable, match=f"^{re.escape(sentence)}$"):
        mr.to_arrays(mr.initialise(spec), convention=convention)


def test_the_cures_that_the_sentences_name_are_cures() -> None:
    single, double, none = (mr.initialise(stack("lstm", bias)) for bias in ("single", "double", "none"))
    assert mr.to_arrays(mr.split_biases(single), convention="onnx")
    assert mr.to_arrays(mr.fold_biases(double), convention="keras")
    assert mr.to_arrays(mr.fold_biases(mr.split_biases(none)), convention="flax-linen")


TORCH_LSTM = mr.to_arrays(
    mr.initialise(mr.RecurrentSpec("lstm", 5, 4, num_layers=2, bias="double")), convention="torch"
)
KERAS_GRU = mr.to_arrays(mr.initialise(mr.RecurrentSpec("gru", 5, 4)), convention="keras")
KERAS_NO_BIAS = {name: array for name, array in KERAS_GRU.items() if not name.endswith("/bias")}
ONNX_GRU = mr.to_arrays(mr.initialise(mr.RecurrentSpec("gru", 5, 4)), convention="onnx")
FLAX_GRU = mr.to_arrays(mr.initialise(mr.RecurrentSpec("gru", 5, 4, bias="single")), convention="flax-linen")
AS_LSTM = "the arrays fit no cell: read as an lstm with 5 inputs and 4 units"


def without(arrays: Arrays, *names: str) -> Arrays:
    return {name: array for name, array in arrays.items() if name not in names}


@pytest.mark.parametrize(
    ("arrays", "convention", "sentence"),
    [
        (
            TORCH_LSTM,
            "pytorch",
            f"no convention named 'pytorch'; there are {', '.join(CONVENTIONS)}; did you mean 'torch'?",
        ),
        (TORCH_LSTM, 3, f"no convention named 3; there are {', '.join(CONVENTIONS)}"),
        ({}, "torch", "there are no arrays here; the torch convention has some for every layer"),
        (TORCH_LSTM, "keras", "'weight_ih_l0' is not the name of an array of the keras convention"),
        (
            TORCH_LSTM | {"weight_hr_l0": np.zeros((2, 4), "float32")},
            "torch",
            "'weight_hr_l0' is beside the arrays of the stack, and not the name of an array of the torch convention",
        ),
        (
            without(TORCH_LSTM, "weight_hh_l0"),
            "torch",
            "layer 0 has no array weight_hh, which the torch convention has",
        ),
        (without(TORCH_LSTM, "bias_hh_l1"), "torch", f"{AS_LSTM}, bias_hh of layer 1 forward is missing"),
        (without(TORCH_LSTM, "weight_ih_l1"), "torch", f"{AS_LSTM}, weight_ih of layer 1 forward is missing"),
        (
            TORCH_LSTM | {"weight_ih_l1": TORCH_LSTM["weight_ih_l1"].T},
            "torch",
            f"{AS_LSTM}, weight_ih of layer 1 forward must have the shape (16, 4), not (4, 16)",
        ),
        (
            {name.replace("_l1", "_l2"): array for name, array in TORCH_LSTM.items()},
            "torch",
            "the arrays are of the layers '0', '2'; the torch convention numbers them from 0 without gaps",
        ),
        (
            {name: array for name, array in TORCH_LSTM.items() if name.endswith("_l1")},
            "torch",
            "the arrays are of the layers '1'; the torch convention numbers them from 0 without gaps",
        ),
        (
            TORCH_LSTM | {"weight_ih_l0": TORCH_LSTM["weight_ih_l0"].ravel()},
            "torch",
            "weight_ih of layer 0 must have the axes (gate unit) source, not the shape (80,)",
        ),
        (
            FLAX_GRU | {"cell/hr/bias": np.zeros(4, "float32")},
            "flax-linen",
            "the arrays fit no cell: read as a gru reset after with 5 inputs and 4 units, there is no place for hr/bias of layer 0 forward",
        ),
        (
            ONNX_GRU,
            "onnx",
            "names and shapes do not tell gru reset after from gru reset before; pass reset_after=True or reset_after=False",
        ),
        (
            KERAS_NO_BIAS,
            "keras",
            "names and shapes do not tell gru reset after from gru reset before; pass reset_after=True or reset_after=False",
        ),
        (
            KERAS_GRU | keras_names(KERAS_GRU, "decoder/gru"),
            "keras",
            "the arrays hold 2 stacks of the keras convention; pass prefix= one of '', 'decoder/'",
        ),
    ],
)
def test_arrays_with_something_off_are_refused_by_a_sentence_that_names_it(
    arrays: Arrays, convention: str, sentence: str
) -> None:
    with pytest.raises(mr.Unrepresentable, match=f"^{re.escape(sentence)}$"):
        mr.from_arrays(arrays, convention=convention)


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"weight_ih_l0": TORCH_LSTM["weight_ih_l0"].astype("float64")}, "float32 and float64"),
        ({name: array.astype("float16") for name, array in TORCH_LSTM.items()}, "float16"),
        ({name: array.astype("int64") for name, array in TORCH_LSTM.items()}, "int64"),
    ],
)
def test_dtypes_that_no_spec_has(changed: Arrays, found: str) -> None:
    with pytest.raises(mr.InvalidWeights, match=f"^the arrays must all be float32 or all float64, not {found}$"):
        mr.from_arrays(TORCH_LSTM | changed, convention="torch")


def test_what_does_not_tell_itself_can_be_said() -> None:
    for reset_after in (True, False):
        spec = mr.RecurrentSpec("gru", 5, 4, reset_after=reset_after, bias="none")
        weights = mr.initialise(spec)
        arrays = mr.to_arrays(weights, convention="keras")
        assert mr.from_arrays(arrays, convention="keras", reset_after=reset_after) == weights
    with pytest.raises(mr.Unrepresentable, match=r"^the torch convention has no such cell$"):
        mr.from_arrays(TORCH_LSTM, convention="torch", cell="peephole")
