"""The compiled recurrence as an operation of TensorFlow, with its gradients: `multirnn.kernel` over TensorFlow's memory.

On eager tensors it is called at once, in graphs by `tf.numpy_function`: so in a graph of this process and on its
processor, not in what XLA compiles nor in a SavedModel that is loaded elsewhere. TensorFlow hands its tensors over without
copying, and takes those that it gets back without copying where they are aligned to 64 bytes.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from multirnn import RecurrentSpec, kernel
from multirnn_keras.engines import ENGINE, devices
from multirnn_keras.engines.interface import Plain, Tensors
from multirnn_keras.host import Arrays, Host
from multirnn_keras.memory import in_memory, tensor_of

__all__ = ["recurrence", "serves", "there"]

ROWS, MANY_WEIGHTS = 8, 500_000
"""One step of more rows than this goes through XLA where the weights are so many: 16 rows of an LSTM of 512 units took 3.7 ms
for 4.2, of a GRU 2.2 for 2.8. One row took 2.2 ms for 1.7, and 1.5 for 1.1; 8 steps of it 5.7 for 5.2, and 3.3 for 2.7.
"""


def serves(spec: RecurrentSpec, device: str | None, batch: int | None, time: int | None) -> bool:
    """Whether the compiled recurrence is there, may run what is called or traced now, and is worth while for the shape.

    Args:
        spec: of the stack.
        device: that it runs on; None is the default one.
        batch, time: None where they are not known yet.
    """
    product = time == 1 and batch is not None and batch > ROWS
    return not (product and spec.parameter_count >= MANY_WEIGHTS) and there(device) and not _in_xla()


def there(device: str | None) -> bool:
    """Whether the compiled recurrence is there for TensorFlow on this device."""
    return ENGINE == "tensorflow" and kernel.missing() is None and on_processor(device)


@cache
def on_processor(device: str | None) -> bool:
    """Whether a device, or the default one, is the processor."""
    return device.startswith("cpu") if device else all(name.startswith("cpu") for name in devices())


def _in_xla() -> bool:
    """Whether what is traced now is for XLA, which does not call back."""
    import tensorflow as tf

    if tf.executing_eagerly():
        return False
    from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext  # there is no public way to ask

    return bool(GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()))


def recurrence(host: Host, plain: Plain, primals: Sequence[Any], mask: Any) -> Tensors:
    """The outputs and final states of `host.forward`, differentiable.

    Args:
        host: what runs.
        plain: the same function of `(primals, mask)` by operations of TensorFlow, for gradients of gradients.
        primals: the arguments of `host.forward` but the mask, in tensors or variables.
        mask: `(batch, time)`, bool, or None.
    """
    import tensorflow as tf
    from tensorflow.python.eager.record import could_possibly_record  # nor one to ask for a tape

    from multirnn_keras.engines.tensorflow import differentiable

    spec = host.spec
    count = len(spec.form.states)
    if tf.executing_eagerly() and not could_possibly_record():
        # Without what a tape needs, which costs 0.3 ms.
        *found, _ = host.forward(*map(in_memory, [*primals, *_some(mask)]))
        return [tensor_of(array) for array in found]

    place = host.another()
    place.stashing = tf.executing_eagerly()  # a graph is told by its gradients

    def run(primals: Sequence[Any], mask: Any) -> tuple[Tensors, Tensors]:
        types = [spec.dtype] * (1 + count)
        y, *last, stash = _called(place.forward, [*primals, *_some(mask)], [*types, "uint8"])
        y.set_shape((*primals[0].shape[:2], spec.output_size))
        for final, first in zip(last, primals[-count:], strict=True):
            final.set_shape(first.shape)
        return [y, *last], [y, stash]

    def pull(primals: Sequence[Any], mask: Any, kept: Sequence[Any], cotangents: Sequence[Any]) -> Tensors:
        place.stashing = True
        given = [primals[0], *cotangents, *kept, *primals[1:], *_some(mask)]
        found = _called(place.backward, given, [spec.dtype] * len(primals))
        for gradient, primal in zip(found, primals, strict=True):
            gradient.set_shape(primal.shape)
        return list(found)

    x, *others = (tf.convert_to_tensor(primal) for primal in primals)
    x = tf.ensure_shape(x, (None, None, spec.input_size))  # which a graph may not know before it runs
    return differentiable(run, pull, plain, [x, *others], mask)


def _called(function: Callable[..., Arrays], given: Sequence[Any], types: Sequence[str]) -> Tensors:
    """A function of arrays called with tensors: at once, or in the graph that is traced."""
    import tensorflow as tf

    if tf.executing_eagerly():
        return [tensor_of(array) for array in function(*map(in_memory, given))]
    return list(tf.numpy_function(function, given, types, stateful=False))


def _some(mask: Any) -> list[Any]:
    return [] if mask is None else [mask]
