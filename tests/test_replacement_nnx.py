"""`replace_layers` on Flax NNX modules: each `nnx.RNN` is changed in place, computes the same, and goes back."""

from copy import deepcopy
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from multirnn_jax import fast
from multirnn_jax.nnx_rnn import FastRNN

import multirnn as mr

INPUT, HIDDEN, BATCH, TIME = 3, 5, 4, 7
CELLS = {
    "simple": nnx.SimpleCell,
    "lstm": nnx.LSTMCell,
    "optimised lstm": nnx.OptimizedLSTMCell,
    "gru": nnx.GRUCell,
}
every_cell = pytest.mark.parametrize("cell", CELLS)


def made(cell: Any, **settings: Any) -> nnx.RNN:
    kind = CELLS.get(cell, cell)
    layer = nnx.RNN(kind(INPUT, HIDDEN, rngs=nnx.Rngs(1)), rngs=nnx.Rngs(2), **settings)
    # Biases start as zero, which would hide a bias in another place.
    state = nnx.state(layer, nnx.Param)
    nnx.update(layer, jax.tree.map(lambda p: 0.3 * jax.random.normal(jax.random.key(p.size), p.shape), state))
    return layer


def pair(cell: Any, **settings: Any) -> tuple[nnx.RNN, nnx.RNN]:
    stock, quick = made(cell, **settings), made(cell, **settings)
    replacement = mr.replace_layers(quick)
    assert type(quick) is FastRNN
    assert replacement.replaced == (("", "RNN", "FastRNN"),)
    return stock, quick


