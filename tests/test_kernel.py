"""The compiled recurrence, held against the NumPy backend in float64."""

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import multirnn as mr
from multirnn import Activation, RecurrentSpec, State, kernel
from multirnn.compare import difference, tolerance
from multirnn.kernel import build, library, xla

if build.LIBRARY.exists() and kernel.missing():  # it is there and not what is tested: to pass over it would look green
    pytest.fail(str(kernel.missing()), pytrace=False)
pytestmark = pytest.mark.skipif(kernel.missing() is not None, reason=str(kernel.missing()))

SETS = kernel.instruction_sets()
CELLS = [("simple_rnn", True), ("lstm", True), ("gru", True), ("gru", False)]
SHAPES = [  # batch, time, input_size, hidden_size, num_layers, bidirectional
    (5, 1, 1, 3, 1, False),
    (1, 7, 5, 11, 1, False),
    (3, 7, 5, 4, 2, True),
    (13, 11, 17, 37, 3, True),
    (17, 2, 67, 131, 1, False),
]


def aligned(size):
    """Memory of so many bytes, and its first address that 64 divides."""
    memory = np.zeros(size + 64, np.uint8)
    return memory, -(-memory.ctypes.data // 64) * 64


def addresses(state):
    return tuple(0 if part is None else part.ctypes.data for part in (state.h, state.c))


def spoilt(array):
    """Room for a result, in which nothing is right yet."""
    return np.full_like(array, 77)


class Call:
    """A stack with everything that a call of it takes; random, without a zero."""

    def __init__(self, spec, batch, time, lengths=None, seed=0, instructions=None, time_major=False, units_dense=False):
        rng = np.random.default_rng(seed)

        def draw(*shape):
            return rng.standard_normal(shape).astype(spec.dtype)

        def sequence(features):
            return draw(time, batch, features).swapaxes(0, 1) if time_major else draw(batch, time, features)

        def state():
            shape = (spec.num_layers * len(spec.directions), batch, spec.hidden_size)
            return State(*(draw(*shape) for _ in spec.form.states))

        self.spec, self.batch, self.time = spec, batch, time
        self.lengths = None if lengths is None else np.array(lengths, np.int64)
        self.weights = mr.initialise(spec, seed)
        self.arrays = {name: array.copy() for name, array in self.weights.arrays.items()}
        if units_dense:  # as a `multirnn_numpy.Stack` keeps them
            self.arrays = {
                name: np.moveaxis(np.moveaxis(array, -1, 0).copy(), 0, -1) for name, array in self.arrays.items()
            }
        self.x, self.dy = sequence(spec.input_size), sequence(spec.output_size)
        self.first, self.dlast = state(), state()
        self.stack = kernel.Stack(spec, instructions)

    def bound(self, arrays):
        return self.stack.bind({name: kernel.operand(array) for name, array in arrays.items()})

    @property
    def lengths_address(self):
        return 0 if self.lengths is None else self.lengths.ctypes.data

    def forward(self, threads=1, stash=0, packed=0):
        self.y = spoilt(self.dy)
        last = State(*(None if part is None else spoilt(part) for part in self.first))
        self.stack.forward(
            self.bound(self.arrays),
            self.batch,
            self.time,
            kernel.sequence(self.x),
            kernel.sequence(self.y),
            addresses(self.first),
            addresses(last),
            self.lengths_address,
            stash,
            threads,
            packed=packed,
        )
        return mr.Output(self.y, last)

    def backward(self, threads=1, stash=None):
        if stash is None:
            self.memory, stash = aligned(self.stack.stash_size(self.batch, self.time))
            self.forward(threads, stash)
        gradients = {name: spoilt(array) for name, array in self.arrays.items()}
        dx = spoilt(self.x)
        dfirst = State(*(None if part is None else spoilt(part) for part in self.first))
        self.stack.backward(
            self.bound(self.arrays),
            self.bound(gradients),
            self.batch,
            self.time,
            kernel.sequence(self.x),
            kernel.sequence(self.y),
            addresses(self.first),
            kernel.sequence(self.dy),
            addresses(self.dlast),
            kernel.sequence(dx),
            addresses(dfirst),
            self.lengths_address,
            stash,
            threads,
        )
        return mr.Gradients(gradients, dx, dfirst)

    def reference(self):
        return mr.build(mr.Weights(self.spec, self.arrays).astype("float64"), "numpy")

    def expected(self):
        return self.reference()(wide(self.x), wide_state(self.first), lengths=self.lengths)

    def expected_gradients(self):
        cotangent = mr.Output(wide(self.dy), wide_state(self.dlast))
        return self.reference().vjp(wide(self.x), wide_state(self.first), lengths=self.lengths, cotangent=cotangent)


def wide(array):
    return np.ascontiguousarray(array, np.float64)


def wide_state(state):
    return State(*(None if part is None else wide(part) for part in state))


def close(actual, expected, dtype):
    assert difference(actual, expected).normwise <= tolerance(dtype)


def states_close(actual, expected, dtype):
    for a, e in zip(actual, expected, strict=True):
        if a is not None:
            close(a, e, dtype)


def outputs_close(call, **options):
    output, expected = call.forward(**options), call.expected()
    close(output.sequence, expected.sequence, call.spec.dtype)
    states_close(output.state, expected.state, call.spec.dtype)


def gradients_close(call, **options):
    found, expected = call.backward(**options), call.expected_gradients()
    close(found.x, expected.x, call.spec.dtype)
    states_close(found.state, expected.state, call.spec.dtype)
    for name, gradient in found.weights.items():
        close(gradient, expected.weights[name], call.spec.dtype)


def spec_of(cell, reset_after, shape, **fields):
    _, _, input_size, hidden_size, num_layers, bidirectional = shape
    return RecurrentSpec(
        cell,
        input_size,
        hidden_size,
        num_layers=num_layers,
        bidirectional=bidirectional,
        reset_after=reset_after,
        **fields,
    )


def ragged(batch, time):
    """Lengths, unsorted, the first one full and the last one 0 where there is more than one."""
    lengths = np.random.default_rng(batch).integers(0, time + 1, batch)
    lengths[-1], lengths[0] = 0, time
    return lengths


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("cell", "reset_after"), CELLS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("instructions", SETS)
class TestEveryCell:
    @pytest.mark.parametrize("bias", ["none", "single", "double"])
    def test_full(self, instructions, dtype, cell, reset_after, shape, bias):
        spec = spec_of(cell, reset_after, shape, dtype=dtype, bias=bias)
        call = Call(spec, *shape[:2], instructions=instructions)
        outputs_close(call)
        gradients_close(call)

    def test_ragged(self, instructions, dtype, cell, reset_after, shape):
        call = Call(
            spec_of(cell, reset_after, shape, dtype=dtype), *shape[:2], ragged(*shape[:2]), instructions=instructions
        )
        call.x[~(np.arange(shape[1]) < call.lengths[:, None])] = np.nan  # is never read
        gradients = call.backward()
        call.x[np.isnan(call.x)] = 0
        expected = call.expected_gradients()
        outputs_close(call)
        close(gradients.x, expected.x, dtype)
        states_close(gradients.state, expected.state, dtype)
        for name, gradient in gradients.weights.items():
            close(gradient, expected.weights[name], dtype)


@pytest.mark.parametrize("batch", range(1, 18))
@pytest.mark.parametrize("instructions", SETS)
@pytest.mark.parametrize("cell", ["simple_rnn", "lstm", "gru"])
def test_every_number_of_rows_of_a_tile(instructions, cell, batch):
    call = Call(RecurrentSpec(cell, 3, 19), batch, 3, instructions=instructions)
    outputs_close(call)
    gradients_close(call)


@pytest.mark.parametrize("hidden", [1, 2, 15, 16, 17, 31, 33, 47, 63, 64, 65, 127])
@pytest.mark.parametrize("instructions", SETS)
@pytest.mark.parametrize("cell", ["simple_rnn", "lstm", "gru"])
def test_every_number_of_vectors_of_a_panel(instructions, cell, hidden):
    call = Call(RecurrentSpec(cell, hidden, hidden), 3, 3, instructions=instructions)
    outputs_close(call)
    gradients_close(call)


def test_more_steps_than_a_block_and_more_rows_than_a_sum():
    call = Call(RecurrentSpec("lstm", 5, 67), 5, 211)
    outputs_close(call)
    gradients_close(call)


@pytest.mark.parametrize("units_dense", [False, True])
@pytest.mark.parametrize("time_major", [False, True])
@pytest.mark.parametrize("time", [1, 40])
@pytest.mark.parametrize(("cell", "reset_after"), CELLS)
def test_any_order_in_memory(cell, reset_after, time, time_major, units_dense):
    spec = RecurrentSpec(cell, 23, 37, num_layers=2, bidirectional=True, reset_after=reset_after)
    call = Call(spec, 3, time, time_major=time_major, units_dense=units_dense)
    outputs_close(call)
    gradients_close(call)


def test_weights_of_any_strides():
    spec = RecurrentSpec("lstm", 5, 11)
    call = Call(spec, 3, 7)
    call.arrays = {name: np.repeat(array, 2, axis=-1)[..., ::2] for name, array in call.arrays.items()}
    outputs_close(call)
    gradients_close(call)


ACTIVATIONS = [
    Activation("elu", alpha=0.7),
    Activation("hard_sigmoid", alpha=0.2, beta=0.4),
    "linear",
    "relu",
    "sigmoid",
    "softsign",
    "tanh",
]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize(("cell", "reset_after"), CELLS)
@pytest.mark.parametrize("instructions", SETS)
def test_every_activation(instructions, cell, reset_after, activation):
    spec = RecurrentSpec(cell, 5, 11, reset_after=reset_after, activation=activation)
    if cell != "simple_rnn":
        spec = replace(spec, recurrent_activation=activation)
    call = Call(spec, 3, 5, instructions=instructions)
    outputs_close(call)
    gradients_close(call)


def applied(activation, x, instructions):
    """An activation of every number in x, as a simple RNN of one unit that remembers nothing has it."""
    spec = RecurrentSpec("simple_rnn", 1, 1, bias="none", activation=activation, dtype=str(x.dtype))
    call = Call(spec, 1, len(x), instructions=instructions)
    call.arrays = {"layers.0.forward.weight_ih": np.ones((1, 1, 1), x.dtype)} | {
        "layers.0.forward.weight_hh": np.zeros((1, 1, 1), x.dtype)
    }
    call.x = x.reshape(1, -1, 1)
    return call.forward().sequence.ravel()


EXACT = {
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
}


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("instructions", SETS)
def test_activations_are_exact_to_a_few_ulp(instructions, dtype, name):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(-30, 30, 4000), rng.uniform(-1, 1, 4000), rng.standard_normal(4000) * 1e-4])
    x = x.astype(dtype)
    expected = EXACT[name](x.astype(np.longdouble))
    ulps = np.abs(applied(name, x, instructions) - expected) / np.spacing(np.abs(expected).astype(dtype))
    assert ulps.max() <= 4


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("instructions", SETS)
def test_activations_saturate_and_keep_nan(instructions, dtype):
    x = np.array([-np.inf, -1e30, -1000, 0, 1000, 1e30, np.inf, np.nan], dtype)
    np.testing.assert_array_equal(applied("tanh", x, instructions), [-1, -1, -1, 0, 1, 1, 1, np.nan])
    sigmoid = applied("sigmoid", x, instructions)
    assert (sigmoid[:3] < np.finfo(dtype).tiny * 2).all()
    np.testing.assert_array_equal(sigmoid[3:], [0.5, 1, 1, 1, np.nan])
    np.testing.assert_array_equal(applied("relu", x, instructions), np.maximum(x, 0))
    np.testing.assert_array_equal(applied("elu", x, instructions), [-1, -1, -1, 0, 1000, x[5], np.inf, np.nan])


