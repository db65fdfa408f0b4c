"""The ONNX Runtime backend: its graph, what it refuses, how it steps around ONNX Runtime, and which models it reads."""

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import multirnn_onnxruntime
import numpy as np
import onnx
import onnxruntime
import pytest
from multirnn_bench.verify import answer, error, expected
from multirnn_onnxruntime import BACKEND, OnnxStack
from multirnn_onnxruntime.layer import FEW
from onnx import numpy_helper
from onnx_models import BOTH, FORMS, spec_of

import multirnn as mr
from multirnn.comparison import widened
from multirnn.numerics import difference, draw_call, draw_state, tolerance
from multirnn.protocol import Backend, Work
from multirnn.support import ACTIVATIONS_ASKED
from multirnn.testing import assert_layers_agree, mutation_score


def assert_agrees(layer: mr.Layer, x: Any, state: Any = None, lengths: Any = None) -> None:
    """Outputs and states are those of the reference."""
    reference = mr.build(layer.weights().astype("float64"), "numpy")
    found, wanted = layer(x, state, lengths=lengths), reference(x.astype("float64"), widened(state), lengths=lengths)
    for actual, array in ((found.sequence, wanted.sequence), *zip(found.state, wanted.state, strict=True)):
        if array is not None:
            assert difference(actual, array).normwise <= tolerance(layer.spec.dtype)


@pytest.mark.parametrize(("cell", "reset_after"), FORMS)
def test_every_activation_in_every_place(cell: str, reset_after: bool) -> None:
    """The suite asks for activations in float64, which ONNX Runtime has not; so here are all of them in float32.

    The weights are halved: gates that may be larger than one would let the states grow.
    """
    gates = ["sigmoid"] if cell == "simple_rnn" else ACTIVATIONS_ASKED
    for activation, recurrent in product(ACTIVATIONS_ASKED, gates):
        spec = spec_of(cell, reset_after, activation=activation, recurrent_activation=recurrent, **BOTH)
        drawn = mr.initialise(spec, seed=3)
        weights = mr.Weights(spec, {name: array * np.float32(0.5) for name, array in drawn.arrays.items()})
        layer = BACKEND.build(weights)
        assert_agrees(layer, *draw_call(spec, 4))
        assert BACKEND.read(layer.native) == weights


@pytest.mark.parametrize(("cell", "reset_after"), FORMS)
def test_batches_that_it_splits_among_threads(cell: str, reset_after: bool) -> None:
    """Its LSTM runs more than four rows in parallel, its other operators a large product."""
    layer = multirnn_onnxruntime.build(mr.initialise(spec_of(cell, reset_after, bidirectional=True), seed=1), threads=2)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((37, 23, 5)).astype("float32")
    assert_agrees(layer, x)
    assert_agrees(layer, x, lengths=rng.integers(0, 24, 37))


# --- What it refuses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (spec_of(dtype="float64"), "in float32 alone, not in float64; take dtype='float32', or another backend"),
        (mr.RecurrentSpec("lstm", 8192, 8192), "at most 2 GB, and 536903680 parameters are more; take fewer"),
    ],
)
def test_refuses(spec: mr.RecurrentSpec, reason: str) -> None:
    assert reason in (BACKEND.refuses(spec) or "")


def test_the_double_kernels_are_still_missing() -> None:
    """The reason of the refusal; where this fails, ONNX Runtime has learned it."""
    weights = mr.initialise(spec_of("lstm"))
    model = BACKEND.build(weights).native.model
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    for tensor in (
        *model.graph.initializer,
        *(node.attribute[0].t for node in model.graph.node if node.op_type == "Constant"),
    ):
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float64"), tensor.name))
    x, state = np.ones((2, 3, 5)), np.zeros((1, 3, 11))
    with pytest.raises(Exception, match="does not support double"):
        OnnxStack(model).session.run(None, {"x": x, "lengths": np.full(3, 2, "int32"), "h_0": state, "c_0": state})


def test_another_device() -> None:
    with pytest.raises(mr.InvalidCall, match=r"on the device 'cpu' alone, not on 'cuda'"):
        mr.build(spec_of(), BACKEND, device="cuda")
    assert BACKEND.devices() == ("cpu",)


def test_gradients_are_refused_of_every_call() -> None:
    layer = mr.build(spec_of(), BACKEND)
    x = draw_call(layer.spec)[0]
    for rows in (x, x[:0]):
        with pytest.raises(
            mr.InvalidCall, match="is for inference only and has no gradients; build the layer with another"
        ):
            layer.vjp(rows, cotangent=layer(rows))
    with pytest.raises(mr.InvalidCall, match="x must have the shape"):
        layer.vjp(x[..., :2], cotangent=layer(x))


