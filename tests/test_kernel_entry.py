"""Lengths and stashes that the compiled recurrence must not trust, and the memory that it keeps."""

import subprocess
import sys
import threading

import numpy as np
import pytest
from kernel_calls import Call, aligned, needs_kernel

import multirnn as mr
from multirnn import RecurrentSpec

pytestmark = needs_kernel

CELLS = ["simple_rnn", "lstm", "gru"]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("wrong", [-1, 8, 10**6, -(2**63), 2**63 - 1])
@pytest.mark.parametrize("row", [0, 2])
def test_lengths_outside_the_time_are_refused(cell, wrong, row):
    call = Call(RecurrentSpec(cell, 5, 11), 3, 7, lengths=[7, 3, 0])
    call.lengths[row] = wrong
    with pytest.raises(mr.InvalidCall, match="lengths must be from 0 to the time steps"):
        call.forward()
    assert (call.y == 77).all()


@pytest.mark.parametrize("cell", CELLS)
def test_backward_takes_the_lengths_of_forward(cell):
    call = Call(RecurrentSpec(cell, 5, 11, bidirectional=True), 3, 7, lengths=[7, 3, 0])
    expected = call.backward()
    memory, stash = aligned(call.stack.stash_size(3, 7))
    call.forward(1, stash)
    call.lengths[:] = [10**6, -5, 7]
    found = call.backward(1, stash)
    np.testing.assert_array_equal(found.x, expected.x)
    for name, gradient in found.weights.items():
        np.testing.assert_array_equal(gradient, expected.weights[name])
    assert memory.size


def test_lengths_that_change_during_a_call_are_refused_or_those_of_one_moment():
    call = Call(RecurrentSpec("gru", 5, 11), 64, 31, lengths=[31] * 64)
    stop = threading.Event()

    def write():
        while not stop.is_set():
            call.lengths[:] = 10**9
            call.lengths[:] = 31

    writer = threading.Thread(target=write)
    writer.start()
    outcomes = set()
    try:
        for _ in range(500):
            try:
                call.backward()
                outcomes.add("ran")
            except mr.InvalidCall:
                outcomes.add("refused")
    finally:
        stop.set()
        writer.join()
    assert "ran" in outcomes


@pytest.mark.parametrize("change", ["zeroed", "other sizes", "other spec"])
def test_a_stash_of_another_call_is_refused(change):
    call = Call(RecurrentSpec("lstm", 5, 11), 3, 7)
    memory, stash = aligned(call.stack.stash_size(3, 7))
    call.forward(1, stash)
    if change == "zeroed":
        memory[:] = 0
    elif change == "other sizes":
        call = Call(RecurrentSpec("lstm", 5, 11), 3, 6)
        call.y = call.dy
    else:
        call = Call(RecurrentSpec("lstm", 5, 11, activation="relu"), 3, 7)
        call.y = call.dy
    with pytest.raises(mr.InvalidCall, match="the stash is not the one that forward filled"):
        call.backward(1, stash)


def test_a_stash_may_be_moved_bit_for_bit():
    call = Call(RecurrentSpec("lstm", 5, 11, num_layers=2), 3, 7, lengths=[7, 3, 0])
    size = call.stack.stash_size(3, 7)
    memory, stash = aligned(size)
    call.forward(1, stash)
    expected = call.backward(1, stash)
    start = stash - memory.ctypes.data
    for offset in (0, 8, 24, 40):
        moved, address = aligned(size + 64)
        place = address - moved.ctypes.data + offset
        moved[place : place + size] = memory[start : start + size]
        found = call.backward(1, address + offset)
        np.testing.assert_array_equal(found.x, expected.x)


MEMORY = """
import threading
import numpy as np
import multirnn as mr
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20
spec = mr.RecurrentSpec("lstm", 1100, 1100)
layer = mr.build(spec, "numpy", implementation="fast")
layer.threads = 1
x = np.zeros((8, 100, 1100), "float32")
output = layer(x)
before = resident()
threads = [threading.Thread(target=layer, args=(x,)) for _ in range(6)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
kept = resident() - before
del layer, output, threads
print(kept, resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells how much memory is used")
def test_memory_of_calls_at_once_is_bounded_and_goes_with_the_last_layer():
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    after_calls, after_layer = map(int, done.stdout.split())
    assert after_calls < 128, "MiB that are kept beside those of one call"
    assert after_layer < 0, "with the layer goes the memory of its calls"
