"""Forward mode over JAX's fast functions, `jvp` and `jacfwd`, and gradients that it gives by transposition."""

import re
from dataclasses import replace

import numpy as np
import pytest
from jax_trees import assert_close, like, paired

import multirnn as mr
from multirnn.numerics import draw_call
from multirnn.protocol import with_implementation

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402
from multirnn_jax import BACKEND, kernel, reverse  # noqa: E402

FAST = with_implementation(BACKEND, "fast")
LSTM = mr.RecurrentSpec("lstm", 2, 3, bidirectional=True)
CELLS = [
    mr.RecurrentSpec("simple_rnn", 2, 3, num_layers=2),
    LSTM,
    mr.RecurrentSpec("gru", 2, 3, bidirectional=True),
    mr.RecurrentSpec("gru", 2, 3, reset_after=False),
]
every_cell = pytest.mark.parametrize("spec", CELLS, ids=["rnn", "lstm", "gru", "gru-before"])


@pytest.fixture(params=["kernel", "scan"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The compiled recurrence, or the scan where it cannot be called."""
    if request.param == "kernel":
        assert kernel.refuses() is None
    else:
        monkeypatch.setattr(kernel, "refuses", lambda: "it is left out")
    return request.param


def drawn(spec: mr.RecurrentSpec):
    """The fast and the native function, a call of them, and its lengths."""
    weights = mr.initialise(spec, seed=3)
    fast, plain = (BACKEND.build(weights, implementation=name).native for name in ("fast", "native"))
    x, state, lengths = draw_call(spec)
    return fast.apply, plain.apply, (fast.params, x, state), lengths


@every_cell
def test_tangents_are_native_s(spec: mr.RecurrentSpec, form: str) -> None:
    fast, plain, primals, lengths = drawn(spec)
    directions = like(primals, seed=8)

    def both(apply):
        @jax.jit
        def call(primals, directions):
            return jax.jvp(lambda *primals: apply(*primals, lengths), primals, directions)

        return call(primals, directions)

    found, expected = both(fast), both(plain)
    assert_close(found, expected)
    assert np.any(expected[1].sequence)


def test_tangents_on_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "refuses", lambda: "it is left out")
    monkeypatch.setattr(reverse, "in_columns", lambda spec, batch: True)
    test_tangents_are_native_s(LSTM, "scan")


@pytest.mark.parametrize("spec", [replace(LSTM, bidirectional=False), CELLS[-1]], ids=["lstm", "gru-before"])
def test_hessians_in_every_order_of_the_modes(spec: mr.RecurrentSpec, form: str) -> None:
    fast, plain, (params, x, state), lengths = drawn(replace(spec, dtype="float64"))
    with jax.enable_x64(True):
        cotangent = like(plain(params, x, state, lengths))

        def orders(apply):
            def loss(part):
                return paired(cotangent, jax.tree.map(jnp.sin, apply(params, x * part, state, lengths)))

            part = jnp.ones(x.shape[-1])
            modes = [jax.jacfwd(jax.jacrev(loss)), jax.jacrev(jax.jacfwd(loss)), jax.jacfwd(jax.jacfwd(loss))]
            return [jax.jit(mode)(part) for mode in modes]

        forward_over_reverse, *others = orders(fast)
        for other in [*others, orders(plain)[0]]:
            assert_close(forward_over_reverse, other)


def test_jacobians_of_both_modes(form: str) -> None:
    fast, _, (params, x, state), lengths = drawn(LSTM)

    def outputs(state):
        return fast(params, x, state, lengths).sequence[1]

    by_columns, by_rows = jax.jit(jax.jacfwd(outputs))(state), jax.jit(jax.jacrev(outputs))(state)
    assert_close(by_columns, by_rows)
    assert np.any(by_rows.c)


def test_tangents_of_a_part_alone(form: str) -> None:
    """Of one array of weights, of x, of a state without a gradient of x."""
    fast, plain, (params, x, state), lengths = drawn(LSTM)
    name = "layers.0.backward.weight_hh"

    def cases(apply):
        def of_weight(w):
            return apply({**params, name: w}, x, state, lengths)

        def of_x(x):
            return apply(params, x)

        def of_cells(c):
            return apply(params, x, mr.State(state.h, c), lengths).state

        for function, at in ((of_weight, params[name]), (of_x, x), (of_cells, state.c)):
            yield jax.jvp(function, (at,), (like(at, seed=5),))[1]

    assert_close(list(cases(fast)), list(cases(plain)))


def test_gradient_of_a_tangent_with_respect_to_direction_and_point(form: str) -> None:
    fast, plain, (params, x, state), lengths = drawn(LSTM)
    directions = like((params, x, state), seed=8)

    def slope(apply):
        def along(point, directions):
            tangent = jax.jvp(lambda *primals: apply(*primals, lengths), point, directions)[1]
            return jnp.sum(jnp.sin(tangent.sequence)) + jnp.sum(tangent.state.c)

        return jax.jit(jax.grad(along, argnums=(0, 1)))((params, x, state), directions)

    assert_close(slope(fast), slope(plain))


def test_under_vmap_checkpoint_scan_and_linearize(form: str) -> None:
    fast, plain, (params, x, _), lengths = drawn(replace(LSTM, bidirectional=False))
    dx = like(x, seed=5)

    def cases(apply):
        def of_x(x):
            return apply(params, x, None, lengths).sequence

        def of_row(row, length, direction):
            return jax.jvp(lambda row: apply(params, row, None, length).sequence, (row,), (direction,))[1]

        def loss(x):
            each = jax.vmap(lambda row, length: apply(params, row, None, length).sequence)(x, lengths)
            return jnp.sum(jnp.sin(each))

        def step(carry, now):
            return carry + jax.jvp(of_x, (now,), (dx,))[1].sum(), None

        yield jax.vmap(of_row)(x, lengths, dx)
        yield jax.vmap(jax.vmap(of_row, in_axes=(None, None, 0)))(x, lengths, np.stack([dx, 2 * dx], axis=1))
        yield jax.jvp(jax.checkpoint(of_x), (x,), (dx,))[1]
        yield jax.linearize(of_x, x)[1](dx)
        yield jax.lax.scan(step, 0.0, np.stack([x, -x]))[0]
        yield jax.grad(loss)(x)
        yield jax.jvp(jax.grad(loss), (x,), (dx,))[1]
        ensemble = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), params)
        yield jax.jvp(lambda p: jax.vmap(lambda p: apply(p, x).sequence)(p), (ensemble,), (like(ensemble),))[1]

    for found, expected in zip(cases(fast), cases(plain), strict=True):
        assert_close(found, expected)


def test_nan_in_padding_reaches_no_tangent(form: str) -> None:
    fast, _, (params, x, state), lengths = drawn(LSTM)
    padding = (np.arange(x.shape[1]) >= lengths[:, None])[..., None]
    dirty = np.where(padding, np.float32(np.nan), x)

    @jax.jit
    def call(x, dx):
        return jax.jvp(lambda x: fast(params, x, state, lengths), (x,), (dx,))

    assert padding.any()
    assert_close(call(dirty, dirty), call(np.where(padding, 0, x), np.where(padding, 0, x)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(call(dirty, dirty)))


def test_on_a_mesh_of_one_device() -> None:
    fast, plain, (params, x, _), _ = drawn(LSTM)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, everywhere = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()

    def call(params, x):
        return jax.shard_map(
            lambda params, x: fast(params, x).sequence, mesh=mesh, in_specs=(everywhere, rows), out_specs=rows
        )(params, x)

    directions = like((params, x), seed=5)
    expected = jax.jvp(lambda *primals: plain(*primals).sequence, (params, x), directions)
    assert_close(jax.jvp(call, (params, x), directions), expected)


# --- What is compiled ------------------------------------------------------------------------------------------------


def calls(compiled) -> list[str]:
    """The results and the direction of the custom calls in a compiled program."""
    return re.findall(r"= (.*) custom-call\(.*custom_call_target=\"multirnn_(forward|backward)", compiled.as_text())


@every_cell
def test_a_gradient_is_one_call_forward_and_one_backward(spec: mr.RecurrentSpec) -> None:
    fast, _, (params, x, state), lengths = drawn(spec)

    def loss(params, x):
        return jnp.sum(fast(params, x, state, lengths).sequence ** 2)

    step = jax.jit(jax.value_and_grad(loss)).lower(params, x).compile()
    (results, first), (gradients, second) = calls(step)
    assert (first, second) == ("forward", "backward")
    assert "u8[" in results
    assert f"f32[{','.join(map(str, x.shape))}]" not in gradients
    assert "while" not in step.as_text()
    both = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, x).compile()
    assert [direction for _, direction in calls(both)] == ["forward", "backward"]


def test_a_call_without_a_gradient_keeps_no_reserve_space() -> None:
    fast, _, (params, x, state), lengths = drawn(LSTM)
    ((results, direction),) = calls(jax.jit(fast).lower(params, x, state, lengths).compile())
    assert direction == "forward"
    assert "u8[" not in results


def test_a_tangent_alone_needs_no_call_backward() -> None:
    fast, _, (params, x, _), _ = drawn(LSTM)
    call = jax.jit(lambda x: jax.jvp(lambda x: fast(params, x).sequence, (x,), (x,))).lower(x).compile()
    assert [direction for _, direction in calls(call)] == ["forward"]