def test_inference_only_is_said() -> None:
    comparison = mr.compare(spec_of(), backends=["numpy", BACKEND])
    assert comparison.ok
    assert "inference only" in str(comparison).splitlines()[4]
    assert comparison.rows[1].gradient is None
    (trained,) = mr.train_parity(spec_of(), backends=[BACKEND]).rows
    assert (trained.verdict, trained.reason) == ("refuses", "it is for inference only: it has no gradients to train by")
    layers = mr.build(spec_of(), BACKEND), mr.build(spec_of(), "numpy")
    assert "gradients are not compared: A has none" in str(assert_layers_agree(*layers))
    assert "are the same function" in str(mr.diagnose(*layers))


def test_mistakes_in_gradients_are_not_tried() -> None:
    def check(backend: Backend) -> None:
        assert mr.compare(spec_of(), backends=[backend]).ok
        x = np.random.default_rng(0).standard_normal((3, 5, 5)).astype("float32")
        assert mr.compare(spec_of(), x, backends=[backend]).ok  # without an initial state

    score = mutation_score(check, backend=BACKEND)
    assert score.fraction == 1
    assert "gradient of the input missing" in score.not_exercised


# --- What ONNX Runtime does otherwise --------------------------------------------------------------------------------

EMPTY = """
import sys
import numpy as np
import multirnn as mr
from multirnn_onnxruntime import BACKEND

for cell in ("simple_rnn", "lstm", "gru"):
    spec = mr.RecurrentSpec(cell, 5, 11, bidirectional=True)
    layer = BACKEND.build(mr.initialise(spec))
    for batch, time in ((0, 7), (3, 0), (0, 0)):
        x = np.ones((batch, time, 5), "float32")
        if "through" in sys.argv:
            state = {f"{name}_0": np.zeros((2, batch, 11), "float32") for name in spec.form.states}
            lengths = np.full(batch, time, "int32")
            layer.native.session.run(None, {"x": x.swapaxes(0, 1), "lengths": lengths, **state})
        else:
            assert layer(x).sequence.shape == (batch, time, 22)
print("alive")
"""


def test_empty_batches_and_times_never_reach_it() -> None:
    """In a process of its own, for ONNX Runtime ends the process; that it still does is held too."""
    command = [sys.executable, "-c", EMPTY]
    guarded = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (guarded.returncode, guarded.stdout) == (0, "alive\n"), guarded.stderr
    assert subprocess.run([*command, "through"], capture_output=True, check=False).returncode != 0


@pytest.mark.parametrize("cell", ["simple_rnn", "lstm", "gru"])
def test_rows_of_length_0_keep_their_state(cell: str) -> None:
    layer = mr.build(spec_of(cell, **BOTH), BACKEND, seed=2)
    x, state, _ = draw_call(layer.spec, 1)
    lengths = [0, 7, 3, 0, 1]
    output = layer(x, state, lengths=lengths)
    for row in (0, 3):
        assert not output.sequence[row].any()
        for end, start in zip(output.state, state, strict=True):
            assert end is None or np.array_equal(end[:, row], start[:, row])
    assert_agrees(layer, x, state, lengths)


# --- The model and its session ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", ["none", "single", "double"])
@pytest.mark.parametrize(("cell", "reset_after"), FORMS)
def test_initialisers_are_the_parameters(cell: str, reset_after: bool, bias: str) -> None:
    weights = mr.initialise(spec_of(cell, reset_after, bias=bias, **BOTH), seed=5)
    native = BACKEND.build(weights).native
    onnx.checker.check_model(native.model, full_check=True)
    sizes = [numpy_helper.to_array(tensor).size for tensor in native.model.graph.initializer]
    assert sum(sizes) == weights.spec.parameter_count
    assert BACKEND.read(native) == weights


def test_the_model_is_a_file_that_runs_elsewhere(tmp_path: Path) -> None:
    layer = mr.build(spec_of("lstm", **BOTH), BACKEND)
    onnx.save(layer.native.model, tmp_path / "lstm.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "lstm.onnx")
    x, state, lengths = draw_call(layer.spec)
    lengths = np.maximum(lengths, 1).astype("int32")
    y, *_ = session.run(None, {"x": x.swapaxes(0, 1), "lengths": lengths, "h_0": state.h, "c_0": state.c})
    assert np.array_equal(y.swapaxes(0, 1), layer(x, state, lengths=lengths).sequence)
    assert mr.read(onnx.load(tmp_path / "lstm.onnx")) == layer.weights()


def test_weights_are_constants_and_another_stack_has_others() -> None:
    layer = mr.build(spec_of(), BACKEND, seed=1)
    x = draw_call(layer.spec)[0]
    before = layer(x).sequence
    model = layer.native.model
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(tensor), tensor.name))
    assert np.array_equal(layer(x).sequence, before)
    assert layer.weights() == mr.initialise(layer.spec, 1)
    doubled = BACKEND.read(OnnxStack(model))
    assert np.array_equal(
        doubled.arrays["layers.0.forward.weight_hh"], 2 * layer.weights().arrays["layers.0.forward.weight_hh"]
    )