@pytest.mark.parametrize(("cell", "reset_after"), CELLS)
def test_nan_of_a_valid_input_comes_out(cell, reset_after):
    call = Call(RecurrentSpec(cell, 5, 11, reset_after=reset_after), 3, 7)
    call.x[1, 3, 2] = np.nan
    output = call.forward().sequence
    assert np.isnan(output[1, 3:]).all()
    assert np.isfinite(output[1, :3]).all()
    assert np.isfinite(output[[0, 2]]).all()


STEPS = 83  # so many that more than one thread pays, even for ragged rows

THREADED = [
    RecurrentSpec("lstm", 61, 67),  # rows dealt
    RecurrentSpec("gru", 61, 67, num_layers=2, bidirectional=True),  # directions dealt
    RecurrentSpec("gru", 31, 67, bidirectional=True, reset_after=False),
]
WIDE = [  # weights beyond the cache of one core
    RecurrentSpec("simple_rnn", 301, 503),
    RecurrentSpec("lstm", 301, 211, num_layers=2),
    RecurrentSpec("gru", 301, 307, bidirectional=True),
    RecurrentSpec("gru", 301, 307, reset_after=False),
]


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize(
    ("spec", "batch"), [(spec, 7) for spec in THREADED] + [(spec, batch) for spec in WIDE for batch in (1, 2)], ids=str
)
def test_threads(spec, batch, threads):
    for lengths in (None, ragged(batch, STEPS)):
        call = Call(spec, batch, STEPS, lengths)
        outputs_close(call, threads=threads)
        gradients_close(call, threads=threads)


