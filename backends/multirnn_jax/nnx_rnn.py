"""`flax.nnx.RNN` over a cell that a spec describes, run by the fast function of `multirnn_jax.fast`.

The only file that imports Flax; `multirnn_jax.replacement` loads it for a user's Flax module.

Source: `flax/nnx/nn/recurrent.py`. What Flax does with `seq_lengths` is reproduced: outputs go on at padding, the final carry
is that of the last valid step, `reverse` flips each row within its length. A call that Flax would run in other dtypes, or
with arrays of shapes that no spec has, is Flax's own.
"""

from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from flax.nnx.nn.recurrent import flip_sequences
from jax import lax

from multirnn import RecurrentSpec, State
from multirnn.errors import an
from multirnn.spec import DTYPES
from multirnn_jax import fast
from multirnn_jax.loop import Params

__all__ = ["FastRNN", "refuses"]

ACTIVATIONS: Mapping[Callable[..., Any], str] = MappingProxyType(
    {
        jnp.tanh: "tanh",
        lax.tanh: "tanh",
        jax.nn.sigmoid: "sigmoid",
        lax.logistic: "sigmoid",
        jax.nn.relu: "relu",
        jax.nn.elu: "elu",
        jax.nn.soft_sign: "softsign",
        jax.nn.identity: "linear",
    }
)
"""Not `jax.nn.hard_sigmoid`, whose derivative where it meets its bounds is half the slope, and here zero."""

GATES = "ii", "if_", "ig", "io"


class FastRNN(nnx.RNN):
    """An `nnx.RNN` that runs fast: the same arguments, results, parameters and random numbers.

    `mr.replace_layers` makes it out of an `nnx.RNN` and back. `unroll` has no effect.
    """

    def __call__(
        self,
        inputs: Any,
        *,
        initial_carry: Any = None,
        seq_lengths: Any = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        rngs: Any = None,
    ) -> Any:
        """See `flax.nnx.RNN.__call__`."""
        return_carry = self.return_carry if return_carry is None else return_carry
        time_major = self.time_major if time_major is None else time_major
        reverse = self.reverse if reverse is None else reverse
        keep_order = self.keep_order if keep_order is None else keep_order
        spec = _spec(self)
        carry, cell = initial_carry, cast("Any", self.cell)
        if isinstance(spec, RecurrentSpec) and _fits(spec, inputs, seq_lengths):
            x = jnp.moveaxis(inputs, 0, -2) if time_major else jnp.asarray(inputs)
            if carry is None:
                carry, rngs = self._first_carry(x, rngs), None
            zero = initial_carry is None and cell.carry_init is None
            params = _parameters(cell, spec)
            state = None if zero else _state(spec, carry, x.shape[:-2])
            if params is not None and (zero or state is not None):
                found = _run(spec, params, x, state, seq_lengths, return_carry, reverse, keep_order)
                outputs = jnp.moveaxis(found[1], -2, 0) if time_major else found[1]
                return (found[0], outputs) if return_carry else outputs
        return super().__call__(
            inputs,
            initial_carry=carry,
            seq_lengths=seq_lengths,
            return_carry=return_carry,
            time_major=time_major,
            reverse=reverse,
            keep_order=keep_order,
            rngs=rngs,
        )

    def _first_carry(self, x: Any, rngs: Any) -> Any:
        # Even where it is zero, since it counts the random numbers that were drawn.
        rngs = self.rngs if rngs is None else rngs
        if isinstance(rngs, nnx.Rngs):
            rngs = rngs.carry.fork()
        return self.cell.initialize_carry((*x.shape[:-2], x.shape[-1]), rngs)


