"""Memory that Keras' fast layers share with TensorFlow: aligned where TensorFlow gets it, held while the loop reads it."""

import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import multirnn as mr
from multirnn import kernel
from multirnn.numerics import draw_call
from multirnn.protocol import with_implementation

multirnn_keras = pytest.importorskip("multirnn_keras")
keras = pytest.importorskip("keras")
BACKEND = multirnn_keras.BACKEND
if BACKEND.engine != "tensorflow" or kernel.refuses():
    pytest.skip(kernel.refuses() or "the compiled recurrence serves TensorFlow", allow_module_level=True)

import tensorflow as tf  # noqa: E402
from multirnn_keras import memory  # noqa: E402
from multirnn_keras.kernel import KerasKernel  # noqa: E402

FAST = with_implementation(BACKEND, "fast")
FORMS: list[dict[str, Any]] = [
    {"cell": "simple_rnn", "bidirectional": True},
    {"cell": "lstm"},
    {"cell": "gru"},
    {"cell": "gru", "bidirectional": True, "num_layers": 2},
    {"cell": "gru", "reset_after": False, "dtype": "float64"},
    {"cell": "gru", "bias": "none"},
]
SIZES = [(1, 1, 1, 1), (2, 3, 4, 5), (3, 7, 5, 11), (1, 5, 3, 13)]
"""Batch, time, features and units."""


def layer_of(form: dict[str, Any], features: int = 4, units: int = 5) -> Any:
    return FAST.build(mr.initialise(mr.RecurrentSpec(input_size=features, hidden_size=units, **form), seed=1))


def aligned(array: Any) -> bool:
    array = np.asarray(array)
    return not array.size or kernel.address(array) % memory.ALIGNMENT == 0


def flat(tensors: Any) -> list[Any]:
    return [tensor for tensor in tf.nest.flatten(tensors) if tensor is not None]


def _watched(function: Callable[..., Any], found: list[bool]) -> Callable[..., Any]:
    def watched(*given: Any) -> Any:
        arrays = function(*given)
        found.extend(map(aligned, arrays))
        return arrays

    return watched


