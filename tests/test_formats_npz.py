"""NumPy's archives: ours, with a framework's names, and with names of one's own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from convention_stacks import stack

import multirnn as mr
from multirnn import formats
from multirnn.cells import FORMS
from multirnn.conventions import CONVENTIONS
from multirnn.formats.npz import SPEC

LSTM = mr.RecurrentSpec("lstm", 5, 4, bias="double")
WEIGHTS = mr.initialise(LSTM, 1)
ARRAYS = mr.to_arrays(WEIGHTS, convention="torch")
SAVERS = [np.savez, np.savez_compressed]


@pytest.mark.parametrize("save", SAVERS)
def test_torch_names_are_read(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "a.npz", **{f"rnn.{name}": array for name, array in ARRAYS.items()}, steps=np.arange(3))
    (only,) = mr.inspect(tmp_path / "a.npz")
    assert (only.name, only.convention, only.spec) == ("rnn", "torch", LSTM)
    assert mr.load(tmp_path / "a.npz") == WEIGHTS


@pytest.mark.parametrize("save", SAVERS)
def test_own_names_are_read_by_names(tmp_path: Path, save: Any) -> None:
    own = {f"enc_{number}": name for number, name in enumerate(ARRAYS)}
    save(tmp_path / "a.npz", **{mine: ARRAYS[name] for mine, name in own.items()}, vocabulary=np.array(["a", "b"]))
    assert mr.load(tmp_path / "a.npz", names=own) == WEIGHTS
    with pytest.raises(mr.FormatError, match=r"a.npz holds no recurrent stack .* pass names="):
        mr.load(tmp_path / "a.npz")
    with pytest.raises(mr.FormatError, match=r"a.npz has no array 'enc'; it has 'enc_0', .*'vocabulary'"):
        mr.load(tmp_path / "a.npz", names={"enc": "weight_ih_l0"})


def test_one_name_for_two_arrays_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **ARRAYS)
    with pytest.raises(mr.FormatError, match="names gives one name to several arrays"):
        mr.load(tmp_path / "a.npz", names=dict.fromkeys(ARRAYS, "weight_ih_l0"))


def test_float16_is_widened_under_own_names_too(tmp_path: Path) -> None:
    half = {name: array.astype(np.float16) for name, array in ARRAYS.items()}
    wide = mr.from_arrays({name: array.astype(np.float32) for name, array in half.items()}, convention="torch")
    np.savez(tmp_path / "a.npz", **half)
    assert mr.load(tmp_path / "a.npz") == wide
    assert mr.load(tmp_path / "a.npz", names={name: name for name in half}) == wide
    assert mr.inspect(tmp_path / "a.npz")[0].stored == "float16"


def test_fortran_order_and_the_other_byte_order(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **{name: np.asfortranarray(array.astype(">f4")) for name, array in ARRAYS.items()})
    assert mr.load(tmp_path / "a.npz") == WEIGHTS


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bias", ["none", "single", "double"])
@pytest.mark.parametrize("form", FORMS)
def test_numpy_reads_the_canonical_arrays(tmp_path: Path, form: str, bias: str, dtype: str) -> None:
    weights = mr.initialise(stack(form, bias, dtype=dtype), 1)
    written = mr.save(weights, tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as found:
        assert mr.RecurrentSpec.from_json(str(found[SPEC])) == weights.spec
        assert all(found[name].tobytes() == array.tobytes() for name, array in weights.arrays.items())
    assert (written.format, written.convention, written.changes) == ("npz", "canonical", ())
    assert mr.load(tmp_path / "a.npz") == weights
    assert mr.inspect(tmp_path / "a.npz")[0].about == ()


def test_the_activations_of_a_canonical_file_are_read(tmp_path: Path) -> None:
    spec = mr.RecurrentSpec(
        "gru", 5, 4, activation="relu", recurrent_activation=mr.Activation("hard_sigmoid", 0.2, 0.5)
    )
    weights = mr.initialise(spec, 1)
    mr.save(weights, tmp_path / "a.npz")
    assert mr.load(tmp_path / "a.npz") == weights


# --- Every convention ------------------------------------------------------------------------------------------------

CASES = [
    (convention, form, bias)
    for convention, one in CONVENTIONS.items()
    for form, held in one.arrays.items()
    for bias in held
    if convention != "textbook-rows"
]
UNTOLD = {"tensorflow-v1": "cell", "onnx": "reset_after", "keras": "reset_after", "textbook": "convention"}


def told(path: Path, spec: mr.RecurrentSpec, convention: str) -> mr.Weights:
    """The weights of a file, told what names and shapes leave open if the error asks for it."""
    try:
        return mr.load(path)
    except mr.FormatError as error:
        field, said = UNTOLD[convention], str(error)
    if f"pass {field}=" not in said:
        pytest.fail(said)
    return mr.load(path, **{field: convention if field == "convention" else getattr(spec, field)})


@pytest.mark.parametrize("sizes", [(1, False), (1, True), (2, False), (2, True)], ids=str)
@pytest.mark.parametrize(("convention", "form", "bias"), CASES)
def test_a_round_trip_in_every_convention(
    tmp_path: Path, convention: str, form: str, bias: str, sizes: tuple[int, bool]
) -> None:
    """Bit for bit, in a file with nothing else; where names and shapes leave a choice, the error says what to pass."""
    layers, bidirectional = sizes
    spec = stack(form, bias, num_layers=layers, bidirectional=bidirectional)
    if CONVENTIONS[convention].refuses(spec) is not None:
        pytest.skip("it has no such stacks")
    weights = mr.initialise(spec, 1)
    for name in CONVENTIONS[convention].zero.get(form, ()):
        zero = {full: np.zeros_like(array) if full.endswith(name) else array for full, array in weights.arrays.items()}
        weights = mr.Weights(spec, zero)
    path = tmp_path / "a.npz"
    written = mr.save(weights, path, convention=convention)
    offset = (
        CONVENTIONS[convention].forget_offset if spec.cell == "lstm" else 0
    )  # subtracted and added again, so rounded
    assert written.convention == convention
    assert [" to the forget gate, so its bias is stored less " in change for change in written.changes] == [
        True
    ] * bool(offset)
    found = told(path, spec, convention)
    assert found.spec == spec
    for name, array in weights.arrays.items():
        if offset and name.endswith("bias_ih"):
            np.testing.assert_allclose(found.arrays[name], array, rtol=0, atol=2e-7)
        else:
            assert found.arrays[name].tobytes() == array.tobytes(), name


# --- Refused ---------------------------------------------------------------------------------------------------------


def refused(path: Path, sentence: str, **how: Any) -> None:
    with pytest.raises(mr.FormatError, match=sentence):
        formats.load(path, **how)


def test_objects_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.array([{}], object))
    refused(tmp_path / "a.npz", "a.npz: the array 'a' holds Python objects; save arrays of numbers")


def test_bfloat16_of_another_package_has_no_name_in_a_file_of_numpy(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **{name: array.astype("f2").view("V2") for name, array in ARRAYS.items()})
    refused(tmp_path / "a.npz", r"'weight_ih_l0' is \|V2, which is not read here; save it as float32")


def test_a_spec_that_the_arrays_do_not_fit(tmp_path: Path) -> None:
    for change, sentence in (
        ({"hidden_size": 5}, "its spec and its arrays do not agree: .* must have the shape"),
        ({"num_layers": 10**9}, "its spec has 1000000000 layers, and there are 4 arrays"),
        ({"cell": "lstn"}, "cell must be one of"),
        ({"version": 2}, "this multirnn reads specs of version 1, not 2"),
        ({"bias": "none"}, "has no parameter"),
        ({"dtype": "float64"}, "must be float64, as the spec says, not float32"),
    ):
        about = np.array(mr.RecurrentSpec.to_json(LSTM))
        text = __import__("json").dumps({**LSTM.to_dict(), **change})
        assert str(about) != text
        np.savez(tmp_path / "a.npz", **WEIGHTS.arrays, **{SPEC: np.array(text)})
        refused(tmp_path / "a.npz", sentence)


def test_a_spec_that_is_no_text(tmp_path: Path) -> None:
    for about in (np.zeros(3), np.array(["{}"]), np.array("nonsense")):
        np.savez(tmp_path / "a.npz", **WEIGHTS.arrays, **{SPEC: about})
        refused(tmp_path / "a.npz", "has to be the spec, one string|its spec and its arrays do not agree")


def test_a_canonical_file_with_an_array_too_many_or_too_few(tmp_path: Path) -> None:
    about = {SPEC: np.array(LSTM.to_json())}
    np.savez(tmp_path / "a.npz", **WEIGHTS.arrays, **about, extra=np.zeros(3, "f"))
    refused(tmp_path / "a.npz", "has no parameter extra")
    few = dict(list(WEIGHTS.arrays.items())[1:])
    np.savez(tmp_path / "a.npz", **few, **about)
    refused(tmp_path / "a.npz", "no array for layers.0.forward.weight_ih")
