"""The same function as `multirnn_jax.apply`, with a reverse rule written by hand.

Left to itself, JAX differentiates a scan into a scan that adds a product of the step to the gradient of `weight_hh` at
every step: T times the memory of the weights is read and written. Here the reverse scan does only what has to be done
step by step, and emits the gradients of the preactivations; the gradients of the weights, of the biases and of the
input are then single products over all time.

Kept for it are the states and the activated gates, and for the reset-after GRU the recurrent part of its candidate.
Every activation that a spec can have has a derivative that is a function of its value, so nothing else is needed.

The rule is made of JAX's own operations, so it is differentiable itself: the gradient of a gradient and products with
the Hessian (`jax.jvp` of `jax.grad`) work, under `jit`, `vmap`, `shard_map` and for sharded arrays as everything does.
What `jax.custom_vjp` forbids is forward mode over the function itself: `jax.jvp`, `jax.jacfwd`; JAX says so.

Array axes as in `multirnn_jax.apply`; `gates` is the axis `gates * hidden_size`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from math import prod
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from multirnn import Activation, Output, RecurrentSpec, State
from multirnn.cells import GRU_RESET_AFTER, GRU_RESET_BEFORE, LSTM, SIMPLE_RNN, Cell
from multirnn_jax.apply import (
    Activate,
    Gates,
    Params,
    activate,
    first_state,
    matrix,
    product,
    projection_bias,
    spread,
    stack,
)

__all__ = ["apply", "in_columns"]

LARGE = 2**19
"""Elements of `weight_hh` (2 MB in float32) from which the recursion runs on columns; see `in_columns`."""


def apply(
    spec: RecurrentSpec, params: Params, x: jax.Array, state: State | None = None, lengths: jax.Array | None = None
) -> Output:
    """Run the stack that `spec` describes; arguments, result and errors are those of `multirnn_jax.apply.apply`."""
    return stack(_scan, spec, params, x, state, lengths)


def _scan(
    spec: RecurrentSpec, weights: Params, inputs: Any, initial: State | None, valid: Any, *, reverse: bool
) -> tuple[State, jax.Array]:
    """One layer in one direction: the final state, and the outputs `(time, ..., hidden_size)`."""
    bias, candidate_bias = projection_bias(spec.form, weights.get("bias_ih"), weights.get("bias_hh"))
    projected = product(inputs, matrix(weights["weight_ih"]))
    gates = projected + spread(bias, projected.ndim)
    first = first_state(spec.form, gates[..., : spec.hidden_size], initial)
    # Inside `jax.shard_map` a `custom_vjp` demands that the gradient of a weight varies over the devices as the weight
    # does. With this zero the weight varies as the input does; the gradients of the devices are then added by JAX.
    zero: Any = lax.stop_gradient(jnp.sum(gates[:0]))
    u = weights["weight_hh"].reshape(-1, spec.hidden_size) + zero
    d = jnp.broadcast_to(candidate_bias + zero, (*[1] * (gates.ndim - 2), spec.hidden_size))
    columns = in_columns(spec, prod(gates.shape[1:-1]))
    return _recur(_Recursion(spec, reverse, columns), gates, first, u, d, valid)


def in_columns(spec: RecurrentSpec, batch: int) -> bool:
    """Whether the state is kept as columns, `(hidden_size, batch)`, and multiplied by `weight_hh` from the left.

    At every step XLA's CPU kernels copy the right factor of a product into tiles. On rows that factor is the weights,
    on columns the state, which is turned on its way in and out of the loop's body. Measured, time of a call on rows over
    that on columns: 1.5 to 2.5 with 2**20 elements of weights or more, 0.8 to 1.2 with 2**18, 0.9 below; with a batch of
    1, where nothing is turned, 1.0 to 1.3 from 64 units and 0.9 with 32.
    """
    if batch == 1:
        return spec.hidden_size >= 64
    return len(spec.form.gates) * spec.hidden_size**2 >= LARGE


class _Recursion(NamedTuple):
    """What is static about the recursion of a layer in one direction."""

    spec: RecurrentSpec
    reverse: bool
    columns: bool

    def enter(self, tree: Any) -> Any:
        """Arrays of a step, `(..., features)`, as the cells have them: columns are `(features, ...)`."""
        return jax.tree.map(lambda array: jnp.moveaxis(array, -1, 0), tree) if self.columns else tree

    def leave(self, tree: Any) -> Any:
        """The way back."""
        return jax.tree.map(lambda array: jnp.moveaxis(array, 0, -1), tree) if self.columns else tree

    def cell(self, blocks: list[Any], activation: Callable[..., Any]) -> "_Cell":
        """The cell in this layout; its `blocks` are `(to, from)` each."""
        form, a, s = self.spec.form, activation(self.spec.activation), activation(self.spec.recurrent_activation)
        if self.columns:
            return CELLS[form](blocks, partial(jnp.tensordot, axes=1, precision=lax.Precision.HIGHEST), 0, a, s)
        return CELLS[form]([block.T for block in blocks], lambda w, h: product(h, w), -1, a, s)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _recur(recursion: _Recursion, gates: Any, first: State, u: Any, d: Any, valid: Any) -> tuple[State, Any]:
    """The recursion over projected inputs.

    Args:
        recursion: static.
        gates: `(time, ..., gates)`.
        first: `(..., hidden_size)` each.
        u: weight_hh, `(gates, hidden_size)`.
        d: the recurrent bias of a candidate, broadcast to `(..., hidden_size)`.
        valid: `(time, ..., 1)` booleans, or None.

    Returns:
        The final state, and the outputs `(time, ..., hidden_size)`, zero at padding.
    """
    final, (outputs, _, _) = _forward(recursion, gates, first, u, d, valid, keep=False)
    return final, outputs


def _forward(recursion: _Recursion, gates: Any, first: State, u: Any, d: Any, valid: Any, *, keep: bool) -> Any:
    enter, leave = recursion.enter, recursion.leave
    cell = recursion.cell(_blocks(recursion.spec.form, u), activate)
    d = enter(d)

    def advance(state: State, now: tuple[Gates, Any]) -> tuple[State, Any]:
        gates, valid = enter(now)
        new, kept = cell.step(d, state, gates)
        output: Any = new.h
        if valid is not None:
            new, output = jax.tree.map(partial(jnp.where, valid), new, state), jnp.where(valid, output, 0)
        return new, leave((output, *((new.c, kept) if keep else (None, None))))

    # One array a gate: see `multirnn_jax.apply._scan`.
    given = jnp.split(gates, len(recursion.spec.form.gates), axis=-1), valid
    final, steps = lax.scan(advance, enter(first), given, reverse=recursion.reverse)
    return leave(final), steps


def _keep(recursion: _Recursion, gates: Any, first: State, u: Any, d: Any, valid: Any) -> Any:
    final, (outputs, cells, kept) = _forward(recursion, gates, first, u, d, valid, keep=True)
    return (final, outputs), (outputs, cells, kept, first, u, d, valid)


def _pull_back(recursion: _Recursion, residuals: Any, cotangents: tuple[State, Any]) -> Any:
    outputs, cells, kept, first, u, d, valid = residuals
    form, enter, leave = recursion.spec.form, recursion.enter, recursion.leave
    after = State(outputs, cells)
    before = jax.tree.map(partial(_before, valid=valid, reverse=recursion.reverse), first, after)
    cell = recursion.cell([block.T for block in _blocks(form, u)], _slope)

    def retreat(gradient: State, now: Any) -> tuple[State, Any]:
        dy, kept, before, after, valid = enter(now)
        if valid is not None:
            dy = jnp.where(valid, dy, 0)
        new, dgates = cell.pull(kept, before, after, State(gradient.h + dy, gradient.c))
        if valid is not None:
            new, dgates = jax.tree.map(partial(jnp.where, valid), new, gradient), jnp.where(valid, dgates, 0)
        return new, leave(dgates)

    dfinal, dy = cotangents
    given = dy, kept, before, after, valid
    dfirst, dgates = lax.scan(retreat, enter(dfinal), given, reverse=not recursion.reverse)

    def preactivation(u: Any, d: Any) -> Any:
        blocks = [block.T for block in _blocks(form, u)]
        return CELLS[form].preactivation(before.h, kept, blocks, d)

    _, pull_weights = jax.vjp(preactivation, u, d)
    return dgates, leave(dfirst), *pull_weights(dgates), None


_recur.defvjp(_keep, _pull_back)


def _before(first: Any, after: Any, *, valid: Any, reverse: bool) -> Any:
    """The states before every step, of the one before the first and those after every step: `(time, ..., hidden_size)`."""
    if not reverse:
        return jnp.concatenate([first[None], after])[:-1]
    if valid is not None:
        # The step that a row begins with comes after its padding.
        after = jnp.where(valid, after, first[None])
    return jnp.concatenate([after, first[None]])[1:]


def _blocks(form: Cell, u: Any) -> list[Any]:
    """The matrices of the recurrent products, `(gates, hidden_size)` each; one unless the candidate's is apart."""
    return jnp.split(u, [2 * u.shape[-1]]) if form is GRU_RESET_BEFORE else [u]


