"""The parameters of NumPy's layers may be replaced at any time: by what, in which order, and beside a call."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from multirnn_numpy import BACKEND, FastNumpyLayer, Stack

import multirnn as mr
from multirnn.numerics import draw_call

GRU = mr.RecurrentSpec("gru", 5, 4, num_layers=2)
every_layer = pytest.mark.parametrize("kind", ["native", "fast", "fast without C"])


def layer_of(kind: str, weights: mr.Weights) -> Any:
    if kind == "fast without C":
        return FastNumpyLayer(weights, compiled=False)
    return BACKEND.build(weights, implementation=kind)


def laid_out(weights: mr.Weights) -> dict[str, np.ndarray]:
    return BACKEND.build(weights).native.parameters


@pytest.mark.parametrize("call", ["run", "vjp"])
@every_layer
def test_a_call_beside_which_weights_are_replaced_is_one_of_either_set(kind: str, call: str) -> None:
    """Arrays whose addresses a call holds are let go by nobody else; what is replaced counts from the next call on."""
    spec = mr.RecurrentSpec("lstm", 24, 96)
    sets = [mr.initialise(spec, seed=seed) for seed in (1, 2)]
    x = draw_call(mr.RecurrentSpec("lstm", 24, 96))[0].repeat(4, axis=1)
    layer = layer_of(kind, sets[0])

    def result() -> bytes:
        if call == "run":
            return layer(x).sequence.tobytes()
        y = mr.Output(np.ones((len(x), x.shape[1], 96), "float32"), None)
        return layer.vjp(x, cotangent=y).x.tobytes()

    right = []
    for weights in reversed(sets):
        layer.native.parameters = laid_out(weights)
        right.append(result())
    stop = threading.Event()

    def replace() -> None:
        turn = 0
        while not stop.is_set():
            layer.native.parameters = laid_out(sets[turn % 2])
            np.full(24 * 4 * 96, np.nan, "float32")  # takes the memory that was let go
            turn += 1

    other = threading.Thread(target=replace)
    other.start()
    try:
        found = {result() for _ in range(60)}
    finally:
        stop.set()
        other.join()
    assert found <= set(right)


@every_layer
def test_one_name_replaced_beside_a_call(kind: str) -> None:
    spec = mr.RecurrentSpec("gru", 16, 64)
    layer = layer_of(kind, mr.initialise(spec, seed=1))
    x, name = draw_call(spec)[0], "layers.0.forward.weight_ih"
    first = layer.native.parameters[name]
    second, right = first * np.float32(2), []
    for array in (second, first):
        layer.native.parameters[name] = array.copy()
        right.append(layer(x).sequence.tobytes())
    stop = threading.Event()

    def replace() -> None:
        while not stop.is_set():
            layer.native.parameters[name] = second.copy()
            layer.native.parameters[name] = first.copy()

    others = [threading.Thread(target=replace) for _ in range(2)]
    for other in others:
        other.start()
    try:
        found = {layer(x).sequence.tobytes() for _ in range(300)}
    finally:
        stop.set()
        for other in others:
            other.join()
    assert found <= set(right)


@every_layer
def test_the_order_of_the_names_says_nothing(kind: str) -> None:
    """Two arrays change their names in a dictionary in which they keep their places."""
    spec = mr.RecurrentSpec("simple_rnn", 6, 6)
    weights, x = mr.initialise(spec, seed=1), draw_call(spec)[0]
    layer = layer_of(kind, weights)
    layer(x)
    ih, hh, *rest = layer.native.parameters
    arrays = layer.native.parameters
    layer.native.parameters = {hh: arrays[ih], ih: arrays[hh], **{name: arrays[name] for name in rest}}
    turned = mr.Weights(spec, dict(weights.arrays) | {ih: weights.arrays[hh], hh: weights.arrays[ih]})
    assert layer.weights() == turned
    np.testing.assert_array_equal(layer(x).sequence, layer_of(kind, turned)(x).sequence)


REPLACEMENTS: dict[str, tuple[Callable[[np.ndarray], Any], str]] = {
    "float64": (lambda a: a.astype("float64"), "must be float32, as the spec says, not float64; convert it first"),
    "big-endian": (lambda a: a.astype(">f4"), "must be float32, as the spec says, not >f4; convert it first"),
    "object": (lambda a: a.astype(object), "must be float32, as the spec says, not object; convert it first"),
    "short": (lambda a: a[:, :2], r"must have the shape \(3, 4, 5\), not \(3, 2, 5\)"),
    "a list": (lambda a: a.tolist(), "must be float32, as the spec says, not float64; convert it first"),
    "masked": (lambda a: np.ma.masked_array(a, a > 0), "is a masked array, and NumPy would drop the mask"),
}


@pytest.mark.parametrize("what", REPLACEMENTS)
@pytest.mark.parametrize("call", ["run", "vjp", "weights", "read"])
@every_layer
def test_a_replacement_that_is_not_the_specs_is_refused(kind: str, call: str, what: str) -> None:
    layer, x = layer_of(kind, mr.initialise(GRU, seed=1)), draw_call(GRU)[0]
    replacement, why = REPLACEMENTS[what]
    name = "layers.0.forward.weight_ih"
    layer.native.parameters[name] = replacement(layer.native.parameters[name])
    calls: dict[str, Callable[[], object]] = {
        "run": lambda: layer(x),
        "vjp": lambda: layer.vjp(x, cotangent=mr.Output(np.ones((*x.shape[:2], 4), "float32"), None)),
        "weights": layer.weights,
        "read": lambda: mr.read(layer.native),
    }
    with pytest.raises(mr.InvalidWeights, match=f"^{name} {why}"):
        calls[call]()


def test_a_list_in_float64_has_no_memory_of_its_own() -> None:
    spec = mr.RecurrentSpec("gru", 5, 4, dtype="float64")
    layer = BACKEND.build(mr.initialise(spec), implementation="fast")
    name = "layers.0.forward.weight_ih"
    layer.native.parameters[name] = layer.native.parameters[name].tolist()
    with pytest.raises(mr.InvalidWeights, match=f"^{name} must be a NumPy array, not a list$"):
        layer(draw_call(spec)[0])


@every_layer
def test_names_that_are_missing_or_unknown_are_refused(kind: str) -> None:
    layer, x = layer_of(kind, mr.initialise(GRU, seed=1)), draw_call(GRU)[0]
    layer(x)
    taken = layer.native.parameters.pop("layers.1.forward.bias_hh")
    with pytest.raises(mr.InvalidWeights, match=r"^no array for layers.1.forward.bias_hh"):
        layer(x)
    layer.native.parameters["bias"] = taken
    with pytest.raises(mr.InvalidWeights, match=r"^no array for layers.1.forward.bias_hh"):
        layer(x)


def test_frozen_parameters_that_come_back_are_the_constants_again() -> None:
    layer, x = BACKEND.build(mr.initialise(GRU), implementation="frozen"), draw_call(GRU)[0]
    expected, name = layer(x).sequence, "layers.0.forward.weight_ih"
    first = layer.native.parameters[name]
    layer.native.parameters[name] = first.copy()
    with pytest.raises(mr.InvalidCall, match="the parameters of a frozen layer are constants"):
        layer(x)
    layer.native.parameters[name] = first
    np.testing.assert_array_equal(layer(x).sequence, expected)


def test_a_stack_alone_computes_with_the_parameters_of_one_moment() -> None:
    """Replaced by a callback in the middle of a call; `empty` is asked for memory between two layers."""
    spec = mr.RecurrentSpec("simple_rnn", 4, 4, num_layers=3)
    first, second = (mr.initialise(spec, seed=seed) for seed in (1, 2))
    stack = BACKEND.build(first).native
    x, state, _ = draw_call(spec)
    arguments = x.swapaxes(0, 1), state.parts
    expected = stack.forward(*arguments)[0]

    def empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        stack.parameters = laid_out(second)
        return np.empty(shape, dtype)

    assert isinstance(stack, Stack)
    np.testing.assert_array_equal(stack.forward(*arguments, None, empty)[0], expected)
