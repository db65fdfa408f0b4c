"""A recurrent layer in one direction over tensors, and its gradients, as loops that do only what has to wait for a step.

The input is projected for all steps by one product before the loop. The way back runs one loop too, which multiplies
what is known beforehand of each step with the gradient that comes from the step above; the gradients of the weights are
single products over all steps after it. What the gates were is computed again there, for all steps at once: one product
more, and nothing is kept of the steps but their states.

Names and shapes, `k` units and `g` gates in Keras' order (i f c o; z r h):

    kernel (features, g k)    recurrent (k, g k)    bias (g k); of the reset-after GRU (2, 3 k), input and recurrent
    p      (time, batch, g k)                       the projected input
    h, c   (batch, k)                               a state; hs, cs (time, batch, k) those after each step

Source: the equations of `multirnn.cells`, differentiated.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib import import_module
from typing import Any, NamedTuple

import keras

from multirnn import Activation
from multirnn_keras.engine import ENGINE, ENGINES

__all__ = ["Form", "Plain", "Tensors", "differentiable", "recurrence", "undifferentiated"]

Tensors = list[Any]
ops: Any = keras.ops  # typed there as what a layer of Keras makes of them


class Form(NamedTuple):
    """What a layer computes, whatever its sizes.

    Attributes:
        cell: "simple_rnn", "lstm" or "gru".
        reset_after: of the GRU.
        activation, recurrent_activation: of the candidate, and of the gates.
        bias: whether there is one.
        reverse: run from the last step to the first; outputs stand where their inputs do.
    """

    cell: str
    reset_after: bool
    activation: Activation
    recurrent_activation: Activation
    bias: bool
    reverse: bool


# --- What an engine calls what ---------------------------------------------------------------------------------------

engine: Any = import_module(ENGINE) if ENGINE in ENGINES else None
if ENGINE == "tensorflow":
    nn, concatenate, where = engine.nn, engine.concat, engine.where
elif ENGINE == "jax":
    nn, concatenate, where = engine.nn, engine.numpy.concatenate, engine.numpy.where
elif ENGINE == "torch":
    nn, concatenate, where = engine, engine.cat, engine.where


def _affine(p: Any, h: Any, matrix: Any) -> Any:
    return engine.addmm(p, h, matrix) if ENGINE == "torch" else p + h @ matrix


def _act(activation: Activation) -> Callable[[Any], Any]:
    name, alpha, beta = activation.name, activation.alpha, activation.beta
    if name in ("tanh", "sigmoid", "relu"):
        own: Callable[[Any], Any] = getattr(nn, name)
        return own
    if name == "elu":
        return lambda x: ops.elu(x, alpha=alpha)
    if name == "hard_sigmoid":
        return lambda x: ops.clip(alpha * x + beta, 0, 1)
    others: dict[str, Callable[[Any], Any]] = {"linear": lambda x: x, "softsign": ops.softsign}
    return others[name]


def _slope(activation: Activation, y: Any) -> Any:
    """The derivative of an activation where its value is y."""
    name, alpha = activation.name, activation.alpha
    one = ops.ones_like(y)
    if name == "tanh":
        return one - y * y
    if name == "sigmoid":
        return y * (one - y)
    if name == "softsign":
        return ops.square(one - ops.abs(y))
    if name == "linear":
        return one
    if name == "elu":
        return where(y > 0, one, y + alpha)
    inside = y > 0 if name == "relu" else (y > 0) & (y < 1)
    return where(inside, one if name == "relu" else alpha * one, ops.zeros_like(y))


# --- The cells: a step, what is known of all steps before the way back, a step back, and the gradients after it ------


class SimpleRNN:
    """`h' = a(p + h U)`."""

    def __init__(self, form: Form) -> None:
        self.form = form
        self.act = _act(form.activation)

    def step(self, weights: Tensors, p: Any, h: Any) -> Tensors:
        """The states after a step."""
        return [self.act(_affine(p, h, weights[0]))]

    def slopes(self, weights: Tensors, p: Any, before: Tensors, after: Tensors) -> tuple[Tensors, Tensors]:
        """What `back` needs of each step beside the gradients, and how much of each state stays (None: nothing)."""
        return [_slope(self.form.activation, after[0])], [None]

    def back(self, transposed: Tensors, slopes: Tensors, dh: Any) -> tuple[Tensors, Any]:
        """The gradients of the states before a step, without what stays, and what `gradients` needs of the step."""
        dz = dh * slopes[0]
        return [dz @ transposed[0]], dz

    def gradients(self, dz: Any, before: Tensors, slopes: Tensors) -> tuple[Any, Any, Any]:
        """Of p, of the recurrent kernel, and of the candidate's recurrent bias if there is one."""
        return dz, _outer(before[0], dz), None


