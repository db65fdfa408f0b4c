"""`replace_layers` on Keras models: the objects stay, what runs is fast, and `restore` leaves no trace."""

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

import multirnn as mr

multirnn_keras = pytest.importorskip("multirnn_keras")
keras = pytest.importorskip("keras")

from keras_layers import ON_TENSORFLOW, assert_close, in_a_process, numpy_of  # noqa: E402
from keras_models import MODELS, Made, made  # noqa: E402
from multirnn_keras import FastGRU, FastLSTM, fast  # noqa: E402

layers = keras.layers
TAGGER = (
    ("inner/both/forward_lstm", "LSTM", "FastLSTM"),
    ("inner/both/backward_lstm", "LSTM", "FastLSTM"),
    ("again", "GRU", "FastGRU"),
)
REPLACED = {
    "language_model": (("lstm", "LSTM", "FastLSTM"), ("lstm_1", "LSTM", "FastLSTM")),
    "tagger": TAGGER,
    "translator": (("encoder", "LSTM", "FastLSTM"), ("decoder", "RNN", "FastRNN")),
    "forecaster": (("gru", "GRU", "FastGRU"), ("gru_1", "GRU", "FastGRU")),
}


def recurrent(model: Any) -> list[Any]:
    return [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.RNN)]


def kinds(model: Any) -> list[Any]:
    return [type(layer) for layer in recurrent(model)]


def is_fast(model: Any) -> bool:
    """Whether all its recurrent layers are; none of some would be neither."""
    (found,) = {isinstance(layer, fast.Fast) for layer in recurrent(model)}
    return found


def losses_of(given: Made, **options: Any) -> list[float]:
    history = given.model.fit(given.x, given.y, batch_size=3, shuffle=False, verbose=0, **options)
    return list(history.history["loss"])


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the layers whose fast loop ran or was traced."""
    names: list[str] = []
    given = fast.Fast._given

    def noted(self: Any, *arguments: Any) -> Any:
        names.append(self.name)
        return given(self, *arguments)

    monkeypatch.setattr(fast.Fast, "_given", noted)
    return names


# --- The model around the layers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_a_model_trains_as_before_over_replacing_and_restoring(name: str, ran: list[str]) -> None:
    stock, ours = made(name), made(name)
    model = ours.model
    expected = numpy_of(model(ours.x))
    before = [(id(layer), type(layer), list(vars(layer)), layer.get_config()) for layer in recurrent(model)]
    paths, variables = [weight.path for weight in model.weights], list(map(id, model.weights))
    assert not ran

    replacement = mr.replace_layers(model)
    assert replacement.model is model
    assert (replacement.replaced, replacement.kept) == (REPLACED[name], ())
    assert is_fast(model)
    assert [(id(layer), layer.get_config()) for layer in recurrent(model)] == [(one[0], one[3]) for one in before]
    assert [weight.path for weight in model.weights] == paths
    assert_close(numpy_of(model(ours.x)), expected)
    assert set(ran) == {layer.name for layer in recurrent(model)}
    ran.clear()
    losses = losses_of(ours)
    assert set(ran) == {layer.name for layer in recurrent(model) if not getattr(layer, "dropout", 0)}
    ran.clear()

    replacement.restore()
    assert [(id(layer), type(layer), list(vars(layer)), layer.get_config()) for layer in recurrent(model)] == before
    assert list(map(id, model.weights)) == variables
    losses += losses_of(ours)
    assert not ran

    for _ in range(2):
        stock.model(stock.x)  # where a layer has dropout, calls draw numbers even if they are not training
    assert_close(np.array(losses), np.array(losses_of(stock, epochs=2)))
    assert_close(numpy_of(model(ours.x)), numpy_of(stock.model(ours.x)))


def small() -> Made:
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((None, 5)), layers.LSTM(11), layers.Dense(2)])
    model.compile(keras.optimizers.Adam(0.01), "mse")
    rng = np.random.default_rng(0)
    return Made(model, *(rng.standard_normal(shape).astype("float32") for shape in ((6, 7, 5), (6, 2))))


def test_compiled_steps_and_the_optimiser_go_on() -> None:
    """Replaced and restored between two calls of `fit`: the optimiser's averages too are as without."""
    stock, ours = (small() for _ in range(2))
    losses = losses_of(ours)
    averages = list(map(id, ours.model.optimizer.variables))
    replacement = mr.replace_layers(ours.model)
    assert ours.model.train_function is None
    losses += losses_of(ours)
    replacement.restore()
    assert ours.model.train_function is None
    losses += losses_of(ours)
    assert list(map(id, ours.model.optimizer.variables)) == averages
    assert_close(np.array(losses), np.array(losses_of(stock, epochs=3)))
    for actual, expected in zip(ours.model.get_weights(), stock.model.get_weights(), strict=True):
        assert_close(actual, expected)


def test_restored_at_once_it_computes_the_same_bits() -> None:
    given = made("tagger")
    expected, predicted = numpy_of(given.model(given.x)), given.model.predict(given.x, verbose=0)
    replacement = mr.replace_layers(given.model)
    given.model.predict(given.x, verbose=0)
    replacement.restore()
    assert np.array_equal(numpy_of(given.model(given.x)), expected)
    assert np.array_equal(given.model.predict(given.x, verbose=0), predicted)
    replacement.restore()
    assert not is_fast(given.model)


