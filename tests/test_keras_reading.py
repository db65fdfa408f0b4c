"""What is read of Keras' objects is what they compute: structure finds it, one call confirms it and leaves no trace."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import multirnn as mr
from multirnn.adoption import adopt
from multirnn.numerics import draw_call

multirnn_keras = pytest.importorskip("multirnn_keras")
keras = pytest.importorskip("keras")
layers = keras.layers
ops = keras.ops

BACKEND = multirnn_keras.BACKEND
SIZE = 5
"""Of the features and the units, so that a layer can be fed with its own output."""


def built(layer: Any, batch: int | None = None) -> Any:
    layer.build((batch, None, SIZE))
    return drawn(layer)


def drawn(native: Any) -> Any:
    rng = np.random.default_rng(0)
    native.set_weights([rng.uniform(-0.9, 0.9, array.shape).astype(array.dtype) for array in native.get_weights()])
    return native


def gru(**options: Any) -> Any:
    return layers.GRU(SIZE, return_sequences=True, **options)


def model(make: Callable[[Any], Any], **shape: Any) -> Any:
    inputs = keras.Input(**(shape or {"shape": (None, SIZE)}))
    return drawn(keras.Model(inputs, make(inputs), name="m"))


def outputs_of(native: Any, x: np.ndarray) -> list[np.ndarray]:
    return [np.asarray(ops.convert_to_numpy(part)) for part in keras.tree.flatten(native(x))]


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    assert mr.difference(actual, expected).normwise <= mr.tolerance("float32")


# --- What is no stack, though its layers are -------------------------------------------------------------------------


def twice(inputs: Any) -> Any:
    layer = gru(name="g")
    return layer(layer(inputs))


def thrice_with_another_between(inputs: Any) -> Any:
    layer = gru(name="g")
    return layer(gru()(layer(inputs)))


def with_the_middle(inputs: Any) -> Any:
    hidden = gru(name="below")(inputs)
    return [hidden, gru()(hidden)]


def with_the_sequence_below(inputs: Any) -> Any:
    hidden, _ = layers.GRU(SIZE, return_sequences=True, return_state=True, name="below")(inputs)
    return [gru()(hidden), hidden]


NO_STACK: dict[str, tuple[Callable[[Any], Any], str]] = {
    "one layer twice": (twice, "layer 'g' runs more than once in model 'm'"),
    "one layer twice, another between": (thrice_with_another_between, "layer 'g' runs more than once in model 'm'"),
    "the middle is returned": (with_the_middle, "model 'm' returns what layer 'below' does too"),
    "the middle is returned after": (with_the_sequence_below, "model 'm' returns what layer 'below' does too"),
    "the input is returned": (lambda i: [i, gru()(i)], "model 'm' returns what layer"),
    "flipped before": (lambda i: gru()(ops.flip(i, axis=1)), "the layers of model 'm' are not one stack"),
    "flipped after": (lambda i: ops.flip(gru()(i), axis=1), "the layers of model 'm' are not one stack"),
    "scaled after": (lambda i: 2 * gru()(i), "the layers of model 'm' are not one stack"),
    "shifted between": (lambda i: gru()(gru()(i) + 0.5), "the layers of model 'm' are not one stack"),
    "residual": (lambda i: i + gru()(i), "the layers of model 'm' are not one stack"),
    "a layer after": (lambda i: layers.Activation("relu", name="after")(gru()(i)), "layer 'after' is of the class"),
    "Masking before": (lambda i: gru()(layers.Masking(name="mask")(i)), "the layers of model 'm' are not one stack"),
    "fed by the states": (
        lambda i: gru()(i, initial_state=layers.GRU(SIZE)(i)),
        "the layers of model 'm' are not one stack",
    ),
    "a constant state": (lambda i: gru()(i, initial_state=ops.ones((1, SIZE))), "model 'm' "),
    "a constant mask": (lambda i: gru(name="g")(i, mask=np.arange(7)[None] < 3), "model 'm' "),
}


@pytest.mark.parametrize("name", NO_STACK)
def test_what_is_no_stack(name: str) -> None:
    make, sentence = NO_STACK[name]
    native = model(make)
    with pytest.raises(mr.Unrepresentable) as refusal:
        mr.read(native)
    assert str(refusal.value).startswith(sentence)
    with pytest.raises(mr.InvalidCall, match="To run it as it is, pass spec="):
        adopt(native)


def test_it_is_not_diagnosed_as_a_stack() -> None:
    spec = mr.RecurrentSpec("gru", SIZE, SIZE)
    with pytest.raises(mr.InvalidCall, match="runs more than once"):
        mr.diagnose(model(twice), BACKEND.build(mr.initialise(spec, seed=1)))


# --- What does not compute what its layers say -----------------------------------------------------------------------


def with_call(thing: Any, after: Callable[[Any], Any] = lambda y: 1.25 * y) -> Any:
    """An object whose `call` is replaced."""
    original = thing.call
    thing.call = lambda *args, **kwargs: keras.tree.map_structure(after, original(*args, **kwargs))
    return thing


def changed(native: Any, part: Callable[[Any], Any]) -> Any:
    with_call(part(native))
    return native


class Shifted(keras.Sequential):
    """A model of the user's own class."""

    def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        return super().call(inputs + 0.25, training=training, mask=mask)