class LSTM:
    """See `multirnn.cells.LSTM`."""

    def __init__(self, form: Form) -> None:
        self.form = form
        self.act, self.gate = _act(form.activation), _act(form.recurrent_activation)

    def step(self, weights: Tensors, p: Any, h: Any, c: Any) -> Tensors:
        i, f, g, o = self._gates(_affine(p, h, weights[0]))
        c = f * c + i * g
        return [o * self.act(c), c]

    def _gates(self, z: Any) -> Tensors:
        k = z.shape[-1] // 4
        both = self.gate(z[..., : 2 * k])
        return [both[..., :k], both[..., k:], self.act(z[..., 2 * k : 3 * k]), self.gate(z[..., 3 * k :])]

    def slopes(self, weights: Tensors, p: Any, before: Tensors, after: Tensors) -> tuple[Tensors, Tensors]:
        h, c = before
        i, f, g, o = self._gates(p + ops.matmul(h, weights[0]))
        a, s = self.form.activation, self.form.recurrent_activation
        held = self.act(after[1])
        of_gates = concatenate([g * _slope(s, i), c * _slope(s, f), i * _slope(a, g), held * _slope(s, o)], -1)
        of_c = o * _slope(a, held)
        return [of_gates, of_c, of_c * f], [None, f]

    def back(self, transposed: Tensors, slopes: Tensors, dh: Any, dc: Any) -> tuple[Tensors, Any]:
        of_gates, of_c, of_c_before = slopes
        dc = dc + dh * of_c
        dz = concatenate([dc, dc, dc, dh], -1) * of_gates
        return [dz @ transposed[0], dh * of_c_before], dz

    def gradients(self, dz: Any, before: Tensors, slopes: Tensors) -> tuple[Any, Any, Any]:
        return dz, _outer(before[0], dz), None


class GRU:
    """See `multirnn.cells.GRU_RESET_AFTER`; the weights are the recurrent kernel and the candidate's recurrent bias."""

    def __init__(self, form: Form) -> None:
        self.form = form
        self.act, self.gate = _act(form.activation), _act(form.recurrent_activation)

    def _parts(self, weights: Tensors, p: Any, h: Any) -> Tensors:
        k = h.shape[-1]
        q = h @ weights[0] if len(h.shape) == 2 else ops.matmul(h, weights[0])
        zr = self.gate(p[..., : 2 * k] + q[..., : 2 * k])
        z, r = zr[..., :k], zr[..., k:]
        q = q[..., 2 * k :] if len(weights) == 1 else q[..., 2 * k :] + weights[1]
        return [z, r, q, self.act(p[..., 2 * k :] + r * q)]

    def step(self, weights: Tensors, p: Any, h: Any) -> Tensors:
        z, _, _, n = self._parts(weights, p, h)
        return [z * h + (1 - z) * n]

    def slopes(self, weights: Tensors, p: Any, before: Tensors, after: Tensors) -> tuple[Tensors, Tensors]:
        h = before[0]
        z, r, q, n = self._parts(weights, p, h)
        a, s = self.form.activation, self.form.recurrent_activation
        dn = (1 - z) * _slope(a, n)
        # Of the gates, of the candidate's recurrent part, and of the candidate.
        return [concatenate([(h - n) * _slope(s, z), dn * q * _slope(s, r), dn * r, dn], -1)], [z]

    def back(self, transposed: Tensors, slopes: Tensors, dh: Any) -> tuple[Tensors, Any]:
        dz = concatenate([dh, dh, dh, dh], -1) * slopes[0]
        return [dz[:, : 3 * dh.shape[-1]] @ transposed[0]], dz

    def gradients(self, dz: Any, before: Tensors, slopes: Tensors) -> tuple[Any, Any, Any]:
        k = dz.shape[-1] // 4
        recurrent = dz[..., : 3 * k]
        dp = concatenate([dz[..., : 2 * k], dz[..., 3 * k :]], -1)
        return dp, _outer(before[0], recurrent), ops.sum(recurrent[..., 2 * k :], (0, 1))


