"""The same function as `multirnn_jax.loop`, with a reverse rule written by hand.

Left to itself, JAX differentiates a scan into a scan that adds a product to the gradient of `weight_hh` at every step: T
times the memory of the weights is read and written. Here the reverse scan does only what depends on the step after, and
emits the gradients of the preactivations; the gradients of the weights, of the biases and of the input are then single
products over all time.

The forward pass keeps the states and the activated gates, and for the reset-after GRU the recurrent part of its
candidate. The derivative of every activation of a spec is a function of its value, so nothing else is needed.

The rule is made of JAX's own operations, so it is differentiable itself: gradients of gradients and products with the
Hessian work, under `jit`, `vmap`, `shard_map` and for sharded arrays. Forward mode is its transpose; see
`multirnn_jax.tangents`.
"""

from functools import partial
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from multirnn import Output, RecurrentSpec, State
from multirnn_jax.activations import SLOPES
from multirnn_jax.cells import CELLS, blocks_of
from multirnn_jax.loop import Params, Scan, stack
from multirnn_jax.tangents import tangents_of

__all__ = ["apply", "in_columns"]

LARGE = 2**19
"""Elements of `weight_hh` (2 MB in float32) from which the recursion runs on columns; see `in_columns`."""


def apply(
    spec: RecurrentSpec, params: Params, x: jax.Array, state: State | None = None, lengths: jax.Array | None = None
) -> Output:
    """Run the stack that `spec` describes; arguments, result and errors are those of `multirnn_jax.loop.apply`."""
    return stack(_scan, spec, params, x, state, lengths)


def _scan(scan: Scan, gates: Any, first: State, u: Any, d: Any, valid: Any) -> tuple[State, Any]:
    # Inside `jax.shard_map` a `custom_vjp` demands that the gradient of a weight varies over the devices as the weight
    # does. With this zero the weight varies as the input does; the gradients of the devices are then added by JAX.
    zero: Any = lax.stop_gradient(jnp.sum(gates[:0]))
    d = jnp.broadcast_to(d + zero, (*[1] * (gates.ndim - 2), scan.spec.hidden_size))
    columns = in_columns(scan.spec, prod(gates.shape[1:-1]))
    return _recur(scan._replace(columns=columns), gates, first, u + zero, d, valid)


def in_columns(spec: RecurrentSpec, batch: int) -> bool:
    """Whether the state is kept as columns, `(hidden_size, batch)`, and multiplied by `weight_hh` from the left.

    At every step XLA's CPU kernels copy the right factor of a product into tiles. On rows that factor is the weights,
    on columns the state, which is transposed on its way into and out of the loop's body. Measured, time of a call on
    rows over that on columns: 1.5 to 2.5 with 2**20 elements of weights or more, 0.8 to 1.2 with 2**18, 0.9 below; with
    a batch of 1, where nothing is transposed, 1.0 to 1.3 from 64 units and 0.9 with 32.
    """
    if batch == 1:
        return spec.hidden_size >= 64
    return len(spec.form.gates) * spec.hidden_size**2 >= LARGE


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _recur(scan: Scan, gates: Any, first: State, u: Any, d: Any, valid: Any) -> tuple[State, Any]:
    final, outputs = scan.forward(gates, first, u, d, valid)
    return final, outputs


@partial(_recur.defjvp, symbolic_zeros=True)
def _push(scan: Scan, primals: Any, tangents: Any) -> Any:
    gates, first, u, d, valid = primals
    final, outputs, cells, kept = scan.forward(gates, first, u, d, valid, keep=True)
    output = final, outputs
    residuals = outputs, cells, kept, first, u, d, valid
    return output, tangents_of(output, _Derivative(scan), residuals, tangents[:4])


class _Derivative(NamedTuple):
    """The rule of `_recur`; see `multirnn_jax.tangents.TangentRule`. The rule written by hand is linear, so JAX transposes it."""

    scan: Scan

    def push(self, kept: Any, tangents: list[Any]) -> Any:
        asked = tuple(tangent is not None for tangent in tangents)

        def pull(cotangents: Any) -> list[Any]:
            return _chosen(self.pull(kept, cotangents, asked), asked)

        outputs, _, _, first, *_ = kept
        return jax.linear_transpose(pull, (first, outputs))(_chosen(tangents, asked))[0]

    def pull(self, kept: Any, cotangents: Any, asked: tuple[bool, ...]) -> list[Any]:
        return jax.tree.leaves(_pull_back(self.scan, kept, cotangents))


def _chosen(arrays: list[Any], asked: tuple[bool, ...]) -> list[Any]:
    return [array for array, is_asked in zip(arrays, asked, strict=True) if is_asked]


def _pull_back(scan: Scan, residuals: Any, cotangents: tuple[State, Any]) -> Any:
    outputs, cells, kept, first, u, d, valid = residuals
    form, enter, leave = scan.spec.form, scan.enter, scan.leave
    after = State(outputs, cells)
    before = jax.tree.map(partial(_before, valid=valid, reverse=scan.reverse), first, after)
    cell = scan.cell([block.T for block in blocks_of(form, u)], SLOPES)

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
    dfirst, dgates = lax.scan(retreat, enter(dfinal), given, reverse=not scan.reverse)

    def preactivation(u: Any, d: Any) -> Any:
        return CELLS[form].preactivation(before.h, kept, [block.T for block in blocks_of(form, u)], d)

    _, pull_weights = jax.vjp(preactivation, u, d)
    return dgates, leave(dfirst), *pull_weights(dgates)


def _before(first: Any, after: Any, *, valid: Any, reverse: bool) -> Any:
    """The states before all steps, `(time, ..., hidden_size)`, from the first one and those after the steps."""
    if not reverse:
        return jnp.concatenate([first[None], after])[:-1]
    if valid is not None:
        # The step that a row begins with comes after its padding.
        after = jnp.where(valid, after, first[None])
    return jnp.concatenate([after, first[None]])[1:]
