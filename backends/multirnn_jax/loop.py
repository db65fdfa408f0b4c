"""The stack as one pure function of its parameters: `lax.scan` over time, layer upon layer.

Invariants:
    * It is pure and uses JAX's own operations only: `jit`, `vmap`, `grad`, `jacrev`, `jacfwd`, `checkpoint`,
      `shard_map` and sharded arrays work, in any order.
    * Values at padding, NaN too, reach neither the outputs nor a gradient: x is replaced by zero there before the cell
      sees it, the state is frozen, the outputs are zero. With right padding a reversed scan thus begins at the last
      valid step.
    * The scan holds only what depends on the state: one matrix product a layer and direction projects the whole
      sequence and adds every bias that can be folded.

Array axes: a sequence is `(..., time, features)` outside, `(time, ..., features)` inside; `...` are the batch axes, as
many as x has, or none.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.export  # not an attribute of `jax` before it is imported
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import min_dim

from multirnn import InvalidCall, Output, RecurrentSpec, State
from multirnn.arrays import as_array
from multirnn.cells import Cell
from multirnn.errors import kind_of
from multirnn_jax.activations import ACTIVATIONS, activation
from multirnn_jax.cells import CELLS, CellStep, Gates, blocks_of, product

__all__ = ["Params", "Recurrence", "Scan", "apply", "check", "check_params", "stack"]

Params = Mapping[str, jax.Array]


@dataclass(eq=False)
class Recurrence:
    """A stack in JAX: a pure function and a pytree of parameters.

    Attributes:
        spec: what it computes.
        params: the pytree, a flat dictionary with the names and shapes of `spec.shapes`; assign to it after training.
        apply: `apply(params, x, state=None, lengths=None) -> Output`: `multirnn_jax.loop.apply` of the spec. It is
            always the same object, so that `jax.jit(native.apply)` compiles a shape once.
    """

    spec: RecurrentSpec
    params: Params = field(repr=False)
    apply: Callable[..., Output] = field(init=False, repr=False)
    _made: Any = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        self.bind(apply)

    def bind(self, function: Callable[..., Output]) -> None:
        """Make `apply` this function of the spec."""
        self.apply = partial(function, self.spec)
        self._made = self.spec, self.apply

    @property
    def as_made(self) -> bool:
        """Whether neither `spec` nor `apply` was replaced, so that `apply` is known to compute the spec."""
        made = self._made
        return made is not None and made[0] is self.spec and made[1] is self.apply


def apply(
    spec: RecurrentSpec, params: Params, x: jax.Array, state: State | None = None, lengths: jax.Array | None = None
) -> Output:
    """Run the stack that `spec` describes.

    Args:
        spec: static under `jit`.
        params: by name, with the shapes and dtype of `spec.shapes` and `spec.dtype`.
        x: `(batch, time, input_size)`, or `(time, input_size)` unbatched; further batch axes may lead. Any axis may be
            empty.
        state: the initial state, `(num_layers * directions, batch, hidden_size)` each; zero unless given.
        lengths: `(batch,)` integers, right padding; every row is full unless given. Their values may be traced and are
            not checked: more than `time` counts as full, less than zero as empty.

    Returns:
        The sequence `(batch, time, directions * hidden_size)`, zero at padding, and the final state, as JAX arrays. An
        unbatched call has no batch axis anywhere.

    Raises:
        InvalidCall: a name, shape or dtype is not the spec's, or the spec is of float64 and JAX is not in its 64-bit
            mode, where it would compute in float32.
    """
    return stack(lambda scan, *arguments: scan.forward(*arguments)[:2], spec, params, x, state, lengths)


def stack(
    run: Callable[..., tuple[State, Any]], spec: RecurrentSpec, params: Params, x: Any, state: Any, lengths: Any
) -> Output:
    """`apply`, with `run(scan, gates, first, u, d, valid)` in place of `Scan.forward`, for each layer and direction."""
    rows = check(spec, params, x, state, lengths)
    sequence = jnp.moveaxis(x, -2, 0)
    valid = None
    if rows is not None:
        steps = jnp.arange(sequence.shape[0], dtype=rows.dtype).reshape(-1, *[1] * rows.ndim)
        valid = (steps < rows[None])[..., None]
        sequence = jnp.where(valid, sequence, jnp.zeros((), sequence.dtype))
    finals: list[State] = []
    for layer in range(spec.num_layers):
        outputs = []
        for direction in spec.directions:
            prefix = f"layers.{layer}.{direction}."
            weights = {name.removeprefix(prefix): array for name, array in params.items() if name.startswith(prefix)}
            bias, d = _biases(spec.form, weights.get("bias_ih"), weights.get("bias_hh"))
            projected = product(sequence, weights["weight_ih"].reshape(-1, sequence.shape[-1]).T)
            gates = projected + _spread(bias, projected.ndim)
            # The sum over no step is zero, and sharded over devices as the inputs are. `lax.scan` demands that of the
            # initial state; `jnp.zeros` is not, nor is a state that every device has whole.
            zero: Any = jnp.sum(gates[:0, ..., : spec.hidden_size], axis=0)
            first = State(*[zero] * len(spec.form.states))
            if state is not None:
                first = jax.tree.map(jnp.add, first, jax.tree.map(itemgetter(len(finals)), state))
            u = weights["weight_hh"].reshape(-1, spec.hidden_size)
            scan = Scan(spec, direction == "backward")
            final, output = run(scan, gates, first, u, _spread(d, projected.ndim - 1), valid)
            finals.append(final)
            outputs.append(output)
        sequence = jnp.concatenate(outputs, axis=-1)
    batch_major: Any = jnp.moveaxis(sequence, 0, -2)
    return Output(batch_major, jax.tree.map(lambda *parts: jnp.stack(parts), *finals))


class Scan(NamedTuple):
    """The static part of the recursion of a layer in one direction."""

    spec: RecurrentSpec
    reverse: bool
    columns: bool = False  # whether the arrays of a step are `(features, ...)`, and not `(..., features)`

    def forward(self, gates: Any, first: State, u: Any, d: Any, valid: Any, keep: bool = False) -> tuple[Any, ...]:
        """Run over projected inputs, `gates` `(time, ..., gates * hidden_size)`, from the state `first`.

        `u` is weight_hh, `d` the recurrent bias of a candidate with axes of size 1, and `valid` `(time, ..., 1)` booleans
        or None. Returns the final state; the outputs `(time, ..., hidden_size)`, zero at padding; and with `keep` the
        cell states and what `CellStep.step` kept, of all steps, for the backward pass.
        """
        cell = self.cell(blocks_of(self.spec.form, u), ACTIVATIONS)
        d = self.enter(d)

        def advance(state: State, now: tuple[Gates, Any]) -> tuple[State, Any]:
            gates, valid = self.enter(now)
            new, kept = cell.step(d, state, gates)
            output: Any = new.h
            if valid is not None:
                new, output = jax.tree.map(partial(jnp.where, valid), new, state), jnp.where(valid, output, 0)
            return new, self.leave((output, *((new.c, kept) if keep else ())))

        # One array a gate. Given one array for all, XLA's CPU compiler slices the gates inside the loop's kernel, which
        # it then leaves unvectorised: 1.3 to 2 times the time of a call of an LSTM or a GRU of batch 32.
        given = jnp.split(gates, len(self.spec.form.gates), axis=-1), valid
        final, steps = lax.scan(advance, self.enter(first), given, reverse=self.reverse)
        return self.leave(final), *steps

    def enter(self, tree: Any) -> Any:
        """Arrays `(..., features)` in the layout of a step."""
        return jax.tree.map(lambda array: jnp.moveaxis(array, -1, 0), tree) if self.columns else tree

    def leave(self, tree: Any) -> Any:
        """The inverse of `enter`."""
        return jax.tree.map(lambda array: jnp.moveaxis(array, 0, -1), tree) if self.columns else tree

    def cell(self, blocks: list[Any], table: Mapping[str, Callable[..., Any]]) -> CellStep:
        """The cell in this layout, with its activations from `ACTIVATIONS` or `SLOPES`."""
        both = activation(table, self.spec.activation), activation(table, self.spec.recurrent_activation)
        kind = CELLS[self.spec.form]
        if self.columns:
            return kind(blocks, partial(jnp.tensordot, axes=1, precision=lax.Precision.HIGHEST), 0, *both)
        return kind([block.T for block in blocks], lambda w, h: product(h, w), -1, *both)


def _biases(form: Cell, bias_ih: Any, bias_hh: Any) -> tuple[Any, Any]:
    """The bias of the projection, `(gates * hidden_size,)`, and that of the recurrent product; zero where absent."""
    if bias_ih is None:
        return 0, 0
    if bias_hh is None:
        return bias_ih.reshape(-1), 0
    if not form.recurrent_candidate_bias:
        return (bias_ih + bias_hh).reshape(-1), 0
    folded = len(bias_hh) - 1  # all but the candidate's, which is the last and, with bias="single", the only one
    return jnp.concatenate([bias_ih[:folded] + bias_hh[:folded], bias_ih[folded:]]).reshape(-1), bias_hh[-1]


def _spread(bias: Any, axes: int) -> Any:
    """A bias `(n,)` with so many axes: JAX may be set to refuse implicit rank promotion."""
    return bias if np.ndim(bias) == 0 else bias.reshape(*[1] * (axes - 1), -1)


# --- The checks, made while tracing: a compiled call pays nothing for them. ------------------------------------------


def check(spec: RecurrentSpec, params: Params, x: Any, state: State | None, lengths: Any) -> Any:
    """Raise the errors of `apply`; the lengths, int32 from 0 to `time`, or None."""
    if jax.dtypes.canonicalize_dtype(spec.dtype) != spec.dtype:
        raise InvalidCall(
            f"a {spec.dtype} stack needs JAX's 64-bit mode, without which it would compute in float32: "
            "call apply, and what jit or grad made of it, inside `with jax.enable_x64(True):`"
        )
    check_params(spec, params)
    _check_type("x", x, spec.dtype)
    if np.ndim(x) < 2 or np.shape(x)[-1] != spec.input_size:
        raise InvalidCall(
            f"x must have the shape (batch, time, {spec.input_size}), or (time, {spec.input_size}) unbatched, "
            f"not {np.shape(x)}"
        )
    _check_array("x", x, np.shape(x), spec.dtype)
    *batch, time, _ = np.shape(x)
    if state is not None:
        if not isinstance(state, State) or (state.c is not None) != ("c" in spec.form.states):
            raise InvalidCall(f"state of a {spec.cell} must be multirnn.State({', '.join(spec.form.states)})")
        for name, array in zip(spec.form.states, state, strict=False):
            shape = (spec.num_layers * len(spec.directions), *batch, spec.hidden_size)
            _check_array(f"state.{name}", array, shape, spec.dtype)
    return None if lengths is None else _checked_lengths(lengths, tuple(batch), time)


def check_params(spec: RecurrentSpec, params: Params) -> None:
    """Raise the errors of `apply` about parameters, before `jit` casts them."""
    if not isinstance(params, Mapping):
        raise InvalidCall(f"params must be a dictionary of arrays by name, not {type(params).__name__}")
    if set(params) != set(spec.shapes):
        raise InvalidCall(f"params must have the names {', '.join(spec.shapes)}, not {', '.join(map(str, params))}")
    for name, shape in spec.shapes.items():
        _check_array(f"params[{name!r}]", params[name], shape, spec.dtype)


def _checked_lengths(lengths: Any, batch: tuple[int, ...], time: int) -> Any:
    # NumPy's are read before JAX, without its 64-bit mode, cuts off their upper half.
    if not isinstance(lengths, jax.Array):
        lengths = as_array("lengths", lengths, of="integers")
    if lengths.shape != batch:
        raise InvalidCall(f"lengths must have the shape {batch}, one integer a row of x, not {lengths.shape}")
    if not lengths.size:
        return jnp.zeros(batch, jnp.int32)
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise InvalidCall(f"lengths must be integers, not {lengths.dtype}")
    # `time` is cast to the dtype of the lengths: 130 as an int8 is -126.
    most = min_dim(time, int(jnp.iinfo(lengths.dtype).max))  # type: ignore[no-untyped-call]
    clip: Any = jnp.clip if isinstance(lengths, jax.Array) or not isinstance(time, int) else np.clip
    return jnp.asarray(clip(lengths, 0, most).astype(np.int32))


def _check_array(name: str, array: Any, shape: tuple[int, ...], dtype: str) -> None:
    _check_type(name, array, dtype)
    if np.shape(array) != shape:
        raise InvalidCall(f"{name} must have the shape {shape}, not {np.shape(array)}")
    if array.dtype != dtype:
        raise InvalidCall(f"{name} must be an array of {dtype}, not {array.dtype}")


def _check_type(name: str, array: Any, dtype: str) -> None:
    if not hasattr(array, "dtype") or isinstance(array, np.ma.MaskedArray):
        raise InvalidCall(f"{name} must be an array of {dtype}, not {kind_of(array)}")


for record in (State, Output):  # `jax.export` cannot serialise a function that takes or returns them otherwise
    jax.export.register_namedtuple_serialization(record, serialized_name=f"multirnn.{record.__name__}")
