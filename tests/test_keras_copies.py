"""Copies of Keras' layers, ours and the user's: they compute the same, with variables of their own."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import multirnn as mr
from multirnn.adoption import adopt
from multirnn.numerics import draw_call

multirnn_keras = pytest.importorskip("multirnn_keras")
keras = pytest.importorskip("keras")
BACKEND = multirnn_keras.BACKEND

FORMS: dict[str, dict[str, Any]] = {
    "SimpleRNN": {"cell": "simple_rnn"},
    "LSTM": {"cell": "lstm", "bidirectional": True, "activation": mr.Activation("elu", 0.7)},
    "GRU": {"cell": "gru", "num_layers": 2, "recurrent_activation": mr.Activation("hard_sigmoid", 0.2, 0.5)},
}
DEEP: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
    "within a list": lambda thing: copy.deepcopy([thing])[0],
}


def built(form: str, implementation: str) -> Any:
    spec = mr.RecurrentSpec(input_size=5, hidden_size=11, **FORMS[form])
    return BACKEND.build(mr.initialise(spec, seed=1), implementation=implementation)


def halve(native: Any) -> None:
    for variable in native.weights:
        variable.assign(variable * 0.5)


def result(thing: Any, spec: mr.RecurrentSpec) -> bytes:
    """Of a layer, or of a model of Keras."""
    x, state, lengths = draw_call(spec, 3)
    if hasattr(thing, "spec"):
        output = thing(x, state, lengths=lengths)
        gradients = thing.vjp(x, state, lengths=lengths, cotangent=output)
        return b"".join(np.asarray(part).tobytes() for part in (output.sequence, *output.state, gradients.x))
    return np.asarray(keras.ops.convert_to_numpy(thing(x))).tobytes()


def assert_apart(original: Any, copied: Any, spec: mr.RecurrentSpec) -> None:
    """They compute the same, and neither moves with the other."""
    of_both = [getattr(thing, "native", thing) for thing in (original, copied)]
    before = result(original, spec)
    assert result(copied, spec) == before
    halve(of_both[0])
    moved = result(original, spec)
    assert moved != before
    assert result(copied, spec) == before
    halve(of_both[1])
    assert result(copied, spec) == moved


@pytest.mark.parametrize("how", DEEP)
@pytest.mark.parametrize("implementation", BACKEND.implementations)
@pytest.mark.parametrize("form", FORMS)
def test_a_deep_copy_of_a_layer(form: str, implementation: str, how: str) -> None:
    layer = built(form, implementation)
    result(layer, layer.spec)  # whose graphs are made
    copied = DEEP[how](layer)
    assert type(copied) is type(layer)
    assert copied.weights() == layer.weights()
    assert_apart(layer, copied, layer.spec)


@pytest.mark.parametrize("how", DEEP)
@pytest.mark.parametrize("implementation", BACKEND.implementations)
@pytest.mark.parametrize("form", FORMS)
def test_a_deep_copy_of_a_native_model(form: str, implementation: str, how: str) -> None:
    layer = built(form, implementation)
    assert_apart(layer.native, DEEP[how](layer.native), layer.spec)
    if how == "deepcopy":
        clone = keras.models.clone_model(layer.native)
        clone.set_weights(layer.native.get_weights())
        assert_apart(layer.native, clone, layer.spec)
        one = layer.native.layers[0]
        assert_apart(one, copy.deepcopy(one), layer.spec)


@pytest.mark.parametrize("implementation", BACKEND.implementations)
def test_training_the_original_leaves_the_copy(implementation: str) -> None:
    layer = built("LSTM", implementation)
    before = result(layer, layer.spec)
    copied = copy.deepcopy(layer)
    x, _, _ = draw_call(layer.spec, 3)
    layer.native.compile("sgd", "mse")
    layer.native.fit(x, np.ones_like(layer(x).sequence), epochs=1, verbose=0)
    assert result(layer, layer.spec) != before
    assert result(copied, layer.spec) == before


@pytest.mark.parametrize("implementation", BACKEND.implementations)
def test_what_keras_forgets_is_copied_too(implementation: str) -> None:
    layer = built("GRU", implementation)
    for part in layer.native.layers:
        part.trainable = False
    if implementation == "fast":
        layer.native.layers[0].use_kernel = False
    copied = copy.deepcopy(layer)
    assert copied.native.supports_masking
    assert copied.parameter_count == layer.parameter_count == 0
    for mine, theirs in zip(copied.native.layers, layer.native.layers, strict=True):
        assert (mine.use_cudnn, getattr(mine, "use_kernel", None)) == (False, getattr(theirs, "use_kernel", None))


@pytest.mark.parametrize("implementation", BACKEND.implementations)
def test_a_shallow_copy_shares_the_variables(implementation: str) -> None:
    layer = built("GRU", implementation)
    copied = copy.copy(layer)
    assert copied.native is layer.native
    halve(layer.native)
    assert result(copied, layer.spec) == result(layer, layer.spec)


def test_a_copy_with_its_model_keeps_what_they_share() -> None:
    layer = built("SimpleRNN", "fast")
    copied, native = copy.deepcopy((layer, layer.native))
    assert copied.native is native


@pytest.mark.parametrize("how", DEEP)
@pytest.mark.parametrize("compiled", [False, True])
def test_a_copy_of_what_was_adopted(how: str, compiled: bool) -> None:
    if compiled and BACKEND.engine == "torch":
        pytest.skip("Keras on PyTorch has no compiled form")
    native = built("LSTM", "native").native
    adopted = adopt(native, compiled=compiled)
    result(adopted, adopted.spec)
    copied = DEEP[how](adopted)
    assert copied.native is not native
    assert (copied.title, copied.compiled) == (adopted.title, compiled)
    assert_apart(adopted, copied, adopted.spec)