class NoisyCell(layers.GRUCell):
    """A cell of the user's own class, which draws."""

    def call(self, inputs: Any, states: Any, training: Any = None) -> Any:
        return super().call(inputs + keras.random.normal(inputs.shape), states)


def with_cell(layer: Any, cell: Any) -> Any:
    layer.cell = cell
    return built(layer)


def both_ways(**options: Any) -> Any:
    return layers.Bidirectional(gru(), **options)


def backward_layer_turned() -> Any:
    native = built(both_ways())
    native.backward_layer.go_backwards = False
    return native


UNLIKE: dict[str, Callable[[], Any]] = {
    "a layer's call": lambda: changed(built(gru()), lambda native: native),
    "a layer's call, in Bidirectional": lambda: changed(built(both_ways()), lambda native: native.backward_layer),
    "a Bidirectional's call": lambda: changed(built(both_ways()), lambda native: native),
    "a cell's call": lambda: changed(built(gru()), lambda native: native.cell),
    "a cell's call, in a fast layer": lambda: changed(
        built(multirnn_keras.FastGRU(SIZE, return_sequences=True)), lambda native: native.cell
    ),
    "a layer's call, in a model": lambda: changed(model(lambda i: gru()(gru()(i))), lambda native: native.layers[1]),
    "a model's call": lambda: changed(model(lambda i: gru()(i)), lambda native: native),
    "a Sequential of its own class": lambda: built(Shifted([gru()])),
    "a cell of its own class": lambda: with_cell(gru(), NoisyCell(SIZE)),
    "a backward layer that runs forward": backward_layer_turned,
}


@pytest.mark.parametrize("name", UNLIKE)
def test_what_does_not_compute_what_its_layers_say(name: str) -> None:
    native = UNLIKE[name]()
    with pytest.raises(
        mr.Unrepresentable, match=f"{native.name}' does not compute the stack that its weights describe"
    ):
        mr.read(native)
    with pytest.raises(mr.InvalidCall, match="To run it as it is, pass spec="):
        adopt(native)


def test_what_cannot_be_called() -> None:
    native = built(gru(name="g"))
    native.call = lambda x: x
    with pytest.raises(mr.Unrepresentable, match=r"layer 'g' could not be called on x .* TypeError, shown above"):
        mr.read(native)


@pytest.mark.parametrize("name", ["a layer's call", "a model's call", "a Sequential of its own class"])
def test_it_is_adopted_as_it_is_all_the_same(name: str) -> None:
    """Held to be what it is said to be, called as a whole."""
    native = UNLIKE[name]()
    spec = mr.RecurrentSpec("gru", SIZE, SIZE)
    x, _, _ = draw_call(spec, 3)
    adopted = adopt(native, spec=spec)
    assert not adopted.readable
    assert_close(adopted(x).sequence, outputs_of(native, x)[0])


# --- One weight at two places ----------------------------------------------------------------------------------------


def tied() -> Any:
    native = drawn(keras.Sequential([keras.Input((None, SIZE)), gru(), gru()], name="m"))
    native.layers[1].cell._tracker.unlock()  # as it is in the build of a layer of the user's own
    native.layers[1].cell.recurrent_kernel = native.layers[0].cell.recurrent_kernel
    return native


