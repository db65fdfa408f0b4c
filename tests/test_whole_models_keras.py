"""Four whole models in Keras on TensorFlow, their layers replaced: predicted, trained, saved, exported and restored."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import whole_models_keras as models

import multirnn as mr

OTHERS = ((1, 2), (4, 17))  # batch and time


@dataclass(frozen=True)
class Case:
    """A model, its inputs by batch and time, and how many recurrent layers it has."""

    make: Callable[[], keras.Model]
    draw: Callable[[int, int], Any]
    layers: int


def words(batch: int, time: int) -> np.ndarray:
    return np.random.default_rng(batch).integers(1, 17, (batch, time)).astype("int32")


def sentences(batch: int, time: int) -> np.ndarray:
    lengths = np.random.default_rng(time).integers(1, time + 1, batch)
    return np.where(np.arange(time) < lengths[:, None], words(batch, time), 0)


def history(batch: int, time: int) -> np.ndarray:
    return np.random.default_rng(batch).standard_normal((batch, time, 3)).astype("float32")


CASES = {
    "language model": Case(models.language_model, words, 2),
    "tagger": Case(models.tagger, sentences, 2),
    "translator": Case(models.translator, lambda batch, time: [words(batch, time + 3), words(batch, time)], 2),
    "forecaster": Case(models.forecaster, history, 2),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def pair(case: Case) -> tuple[keras.Model, keras.Model, Any]:
    """The model with Keras' layers, the same with ours, and what replaced them."""
    stock, fast = made(case), made(case)
    replacement = mr.replace_layers(fast)
    assert len(replacement.replaced) == case.layers
    assert not replacement.kept
    return stock, fast, replacement


def made(case: Case) -> keras.Model:
    """Always with the same weights, and the same seeds of its dropout."""
    keras.utils.set_random_seed(3)
    return case.make()


def run(model: keras.Model, inputs: Any) -> np.ndarray:
    return np.asarray(model(inputs))


def gradients(model: keras.Model, inputs: Any, cotangent: np.ndarray) -> list[np.ndarray]:
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(model(inputs) * cotangent)
    return [tf.convert_to_tensor(each).numpy() for each in tape.gradient(total, model.trainable_variables)]


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    found = mr.difference(actual, expected)
    assert found.normwise <= mr.tolerance("float32"), found


@every_case
def test_outputs_and_gradients_are_those_of_the_stock_model(case: Case) -> None:
    stock, fast, _ = pair(case)
    for batch, time in OTHERS:
        inputs = case.draw(batch, time)
        assert_close(run(fast, inputs), expected := run(stock, inputs))
    cotangent = np.random.default_rng(8).standard_normal(expected.shape).astype("float32")
    for one, other in zip(*(gradients(model, inputs, cotangent) for model in (fast, stock)), strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("name", CASES)
def test_losses_of_training_are_the_same_with_the_same_dropout(name: str) -> None:
    case = CASES[name]
    jit = "auto" if name == "language model" else False  # XLA compiles for seconds
    stock, fast, _ = pair(case)
    inputs = case.draw(8, 9)
    target = np.random.default_rng(9).standard_normal(run(stock, inputs).shape).astype("float32")

    def losses(model: keras.Model) -> np.ndarray:
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse", jit_compile=jit)
        told = model.fit(inputs, target, batch_size=4, epochs=2, shuffle=False, verbose=0)
        return np.array(told.history["loss"], "float32")

    expected = losses(stock)
    assert expected[-1] < expected[0]
    assert_close(losses(fast), expected)


@every_case
def test_restored_it_is_the_stock_model_again(case: Case) -> None:
    model = made(case)
    inputs = case.draw(3, 7)
    before, config = model.predict(inputs, verbose=0), model.get_config()
    replacement = mr.replace_layers(model)
    assert_close(model.predict(inputs, verbose=0), before)
    replacement.restore()
    assert model.get_config() == config
    np.testing.assert_array_equal(model.predict(inputs, verbose=0), before)


@every_case
def test_saved_it_is_a_file_of_stock_layers(case: Case, tmp_path: Path) -> None:
    _, fast, replacement = pair(case)
    replacement.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert not [layer for layer in loaded._flatten_layers() if "multirnn" in type(layer).__module__]
    inputs = case.draw(3, 7)
    assert_close(run(loaded, inputs), run(fast, inputs))


@every_case
def test_exported_it_is_served(case: Case, tmp_path: Path) -> None:
    stock, fast, _ = pair(case)
    run(fast, case.draw(3, 7))
    fast.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(tmp_path / "served")  # its variables live as long as it does
    for batch, time in OTHERS:
        inputs = case.draw(batch, time)
        assert_close(served.serve(inputs).numpy(), run(stock, inputs))
