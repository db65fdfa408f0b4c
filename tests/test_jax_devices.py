"""JAX layers on given devices, sharded over two, and compiled with the options that users have."""

import os
import subprocess
import sys

import pytest
from jax_trees import assert_close, wide

import multirnn as mr
from multirnn.numerics import draw_call

jax = pytest.importorskip("jax")

from multirnn_jax import BACKEND  # noqa: E402

LSTM = mr.RecurrentSpec("lstm", 5, 11, bidirectional=True)
GRU = mr.RecurrentSpec("gru", 5, 11, bias="single", bidirectional=True)


def in_a_process(code: str, **environment: str) -> str:
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


# --- Devices ---------------------------------------------------------------------------------------------------------


def test_device_is_where_the_parameters_are() -> None:
    layer = BACKEND.build(mr.initialise(GRU), device="cpu")
    assert {device.platform for leaf in jax.tree.leaves(layer.native.params) for device in leaf.devices()} == {"cpu"}
    x, _, _ = draw_call(GRU)
    assert_close(layer(x), mr.build(mr.initialise(GRU).astype("float64"), "numpy")(wide(x)))


@pytest.mark.parametrize("device", ["abacus", "cpu:1"])
def test_a_device_that_is_not_there(device: str) -> None:
    with pytest.raises(mr.InvalidCall, match=rf"JAX has no device '{device}' here; it can use .*cpu"):
        BACKEND.build(mr.initialise(GRU), device=device)


def test_on_a_gpu() -> None:
    if not any(device.platform == "gpu" for device in jax.local_devices()):
        pytest.skip("JAX has no GPU here")
    weights = mr.initialise(LSTM, seed=3)
    layer, (x, state, lengths) = BACKEND.build(weights, device="gpu"), draw_call(LSTM)
    reference = mr.build(weights.astype("float64"), "numpy")
    output = layer(x, state, lengths=lengths)
    assert_close(output, reference(wide(x), wide(state), lengths=lengths))
    gradients = layer.vjp(x, state, lengths=lengths, cotangent=output)
    expected = reference.vjp(wide(x), wide(state), lengths=lengths, cotangent=wide(output))
    assert_close((dict(gradients.weights), gradients.x), (dict(expected.weights), expected.x))


# The number of devices is fixed when JAX starts, so two of them need a process of their own.
SHARDED = """
import os
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import multirnn as mr

layer = mr.build(mr.RecurrentSpec("lstm", 5, 3), "jax")
apply, params = layer.native.apply, layer.native.params
rng = np.random.default_rng(0)
x, lengths = rng.standard_normal((4, 7, 5)).astype("float32"), np.array([7, 0, 3, 5])
state = mr.State(*rng.standard_normal((2, 1, 4, 3)).astype("float32"))
cotangent = mr.Output(rng.standard_normal((4, 7, 3)).astype("float32"), state)
expected = layer(x, state, lengths=lengths)
gradients = layer.vjp(x, state, lengths=lengths, cotangent=cotangent).weights

def loss(params, x, state, lengths):
    output = apply(params, x, state, lengths)
    return sum(jnp.sum(c * o) for c, o in zip(jax.tree.leaves(cotangent), jax.tree.leaves(output)))

def close(actual, expected):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert mr.difference(a, b).normwise <= mr.tolerance(a.dtype)

rows, columns, everywhere = P("data"), P(None, "data"), P()
for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,))
    def put(tree, spec):
        return jax.device_put(tree, NamedSharding(mesh, spec))
    given = put(params, everywhere), put(x, rows), put(state, columns), put(lengths, rows)
    output = jax.jit(apply)(*given)
    assert len(output.sequence.sharding.device_set) == 2 and not output.sequence.is_fully_replicated
    close(output, expected)
    same = put(state, everywhere)  # an initial state that is not sharded as x is
    close(jax.jit(apply)(given[0], given[1], same, given[3]), expected)

close(jax.jit(jax.grad(loss))(given[0], given[1], same, given[3]), gradients)
split = mr.Output(rows, mr.State(columns, columns))
mapped = jax.shard_map(apply, mesh=mesh, in_specs=(everywhere, rows), out_specs=split)
close(jax.jit(mapped)(*given[:2]), layer(x))
layer.native.params = given[0]
close(layer(x, state, lengths=lengths), expected)
print("sharded over", len(jax.devices()), "devices")
"""


def test_a_batch_that_is_sharded_over_two_devices() -> None:
    assert in_a_process(SHARDED, **os.environ) == "sharded over 2 devices\n"