@pytest.fixture
def handed_over(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Whether each array that the compiled loop gives back is aligned."""
    found: list[bool] = []
    for name in ("forward", "backward"):
        monkeypatch.setattr(KerasKernel, name, _watched(getattr(KerasKernel, name), found))
    yield found
    assert found
    assert all(found)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", FORMS)
def test_what_tensorflow_gets_is_aligned(form: dict[str, Any], size: tuple[int, ...], handed_over: list[bool]) -> None:
    """Outputs, states and gradients: eager, under a tape, in a graph, with a mask and without."""
    batch, time, features, units = size
    layer = layer_of(form, features, units)
    x = tf.random.stateless_normal((batch, time, features), (1, 2), dtype=layer.spec.dtype)
    gaps = np.arange(batch * time).reshape(batch, time) % 3 != 1

    def gradients(mask: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer.native(x, mask=mask)
        return y, tape.gradient(y, [x, *(variable.value for variable in layer.native.weights)])

    for mask in (None, tf.constant(gaps)):
        tensors = [layer.native(x, mask=mask), gradients(mask), tf.function(gradients)(mask)]
        for tensor in flat(tensors):
            assert aligned(tensor)
            tf.debugging.assert_all_finite(tensor * 2, "an operation over this memory")
    state = [tf.zeros((layer.spec.num_layers * len(layer.spec.directions), batch, units), layer.spec.dtype)]
    state *= len(layer.spec.form.states)
    assert all(map(aligned, layer.apply(None, [x, *state])))


def test_memory_that_is_not_aligned_is_copied() -> None:
    room = memory.empty((65,), "float32")
    for start in (0, 1, 3):
        array = room[start : start + 7]
        array[...] = np.arange(7)
        tensor = memory.tensor_of(array)
        assert aligned(tensor)
        assert np.array_equal(tensor, np.arange(7))


@pytest.mark.parametrize("cell", ["simple_rnn", "lstm", "gru"])
def test_eager_training_lives(cell: str) -> None:
    model = layer_of({"cell": cell}).native
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((8, 3, 4)).astype("float32"), rng.standard_normal((8, 3, 5)).astype("float32")
    for optimizer in ("adam", "sgd"):
        model.compile(optimizer, "mse", run_eagerly=True)
        losses = model.fit(x, y, batch_size=2, epochs=3, verbose=0).history["loss"]
        assert losses[-1] < losses[0]
    for _ in range(20):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(tf.ones((2, 3, 4))))
        for gradient in tape.gradient(loss, model.trainable_variables):
            tf.debugging.assert_all_finite(gradient * 0.1, "an operation over this memory")


# --- Weights that are replaced meanwhile -----------------------------------------------------------------------------


def calls_of(layer: Any) -> dict[str, Callable[[], np.ndarray]]:
    """Every way to the compiled loop, as a call that returns one array."""
    x, _, lengths = draw_call(layer.spec, 3)
    tensor, mask = tf.constant(x), tf.constant(np.arange(x.shape[1]) < lengths[:, None])
    graph = tf.function(lambda: layer.native(tensor, mask=mask))
    cotangent = layer(x, lengths=lengths)

    def tape() -> np.ndarray:
        with tf.GradientTape() as tape:
            tape.watch(tensor)
            y = layer.native(tensor, mask=mask)
        return tape.gradient(y, tensor).numpy()

    return {
        "call": lambda: layer(x, lengths=lengths).sequence,
        "vjp": lambda: layer.vjp(x, lengths=lengths, cotangent=cotangent).x,
        "eager": lambda: layer.native(tensor, mask=mask).numpy(),
        "tape": tape,
        "graph": lambda: graph().numpy(),
    }


CALLS = ["call", "vjp", "eager", "tape", "graph"]


@pytest.mark.parametrize(
    ("form", "call"),
    # A native stack reads the weights of its next pass when it is there.
    [(form, call) for form in FORMS for call in CALLS if call in ("call", "vjp") or not form.get("bidirectional")],
)
def test_weights_replaced_within_a_call_are_those_of_the_next(
    form: dict[str, Any], call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the call's reading of the weights and the loop over them: no memory that the loop reads is let go."""
    layer = layer_of(form, units=23)
    run = calls_of(layer)[call]
    variables = layer.native.weights
    before, after = [variable.numpy() for variable in variables], [variable.numpy() * 0.5 for variable in variables]
    expected = run()
    rubbish = []

    def replaced(
        self: kernel.CompiledRecurrence, *given: Any, original: Any = kernel.CompiledRecurrence.forward, **more: Any
    ) -> None:
        monkeypatch.setattr(kernel.CompiledRecurrence, "forward", original)
        for variable, array in zip(variables, after, strict=True):
            variable.assign(array)
        beside = threading.Thread(target=run)
        beside.start()
        beside.join()
        rubbish.extend(np.full_like(array, 9.0) for array in before for _ in range(50))
        original(self, *given, **more)

    monkeypatch.setattr(kernel.CompiledRecurrence, "forward", replaced)
    assert np.array_equal(run(), expected)
    assert not np.array_equal(run(), expected)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_calls_beside_assignments(cell: str, call: str) -> None:
    """A call reads each variable once, as a whole; it may find one of them replaced already and the next one not yet."""
    layer = layer_of({"cell": cell}, units=31)
    variables = layer.native.weights
    both = [(variable.numpy(), variable.numpy() * 0.5) for variable in variables]
    run = calls_of(layer)[call]
    allowed = set()
    for arrays in itertools.product(*both):
        layer.native.set_weights(list(arrays))
        allowed.add(run().tobytes())
    assert len(allowed) > 1
    over = threading.Event()
    found: list[bytes] = []

    def assign() -> None:
        for place in itertools.cycle((0, 1)):
            for variable, arrays in zip(variables, both, strict=True):
                variable.assign(arrays[place])
            if over.is_set():
                return

    def call_on() -> None:
        found.extend(run().tobytes() for _ in range(100))

    threads = [threading.Thread(target=call_on) for _ in range(3)]
    writer = threading.Thread(target=assign)
    for thread in (writer, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    over.set()
    writer.join()
    assert len(found) == 300
    assert set(found) <= allowed
