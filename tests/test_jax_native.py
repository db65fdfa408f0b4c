"""What JAX users do with `layer.native`: transform, shard, train; and its dtypes, devices and compilation."""

import copy
import logging
import pickle
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from jax_trees import assert_close, like, paired, wide

import multirnn as mr
from multirnn.numerics import draw_call

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402
from multirnn_jax import BACKEND, Recurrence  # noqa: E402
from multirnn_jax.activations import ACTIVATIONS  # noqa: E402
from multirnn_jax.loop import apply  # noqa: E402

LSTM = mr.RecurrentSpec("lstm", 5, 11, bidirectional=True)
GRU = mr.RecurrentSpec("gru", 5, 11, bias="single", bidirectional=True)
FORMS = [
    mr.RecurrentSpec("simple_rnn", 5, 11, bias="double", activation="relu", dtype="float64"),
    replace(LSTM, num_layers=2),
    GRU,
    mr.RecurrentSpec("gru", 5, 11, num_layers=2, reset_after=False, dtype="float64"),
]
every_form = pytest.mark.parametrize("spec", FORMS, ids=lambda spec: f"{spec.cell}-{spec.dtype}")


def build(spec: mr.RecurrentSpec):
    return mr.build(spec, "jax", seed=3)


def reference(spec: mr.RecurrentSpec):
    """The same layer on NumPy in float64."""
    return mr.build(mr.initialise(spec, seed=3).astype("float64"), "numpy")


# --- Agreement -------------------------------------------------------------------------------------------------------


@every_form
def test_agrees_with_the_reference_in_outputs_and_all_gradients(spec: mr.RecurrentSpec) -> None:
    row = mr.compare(mr.initialise(spec, seed=3), backends=["jax"]).rows[0]
    assert row.verdict == "equal", row.reason
    assert row.gradient is not None


@pytest.mark.parametrize(
    ("name", "parameters", "kink", "slope"),
    [
        ("relu", {}, 0.0, 0.0),
        ("elu", {"alpha": 0.7}, 0.0, 0.7),
        ("softsign", {}, 0.0, 1.0),
        ("hard_sigmoid", {"alpha": 0.25, "beta": 0.5}, 2.0, 0.0),
        ("hard_sigmoid", {"alpha": 0.25, "beta": 0.5}, -2.0, 0.0),
        ("hard_sigmoid", {"alpha": 0.25, "beta": 0.5}, 1.0, 0.25),
    ],
)
def test_gradients_at_the_kinks_of_an_activation(name: str, parameters, kink: float, slope: float) -> None:
    activation = partial(ACTIVATIONS[name], **parameters)
    assert float(jax.grad(activation)(jnp.float32(kink))) == np.float32(slope)
    assert np.isnan(activation(jnp.float32(np.nan)))


@pytest.mark.parametrize(("bias", "count"), [("none", 117), ("single", 129), ("double", 135)])
def test_the_pytree_has_the_spec_s_leaves(bias: str, count: int) -> None:
    spec = mr.RecurrentSpec("gru", 10, 3, bias=bias)
    layer = build(spec)
    assert {name: array.shape for name, array in layer.native.params.items()} == dict(spec.shapes)
    assert sum(leaf.size for leaf in jax.tree.leaves(layer.native.params)) == layer.parameter_count == count


def test_products_are_of_full_precision() -> None:
    native = build(LSTM).native
    x, state, lengths = draw_call(LSTM)
    jaxpr = str(jax.make_jaxpr(native.apply)(native.params, x, state, lengths))
    assert jaxpr.count("dot_general[") == jaxpr.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == 4


# --- Transformations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transform", [jax.jit, jax.checkpoint, lambda f: f], ids=["jit", "checkpoint", "eager"])
def test_apply_is_the_layer_s_function(transform) -> None:
    layer, (x, state, lengths) = build(LSTM), draw_call(LSTM)
    output = transform(layer.native.apply)(layer.native.params, x, state, lengths)
    assert isinstance(output.sequence, jax.Array)
    assert_close(output, layer(x, state, lengths=lengths))


def test_apply_without_a_batch_and_over_several_batch_axes() -> None:
    layer, (x, _, lengths) = build(GRU), draw_call(GRU)
    run, params = jax.jit(layer.native.apply), layer.native.params
    whole = layer(x, lengths=lengths)
    alone = run(params, x[2], None, lengths[2])
    assert_close(alone, mr.Output(whole.sequence[2], mr.State(whole.state.h[:, 2])))
    nested = run(params, np.stack([x, x]), None, np.stack([lengths, lengths]))
    assert_close(nested.sequence[1], whole.sequence)
    assert_close(nested.state.h[:, 1], whole.state.h)


