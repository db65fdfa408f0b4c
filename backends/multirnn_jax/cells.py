"""The cells of `multirnn.cells` in JAX: one step forward and backward.

Names as in `multirnn.cells`: x is the projected input, one array a gate, with every bias but d; d is the bias that the
reset gate multiplies; a and s are the activation and the recurrent activation.

A GRU's (1 - z) n + z h is written n + z (h - n), as in the reference: of infinities they are not the same.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from multirnn import State
from multirnn.cells import GRU_RESET_AFTER, GRU_RESET_BEFORE, LSTM, SIMPLE_RNN, Cell
from multirnn_jax.activations import Activate

__all__ = ["CELLS", "CellStep", "Gates", "blocks_of", "product"]

Gates = list[jax.Array]


def product(rows: Any, matrix: Any) -> jax.Array:
    """The matrix product, in full precision."""
    # By default a GPU multiplies float32 in TF32 and a TPU in bfloat16, which leaves three decimal digits.
    return jnp.matmul(rows, matrix, precision=lax.Precision.HIGHEST)


def blocks_of(form: Cell, u: Any) -> list[Any]:
    """`weight_hh` as `(gates, hidden_size)`, one block for each product with the state."""
    return jnp.split(u, [2 * u.shape[-1]]) if form is GRU_RESET_BEFORE else [u]


class CellStep:
    """A cell over arrays `(..., features)`, or over columns `(features, ...)`; `axis` is that of the features.

    `blocks` are the matrices of the recurrent products, which `product` multiplies with an array; `a` and `s` are the
    activation and the recurrent activation. For `pull`, blocks are transposed, and `a` and `s` are slopes.
    """

    def __init__(self, blocks: list[Any], product: Callable[..., Any], axis: int, a: Activate, s: Activate) -> None:
        self.products = [partial(product, block) for block in blocks]
        self.split = partial(jnp.split, axis=axis)
        self.join = partial(jnp.concatenate, axis=axis)
        self.a, self.s = a, s

    def step(self, d: Any, state: State, x: Gates) -> tuple[State, tuple[Any, ...]]:
        """The new state, and the arrays that `pull` needs."""
        raise NotImplementedError

    def pull(self, kept: Any, before: State, after: State, dy: State) -> tuple[State, Any]:
        """The gradients of the state before a step and of its preactivations, from that of the state after it."""
        raise NotImplementedError

    @staticmethod
    def preactivation(h: Any, kept: Any, blocks: list[Any], d: Any) -> Any:
        """The part of all preactivations that is linear in the weights; its vjp gives their gradients.

        `h` are the states before the steps, `(time, ..., hidden_size)`, `kept` what `step` kept; blocks are transposed.
        """
        return product(h, blocks[0])


class _SimpleRNN(CellStep):
    def step(self, d: Any, state: State, x: Gates) -> tuple[State, tuple[Any, ...]]:
        return State(self.a(x[0] + self.products[0](state.h))), ()

    def pull(self, kept: Any, before: State, after: State, dy: State) -> tuple[State, Any]:
        dx = dy.h * self.a(after.h)
        return State(self.products[0](dx)), dx


class _LSTM(CellStep):
    def step(self, d: Any, state: State, x: Gates) -> tuple[State, tuple[Any, ...]]:
        uh = self.split(self.products[0](state.h), 4)
        i, f, o = (self.s(x[k] + uh[k]) for k in (0, 1, 3))
        g = self.a(x[2] + uh[2])
        c = f * state.c + i * g
        ac = self.a(c)
        return State(o * ac, c), (i, f, g, o, ac)

    def pull(self, kept: Any, before: State, after: State, dy: State) -> tuple[State, Any]:
        i, f, g, o, ac = kept
        dc = dy.c + dy.h * o * self.a(ac)
        dx = self.join([dc * g * self.s(i), dc * before.c * self.s(f), dc * i * self.a(g), dy.h * ac * self.s(o)])
        return State(self.products[0](dx), dc * f), dx


class _GRUResetAfter(CellStep):
    def step(self, d: Any, state: State, x: Gates) -> tuple[State, tuple[Any, ...]]:
        uh = self.split(self.products[0](state.h), 3)
        r, z, q = self.s(x[0] + uh[0]), self.s(x[1] + uh[1]), uh[2] + d
        n = self.a(x[2] + r * q)
        return State(n + z * (state.h - n)), (r, z, n, q)

    def pull(self, kept: Any, before: State, after: State, dy: State) -> tuple[State, Any]:
        r, z, n, q = kept
        dn = dy.h * (1 - z) * self.a(n)
        dr, dz = dn * q * self.s(r), dy.h * (before.h - n) * self.s(z)
        return State(dy.h * z + self.products[0](self.join([dr, dz, dn * r]))), self.join([dr, dz, dn])

    @staticmethod
    def preactivation(h: Any, kept: Any, blocks: list[Any], d: Any) -> Any:
        r, z, q = jnp.split(product(h, blocks[0]), 3, axis=-1)
        return jnp.concatenate([r, z, kept[0] * (q + d[None])], axis=-1)


class _GRUResetBefore(CellStep):
    def step(self, d: Any, state: State, x: Gates) -> tuple[State, tuple[Any, ...]]:
        uh = self.split(self.products[0](state.h), 2)
        r, z = self.s(x[0] + uh[0]), self.s(x[1] + uh[1])
        n = self.a(x[2] + self.products[1](r * state.h))
        return State(n + z * (state.h - n)), (r, z, n)

    def pull(self, kept: Any, before: State, after: State, dy: State) -> tuple[State, Any]:
        r, z, n = kept
        dn = dy.h * (1 - z) * self.a(n)
        drh = self.products[1](dn)
        drz = self.join([drh * before.h * self.s(r), dy.h * (before.h - n) * self.s(z)])
        return State(dy.h * z + drh * r + self.products[0](drz)), self.join([drz, dn])

    @staticmethod
    def preactivation(h: Any, kept: Any, blocks: list[Any], d: Any) -> Any:
        return jnp.concatenate([product(h, blocks[0]), product(kept[0] * h, blocks[1])], axis=-1)


CELLS: Mapping[Cell, type[CellStep]] = MappingProxyType(
    {SIMPLE_RNN: _SimpleRNN, LSTM: _LSTM, GRU_RESET_AFTER: _GRUResetAfter, GRU_RESET_BEFORE: _GRUResetBefore}
)