# --- The cells: one step forward and back, by the equations of `multirnn.cells`. --------------------------------------


class _Cell:
    """A cell over arrays `(..., features)`, or over columns `(features, ...)`.

    Args:
        blocks: the matrices of the recurrent products; of `pull`, transposed.
        product: of a block and an array.
        axis: of the features.
        a, s: the activation and the recurrent activation; of `pull`, their slopes, by their values.
    """

    def __init__(self, blocks: list[Any], product: Callable[..., Any], axis: int, a: Activate, s: Activate) -> None:
        self.products = [partial(product, block) for block in blocks]
        self.split = partial(jnp.split, axis=axis)
        self.join = partial(jnp.concatenate, axis=axis)
        self.a, self.s = a, s

    def step(self, d: Any, state: State, x: Gates) -> tuple[State, tuple[Any, ...]]:
        """The new state, and what is kept for `pull`; x is the projected input, one array a gate."""
        raise NotImplementedError

    def pull(self, kept: Any, before: State, after: State, dy: State) -> tuple[State, Any]:
        """From the gradient of the state after a step to that of the state before it, and of the preactivations."""
        raise NotImplementedError

    @staticmethod
    def preactivation(h: Any, kept: Any, blocks: list[Any], d: Any) -> Any:
        """The part of all preactivations that is linear in the weights, of which it gives the gradients.

        Args:
            h: the states before the steps, `(time, ..., hidden_size)`.
            kept: what `step` kept of all steps.
            blocks: transposed.
            d: as in `step`.
        """
        return product(h, blocks[0])