def tied_directions() -> Any:
    native = built(both_ways(name="m"))
    native.backward_layer._tracker.unlock()
    native.backward_layer.cell = native.forward_layer.cell
    return native


@pytest.mark.parametrize("make", [tied, tied_directions])
def test_a_weight_at_two_places_is_refused(make: Callable[[], Any]) -> None:
    """Its gradient would stand under two names, and training would move the two apart."""
    with pytest.raises(mr.Unrepresentable, match="'m' has a weight at two places, and a spec has each once"):
        mr.read(make())


# --- What is a stack -------------------------------------------------------------------------------------------------


def lstm_pair(returned: Callable[[Any, list[Any], list[Any]], Any]) -> Callable[[Any], Any]:
    def make(inputs: Any) -> Any:
        options = {"return_sequences": True, "return_state": True}
        hidden, *below = layers.LSTM(SIZE, **options)(inputs)
        y, *above = layers.LSTM(SIZE, **options)(hidden)
        return returned(y, below, above)

    return make


STACKS: dict[str, Callable[[], Any]] = {
    "all": lambda: model(lstm_pair(lambda y, below, above: [y, *below, *above])),
    "states of the last layer": lambda: model(lstm_pair(lambda y, below, above: above)),
    "c before y": lambda: model(lstm_pair(lambda y, below, above: [above[1], y])),
    "states of the first layer": lambda: model(lstm_pair(lambda y, below, above: [y, below[0]])),
    "the last output and the states": lambda: built(
        both_ways(name="b").__class__(layers.LSTM(SIZE, return_state=True))
    ),
    "zero as the last output": lambda: built(layers.GRU(SIZE, zero_output_for_mask=True)),
    "one batch": lambda: model(lambda i: gru()(i), batch_shape=(3, None, SIZE)),
    "one row": lambda: model(lambda i: both_ways()(i), batch_shape=(1, None, SIZE)),
    "one time": lambda: model(lambda i: layers.GRU(SIZE)(gru(unroll=True)(i)), shape=(11, SIZE)),
    "one step": lambda: model(lambda i: gru()(i), batch_shape=(2, 1, SIZE)),
    "used elsewhere too": lambda: used_elsewhere(),
    "stateful": lambda: built(gru(stateful=True), 3),
    "a stateful model": lambda: model(lambda i: gru(stateful=True)(gru()(i)), batch_shape=(4, None, SIZE)),
    "no numbers": lambda: no_numbers(),
}


def used_elsewhere() -> Any:
    layer = gru()
    layer(keras.Input((3, SIZE)))
    return model(lambda i: layer(i))


def no_numbers() -> Any:
    native = built(gru())
    native.set_weights([array * np.nan for array in native.get_weights()])
    return native


@pytest.mark.parametrize("name", STACKS)
def test_what_is_a_stack(name: str) -> None:
    native = STACKS[name]()
    weights = mr.read(native)
    found = [*(np.asarray(array) for array in native.get_weights())]
    assert sum(array.size for array in found) - weights.spec.parameter_count in (0, SIZE * 3, SIZE * 4)  # and states


def test_the_states_of_a_model_are_confirmed_too() -> None:
    """Where a replaced method changes one of them alone."""
    native = model(lstm_pair(lambda y, below, above: [y, *above]))
    original = native.call
    native.call = lambda *args, **kwargs: [
        part if place < 2 else part * 1.5 for place, part in enumerate(original(*args, **kwargs))
    ]
    with pytest.raises(mr.Unrepresentable, match="its final c is off by"):
        mr.read(native)


# --- No trace --------------------------------------------------------------------------------------------------------


def draws_of_now() -> list[bytes]:
    """The next number of every stream, which all move on by it."""
    drawn = [keras.random.normal((2,)), np.random.standard_normal(2), random.random()]  # noqa: NPY002
    if BACKEND.engine == "tensorflow":
        import tensorflow as tf

        drawn.append(tf.random.normal((2,)))
    elif BACKEND.engine == "torch":
        import torch

        drawn.append(torch.rand(2))
    return [np.asarray(each).tobytes() for each in drawn]


