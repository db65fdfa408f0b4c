"""The stack as one pure function of its parameters: cells, `lax.scan` over time, layer upon layer.

What it has to keep:
    * pure, and built of JAX's own operations only: `jit`, `vmap`, `grad`, `jacrev`, `jacfwd`, `checkpoint`, `shard_map`
      and arrays that are sharded over devices work, in any order;
    * what stands at padding, NaN too, reaches neither the outputs nor a gradient: x is replaced by zero there before
      the cell sees it, the state is frozen, the outputs are zero. With right padding a reversed scan then begins at
      the last valid step by itself;
    * everything that does not depend on the state stands outside the scan: one matrix product a layer and direction
      projects the whole sequence, and every bias that may be folded is in it.

Array axes: a sequence is `(..., time, features)` outside, `(time, ..., features)` inside; `...` are the batch axes, as
many as x has, none included.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from types import MappingProxyType
from typing import Any

import jax
import jax.export  # not an attribute of `jax` before it is imported
import jax.numpy as jnp
import numpy as np
from jax import lax

from multirnn import Activation, InvalidCall, Output, RecurrentSpec, State
from multirnn.arrays import as_array
from multirnn.cells import GRU_RESET_AFTER, GRU_RESET_BEFORE, LSTM, SIMPLE_RNN, Cell
from multirnn.errors import kind_of

__all__ = ["Params", "Recurrence", "apply", "check"]

Params = Mapping[str, jax.Array]
Activate = Callable[[Any], Any]
Gates = list[jax.Array]
Step = Callable[[State, Gates], State]
Scan = Callable[..., tuple[State, jax.Array]]


@dataclass(eq=False)
class Recurrence:
    """A stack as JAX has it: a pure function, and a pytree of parameters.

    Attributes:
        spec: what it computes.
        params: the pytree, a flat dictionary with the names and shapes of `spec.shapes`; assign to it after training.
        apply: `apply(params, x, state=None, lengths=None) -> Output`: `multirnn_jax.apply.apply` of the spec. It is
            always the same object, so that `jax.jit(native.apply)` compiles a shape once.
    """

    spec: RecurrentSpec
    params: Params = field(repr=False)
    apply: Callable[..., Output] = field(init=False, repr=False)
    _made: Any = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        self.bind(apply)

    def bind(self, function: Callable[..., Output]) -> None:
        """Have `apply` be this function of the spec."""
        self.apply = partial(function, self.spec)
        self._made = self.spec, self.apply

    @property
    def as_made(self) -> bool:
        """Whether neither `spec` nor `apply` was replaced, so that `apply` is known to compute what `spec` says."""
        made = self._made
        return made is not None and made[0] is self.spec and made[1] is self.apply


def apply(
    spec: RecurrentSpec, params: Params, x: jax.Array, state: State | None = None, lengths: jax.Array | None = None
) -> Output:
    """Run the stack that `spec` describes.

    Args:
        spec: static under `jit`.
        params: by name, shapes and dtype as `spec.shapes` and `spec.dtype` say.
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
    return stack(_scan, spec, params, x, state, lengths)


def stack(scan: Scan, spec: RecurrentSpec, params: Params, x: Any, state: State | None, lengths: Any) -> Output:
    """Layer upon layer, each direction of each by `scan`; see `apply`."""
    rows = check(spec, params, x, state, lengths)
    sequence = jnp.moveaxis(x, -2, 0)
    valid = None
    if rows is not None:
        steps = jnp.arange(len(sequence), dtype=rows.dtype).reshape(-1, *[1] * rows.ndim)
        valid = (steps < rows[None])[..., None]
        sequence = jnp.where(valid, sequence, jnp.zeros((), sequence.dtype))
    finals: list[State] = []
    for layer in range(spec.num_layers):
        outputs = []
        for direction in spec.directions:
            prefix = f"layers.{layer}.{direction}."
            weights = {name.removeprefix(prefix): array for name, array in params.items() if name.startswith(prefix)}
            initial = None if state is None else jax.tree.map(itemgetter(len(finals)), state)
            final, output = scan(spec, weights, sequence, initial, valid, reverse=direction == "backward")
            finals.append(final)
            outputs.append(output)
        sequence = jnp.concatenate(outputs, axis=-1)
    batch_major: Any = jnp.moveaxis(sequence, 0, -2)
    return Output(batch_major, jax.tree.map(lambda *parts: jnp.stack(parts), *finals))