@pytest.fixture(name="runs")
def what_ran(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The specs that the fast function was called with."""
    found: list[Any] = []
    original = fast.apply

    def watched(spec: Any, *args: Any, **kwargs: Any) -> Any:
        found.append(spec)
        return original(spec, *args, **kwargs)

    monkeypatch.setattr(fast, "apply", watched)
    return found


def drawn(*shape: int, seed: int = 9) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def assert_close(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        found = mr.difference(np.asarray(one), np.asarray(other))
        assert found.normwise <= mr.tolerance(str(one.dtype)), found


# --- The same function -----------------------------------------------------------------------------------------------


@every_cell
@pytest.mark.parametrize("time_major", [False, True])
def test_every_way_to_call_a_layer(cell: str, time_major: bool, runs: list[Any]) -> None:
    stock, quick = pair(cell, time_major=time_major)
    x = drawn(TIME, BATCH, INPUT) if time_major else drawn(BATCH, TIME, INPUT)
    lstm = "lstm" in cell
    state = tuple(drawn(BATCH, HIDDEN, seed=seed) for seed in (3, 4)) if lstm else drawn(BATCH, HIDDEN, seed=3)
    lengths = jnp.array([TIME, 1, 3, 0])
    for reverse, keep_order, ends, carry, given in product(
        (False, True), (False, True), (None, lengths), (False, True), (None, state)
    ):
        call = {
            "reverse": reverse, "keep_order": keep_order, "seq_lengths": ends, "return_carry": carry, "initial_carry": given,
        }  # fmt: skip
        runs.clear()
        assert_close(quick(x, **call), stock(x, **call))
        assert runs, call


@every_cell
@pytest.mark.parametrize("shape", [(TIME,), (2, BATCH, TIME)], ids=["no rows", "two axes of rows"])
def test_other_axes(cell: str, shape: tuple[int, ...], runs: list[Any]) -> None:
    stock, quick = pair(cell, return_carry=True)
    x = drawn(*shape, INPUT)
    assert_close(quick(x), stock(x))
    assert runs


@every_cell
def test_gradients_under_jit(cell: str) -> None:
    layers = pair(cell, return_carry=True)
    x, ends = drawn(BATCH, TIME, INPUT), jnp.array([TIME, 1, 3, 2])

    @nnx.jit
    def pulled(layer: Any, x: Any) -> Any:
        def loss(layer: Any, x: Any) -> Any:
            return sum((part**2).sum() for part in jax.tree.leaves(layer(x, seq_lengths=ends)))

        return nnx.grad(loss, argnums=(0, 1))(layer, x)

    expected, actual = (pulled(layer, x) for layer in layers)
    assert_close(actual[1], expected[1])
    assert_close(jax.tree.leaves(actual[0]), jax.tree.leaves(expected[0]))


@pytest.mark.parametrize("name", ["relu", "elu", "soft_sign", "identity", "sigmoid"])
def test_activations(name: str, runs: list[Any]) -> None:
    function = getattr(jax.nn, name)
    stock, quick = (
        nnx.RNN(nnx.GRUCell(INPUT, HIDDEN, activation_fn=function, gate_fn=jax.nn.tanh, rngs=nnx.Rngs(1))) for _ in "ab"
    )
    mr.replace_layers(quick)
    x = drawn(BATCH, TIME, INPUT)
    assert_close(quick(x), stock(x))
    assert runs[0].recurrent_activation == "tanh"


def test_what_flax_would_run_in_another_dtype_is_flaxs(runs: list[Any]) -> None:
    stock, quick = pair("lstm")
    for x in (
        drawn(BATCH, TIME, INPUT).astype(jnp.bfloat16),
        jnp.ones((BATCH, TIME, INPUT), jnp.int32),
        np.ones((BATCH, 0, INPUT), np.float32),
    ):
        try:
            expected = stock(x)
        except Exception as error:  # noqa: BLE001 - whatever Flax raises
            with pytest.raises(type(error)):
                quick(x)
            continue
        assert_close(quick(x), expected)
    assert not runs


def test_a_first_carry_that_is_drawn(runs: list[Any]) -> None:
    """As many random numbers are drawn as by Flax."""

    def layer() -> nnx.RNN:
        cell = nnx.GRUCell(INPUT, HIDDEN, carry_init=nnx.initializers.normal(1.0), rngs=nnx.Rngs(1))
        return nnx.RNN(cell, rngs=nnx.Rngs(carry=5), return_carry=True)

    stock, quick = layer(), layer()
    mr.replace_layers(quick)
    x = drawn(BATCH, TIME, INPUT)
    for _ in range(2):
        assert_close(quick(x), stock(x))
    assert len(runs) == 2


def test_wrong_sizes_are_flaxs_to_refuse() -> None:
    stock, quick = pair("gru")
    for layer in (stock, quick):
        with pytest.raises((TypeError, ValueError)):
            layer(drawn(BATCH, TIME, INPUT + 1))


# --- In a model ------------------------------------------------------------------------------------------------------


class Model(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.both = nnx.Bidirectional(
            nnx.RNN(nnx.LSTMCell(INPUT, HIDDEN, rngs=rngs)), nnx.RNN(nnx.LSTMCell(INPUT, HIDDEN, rngs=rngs))
        )
        self.shared = nnx.RNN(nnx.GRUCell(2 * HIDDEN, 2 * HIDDEN, rngs=rngs))
        self.again = self.shared
        self.head = nnx.Linear(2 * HIDDEN, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.head(self.again(self.shared(self.both(x))))


PATHS = ["again", "both.backward_rnn", "both.forward_rnn"]


def test_the_objects_stay() -> None:
    model, x = Model(), drawn(BATCH, TIME, INPUT)
    expected, before = model(x), nnx.state(model)
    objects = model.both.forward_rnn, model.shared, model.both.forward_rnn.cell
    replacement = mr.replace_layers(model)
    assert sorted(layer.path for layer in replacement.replaced) == PATHS
    assert len(replacement.replaced) == 3
    assert objects == (model.both.forward_rnn, model.shared, model.both.forward_rnn.cell)
    assert model.again is model.shared
    assert jax.tree.structure(nnx.state(model)) == jax.tree.structure(before)
    assert_close(model(x), expected)
    replacement.restore()
    assert [type(layer) for layer in (model.both.forward_rnn, model.both.backward_rnn, model.shared)] == [nnx.RNN] * 3
    assert all(np.array_equal(a, b) for a, b in zip(model(x), expected, strict=True))
    replacement.restore()


def test_split_merge_jit_vmap_and_an_optimiser() -> None:
    stock, quick = Model(), Model()
    mr.replace_layers(quick)
    x = drawn(BATCH, TIME, INPUT)
    graph, state = nnx.split(quick)
    assert type(nnx.merge(graph, state).shared) is FastRNN
    assert_close(nnx.merge(graph, state)(x), stock(x))
    assert_close(nnx.vmap(lambda model, row: model(row), in_axes=(None, 0))(quick, x), stock(x))

    @nnx.jit
    def step(model: Any, optimiser: Any) -> Any:
        loss, found = nnx.value_and_grad(lambda model: (model(x) ** 2).mean())(model)
        optimiser.update(model, found)
        return loss

    losses = []
    for model in (stock, quick):
        optimiser = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
        losses.append([step(model, optimiser) for _ in range(4)])
    assert_close(losses[1], losses[0])


def test_replaced_between_two_steps() -> None:
    model = Model()
    optimiser = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    x = drawn(BATCH, TIME, INPUT)

    @nnx.jit
    def step(model: Any, optimiser: Any) -> Any:
        loss, found = nnx.value_and_grad(lambda model: (model(x) ** 2).mean())(model)
        optimiser.update(model, found)
        return loss

    losses = [step(model, optimiser)]
    replacement = mr.replace_layers(model)
    losses.append(step(model, optimiser))
    replacement.restore()
    losses.append(step(model, optimiser))
    assert losses[0] > losses[1] > losses[2]


def test_a_copy_is_restored_by_its_own_record() -> None:
    """Flax's layers cannot be pickled."""
    model, x = Model(), drawn(BATCH, TIME, INPUT)
    expected = model(x)
    replacement = mr.replace_layers(model)
    other, record = deepcopy((model, replacement))
    assert record.model is other
    record.restore()
    assert type(other.shared) is nnx.RNN
    assert type(model.shared) is FastRNN
    assert_close(other(x), expected)
    assert mr.replace_layers(other).replaced == replacement.replaced
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nnx.RNN, "__call__", None)  # Flax's own does not run
        assert_close(other(x), expected)
    assert len(mr.replace_layers(model, "native").replaced) == 3