def test_dropout_draws_the_same_numbers(ran: list[str]) -> None:
    outputs = []
    for replace in (False, True):
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((7, 5)), layers.GRU(11, dropout=0.3, recurrent_dropout=0.2, seed=4)])
        if replace:
            mr.replace_layers(model)
        x = np.random.default_rng(0).standard_normal((3, 7, 5)).astype("float32")
        outputs += [numpy_of(model(x, training=training)) for training in (True, False, True)]
    for actual, expected in zip(outputs[3:], outputs[:3], strict=True):
        assert_close(actual, expected)
    assert mr.difference(outputs[2], outputs[0]).normwise > mr.tolerance("float32")
    assert len(ran) == 1


def test_the_summary_and_the_names_stay() -> None:
    model = made("tagger").model

    def summary() -> list[str]:
        lines: list[str] = []
        model.summary(print_fn=lines.append, expand_nested=True)
        return lines

    expected = summary()
    mr.replace_layers(model)
    assert summary() == expected
    assert isinstance(model.get_layer("again"), keras.layers.GRU)
    assert "0 of 3 recurrent layers replaced" in str(mr.replace_layers(model))


def test_files_of_weights_pass_between_replaced_and_stock(tmp_path) -> None:
    stock, ours, other = (made("forecaster").model for _ in range(3))  # whose files have the names of classes
    mr.replace_layers(ours)
    stock.set_weights([array + 0.125 for array in stock.get_weights()])
    stock.save_weights(tmp_path / "a.weights.h5")
    ours.load_weights(tmp_path / "a.weights.h5")
    assert all(map(np.array_equal, ours.get_weights(), stock.get_weights()))
    ours.save_weights(tmp_path / "b.weights.h5")
    other.load_weights(tmp_path / "b.weights.h5")
    assert all(map(np.array_equal, other.get_weights(), stock.get_weights()))


def test_a_stateful_layer_keeps_its_state_from_batch_to_batch(ran: list[str]) -> None:
    model = keras.Sequential([keras.Input((4, 5), batch_size=3), layers.LSTM(11, stateful=True), layers.Dense(2)])
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype("float32")
    expected = [numpy_of(model(part)) for part in x]
    model.layers[0].reset_state()
    replacement = mr.replace_layers(model)
    first = numpy_of(model(x[0]))
    assert len(ran) == 1
    replacement.restore()
    assert_close(first, expected[0])
    assert_close(numpy_of(model(x[1])), expected[1])


def test_options_of_keras_layers_compute_the_same(ran: list[str]) -> None:
    """Backward, masked in the middle, with states of the caller; a layer over a cell of Keras' own."""
    rng = np.random.default_rng(0)
    x, state = rng.standard_normal((3, 7, 5)).astype("float32"), rng.standard_normal((3, 11)).astype("float32")
    mask = rng.random((3, 7)) < 0.6
    for layer in (
        layers.SimpleRNN(11, go_backwards=True, return_sequences=True, return_state=True),
        layers.GRU(11, reset_after=False, zero_output_for_mask=True, return_sequences=True, return_state=True),
        layers.RNN(layers.GRUCell(11, activation="relu"), go_backwards=True, return_state=True),
        layers.RNN(layers.LSTMCell(11, use_bias=False), return_sequences=True, return_state=True),
    ):
        states = [state] * (2 if "LSTM" in type(getattr(layer, "cell", layer)).__name__ else 1)
        expected = layer(x, initial_state=states, mask=mask)
        mr.replace_layers(layer)
        ran.clear()
        for actual, wanted in zip(layer(x, initial_state=states, mask=mask), expected, strict=True):
            assert_close(numpy_of(actual), numpy_of(wanted))
        assert ran == [layer.name]


@pytest.mark.skipif(not ON_TENSORFLOW, reason="XLA of TensorFlow")
def test_jit_compile_trains_a_replaced_model() -> None:
    found = []
    for replace in (False, True):
        given = small()
        if replace:
            mr.replace_layers(given.model)
        given.model.compile("sgd", "mse", jit_compile=True)
        found.append(losses_of(given, epochs=2))
        assert given.model.jit_compile
    assert_close(np.array(found[1]), np.array(found[0]))


def test_layers_made_later_are_found_by_a_second_call() -> None:
    model = keras.Sequential([keras.Input((None, 5)), layers.LSTM(11, return_sequences=True, name="a")])
    first = mr.replace_layers(model)
    model.add(layers.GRU(7, name="b"))
    second = mr.replace_layers(model)
    assert second.replaced == (("b", "GRU", "FastGRU"),)
    assert second.kept == (("a", "FastLSTM", "it is fast already"),)
    first.restore()
    assert [isinstance(layer, fast.Fast) for layer in model.layers] == [False, True]
    second.restore()
    assert kinds(model) == [layers.LSTM, layers.GRU]