def test_vmap_over_rows_is_the_batch() -> None:
    layer, (x, state, lengths) = build(LSTM), draw_call(LSTM)
    columns = mr.State(1, 1)  # axis 1 of a state is the batch
    rows = jax.vmap(layer.native.apply, in_axes=(None, 0, columns, 0), out_axes=mr.Output(0, columns))
    assert_close(jax.jit(rows)(layer.native.params, x, state, lengths), layer(x, state, lengths=lengths))


def test_vmap_over_parameters_is_an_ensemble() -> None:
    layers = [mr.build(GRU, "jax", seed=seed) for seed in (1, 2)]
    params = jax.tree.map(lambda *parts: jnp.stack(parts), *(layer.native.params for layer in layers))
    x, _, _ = draw_call(GRU)
    together = jax.jit(jax.vmap(layers[0].native.apply, in_axes=(0, None)))(params, x)
    for k, layer in enumerate(layers):
        assert_close(together.sequence[k], layer(x).sequence)


def test_grad_is_the_reference_s_gradient() -> None:
    layer, (x, state, lengths) = build(LSTM), draw_call(LSTM)
    cotangent = like(layer(x, state, lengths=lengths))

    def loss(params, x, state):
        return paired(cotangent, layer.native.apply(params, x, state, lengths))

    found = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(layer.native.params, x, state)
    expected = reference(LSTM).vjp(wide(x), wide(state), lengths=lengths, cotangent=wide(cotangent))
    assert_close(found, (dict(expected.weights), expected.x, expected.state))


def test_gradient_of_each_row_under_vmap() -> None:
    native, (x, _, lengths) = build(GRU).native, draw_call(GRU)

    def loss(params, x, lengths):
        return jnp.sum(native.apply(params, x, None, lengths).sequence ** 2)

    each = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0, 0)))(native.params, x, lengths)
    whole = jax.jit(jax.grad(loss))(native.params, x, lengths)
    assert_close(jax.tree.map(lambda g: g.sum(0), each), whole)
    empty = int(np.flatnonzero(lengths == 0)[0])
    assert not any(g[empty].any() for g in jax.tree.leaves(each))


def test_jacobians_backward_and_forward_in_mode() -> None:
    spec = mr.RecurrentSpec("gru", 2, 3)
    native = build(spec).native
    x = np.random.default_rng(0).standard_normal((4, 2)).astype("float32")

    def last(x):
        return native.apply(native.params, x).sequence[-1]

    backward = jax.jit(jax.jacrev(last))(x)
    assert_close(jax.jit(jax.jacfwd(last))(x), backward)
    rows = reference(spec)
    for unit in range(3):
        sequence = np.zeros((4, 3))
        sequence[-1, unit] = 1
        cotangent = mr.Output(sequence, mr.State(np.zeros((1, 3))))
        assert_close(backward[unit], rows.vjp(wide(x), cotangent=cotangent).x)


def test_a_user_s_own_scan_over_chunks_is_the_whole() -> None:
    spec = replace(GRU, bidirectional=False)
    layer = build(spec)
    x = np.random.default_rng(0).standard_normal((3, 6, 5)).astype("float32")

    def chunk(state, x):
        output = layer.native.apply(layer.native.params, x, state)
        return output.state, output.sequence

    start = mr.State(np.zeros((1, 3, 11), "float32"))
    end, parts = jax.lax.scan(chunk, start, np.moveaxis(x.reshape(3, 2, 3, 5), 1, 0))
    whole = layer(x)
    assert_close(np.concatenate(list(parts), axis=1), whole.sequence)
    assert_close(end, whole.state)


# --- Padding and emptiness, in a direct call --------------------------------------------------------------------------


def test_nan_in_padding_reaches_neither_outputs_nor_gradients() -> None:
    layer, (x, state, lengths) = build(LSTM), draw_call(LSTM)
    native = layer.native
    dirty = np.where(np.arange(x.shape[1])[:, None] < lengths[:, None, None], x, np.float32(np.nan))
    cotangent = like(layer(x, state, lengths=lengths))

    @jax.jit
    def call(params, x, state):
        output, pull_back = jax.vjp(lambda *primals: native.apply(*primals, lengths), params, x, state)
        return output, pull_back(cotangent)

    clean, found = call(native.params, x, state), call(native.params, dirty, state)
    assert np.isnan(dirty).any()
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, found, clean)))
    output, (_, x_gradient, _) = found
    padding = np.isnan(dirty[..., 0])
    assert not np.asarray(output.sequence)[padding].any()
    assert not np.asarray(x_gradient)[padding].any()


@pytest.mark.parametrize(("batch", "time"), [((3,), 0), ((0,), 4), ((), 0)])
def test_empty_axes(batch: tuple[int, ...], time: int) -> None:
    native = build(LSTM).native
    state = mr.State(*(np.random.default_rng(k).standard_normal((2, *batch, 11)).astype("float32") for k in (0, 1)))
    x = np.zeros((*batch, time, 5), "float32")
    for lengths in (None, np.zeros(batch, int)):
        output = jax.jit(native.apply)(native.params, x, state, lengths)
        assert output.sequence.shape == (*batch, time, 22)
        assert_close(output.state, state)