def _scan(
    spec: RecurrentSpec, weights: Params, inputs: Any, initial: State | None, valid: Any, *, reverse: bool
) -> tuple[State, jax.Array]:
    """One layer in one direction: the final state, and the outputs `(time, ..., hidden_size)`."""
    form = spec.form
    bias, candidate_bias = projection_bias(form, weights.get("bias_ih"), weights.get("bias_hh"))
    # One array a gate. Given one array for all, XLA's CPU compiler slices the gates inside the loop's kernel, which it
    # then leaves unvectorised: 1.3 to 2 times the time of a call of an LSTM or a GRU of batch 32.
    projected = product(inputs, matrix(weights["weight_ih"]))
    gates = jnp.split(projected + spread(bias, projected.ndim), len(form.gates), axis=-1)
    first = first_state(form, gates[0], initial)
    activations = activate(spec.activation), activate(spec.recurrent_activation)
    step = STEPS[form](matrix(weights["weight_hh"]), spread(candidate_bias, projected.ndim - 1), *activations)

    def advance(state: State, now: tuple[Gates, Any]) -> tuple[State, Any]:
        gates, valid = now
        new = step(state, gates)
        if valid is None:
            return new, new.h
        return jax.tree.map(partial(jnp.where, valid), new, state), jnp.where(valid, new.h, 0)

    return lax.scan(advance, first, (gates, valid), reverse=reverse)


def first_state(form: Cell, gate: Any, initial: State | None) -> State:
    """The state before the first step, `(..., hidden_size)` each, of a scan over `gate`, `(time, ..., hidden_size)`."""
    # The sum over no step is zero, and sharded over devices as the inputs are. `lax.scan` demands that of the initial
    # state; `jnp.zeros` is not, nor is a state that every device has whole.
    zero: Any = jnp.sum(gate[:0], axis=0)
    first = State(*[zero] * len(form.states))
    return first if initial is None else jax.tree.map(jnp.add, first, initial)


def matrix(weight: Any) -> Any:
    """`(gates, hidden_size, features)` as `(features, gates * hidden_size)`, which rows are multiplied by."""
    return weight.reshape(-1, weight.shape[-1]).T


def product(rows: Any, matrix: Any) -> jax.Array:
    # By default a GPU multiplies float32 in TF32 and a TPU in bfloat16, which leaves three decimal digits.
    return jnp.matmul(rows, matrix, precision=lax.Precision.HIGHEST)


def projection_bias(form: Cell, bias_ih: Any, bias_hh: Any) -> tuple[Any, Any]:
    """The bias of the projection, (gates * hidden_size,), and the one that stays in the recurrent product; or zeros."""
    if bias_ih is None:
        return 0, 0
    if bias_hh is None:
        return bias_ih.reshape(-1), 0
    if not form.recurrent_candidate_bias:
        return (bias_ih + bias_hh).reshape(-1), 0
    folded = len(bias_hh) - 1  # all but the candidate's, which is the last and, with bias="single", the only one
    return jnp.concatenate([bias_ih[:folded] + bias_hh[:folded], bias_ih[folded:]]).reshape(-1), bias_hh[-1]


def spread(bias: Any, axes: int) -> Any:
    """A bias `(n,)` with so many axes: JAX can be told to refuse what would add them by itself."""
    return bias if np.ndim(bias) == 0 else bias.reshape(*[1] * (axes - 1), -1)


# --- The cells: one step each, by the equations of `multirnn.cells`. -------------------------------------------------
#
# x: the projected input, one array a gate, every bias but d included      a: the activation
# u: weight_hh, (hidden_size, gates * hidden_size)                          s: the recurrent activation
# d: the bias that the reset gate multiplies
#
# A GRU's (1 - z) n + z h is n + z (h - n), as in the reference: of infinities they are not the same.


def _simple_rnn(u: Any, d: Any, a: Activate, s: Activate) -> Step:
    def step(state: State, x: Gates) -> State:
        return State(a(x[0] + product(state.h, u)))

    return step