def test_the_same_threads_give_the_same_bits():
    call = Call(THREADED[1], 7, STEPS)
    first, second = call.backward(threads=2), call.backward(threads=2)
    for name, gradient in first.weights.items():
        np.testing.assert_array_equal(gradient, second.weights[name])


def test_backward_may_have_fewer_threads_than_forward_and_be_repeated():
    call = Call(THREADED[0], 7, STEPS)
    expected = call.expected_gradients()
    memory, stash = aligned(call.stack.stash_size(7, STEPS))
    call.forward(threads=3, stash=stash)
    before = memory.copy()
    for threads in (3, 2, 1):
        close(call.backward(threads, stash).x, expected.x, "float32")
    np.testing.assert_array_equal(memory, before)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("cell", "reset_after"), CELLS)
def test_packed_rows_are_those_that_lie_apart(cell, reset_after, threads):
    shape = batch, time, *_ = 13, 11, 17, 37, 2, True
    lengths = np.sort(ragged(batch, time))[::-1]
    call = Call(spec_of(cell, reset_after, shape), batch, time, lengths)
    memory, stash = aligned(call.stack.stash_size(batch, time))
    apart = call.forward(threads, stash)
    expected = call.backward(threads, stash)
    sizes = np.count_nonzero(lengths[:, None] > np.arange(time), axis=0)
    starts = np.cumsum(sizes) - sizes

    def pack(array):
        return np.concatenate([array[:size, t] for t, size in enumerate(sizes)])

    def address(array):
        return array.ctypes.data, array.shape[1], array.shape[1]

    x, dy = pack(call.x), pack(call.dy)
    y, dx = spoilt(dy), spoilt(x)
    last, dfirst = (State(*(None if part is None else spoilt(part) for part in call.first)) for _ in range(2))
    gradients = {name: spoilt(array) for name, array in call.arrays.items()}
    table, first = call.bound(call.arrays), addresses(call.first)
    rest = call.lengths_address, stash, threads, starts.ctypes.data
    call.stack.forward(table, batch, time, address(x), address(y), first, addresses(last), *rest)
    call.stack.backward(
        *(table, call.bound(gradients), batch, time, address(x), address(y), first, address(dy), addresses(call.dlast)),
        *(address(dx), addresses(dfirst), *rest),
    )
    assert memory.size
    np.testing.assert_array_equal(y, pack(apart.sequence))
    np.testing.assert_array_equal(dx, pack(expected.x))
    for found, part in zip((*last, *dfirst), (*apart.state, *expected.state), strict=True):
        if part is not None:
            np.testing.assert_array_equal(found, part)
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(gradient, expected.weights[name])