def _run(
    spec: RecurrentSpec,
    params: Params,
    x: Any,
    state: State | None,
    seq_lengths: Any,
    return_carry: bool,
    reverse: bool,
    keep_order: bool,
) -> tuple[Any, Any]:
    """The final carry, if it is asked for, and the outputs, batch-major."""

    def flipped(sequence: Any) -> Any:
        return flip_sequences(sequence, seq_lengths, num_batch_dims=x.ndim - 2, time_major=False)

    given = flipped(x) if reverse else x
    output = fast.apply(spec, params, given, state)
    outputs = flipped(output.sequence) if reverse and keep_order else output.sequence
    if not return_carry:
        return None, outputs
    h, c = output.state.h[0], None if output.state.c is None else output.state.c[0]
    if seq_lengths is not None:
        # An index from behind for a length of 0, and the nearest step beyond the ends, as JAX reads an index.
        time, last = x.shape[-2], jnp.asarray(seq_lengths - 1).astype(jnp.int32)
        last = jnp.clip(jnp.where(last < 0, last + time, last), 0, time - 1)
        h = output.sequence[jnp.arange(len(last)), last]
        if c is not None:
            # The outputs go on at padding and the state is frozen: two calls. XLA omits this one where nothing uses c.
            frozen: Any = fast.apply(spec, params, given, state, last + 1).state.c
            c = frozen[0]
    return h if c is None else (c, h), outputs


# --- What a layer computes, in terms of a spec -----------------------------------------------------------------------


def refuses(layer: nnx.RNN) -> str | None:
    """None: it can be a `FastRNN`. A string: why not, as a sentence."""
    if type(layer) is not nnx.RNN:
        return "its class derives from nnx.RNN, and may compute something else"
    found = _spec(layer)
    return found if isinstance(found, str) else None


def _spec(layer: nnx.RNN) -> RecurrentSpec | str:
    """The spec of a layer's cell as it is now, or why there is none."""
    cell: Any = layer.cell
    if type(cell) not in CELLS:
        known = ", ".join(kind.__name__ for kind in CELLS)
        return f"its cell is {an(type(cell).__qualname__)}; only those of Flax itself are made fast: {known}"
    if "initialize_carry" in vars(cell):
        return "its cell has its own initialize_carry in place of its class's"
    if layer.state_axes != nnx.StateAxes(cast("Any", {...: nnx.Carry})) or layer.broadcast_rngs is not None:
        return "it has state_axes or broadcast_rngs of its own, which nothing but Flax's loop over time follows"
    if getattr(cell, "residual", False):
        return "its cell adds the state to the next one (residual=True), which no spec does"
    name, linears = CELLS[type(cell)]
    for linear, bias in ((getattr(cell, part), bias) for parts, bias in linears for part in parts):
        if reason := _unusual(linear, bias):
            return reason
    dtypes = {jnp.dtype(each).name for each in (cell.param_dtype, cell.dtype) if each is not None}
    if len(dtypes) > 1 or not dtypes <= set(DTYPES):
        return f"it has and computes in {' and '.join(sorted(dtypes))}; {' or '.join(DTYPES)} alone is made fast"
    activations = {}
    for function, kind in (("activation_fn", "activation"), ("gate_fn", "recurrent_activation")):
        if (given := getattr(cell, function, None)) is None:
            continue
        if (named := _activation(given)) is None:
            return (
                f"its {function} is {getattr(given, '__name__', type(given).__name__)}, which no spec has as JAX does"
            )
        activations[kind] = named
    (dtype,) = dtypes
    sizes = cell.in_features, cell.hidden_features
    return RecurrentSpec(name, *sizes, bias="single", dtype=cast("Any", dtype), **cast("Any", activations))


@cache
def _activation(function: Any) -> str | None:
    if function in ACTIVATIONS:
        return ACTIVATIONS[function]
    if type(function) is not type(jnp.tanh) or hasattr(function, "__wrapped__"):
        return None
    # `copy.deepcopy` of a Flax module copies JAX's compiled functions too, which then have no name.
    traced = str(jax.make_jaxpr(function)(0.0))
    known = (each for each in ACTIVATIONS if type(each) is type(function))
    return next((ACTIVATIONS[each] for each in known if str(jax.make_jaxpr(each)(0.0)) == traced), None)


