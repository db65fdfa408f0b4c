"""The threads of the compiled recurrence: they change no result, whoever is late, naps, calls at once or forks."""

import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from kernel_calls import THREADED, WIDE, Call, aligned, close, gradients_close, needs_kernel, outputs_close, ragged

from multirnn.numerics import difference, tolerance

pytestmark = needs_kernel

STEPS = 83  # so many that more than one thread pays, even for ragged rows


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