def test_the_layer_itself_and_names_that_are_used_twice() -> None:
    layer = layers.LSTM(11)
    assert mr.replace_layers(layer).replaced == (("", "LSTM", "FastLSTM"),)
    twins = keras.layers.Layer()
    twins.parts = [layers.GRU(3, name="same"), layers.GRU(3, name="same")]
    replacement = mr.replace_layers(twins)
    assert [path for path, *_ in replacement.replaced] == ["same", "same#2"]
    replacement.restore()
    assert [type(part) for part in twins.parts] == [layers.GRU] * 2


# --- Copies ----------------------------------------------------------------------------------------------------------

COPIES: list[Callable[[Any], Any]] = [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))]
every_copy = pytest.mark.parametrize("copied", COPIES, ids=["deepcopy", "pickle"])


@every_copy
@pytest.mark.parametrize("name", ["tagger", "forecaster"])
def test_a_copy_of_both_restores_the_copy(name: str, copied: Callable[[Any], Any]) -> None:
    given = made(name)
    expected = numpy_of(given.model(given.x))
    replacement = mr.replace_layers(given.model)
    other, again = copied((given.model, replacement))
    assert again.model is other
    assert (again.replaced, again.kept, str(again)) == (replacement.replaced, replacement.kept, str(replacement))
    assert is_fast(other) is (name == "tagger")  # the constructor of a model of one's own makes Keras' layers
    assert_close(numpy_of(other(given.x)), expected)
    again.restore()
    assert not is_fast(other)
    assert np.array_equal(numpy_of(other(given.x)), expected)
    assert is_fast(given.model)
    replacement.restore()
    assert np.array_equal(numpy_of(given.model(given.x)), expected)


@every_copy
def test_a_copy_alone_is_put_back_by_native(copied: Callable[[Any], Any]) -> None:
    given = made("tagger")
    expected = numpy_of(given.model(given.x))
    mr.replace_layers(given.model)
    other = copied(given.model)
    assert is_fast(other)
    replacement = mr.replace_layers(other, "native")
    assert replacement.replaced == tuple((path, after, before) for path, before, after in TAGGER)
    assert np.array_equal(numpy_of(other(given.x)), expected)
    replacement.restore()
    assert kinds(other) == kinds(given.model)
    assert_close(numpy_of(other(given.x)), expected)


def test_clones_and_configurations_are_fast_too() -> None:
    given = made("translator")
    mr.replace_layers(given.model)
    for other in (keras.models.clone_model(given.model), keras.Model.from_config(given.model.get_config())):
        other.set_weights(given.model.get_weights())
        assert kinds(other) == kinds(given.model)
        assert np.array_equal(numpy_of(other(given.x)), numpy_of(given.model(given.x)))


def test_a_copy_whose_model_has_other_layers_now_says_so() -> None:
    model = keras.Sequential([keras.Input((None, 5)), layers.LSTM(3)])
    replacement = mr.replace_layers(model)
    model.pop()
    with pytest.raises(mr.InvalidCall, match="are not those that were replaced"):
        copy.deepcopy(replacement)


def test_fast_layers_of_the_users_own_are_made_native_and_fast_again() -> None:
    model = keras.Sequential([keras.Input((None, 5)), FastLSTM(3, return_sequences=True), FastGRU(4)])
    replacement = mr.replace_layers(model, "native")
    assert [row[1:] for row in replacement.replaced] == [("FastLSTM", "LSTM"), ("FastGRU", "GRU")]
    assert kinds(model) == [layers.LSTM, layers.GRU]
    replacement.restore()
    assert kinds(model) == [FastLSTM, FastGRU]


def test_a_class_that_was_changed_by_others_is_left() -> None:
    model = keras.Sequential([keras.Input((None, 5)), layers.LSTM(3, name="a"), layers.Dense(2)])
    replacement = mr.replace_layers(model)
    other = type("Other", (keras.layers.LSTM,), {})
    object.__setattr__(model.layers[0], "__class__", other)
    with pytest.raises(mr.InvalidCall, match="a is now a Other, which has no LSTM to go back to"):
        replacement.restore()
    assert type(model.layers[0]) is other


# --- The other engines -----------------------------------------------------------------------------------------------

ELSEWHERE = """
import sys
import keras
import numpy as np
import multirnn as mr
from test_replacement_keras import assert_close, is_fast, losses_of, numpy_of, small
stock, given = small(), small()
expected = numpy_of(given.model(given.x))
replacement = mr.replace_layers(given.model)
assert_close(numpy_of(given.model(given.x)), expected)
losses = losses_of(given)
path = f"{sys.argv[1]}.keras"
replacement.save(path)
assert is_fast(given.model) and not is_fast(keras.saving.load_model(path))
replacement.restore()
losses += losses_of(given)
assert_close(np.array(losses), np.array(losses_of(stock, epochs=2)))
"""


def test_on_the_other_engines(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    engines = [engine for engine in ("jax", "torch") if find_spec(engine)]
    with ThreadPoolExecutor() as pool:
        for done in pool.map(lambda engine: in_a_process(ELSEWHERE, engine, KERAS_BACKEND=engine), engines):
            assert done.returncode == 0, done.stderr