FAST_SHARDED = """
import os
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import multirnn as mr
from multirnn_jax import reverse

def close(actual, expected):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert mr.difference(a, b).normwise <= mr.tolerance(a.dtype)

rows, columns, everywhere = P("data"), P(None, "data"), P()
rng = np.random.default_rng(0)
x, lengths = rng.standard_normal((4, 7, 5)).astype("float32"), np.array([7, 0, 3, 5])
for cell, layout in (("lstm", False), ("gru", True)):
    reverse.in_columns = lambda spec, batch: layout
    spec = mr.RecurrentSpec(cell, 5, 3)
    layer, plain = mr.backend("jax").build(mr.initialise(spec), implementation="fast"), mr.build(spec, "jax")
    apply, params = layer.native.apply, layer.native.params
    state = mr.State(*rng.standard_normal((len(spec.form.states), 1, 4, 3)).astype("float32"))
    cotangent = mr.Output(rng.standard_normal((4, 7, 3)).astype("float32"), state)
    expected = plain(x, state, lengths=lengths)
    gradients = plain.vjp(x, state, lengths=lengths, cotangent=cotangent).weights

    def loss(params, x, state, lengths):
        output = apply(params, x, state, lengths)
        return sum(jnp.sum(c * o) for c, o in zip(jax.tree.leaves(cotangent), jax.tree.leaves(output)))

    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,))
        def put(tree, spec):
            return jax.device_put(tree, NamedSharding(mesh, spec))
        given = put(params, everywhere), put(x, rows), put(state, columns), put(lengths, rows)
        output = jax.jit(apply)(*given)
        assert len(output.sequence.sharding.device_set) == 2 and not output.sequence.is_fully_replicated
        close(output, expected)
        same = put(state, everywhere)  # an initial state that is not sharded as x is
        close(jax.jit(jax.grad(loss))(given[0], given[1], same, given[3]), gradients)

    split = mr.Output(rows, mr.State(*[columns] * len(state)))
    specs = (everywhere, rows, jax.tree.map(lambda _: columns, state), rows)

    def mapped_loss(params, *call):
        output = jax.shard_map(apply, mesh=mesh, in_specs=specs, out_specs=jax.tree.map(
            lambda part: rows if part.ndim == 3 and part.shape[0] == 4 else columns, cotangent))(params, *call)
        return sum(jnp.sum(c * o) for c, o in zip(jax.tree.leaves(cotangent), jax.tree.leaves(output)))

    close(jax.jit(jax.grad(mapped_loss))(*given), gradients)
    layer.native.params = given[0]
    close(layer(x, state, lengths=lengths), expected)
print("sharded over", len(jax.devices()), "devices")
"""


def test_the_fast_layer_of_a_sharded_batch() -> None:
    assert in_a_process(FAST_SHARDED, **os.environ) == "sharded over 2 devices\n"


COMPILED = """
import multirnn as mr

for cell in ("simple_rnn", "lstm", "gru"):
    comparison = mr.compare(mr.RecurrentSpec(cell, 3, 11, bidirectional=True), backends=["jax"])
    assert comparison.ok, str(comparison)
print("equal")
"""


def test_agrees_as_it_is_compiled_for_users() -> None:
    """The other tests compile without optimisation; see conftest.py."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    assert in_a_process(COMPILED, **environment) == "equal\n"


FAST_COMPILED = """
import multirnn as mr
from multirnn_jax import kernel
from multirnn.protocol import with_implementation

fast = with_implementation(mr.backend("jax"), "fast")
if not compiled_recurrence:
    kernel.refuses = lambda: "it is left out"
for cell in ("simple_rnn", "lstm", "gru"):
    comparison = mr.compare(mr.RecurrentSpec(cell, 3, 11, bidirectional=True), backends=[fast])
    assert comparison.ok, str(comparison)
    hidden = 1024 if cell == "simple_rnn" else 512
    assert fast.build(mr.initialise(mr.RecurrentSpec(cell, 3, hidden))).plan(33, 3).sentence.count("columns") != compiled_recurrence
    import numpy as np
    x = np.random.default_rng(0).standard_normal((33, 3, 3)).astype("float32")
    comparison = mr.compare(mr.RecurrentSpec(cell, 3, hidden), x, backends=[fast])
    assert comparison.ok, str(comparison)
print("equal")
"""


@pytest.mark.parametrize("compiled_recurrence", [True, False])
def test_the_fast_layer_as_it_is_compiled_for_users(compiled_recurrence: bool) -> None:
    """The other tests compile without optimisation; see conftest.py."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    assert in_a_process(f"compiled_recurrence = {compiled_recurrence}\n{FAST_COMPILED}", **environment) == "equal\n"
