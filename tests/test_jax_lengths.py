"""Lengths of JAX's pure functions: every integer dtype, every transformation, one rule in both implementations.

Their values may be traced, so they are not checked: more than `time` counts as full, less than zero as empty.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pytest

import multirnn as mr
from multirnn.numerics import difference, tolerance

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402

TIME = 300  # beyond int8 and uint8
LSTM = mr.RecurrentSpec("lstm", 3, 5, bidirectional=True)
GRU = mr.RecurrentSpec("gru", 3, 5, bidirectional=True)
NARROW, WIDE = ["int8", "int16", "int32", "uint8", "uint16", "uint32"], ["int64", "uint64"]
both = pytest.mark.parametrize("implementation", ["native", "fast"])


def sixty_four(dtype: str) -> AbstractContextManager[Any]:
    return jax.enable_x64(True) if dtype in WIDE else nullcontext()


def given_and_meant(dtype: str, time: int = TIME) -> tuple[np.ndarray, np.ndarray]:
    """Lengths up to the ends of a dtype, and what they count as."""
    info = np.iinfo(dtype)
    numbers = [int(info.max), 0, 5, int(info.min), min(time, int(info.max))]
    return np.array(numbers, dtype), np.array([min(max(number, 0), time) for number in numbers])


def pieces(spec: mr.RecurrentSpec, implementation: str, time: int = TIME) -> tuple[Any, np.ndarray, mr.Output]:
    rng = np.random.default_rng(1)
    x, dy = (rng.standard_normal((5, time, size)).astype("float32") for size in (3, spec.output_size))
    state = mr.State(*(np.zeros((2, 5, 5), "float32") for _ in spec.form.states))
    return mr.build(spec, "jax", seed=3, implementation=implementation), x, mr.Output(dy, state)


def assert_close(actual: Any, expected: Any) -> None:
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert difference(np.asarray(a), np.asarray(b)).normwise <= tolerance("float32")


def in_vmap(apply: Callable[..., Any]) -> Callable[..., Any]:
    def run(params: Any, x: Any, state: Any, lengths: Any) -> Any:
        axes = mr.Output(0, mr.State(1, 1))
        return jax.vmap(lambda row, length: apply(params, row, None, length), out_axes=axes)(x, lengths)

    return run


TRANSFORMATIONS: dict[str, Callable[..., Any]] = {
    "eager": lambda apply: apply,
    "jit": jax.jit,
    "vmap": in_vmap,
    "jit of vmap": lambda apply: jax.jit(in_vmap(apply)),
}


@both
@pytest.mark.parametrize("transformation", TRANSFORMATIONS)
@pytest.mark.parametrize("dtype", NARROW + WIDE)
def test_lengths_of_every_dtype_count_as_the_same_numbers(dtype: str, transformation: str, implementation: str) -> None:
    layer, x, _ = pieces(LSTM, implementation)
    given, meant = given_and_meant(dtype)
    with sixty_four(dtype):
        run = TRANSFORMATIONS[transformation](layer.native.apply)
        found = run(layer.native.params, x, None, jnp.asarray(given))
    assert_close(found, layer(x, lengths=meant))
    at_padding = np.arange(TIME) >= meant[:, None]
    assert not np.asarray(found.sequence)[at_padding].any()


@both
@pytest.mark.parametrize("dtype", NARROW + WIDE)
def test_gradients_with_lengths_of_every_dtype(dtype: str, implementation: str) -> None:
    layer, x, cotangent = pieces(GRU, implementation)
    given, meant = given_and_meant(dtype)

    def loss(params: Any, x: Any, lengths: Any) -> Any:
        return jnp.sum(layer.native.apply(params, x, None, lengths).sequence * cotangent.sequence)

    expected = layer.vjp(x, lengths=meant, cotangent=cotangent)
    with sixty_four(dtype):
        for form in (lambda function: function, jax.jit):
            weights, dx = form(jax.grad(loss, argnums=(0, 1)))(layer.native.params, x, jnp.asarray(given))
            assert_close(weights, dict(expected.weights))
            assert_close(dx, expected.x)


@both
def test_lengths_of_numpy_are_read_before_jax_cuts_them(implementation: str) -> None:
    """Outside its 64-bit mode JAX keeps the lower half of a number: of 2**32 + 1 it would leave 1."""
    layer, x, _ = pieces(GRU, implementation, time=7)
    numbers = np.array([2**32 + 1, -(2**40), 3, 2**62, 0])
    found = layer.native.apply(layer.native.params, x, None, numbers)
    assert_close(found, layer(x, lengths=[7, 0, 3, 7, 0]))
    unsigned = np.array([2**63 + 1, 2**32, 3, 2**64 - 1, 0], "uint64")
    found = layer.native.apply(layer.native.params, x, None, unsigned)
    assert_close(found, layer(x, lengths=[7, 7, 3, 7, 0]))


@both
def test_lengths_may_be_a_list(implementation: str) -> None:
    layer, x, _ = pieces(LSTM, implementation, time=7)
    expected = layer(x, lengths=[3, 1, 7, 0, 2])
    for lengths in ([3, 1, 7, 0, 2], (3, 1, 7, 0, 2), [np.int8(3), 1, 7, 0, 2], np.array([3, 1, 7, 0, 2], ">i4")):
        assert_close(layer.native.apply(layer.native.params, x, None, lengths), expected)
    assert_close(layer.native.apply(layer.native.params, x[0], None, 3).sequence, expected.sequence[0])


@both
@pytest.mark.parametrize(
    ("lengths", "why"),
    [
        (np.ones(5, bool), "lengths must be integers, not bool"),
        ([True] * 5, "lengths must be integers, not bool"),
        ([1.0] * 5, "lengths must be integers, not float64"),
        ([[1, 2], [3], [], [1], [1]], "lengths must be an array of integers"),
        ([2**70, 1, 1, 1, 1], "lengths must be integers, not object"),
        (["1", "2", "3", "4", "5"], "lengths must be integers, not <U1"),
        ([1, 2], r"lengths must have the shape \(5,\), one integer a row of x, not \(2,\)"),
    ],
)
def test_what_are_no_lengths_is_refused_in_a_sentence(lengths: Any, why: str, implementation: str) -> None:
    layer, x, _ = pieces(GRU, implementation, time=7)
    with pytest.raises(mr.InvalidCall, match=why):
        layer.native.apply(layer.native.params, x, None, lengths)


@both
def test_lengths_of_no_row(implementation: str) -> None:
    layer, x, _ = pieces(GRU, implementation, time=7)
    found = layer.native.apply(layer.native.params, x[:0], None, [])
    assert found.sequence.shape == (0, 7, 10)
