"""JAX made fast: the same function in either layout, there, back and back again, in the hands of JAX."""

import logging
import re
from dataclasses import replace

import numpy as np
import pytest
from jax_trees import assert_close, like, paired, wide
from multirnn_bench.verify import allowed, answer, error, expected

import multirnn as mr
from multirnn.layer import Plan
from multirnn.numerics import draw_call
from multirnn.protocol import MODES, Work, with_implementation
from multirnn.testing import cases

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402
from multirnn_jax import BACKEND, FastRecurrence, fast, kernel, reverse  # noqa: E402
from multirnn_jax.activations import ACTIVATIONS, SLOPES  # noqa: E402
from multirnn_jax.weights import width  # noqa: E402

FAST = with_implementation(BACKEND, "fast")
RNN = mr.RecurrentSpec("simple_rnn", 5, 11, num_layers=2, bidirectional=True)
LSTM = mr.RecurrentSpec("lstm", 5, 11, bidirectional=True)
GRU = mr.RecurrentSpec("gru", 5, 11, bidirectional=True)
GRU_BEFORE = mr.RecurrentSpec("gru", 5, 11, reset_after=False, bidirectional=True)
CELLS = [RNN, LSTM, GRU, GRU_BEFORE]
every_cell = pytest.mark.parametrize("spec", CELLS, ids=["rnn", "lstm", "gru", "gru-before"])


@pytest.fixture(params=["kernel", "rows", "columns"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every form of the recursion; to be traced by functions of the test's own, since JAX keeps what it traced."""
    if request.param == "kernel":
        assert kernel.refuses() is None
    else:
        without_kernel(monkeypatch)
        monkeypatch.setattr(reverse, "in_columns", lambda spec, batch: request.param == "columns")
    return request.param


def without_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "refuses", lambda: "it is left out")


def drawn(spec: mr.RecurrentSpec):
    """A recurrence, a call of it, and what the reference says: the output, a cotangent, its gradients."""
    weights = mr.initialise(spec, seed=3)
    native = FAST.build(weights).native
    x, state, lengths = draw_call(spec)
    reference = mr.build(weights.astype("float64"), "numpy")
    output = reference(wide(x), wide(state), lengths=lengths)
    cotangent = jax.tree.map(lambda part: part.astype(spec.dtype), like(output))
    gradients = reference.vjp(wide(x), wide(state), lengths=lengths, cotangent=wide(cotangent))
    return native, (native.params, x, state, lengths), output, cotangent, gradients


# --- Agreement -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", [pytest.param(check, id=name) for name, check in cases()])
def test_the_conformance_suite_holds(check) -> None:
    check(FAST)


FORMS = [
    *CELLS,
    replace(GRU, bias="single", dtype="float64"),
    replace(GRU, bias="none"),
    replace(GRU_BEFORE, bias="double", dtype="float64"),
    replace(LSTM, activation="softsign", recurrent_activation=mr.Activation("hard_sigmoid", alpha=0.2, beta=0.5)),
    replace(GRU, activation=mr.Activation("elu", alpha=0.7), recurrent_activation="relu"),
    replace(RNN, activation="relu", bias="none"),
    replace(RNN, activation="linear", dtype="float64"),
]


@pytest.mark.parametrize("spec", FORMS, ids=repr)
def test_outputs_and_gradients_are_the_reference_s(spec: mr.RecurrentSpec, form: str) -> None:
    native, (params, x, state, lengths), output, cotangent, gradients = drawn(spec)

    def run(params, x, state):
        return native.apply(params, x, state, lengths)

    with width(spec):
        found, pull_back = jax.vjp(run, params, x, state)
        assert_close(wide(found), output) if spec.dtype == "float64" else assert_close(found, output)
        assert_close(pull_back(cotangent), (dict(gradients.weights), gradients.x, gradients.state))


@pytest.mark.parametrize("name", SLOPES)
def test_the_slope_of_an_activation_by_its_value(name: str) -> None:
    parameters = {"elu": {"alpha": 0.7}, "hard_sigmoid": {"alpha": 0.25, "beta": 0.5}}.get(name, {})
    points = jnp.concatenate([jnp.linspace(-4, 4, 33), jnp.array([-2.0, 0.0, 2.0])])  # with the kinks of all of them
    slopes = jax.vmap(jax.grad(lambda x: ACTIVATIONS[name](x, **parameters)))(points)
    assert_close(SLOPES[name](ACTIVATIONS[name](points, **parameters), **parameters), slopes)


@every_cell
def test_nan_in_padding_reaches_nothing(spec: mr.RecurrentSpec, form: str) -> None:
    native, (params, x, state, lengths), _, cotangent, _ = drawn(spec)
    padding = np.arange(x.shape[1]) >= lengths[:, None]
    dirty = np.where(padding[..., None], np.float32(np.nan), x)
    dirty_cotangent = cotangent._replace(sequence=np.where(padding[..., None], np.float32(np.nan), cotangent.sequence))

    @jax.jit
    def call(x, cotangent):
        output, pull_back = jax.vjp(lambda *primals: native.apply(*primals, lengths), params, x, state)
        return output, pull_back(cotangent)

    clean, found = call(x, cotangent), call(dirty, dirty_cotangent)
    assert padding.any()
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, found, clean)))