def test_weights_are_those_of_now():
    call = Call(RecurrentSpec("gru", 5, 11), 3, 40)
    outputs_close(call)
    for array in call.arrays.values():
        array *= -0.5
    outputs_close(call)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("time", [1, 11])
@pytest.mark.parametrize(("cell", "reset_after"), CELLS)
@pytest.mark.parametrize("instructions", SETS)
def test_weights_that_were_packed_before_are_those_of_then(instructions, cell, reset_after, time, threads):
    spec = RecurrentSpec(cell, 17, 37, num_layers=2, bidirectional=True, bias="double", reset_after=reset_after)
    call = Call(spec, 13, time, lengths=[time, 0] + [1] * 11, instructions=instructions)
    expected = call.expected()
    packed = call.stack.pack(call.bound(call.arrays))
    for array in call.arrays.values():
        array[...] = np.nan
    found = call.forward(threads, packed=packed.address)
    close(found.sequence, expected.sequence, "float32")
    states_close(found.state, expected.state, "float32")


@pytest.mark.parametrize("spec", [THREADED[1], *WIDE], ids=str)
def test_packed_before_or_in_the_call_gives_the_same_bits(spec):
    call = Call(spec, 2, 31)
    packed = call.stack.pack(call.bound(call.arrays))
    for threads in (1, 2):
        in_the_call, before = call.forward(threads).sequence, call.forward(threads, packed=packed.address).sequence
        np.testing.assert_array_equal(in_the_call, before)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux tells how much memory is used")