# --- What is kept ----------------------------------------------------------------------------------------------------


class OwnLayer(nnx.RNN):
    pass


class OwnCell(nnx.GRUCell):
    pass


def with_cell(**settings: Any) -> nnx.RNN:
    return nnx.RNN(nnx.GRUCell(INPUT, HIDDEN, rngs=nnx.Rngs(1), **settings))


def patched(layer: nnx.RNN, name: str, value: Any) -> nnx.RNN:
    setattr(layer.cell, name, value)
    return layer


KEPT = {
    "subclass": (lambda: OwnLayer(nnx.GRUCell(INPUT, HIDDEN, rngs=nnx.Rngs(1))), "its class derives from nnx.RNN"),
    "own cell": (lambda: nnx.RNN(OwnCell(INPUT, HIDDEN, rngs=nnx.Rngs(1))), "its cell is an? OwnCell; only those of Flax itself"),
    "convolution": (
        lambda: nnx.RNN(nnx.ConvLSTMCell(INPUT, HIDDEN, (3,), rngs=nnx.Rngs(1))) if hasattr(nnx, "ConvLSTMCell") else with_cell(dtype=jnp.bfloat16),
        "its cell is an? |it has and computes in",
    ),
    "half": (lambda: with_cell(param_dtype=jnp.float16, recurrent_kernel_init=nnx.initializers.ones), "it has and computes in float16"),
    "mixed": (lambda: with_cell(dtype=jnp.bfloat16), "it has and computes in bfloat16 and float32"),
    "activation": (lambda: with_cell(activation_fn=jax.nn.gelu), "its activation_fn is gelu, which no spec has"),
    "hard sigmoid": (lambda: with_cell(gate_fn=jax.nn.hard_sigmoid), "its gate_fn is hard_sigmoid"),
    "lambda": (lambda: with_cell(activation_fn=lambda x: x), "its activation_fn is <lambda>"),
    "residual": (
        lambda: nnx.RNN(nnx.SimpleCell(INPUT, INPUT, residual=True, rngs=nnx.Rngs(1))), r"\(residual=True\), which no spec does",
    ),
    "product": (
        lambda: patched(with_cell(), "dense_i", nnx.Linear(INPUT, 3 * HIDDEN, precision="highest", rngs=nnx.Rngs(1))),
        "precision of its own",
    ),
    "no bias": (
        lambda: patched(with_cell(), "dense_i", nnx.Linear(INPUT, 3 * HIDDEN, use_bias=False, rngs=nnx.Rngs(1))),
        "a bias of its cell was taken away or added",
    ),
    "low rank": (
        lambda: patched(with_cell(), "dense_i", nnx.LoRALinear(INPUT, 3 * HIDDEN, lora_rank=1, rngs=nnx.Rngs(1))),
        "a product of its cell is a LoRALinear",
    ),
    "state axes": (
        lambda: nnx.RNN(nnx.GRUCell(INPUT, HIDDEN, rngs=nnx.Rngs(1)), state_axes=nnx.StateAxes({nnx.Param: None, ...: nnx.Carry})),
        "state_axes or broadcast_rngs of its own",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", KEPT)
def test_what_is_kept_is_reported_with_the_reason(what: str) -> None:
    make, reason = KEPT[what]
    model = nnx.Sequential(nnx.RNN(nnx.GRUCell(INPUT, INPUT, rngs=nnx.Rngs(1))), make())
    replacement = mr.replace_layers(model)
    assert [layer.path for layer in replacement.replaced] == ["layers.0"]
    (kept,) = replacement.kept
    assert kept.path == "layers.1"
    with pytest.raises(mr.InvalidCall, match=rf"no recurrent layer of this \w+ can be replaced: .*({reason})"):
        mr.replace_layers(make())


def test_a_cell_in_a_loop_of_the_models_own_and_no_layer_at_all() -> None:
    with pytest.raises(mr.InvalidCall, match="a cell runs one step a call, in a loop of the model's own"):
        mr.replace_layers(nnx.Sequential(nnx.GRUCell(INPUT, HIDDEN, rngs=nnx.Rngs(1))))
    with pytest.raises(mr.InvalidCall, match="this Linear has no recurrent layer to replace"):
        mr.replace_layers(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    with pytest.raises(mr.InvalidCall, match=r"inside a flax\.nnx\.Module, not inside"):
        mr.replace_layers(jnp.zeros(3))


def test_twice() -> None:
    model = Model()
    mr.replace_layers(model)
    again = mr.replace_layers(model)
    assert not again.replaced
    assert {kept.reason for kept in again.kept} == {"it is fast already"}
    again.restore()
    assert type(model.shared) is FastRNN