class GRUResetBefore:
    """See `multirnn.cells.GRU_RESET_BEFORE`; the weights are the recurrent kernels of the gates and of the candidate."""

    def __init__(self, form: Form) -> None:
        self.form = form
        self.act, self.gate = _act(form.activation), _act(form.recurrent_activation)

    def _parts(self, weights: Tensors, p: Any, h: Any) -> Tensors:
        k = h.shape[-1]
        zr = self.gate(p[..., : 2 * k] + ops.matmul(h, weights[0]))
        z, r = zr[..., :k], zr[..., k:]
        return [z, r, self.act(p[..., 2 * k :] + ops.matmul(r * h, weights[1]))]

    def step(self, weights: Tensors, p: Any, h: Any) -> Tensors:
        z, _, n = self._parts(weights, p, h)
        return [z * h + (1 - z) * n]

    def slopes(self, weights: Tensors, p: Any, before: Tensors, after: Tensors) -> tuple[Tensors, Tensors]:
        h = before[0]
        z, r, n = self._parts(weights, p, h)
        a, s = self.form.activation, self.form.recurrent_activation
        return [(h - n) * _slope(s, z), h * _slope(s, r), (1 - z) * _slope(a, n), r], [z]

    def back(self, transposed: Tensors, slopes: Tensors, dh: Any) -> tuple[Tensors, Any]:
        of_z, of_r, of_n, r = slopes
        dn = dh * of_n
        dreset = dn @ transposed[1]
        dzr = concatenate([dh * of_z, dreset * of_r], -1)
        return [dreset * r + dzr @ transposed[0]], concatenate([dzr, dn], -1)

    def gradients(self, dz: Any, before: Tensors, slopes: Tensors) -> tuple[Any, Any, Any]:
        k = dz.shape[-1] // 3
        h, r = before[0], slopes[3]
        return dz, concatenate([_outer(h, dz[..., : 2 * k]), _outer(r * h, dz[..., 2 * k :])], -1), None


def _outer(a: Any, b: Any) -> Any:
    """The sum over all steps and rows of the products of a's columns with b's: one matrix product."""
    return ops.matmul(ops.transpose(_rows(a)), _rows(b))


def _rows(a: Any) -> Any:
    return ops.reshape(a, (-1, a.shape[-1]))


@cache
def _cell(form: Form) -> Any:
    if form.cell == "gru":
        return GRU(form) if form.reset_after else GRUResetBefore(form)
    return {"simple_rnn": SimpleRNN, "lstm": LSTM}[form.cell](form)


# --- The passes ------------------------------------------------------------------------------------------------------


def _weights(form: Form, recurrent: Any, bias: Any) -> Tensors:
    """What a step multiplies with, and adds."""
    k = recurrent.shape[0]
    if form.cell != "gru":
        return [recurrent]
    if not form.reset_after:
        return [recurrent[:, : 2 * k], recurrent[:, 2 * k :]]
    return [recurrent] if bias is None else [recurrent, bias[1, 2 * k :]]


def _input_bias(bias: Any) -> Any:
    """All biases but the candidate's recurrent one of the reset-after GRU."""
    if len(bias.shape) == 1:
        return bias
    k = bias.shape[1] // 3
    return concatenate([bias[0, : 2 * k] + bias[1, : 2 * k], bias[0, 2 * k :]], -1)


def _unpacked(form: Form, primals: Sequence[Any]) -> tuple[Any, Any, Any, Any, Tensors]:
    x, kernel, recurrent, *rest = primals
    return x, kernel, recurrent, rest[0] if form.bias else None, rest[form.bias :]


def forward(form: Form, primals: Sequence[Any], mask: Any) -> tuple[Tensors, Tensors]:
    """The states after each step, and after the last; and what `backward` wants to be kept.

    Args:
        form: what is computed.
        primals: x `(batch, time, features)`, kernel, recurrent kernel, the bias if there is one, h, and c of an LSTM.
        mask: `(batch, time)`, bool, or None; where it is False the states stay.

    Returns:
        h `(batch, time, k)` of all steps, and the final h, and c of an LSTM. Then p and all states, time first.
    """
    x, kernel, recurrent, bias, states = _unpacked(form, primals)
    cell, weights = _cell(form), _weights(form, recurrent, bias)
    x = _swapped(x)
    p = ops.matmul(_rows(x), kernel)
    if bias is not None:
        p = p + _input_bias(bias)
    p = ops.reshape(p, (*ops.shape(x)[:2], kernel.shape[1]))

    def step(states: Tensors, given: Tensors) -> tuple[Tensors, Tensors]:
        new = cell.step(weights, given[0], *states)
        if mask is not None:
            new = [where(given[1], *both) for both in zip(new, states, strict=True)]
        return new, new

    final, after = _scan(step, states, [p] if mask is None else [p, _column(mask)], len(states), form.reverse)
    return [_swapped(after[0]), *final], [p, *after]