def drawing(native: Any) -> Any:
    """Its `call` draws from every stream, and adds a loss and an update."""
    native._tracker.unlock()
    native.count = native.add_weight(shape=(), initializer="zeros", trainable=False, name="count")
    original = native.call

    def call(*args: Any, **kwargs: Any) -> Any:
        draws_of_now()
        native.count.assign_add(1.0)
        native.add_loss(ops.ones(()))
        return original(*args, **kwargs)

    native.call = call
    return native


def test_random_numbers_go_on_as_if_nothing_was_read() -> None:
    native = drawing(built(gru()))
    found = []
    for reads in (False, True):
        keras.utils.set_random_seed(3)
        first = draws_of_now()
        if reads:
            mr.read(native)
        found.append([first, draws_of_now(), draws_of_now()])
    assert found[0] == found[1]


def test_reading_first_leaves_the_seed_of_layers_without_one() -> None:
    found = []
    for reads in (False, True):
        keras.utils.clear_session(free_memory=False)
        native = drawing(built(gru()))
        keras.utils.set_random_seed(3)
        if reads:
            mr.read(native)
        found.append(draws_of_now())
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["stateful", "a stateful model", "all", "states of the last layer"])
def test_variables_and_flags_are_as_before(name: str) -> None:
    native = STACKS[name]()
    batch = 4 if name == "a stateful model" else 3
    x = np.random.default_rng(0).standard_normal((batch, 7, SIZE)).astype("float32")
    native(x)  # stateful layers go on from here

    def seen() -> Any:
        parts = native._flatten_layers()
        flags = [
            (part.built, part.trainable, getattr(part, "use_cudnn", None), len(part._inbound_nodes)) for part in parts
        ]
        return [array.tobytes() for array in native.get_weights()], flags, len(native.losses), len(native.variables)

    before = seen()
    mr.read(native)
    assert seen() == before


def test_losses_and_counters_are_as_before() -> None:
    native = drawing(built(gru()))
    native(np.zeros((3, 7, SIZE), "float32"))
    before = len(native.losses), float(native.count.value)
    mr.read(native)
    assert (len(native.losses), float(native.count.value)) == before


# --- Layers of ours --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", BACKEND.implementations)
def test_a_layer_whose_model_was_changed_does_not_tell_its_weights(implementation: str) -> None:
    spec = mr.RecurrentSpec("gru", SIZE, SIZE)
    layer = BACKEND.build(mr.initialise(spec, seed=1), implementation=implementation)
    layer.native.layers[0].cell.activation = keras.activations.relu
    with pytest.raises(mr.Unrepresentable, match=r"the model of this layer was .* and is now .*relu"):
        layer.weights()
    layer = BACKEND.build(mr.initialise(spec, seed=1), implementation=implementation)
    with_call(layer.native.layers[0])
    with pytest.raises(mr.Unrepresentable, match="does not compute the stack that its weights describe"):
        layer.weights()


@pytest.mark.parametrize("name", ["SimpleRNN", "LSTM", "GRU"])
def test_a_fast_layer_of_the_users_own_class(name: str) -> None:
    """It is as fast, and is what Keras' own layer is."""
    own = type("Own", (getattr(multirnn_keras, f"Fast{name}"),), {})
    mine, theirs = built(own(SIZE)), built(getattr(layers, name)(SIZE))
    x = np.random.default_rng(0).standard_normal((3, 7, SIZE)).astype("float32")
    assert mine.form() is not None
    assert_close(outputs_of(mine, x)[0], outputs_of(theirs, x)[0])


def test_a_fast_layer_with_a_cell_of_its_own_runs_it() -> None:
    class Doubled(layers.GRUCell):
        def call(self, inputs: Any, states: Any, training: Any = None) -> Any:
            return super().call(2 * inputs, states, training)

    x = np.random.default_rng(0).standard_normal((3, 7, SIZE)).astype("float32")
    mine = with_cell(multirnn_keras.FastGRU(SIZE), Doubled(SIZE))
    theirs = with_cell(layers.GRU(SIZE), Doubled(SIZE))
    theirs.cell.set_weights(mine.cell.get_weights())
    assert_close(outputs_of(mine, x)[0], outputs_of(theirs, x)[0])
