"""NumPy's fast layers: the same function through the compiled recurrence and in NumPy, live or frozen weights, plans, threads."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from multirnn_numpy import BACKEND, FastNumpyLayer, Stack
from multirnn_numpy.faster import halvable
from multirnn_numpy.loop import SimpleRnn

import multirnn as mr
from multirnn import kernel
from multirnn.cells import CELLS
from multirnn.comparison import widened
from multirnn.numerics import draw_call, draw_state
from multirnn.protocol import MODES, SGD_RATE, Backend, Work
from multirnn.testing import cases, covering_specs

needs_kernel = pytest.mark.skipif(kernel.refuses() is not None, reason=str(kernel.refuses()))


class OneWay:
    """The fast layers by one way, whatever is installed."""

    differentiable = True

    def __init__(self, compiled: bool, frozen: bool = False) -> None:
        self.compiled, self.frozen = compiled, frozen
        self.name = f"numpy {'frozen' if frozen else 'fast'}, {'compiled' if compiled else 'in NumPy'}"

    def refuses(self, spec: mr.RecurrentSpec) -> str | None:
        return BACKEND.refuses(spec)

    def build(self, weights: mr.Weights, *, device: str | None = None) -> FastNumpyLayer:
        return FastNumpyLayer(weights, compiled=self.compiled, frozen=self.frozen)

    def read(self, native: Any) -> mr.Weights:
        return BACKEND.read(native)

    def versions(self) -> Mapping[str, str]:
        return BACKEND.versions()


WAYS = [pytest.param(OneWay(True), id="compiled", marks=needs_kernel), pytest.param(OneWay(False), id="in_numpy")]
every_way = pytest.mark.parametrize("way", WAYS)
FROZEN = [
    pytest.param(OneWay(True, frozen=True), id="compiled, frozen", marks=needs_kernel),
    pytest.param(OneWay(False, frozen=True), id="in_numpy, frozen"),
]
every_frozen_way = pytest.mark.parametrize("way", FROZEN)


@pytest.mark.parametrize("way", WAYS + FROZEN)
@pytest.mark.parametrize("check", [pytest.param(check, id=name) for name, check in cases()])
def test_the_conformance_suite(way: OneWay, check: Callable[[Backend], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multirnn_numpy.fast.PREPARED", 0)  # its shapes are small
    check(way)


def largest(actual: Any, expected: Any) -> float:
    """The largest normwise difference of outputs or gradients."""
    if isinstance(expected, np.ndarray):
        return mr.difference(np.ascontiguousarray(actual), expected).normwise
    if isinstance(expected, Mapping):
        return max(largest(actual[name], array) for name, array in expected.items())
    return max(largest(a, b) for a, b in zip(actual, expected, strict=True) if b is not None)


# --- The layer -------------------------------------------------------------------------------------------------------


@every_way
@pytest.mark.parametrize("cell", CELLS)
def test_what_is_written_into_native_counts_from_the_next_call_on(way: OneWay, cell: str) -> None:
    spec = mr.RecurrentSpec(cell, 5, 11, num_layers=2, bidirectional=True, dtype="float64")
    layer = way.build(mr.initialise(spec, 1))
    assert isinstance(layer.native, Stack)
    assert layer.parameter_count == spec.parameter_count
    x, state, lengths = draw_call(spec)
    before = layer(x, state, lengths=lengths)
    for name, array in mr.initialise(spec, 2).arrays.items():
        layer.native.parameters[name][...] = array
    expected = mr.build(mr.initialise(spec, 2), "numpy")(x, state, lengths=lengths)
    assert largest(layer(x, state, lengths=lengths), expected) <= mr.tolerance("float64")
    assert largest(before, expected) > mr.tolerance("float64")
    assert layer.weights() == mr.initialise(spec, 2)


@every_way
def test_parameters_may_be_replaced_by_others_of_any_layout(way: OneWay) -> None:
    spec = mr.RecurrentSpec("lstm", 5, 11)
    layer, other = way.build(mr.initialise(spec, 1)), mr.initialise(spec, 2)
    x, state, lengths = draw_call(spec)
    layer(x, state, lengths=lengths)
    for name, array in other.arrays.items():
        layer.native.parameters[name] = np.repeat(array, 2, axis=-1)[..., ::2]
    expected = mr.build(other.astype("float64"), "numpy")(x.astype("float64"), widened(state), lengths=lengths)
    assert largest(layer(x, state, lengths=lengths), expected) <= mr.tolerance("float32")


@needs_kernel
def test_parameters_that_are_not_the_specs_reach_no_address() -> None:
    layer = FastNumpyLayer(mr.initialise(mr.RecurrentSpec("gru", 5, 11)), compiled=True)
    layer.native.parameters["layers.0.forward.weight_hh"] = np.zeros((3, 11, 7), "float32")
    with pytest.raises(mr.InvalidWeights, match="weight_hh"):
        layer(np.zeros((2, 3, 5), "float32"))
    layer.native.parameters["layers.0.forward.weight_hh"] = crooked((3, 11, 11))
    with pytest.raises(mr.InvalidWeights, match="not aligned"):
        layer(np.zeros((2, 3, 5), "float32"))


def crooked(shape: tuple[int, ...]) -> np.ndarray:
    """Zeros that begin, and whose rows begin, in the middle of an element."""
    rows = np.zeros((*shape[:-1], 4 * shape[-1] + 1), "uint8")
    kind = np.dtype({"names": ["row"], "formats": [("float32", shape[-1])], "offsets": [1], "itemsize": rows.shape[-1]})
    return rows.view(kind)["row"].reshape(shape)


@every_way
def test_memory_of_any_layout_is_read_right_and_results_are_the_callers_own(way: OneWay) -> None:
    spec = mr.RecurrentSpec("gru", 5, 11)
    layer = way.build(mr.initialise(spec))
    x, state, lengths = draw_call(spec)
    output = layer(x, state, lengths=lengths)
    cotangent = mr.Output(
        np.random.default_rng(3).standard_normal(output.sequence.shape).astype("float32"),
        draw_state(spec, len(x), np.random.default_rng(4)),
    )
    gradients = layer.vjp(x, state, lengths=lengths, cotangent=cotangent)
    copies = [array.copy() for array in (output.sequence, output.state.h, gradients.x)]
    frozen = x.copy()
    frozen.flags.writeable = False
    time_first = np.ascontiguousarray(x.swapaxes(0, 1)).swapaxes(0, 1)
    reversed_twice = np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1]
    between = crooked(x.shape)
    between[...] = x
    for same in (frozen, time_first, reversed_twice, between, np.repeat(x, 2, axis=-1)[..., ::2], np.asfortranarray(x)):
        again = layer(same, state, lengths=lengths)
        assert np.array_equal(again.sequence, copies[0])
        assert np.array_equal(layer.vjp(same, state, lengths=lengths, cotangent=cotangent).x, copies[2])
    slanted = mr.Output(np.asfortranarray(cotangent.sequence), cotangent.state)
    assert np.array_equal(layer.vjp(x, state, lengths=lengths, cotangent=slanted).x, copies[2])
    layer(x + 1)
    layer.vjp(x + 1, cotangent=cotangent)
    for array, copy in zip((output.sequence, output.state.h, gradients.x), copies, strict=True):
        assert np.array_equal(array, copy)


@every_way
def test_a_stream_is_the_sequence(way: OneWay) -> None:
    spec = mr.RecurrentSpec("lstm", 5, 11, num_layers=2)
    layer = way.build(mr.initialise(spec))
    x, _, _ = draw_call(spec)
    stream = layer.stream()
    parts = [stream(x[:, t : t + 1]).sequence for t in range(x.shape[1])]
    whole = mr.build(mr.initialise(spec).astype("float64"), "numpy")(x.astype("float64"))
    assert mr.difference(np.concatenate(parts, axis=1), whole.sequence).normwise <= mr.tolerance("float32")
    assert stream.state is not None
    assert mr.difference(stream.state.h, whole.state.h).normwise <= mr.tolerance("float32")


@needs_kernel
@pytest.mark.parametrize("shape", [(1, 40, 96, 700), (67, 13, 31, 37)])
def test_threads_do_not_change_what_is_computed(shape: tuple[int, int, int, int]) -> None:
    batch, time, features, hidden = shape
    weights = mr.initialise(mr.RecurrentSpec("gru", features, hidden))
    layer = FastNumpyLayer(weights, compiled=True)
    x = np.random.default_rng(0).standard_normal((batch, time, features)).astype("float32")
    expected = mr.build(weights.astype("float64"), "numpy")(x.astype("float64"))
    for layer.threads in (1, 2, 3):
        assert largest(layer(x), expected) <= mr.tolerance("float32")


# --- Frozen ----------------------------------------------------------------------------------------------------------


@every_frozen_way
def test_frozen_weights_are_read_only_and_one_that_is_replaced_is_refused(way: OneWay) -> None:
    layer = way.build(weights := mr.initialise(mr.RecurrentSpec("lstm", 5, 11)))
    x = np.ones((3, 7, 5), "float32")
    expected = layer(x).sequence
    for name, array in layer.native.parameters.items():
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
        assert weights.arrays[name] is not array  # what was given stays as it was
    np.testing.assert_array_equal(layer(x).sequence, expected)
    cotangent = mr.Output(expected, mr.State(*np.ones((2, 1, 3, 11), "float32")))
    assert layer.vjp(x, cotangent=cotangent).x.any()
    name = "layers.0.forward.weight_hh"
    layer.native.parameters[name] = layer.native.parameters[name].copy()
    for call in (lambda: layer(x), lambda: layer.vjp(x, cotangent=cotangent)):
        with pytest.raises(mr.InvalidCall, match=r"one of them was replaced; .* implementation='fast'"):
            call()


@needs_kernel
def test_frozen_weights_are_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[bytes] = []
    pack = kernel.CompiledRecurrence.pack

    def watched(self: kernel.CompiledRecurrence, table: bytes) -> kernel.Packed:
        packed.append(table)
        return pack(self, table)

    monkeypatch.setattr(kernel.CompiledRecurrence, "pack", watched)
    layer = BACKEND.build(mr.initialise(spec := mr.RecurrentSpec("gru", 5, 11)), implementation="frozen")
    reference = mr.build(mr.initialise(spec).astype("float64"), "numpy")
    for batch, time in ((1, 1), (3, 7), (2, 100)):
        x = np.random.default_rng(batch).standard_normal((batch, time, 5)).astype("float32")
        assert largest(layer(x), reference(x.astype("float64"))) <= mr.tolerance("float32")
    assert len(packed) == 1
    expected = layer(x).sequence
    for array in layer.native.parameters.values():
        array.flags.writeable = True
        array[...] = np.nan  # what is packed is what runs
    np.testing.assert_array_equal(layer(x).sequence, expected)


@needs_kernel
def test_the_plan_of_a_frozen_layer_is_the_compiled_recurrence_where_packing_would_not_have_paid() -> None:
    weights = mr.Weights(spec := mr.RecurrentSpec("lstm", 1024, 1024), nothing(spec))
    assert OneWay(True).build(weights).plan(1, 25).implementation == "native"
    frozen = OneWay(True, frozen=True).build(weights)
    assert frozen.plan(1, 25).implementation == "frozen"
    assert "packed once" in frozen.plan(1, 25).sentence
    assert frozen.plan(1, 100, gradients=True).implementation == "fast"


# --- What it says of itself ------------------------------------------------------------------------------------------


@needs_kernel
def test_the_plan_names_the_compiled_recurrence_and_its_instructions() -> None:
    layer = mr.build(mr.RecurrentSpec("simple_rnn", 5, 11), "numpy", implementation="fast")
    assert isinstance(layer, FastNumpyLayer)
    plan = layer.plan(3, 7, lengths=True, gradients=True)
    assert plan.implementation == "fast"
    assert kernel.instruction_sets()[0] in plan.sentence


@pytest.mark.parametrize("spec", list(covering_specs()), ids=repr)
def test_without_it_the_plan_is_fast_where_there_are_fewer_operations(spec: mr.RecurrentSpec) -> None:
    plan = FastNumpyLayer(mr.initialise(spec), compiled=False).plan(32, 7)
    assert ("sigmoids by tanh" in plan.sentence) == halvable(spec)
    assert ("both directions at once" in plan.sentence) == spec.bidirectional
    assert plan.implementation == ("fast" if halvable(spec) or spec.bidirectional else "native")


@pytest.mark.parametrize("units", [64, 65])
@pytest.mark.parametrize("shape", [(1, 131), (3, 47)])
def test_without_it_both_directions_of_few_units_go_through_one_loop(
    units: int, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = mr.RecurrentSpec("simple_rnn", 5, units, num_layers=2, bidirectional=True)
    layer, native = FastNumpyLayer(mr.initialise(spec), compiled=False), mr.build(mr.initialise(spec), "numpy")
    loops: list[int] = []
    forward = SimpleRnn.forward
    monkeypatch.setattr(SimpleRnn, "forward", lambda run: (loops.append(run.states[0].ndim), forward(run))[1])
    x = np.random.default_rng(0).standard_normal((*shape, 5)).astype("float32")
    found = layer(x)
    assert loops == ([4, 4] if units == 64 else [2 if shape[0] == 1 else 3] * 4)
    assert largest(found, native(x)) <= mr.tolerance("float32")


@pytest.mark.parametrize("spec", [s for s in covering_specs() if s.bidirectional], ids=repr)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("ragged", [False, True])
def test_one_loop_for_both_directions_and_back(spec: mr.RecurrentSpec, batch: int, ragged: bool) -> None:
    weights = mr.initialise(spec, 1)
    apart, together = (Stack(spec, dict(weights.arrays), together=both) for both in (False, True))
    x, state, lengths = draw_call(spec)
    x, state = np.ascontiguousarray(x[:batch].swapaxes(0, 1)), [part[:, :batch] for part in state.parts]
    padded = np.arange(len(x))[:, None, None] >= lengths[:batch, None] if ragged else None
    if batch == 1:  # as `time_first` has it
        x, state, padded = x[:, 0], [part[:, 0] for part in state], None if padded is None else padded[:, 0]
    results = []
    for stack in (apart, together):
        y, last, passes = stack.forward(x, state, padded)
        results.append((y, last, *stack.backward(passes, y, last)))
    for found, expected in zip(*results, strict=True):
        assert largest(found, expected) <= mr.tolerance(spec.dtype)


@every_way
def test_the_plan_is_native_where_preparing_the_weights_costs_more_than_the_steps(way: OneWay) -> None:
    units, few, more = (1024, 25, 64) if way.compiled else (128, 5, 300)
    layer = way.build(mr.Weights(spec := mr.RecurrentSpec("lstm", units, units), nothing(spec)))
    assert [layer.plan(1, time).implementation for time in (few, more)] == ["native", "fast"]
    assert f"takes longer than {few} steps" in layer.plan(1, few).sentence
    if way.compiled:
        assert layer.plan(1, few - 1).implementation == "fast"


def nothing(spec: mr.RecurrentSpec) -> dict[str, np.ndarray]:
    """Weights, where to draw them would take seconds."""
    return {name: np.zeros(shape, spec.dtype) for name, shape in spec.shapes.items()}


@every_way
@pytest.mark.parametrize("form", [("lstm", True), ("gru", True), ("gru", False)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_many_rows_and_steps_agree_too(way: OneWay, form: tuple[str, bool], dtype: str) -> None:
    spec = mr.RecurrentSpec(
        form[0], 5, 11, num_layers=2, bidirectional=True, bias="double", reset_after=form[1], dtype=dtype
    )
    layer, reference = way.build(mr.initialise(spec)), mr.build(mr.initialise(spec).astype("float64"), "numpy")
    rng = np.random.default_rng(7)
    for batch, time in ((1, 131), (37, 7)):
        assert layer.plan(batch, time).implementation == "fast"
        x, state = rng.standard_normal((batch, time, 5)).astype(dtype), draw_state(spec, batch, rng)
        lengths = rng.integers(0, time + 1, batch)
        lengths[0] = time - 1
        output = reference(x.astype("float64"), widened(state), lengths=lengths)
        assert largest(layer(x, state, lengths=lengths), output) <= mr.tolerance(dtype)
        cotangent = mr.Output(rng.standard_normal(output.sequence.shape).astype(dtype), draw_state(spec, batch, rng))
        wide = mr.Output(cotangent.sequence.astype("float64"), widened(cotangent.state))  # type: ignore[arg-type]
        expected = reference.vjp(x.astype("float64"), widened(state), lengths=lengths, cotangent=wide)
        assert largest(layer.vjp(x, state, lengths=lengths, cotangent=cotangent), expected) <= mr.tolerance(dtype)


def test_where_it_is_missing_the_plan_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multirnn_numpy.fast.refuses", lambda: "there is no compiler here")
    layer = BACKEND.build(mr.initialise(mr.RecurrentSpec("gru", 5, 11)), implementation="fast")
    assert layer.plan(3, 7).sentence.endswith("there is no compiler here")  # type: ignore[attr-defined]
    assert layer(np.zeros((2, 3, 5), "float32")).sequence.shape == (2, 3, 11)


def test_an_unknown_implementation_and_a_device_are_refused() -> None:
    spec = mr.RecurrentSpec("gru", 5, 11)
    with pytest.raises(mr.InvalidCall, match="'native', 'fast'"):
        mr.build(spec, "numpy", implementation="quick")
    with pytest.raises(mr.InvalidCall, match="cuda"):
        mr.build(spec, "numpy", implementation="fast", device="cuda")


def test_the_threads_are_those_of_openmp(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = mr.initialise(mr.RecurrentSpec("gru", 5, 11))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert FastNumpyLayer(weights).threads == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert FastNumpyLayer(weights).threads >= 1


# --- In a benchmark --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", BACKEND.implementations)
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_the_benchmark_computes_what_it_says(mode: str, ragged: bool, implementation: str) -> None:
    if (mode, implementation) == ("training", "frozen"):
        pytest.skip("frozen weights cannot be trained")
    spec = mr.RecurrentSpec("lstm", 5, 11, dtype="float64")
    weights = mr.initialise(spec)
    x, _, lengths = draw_call(spec)
    if mode == "streaming":
        x, lengths = np.ascontiguousarray(x[:, :1]), np.minimum(lengths, 1)
    given: Any = lengths if ragged else None
    reference = mr.build(weights, "numpy")
    output = reference(x, lengths=given)
    rng = np.random.default_rng(5)
    cotangent = mr.Output(rng.standard_normal(output.sequence.shape), draw_state(spec, len(x), rng))
    target = rng.standard_normal(output.sequence.shape)
    layer = BACKEND.build(weights, implementation=implementation)
    prepared = BACKEND.prepare(layer, Work(weights, x, given, mode, cotangent, target), 1)
    found = prepared.result()
    if mode in ("inference", "streaming"):
        expected: Any = output
    elif mode == "gradients":
        expected = reference.vjp(x, lengths=given, cotangent=cotangent)
        found, expected = found[:2], expected[:2]
    else:
        slope = mr.Output((output.sequence - target) * 2 / target.size, None)  # type: ignore[arg-type]
        gradients = reference.vjp(x, lengths=given, cotangent=slope).weights
        expected = {name: array - SGD_RATE * gradients[name] for name, array in weights.arrays.items()}
    assert largest(found, expected) <= mr.tolerance("float64")
    before = {name: array.copy() for name, array in layer.native.parameters.items()}
    prepared.call()
    same = all(np.array_equal(array, before[name]) for name, array in layer.native.parameters.items())
    assert same == (mode != "training")
    assert prepared.plan


@needs_kernel
def test_the_raw_call_keeps_the_arrays_that_it_reads() -> None:
    spec = mr.RecurrentSpec("lstm", 5, 11, dtype="float64")
    x, _, lengths = draw_call(spec)
    layer = FastNumpyLayer(mr.initialise(spec))
    expected = layer(x, lengths=lengths).sequence
    call = BACKEND.prepare(layer, Work(layer.weights(), x.copy(), lengths.copy(), "inference"), 1).call
    _others = [np.full_like(array, -1) for array in (x, lengths) for _ in range(20)]  # where the arrays would have been
    assert np.array_equal(call().sequence, expected)
