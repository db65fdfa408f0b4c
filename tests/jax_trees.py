"""Pytrees of JAX in tests: cast, drawn and compared."""

import numpy as np
import pytest

import multirnn as mr

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402


def wide(tree):
    return jax.tree.map(lambda array: np.asarray(array, "float64"), tree)


def assert_close(actual, expected) -> None:
    """Two pytrees: the same structure, equal leaf by leaf up to rounding."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert mr.difference(a, b).normwise <= mr.tolerance(a.dtype)


def like(tree, seed: int = 7):
    """Drawn arrays of the same shapes and dtypes, such as a cotangent for an output."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda part: rng.standard_normal(part.shape).astype(part.dtype), tree)


def paired(cotangent, output):
    """The number of which `cotangent` is the gradient with respect to `output`."""
    return sum(jnp.vdot(c, o) for c, o in zip(jax.tree.leaves(cotangent), jax.tree.leaves(output), strict=True))