def _unusual(linear: Any, bias: bool) -> str | None:
    """None, or why a product of a cell is not `x @ kernel + bias`."""
    if type(linear) is not nnx.Linear:
        return f"a product of its cell is {an(type(linear).__qualname__)}, not an nnx.Linear"
    if linear.promote_dtype is not promote_dtype or linear.preferred_element_type or linear.precision:
        return "a product of its cell has a promote_dtype, preferred_element_type or precision of its own"
    if linear.dot_general is not lax.dot_general:
        return "a product of its cell has a dot_general of its own"
    return "a bias of its cell was taken away or added" if (linear.bias is not None) != bias else None


CELLS: Mapping[type, tuple[Any, tuple[tuple[tuple[str, ...], bool], ...]]] = MappingProxyType(
    {
        nnx.SimpleCell: ("simple_rnn", ((("dense_i",), True), (("dense_h",), False))),
        nnx.LSTMCell: ("lstm", ((("ii", "if_", "ig", "io"), False), (("hi", "hf", "hg", "ho"), True))),
        nnx.OptimizedLSTMCell: ("lstm", ((("dense_i",), False), (("dense_h",), True))),
        nnx.GRUCell: ("gru", ((("dense_i",), True), (("dense_h",), False))),
    }
)
"""The cell of a spec, and the products of input and state, each with whether it adds the bias; see `FLAX_NNX` in
`multirnn.conventions`, and `google/flax#5594` for the GRU, which has no recurrent bias."""


def _parameters(cell: Any, spec: RecurrentSpec) -> Params | None:
    """The parameters as the spec has them, in JAX's own operations; None if they have other shapes or dtypes."""
    gates, hidden = len(spec.form.gates), spec.hidden_size
    found = {}
    sources = ("weight_ih", spec.input_size), ("weight_hh", hidden)
    for (parts, has_bias), (name, features) in zip(CELLS[type(cell)][1], sources, strict=True):
        linears = [getattr(cell, part) for part in parts]
        kernels = [linear.kernel[...] for linear in linears]
        biases = [linear.bias[...] for linear in linears] if has_bias else []
        width = gates * hidden // len(parts)
        if any(kernel.shape != (features, width) for kernel in kernels) or any(b.shape != (width,) for b in biases):
            return None
        if any(array.dtype != spec.dtype for array in (*kernels, *biases)):
            return None
        kernel = jnp.concatenate([kernel.T for kernel in kernels])
        found[f"layers.0.forward.{name}"] = kernel.reshape(gates, hidden, features)
        if has_bias:
            found["layers.0.forward.bias_ih"] = jnp.concatenate(biases).reshape(gates, hidden)
    if spec.cell == "gru":
        found["layers.0.forward.bias_hh"] = jnp.zeros((1, hidden), spec.dtype)
    return found


# --- Whether a call is one of the spec -------------------------------------------------------------------------------


def _fits(spec: RecurrentSpec, inputs: Any, seq_lengths: Any) -> bool:
    """Whether Flax would run a call with arrays of the spec; what it makes of others is left to it."""
    shape = jnp.shape(inputs)
    if len(shape) < 2 or shape[-1] != spec.input_size or 0 in shape or jnp.result_type(inputs) != spec.dtype:
        return False
    if seq_lengths is None:
        return True
    return (
        len(shape) == 3
        and hasattr(seq_lengths, "dtype")
        and jnp.ndim(seq_lengths) == 1
        and jnp.issubdtype(seq_lengths.dtype, jnp.integer)
    )


def _state(spec: RecurrentSpec, carry: Any, batch: tuple[Any, ...]) -> State | None:
    """A carry as a state; None if it is not one of the spec."""
    parts = [carry] if len(spec.form.states) == 1 else carry
    if not isinstance(parts, list | tuple) or len(parts) != len(spec.form.states):
        return None
    shape = *batch, spec.hidden_size
    for part in parts:
        if not hasattr(part, "dtype") or part.shape != shape or jnp.result_type(part) != spec.dtype:
            return None
    found: Any = [jnp.asarray(part)[None] for part in reversed(parts)]
    return State(*found)