def backward(form: Form, primals: Sequence[Any], mask: Any, kept: Sequence[Any], cotangents: Sequence[Any]) -> Tensors:
    """The gradients of the primals, from what `forward` kept and the gradients of its outputs."""
    x, kernel, recurrent, bias, states = _unpacked(form, primals)
    cell, weights = _cell(form), _weights(form, recurrent, bias)
    p, *after = kept
    before = [
        concatenate([each[1:], first[None]] if form.reverse else [first[None], each[:-1]], 0)
        for first, each in zip(states, after, strict=True)
    ]
    slopes, stays = cell.slopes(weights, p, before, after)
    if mask is not None:
        valid = _column(mask)
        zero, one = ops.zeros_like(states[0][:, :1]), ops.ones_like(states[0][:, :1])
        slopes = [where(valid, slope, zero) for slope in slopes]
        stays = [where(valid, zero if stay is None else stay, one) for stay in stays]
    transposed = [ops.transpose(weight) for weight in weights if len(weight.shape) == 2]
    staying = [place for place, stay in enumerate(stays) if stay is not None]
    count = len(slopes)

    def step(above: Tensors, given: Tensors) -> tuple[Tensors, Tensors]:
        above = [above[0] + given[0], *above[1:]]
        below, dz = cell.back(transposed, given[1 : 1 + count], *above)
        for place, stay in zip(staying, given[1 + count :], strict=True):
            below[place] = below[place] + above[place] * stay
        return below, [dz]

    dy, *last = cotangents
    given = [_swapped(dy), *slopes, *(stays[place] for place in staying)]
    first, (dz,) = _scan(step, last, given, 1, not form.reverse)
    dp, drecurrent, dcandidate = cell.gradients(dz, before, slopes)
    rows = _rows(dp)
    dx = ops.reshape(ops.matmul(rows, ops.transpose(kernel)), (*ops.shape(dp)[:2], kernel.shape[0]))
    found = [_swapped(dx), ops.matmul(ops.transpose(_rows(_swapped(x))), rows), drecurrent]
    if bias is not None:
        db = ops.sum(rows, 0)
        if len(bias.shape) == 2:
            db = ops.stack([db, concatenate([db[: -dcandidate.shape[0]], dcandidate], -1)])
        found.append(db)
    return [*found, *first]


def _swapped(sequence: Any) -> Any:
    """Batch and time change places."""
    return ops.transpose(sequence, (1, 0, 2))


def _column(mask: Any) -> Any:
    """The mask, time first, over states."""
    return ops.transpose(mask)[:, :, None]


# --- The engines: a loop, and a function with gradients of its own ---------------------------------------------------

Step = Callable[[Tensors, Tensors], tuple[Tensors, Tensors]]


def recurrence(form: Form, primals: Sequence[Any], mask: Any) -> Tensors:
    """The outputs of `forward`, differentiable by `backward`, and by the engine where gradients are differentiated.

    Args:
        form, primals, mask: as `forward` takes them.
    """
    if ENGINE == "tensorflow":
        return list(engine.autograph.experimental.do_not_convert(_on_tensorflow)(form, primals, mask))
    primals = [ops.convert_to_tensor(primal) for primal in primals]
    if ENGINE == "jax":
        return list(_jax_function()(form, primals, mask))
    return list(_torch_function().apply(form, mask, *primals))


def undifferentiated(form: Form, primals: Sequence[Any], mask: Any) -> Tensors:
    """The same outputs, left to the engine to differentiate."""
    return forward(form, primals, mask)[0]


