"""`multirnn_jax.loop` by custom calls: the compiled recurrence on XLA's own buffers.

A stack is one custom call forward and one backward, on all of XLA's threads. JAX's transformations:

    * gradients are the compiled backward pass. It is differentiated by the rules of `multirnn_jax.loop`, so gradients of
      gradients and Hessian products work;
    * `vmap` over sequences makes their rows the rows of one call. Its gradients, wanted for each row, are those of
      `multirnn_jax.reverse`. Ensembles of weights are sequences of calls;
    * forward mode (`jax.jvp`, `jax.jacfwd`) is that of `multirnn_jax.loop`; its transpose is the compiled backward pass.

A custom call runs on one device; see `refuses`. `multirnn_jax.exporting` exports functions that contain it.

Array axes as in `multirnn_jax.loop`; `rows` are all batch axes as one.
"""

import os
from functools import cache, partial
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jax.custom_derivatives import SymbolicZero

from multirnn import Output, RecurrentSpec, State
from multirnn.kernel import CompiledRecurrence, xla
from multirnn_jax import loop, reverse
from multirnn_jax.loop import Params
from multirnn_jax.tangents import tangents_of

__all__ = ["apply", "cores", "library_refuses", "refuses", "target", "target_name"]


@cache
def refuses() -> str | None:
    """Why this process cannot call the compiled recurrence, in a sentence, or None."""
    if (platform := jax.default_backend()) != "cpu":
        return f"the compiled recurrence runs on a CPU, and arrays are on the {platform} here"
    if (devices := jax.device_count()) > 1:
        return f"a call of the compiled recurrence cannot be divided between the {devices} devices that JAX has here"
    return library_refuses()


def library_refuses() -> str | None:
    """Why there is no compiled recurrence for this JAX, in a sentence, or None."""
    return xla.refuses(Path(jax.ffi.include_dir(), "xla", "ffi", "api", "c_api.h"))


def apply(
    spec: RecurrentSpec, params: Params, x: jax.Array, state: State | None = None, lengths: jax.Array | None = None
) -> Output:
    """Run a stack; arguments, result and errors are those of `multirnn_jax.loop.apply`."""
    ends = loop.check(spec, params, x, state, lengths)
    *batch, time, _ = np.shape(x)
    rows = prod(batch)
    output, _ = _forward(
        _CustomCall(spec, cores()),
        False,
        {name: jnp.asarray(params[name]) for name in spec.shapes},
        jnp.reshape(x, (rows, time, spec.input_size)),
        None if state is None else _resized(state, rows),
        None if ends is None else ends.reshape(rows),
    )
    return Output(output.sequence.reshape(*batch, time, spec.output_size), _resized(output.state, *batch))


