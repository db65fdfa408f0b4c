"""The compiled recurrence, held against the NumPy backend in float64."""

import numpy as np
import pytest
from kernel_calls import (
    CELLS,
    SETS,
    Call,
    addresses,
    aligned,
    close,
    gradients_close,
    needs_kernel,
    outputs_close,
    ragged,
    spoilt,
    states_close,
)

from multirnn import RecurrentSpec, State, kernel

pytestmark = needs_kernel

SHAPES = [  # batch, time, input_size, hidden_size, num_layers, bidirectional
    (5, 1, 1, 3, 1, False),
    (1, 7, 5, 11, 1, False),
    (3, 7, 5, 4, 2, True),
    (13, 11, 17, 37, 3, True),
    (17, 2, 67, 131, 1, False),
]


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


@pytest.mark.parametrize("dense", ["k", "units", "neither"])
@pytest.mark.parametrize("time_major", [False, True])
@pytest.mark.parametrize("time", [1, 40])
@pytest.mark.parametrize(("cell", "reset_after"), CELLS)
def test_any_order_in_memory(cell, reset_after, time, time_major, dense):
    spec = RecurrentSpec(cell, 23, 37, num_layers=2, bidirectional=True, reset_after=reset_after)
    call = Call(spec, 3, time, time_major=time_major, dense=dense)
    outputs_close(call)
    gradients_close(call)


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
    table = call.bound(call.arrays)
    packed = {"x": address(x), "y": address(y), "stash": stash, "threads": threads, "starts": starts.ctypes.data}
    call.stack.forward(table, call.record(**packed, last=addresses(last)))
    gradient_of = {"dy": address(dy), "dx": address(dx), "dfirst": addresses(dfirst), "last": addresses(call.dlast)}
    call.stack.backward(table, call.bound(gradients), call.record(**packed, **gradient_of))
    assert memory.size
    np.testing.assert_array_equal(y, pack(apart.sequence))
    np.testing.assert_array_equal(dx, pack(expected.x))
    for found, part in zip((*last, *dfirst), (*apart.state, *expected.state), strict=True):
        if part is not None:
            np.testing.assert_array_equal(found, part)
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(gradient, expected.weights[name])


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
    table, given = call.bound(call.arrays), {"y": kernel.sequence(y), "first": (None, None), "stash": stash}
    call.stack.forward(table, call.record(**given))
    close(y, expected.sequence, "float32")
    name = "layers.0.forward.weight_hh"
    dU = spoilt(call.arrays[name])
    gradients = call.stack.bind({name: kernel.operand(dU)})
    call.stack.backward(table, gradients, call.record(**given, last=addresses(call.dlast)))
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