def _scan(step: Step, states: Tensors, given: Tensors, count: int, reverse: bool) -> tuple[Tensors, Tensors]:
    """Run a step over the first axis of what is given.

    Args:
        step: from the states and what is given of a step to the states after it and what it found.
        states: before the first step.
        given: what each step is given, `(time, …)` each.
        count: how much each step finds.
        reverse: begin at the end.

    Returns:
        The states after the last step, and what was found, `(time, …)` each.
    """
    if ENGINE == "jax":
        final, found = engine.lax.scan(lambda states, given: step(states, given), states, given, reverse=reverse)
        return final, found
    if ENGINE == "tensorflow" and not engine.executing_eagerly():
        return _while_loop(step, states, given, count, reverse)
    unstack, stack = (engine.unstack, engine.stack) if ENGINE == "tensorflow" else (engine.unbind, engine.stack)
    steps = list(zip(*(unstack(each) for each in given), strict=True))
    rows = []
    for row in reversed(steps) if reverse else steps:
        states, found = step(states, list(row))
        rows.append(found)
    if reverse:
        rows.reverse()
    return states, [stack(column) for column in zip(*rows, strict=True)]


def _while_loop(step: Step, states: Tensors, given: Tensors, count: int, reverse: bool) -> tuple[Tensors, Tensors]:
    """`_scan` in a graph of TensorFlow."""
    tf = engine
    time = ops.shape(given[0])[0]
    rows = [tf.TensorArray(each.dtype, time).unstack(each) for each in given]
    found = [tf.TensorArray(states[0].dtype, time) for _ in range(count)]

    def body(number: Any, states: Tensors, found: Tensors) -> tuple[Any, Tensors, Tensors]:
        place = time - 1 - number if reverse else number
        states, new = step(states, [row.read(place) for row in rows])
        return number + 1, states, [all.write(place, one) for all, one in zip(found, new, strict=True)]

    _, final, found = tf.while_loop(
        lambda number, *_: number < time, body, (0, list(states), found), maximum_iterations=time
    )
    return list(final), [each.stack() for each in found]


# To compile takes 0.5 s a shape, and a step outside of a graph 1 ms. So what is short runs without, unless it is part of
# a graph.
_STEPS_WITHOUT_GRAPH = 16

Plain = Callable[[Sequence[Any], Any], Tensors]
Run = Callable[[Sequence[Any], Any], tuple[Tensors, Tensors]]
Pull = Callable[[Sequence[Any], Any, Sequence[Any], Sequence[Any]], Tensors]


def _on_tensorflow(form: Form, primals: Tensors, mask: Any) -> Tensors:
    tf = engine
    primals = [tf.convert_to_tensor(primal) for primal in primals]  # of what may be variables
    run: Run
    pull: Pull
    if tf.executing_eagerly() and primals[0].shape[1] <= _STEPS_WITHOUT_GRAPH:
        run, pull = partial(forward, form), partial(backward, form)
    else:
        run, pull = _compiled(*_key(form, primals, mask))
    return differentiable(run, pull, partial(undifferentiated, form), primals, mask)


def differentiable(run: Run, pull: Pull, plain: Plain, primals: Sequence[Any], mask: Any) -> Tensors:
    """The outputs of `run` on TensorFlow, with gradients by `pull`; gradients of gradients TensorFlow takes of `plain`.

    Args:
        run: from primals and mask to the outputs, and to what is kept for `pull`.
        pull: from primals, mask, what was kept and the cotangents of the outputs to the gradients of the primals.
        plain: from primals and mask to the same outputs, by operations that TensorFlow differentiates.
        primals: tensors, not variables.
        mask: a tensor of bool, or None.
    """
    # Under two tapes a tf.function hands out what its own gradients would need, and XLA cannot. No public name has it.
    from tensorflow.python.eager.record import stop_recording

    tf = engine
    count = len(primals)

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def outputs(*primals: Any) -> Any:
        with stop_recording():
            found, kept = run(primals, mask)
        return found, lambda *cotangents: gradients(len(cotangents))(*primals, *cotangents, *kept)

    def gradients(cotangent_count: int) -> Any:
        end = count + cotangent_count

        @tf.custom_gradient  # type: ignore[untyped-decorator]
        def once(*tensors: Any) -> Any:
            primals, cotangents, kept = tensors[:count], tensors[count:end], tensors[end:]

            def again(*second: Any) -> Any:
                with tf.GradientTape() as outer:
                    outer.watch([primals, cotangents])
                    with tf.GradientTape() as inner:
                        inner.watch(primals)
                        found = plain(primals, mask)
                    first = inner.gradient(found, primals, cotangents, unconnected_gradients="zero")
                found = outer.gradient(first, [*primals, *cotangents], second, unconnected_gradients="zero")
                return [*found, *(None for _ in kept)]

            with stop_recording():
                return pull(primals, mask, kept, cotangents), again

        return once

    return list(outputs(*primals))