def test_products_are_of_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    without_kernel(monkeypatch)
    native, arguments, _, cotangent, _ = drawn(replace(GRU_BEFORE, bidirectional=False))
    jaxpr = str(jax.make_jaxpr(lambda *primals: jax.vjp(native.apply, *primals[:3])[1](cotangent))(*arguments[:3]))
    assert jaxpr.count("dot_general[") == jaxpr.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") > 7


# --- Transformations -------------------------------------------------------------------------------------------------


@every_cell
def test_gradient_of_each_row_under_vmap(spec: mr.RecurrentSpec, form: str) -> None:
    native, (params, x, _, lengths), *_ = drawn(spec)

    def loss(params, x, lengths):
        return jnp.sum(native.apply(params, x, None, lengths).sequence ** 2)

    each = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0, 0)))(params, x, lengths)
    whole = jax.jit(jax.grad(loss))(params, x, lengths)
    assert_close(jax.tree.map(lambda g: g.sum(0), each), whole)


def test_several_batch_axes_and_an_ensemble(form: str) -> None:
    native, (params, x, state, lengths), output, *_ = drawn(LSTM)
    nested = jax.jit(lambda x, n: native.apply(params, x, None, n))(np.stack([x, -x]), np.stack([lengths, lengths]))
    alone = jax.jit(lambda x, n: native.apply(params, x, None, n))(-x[2], lengths[2])
    assert_close(nested.sequence[1, 2], alone.sequence)
    assert_close(nested.state.c[:, 1, 2], alone.state.c)
    two = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), params)
    together = jax.jit(jax.vmap(lambda p: native.apply(p, x, state, lengths)))(two)
    assert_close(together.sequence[0], output.sequence)


def test_gradients_of_sequences_under_vmap_and_of_cotangents(form: str) -> None:
    """Sequences without a batch, each with its state: rows of one call; and many cotangents of one call."""
    native, (params, x, state, lengths), _, cotangent, gradients = drawn(LSTM)
    over = None, 0, mr.State(1, 1), 0
    one = jax.vmap(native.apply, in_axes=over, out_axes=mr.Output(0, mr.State(1, 1)))
    output, pull_back = jax.vjp(lambda *primals: one(*primals, lengths), params, x, state)
    assert_close(output, native.apply(params, x, state, lengths))
    assert_close(pull_back(cotangent), (dict(gradients.weights), gradients.x, gradients.state))
    _, pull_back = jax.vjp(lambda *primals: native.apply(*primals, lengths), params, x, state)
    many = jax.vmap(pull_back)(jax.tree.map(lambda part: jnp.stack([part, 2 * part]), cotangent))
    twice = jax.tree.map(lambda part: 2 * part, (dict(gradients.weights), gradients.x, gradients.state))
    assert_close(jax.tree.map(lambda part: part[1], many), twice)


def test_vmap_of_what_is_batched_in_vmap(form: str) -> None:
    native, (params, x, state, lengths), output, *_ = drawn(GRU)
    nested = jax.vmap(jax.vmap(native.apply, in_axes=(None, 0, None, None)), in_axes=(None, 0, 0, None))
    xs, states = np.stack([[x, -x], [2 * x, x]]), jax.tree.map(lambda part: np.stack([0 * part, part]), state)
    assert_close(nested(params, xs, states, lengths).sequence[1, 1], output.sequence)


@every_cell
def test_gradients_of_gradients_are_native_s(spec: mr.RecurrentSpec, form: str) -> None:
    spec = replace(spec, dtype="float64")
    native, (params, x, state, lengths), _, cotangent, _ = drawn(spec)
    plain = BACKEND.build(mr.initialise(spec, seed=3)).native
    direction = like((params, x, state), seed=8)

    def curvature(apply):
        def loss(*primals):
            return paired(cotangent, jax.tree.map(jnp.sin, apply(*primals, lengths)))

        def slope(*primals):
            return paired(direction, jax.grad(loss, argnums=(0, 1, 2))(*primals))

        primals = params, x, state
        along = jax.jvp(jax.grad(loss, argnums=(0, 1, 2)), primals, direction)[1]
        return jax.grad(slope, argnums=(0, 1, 2))(*primals), along

    with jax.enable_x64(True):
        found, (reverse, forward) = (
            jax.jit(lambda: curvature(native.apply))(),
            jax.jit(lambda: curvature(plain.apply))(),
        )
        assert_close(found[0], reverse)
        assert_close(found[1], forward)