def test_packed_weights_are_bytes_that_are_freed_with_their_last_reference():
    call = Call(RecurrentSpec("lstm", 3, 700), 2, 3)
    table = call.bound(call.arrays)
    bytes_of = np.asarray(call.stack.pack(table))  # which keeps them alive
    assert bytes_of.nbytes >= sum(array.nbytes for array in call.arrays.values())
    assert not bytes_of.flags.writeable
    assert bytes_of.ctypes.data % 64 == 0
    again = call.stack.pack(table)
    assert bytes_of.ctypes.data != again.address
    np.testing.assert_array_equal(bytes_of, np.asarray(again))
    used = resident()
    for _ in range(100):
        call.stack.pack(table)
    assert resident() - used < 10 * bytes_of.nbytes


def resident():
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_nothing_to_run(shape):
    call = Call(RecurrentSpec("lstm", 5, 11), *shape)
    last = call.forward().state
    np.testing.assert_array_equal(last.h, call.first.h)
    np.testing.assert_array_equal(last.c, call.first.c)
    gradients = call.backward()
    np.testing.assert_array_equal(gradients.state.h, call.dlast.h)
    assert all((gradient == 0).all() for gradient in gradients.weights.values())


def test_what_is_not_there():
    """No states, no gradient of the outputs, and of the gradients only some."""
    call = Call(RecurrentSpec("lstm", 5, 11), 3, 7)
    call.first = State(np.zeros_like(call.first.h), np.zeros_like(call.first.c))
    call.dy = np.zeros_like(call.dy)
    expected, expected_gradients = call.expected(), call.expected_gradients()
    _, stash = aligned(call.stack.stash_size(3, 7))
    y = spoilt(call.dy)
    x, y_there, table = kernel.sequence(call.x), kernel.sequence(y), call.bound(call.arrays)
    call.stack.forward(table, 3, 7, x, y_there, (0, 0), (0, 0), 0, stash)
    close(y, expected.sequence, "float32")
    name = "layers.0.forward.weight_hh"
    dU = spoilt(call.arrays[name])
    gradients = call.stack.bind({name: kernel.operand(dU)})
    nowhere = (0, 0, 0)
    call.stack.backward(
        table, gradients, 3, 7, x, y_there, (0, 0), nowhere, addresses(call.dlast), nowhere, (0, 0), 0, stash
    )
    close(dU, expected_gradients.weights[name], "float32")


@pytest.mark.parametrize("cell", ["simple_rnn", "lstm", "gru"])
def test_step_by_step(cell):
    call = Call(RecurrentSpec(cell, 29, 53, num_layers=2), 2, 9)
    expected = call.expected()
    x, outputs = call.x, []
    call.time = 1
    for step in range(9):
        call.x, call.dy = x[:, step : step + 1], np.empty((2, 1, 53), np.float32)
        output = call.forward()
        outputs.append(output.sequence)
        call.first = output.state
    close(np.concatenate(outputs, axis=1), expected.sequence, "float32")
    states_close(call.first, expected.state, "float32")


