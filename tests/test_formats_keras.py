"""Keras' files against Keras itself: what it writes is read, and what is written it loads and runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import multirnn as mr
from multirnn import Activation, formats
from multirnn.cells import FORMS
from multirnn.errors import FormatError, Unrepresentable
from multirnn.formats.keras_config import described

multirnn_keras = pytest.importorskip("multirnn_keras")
keras = pytest.importorskip("keras")
layers = keras.layers

KINDS = {"simple_rnn": layers.SimpleRNN, "lstm": layers.LSTM, "gru": layers.GRU}
SUFFIXES = (".keras", ".h5", ".weights.h5")
HARD = Activation("hard_sigmoid", alpha=1 / 6, beta=0.5)
OLD_HARD = Activation("hard_sigmoid", alpha=0.2, beta=0.5)


def drawn(model: Any) -> Any:
    rng = np.random.default_rng(0)
    model.set_weights([rng.uniform(-0.9, 0.9, array.shape).astype(array.dtype) for array in model.get_weights()])
    return model


def sequential(*parts: Any, features: int = 5, dtype: str = "float32") -> Any:
    return drawn(keras.Sequential([keras.Input((None, features), dtype=dtype), *parts]))


def by_name(path: Path) -> dict[str, formats.Found]:
    return {found.name: found for found in formats.inspect(path)}


def close(actual: Any, expected: np.ndarray, dtype: str = "float32") -> None:
    assert mr.difference(np.asarray(actual), expected).normwise <= mr.tolerance(dtype)


def run(weights: mr.Weights, x: np.ndarray) -> np.ndarray:
    return mr.build(weights, "numpy")(x).sequence


def numbers(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape).astype(dtype)


# --- Written files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("form", FORMS)
def test_keras_loads_and_runs_what_is_written(form: str, dtype: str, bidirectional: bool, tmp_path: Path) -> None:
    cell = FORMS[form]
    spec = mr.RecurrentSpec(
        cell.name, 5, 3, num_layers=2, bidirectional=bidirectional, reset_after=cell.reset_after, dtype=dtype
    )
    weights = mr.initialise(spec)
    x = numbers(2, 4, 5, dtype=dtype)
    for suffix in (".keras", ".h5"):
        formats.save(weights, tmp_path / f"a{suffix}")
        model = keras.saving.load_model(tmp_path / f"a{suffix}", safe_mode=True)
        result = np.asarray(model(x))
        assert result.dtype == dtype
        close(result, run(weights, x), dtype)
    model.save(tmp_path / "again.keras")
    assert formats.load(tmp_path / "again.keras") == weights


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_models_of_ours_and_of_users_take_the_written_variables(form: str, bidirectional: bool, tmp_path: Path) -> None:
    cell = FORMS[form]
    spec = mr.RecurrentSpec(
        cell.name, 5, 3, num_layers=2, bidirectional=bidirectional, reset_after=cell.reset_after, bias="none"
    )
    weights, x = mr.initialise(spec), numbers(2, 4, 5)
    path = tmp_path / "a.weights.h5"
    formats.save(weights, path)

    def layer(name: str) -> Any:
        options = {"reset_after": spec.reset_after} if spec.cell == "gru" else {}
        made = KINDS[spec.cell](3, return_sequences=True, use_bias=False, name=name, **options)
        return layers.Bidirectional(made) if bidirectional else made

    users = sequential(layer("encoder"), layer("decoder"))
    ours = mr.build(spec, "keras", seed=9).native
    for model in (users, ours):
        model.load_weights(path)
        close(model(x), run(weights, x))


@pytest.mark.parametrize("activation", ["relu", "linear", "softsign", Activation("elu", 0.3), "elu", HARD], ids=str)
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_activations_that_keras_has_are_written(activation: Any, suffix: str, tmp_path: Path) -> None:
    weights = mr.initialise(
        mr.RecurrentSpec("lstm", 5, 3, bidirectional=True, activation=activation, recurrent_activation=HARD)
    )
    formats.save(weights, tmp_path / f"a{suffix}")
    assert formats.load(tmp_path / f"a{suffix}") == weights
    x = numbers(2, 4, 5)
    close(keras.saving.load_model(tmp_path / f"a{suffix}")(x), run(weights, x))


@pytest.mark.parametrize("field", ["activation", "recurrent_activation"])
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_an_activation_that_keras_has_not_is_refused_by_name(field: str, suffix: str, tmp_path: Path) -> None:
    weights = mr.initialise(mr.RecurrentSpec("gru", 5, 3, **{field: OLD_HARD}))
    with pytest.raises(Unrepresentable, match=rf"{field}=.*alpha=0.2.*slope 1/6"):
        formats.save(weights, tmp_path / f"a{suffix}")
    assert not list(tmp_path.iterdir())
    formats.save(weights, tmp_path / "a.weights.h5")
    assert formats.load(tmp_path / "a.weights.h5") == weights


def test_a_masked_step_is_zero_as_in_a_spec(tmp_path: Path) -> None:
    weights = mr.initialise(mr.RecurrentSpec("gru", 5, 3))
    formats.save(weights, tmp_path / "a.keras")
    x, lengths = numbers(2, 4, 5), np.array([4, 2])
    expected = mr.build(weights, "numpy")(x, lengths=lengths).sequence
    close(keras.saving.load_model(tmp_path / "a.keras")(x, mask=np.arange(4) < lengths[:, None]), expected)


# --- Keras' own files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_layers_of_a_sequential_are_found_by_their_names(suffix: str, tmp_path: Path) -> None:
    model = sequential(
        layers.LSTM(3, return_sequences=True, name="first"),
        layers.Bidirectional(layers.GRU(4, return_sequences=True), name="both"),
        layers.SimpleRNN(2, activation="relu", name="last"),
        layers.Dense(1),
    )
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)  # the files hold its variables too
    path = tmp_path / f"a{suffix}"
    model.save_weights(path) if suffix == ".weights.h5" else model.save(path)
    found = by_name(path)
    assert set(found) == {"first", "both", "last"}
    x = numbers(2, 4, 5)
    known = {"activation": "relu"} if suffix == ".weights.h5" else {}
    for name in ("first", "both"):
        weights = formats.load(path, name)
        x_after = np.asarray(model.get_layer(name)(x))
        close(x_after, run(weights, x))
        x = x_after
    weights = formats.load(path, "last", **known)
    close(model.get_layer("last")(x), run(weights, x)[:, -1])
    assert weights.spec.activation == "relu"
    said = " ".join(found["last"].about)
    assert ("activations are not in the file" in said) == (suffix == ".weights.h5")
    assert ("its last output alone" in said) == (suffix != ".weights.h5")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_branches_and_nested_models(suffix: str, tmp_path: Path) -> None:
    a, b = keras.Input((None, 5), name="a"), keras.Input((None, 7), name="b")
    x = layers.LSTM(3, return_sequences=True, name="l1")(a)
    x = layers.LSTM(3, return_sequences=True, name="l2")(x)
    left = layers.GRU(3, return_sequences=True, name="left")(x)
    right = layers.GRU(3, return_sequences=True, name="right")(x)
    _, state = layers.GRU(3, return_state=True, name="g")(b)
    seeded = layers.GRU(3, name="seeded")(b, initial_state=state)
    inner = keras.Sequential([keras.Input((None, 3)), layers.GRU(4, return_sequences=True, name="g")], name="inner")
    model = drawn(keras.Model([a, b], [left, right, seeded, inner(x)]))
    path = tmp_path / f"a{suffix}"
    model.save_weights(path) if suffix == ".weights.h5" else model.save(path)
    found = by_name(path)
    with_config = {"l1 l2", "left", "right", "g", "seeded", "inner/g"}
    assert set(found) == (with_config if suffix != ".weights.h5" else {"l1", "l2", *with_config} - {"l1 l2"})
    sequence = numbers(2, 4, 3)
    close(model.get_layer("inner")(sequence), run(formats.load(path, "inner/g"), sequence))
    close(model.get_layer("right")(sequence), run(formats.load(path, "right"), sequence))
    if suffix != ".weights.h5":
        assert "initial state" in " ".join(found["seeded"].about)
        first = numbers(2, 4, 5)
        both = model.get_layer("l2")(model.get_layer("l1")(first))
        close(both, run(formats.load(path, "l1 l2"), first))


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("as_output", [True, False])
def test_a_layer_whose_output_is_used_twice_stays_by_itself(as_output: bool, suffix: str, tmp_path: Path) -> None:
    inputs = keras.Input((None, 3))
    first = layers.LSTM(3, return_sequences=True, name="l1")(inputs)
    second = layers.LSTM(3, return_sequences=True, name="l2")(first)
    outputs = [first, second] if as_output else layers.Concatenate()([first, second])
    keras.Model(inputs, outputs).save(tmp_path / f"a{suffix}")
    assert set(by_name(tmp_path / f"a{suffix}")) == {"l1", "l2"}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_frozen_layers_of_a_nested_model_keep_their_names(suffix: str, tmp_path: Path) -> None:
    """In the legacy format they come after those that are trained."""
    frozen = layers.GRU(3, activation="relu", return_sequences=True, trainable=False, name="frozen")
    trained = layers.GRU(3, return_sequences=True, name="trained")
    inner = keras.Sequential([keras.Input((None, 3)), frozen, layers.Dense(3), trained], name="frozen")
    model = sequential(inner, features=3)
    path = tmp_path / f"a{suffix}"
    model.save_weights(path) if suffix == ".weights.h5" else model.save(path)
    x = numbers(2, 4, 3)
    known = {"activation": "relu"} if suffix == ".weights.h5" else {}
    close(frozen(x), run(formats.load(path, "frozen/frozen", **known), x))
    close(trained(x), run(formats.load(path, "frozen/trained"), x))


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("frozen", ["forward_layer", "backward_layer", ""])
def test_directions_with_names_of_their_own(frozen: str, suffix: str, tmp_path: Path) -> None:
    back = layers.LSTM(3, go_backwards=True, return_sequences=True, name="zurück")
    both = layers.Bidirectional(layers.LSTM(3, return_sequences=True), backward_layer=back, name="both")
    model = sequential(both)
    if frozen:
        getattr(both, frozen).trainable = False
    model.save(tmp_path / f"a{suffix}")
    x = numbers(2, 4, 5)
    close(model(x), run(formats.load(tmp_path / f"a{suffix}"), x))


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "backward": (lambda: layers.LSTM(3, go_backwards=True, name="odd"), "go_backwards"),
    "sum": (lambda: layers.Bidirectional(layers.LSTM(3), merge_mode="sum", name="odd"), "merge_mode='sum'"),
    "leaky": (lambda: layers.LSTM(3, activation="leaky_relu", name="odd"), "'leaky_relu' is in no spec"),
    "object": (lambda: layers.GRU(3, activation=layers.LeakyReLU(), name="odd"), "'LeakyReLU' is in no spec"),
    "gates": (lambda: layers.GRU(3, recurrent_activation="softplus", name="odd"), "recurrent_activation 'softplus'"),
    "unlike": (
        lambda: layers.Bidirectional(
            layers.LSTM(3), backward_layer=layers.LSTM(3, activation="relu", go_backwards=True), name="odd"
        ),
        "directions differ in activation",
    ),
    "cells": (lambda: layers.RNN([layers.LSTMCell(3), layers.LSTMCell(3)], name="odd"), "several cells in one layer"),
}


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("case", REFUSED)
def test_a_layer_that_no_spec_describes_is_listed_with_the_reason(case: str, suffix: str, tmp_path: Path) -> None:
    make, reason = REFUSED[case]
    path = tmp_path / f"a{suffix}"
    model = sequential(layers.LSTM(3, return_sequences=True, name="good"), make())
    model.save(path)
    found = by_name(path)
    assert set(found) == {"good", "odd"}
    odd = found["odd"]
    assert odd.spec is None
    assert odd.parameter_count is None
    assert reason in odd.refused
    assert odd.to_dict()["refused"] == odd.refused
    assert not found["good"].refused
    x = numbers(2, 4, 5)
    close(model.get_layer("good")(x), run(formats.load(path, "good"), x))
    with pytest.raises(FormatError) as error:
        formats.load(path, "odd")
    assert reason in str(error.value)
    assert str(path) in str(error.value)


def test_what_a_spec_does_not_hold_but_the_sequence_is_the_same_is_declared(tmp_path: Path) -> None:
    path = tmp_path / "a.keras"
    model = keras.Sequential(
        [
            keras.Input((None, 5), batch_size=2),
            layers.Masking(name="mask"),
            layers.LSTM(3, stateful=True, return_sequences=True, dropout=0.1, recurrent_dropout=0.2, name="l"),
            layers.TimeDistributed(layers.Dense(3)),
            layers.RNN(layers.GRUCell(3), return_sequences=True, name="cell"),
        ]
    )
    drawn(model).save(path)
    found = by_name(path)
    said = " ".join(found["l"].about)
    for words in ("dropout=0.1", "recurrent_dropout=0.2", "keeps its state", "'mask' of its model masks"):
        assert words in said
    x = numbers(2, 4, 3)
    close(model.get_layer("cell")(x), run(formats.load(path, "cell"), x))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "mixed_float16", "float64"])
def test_other_dtypes_are_widened_exactly_or_declared(dtype: str, tmp_path: Path) -> None:
    path = tmp_path / "a.keras"
    layer = layers.LSTM(3, recurrent_initializer="glorot_uniform", dtype=dtype, name="l")
    keras.Sequential([keras.Input((None, 5)), layer]).save(path)
    (found,) = formats.inspect(path)
    stored = {"mixed_float16": "float32"}.get(dtype, dtype)
    assert found.stored == stored
    assert found.spec is not None
    assert found.spec.dtype == ("float64" if dtype == "float64" else "float32")
    assert ("'mixed_float16'" in " ".join(found.about)) == (dtype == "mixed_float16")
    own = np.asarray(keras.ops.cast(layer.cell.kernel, "float64"))
    loaded = mr.to_arrays(formats.load(path), convention="keras")
    assert np.array_equal(next(iter(loaded.values())), own)


def test_the_activations_of_the_keras_backend_are_read(tmp_path: Path) -> None:
    spec = mr.RecurrentSpec("gru", 5, 3, activation=Activation("elu", 0.3), recurrent_activation=OLD_HARD)
    layer = mr.build(spec, "keras")
    layer.native.save(tmp_path / "a.keras")
    assert formats.load(tmp_path / "a.keras") == layer.weights()


@pytest.mark.parametrize("kind", ["LSTM", "SimpleRNN", "MyOwnRNN2D", "TimeDistributed", "my_Layer", "X1Gru"])
def test_variables_are_filed_under_the_name_of_the_class(kind: str) -> None:
    from keras.src.utils.naming import to_snake_case

    (found,) = described({"config": [{"class_name": kind, "config": {"name": "own"}}]})
    assert found.path == f"layers/{to_snake_case(kind)}"
