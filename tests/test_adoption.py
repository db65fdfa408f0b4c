"""Callables, JAX's and NumPy's own objects behind the calls of a layer, and what is said of anything that is adopted."""

import re
import shutil
from dataclasses import replace
from typing import Any

import pytest
from adopted_layers import GRU, LSTM, SIZES, STACK, assert_equal, assert_right, reference

import multirnn as mr
from multirnn import registry
from multirnn.adoption import adopt, adopt_both, known_spec
from multirnn.comparison import widened
from multirnn.numerics import draw_call
from multirnn.protocol import Backend


@pytest.fixture
def jax() -> Any:
    return pytest.importorskip("jax")


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


def test_a_layer_is_itself(backend: Backend) -> None:
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


def test_compiled(backend: Backend) -> None:
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
        (right, {}, "the spec of function right cannot be read: pass spec=mr.RecurrentSpec(...)"),
        (right, {"spec": GRU, "compiled": True}, "function right is called with NumPy arrays and has no compiled form; compile it yourself and adopt that"),
        (lambda: None, {"spec": GRU}, "function <lambda> has the parameters (); it must be callable as f(x, h0)"),
        (lambda x, h, c: None, {"spec": GRU}, "function <lambda> has the parameters (x, h, c); it must be callable as f(x, h0)"),
        (7, {"spec": GRU}, "an int cannot be run: adopt a multirnn Layer, a framework's own layer, or a function f(x, h0) -> (y, h) on NumPy arrays"),
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
    with pytest.raises(mr.InvalidCall, match=r"^the spec of neither side can be read: pass spec=mr\.RecurrentSpec"):
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
