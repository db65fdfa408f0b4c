"""TensorFlow: graphs by `tf.function`, gradients by tapes, fast loops compiled by XLA."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from importlib import import_module
from itertools import chain
from random import Random
from typing import Any

import keras

from multirnn.weights import Array
from multirnn_keras.engines.interface import Apply, Call, Engine, Mask, Per, Plain, Pull, Run, Step, Tensors
from multirnn_keras.exported import saving
from multirnn_keras.memory import copied, in_memory, owned

__all__ = ["differentiable", "engine"]

tf: Any = import_module("tensorflow")  # untyped: its types refuse what it documents, such as "zero" for gradients

# To make the graph of a layer takes 0.2 s, and of its gradients 1.2 s; a step outside of a graph takes 10 ms. So a first
# short call, which may be the only one, runs without: both give the same bits. Gradients do not, since TensorFlow adds
# them up in another order; those of a short call always run without.
EAGER_STEPS = 8

# XLA takes 0.5 s to compile a loop for a shape, and a step outside of a graph 1 ms. So what is short runs without, unless
# it is part of a graph.
EAGER_LOOP_STEPS = 16


class _TensorFlow(Engine):
    timed = "a tf.function"
    loops = "a loop compiled by XLA for each shape, the input projected before it, gradients by one loop back"
    nn, concatenate, where = tf.nn, staticmethod(tf.concat), staticmethod(tf.where)
    stack, unstack = staticmethod(tf.stack), staticmethod(tf.unstack)

    def device_count(self, kind: str) -> int:
        return len(tf.config.list_physical_devices(kind.upper()))

    @contextmanager
    def confirming(self) -> Iterator[None]:
        from tensorflow.python.eager import context
        from tensorflow.python.eager.record import stop_recording

        eager: Any = context.context()
        seeds = getattr(eager, "_rng", None)  # the seeds of operations, if the user set a global seed
        eager._rng = Random(str(seeds and seeds.getstate()))  # noqa: S311
        try:
            with stop_recording(), keras.device("cpu"):  # a GPU rounds to TF32
                yield
        finally:
            eager._rng = seeds

    def copied(self, variable: Any) -> Array:
        return in_memory(variable.value).copy()  # Keras' own way makes NumPy warn

    def vjp(self, apply: Apply, variables: Sequence[Any], mask: Any, primals: Tensors, cotangents: Tensors) -> Tensors:
        wanted = [*(variable.value for variable in variables), *primals]
        with tf.GradientTape() as tape:
            tape.watch(wanted)
            outputs = apply(mask, primals)
        return list(tape.gradient(outputs, wanted, cotangents[: len(outputs)], unconnected_gradients="zero"))

    def compiled(self, function: Callable[..., Any], variables: Sequence[Any]) -> Callable[..., Any]:
        graph: Callable[..., Any] = tf.function(function, autograph=False)
        return graph  # on a processor it returns when it has computed

    def call(self, function: Any, variables: Sequence[Any], per: Per, eager_first: bool, backward: bool) -> Call:
        graphs: dict[tuple[Any, ...], Callable[[Tensors], Tensors]] = {}
        called: set[tuple[Any, ...]] = set()

        def call(mask: Mask, *groups: Sequence[Array]) -> list[Array]:
            tensors = [[copied(array) for array in group] for group in groups]
            given = None if mask is None else tf.convert_to_tensor(mask)
            shapes = [array.shape for group in groups for array in group]
            batch, time, _ = shapes[0]
            key = (mask is None, *(shapes if per == "shape" else [batch]))
            short = eager_first and time <= EAGER_STEPS and (backward or not (key in graphs or key in called))
            if per == "call" or short:
                called.add(key)
                found = function(given, *tensors)
            else:
                if key not in graphs:
                    graphs[key] = _graph(function, given, tensors, any_length=per == "batch", backward=backward)
                found = graphs[key]([*([] if given is None else [given]), *chain(*tensors)])
            if backward or per != "batch":
                return [tensor.numpy() for tensor in found]
            sequence, *states = found
            states = [state.numpy() for state in states]  # after a single step they may lie where the sequence does
            return [owned(sequence), *states]

        return call

    def training_step(self, loss: Callable[[], Any], variables: Sequence[Any], optimiser: Any) -> Callable[[], Any]:
        def step() -> Any:
            with tf.GradientTape() as tape:
                value = loss()
            optimiser.apply(tape.gradient(value, [variable.value for variable in variables]), variables)
            return value

        return self.compiled(step, variables)

    def differentiated(self, run: Run, pull: Pull, form: Any, primals: Sequence[Any], mask: Any) -> Tensors:
        if saving():
            return run(form, [tf.convert_to_tensor(primal) for primal in primals], mask)[
                0
            ]  # no XLA, which TFLite lacks
        return list(tf.autograph.experimental.do_not_convert(_differentiated)(run, pull, form, primals, mask))

    def scan(self, step: Step, states: Tensors, given: Tensors, count: int, reverse: bool) -> tuple[Tensors, Tensors]:
        if tf.executing_eagerly():
            return super().scan(step, states, given, count, reverse)
        shape: Any = keras.ops.shape(given[0])
        time = shape[0]
        rows = [tf.TensorArray(each.dtype, time).unstack(each) for each in given]
        # What is saved runs forward alone, where the results are states; TFLite asks for their shape.
        one = states[0].shape if saving() else None
        found = [tf.TensorArray(states[0].dtype, time, element_shape=one) for _ in range(count)]

        def body(number: Any, states: Tensors, found: Tensors) -> tuple[Any, Tensors, Tensors]:
            place = time - 1 - number if reverse else number
            states, new = step(states, [row.read(place) for row in rows])
            return number + 1, states, [array.write(place, one) for array, one in zip(found, new, strict=True)]

        _, final, found = tf.while_loop(
            lambda number, *_: number < time, body, (0, list(states), found), maximum_iterations=time
        )
        return list(final), [each.stack() for each in found]


def _graph(
    function: Any, mask: Any, groups: Sequence[Tensors], *, any_length: bool, backward: bool
) -> Callable[[Tensors], Tensors]:
    """A graph of `function` from a flat list of tensors to another.

    With an open batch too, gradients would take a third longer: of every sum they ask which axes were broadcast.
    """
    specs = [[tf.TensorSpec.from_tensor(tensor) for tensor in group] for group in groups]
    if any_length:
        for group in specs:
            batch, _, features = group[0].shape
            group[0] = tf.TensorSpec((batch, None, features), group[0].dtype)
        mask = None if mask is None else tf.TensorSpec((mask.shape[0], None), tf.bool)
    # A concrete function for each signature: a tf.function that had to choose among them would warn of retracing.
    graph = tf.function(function).get_concrete_function(mask, *specs)
    captured, types = graph.captured_inputs, [output.dtype for output in graph.outputs]
    config = _unfused() if any_length and not backward else b""
    # Called as an operation: what a tf.function, even a concrete one, does before costs more than the graph of a few steps.
    return lambda tensors: list(
        tf.raw_ops.StatefulPartitionedCall(args=[*tensors, *captured], Tout=types, f=graph, config_proto=config)
    )


@cache
def _unfused() -> bytes:
    """Settings that run each product by itself: fused with what is added to it, the product of one row has other bits."""
    from tensorflow.core.protobuf.config_pb2 import ConfigProto
    from tensorflow.core.protobuf.rewriter_config_pb2 import RewriterConfig

    config = ConfigProto()
    config.graph_options.rewrite_options.remapping = RewriterConfig.OFF
    return bytes(config.SerializeToString())


# --- Gradients of our own --------------------------------------------------------------------------------------------


def _differentiated(run: Run, pull: Pull, form: Any, primals: Sequence[Any], mask: Any) -> Tensors:
    primals = [tf.convert_to_tensor(primal) for primal in primals]
    forward: Any = partial(run, form)
    backward: Any = partial(pull, form)
    if not tf.executing_eagerly() or primals[0].shape[1] > EAGER_LOOP_STEPS:
        weights = tuple(tuple(primal.shape) for primal in primals[1 : -form.states])
        forward, backward = _by_xla(run, pull, form, weights, primals[1].dtype, mask is not None)
    return differentiable(forward, backward, lambda primals, mask: run(form, primals, mask)[0], primals, mask)


@cache
def _by_xla(run: Run, pull: Pull, form: Any, weights: Any, dtype: Any, masked: bool) -> tuple[Any, Any]:
    """`run` and `pull` as graphs for any batch and time; XLA compiles them for each that comes.

    `weights` are the shapes of kernel, recurrent kernel, and bias if there is one.
    """
    (features, gates), (units, _), *_ = weights
    sequence, state = (None, None, units), (None, units)

    def specs(*shapes: Any) -> Tensors:
        return [tf.TensorSpec(shape, dtype) for shape in shapes]

    states = [state] * form.states
    primals = specs((None, None, features), *weights, *states)
    kept = specs((None, None, gates), *[sequence] * form.states)
    cotangents = specs(sequence, *states)
    mask = [tf.TensorSpec((None, None), tf.bool)] if masked else []
    count, end = len(primals), len(primals) + len(kept)

    @tf.function(input_signature=[*primals, *mask], jit_compile=True, autograph=False)  # type: ignore[untyped-decorator]
    def there(*given: Any) -> Any:
        return run(form, given[:count], given[count] if masked else None)

    @tf.function(input_signature=[*primals, *kept, *cotangents, *mask], jit_compile=True, autograph=False)  # type: ignore[untyped-decorator]
    def back(*given: Any) -> Any:
        rest = given[end : end + len(cotangents)]
        return pull(form, given[:count], given[-1] if masked else None, given[count:end], rest)

    return (
        lambda primals, mask: there(*primals, *([mask] if masked else [])),
        lambda primals, mask, kept, cotangents: back(*primals, *kept, *cotangents, *([mask] if masked else [])),
    )


def differentiable(
    run: Callable[[Sequence[Any], Any], tuple[Tensors, Tensors]],
    pull: Callable[[Sequence[Any], Any, Sequence[Any], Sequence[Any]], Tensors],
    plain: Plain,
    primals: Sequence[Any],
    mask: Any,
) -> Tensors:
    """The outputs of `run`, with gradients by `pull`; TensorFlow takes gradients of gradients from `plain`.

    `run` and `pull` are as in `multirnn_keras.engines.interface`, without the form; `plain` has the outputs of `run`,
    by operations that TensorFlow differentiates. The primals are tensors, not variables.
    """
    # Under two tapes a tf.function returns what its own gradients would need, and XLA cannot. There is no public name.
    from tensorflow.python.eager.record import stop_recording

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
    """Gradients of a function that reads no variables, as TensorFlow asks for them.

    TensorFlow takes variables that another thread reads meanwhile for variables of this function; they get none.
    """

    def gradients(*cotangents: Any, variables: Sequence[Any] = ()) -> Any:
        found = back(*cotangents)
        return (found, [None for _ in variables]) if variables else found

    return gradients


engine = _TensorFlow()
