"""The user's own objects behind the calls of a layer: each is held against the reference, and left as it was."""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import multirnn as mr
from multirnn import registry
from multirnn.adoption import Adopted, adopt, adopt_both, known_spec
from multirnn.compare import draw_call, draw_state, gradient_pairs, state_pairs, widened

SIZES = {"input_size": 5, "hidden_size": 11}
GRU = mr.RecurrentSpec("gru", **SIZES)
LSTM = mr.RecurrentSpec("lstm", **SIZES)
STACK = mr.RecurrentSpec("lstm", **SIZES, num_layers=2, bidirectional=True)


@pytest.fixture
def torch() -> Iterator[Any]:
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # layers as small as these only wait for each other
    torch.manual_seed(0)
    yield torch
    torch.set_num_threads(threads)


@pytest.fixture
def keras() -> Any:
    pytest.importorskip("multirnn_keras")
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(0)
    return keras


@pytest.fixture
def jax() -> Any:
    return pytest.importorskip("jax")


def reference(weights: mr.Weights) -> mr.Layer:
    return mr.build(weights.astype("float64"), "numpy")


def assert_equal(actual: Any, expected: Any, spec: mr.RecurrentSpec) -> None:
    found = mr.difference(np.asarray(actual), np.asarray(expected))
    assert actual.dtype == spec.dtype
    assert found.normwise <= mr.tolerance(spec.dtype), found


def assert_right(adopted: Adopted, weights: mr.Weights, *, weight_gradients: bool = True) -> None:
    """It gives the outputs, states and gradients of the reference, with lengths if it takes them, and unbatched."""
    spec = adopted.spec
    x, state, ragged = draw_call(spec, 3)
    rng = np.random.default_rng(4)
    right = reference(weights)
    for lengths in (None, ragged) if adopted.takes_lengths else (None,):
        cotangent = mr.Output(
            rng.standard_normal((*x.shape[:2], spec.output_size)).astype(spec.dtype), draw_state(spec, len(x), rng)
        )
        expected = right(x.astype("float64"), widened(state), lengths=lengths)
        output = adopted(x, state, lengths=lengths)
        assert_equal(output.sequence, expected.sequence, spec)
        for _, pair in state_pairs(output.state, expected.state):
            assert_equal(*pair, spec)
        if not adopted.differentiable:
            continue
        wide = mr.Output(cotangent.sequence.astype("float64"), widened(cotangent.state))
        expected = right.vjp(x.astype("float64"), widened(state), lengths=lengths, cotangent=wide)
        found = adopted.vjp(x, state, lengths=lengths, cotangent=cotangent)
        assert set(found.weights) == (set(expected.weights) if weight_gradients else set())
        for _, (actual, wanted) in gradient_pairs(found, expected):
            if actual is not None:
                assert_equal(actual, wanted, spec)
    row = adopted(x[1], mr.State._make(None if part is None else part[:, 1] for part in state))
    assert_equal(
        row.sequence,
        right(
            x[1].astype("float64"), mr.State._make(None if p is None else p[:, 1].astype("float64") for p in state)
        ).sequence,
        spec,
    )


# --- PyTorch ---------------------------------------------------------------------------------------------------------

MODULES: dict[str, Callable[[Any], Any]] = {
    "RNN": lambda nn: nn.RNN(5, 11),
    "RNN relu, batch first, no bias": lambda nn: nn.RNN(5, 11, nonlinearity="relu", batch_first=True, bias=False),
    "LSTM of two layers, both ways": lambda nn: nn.LSTM(5, 11, 2, bidirectional=True),
    "LSTM in float64, batch first": lambda nn: nn.LSTM(5, 11, batch_first=True).double(),
    "GRU of three layers": lambda nn: nn.GRU(5, 11, 3, batch_first=True),
    "GRU both ways": lambda nn: nn.GRU(5, 11, bidirectional=True),
    "RNNCell": lambda nn: nn.RNNCell(5, 11),
    "LSTMCell": lambda nn: nn.LSTMCell(5, 11),
    "GRUCell": lambda nn: nn.GRUCell(5, 11),
}