def test_calls_at_once():
    calls = [Call(spec, 5, STEPS, seed=seed) for seed, spec in enumerate(THREADED * 4)]
    expected = [call.expected_gradients().x for call in calls]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(5):
            for gradients, dx in zip(pool.map(lambda call: call.backward(threads=2), calls), expected, strict=True):
                close(gradients.x, dx, "float32")


def child(queue):
    call = Call(THREADED[0], 7, STEPS)
    queue.put(difference(call.forward(threads=2).sequence, call.expected().sequence).normwise)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is of POSIX")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_after_fork():
    call = Call(THREADED[0], 7, STEPS)
    outputs_close(call, threads=2)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=child, args=(queue,))
    process.start()
    try:
        assert queue.get(timeout=20) <= tolerance("float32")
    finally:
        process.kill()
        process.join()
    outputs_close(call, threads=2)


def on_one_core(spec, batch, queue):
    """What a fresh team computes whose members have to take turns."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    call = Call(spec, batch, STEPS)
    for _ in range(3):
        queue.put((call.backward(threads=3), call.y))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores are chosen on Linux")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize(("spec", "batch"), [(THREADED[1], 7)] + [(spec, 2) for spec in WIDE], ids=str)
def test_who_comes_late_changes_no_bits(spec, batch):
    call = Call(spec, batch, STEPS)
    expected = call.backward(threads=3)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=on_one_core, args=(spec, batch, queue))
    process.start()
    try:
        for _ in range(3):
            gradients, y = queue.get(timeout=20)
            np.testing.assert_array_equal(y, call.y)
            np.testing.assert_array_equal(gradients.x, expected.x)
            for name, gradient in gradients.weights.items():
                np.testing.assert_array_equal(gradient, expected.weights[name])
    finally:
        process.kill()
        process.join()


def long_on_one_core(spec, expected, queue):
    """How far long calls are off whose four threads take turns, so that they miss steps and nap."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    call = Call(spec, 1, 40 * STEPS)
    for _ in range(3):
        queue.put(float(np.abs(call.forward(threads=4).sequence - expected).max()))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores are chosen on Linux")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("spec", WIDE, ids=str)
def test_who_naps_in_the_middle_changes_no_bits(spec):
    expected = Call(spec, 1, 40 * STEPS).forward().sequence
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=long_on_one_core, args=(spec, expected, queue))
    process.start()
    try:
        assert [queue.get(timeout=20) for _ in range(3)] == [0.0, 0.0, 0.0]
    finally:
        process.kill()
        process.join()


def test_unknown_instructions():
    with pytest.raises(mr.InvalidCall, match="instructions must be one of"):
        kernel.Stack(RecurrentSpec("lstm", 2, 3), "mmx")


@pytest.fixture
def fresh_load():
    """The library is looked for anew, and again after the test."""
    library._load.cache_clear()
    yield
    library._load.cache_clear()


@pytest.mark.usefixtures("fresh_load")
class TestMissing:
    def test_not_built(self, monkeypatch, tmp_path):
        monkeypatch.setattr(build, "LIBRARY", tmp_path / "recurrence.so")
        assert "python -m multirnn.kernel.build" in kernel.missing()
        assert kernel.instruction_sets() == ()
        with pytest.raises(mr.MissingFramework, match="C compiler"):
            kernel.Stack(RecurrentSpec("lstm", 2, 3))

    def test_not_a_library(self, monkeypatch, tmp_path):
        (tmp_path / "recurrence.so").write_text("text")
        monkeypatch.setattr(build, "LIBRARY", tmp_path / "recurrence.so")
        assert "cannot be loaded" in kernel.missing()

    def test_these_tests_fail_on_a_library_of_other_sources(self):
        stale = "from multirnn.kernel import build; build.fingerprint = lambda: 'other'; import pytest, sys; "
        run = f"sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', {__file__!r}]))"
        done = subprocess.run([sys.executable, "-c", stale + run], capture_output=True, text=True, check=False)
        assert done.returncode == pytest.ExitCode.INTERRUPTED, done.stdout
        assert "was built from other sources; `python -m multirnn.kernel.build` makes it anew" in done.stdout

    def test_built_from_other_sources(self, monkeypatch):
        monkeypatch.setattr(build, "fingerprint", lambda: "other")
        assert "other sources" in kernel.missing()

    def test_no_compiler(self, monkeypatch):
        monkeypatch.setenv("CC", "/nowhere/cc")
        assert "cannot be run" in build.build()
        monkeypatch.delenv("CC")
        monkeypatch.setenv("PATH", "")
        assert "no C compiler was found" in build.build()


