"""A function of tensors that runs Keras' layers, called with arrays: compiled and pulled back as each engine does it.

The function takes a mask `(batch, time)` or None, and a list of tensors, its primals: a sequence `(batch, time, …)`, then
states, which have no axis of time. It returns a list of the same kind. It reads the layers' variables, and every call
finds their values of that moment, also after training.
"""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import chain
from typing import Any

import keras
import numpy as np

from multirnn.weights import Array
from multirnn_keras.engine import ENGINE
from multirnn_keras.memory import copied, owned

__all__ = ["Function", "Mask", "Pullback", "compiled"]

Mask = np.ndarray[Any, np.dtype[np.bool_]] | None
Apply = Callable[[Any, list[Any]], list[Any]]

Function = Callable[[Mask, Sequence[Array]], list[Array]]
"""From the mask and the primals to the outputs."""

Pullback = Callable[[Mask, Sequence[Array], Sequence[Array]], tuple[list[Array], list[Array]]]
"""From the mask, the primals and the cotangents to the gradients of the variables and of the primals."""


def compiled(apply: Apply, variables: Sequence[Any], *, at_once: bool = False) -> tuple[Function, Pullback]:
    """The function over arrays, and its pullback.

    Args:
        apply: called as `apply(mask, primals)`, with tensors.
        variables: of Keras, all that `apply` reads.
        at_once: on TensorFlow, a first short call makes a graph too: `apply` has other bits in one.
    """
    if ENGINE == "tensorflow":
        return _on_tensorflow(apply, variables, 0 if at_once else _STEPS_WITHOUT_GRAPH)
    return {"jax": _on_jax, "torch": _on_torch}[ENGINE](apply, variables)


# To make the graph of a layer takes 0.2 s, and of its gradients 1.2 s; a step outside of a graph takes 10 ms. So a first
# short call, which may be the only one, runs without: both give the same bits. Gradients do not, since TensorFlow adds
# them up in another order; those of a short call always run without.
_STEPS_WITHOUT_GRAPH = 8


def _on_tensorflow(apply: Apply, variables: Sequence[Any], without_graph: int) -> tuple[Function, Pullback]:
    """Graphs, one for every size of the batch, with a mask and without; they fit sequences of any length."""
    import tensorflow as tf

    values = [variable.value for variable in variables]

    def gradients(mask: Any, primals: list[Any], cotangents: list[Any]) -> Any:
        with tf.GradientTape() as tape:
            tape.watch([values, primals])
            outputs = apply(mask, primals)
        return tape.gradient(outputs, [*values, *primals], cotangents)

    def graph(function: Callable[..., Any]) -> Callable[..., Any]:
        graphs: dict[tuple[bool, int], Any] = {}
        called: set[tuple[bool, int]] = set()

        def call(mask: Mask, *arrays: Sequence[Array]) -> Any:
            tensors = [[copied(array) for array in group] for group in arrays]
            given = None if mask is None else tf.convert_to_tensor(mask)
            batch, time, _ = arrays[0][0].shape
            key = (mask is not None, batch)
            if time <= without_graph and (function is gradients or not (key in graphs or key in called)):
                called.add(key)
                return function(given, *tensors)
            if key not in graphs:
                # With an open batch too, the gradients would take a third longer: of every sum they ask which axes
                # were broadcast.
                any_mask = None if mask is None else tf.TensorSpec((batch, None), tf.bool)
                traced = tf.function(function).get_concrete_function(any_mask, *map(any_length, tensors))
                graphs[key] = _called_flat(traced, b"" if function is gradients else _unfused())
            return graphs[key]([*([] if given is None else [given]), *chain(*tensors)])

        return call

    def any_length(tensors: list[Any]) -> list[Any]:
        sequence, *states = (tf.TensorSpec.from_tensor(tensor) for tensor in tensors)
        batch, _, features = sequence.shape
        return [tf.TensorSpec((batch, None, features), sequence.dtype), *states]

    forward, backward = graph(apply), graph(gradients)

    def function(mask: Mask, primals: Sequence[Array]) -> list[Array]:
        sequence, *states = forward(mask, primals)
        states = [state.numpy() for state in states]  # of one step they may lie where the sequence does
        return [owned(sequence), *states]

    def pullback(mask: Mask, primals: Sequence[Array], cotangents: Sequence[Array]) -> Any:
        found = [tensor.numpy() for tensor in backward(mask, primals, cotangents)]
        return found[: len(values)], found[len(values) :]

    return function, pullback


