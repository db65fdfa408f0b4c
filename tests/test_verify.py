"""`verify`: whether two files hold the same function, in one line."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from convention_stacks import stack

import multirnn as mr
from multirnn.formats import Verification
from multirnn.formats import verification as module
from multirnn.mistakes import MISTAKES

LSTM = mr.RecurrentSpec("lstm", 5, 4, bias="double")
WEIGHTS = mr.initialise(LSTM, 1)
FIRST = "layers.0.forward.weight_ih"


def compared(folder: Path, a: mr.Weights, b: mr.Weights) -> Verification:
    mr.save(a, folder / "a.npz")
    mr.save(b, folder / "b.npz")
    found = mr.verify(folder / "a.npz", folder / "b.npz")
    assert "\n" not in str(found)
    assert str(found) == found.sentence
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["ok"] is found.ok
    return found


def changed(weights: mr.Weights, name: str, place: tuple[int, ...], number: float) -> mr.Weights:
    array = weights.arrays[name].copy()
    array[place] = number
    return mr.Weights(weights.spec, {**weights.arrays, name: array})


# --- The same --------------------------------------------------------------------------------------------------------


def test_equal_files_are_equal_bit_for_bit(tmp_path: Path) -> None:
    found = compared(tmp_path, WEIGHTS, WEIGHTS)
    assert str(found) == "the same 176 numbers, bit for bit"
    assert (found.ok, found.exact, found.error, found.sorted_difference, found.causes) == (True, True, 0, 0, ())
    assert found.largest is not None
    assert found.largest[0] == 0
    assert found.a.spec == found.b.spec == LSTM


def test_files_of_two_formats(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    cell = torch.nn.GRU(5, 4)
    torch.save(cell.state_dict(), tmp_path / "a.pt")
    mr.convert(tmp_path / "a.pt", tmp_path / "b.safetensors")
    assert mr.verify(tmp_path / "a.pt", tmp_path / "b.safetensors").exact


@pytest.mark.parametrize("form", ["lstm", "simple_rnn", "gru reset after"])
@pytest.mark.parametrize("other", ["single", "none"])
def test_biases_in_another_form(tmp_path: Path, form: str, other: str) -> None:
    if other == "none":
        a = mr.initialise(stack(form, "none"), 1)
        b = mr.split_biases(a)
    else:
        a = mr.initialise(stack(form, "double"), 1)
        b = mr.fold_biases(a)
    for left, right in ((a, b), (b, a)):
        found = compared(tmp_path, left, right)
        assert found.ok
        assert not found.exact
        assert found.error == 0
        bias = [one.spec.bias for one in (left, right)]
        assert f"the same function: A has bias={bias[0]!r} and B bias={bias[1]!r}; added up they are equal" == str(
            found
        )


def test_biases_in_another_form_that_are_others(tmp_path: Path) -> None:
    folded = mr.fold_biases(WEIGHTS)
    found = compared(tmp_path, WEIGHTS, changed(folded, "layers.0.forward.bias_ih", (0, 0), 7))
    assert not found.ok
    assert found.largest is not None
    assert found.largest[1] == "layers.0.forward.bias_ih"


def test_biases_divided_otherwise(tmp_path: Path) -> None:
    pair = [f"layers.0.forward.bias_{name}" for name in ("ih", "hh")]
    swapped = {**WEIGHTS.arrays, **{pair[k]: WEIGHTS.arrays[pair[1 - k]] for k in (0, 1)}}
    found = compared(tmp_path, WEIGHTS, mr.Weights(LSTM, swapped))
    assert found.ok
    assert not found.exact
    assert "the same function: biases are divided otherwise between input and recurrence" in str(found)


@pytest.mark.parametrize("turned", [False, True])
def test_another_dtype(tmp_path: Path, turned: bool) -> None:
    wide = mr.initialise(replace(LSTM, dtype="float64"), 1)
    pair = (WEIGHTS, wide) if turned else (wide, WEIGHTS)
    found = compared(tmp_path, *pair)
    assert found.ok
    assert not found.exact
    a, b = (weights.spec.dtype for weights in pair)
    assert str(found) == f"the same function: A is {a} and B {b}; rounded to float32 they are equal"


def test_zeros_of_another_sign(tmp_path: Path) -> None:
    pair = [changed(WEIGHTS, FIRST, (0, 0, 0), zero) for zero in (0.0, -0.0)]
    found = compared(tmp_path, *pair)
    assert str(found) == "the same function: all numbers are equal, and some zeros have another sign"
    assert found.ok
    assert not found.exact


def test_rounding_is_no_other_function(tmp_path: Path) -> None:
    number = float(WEIGHTS.arrays[FIRST][0, 0, 0])
    found = compared(tmp_path, WEIGHTS, changed(WEIGHTS, FIRST, (0, 0, 0), np.nextafter(np.float32(number), 2)))
    assert found.ok
    assert not found.exact
    assert found.error is not None
    assert 0 < found.error < 1e-6
    assert f"the same function: outputs and gradients agree within {found.error:.1e}; {FIRST} differs by" in str(found)


# --- Different -------------------------------------------------------------------------------------------------------


def test_specs_that_differ_are_named_field_by_field(tmp_path: Path) -> None:
    other = mr.RecurrentSpec("lstm", 5, 6, 2, True, activation="relu")
    found = compared(tmp_path, WEIGHTS, mr.initialise(other))
    assert str(found) == (
        "not the same: hidden_size is 4 in A and 6 in B, num_layers is 1 in A and 2 in B, bidirectional is False in A and "
        "True in B, activation is 'tanh' in A and 'relu' in B"
    )
    assert (found.ok, found.exact, found.largest, found.error) == (False, False, None, None)


def test_other_numbers(tmp_path: Path) -> None:
    found = compared(tmp_path, WEIGHTS, mr.initialise(LSTM, 2))
    assert not found.ok
    assert found.largest is not None
    assert found.error is not None
    gap, where = found.largest
    other = mr.initialise(LSTM, 2).arrays
    assert gap == pytest.approx(float(np.abs(WEIGHTS.arrays[where] - other[where]).max()))
    assert gap == pytest.approx(max(float(np.abs(array - other[name]).max()) for name, array in WEIGHTS.arrays.items()))
    assert f"not the same: {where} differs by up to {gap:.2g}, outputs and gradients by {found.error:.1e}; " in str(
        found
    )
    assert f"sorted, the numbers still differ by {found.sorted_difference:.2g}, so no other order" in str(found)


def test_one_number_that_is_another(tmp_path: Path) -> None:
    found = compared(tmp_path, WEIGHTS, changed(WEIGHTS, FIRST, (1, 2, 3), 0.9))
    assert not found.ok
    assert found.largest is not None
    assert found.largest[1] == FIRST
    assert "; no known mistake explains it" in str(found)


def test_numbers_of_another_layer_are_no_known_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So none is looked for, which takes seconds; half of the numbers is not enough, for mistakes make no new ones."""
    asked: list[object] = []
    monkeypatch.setattr("multirnn.diagnosis.diagnose", lambda a, b: asked.append((a, b)))
    other = mr.initialise(LSTM, 2)
    square = mr.RecurrentSpec("lstm", 4, 4, bias="double")
    half = mr.initialise(square, 1)
    mixed = {**half.arrays, FIRST: mr.initialise(square, 2).arrays[FIRST]}
    for a, b in ((WEIGHTS, other), (half, mr.Weights(square, mixed))):
        assert "so no other order of gates or axes explains it" in str(compared(tmp_path, a, b))
    assert asked == []