def test_rows_of_length_zero_keep_their_state() -> None:
    native, (x, state, _) = build(LSTM).native, draw_call(LSTM)
    output = jax.jit(native.apply)(native.params, x, state, np.zeros(5, int))
    assert not output.sequence.any()
    assert_close(output.state, state)


# --- Training --------------------------------------------------------------------------------------------------------


def test_a_step_of_gradient_descent_is_seen_by_the_layer() -> None:
    layer, (x, state, lengths) = build(LSTM), draw_call(LSTM)
    native, before = layer.native, layer.weights()
    cotangent = like(layer(x, state, lengths=lengths))

    @jax.jit
    def step(params):
        gradients = jax.grad(lambda params: paired(cotangent, native.apply(params, x, state, lengths)))(params)
        return jax.tree.map(lambda p, g: p - 0.25 * g, params, gradients)

    native.params = step(native.params)
    gradients = reference(LSTM).vjp(wide(x), wide(state), lengths=lengths, cotangent=wide(cotangent))
    expected = {name: array - 0.25 * gradients.weights[name] for name, array in wide(dict(before.arrays)).items()}
    assert_close(dict(layer.weights().arrays), expected)
    trained = mr.build(layer.weights().astype("float64"), "numpy")
    assert_close(layer(x, state, lengths=lengths), trained(wide(x), wide(state), lengths=lengths))


def test_the_parameters_are_copies() -> None:
    weights = mr.initialise(GRU, seed=3)
    kept = {name: array.copy() for name, array in weights.arrays.items()}
    layer = BACKEND.build(weights)
    consume = jax.jit(lambda params: jax.tree.map(lambda p: p * 2, params), donate_argnums=0)
    layer.native.params = consume(layer.native.params)
    assert all(np.array_equal(array, kept[name]) for name, array in weights.arrays.items())
    assert np.array_equal(layer.weights().arrays["layers.0.forward.bias_hh"], 2 * kept["layers.0.forward.bias_hh"])


def test_read_adopts_what_a_user_made() -> None:
    weights = mr.initialise(GRU, seed=3)
    assert mr.read(Recurrence(GRU, {name: jnp.asarray(array) for name, array in weights.arrays.items()})) == weights
    layer = build(FORMS[0])
    assert mr.read(layer.native) == layer.weights() == mr.initialise(FORMS[0], seed=3)


def test_read_refuses_what_is_no_recurrence() -> None:
    params = dict(build(GRU).native.params)
    with pytest.raises(mr.Unrepresentable, match=r"reads a multirnn_jax.Recurrence\(spec, params\), not a dict"):
        BACKEND.read(params)
    name = "layers.0.forward.weight_hh"
    with pytest.raises(mr.InvalidWeights, match=rf"no array for {name}"):
        BACKEND.read(Recurrence(GRU, {other: array for other, array in params.items() if other != name}))
    with pytest.raises(mr.InvalidWeights, match=rf"{name} must have the shape \(3, 11, 11\), not \(3, 11\)"):
        BACKEND.read(Recurrence(GRU, params | {name: params[name][0, :3]}))
    with pytest.raises(mr.InvalidWeights, match=rf"{name} must be float32, as the spec says, not bfloat16"):
        BACKEND.read(Recurrence(GRU, params | {name: params[name].astype(jnp.bfloat16)}))


# --- Compilation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_shape_is_compiled_once(dtype: str, caplog: pytest.LogCaptureFixture) -> None:
    spec = mr.RecurrentSpec("simple_rnn", 5, 13, dtype=dtype)
    x, state, _ = draw_call(spec)
    output = mr.Output(np.ones((5, 7, 13), dtype), state)

    def compiled(layer, x: np.ndarray, lengths: list[int]) -> bool:
        """Whether a call and its gradient make JAX trace or compile."""
        caplog.clear()
        with jax.log_compiles(), caplog.at_level(logging.WARNING):
            layer(x, state, lengths=lengths)
            layer.vjp(x, state, lengths=lengths, cotangent=mr.Output(output.sequence[:, : x.shape[1]], state))
        return bool(caplog.records)

    layer = build(spec)
    assert compiled(layer, x, [7, 0, 3, 5, 1])
    assert not compiled(layer, -x, [1, 2, 3, 4, 5])
    other = mr.build(spec, "jax", seed=4)
    assert not compiled(other, x, [7, 0, 3, 5, 1])
    layer.native.params = other.native.params
    assert not compiled(layer, x, [7, 0, 3, 5, 1])
    assert compiled(layer, x[:, :4], [1, 2, 3, 4, 4])