@every_cell
@pytest.mark.parametrize("asked_for", [(0,), (1,), (2,), (0, 2)], ids=str)
def test_the_gradient_of_x_is_computed_where_it_is_asked_for(
    spec: mr.RecurrentSpec, asked_for: tuple[int, ...]
) -> None:
    native, (params, x, state, lengths), _, cotangent, gradients = drawn(spec)

    def loss(*primals):
        return paired(cotangent, native.apply(*primals, lengths))

    gradient = jax.jit(jax.grad(loss, argnums=asked_for))
    expected = dict(gradients.weights), gradients.x, gradients.state
    assert_close(gradient(params, x, state), tuple(expected[place] for place in asked_for))
    (call,) = re.findall(r"@multirnn_backward.*->(.*)", gradient.lower(params, x, state).as_text())
    assert ("tensor<5x7x5xf32>" in call) == (1 in asked_for)


def test_a_native_object_is_read_and_run_as_any() -> None:
    weights = mr.initialise(LSTM, seed=3)
    native = FastRecurrence(LSTM, {name: jnp.asarray(array) for name, array in weights.arrays.items()})
    assert mr.read(native) == mr.read(FAST.build(weights).native) == weights
    x, state, lengths = draw_call(LSTM)
    layer = FAST.build(weights)
    layer.native.params = jax.tree.map(lambda p: 2 * p, layer.native.params)
    doubled = mr.build(layer.weights().astype("float64"), "numpy")
    assert_close(layer(x, state, lengths=lengths), doubled(wide(x), wide(state), lengths=lengths))


def test_a_mesh_of_one_device(form: str) -> None:
    native, (params, x, state, lengths), output, cotangent, gradients = drawn(LSTM)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, columns, everywhere = (jax.sharding.PartitionSpec(*names) for names in (("data",), (None, "data"), ()))
    states = mr.State(columns, columns)
    call = jax.shard_map(
        native.apply, mesh=mesh, in_specs=(everywhere, rows, states, rows), out_specs=mr.Output(rows, states)
    )
    found, pull_back = jax.vjp(lambda params: call(params, x, state, lengths), params)
    assert_close(found, output)
    assert_close(pull_back(cotangent)[0], dict(gradients.weights))


def test_what_is_checkpointed_and_scanned_over(form: str) -> None:
    native, (params, x, state, lengths), _, cotangent, gradients = drawn(GRU)
    call = jax.checkpoint(lambda params: native.apply(params, x, state, lengths))
    assert_close(jax.jit(lambda params: jax.vjp(call, params)[1](cotangent)[0])(params), dict(gradients.weights))
    _, each = jax.lax.scan(lambda carry, x: (carry, native.apply(params, x).sequence), 0, np.stack([x, -x]))
    assert_close(each[1], native.apply(params, -x).sequence)


def test_lengths_are_clamped_and_axes_may_be_empty(form: str) -> None:
    native, (params, x, state, _), *_ = drawn(LSTM)
    beyond, within = np.array([9, -3, 3, 7, 1]), np.array([7, 0, 3, 7, 1])
    assert_close(native.apply(params, x, state, beyond), native.apply(params, x, state, within))
    for shape in ((0, 7, 5), (5, 0, 5), (0, 5), (2, 0, 7, 5)):
        output, pull_back = jax.vjp(native.apply, params, np.zeros(shape, "float32"))
        assert output.sequence.shape == (*shape[:-1], 22)
        assert not any(np.any(part) for part in jax.tree.leaves(pull_back(output)))


def test_where_the_compiled_recurrence_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    refuses = kernel.refuses.__wrapped__
    monkeypatch.setattr(jax, "device_count", lambda: 3)
    assert "3 devices" in refuses()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "gpu" in refuses()


# --- Compilation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_shape_is_compiled_once_and_lengths_share_buckets(dtype: str, caplog: pytest.LogCaptureFixture) -> None:
    spec = mr.RecurrentSpec("simple_rnn", 5, 13, dtype=dtype)
    rng = np.random.default_rng(0)
    x, state, _ = draw_call(spec)
    long = rng.standard_normal((5, 61, 5)).astype(dtype)

    def compiled(layer, x: np.ndarray, lengths: list[int]) -> bool:
        """Whether a call and its gradient make JAX trace or compile."""
        cotangent = mr.Output(np.ones((5, x.shape[1], 13), dtype), state)
        caplog.clear()
        with jax.log_compiles(), caplog.at_level(logging.WARNING):
            layer(x, state, lengths=lengths)
            layer.vjp(x, state, lengths=lengths, cotangent=cotangent)
        return bool(caplog.records)

    layer, other = FAST.build(mr.initialise(spec)), FAST.build(mr.initialise(spec, seed=4))
    assert compiled(layer, x, [7, 0, 3, 5, 1])
    assert not compiled(layer, -x, [1, 2, 3, 4, 7])
    assert not compiled(other, x, [7, 0, 3, 5, 1])
    layer.native.params = other.native.params
    assert not compiled(layer, x, [7, 0, 3, 5, 1])
    assert compiled(layer, long, [57, 0, 3, 5, 1])
    for longest in (58, 59, 60):
        assert not compiled(layer, long, [longest, 0, 3, 5, 1])
        assert not compiled(layer, long[:, :longest], [longest - 1, 0, 3, 5, longest])