def _lstm(u: Any, d: Any, a: Activate, s: Activate) -> Step:
    def step(state: State, x: Gates) -> State:
        uh = jnp.split(product(state.h, u), 4, axis=-1)
        i, f, g, o = s(x[0] + uh[0]), s(x[1] + uh[1]), a(x[2] + uh[2]), s(x[3] + uh[3])
        c = f * state.c + i * g
        return State(o * a(c), c)

    return step


def _gru_reset_after(u: Any, d: Any, a: Activate, s: Activate) -> Step:
    def step(state: State, x: Gates) -> State:
        uh = jnp.split(product(state.h, u), 3, axis=-1)
        r, z = s(x[0] + uh[0]), s(x[1] + uh[1])
        n = a(x[2] + r * (uh[2] + d))
        return State(n + z * (state.h - n))

    return step


def _gru_reset_before(u: Any, d: Any, a: Activate, s: Activate) -> Step:
    gates, candidate = jnp.split(u, [2 * len(u)], axis=1)

    def step(state: State, x: Gates) -> State:
        uh = jnp.split(product(state.h, gates), 2, axis=-1)
        r, z = s(x[0] + uh[0]), s(x[1] + uh[1])
        n = a(x[2] + product(r * state.h, candidate))
        return State(n + z * (state.h - n))

    return step


STEPS: Mapping[Cell, Callable[..., Step]] = MappingProxyType(
    {
        SIMPLE_RNN: _simple_rnn,
        LSTM: _lstm,
        GRU_RESET_AFTER: _gru_reset_after,
        GRU_RESET_BEFORE: _gru_reset_before,
    }
)


def _hard_sigmoid(x: Any, alpha: float, beta: float) -> Any:
    # The gradient of `lax.clamp` is one strictly inside the bounds and zero on them; that of `jnp.clip` is a half.
    return lax.clamp(x.dtype.type(0), alpha * x + beta, x.dtype.type(1))


# `jax.nn.relu` has gradient 0 at 0, `jnp.maximum(x, 0)` a half.
ACTIVATIONS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "elu": jax.nn.elu,
        "hard_sigmoid": _hard_sigmoid,
        "linear": lambda x: x,
        "relu": jax.nn.relu,
        "sigmoid": jax.nn.sigmoid,
        "softsign": jax.nn.soft_sign,
        "tanh": jnp.tanh,
    }
)


def activate(value: str | Activation) -> Activate:
    activation = Activation.of(value)
    return partial(ACTIVATIONS[activation.name], **activation.parameters)


# --- The checks: made while tracing, so that a compiled call pays nothing for them. ----------------------------------


def check(spec: RecurrentSpec, params: Params, x: Any, state: State | None, lengths: Any) -> Any:
    """Raise what `apply` raises of arguments that are not the spec's.

    Returns:
        The lengths, int32 from 0 to `time`; None where there are none.
    """
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
    """Raise what `apply` raises of parameters that are not the spec's; before a function is jitted, which casts them."""
    if not isinstance(params, Mapping):
        raise InvalidCall(f"params must be a dictionary of arrays by name, not {type(params).__name__}")
    if set(params) != set(spec.shapes):
        raise InvalidCall(f"params must have the names {', '.join(spec.shapes)}, not {', '.join(map(str, params))}")
    for name, shape in spec.shapes.items():
        _check_array(f"params[{name!r}]", params[name], shape, spec.dtype)


def _checked_lengths(lengths: Any, batch: tuple[int, ...], time: int) -> Any:
    # Those of NumPy are read before JAX, without its 64-bit mode, cuts off their upper half.
    if not isinstance(lengths, jax.Array):
        lengths = as_array("lengths", lengths, of="integers")
    if lengths.shape != batch:
        raise InvalidCall(f"lengths must have the shape {batch}, one integer a row of x, not {lengths.shape}")
    if not lengths.size:
        return jnp.zeros(batch, jnp.int32)
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise InvalidCall(f"lengths must be integers, not {lengths.dtype}")
    # `time` is a number of the lengths' own type here: 130 as an int8 is -126.
    most = min(time, int(jnp.iinfo(lengths.dtype).max))  # type: ignore[no-untyped-call]
    clip: Any = jnp.clip if isinstance(lengths, jax.Array) else np.clip
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


for record in (State, Output):  # or what `jax.export` makes of a function that takes or returns them is not serialised
    jax.export.register_namedtuple_serialization(record, serialized_name=f"multirnn.{record.__name__}")