@pytest.mark.parametrize("implementation", ["native", "fast"])
def test_a_copy_of_a_layer_runs_what_is_compiled(implementation: str) -> None:
    layer = mr.build(LSTM, "jax", seed=3, implementation=implementation)
    x, _, _ = draw_call(LSTM)
    expected = layer(x)
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert_close(copied(x), expected)
        assert copied.compiled(len(x)) is layer.compiled(len(x))


# --- Dtypes ----------------------------------------------------------------------------------------------------------


def test_float64_needs_no_global_flag() -> None:
    spec = replace(GRU, dtype="float64")
    assert not jax.config.jax_enable_x64
    layer, (x, state, lengths) = build(spec), draw_call(spec)
    output = layer(x, state, lengths=lengths)
    gradients = layer.vjp(x, state, lengths=lengths, cotangent=like(output))
    for array in jax.tree.leaves((output, gradients, dict(layer.weights().arrays))):
        assert array.dtype == "float64"
    assert_close(output, reference(spec)(x, state, lengths=lengths))
    assert not jax.config.jax_enable_x64
    assert jnp.asarray(x).dtype == "float32"


def test_apply_in_float64_asks_for_the_64_bit_mode() -> None:
    spec = replace(GRU, dtype="float64")
    native, (x, _, _) = build(spec).native, draw_call(spec)
    run = jax.jit(native.apply)
    for call in (native.apply, run):
        with pytest.raises(mr.InvalidCall, match=r"64-bit mode.*inside `with jax.enable_x64\(True\):`"):
            call(native.params, x)
    with jax.enable_x64(True):
        assert_close(run(native.params, x).sequence, reference(spec)(x).sequence)


def test_float32_stays_float32_in_the_64_bit_mode() -> None:
    spec = replace(GRU, recurrent_activation=mr.Activation("hard_sigmoid", alpha=0.2, beta=0.5))
    x, state, lengths = draw_call(spec)
    with jax.enable_x64(True):
        layer = build(spec)
        output = layer(x, state, lengths=lengths)
        gradients = layer.vjp(x, state, lengths=lengths, cotangent=like(output))
    assert {array.dtype for array in jax.tree.leaves((output, gradients))} == {np.dtype("float32")}


# --- Refused calls ---------------------------------------------------------------------------------------------------


def test_apply_says_what_is_wrong_with_a_call() -> None:
    native, (x, state, lengths) = build(LSTM).native, draw_call(LSTM)
    name = "layers.0.forward.bias_ih"
    params = dict(native.params)
    for sentence, arguments in {
        r"params must have the names layers.0.forward.weight_ih, .*, not weight$": ({"weight": x}, x),
        rf"params\['{name}'\] must have the shape \(4, 11\), not \(44,\)": (params | {name: params[name].ravel()}, x),
        r"x must have the shape \(batch, time, 5\), or \(time, 5\) unbatched, not \(5, 7, 4\)": (params, x[..., :4]),
        r"x must be an array of float32, not float64": (params, x.astype("float64")),
        r"x must be an array of float32, not a list": (params, x.tolist()),
        r"lengths must have the shape \(5,\), one integer a row of x, not \(4,\)": (params, x, state, lengths[:4]),
        r"lengths must be integers, not float32": (params, x, state, lengths.astype("float32")),
        r"state of a lstm must be multirnn.State\(h, c\)": (params, x, mr.State(state.h)),
        r"state.c must have the shape \(2, 5, 11\), not \(5, 11\)": (params, x, mr.State(state.h, state.c[0])),
    }.items():
        with pytest.raises(mr.InvalidCall, match=sentence):
            native.apply(*arguments)


def test_parameters_that_were_spoilt_are_named() -> None:
    layer, (x, _, _) = build(GRU), draw_call(GRU)
    layer.native.params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), layer.native.params)
    with pytest.raises(
        mr.InvalidCall, match=r"params\['layers.0.forward.weight_ih'\] must be an array of float32, not bfloat16"
    ):
        layer(x)


# --- The module ------------------------------------------------------------------------------------------------------


def test_importing_is_silent_and_imports_no_other_framework() -> None:
    code = (
        "import sys, multirnn_jax\n"
        "print(*sorted({'torch', 'tensorflow', 'keras', 'flax'} & set(sys.modules)))\n"
        "import jax._src.xla_bridge as bridge\n"
        "assert not bridge.backends_are_initialized()\n"
    )
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "\n", "")


def test_versions_name_jax_and_its_compiler() -> None:
    assert BACKEND.versions()["jax"] == jax.__version__
    assert set(BACKEND.versions()) == {"jax", "jaxlib"}


def test_nothing_is_refused() -> None:
    assert [BACKEND.refuses(spec) for spec in FORMS] == [None] * len(FORMS)
    assert apply.__module__ == "multirnn_jax.loop"