@pytest.mark.parametrize("longest", [1, 15, 16, 17, 33, 100, 1000, 1025])
def test_a_bucket_is_at_most_an_eighth_longer(longest: int) -> None:
    assert longest <= fast._bucket(longest) <= longest * 9 / 8


def test_the_values_of_a_bucket_are_those_of_the_call() -> None:
    rng = np.random.default_rng(0)
    weights = mr.initialise(GRU, seed=3)
    layer, reference = FAST.build(weights), mr.build(weights.astype("float64"), "numpy")
    x = rng.standard_normal((3, 41, 5)).astype("float32")
    for lengths in ([33, 0, 2], [37, 41, 1], [0, 0, 3]):
        output, wanted = layer(x, lengths=lengths), reference(wide(x), lengths=lengths)
        assert_close(output, wanted)
        cotangent = jax.tree.map(lambda part: part.astype("float32"), like(wanted))
        gradients = layer.vjp(x, lengths=lengths, cotangent=cotangent)
        expected = reference.vjp(wide(x), lengths=lengths, cotangent=wide(cotangent))
        assert_close((dict(gradients.weights), gradients.x), (dict(expected.weights), expected.x))


def test_the_plan_says_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = FAST.build(mr.initialise(GRU))
    assert compiled.plan(32, 100) == Plan("fast", "the compiled recurrence, a custom call of XLA")
    assert compiled.compiler_options(4) == {}
    without_kernel(monkeypatch)
    small, large = (
        FAST.build(mr.initialise(mr.RecurrentSpec("gru", 3, 64))),
        FAST.build(mr.initialise(mr.RecurrentSpec("gru", 3, 512))),
    )
    assert small.plan(32, 100).implementation == "fast"
    assert "a scan over rows" in small.plan(32, 100).sentence
    assert "it is left out" in small.plan(32, 100).sentence
    assert "a scan over columns" in small.plan(1, 100).sentence
    assert "a scan over columns" in large.plan(4, 10).sentence
    assert "reverse scan" not in large.plan(4, 10).sentence
    assert "reverse scan" in large.plan(4, 10, lengths=True, gradients=True).sentence
    assert large.compiler_options(64) != large.compiler_options(4)
    assert BACKEND.build(mr.initialise(GRU)).compiler_options(4) == {}


def test_who_multiplies_is_a_matter_of_rows_and_cores() -> None:
    small, large = mr.RecurrentSpec("simple_rnn", 3, 256), mr.RecurrentSpec("lstm", 3, 512)
    assert [fast._by_eigen(small, batch, 1) for batch in (1, 8, 16, 64)] == [False, False, True, True]
    assert not any(fast._by_eigen(small, batch, 2) for batch in (1, 8, 16, 64))
    assert [fast._by_eigen(large, batch, 2) for batch in (1, 16, 32)] == [False, False, True]


def test_options_that_this_compiler_does_not_have_are_left_out() -> None:
    assert fast._known("xla_cpu_prefer_vector_width", 512)
    assert not fast._known("xla_cpu_prefer_abacus", 512)


# --- Timing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
@pytest.mark.parametrize("implementation", ["native", "fast"])
@pytest.mark.parametrize("mode", MODES)
def test_what_is_timed_is_right_and_goes_on(mode: str, implementation: str, ragged: bool) -> None:
    spec = mr.RecurrentSpec("lstm", 5, 11, num_layers=2, dtype="float64" if ragged else "float32")
    weights = mr.initialise(spec, seed=3)
    x, _, lengths = draw_call(spec)
    x, lengths = (x[:, :1], None) if mode == "streaming" else (x, lengths if ragged else None)
    output = mr.build(weights, "numpy")(x, lengths=lengths)
    work = Work(weights, np.ascontiguousarray(x), lengths, mode, like(output), like(output.sequence, 8))
    layer = BACKEND.build(weights, implementation=implementation)
    prepared = BACKEND.prepare(layer, work, 1)
    worst, where = error(work, answer(work, prepared.result()), expected(work))
    assert worst <= allowed(spec), where
    before = layer.weights()
    for _ in range(2):
        prepared.call()
    assert (layer.weights() == before) == (mode != "training")
    assert (prepared.boundary is None) == (mode == "training")
    assert prepared.plan