@contextmanager
def as_it_was(module: Any) -> Iterator[None]:
    """The module's mode, parameters, what of them is frozen, what they hold in .grad, and its attributes."""

    def seen() -> Any:
        parameters = [(p.detach().numpy().tobytes(), p.dtype, p.requires_grad, p.grad) for p in module.parameters()]
        modes = [part.training for part in module.modules()]
        return parameters, modes, sorted(vars(module)), list(module.state_dict())

    before = seen()
    yield
    assert seen() == before


@pytest.mark.parametrize("name", MODULES)
def test_a_layer_of_pytorch(torch: Any, name: str) -> None:
    module = MODULES[name](torch.nn)
    next(module.parameters()).requires_grad_(False)
    with as_it_was(module):
        adopted = adopt(module)
        assert adopted.native is module
        assert_right(adopted, mr.read(module))
        assert adopted.weights() == mr.read(module)
    frozen = next(module.parameters()).numel()
    assert adopted.parameter_count == sum(p.numel() for p in module.parameters()) - frozen
    assert adopted.takes_lengths == (not name.endswith("Cell"))
    assert (adopted.title, adopted.readable) == (f"{type(module).__name__} (torch)", True)


def hand_written(torch: Any, gru: Any, **options: Any) -> Any:
    """A GRU as it is written by hand, over the weights of a torch.nn.GRU of one layer."""

    class HandWritten(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = gru
            if "batch_first" in options:
                self.batch_first = options["batch_first"]

        def forward(self, x: Any, h: Any) -> Any:
            h = h[0]
            outputs = []
            axis = 1 if options.get("batch_first", True) else 0
            for step in x.unbind(axis):
                a = step @ gru.weight_ih_l0.T + gru.bias_ih_l0
                b = h @ gru.weight_hh_l0.T + gru.bias_hh_l0
                (ar, az, an), (br, bz, bn) = a.chunk(3, 1), b.chunk(3, 1)
                r, z = torch.sigmoid(ar + br), torch.sigmoid(az + bz)
                h = (1 - z) * torch.tanh(an + r * bn) + z * h
                outputs.append(h)
            y = torch.stack(outputs, axis)
            return options.get("returns", lambda y, h: (y, h))(y, h)

    return HandWritten()


@pytest.mark.parametrize("batch_first", [None, True, False])
def test_a_module_written_by_hand(torch: Any, batch_first: bool | None) -> None:
    gru = torch.nn.GRU(5, 11)
    module = hand_written(torch, gru, **({} if batch_first is None else {"batch_first": batch_first})).eval()
    with as_it_was(module):
        adopted = adopt(module, spec=GRU)
        assert (adopted.readable, adopted.takes_lengths, adopted.takes_state) == (False, False, True)
        assert_right(adopted, mr.read(gru), weight_gradients=False)
    assert adopted.parameter_count == GRU.parameter_count
    with pytest.raises(mr.Unrepresentable, match=r"^nothing is known of the weights of HandWritten \(torch\)$"):
        adopted.weights()
    with pytest.raises(mr.InvalidCall, match=r"^HandWritten \(torch\) takes no lengths: call it with full rows$"):
        adopted(*draw_call(GRU)[:2], lengths=draw_call(GRU)[2])


def test_a_gradient_that_is_cut_is_zero(torch: Any) -> None:
    module = hand_written(torch, torch.nn.GRU(5, 11), returns=lambda y, h: (y, h.detach()))
    x, state, _ = draw_call(GRU)
    adopted = adopt(module, spec=GRU)
    output = adopted(x, state)
    of_the_state = mr.Output(0 * output.sequence, output.state)
    found = adopted.vjp(x, state, cotangent=of_the_state)
    assert not found.x.any()
    assert not found.state.h.any()
    with torch.no_grad():  # and what the caller says of gradients is not what is asked here
        assert adopted.vjp(x, state, cotangent=output).x.any()
    cut = adopt(hand_written(torch, torch.nn.GRU(5, 11), returns=lambda y, h: (y.detach(), h.detach())), spec=GRU)
    assert not cut.vjp(x, state, cotangent=output).x.any()


def test_a_module_that_writes_to_its_inputs_reaches_no_array_of_the_caller(torch: Any) -> None:
    gru = torch.nn.GRU(5, 11, batch_first=True)

    class Writes(torch.nn.Module):
        def forward(self, x: Any, h: Any) -> Any:
            result = gru(x.clone(), h.clone())
            with torch.no_grad():
                x.zero_()
                h.zero_()
            return result

    x, state, _ = draw_call(GRU)
    copies = x.copy(), state.h.copy()
    adopt(Writes(), spec=GRU)(x, state)
    assert (x == copies[0]).all()
    assert (state.h == copies[1]).all()


def test_what_a_module_notes_of_a_call_is_taken_back(torch: Any) -> None:
    """A running mean, which is written in place, and a last state, which is assigned."""
    gru = torch.nn.GRU(5, 11, batch_first=True)

    class Notes(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(5)
            self.register_buffer("last", torch.ones(1))

        def forward(self, x: Any, h: Any) -> Any:
            y, h = gru(self.norm(x.transpose(1, 2)).transpose(1, 2), h * self.last.mean())
            self.last = h.detach()
            return y, h

    module = Notes()
    x, state, _ = draw_call(GRU)
    adopted = adopt(module, spec=GRU)
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    first = adopted(x, state)
    adopted.vjp(x, state, cotangent=first)
    assert (adopted(x, state).sequence == first.sequence).all()
    for name, buffer in module.named_buffers():
        assert buffer.equal(before[name]), name


def test_a_module_without_a_state(torch: Any) -> None:
    gru = torch.nn.GRU(5, 11, batch_first=True)

    class Bare(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return gru(x)[0]

    adopted = adopt(Bare(), spec=GRU)
    x, state, _ = draw_call(GRU)
    assert not adopted.takes_state
    output = adopted(x)
    assert_equal(output.sequence, reference(mr.read(gru))(x.astype("float64")).sequence, GRU)
    assert output.state == mr.State(None)
    with pytest.raises(mr.InvalidCall, match=r"^Bare \(torch\) takes no initial state: call it without one$"):
        adopted(x, state)


@pytest.mark.parametrize(
    ("make", "options", "sentence"),
    [
        (lambda nn: nn.Linear(5, 11), {}, "a Linear is not a torch.nn.RNN, LSTM or GRU, nor the cell of one. To run it as it is, pass spec="),
        (lambda nn: nn.GRU(5, 7), {"spec": GRU}, "and spec= says RecurrentSpec('gru', input_size=5, hidden_size=11); leave spec out"),
        (lambda nn: nn.LSTM(5, 11, 2, dropout=0.5), {"spec": LSTM}, "this LSTM drops outputs at random (it has the rate 0.5, in training mode); call its eval() first"),
        (lambda nn: nn.Sequential(nn.Linear(5, 11), nn.Dropout(0.25)), {"spec": LSTM}, "(its '1' has the rate 0.25, in training mode); call its eval() first"),
        (lambda nn: nn.Linear(5, 11).double(), {"spec": GRU}, "this Linear holds float64 and the spec computes in float32; pass a spec with dtype='float64', or convert the module by .to(torch.float32)"),
        (lambda nn: nn.Bilinear(5, 11, 3), {"spec": None}, "is not a torch.nn.RNN"),
    ],
)  # fmt: skip
def test_a_module_that_cannot_be_run(torch: Any, make: Any, options: Any, sentence: str) -> None:
    module = make(torch.nn)
    with as_it_was(module), pytest.raises(mr.InvalidCall, match=re.escape(sentence)):
        adopt(module, **options)


def test_dropout_in_evaluation_is_no_dropout(torch: Any) -> None:
    lstm = torch.nn.LSTM(5, 11, 2, dropout=0.5).eval()
    without = torch.nn.LSTM(5, 11, 2)
    without.load_state_dict(lstm.state_dict())
    spec = mr.read(without).spec
    x, state, _ = draw_call(spec)
    assert_equal(
        adopt(lstm, spec=spec)(x, state).sequence,
        reference(mr.read(without))(x.astype("float64"), widened(state)).sequence,
        spec,
    )


# --- Keras -----------------------------------------------------------------------------------------------------------


def built(layer: Any, features: int = 5) -> Any:
    layer.build((None, None, features))
    for variable in layer.weights:  # Keras' own start has zero biases
        variable.assign(np.random.default_rng(sum(variable.shape)).uniform(-0.5, 0.5, variable.shape))
    return layer


def stateful(layers: Any) -> Any:
    layer = layers.GRU(11, stateful=True)
    layer(np.zeros((5, 7, 5), "float32"))
    return layer


KERAS: dict[str, Callable[[Any], Any]] = {
    "SimpleRNN": lambda layers: layers.SimpleRNN(11, activation="relu"),
    "LSTM in float64": lambda layers: layers.LSTM(11, return_sequences=True, dtype="float64"),
    "GRU that resets before": lambda layers: layers.GRU(11, reset_after=False, return_state=True),
    "GRU, unrolled": lambda layers: layers.GRU(11, unroll=True, return_sequences=True),
    "Bidirectional": lambda layers: layers.Bidirectional(layers.LSTM(11)),
}


@contextmanager
def as_keras_was(layer: Any) -> Iterator[None]:
    def seen() -> Any:
        parts = [part for part in layer._flatten_layers() if hasattr(part, "return_sequences")]
        flags = [(part.return_sequences, part.return_state) for part in parts]
        return flags, [array.tobytes() for array in layer.get_weights()], [v.trainable for v in layer.weights]

    before = seen()
    yield
    assert seen() == before


@pytest.mark.parametrize("name", KERAS)
def test_a_layer_of_keras(keras: Any, name: str) -> None:
    layer = built(KERAS[name](keras.layers))
    layer.trainable = False
    if layer.compute_dtype == "float64" and keras.config.backend() != "tensorflow":
        pytest.skip("Keras computes in float64 on TensorFlow alone")
    with as_keras_was(layer):
        adopted = adopt(layer)
        assert adopted.native is layer
        assert_right(adopted, mr.read(layer))
    assert (adopted.parameter_count, adopted.readable, adopted.takes_lengths) == (0, True, True)


def test_a_stack_of_keras(keras: Any) -> None:
    both = [keras.layers.Bidirectional(keras.layers.GRU(11, return_sequences=again)) for again in (True, False)]
    model = keras.Sequential([keras.Input((None, 5)), *both])
    with as_keras_was(model):
        adopted = adopt(model)
        assert_right(adopted, mr.read(model))
    assert adopted.parameter_count == model.count_params() == adopted.spec.parameter_count
    assert adopted.weights() == mr.read(model)


def lstm_by_hand(keras: Any) -> Any:
    """An LSTM as it is written by hand, i f g o, of the weights of a keras.layers.LSTM, which are i f c o."""

    class HandWritten(keras.layers.Layer):
        def build(self, shape: Any) -> None:
            self.kernel = self.add_weight(shape=(shape[-1], 44), name="kernel")
            self.recurrent = self.add_weight(shape=(11, 44), name="recurrent")
            self.bias = self.add_weight(shape=(44,), name="bias")

        def call(self, x: Any, initial_state: Any = None) -> Any:
            h, c = initial_state
            outputs = []
            for t in range(x.shape[1]):
                gates = keras.ops.matmul(x[:, t], self.kernel) + keras.ops.matmul(h, self.recurrent) + self.bias
                i, f, g, o = keras.ops.split(gates, 4, axis=1)
                c = keras.ops.sigmoid(f) * c + keras.ops.sigmoid(i) * keras.ops.tanh(g)
                h = keras.ops.sigmoid(o) * keras.ops.tanh(c)
                outputs.append(h)
            return keras.ops.stack(outputs, axis=1), h, c

    return HandWritten()


@pytest.mark.parametrize("compiled", [False, True])
def test_a_layer_of_keras_written_by_hand(keras: Any, compiled: bool) -> None:
    if compiled and keras.config.backend() == "torch":
        pytest.skip("Keras on PyTorch has no compiled form")
    model = built(keras.layers.LSTM(11))
    layer = built(lstm_by_hand(keras))
    layer.set_weights(model.get_weights())
    with as_keras_was(layer):
        adopted = adopt(layer, spec=LSTM, compiled=compiled)
        assert (adopted.readable, adopted.takes_lengths, adopted.takes_state) == (False, False, True)
        assert_right(adopted, mr.read(model), weight_gradients=False)
    assert adopted.parameter_count == LSTM.parameter_count


def test_a_cell_of_keras_in_its_layer(keras: Any) -> None:
    class Cell(keras.layers.GRUCell):
        """A GRU cell of the user's own class."""

    layer, same = built(keras.layers.RNN(Cell(11))), built(keras.layers.GRU(11))
    same.set_weights(layer.get_weights())
    with as_keras_was(layer):
        adopted = adopt(layer, spec=GRU)
        assert adopted.takes_lengths
        assert_right(adopted, mr.read(same), weight_gradients=False)


def test_a_layer_of_keras_that_takes_a_mask_takes_lengths(keras: Any) -> None:
    gru = built(keras.layers.GRU(11, return_sequences=True, return_state=True))

    class Masked(keras.layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.gru = gru

        def call(self, x: Any, h: Any = None, mask: Any = None) -> Any:
            return self.gru(x, initial_state=h, mask=mask)

    layer = Masked()
    layer.built = layer.supports_masking = True
    adopted = adopt(layer, spec=GRU)
    assert adopted.takes_lengths
    assert_right(adopted, mr.read(gru), weight_gradients=False)


@pytest.mark.parametrize(
    ("make", "options", "sentence"),
    [
        (lambda layers: layers.GRU(11), {}, "this GRU has no weights yet: call it, or build((None, None, input_size))"),
        (lambda layers: built(layers.GRU(11, dropout=0.5)), {}, "has dropout=0.5, which no spec has. To run it as it is, pass spec="),
        (lambda layers: built(layers.GRU(11)), {"spec": LSTM}, "this GRU is RecurrentSpec('gru', input_size=5, hidden_size=11), and spec= says RecurrentSpec('lstm'"),
        (lambda layers: built(layers.Dense(11, dtype="float16")), {"spec": GRU}, "this Dense computes in float16 and the spec in float32; pass a spec with dtype='float16', or make the layer with dtype='float32'"),
        (lambda layers: stateful(layers), {}, "is stateful, and would go on from what it is run on here; make it with stateful=False"),
    ],
)  # fmt: skip
def test_a_layer_of_keras_that_cannot_be_run(keras: Any, make: Any, options: Any, sentence: str) -> None:
    with pytest.raises(mr.InvalidCall, match=re.escape(sentence)):
        adopt(make(keras.layers), **options)


# --- JAX and NumPy ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "compiled"), [(mr.RecurrentSpec("gru", **SIZES, bias="single", dtype="float64"), False), (STACK, True)]
)
def test_a_recurrence(jax: Any, spec: mr.RecurrentSpec, compiled: bool) -> None:
    layer = mr.build(spec, "jax", seed=3)
    adopted = adopt(layer.native, compiled=compiled)
    assert adopted.native is layer.native
    assert_right(adopted, layer.weights())
    assert (adopted.parameter_count, adopted.readable) == (spec.parameter_count, True)
    layer.native.params = mr.build(spec, "jax", seed=4).native.params
    assert adopted.weights() == mr.initialise(spec, 4)
    x, state, _ = draw_call(spec)
    expected = reference(adopted.weights())(x.astype("float64"), widened(state))
    assert_equal(adopted(x, state).sequence, expected.sequence, spec)  # it runs with the parameters that are there


def test_a_jitted_function(jax: Any) -> None:
    weights = mr.initialise(LSTM, 3)
    W, U, b = (weights.arrays[f"layers.0.forward.{name}"] for name in ("weight_ih", "weight_hh", "bias_ih"))
    jnp = jax.numpy

    @jax.jit
    def lstm(x: Any, state: Any) -> Any:
        def step(state: Any, x: Any) -> Any:
            h, c = state
            i, f, g, o = jnp.einsum("bx,ghx->gbh", x, W) + jnp.einsum("bk,ghk->gbh", h, U) + b[:, None]
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        state, y = jax.lax.scan(step, jax.tree.map(lambda part: part[0], state), x.swapaxes(0, 1))
        return y.swapaxes(0, 1), state

    for compiled in (False, True):
        adopted = adopt(lstm, spec=LSTM, compiled=compiled)
        assert (adopted.native, adopted.readable, adopted.parameter_count) == (lstm, False, None)
        assert_right(adopted, weights, weight_gradients=False)
    with pytest.raises(mr.InvalidCall, match=r"To run it as it is, pass spec=mr\.RecurrentSpec"):
        adopt(lstm)


def test_a_stack_of_numpy() -> None:
    layer = mr.build(STACK, "numpy", seed=3)
    adopted = adopt(layer.native)
    assert adopted.native is layer.native
    assert not adopted.compilable
    assert adopted.parameter_count == STACK.parameter_count
    assert_right(adopted, layer.weights())
    with pytest.raises(mr.InvalidCall, match=r"^NumPy has no compiled form of a Stack; run it as it is$"):
        adopt(layer.native, compiled=True)


# --- Callables -------------------------------------------------------------------------------------------------------

WEIGHTS = mr.initialise(GRU, 3)
RIGHT = mr.build(WEIGHTS, "numpy")


def right(x: Any, h: Any) -> Any:
    """A function as users have it: the sequence and the state."""
    output = RIGHT(x, mr.State(h))
    return output.sequence, output.state.h


@pytest.mark.parametrize(
    "function",
    [
        right,
        lambda x, h0: (right(x, h0)[0], right(x, h0)[1][0]),
        lambda x, h0: RIGHT(x, mr.State(h0)),
        lambda x, h0=None: tuple(part.tolist() for part in right(x, h0)),
        lambda *arguments: right(*arguments),
        lambda x, h0: tuple(part.astype("float64") for part in right(x, h0)),
    ],
    ids=["plain", "no leading axis", "records", "lists", "any arguments", "wider"],
)
def test_a_callable(function: Any) -> None:
    adopted = adopt(function, spec=GRU)
    assert adopted.native is function
    assert not any((adopted.differentiable, adopted.readable, adopted.takes_lengths, adopted.compilable))
    assert adopted.parameter_count is None
    assert_right(adopted, WEIGHTS)
    with pytest.raises(mr.InvalidCall, match=r"has no gradients: nothing differentiates it$"):
        adopted.vjp(*draw_call(GRU)[:2], cotangent=RIGHT(draw_call(GRU)[0]))


def test_a_callable_with_two_states() -> None:
    layer = mr.build(STACK, "numpy", seed=3)

    def lstm(x: Any, state: Any) -> Any:
        h, c = state
        output = layer(x, mr.State(h, c))
        return output.sequence, (output.state.h, output.state.c)

    assert_right(adopt(lstm, spec=STACK), layer.weights())
    assert_right(adopt(lambda x, s: (lstm(x, s)[0], *lstm(x, s)[1]), spec=STACK), layer.weights())


def test_a_callable_that_returns_no_state() -> None:
    x, state, _ = draw_call(GRU)
    output = adopt(lambda x, h: right(x, h)[0], spec=GRU)(x, state)
    assert (output.sequence == right(x, state.h)[0]).all()
    assert output.state == mr.State(None)
    assert adopt(lambda x, h: right(x, h)[0], spec=GRU)(x[0]).sequence.shape == (7, 11)


def test_a_callable_gets_copies() -> None:
    x, state, _ = draw_call(GRU)
    copies = x.copy(), state.h.copy()

    def writes(x: Any, h: Any) -> Any:
        result = right(x.copy(), h.copy())
        x[:] = h[:] = 0
        return result

    adopt(writes, spec=GRU)(x, state)
    assert (x == copies[0]).all()
    assert (state.h == copies[1]).all()


def last(x: Any, h: Any) -> Any:
    return right(x, h)[0][:, -1]


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (lambda x, h: right(x, h)[0].swapaxes(0, 1), "function <lambda> returned y of the shape (7, 5, 11); of x (5, 7, 5) it must be (batch, time, directions * hidden_size) = (5, 7, 11); it has time before batch"),
        (last, "function last returned y of the shape (5, 11); of x (5, 7, 5) it must be (batch, time, directions * hidden_size) = (5, 7, 11); it is the last step alone"),
        (lambda x, h: (right(x, h)[0], right(x, h)[1].T), "returned h of the shape (11, 5, 1); it must be (num_layers * directions, batch, hidden_size) = (1, 5, 11)"),
        (lambda x, h: (*right(x, h), h), "returned y and 2 parts of a state; (y, h) would be right, or y alone"),
        (lambda x, h: right(x, h)[0] > 0, "returned an array of bool; it must be of float32"),
        (lambda x, h: None, "function <lambda> returned nothing; (y, h) would be right, or y alone"),
        (lambda x, h: h[0, 0, 0], "returned y of the shape (); of x (5, 7, 5) it must be"),
        (lambda x, h: list(right(x, h)), "returned no array: setting an array element with a sequence"),
    ],
)  # fmt: skip
def test_what_a_callable_must_not_return(function: Any, sentence: str) -> None:
    x, state, _ = draw_call(GRU)
    with pytest.raises(mr.InvalidCall, match=re.escape(sentence)):
        adopt(function, spec=GRU)(x, state)


def test_a_state_of_an_lstm_without_c() -> None:
    x, state, _ = draw_call(LSTM)
    layer = mr.build(LSTM, "numpy")
    adopted = adopt(lambda x, s: (layer(x, mr.State(*s)).sequence, s[0]), spec=LSTM)
    with pytest.raises(mr.InvalidCall, match=r"returned y and 1 part of a state; \(y, \(h, c\)\) would be right"):
        adopted(x, state)


def test_what_a_callable_raises_is_its_own_and_says_what_it_was_called_with() -> None:
    def breaks(x: Any, h: Any) -> Any:
        raise KeyError("weights")

    with pytest.raises(KeyError, match="weights") as caught:
        adopt(breaks, spec=GRU)(*draw_call(GRU)[:2])
    assert caught.value.__notes__ == [
        "multirnn called function breaks with x (5, 7, 5) and the initial state h (1, 5, 11)"
    ]


# --- Layers, and what is said of anything ----------------------------------------------------------------------------


def test_a_layer_is_itself(backend: mr.Backend) -> None:
    weights = mr.initialise(LSTM, 3)
    layer = backend.build(weights)
    adopted = adopt(layer)
    assert (adopted.native, adopted.spec, adopted.title) == (layer.native, weights.spec, type(layer).__name__)
    assert (adopted.readable, adopted.differentiable, adopted.takes_lengths) == (True, backend.differentiable, True)
    assert (adopted.parameter_count, adopted.weights()) == (layer.parameter_count, weights)
    assert adopt(adopted) is adopted
    x, state, lengths = draw_call(weights.spec)
    output = layer(x, state, lengths=lengths)
    assert (adopted(x, state, lengths=lengths).sequence == output.sequence).all()
    if not backend.differentiable:
        with pytest.raises(mr.InvalidCall, match="has no gradients"):
            adopted.vjp(x, state, lengths=lengths, cotangent=output)
        return
    found = adopted.vjp(x, state, lengths=lengths, cotangent=output)
    assert_equal(found.x, layer.vjp(x, state, lengths=lengths, cotangent=output).x.astype("float64"), LSTM)


def test_compiled(backend: mr.Backend) -> None:
    weights = mr.initialise(LSTM, 3)
    adopted = adopt(backend.build(weights))
    if backend.name == "torch" and shutil.which("c++") is None and shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler on the CPU, and there is none")
    if not adopted.compilable:
        with pytest.raises(mr.InvalidCall, match="has no compiled form"):
            adopt(adopted, compiled=True)
        return
    compiled = adopt(adopted, compiled=True)
    assert (compiled.compiled, compiled.native) == (True, adopted.native)
    assert compiled.title.endswith(", compiled")
    x, state, _ = draw_call(LSTM)
    assert_equal(compiled(x, state).sequence, reference(weights)(x.astype("float64"), widened(state)).sequence, LSTM)
    expected = adopted(x, state)
    assert_equal(
        compiled.vjp(x, state, cotangent=expected).x,
        adopted.vjp(x, state, cotangent=expected).x.astype("float64"),
        LSTM,
    )


@pytest.mark.parametrize(
    ("thing", "options", "sentence"),
    [
        (right, {}, "nothing tells what function right computes: pass spec=mr.RecurrentSpec(...)"),
        (right, {"spec": GRU, "compiled": True}, "function right is called with NumPy arrays and has no compiled form; compile it yourself and adopt that"),
        (lambda: None, {"spec": GRU}, "function <lambda> has the parameters (); it must be callable as f(x, h0)"),
        (lambda x, h, c: None, {"spec": GRU}, "function <lambda> has the parameters (x, h, c); it must be callable as f(x, h0)"),
        (7, {"spec": GRU}, "a int cannot be run: adopt a multirnn Layer, a framework's own layer, or a function f(x, h0) -> (y, h) on NumPy arrays"),
        (mr.build(LSTM, "numpy"), {"spec": GRU}, "NumpyLayer is RecurrentSpec('lstm', input_size=5, hidden_size=11), and spec= says"),
    ],
)  # fmt: skip
def test_what_cannot_be_adopted(thing: Any, options: Any, sentence: str) -> None:
    with pytest.raises(mr.InvalidCall, match=re.escape(sentence)):
        adopt(thing, **options)


def test_the_spec_of_the_other_side() -> None:
    for first, second in (adopt_both(right, RIGHT), adopt_both(RIGHT, right)[::-1], adopt_both(right, right, spec=GRU)):
        assert first.spec == second.spec == GRU
    assert (known_spec(right), known_spec(RIGHT), known_spec(RIGHT.native)) == (None, GRU, GRU)
    with pytest.raises(
        mr.InvalidCall, match=r"^one side is RecurrentSpec\('gru', .*\), and spec= says RecurrentSpec\('lstm'"
    ):
        adopt_both(right, RIGHT, spec=LSTM)
    double, single = adopt_both(mr.build(replace(LSTM, bias="double"), "numpy"), right, spec=LSTM)
    assert (double.spec.bias, single.spec.bias) == ("double", "single")
    with pytest.raises(mr.InvalidCall, match=r"^neither side tells what it computes: pass spec=mr\.RecurrentSpec"):
        adopt_both(right, right)
    with pytest.raises(mr.InvalidCall, match=r"^neither NumpyLayer nor function right has a compiled form$"):
        adopt_both(RIGHT, right, compiled=True)


class Foreign:
    """A framework's object, known to a backend of a third party."""

    def __call__(self, x: Any, h: Any) -> Any:
        return right(x, h)


def test_a_backend_of_a_third_party(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `adopt` its natives are run as any callable; with one, as it says."""

    class Reads:
        name = "foreign"

        def read(self, native: Any) -> mr.Weights:
            return WEIGHTS

    foreign: Any = Reads()
    monkeypatch.setattr("multirnn.adoption.backend_of", lambda native: foreign if isinstance(native, Foreign) else None)
    assert registry.backend_of(Foreign()) is None
    assert_right(adopt(Foreign()), WEIGHTS)
    foreign.adopt = lambda native, spec, *, compiled: RIGHT
    with pytest.raises(mr.InvalidCall, match=r"^the backend 'foreign' adopted a Foreign as a NumpyLayer, not as a"):
        adopt(Foreign())