class _SimpleRNN(_Cell):
    def step(self, d: Any, state: State, x: Gates) -> tuple[State, tuple[Any, ...]]:
        return State(self.a(x[0] + self.products[0](state.h))), ()

    def pull(self, kept: Any, before: State, after: State, dy: State) -> tuple[State, Any]:
        dx = dy.h * self.a(after.h)
        return State(self.products[0](dx)), dx


class _LSTM(_Cell):
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


class _GRUResetAfter(_Cell):
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


class _GRUResetBefore(_Cell):
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


CELLS: Mapping[Cell, type[_Cell]] = MappingProxyType(
    {SIMPLE_RNN: _SimpleRNN, LSTM: _LSTM, GRU_RESET_AFTER: _GRUResetAfter, GRU_RESET_BEFORE: _GRUResetBefore}
)


# --- The slopes of the activations, by their values. -------------------------------------------------------------------

SLOPES: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "elu": lambda y, alpha: jnp.where(y > 0, 1, y + alpha),
        "hard_sigmoid": lambda y, alpha, beta: jnp.where((y > 0) & (y < 1), y.dtype.type(alpha), 0),
        "linear": jnp.ones_like,
        "relu": lambda y: (y > 0).astype(y.dtype),
        "sigmoid": lambda y: y * (1 - y),
        "softsign": lambda y: (1 - jnp.abs(y)) ** 2,
        "tanh": lambda y: 1 - y * y,
    }
)


def _slope(value: str | Activation) -> Activate:
    activation = Activation.of(value)
    return partial(SLOPES[activation.name], **activation.parameters)
