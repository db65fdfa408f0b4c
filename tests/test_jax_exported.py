"""JAX's fast functions through `jax.export`: any batch and length, gradients, and a process that only loads the file."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from jax_trees import assert_close, like, paired

import multirnn as mr
from multirnn.kernel import CompiledRecurrence
from multirnn.kernel.library import instruction_sets

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402
import multirnn_jax  # noqa: E402
from multirnn_jax import kernel  # noqa: E402
from multirnn_jax.weights import width  # noqa: E402

LSTM = mr.RecurrentSpec("lstm", 3, 5, bidirectional=True)
SPECS = [
    LSTM,
    mr.RecurrentSpec("simple_rnn", 3, 5, num_layers=2),
    mr.RecurrentSpec("gru", 3, 5, dtype="float64"),
    mr.RecurrentSpec("gru", 3, 5, reset_after=False, bias="none"),
]
SIZES = [(1, 2), (7, 4)]


def drawn(spec: mr.RecurrentSpec, batch: int, time: int):
    rng = np.random.default_rng(batch)
    state = [
        rng.standard_normal((len(list(spec.passes)), batch, spec.hidden_size)).astype(spec.dtype)
        for _ in spec.form.states
    ]
    x = rng.standard_normal((batch, time, spec.input_size)).astype(spec.dtype)
    return x, mr.State(*state), rng.integers(0, time + 1, batch).astype("int32")


def pulled(function, cotangent, primals, *more):
    """Gradients of what a cotangent pairs with."""
    return jax.grad(lambda *primals: paired(cotangent, function(*primals, *more)), argnums=(0, 1, 2))(*primals)


@pytest.mark.parametrize("spec", SPECS[:3], ids=["lstm", "rnn", "gru-double"])
def test_any_batch_and_length_and_their_gradients(spec: mr.RecurrentSpec) -> None:
    layer = mr.build(spec, "jax", seed=3, implementation="fast")
    with width(spec):
        exported = multirnn_jax.export(layer.native, state=True, lengths=True)
        assert "multirnn_forward" in str(exported.mlir_module())
        loaded = multirnn_jax.load_exported(exported.serialize(vjp_order=1))
    plain = mr.build(spec, "jax", seed=3).native
    for size in SIZES:
        x, state, lengths = drawn(spec, *size)
        with width(spec):
            params = layer.native.params
            expected = plain.apply(params, x, state, lengths)
            assert_close(loaded.call(params, x, state, lengths), expected)
            cotangent = like(expected)
            assert_close(
                pulled(jax.jit(loaded.call), cotangent, (params, x, state), lengths),
                pulled(plain.apply, cotangent, (params, x, state), lengths),
            )


def test_what_the_exported_function_takes() -> None:
    native = mr.build(LSTM, "jax", seed=3, implementation="fast").native
    x, state, lengths = drawn(LSTM, 4, 6)
    for given in ({}, {"state": state}, {"lengths": lengths}, {"state": state, "lengths": lengths}):
        exported = multirnn_jax.export(native, **dict.fromkeys(given, True))
        arguments = [native.params, x, given.get("state"), given.get("lengths")]
        while arguments[-1] is None:
            arguments.pop()
        assert_close(exported.call(*arguments), native.apply(*arguments))


def test_a_model_around_the_layer() -> None:
    native = mr.build(LSTM, "jax", seed=3, implementation="fast").native
    rng = np.random.default_rng(0)
    params = {"rnn": native.params, "head": rng.standard_normal((10, 2)).astype("float32")}

    @jax.jit
    def model(params, x):
        return native.apply(params["rnn"], jnp.tanh(x)).sequence @ params["head"]

    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    frames = jax.ShapeDtypeStruct(jax.export.symbolic_shape("4, time, 3"), "float32")
    exported = multirnn_jax.export_function(model, shapes, frames)
    for time in (2, 5):
        x = rng.standard_normal((4, time, 3)).astype("float32")
        assert_close(exported.call(params, x), model(params, x))


ELSEWHERE = """
import sys
import numpy as np
from multirnn_jax import load_exported

exported = load_exported(open(sys.argv[1], "rb").read())
weights = dict(np.load(sys.argv[2]))
for batch, time in ((1, 3), (6, 2), (3, 50)):
    x = np.linspace(-1, 1, batch * time * 3, dtype="float32").reshape(batch, time, 3)
    output = exported.call(weights, x)
    np.savez(f"{sys.argv[3]}/{batch}x{time}.npz", x=x, sequence=output.sequence, h=output.state.h, c=output.state.c)
"""


def test_in_a_process_that_loads_the_file_alone(tmp_path: Path) -> None:
    layer = mr.build(LSTM, "jax", seed=3, implementation="fast")
    program, weights = tmp_path / "program", tmp_path / "weights.npz"
    program.write_bytes(multirnn_jax.export(layer.native).serialize())
    np.savez(weights, **layer.native.params)
    subprocess.run([sys.executable, "-c", ELSEWHERE, program, weights, tmp_path], check=True)
    results = sorted(tmp_path.glob("*x*.npz"))
    assert len(results) == 3
    for file in results:
        found = np.load(file)
        expected = layer(found["x"])
        assert_close((found["sequence"], found["h"], found["c"]), (expected.sequence, *expected.state))


# --- Refused ---------------------------------------------------------------------------------------------------------


def test_what_is_no_recurrence_and_what_are_no_bytes() -> None:
    with pytest.raises(mr.InvalidCall, match=r"such as layer\.native, not a function"):
        multirnn_jax.export(lambda x: x)
    with pytest.raises(mr.InvalidCall, match="takes the bytes of Exported"):
        multirnn_jax.load_exported("program")


def test_a_program_of_another_version_and_a_process_without_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    native = mr.build(LSTM, "jax", seed=3, implementation="fast").native
    program = bytes(multirnn_jax.export(native).serialize())
    other = re.sub(rb"(multirnn_forward_float32_v)1", rb"\g<1>7", program)
    with pytest.raises(
        mr.InvalidCall, match=r"calls multirnn_forward_float32_v7 of another version .* export it again"
    ):
        multirnn_jax.load_exported(other)
    monkeypatch.setattr(kernel, "library_refuses", lambda: "it was not built")
    with pytest.raises(mr.MissingFramework, match="calls the compiled recurrence: it was not built"):
        multirnn_jax.load_exported(program)
    scan = multirnn_jax.export(mr.build(LSTM, "jax").native).serialize()
    assert multirnn_jax.load_exported(scan).platforms == ("cpu",)


# --- Reserve space ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("spec", [replace(spec, num_layers=layers) for spec in SPECS for layers in (1, 3)], ids=repr)
def test_the_bound_of_the_reserve_space_holds(spec: mr.RecurrentSpec, dtype: str) -> None:
    """With the vectors of every instruction set of this machine."""
    for hidden in (1, 7, 8, 9, 15, 16, 17, 64, 100):
        for instructions in instruction_sets():
            compiled = CompiledRecurrence(replace(spec, hidden_size=hidden, dtype=dtype), instructions)
            step, more = compiled.stash_bound()
            for batch, time in [(0, 0), (1, 0), (3, 0), (1, 1), (1, 64), (64, 1), (3, 37), (1000, 1), (17, 1000)]:
                bound, size = step * (batch * time + batch + more), compiled.stash_size(batch, time)
                assert size <= bound
            if hidden == 100 and spec.cell == "lstm":
                assert bound <= 1.3 * size
