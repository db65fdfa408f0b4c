"""A recurrent layer in one direction over tensors, with the gradients of `passes.backward`, on each of Keras' engines."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

from multirnn_keras.cells import Form
from multirnn_keras.engine import ENGINE
from multirnn_keras.operations import Tensors, engine, ops
from multirnn_keras.passes import backward, forward

__all__ = ["Plain", "differentiable", "recurrence", "undifferentiated"]


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
        return found, _of_tensors(lambda *cotangents: gradients(len(cotangents))(*primals, *cotangents, *kept))

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
                return pull(primals, mask, kept, cotangents), _of_tensors(again)

        return once

    return list(outputs(*primals))


def _of_tensors(back: Callable[..., Any]) -> Callable[..., Any]:
    """The gradients of a function of tensors alone, as TensorFlow asks for them.

    TensorFlow counts among the variables of a function those that another thread reads meanwhile; they get none.
    """

    def gradients(*cotangents: Any, variables: Sequence[Any] = ()) -> Any:
        found = back(*cotangents)
        return (found, [None for _ in variables]) if variables else found

    return gradients


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