def test_a_stack_is_pickled_and_copied() -> None:
    layer = mr.build(spec_of(), BACKEND)
    for stack in (pickle.loads(pickle.dumps(layer.native)), copy.deepcopy(layer.native)):
        assert BACKEND.read(stack) == layer.weights()


def test_the_build_of_the_package() -> None:
    weights = mr.initialise(spec_of())
    layer = multirnn_onnxruntime.build(weights, device="cpu", threads=1)
    assert layer.weights() == weights
    assert BACKEND.versions() == {"onnxruntime": onnxruntime.__version__, "onnx": onnx.__version__}
    with pytest.raises(mr.Unsupported, match="float32 alone"):
        multirnn_onnxruntime.build(weights.astype("float64"))


def test_time_first_arrays_are_not_copied_in_vain() -> None:
    layer = mr.build(spec_of(), BACKEND)
    x, state, lengths = draw_call(layer.spec)
    memory = np.ascontiguousarray(x.swapaxes(0, 1))
    found = layer(memory.swapaxes(0, 1), state, lengths=lengths)
    assert np.array_equal(found.sequence, layer(x, state, lengths=lengths).sequence)


# --- One step --------------------------------------------------------------------------------------------------------


def one_step(cell: str, batch: int, seed: int = 0) -> tuple[np.ndarray, mr.State]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((batch, 1, 5)).astype("float32")
    return x, draw_state(spec_of(cell, **BOTH), batch, rng)


def parts(output: mr.Output) -> list[np.ndarray]:
    return [output.sequence, *(part for part in output.state if part is not None)]


@pytest.mark.parametrize("cell", ["simple_rnn", "lstm", "gru"])
@pytest.mark.parametrize("batch", [1, 3, FEW, FEW + 1])
def test_a_step_gives_what_the_session_gives(cell: str, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = mr.build(spec_of(cell, **BOTH), BACKEND, seed=3)
    x, state = one_step(cell, batch)
    lengths = np.arange(batch) % 2
    calls: list[Callable[[], mr.Output]] = [
        lambda: layer(x),
        lambda: layer(x, state),
        lambda: layer(x, state, lengths=lengths),
    ]
    calls.append(calls[0])  # nothing is left over from the calls before
    found = [parts(call()) for call in calls]
    monkeypatch.setattr("multirnn_onnxruntime.layer.FEW", 0)
    for arrays, call in zip(found, calls, strict=True):
        assert all(map(np.array_equal, arrays, parts(call())))


def test_steps_of_several_threads_do_not_meet() -> None:
    layer = mr.build(spec_of("lstm", **BOTH), BACKEND, seed=3)
    given = [one_step("lstm", 3, seed) for seed in range(4)]
    wanted = [parts(layer(*one)) for one in given]

    def run(number: int) -> bool:
        return all(all(map(np.array_equal, parts(layer(*given[number])), wanted[number])) for _ in range(50))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(4)))


def test_a_layer_that_has_run_a_step_is_copied() -> None:
    layer = mr.build(spec_of("gru", **BOTH), BACKEND, seed=3)
    x, state = one_step("gru", 3)
    wanted, from_zero = parts(layer(x, state)), parts(layer(x))
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert all(map(np.array_equal, parts(other(x, state)), wanted))
        assert all(map(np.array_equal, parts(other(x)), from_zero))


# --- What is timed ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["simple_rnn", "lstm", "gru"])
def test_what_is_timed_is_right(cell: str) -> None:
    weights = mr.initialise(spec_of(cell, **BOTH), seed=3)
    x, _, lengths = draw_call(weights.spec, 2)
    for given in (None, lengths):
        work = Work(weights, x, given, "inference")
        prepared = BACKEND.prepare(BACKEND.build(weights), work, 1)
        found = prepared.result()
        prepared.call()
        assert error(work, answer(work, found), expected(work))[0] * np.finfo("float32").eps <= tolerance("float32")
        assert prepared.boundary is not None
        assert np.array_equal(prepared.boundary().sequence, found.sequence)


@pytest.mark.parametrize("cell", ["simple_rnn", "lstm", "gru"])
def test_what_is_streamed_is_right(cell: str) -> None:
    """The states that the bindings hand to each other are those of one long run."""
    layer = BACKEND.build(mr.initialise(spec_of(cell, num_layers=2), seed=3))
    step = np.ones((3, 1, 5), "float32")
    work = Work(layer.weights(), step, None, "streaming")
    prepared = BACKEND.prepare(layer, work, 1)
    found = prepared.result()
    assert error(work, answer(work, found), expected(work))[0] * np.finfo("float32").eps <= tolerance("float32")
    for _ in range(3):
        prepared.call()
    whole = layer(np.ones((3, 4, 5), "float32"))
    assert prepared.boundary is not None
    for _ in range(4):
        last = prepared.boundary()
    assert np.array_equal(last.sequence[:, 0], whole.sequence[:, -1])