# --- XLA -------------------------------------------------------------------------------------------------------------

LAYOUT = {
    "XLA_FFI_Extension_Base": ("xla_extension", "struct_size size, type type, next next"),
    "XLA_FFI_Api_Version": ("xla_version", "struct_size size, major_version major, minor_version minor"),
    "XLA_FFI_Metadata": ("xla_metadata", "struct_size size, api_version version, traits traits"),
    "XLA_FFI_Metadata_Extension": ("xla_metadata_extension", "extension_base base, metadata metadata"),
    "XLA_FFI_Error_Create_Args": ("xla_error_description", "struct_size size, message message, errc code"),
    "XLA_FFI_Api": ("xla_api", "struct_size size, api_version version, XLA_FFI_Error_Create create_error"),
    "XLA_FFI_Buffer": ("xla_buffer", "struct_size size, dtype dtype, data data, rank rank, dims dims"),
    "XLA_FFI_Args": ("xla_buffers", "struct_size size, size count, types types, args buffers"),
    "XLA_FFI_Rets": ("xla_buffers", "struct_size size, size count, types types, rets buffers"),
    "XLA_FFI_Array": ("xla_array", "dtype dtype, size count, data data"),
    "XLA_FFI_Attrs": ("xla_attributes", "struct_size size, size count, types types, names names, attrs arrays"),
    "XLA_FFI_CallFrame": (
        "xla_frame",
        "struct_size size, extension_start extensions, api api, ctx context, stage stage, args arguments, "
        "rets results, attrs attributes",
    ),
}


def header() -> Path:
    jax = pytest.importorskip("jax")
    return Path(jax.ffi.include_dir(), "xla", "ffi", "api", "c_api.h")


def test_the_structures_of_xla_are_those_of_its_header(tmp_path: Path) -> None:
    lines = ["#include <stddef.h>", f'#include "{header()}"', '#include "xla.h"']
    for theirs, (ours, members) in LAYOUT.items():
        for pair in members.split(", "):
            name, own = pair.split()
            place = f"offsetof({theirs}, {name}) == offsetof({ours}, {own})"
            size = f"sizeof((({theirs} *)0)->{name}) == sizeof((({ours} *)0)->{own})"
            lines += [f'_Static_assert({place}, "{pair}");', f'_Static_assert({size}, "{pair}");']
    for theirs, ours in (
        ("XLA_FFI_API_MAJOR", "XLA_MAJOR"),
        ("XLA_FFI_API_MINOR", "XLA_MINOR"),
        ("XLA_FFI_Extension_Metadata", "XLA_METADATA"),
        ("XLA_FFI_Error_Code_RESOURCE_EXHAUSTED", "XLA_RESOURCE_EXHAUSTED"),
    ):
        lines.append(f'_Static_assert({theirs} == {ours}, "{ours}");')
    source = tmp_path / "layout.c"
    source.write_text("\n".join(lines))
    compiler = build._compiler()
    assert compiler is not None
    command = [*compiler, "-std=gnu11", "-DNAME(x)=x", "-I", str(build.SOURCE), "-include", "recurrence.c"]
    done = subprocess.run([*command, "-fsyntax-only", str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_xla_that_is_not_known_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert xla.refuses(header()) is None
    later = tmp_path / "c_api.h"
    later.write_text("#define XLA_FFI_API_MAJOR 1\n#define XLA_FFI_API_MINOR 0\n")
    assert str(xla.refuses(later)).endswith("is known, not 1.0")
    later.write_text("")
    assert str(xla.refuses(later)).endswith("is known, not unknown")
    assert "without the header" in str(xla.refuses(tmp_path / "none.h"))
    monkeypatch.setattr(xla, "missing", lambda: "no compiled recurrence")
    assert xla.refuses(header()) == "no compiled recurrence"