def _called_flat(graph: Any, config: bytes) -> Callable[[list[Any]], list[Any]]:
    """The graph from a flat list of tensors to another.

    By its operation: what a tf.function does before, and a concrete one too, costs more than the graph of a few steps.
    """
    import tensorflow as tf

    captured, types = graph.captured_inputs, [output.dtype for output in graph.outputs]
    return lambda tensors: list(
        tf.raw_ops.StatefulPartitionedCall(args=[*tensors, *captured], Tout=types, f=graph, config_proto=config)
    )


@cache
def _unfused() -> bytes:
    """How TensorFlow runs a graph: each product by itself, which of a single row has other bits with what is added to it."""
    from tensorflow.core.protobuf.config_pb2 import ConfigProto
    from tensorflow.core.protobuf.rewriter_config_pb2 import RewriterConfig

    config = ConfigProto()
    config.graph_options.rewrite_options.remapping = RewriterConfig.OFF
    return bytes(config.SerializeToString())


def _on_jax(apply: Apply, variables: Sequence[Any]) -> tuple[Function, Pullback]:
    """Pure functions of the variables' values, compiled once for every shape."""
    import jax

    def pure(values: list[Any], mask: Any, primals: list[Any]) -> list[Any]:
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return apply(mask, primals)

    def gradients(values: list[Any], mask: Any, primals: list[Any], cotangents: list[Any]) -> Any:
        _, pull = jax.vjp(lambda values, primals: pure(values, mask, primals), values, primals)
        return pull(cotangents)

    forward, backward = jax.jit(pure), jax.jit(gradients)

    def function(mask: Mask, primals: Sequence[Array]) -> list[Array]:
        values = [variable.value for variable in variables]
        return [np.array(array) for array in forward(values, mask, list(primals))]

    def pullback(mask: Mask, primals: Sequence[Array], cotangents: Sequence[Array]) -> Any:
        values = [variable.value for variable in variables]
        found = backward(values, mask, list(primals), list(cotangents))
        return tuple([np.array(array) for array in group] for group in found)

    return function, pullback


def _on_torch(apply: Apply, variables: Sequence[Any]) -> tuple[Function, Pullback]:
    """Run as it stands: there is nothing to compile."""
    import torch

    def tensors(arrays: Sequence[Any]) -> list[Any]:
        # PyTorch shares the memory of an array, and warns of memory that it must not write to.
        return [keras.ops.convert_to_tensor(a if a.flags.writeable else a.copy()) for a in arrays]

    def mask_of(mask: Mask) -> Any:
        return None if mask is None else keras.ops.convert_to_tensor(mask)

    def arrays(tensors: Sequence[Any]) -> list[Array]:
        return [tensor.cpu().numpy() for tensor in tensors]

    def function(mask: Mask, primals: Sequence[Array]) -> list[Array]:
        with torch.no_grad():
            return arrays(apply(mask_of(mask), tensors(primals)))

    def pullback(mask: Mask, primals: Sequence[Array], cotangents: Sequence[Array]) -> Any:
        with torch.inference_mode(False), torch.enable_grad():
            # Copies of the variables: what they hold in .grad stays as it is, and frozen ones have gradients too.
            values = [variable.value.detach().requires_grad_() for variable in variables]
            inputs = [tensor.requires_grad_() for tensor in tensors(primals)]
            with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
                outputs = apply(mask_of(mask), inputs)
            found = arrays(torch.autograd.grad(outputs, [*values, *inputs], tensors(cotangents)))
        return found[: len(values)], found[len(values) :]

    return function, pullback