Key = tuple[Form, int, int, str, bool]


def _key(form: Form, primals: Tensors, mask: Any) -> Key:
    """What graphs are of: the form, features, units, dtype, and whether there is a mask."""
    return form, primals[1].shape[0], primals[2].shape[0], primals[1].dtype.name, mask is not None


def _some(mask: Any) -> Tensors:
    return [] if mask is None else [mask]


def _specs(form: Form, features: int, units: int, dtype: str, masked: bool) -> tuple[Tensors, Tensors]:
    """Of the primals and of the mask, of any batch and time."""
    tf = engine
    gates = {"simple_rnn": 1, "lstm": 4, "gru": 3}[form.cell] * units
    bias = [(2, gates) if form.cell == "gru" and form.reset_after else (gates,)] if form.bias else []
    states = [(None, units)] * (2 if form.cell == "lstm" else 1)
    shapes = [(None, None, features), (features, gates), (units, gates), *bias, *states]
    return [tf.TensorSpec(shape, dtype) for shape in shapes], [tf.TensorSpec((None, None), tf.bool)] if masked else []


@cache
def _compiled(*key: Any) -> tuple[Run, Pull]:
    """`forward` and `backward` for any batch and time; XLA compiles them for each that comes."""
    tf = engine
    form, _, units, dtype, _ = key
    primals, mask = _specs(*key)
    count, states = len(primals), primals[3 + form.bias :]
    cotangents = [tf.TensorSpec((None, None, units), dtype), *states]
    kept = [tf.TensorSpec((None, None, size), dtype) for size in (primals[1].shape[1], *(units for _ in states))]
    end = count + len(kept)

    @tf.function(input_signature=[*primals, *mask], jit_compile=True, autograph=False)  # type: ignore[untyped-decorator]
    def there(*given: Any) -> Any:
        return forward(form, given[:count], given[count] if mask else None)

    @tf.function(input_signature=[*primals, *kept, *cotangents, *mask], jit_compile=True, autograph=False)  # type: ignore[untyped-decorator]
    def back(*given: Any) -> Any:
        rest = given[end : end + len(cotangents)]
        return backward(form, given[:count], given[-1] if mask else None, given[count:end], rest)

    return (
        lambda primals, mask: there(*primals, *_some(mask)),
        lambda primals, mask, kept, cotangents: back(*primals, *kept, *cotangents, *_some(mask)),
    )


@cache
def _jax_function() -> Any:
    jax = engine

    def run(form: Form, primals: Tensors, mask: Any) -> Tensors:
        return forward(form, primals, mask)[0]

    def keep(form: Form, primals: Tensors, mask: Any) -> Any:
        outputs, kept = forward(form, primals, mask)
        return outputs, (primals, mask, kept)

    def pull(form: Form, kept: Any, cotangents: Tensors) -> Any:
        primals, mask, parts = kept
        return backward(form, primals, mask, parts, cotangents), None

    function = jax.custom_vjp(run, nondiff_argnums=(0,))
    function.defvjp(keep, pull)
    return function


@cache
def _torch_function() -> Any:
    torch = engine
    run, pull = forward, backward

    class Recurrence(torch.autograd.Function):  # type: ignore[name-defined, misc]
        @staticmethod
        def forward(ctx: Any, form: Form, mask: Any, *primals: Any) -> Any:
            outputs, kept = run(form, primals, mask)
            ctx.form, ctx.mask, ctx.count = form, mask, len(primals)
            ctx.save_for_backward(*primals, *kept)
            return tuple(outputs)

        @staticmethod
        def backward(ctx: Any, *cotangents: Any) -> Any:
            saved = ctx.saved_tensors
            primals, kept = saved[: ctx.count], saved[ctx.count :]
            if not torch.is_grad_enabled():
                return None, None, *pull(ctx.form, primals, ctx.mask, kept, cotangents)
            # Gradients that are to be differentiated again: by PyTorch itself, of the same loop.
            outputs, _ = run(ctx.form, primals, ctx.mask)
            wanted = [primal for primal in primals if primal.requires_grad]
            found = iter(torch.autograd.grad(outputs, wanted, cotangents, create_graph=True, materialize_grads=True))
            return None, None, *(next(found) if primal.requires_grad else None for primal in primals)

    return Recurrence