def cores() -> int:
    """The number of cores that this process may use; XLA has a thread for each."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _resized(state: State, *batch: int) -> State:
    """The state with these batch axes in place of its own."""
    return State._make(part if part is None else part.reshape(len(part), *batch, part.shape[-1]) for part in state)


class _CustomCall(NamedTuple):
    """The static part of a call."""

    spec: RecurrentSpec
    threads: int

    def forward(self, keep: bool, params: Any, x: Any, state: Any, lengths: Any) -> tuple[Output, Any]:
        """The output, and the stash for `backward`, opaque bytes, or None unless `keep`."""
        spec, (rows, time, _) = self.spec, x.shape
        like: Any = partial(jax.ShapeDtypeStruct, dtype=spec.dtype)
        first = like((len(list(spec.passes)), rows, spec.hidden_size))
        results = [like((rows, time, spec.output_size)), *[first] * len(spec.form.states)]
        if keep:
            results.append(like(_stash_shape(spec, rows, time), dtype=np.uint8))
        found = self._call("forward", results, params, x, state, lengths, stash=keep)
        stash = found.pop() if keep else None
        return Output(found[0], State(*found[1:])), stash

    def backward(
        self, of_x: bool, params: Any, x: Any, state: Any, lengths: Any, y: Any, stash: Any, cotangent: Output
    ) -> tuple[Any, Any, Any]:
        """The gradients of the parameters, of x (None unless `of_x`) and of the state (None if there is none)."""
        inputs = x if of_x else None, state, [params[name] for name in self.spec.shapes]
        like = partial(jax.ShapeDtypeStruct, dtype=self.spec.dtype)
        there, tree = jax.tree.flatten(jax.tree.map(lambda array: like(array.shape), inputs))
        more = [y, stash, *jax.tree.leaves(cotangent)]
        found = self._call("backward", there, params, x, state, lengths, more, stash=True, dx=of_x)
        dx, dstate, dparams = jax.tree.unflatten(tree, found)
        return dict(zip(self.spec.shapes, dparams, strict=True)), dx, dstate

    def _call(
        self,
        direction: str,
        results: Any,
        params: Any,
        x: Any,
        state: Any,
        lengths: Any,
        more: Any = (),
        *,
        stash: bool,
        dx: bool = False,
    ) -> list[Any]:
        # By name: JAX reorders the pytree alphabetically.
        parameters = [params[name] for name in self.spec.shapes]
        operands = [x, *jax.tree.leaves(state), *jax.tree.leaves(lengths), *parameters, *more]
        given: dict[str, bool] = {"state": state is not None, "lengths": lengths is not None}
        attributes = xla.attributes(self.spec, stash=stash, dx=dx, threads=self.threads, **given)
        call: Any = jax.ffi.ffi_call(target(direction, self.spec.dtype), results)
        return list(call(*operands, custom_call=attributes))


def _stash_shape(spec: RecurrentSpec, rows: Any, time: Any) -> tuple[Any, ...]:
    """The shape of the stash, an array of bytes; in `jax.export` sizes may be symbols."""
    compiled = CompiledRecurrence(spec)
    if isinstance(rows, int) and isinstance(time, int):
        return (compiled.stash_size(rows, time),)
    step, more = compiled.stash_bound()
    return rows * time + rows + more, step  # a product might not fit into 32 bits, in which JAX computes sizes


VERSION = 1
"""Of the custom calls: their operands, results and attributes, and `stash_bound`; exported programs contain them."""


def target_name(direction: str, dtype: str) -> str:
    """The name of a custom call."""
    return f"multirnn_{direction}_{dtype}_v{VERSION}"


@cache
def target(direction: str, dtype: str) -> str:
    """The name of a custom call, which is registered."""
    name = target_name(direction, dtype)
    ffi: Any = jax.ffi  # not typed
    ffi.register_ffi_target(name, ffi.pycapsule(xla.handler(direction, dtype)), platform="cpu")
    return name


# --- Rules of the function, then of its calls. --------------------------------------------------------------------------


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _forward(custom: _CustomCall, keep: bool, params: Any, x: Any, state: Any, lengths: Any) -> Any:
    """`_CustomCall.forward` with its rules."""
    spec = custom.spec

    @custom_vmap
    def forward(params: Any, x: Any, state: Any, lengths: Any) -> Any:
        return custom.forward(keep, params, x, state, lengths)

    @forward.def_vmap
    def each(size: int, batched: Any, params: Any, x: Any, state: Any, lengths: Any) -> Any:
        if any(jax.tree.leaves(batched[0])):
            return _one_by_one(lambda *call: forward(*call), size, batched, (params, x, state, lengths))
        x, state, lengths = _all_batched(size, batched[1:], (x, state, lengths))
        rows = x.shape[1]
        output, _ = _forward(
            custom,
            False,
            params,
            x.reshape(size * rows, *x.shape[2:]),
            None
            if state is None
            else _resized(jax.tree.map(lambda part: jnp.moveaxis(part, 0, 1), state), size * rows),
            None if lengths is None else lengths.reshape(size * rows),
        )
        last = jax.tree.map(lambda part: jnp.moveaxis(part, 1, 0), _resized(output.state, size, rows))
        found = Output(output.sequence.reshape(size, rows, *output.sequence.shape[1:]), last)
        # The stash of all rows cannot be divided, and `_backward` does not use it under `vmap`.
        stash = jnp.zeros(_stash_shape(spec, rows, x.shape[2]), np.uint8) if keep else None
        return (found, stash), jax.tree.map(lambda part: part.dtype != np.uint8, (found, stash))

    return forward(params, x, state, lengths)


class _Derivative(NamedTuple):
    """The rule of `_forward`, which keeps its arguments, y and the stash; see `multirnn_jax.tangents.TangentRule`."""

    custom: _CustomCall

    def push(self, kept: Any, tangents: list[Any]) -> Any:
        params, x, state, lengths, _, _ = kept
        arrays, tree = jax.tree.flatten((params, x, state))
        moving = [place for place, tangent in enumerate(tangents) if tangent is not None]

        def run(*moved: Any) -> Output:
            given = dict(zip(moving, moved, strict=True))
            now = [given.get(place, array) for place, array in enumerate(arrays)]
            params, x, state = jax.tree.unflatten(tree, now)
            return loop.apply(self.custom.spec, params, x, state, lengths)

        primals, along = (tuple(of[place] for place in moving) for of in (arrays, tangents))
        return jax.jvp(run, primals, along)[1]

    def pull(self, kept: Any, cotangents: Output, asked: tuple[bool, ...]) -> list[Any]:
        # In training x is data, and its gradient, as large a product as that of the input weights, is not needed.
        of_x = asked[len(self.custom.spec.shapes)]
        dparams, dx, dstate = _backward(self.custom, of_x, *kept, cotangents)
        return [*jax.tree.leaves(dparams), dx, *jax.tree.leaves(dstate)]


@partial(_forward.defjvp, symbolic_zeros=True)
def _push_forward(custom: _CustomCall, keep: bool, primals: Any, tangents: Any) -> Any:
    output, stash = _forward(custom, True, *primals)
    kept = *primals, output.sequence, stash
    along = tangents_of(output, _Derivative(custom), kept, tangents[:3])
    zero: Any = SymbolicZero  # not typed
    return (output, stash if keep else None), (along, zero.from_primal_value(stash) if keep else None)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _backward(
    custom: _CustomCall,
    of_x: bool,
    params: Any,
    x: Any,
    state: Any,
    lengths: Any,
    y: Any,
    stash: Any,
    cotangent: Output,
) -> Any:
    """`_CustomCall.backward` with its rules; y and the stash are functions of the rest."""

    @custom_vmap
    def backward(params: Any, x: Any, state: Any, lengths: Any, y: Any, stash: Any, cotangent: Output) -> Any:
        return custom.backward(of_x, params, x, state, lengths, y, stash, cotangent)

    @backward.def_vmap
    def each(size: int, batched: Any, *arguments: Any) -> Any:
        axes = jax.tree.map(lambda is_batched: 0 if is_batched else None, batched)
        rule = partial(_gradients, reverse.apply, custom.spec, of_x)
        found = jax.vmap(rule, in_axes=tuple(axes), axis_size=size)(*arguments)
        return found, jax.tree.map(lambda _: True, found)

    return backward(params, x, state, lengths, y, stash, cotangent)


@_backward.defjvp
def _push_back(custom: _CustomCall, of_x: bool, primals: Any, tangents: Any) -> Any:
    params, x, state, lengths, y, stash, cotangent = primals
    dparams, dx, dstate, _, _, _, dcotangent = tangents

    def gradients(params: Any, x: Any, state: Any, cotangent: Output) -> Any:
        return _gradients(loop.apply, custom.spec, of_x, params, x, state, lengths, y, stash, cotangent)

    _, along = jax.jvp(gradients, (params, x, state, cotangent), (dparams, dx, dstate, dcotangent))
    return _backward(custom, of_x, *primals), along


def _gradients(
    function: Any,
    spec: RecurrentSpec,
    of_x: bool,
    params: Any,
    x: Any,
    state: Any,
    lengths: Any,
    y: Any,
    stash: Any,
    cotangent: Any,
) -> Any:
    """As `_CustomCall.backward`, by the reverse rule of `apply` or of `reverse.apply`."""
    _, pull_back = jax.vjp(lambda *inputs: function(spec, *inputs, lengths), params, x, state)
    dparams, dx, dstate = pull_back(cotangent)
    return dparams, dx if of_x else None, dstate


def _one_by_one(function: Any, size: int, batched: Any, arguments: Any) -> Any:
    """`function` at each index of the new axis, and that all results have this axis."""

    def at(place: Any) -> Any:
        return function(*jax.tree.map(lambda array, has: array[place] if has else array, arguments, tuple(batched)))

    found = lax.map(at, jnp.arange(size))
    return found, jax.tree.map(lambda _: True, found)


def _all_batched(size: int, batched: Any, arguments: Any) -> Any:
    """All arguments with the new axis in front."""

    def spread(array: Any, has: bool) -> Any:
        return array if has else jnp.broadcast_to(array, (size, *array.shape))

    return jax.tree.map(spread, arguments, tuple(batched))
