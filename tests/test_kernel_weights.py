"""The weights of the compiled recurrence: those of now, or those that were packed before."""

import os
from pathlib import Path

import numpy as np
import pytest
from kernel_calls import CELLS, SETS, THREADED, WIDE, Call, close, needs_kernel, outputs_close, states_close

from multirnn import RecurrentSpec

pytestmark = needs_kernel


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
def test_packed_weights_are_freed_with_their_last_reference():
    call = Call(RecurrentSpec("lstm", 3, 700), 2, 3)
    table = call.bound(call.arrays)
    packed, again = call.stack.pack(table), call.stack.pack(table)
    assert packed.address % 64 == again.address % 64 == 0
    assert packed.address != again.address
    used = resident()
    for _ in range(100):
        call.stack.pack(table)
    assert resident() - used < 10 * sum(array.nbytes for array in call.arrays.values())


def resident():
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
