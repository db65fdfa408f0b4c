"""Every path of the compiled recurrence, forced, with every number of threads: against the plain loop, and against each other.

Which path a call takes depends on sizes, strides and the number of threads. A test that only draws sizes sees the paths that
this machine takes for them. So `kernel.Choices` forces each path at small sizes, with more threads than there are cores.
Where two paths do the same arithmetic in the same order, they must give the same bits.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
from kernel_calls import CELLS, SETS, Call, close, needs_kernel, ragged, states_close

from multirnn import RecurrentSpec
from multirnn.kernel import Choices

pytestmark = needs_kernel

THREADS = (1, 2, 3, 5, 8, 16)
SIZES = [  # batch, time, input_size, hidden_size, num_layers, bidirectional, ragged
    (1, 6, 37, 67, 1, False, False),
    (5, 7, 5, 19, 2, True, True),
    (13, 9, 151, 37, 1, False, True),  # rows beyond a tile, and a panel beyond the nearest cache
]
BASE = Choices(slices=1, split_units=0, unpacked=0, along=1, grain=1, in_passing=0, crowded=0, dx_rows=13, pieces=1)


class Path(NamedTuple):
    """One way through the code.

    Attributes:
        arithmetic: paths that share it do the same operations in the same order.
        dense: the axis along which the weights are dense.
        prepacked: whether the weights are packed before the call.
    """

    arithmetic: tuple[object, ...]
    choices: Choices
    dense: str = "k"
    prepacked: bool = False


def packed_paths(time: int) -> Iterator[Path]:
    for block, slices in itertools.product((2, time), (1, 3)):
        choices = BASE._replace(block=block, slices=slices)
        same = "packed", block, slices
        yield Path(same, choices)
        yield Path(same, choices._replace(in_passing=1, pieces=3))
        yield Path(same, choices._replace(crowded=1))
        yield Path(same, choices, "units")
        yield Path(same, choices, "neither")
        yield Path(same, choices, prepacked=True)
        if slices == 1:
            yield Path(same, choices._replace(split_units=1, pieces=2))
            yield Path(same, choices._replace(split_units=1, in_passing=1), "units")
            yield Path(same, choices._replace(split_units=1), prepacked=True)


def unpacked_paths(time: int) -> Iterator[Path]:
    """Each row is multiplied alone, so that neither blocks nor slices change the order of the sums going forward."""
    for (dense, along), slices in itertools.product((("units", 1), ("units", 0), ("k", 1), ("neither", 1)), (1, 3)):
        choices = BASE._replace(unpacked=1, along=along, slices=slices)
        same = "unpacked", "units" if along and dense == "units" else "neither" if dense == "units" else dense, slices
        for block in (2, time):
            yield Path(same, choices._replace(block=block), dense)
            yield Path(same, choices._replace(block=block, crowded=1, pieces=3), dense)
            if slices == 1:
                yield Path(same, choices._replace(block=block, split_units=1), dense)
            if dense == "units" and along:
                yield Path(same, choices._replace(block=block, grain=2), dense)
                yield Path(same, choices._replace(block=block, grain=99), dense)
                if slices == 1:
                    yield Path(same, choices._replace(block=block, grain=2, split_units=1), dense)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("cell", "reset_after"), CELLS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("instructions", SETS)
def test_every_path_with_every_number_of_threads(instructions, dtype, cell, reset_after, size):
    batch, time, input_size, hidden_size, num_layers, bidirectional, is_ragged = size
    spec = RecurrentSpec(
        cell,
        input_size,
        hidden_size,
        num_layers=num_layers,
        bidirectional=bidirectional,
        reset_after=reset_after,
        dtype=dtype,
    )
    lengths = ragged(batch, time) if is_ragged else None
    calls = {
        dense: Call(spec, batch, time, lengths, instructions=instructions, dense=dense)
        for dense in ("k", "units", "neither")
    }
    packed = {dense: call.stack.pack(call.bound(call.arrays)) for dense, call in calls.items()}
    expected, expected_gradients = calls["k"].expected(), calls["k"].expected_gradients()
    first = {}
    for path in (*packed_paths(time), *unpacked_paths(time)):
        call = calls[path.dense]
        for threads in THREADS:
            choices = path.choices._replace(members=threads)
            output = call.forward(threads, packed=packed[path.dense].address * path.prepacked, choices=choices)
            found = [output.sequence, *output.state.parts]
            if not path.prepacked:
                gradients = call.backward(threads, choices=choices)
                found += [call.y, gradients.x, *gradients.state.parts, *gradients.weights.values()]
            if path.arithmetic not in first:
                first[path.arithmetic] = found
                close(output.sequence, expected.sequence, dtype)
                states_close(output.state, expected.state, dtype)
                close(call.y, expected.sequence, dtype)
                close(gradients.x, expected_gradients.x, dtype)
                states_close(gradients.state, expected_gradients.state, dtype)
                for name, gradient in gradients.weights.items():
                    close(gradient, expected_gradients.weights[name], dtype)
            for array, bits in zip(found, first[path.arithmetic], strict=False):
                assert np.array_equal(array, bits), f"{path} with {threads} threads"
