"""Random calls of the compiled recurrence, without zeros, and NumPy's results in float64."""

import numpy as np
import pytest

import multirnn as mr
from multirnn import RecurrentSpec, State, cells, kernel
from multirnn.kernel import build
from multirnn.numerics import difference, tolerance

if build.LIBRARY.exists() and kernel.refuses():  # it is there and not what is tested: to pass over it would look green
    pytest.fail(str(kernel.refuses()), pytrace=False)
needs_kernel = pytest.mark.skipif(kernel.refuses() is not None, reason=str(kernel.refuses()))

SETS = kernel.instruction_sets()
CELLS = [(form.name, form.reset_after) for form in cells.FORMS.values()]
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


def aligned(size):
    """Memory for `size` bytes, and the address in it where they are aligned to 64 bytes."""
    memory = np.zeros(size + 64, np.uint8)
    return memory, -(-memory.ctypes.data // 64) * 64


def addresses(state):
    return tuple(None if part is None else part.ctypes.data for part in (state.h, state.c))


def spoilt(array):
    """An array for a result, filled with wrong numbers."""
    return np.full_like(array, 77)


class Call:
    """A compiled recurrence with all operands of a call, random, without zeros."""

    def __init__(self, spec, batch, time, lengths=None, seed=0, instructions=None, time_major=False, dense="k"):
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
        if dense == "units":  # as a `multirnn_numpy.Stack` keeps them
            self.arrays = {
                name: np.moveaxis(np.moveaxis(array, -1, 0).copy(), 0, -1) for name, array in self.arrays.items()
            }
        elif dense == "neither":
            self.arrays = {name: np.repeat(array, 2, axis=-1)[..., ::2] for name, array in self.arrays.items()}
        self.x, self.dy = sequence(spec.input_size), sequence(spec.output_size)
        self.y = spoilt(self.dy)
        self.first, self.dlast = state(), state()
        self.stack = kernel.CompiledRecurrence(spec, instructions)

    def bound(self, arrays):
        return self.stack.bind({name: kernel.operand(array) for name, array in arrays.items()})

    def record(self, **more):
        """A call record with the operands, the initial states, the lengths, and `more`."""
        known = {
            "batch": self.batch,
            "time": self.time,
            "x": kernel.sequence(self.x),
            "y": kernel.sequence(self.y),
            "first": addresses(self.first),
            "lengths": None if self.lengths is None else self.lengths.ctypes.data,
        }
        return kernel.call_record(**{**known, **more})

    def forward(self, threads=1, stash=None, packed=None, choices=None):
        self.y = spoilt(self.dy)
        last = State(*(None if part is None else spoilt(part) for part in self.first))
        record = self.record(last=addresses(last), stash=stash, threads=threads, packed=packed, choices=choices)
        self.stack.forward(self.bound(self.arrays), record)
        return mr.Output(self.y, last)

    def backward(self, threads=1, stash=None, choices=None):
        if stash is None:
            self.memory, stash = aligned(self.stack.stash_size(self.batch, self.time))
            self.forward(threads, stash, choices=choices)
        gradients = {name: spoilt(array) for name, array in self.arrays.items()}
        dx = spoilt(self.x)
        dfirst = State(*(None if part is None else spoilt(part) for part in self.first))
        record = self.record(
            last=addresses(self.dlast),
            stash=stash,
            threads=threads,
            choices=choices,
            dy=kernel.sequence(self.dy),
            dx=kernel.sequence(dx),
            dfirst=addresses(dfirst),
        )
        self.stack.backward(self.bound(self.arrays), self.bound(gradients), record)
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
    found = difference(actual, expected)
    assert found.normwise <= tolerance(dtype), found


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


def ragged(batch, time):
    """Lengths, unsorted, the first one full and the last one 0 where there is more than one."""
    lengths = np.random.default_rng(batch).integers(0, time + 1, batch)
    lengths[-1], lengths[0] = 0, time
    return lengths