@pytest.mark.parametrize("name", ["gates f i g o", "transposed recurrent matrix"])
def test_a_known_mistake_is_named(tmp_path: Path, name: str) -> None:
    arrays = dict(WEIGHTS.arrays)
    if name.startswith("gates"):
        arrays = {own: array[[1, 0, 2, 3]] for own, array in arrays.items()}
        words = "B reads the LSTM blocks as f i g o; they are stored i f g o."
    else:
        arrays["layers.0.forward.weight_hh"] = arrays["layers.0.forward.weight_hh"].swapaxes(1, 2)
        words = "B multiplies the state with the transpose of every gate block of weight_hh."
    assert any(f"B {mistake.says}." == words for mistake in MISTAKES.values())
    found = compared(tmp_path, WEIGHTS, mr.Weights(LSTM, arrays))
    assert not found.ok
    assert found.causes == (words,)
    assert str(found).endswith(words.rstrip("."))
    assert found.to_dict()["causes"] == [words]


def test_of_a_large_stack_no_mistake_is_looked_for_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LARGEST", 100)
    arrays = {own: array[[1, 0, 2, 3]] for own, array in WEIGHTS.arrays.items()}
    found = compared(tmp_path, WEIGHTS, mr.Weights(LSTM, arrays))
    assert found.causes == ()
    assert "with more than 100 parameters, no known mistake was looked for" in str(found)


# --- NaN -------------------------------------------------------------------------------------------------------------


def test_nan_in_the_same_places_is_the_same_and_said(tmp_path: Path) -> None:
    broken = changed(WEIGHTS, FIRST, (0, 0, 0), np.nan)
    found = compared(tmp_path, broken, broken)
    assert found.exact
    assert found.ok
    assert str(found) == (
        "the same 176 numbers, bit for bit; of the numbers 1 in A and 1 in B are NaN, so that outputs prove nothing"
    )


@pytest.mark.parametrize("turned", [False, True])
def test_nan_in_one_alone_is_another_function(tmp_path: Path, turned: bool) -> None:
    broken = changed(WEIGHTS, FIRST, (0, 0, 0), np.nan)
    found = compared(tmp_path, *((broken, WEIGHTS) if turned else (WEIGHTS, broken)))
    assert not found.ok
    assert found.largest == (float("inf"), FIRST)
    assert f"not the same: {FIRST} has a NaN or an infinity in one of them alone" in str(found)


def test_nan_in_both_hides_no_other_difference(tmp_path: Path) -> None:
    """All outputs of both are NaN, and equal; the arrays are not."""
    broken = changed(WEIGHTS, FIRST, (0, 0, 0), np.nan)
    found = compared(tmp_path, broken, changed(broken, "layers.0.forward.weight_hh", (1, 2, 3), 5))
    assert not found.ok
    assert found.largest is not None
    assert found.largest[1] == "layers.0.forward.weight_hh"
    assert "1 in A and 1 in B are NaN, so that outputs prove nothing" in str(found)


def test_infinities_in_the_same_places(tmp_path: Path) -> None:
    broken = changed(WEIGHTS, FIRST, (0, 0, 0), np.inf)
    assert compared(tmp_path, broken, broken).exact
    assert not compared(tmp_path, broken, changed(broken, FIRST, (0, 0, 0), -np.inf)).ok


# --- Stacks by name --------------------------------------------------------------------------------------------------


def test_one_stack_of_several_is_compared_by_name(tmp_path: Path) -> None:
    other = mr.initialise(LSTM, 2)
    arrays = {
        f"{name}.{own}": array
        for name, weights in (("a", WEIGHTS), ("b", other))
        for own, array in mr.to_arrays(weights, convention="torch").items()
    }
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    assert mr.verify(path, path, name_a="a", name_b="a").exact
    assert not mr.verify(path, path, name_a="a", name_b="b").ok
    with pytest.raises(mr.FormatError, match="holds the stacks 'a', 'b'; pass name="):
        mr.verify(path, path)
