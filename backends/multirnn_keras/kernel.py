"""The compiled recurrence, `multirnn.kernel`, on Keras' layout of weights, and as a differentiable operation of TensorFlow.

Eager tensors are passed to it directly, tensors of a graph by `tf.numpy_function`: so graphs run it in this process on the
CPU only, neither compiled by XLA nor loaded elsewhere. What TensorFlow traces while it saves a model does without it
(`saving`), and a graph that was traced before refuses to be saved (`multirnn_keras.exported`). TensorFlow passes its tensors
without copying, and takes over results that are aligned to 64 bytes.
"""

import os
from collections.abc import Callable, Sequence
from copy import copy
from functools import cache
from typing import Any

import numpy as np

from multirnn import RecurrentSpec, kernel
from multirnn.kernel import address, call_record, sequence
from multirnn.weights import Array
from multirnn_keras.engines import ENGINE, devices
from multirnn_keras.engines.interface import Plain, Tensors
from multirnn_keras.exported import refuse_saving, saving
from multirnn_keras.memory import empty, in_memory, tensor_of

__all__ = ["KerasKernel", "recurrence", "serves", "there"]

Arrays = list[Array]

ROWS, MANY_WEIGHTS = 8, 500_000
"""One step of more rows than this goes through XLA where the weights are so many: 16 rows of an LSTM of 512 units took 3.7 ms
for 4.2, of a GRU 2.2 for 2.8. One row took 2.2 ms for 1.7, and 1.5 for 1.1; 8 steps of it 5.7 for 5.2, and 3.3 for 2.7.
"""


def serves(spec: RecurrentSpec, device: str | None, batch: int | None, time: int | None) -> bool:
    """Whether the compiled recurrence is there, can run the current call or trace, and is faster for this shape."""
    product = time == 1 and batch is not None and batch > ROWS
    return not (product and spec.parameter_count >= MANY_WEIGHTS) and there(device) and not (_in_xla() or saving())


def there(device: str | None) -> bool:
    """Whether the compiled recurrence is there for TensorFlow on this device."""
    return ENGINE == "tensorflow" and kernel.refuses() is None and _on_cpu(device)


@cache
def _on_cpu(device: str | None) -> bool:
    return device.startswith("cpu") if device else all(name.startswith("cpu") for name in devices())


def _in_xla() -> bool:
    """Whether the current trace is for XLA, which cannot call back."""
    import tensorflow as tf

    if tf.executing_eagerly():
        return False
    from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext  # there is no public function

    return bool(GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()))


@cache
def _threads() -> int:
    """As many as TensorFlow uses within an operation."""
    import tensorflow as tf

    return int(tf.config.threading.get_intra_op_parallelism_threads()) or len(os.sched_getaffinity(0))


def recurrence(compiled: "KerasKernel", plain: Plain, primals: Sequence[Any], mask: Any) -> Tensors:
    """The outputs and final states of `compiled.forward`, differentiable; its arguments are tensors or variables.

    `plain(primals, mask)` is the same function in TensorFlow operations, for gradients of gradients.
    """
    import tensorflow as tf
    from tensorflow.python.eager.record import could_possibly_record  # there is no public function

    from multirnn_keras.engines.tensorflow import differentiable

    spec = compiled.spec
    count = len(spec.form.states)
    if tf.executing_eagerly() and not could_possibly_record():
        # No tape: recording for one costs 0.3 ms.
        *found, _ = compiled.forward(*map(in_memory, [*primals, *_some(mask)]))
        return [tensor_of(array) for array in found]

    place = compiled.another()
    place.stashing = tf.executing_eagerly()  # a graph turns it on when its gradients are taken

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
    """Call a function of arrays with tensors, now or in the graph being traced."""
    import tensorflow as tf

    if tf.executing_eagerly():
        return [tensor_of(array) for array in function(*map(in_memory, given))]
    refuse_saving()
    return list(tf.numpy_function(function, given, types, stateful=False))


def _some(mask: Any) -> list[Any]:
    return [] if mask is None else [mask]


_Bound = tuple[list[int], kernel.Table, Any]
"""The addresses of weights, their table, and the arrays that it points to where those are reordered copies."""


class KerasKernel:
    """The compiled recurrence over NumPy arrays in Keras' layout. Threads may call it concurrently.

    With `reverse`, for one layer in one direction, each row runs from its end to its beginning.
    """

    def __init__(self, spec: RecurrentSpec, reverse: bool = False) -> None:
        self.spec, self.reverse = spec, reverse
        self.stashing = False  # whether `forward` stashes for `backward`, which else reruns it
        self._compiled = kernel.CompiledRecurrence(spec)
        kinds = ("weight_ih", "weight_hh", "bias")[: 2 if spec.bias == "none" else 3]
        self._names = [f"layers.{layer}.{direction}.{kind}" for layer, direction in spec.passes for kind in kinds]
        self._bound: _Bound = [], kernel.Table(b""), None

    def another(self) -> "KerasKernel":
        """A copy for another graph, with its own `stashing`."""
        other = copy(self)
        other._bound = [], kernel.Table(b""), None
        return other

    def forward(self, x: Array, *rest: Array) -> Arrays:
        """The outputs, zero at padding, the final states, and the stash for `backward`.

        `rest`: kernel, recurrent kernel and bias of every pass, the initial states, and if there is one a mask.
        """
        weights, states, mask = self._parted(rest)
        ordered = _Order(mask, self.reverse, x.shape[1])
        x = ordered.of(x)
        y = ordered.empty((*x.shape[:2], self.spec.output_size), x.dtype)
        last = [empty(state.shape, x.dtype) for state in states]
        stash = empty((self._compiled.stash_size(*x.shape[:2]) if self.stashing else 0,), np.uint8)
        self._run(weights, ordered.lengths, x, y, states, last, stash)
        return [ordered.back(y), *last, stash]

    def backward(self, x: Array, *rest: Array) -> Arrays:
        """The gradients of x, of the weights and of the initial states.

        `rest`: the gradients of the outputs and of the final states; y and the stash from `forward`; then its `rest`.
        """
        count = len(self.spec.form.states)
        (dy, *dlast), (y, stash), rest = rest[: 1 + count], rest[1 + count : 3 + count], rest[3 + count :]
        weights, states, mask = self._parted(rest)
        ordered = _Order(mask, self.reverse, x.shape[1])
        x, y, dy = ordered.of(x), ordered.of(y), ordered.of(dy)
        if not stash.size:
            stash = empty((self._compiled.stash_size(*x.shape[:2]),), np.uint8)
            y = empty(y.shape, y.dtype)
            self._run(weights, ordered.lengths, x, y, states, [], stash)
        dx = ordered.empty(x.shape, x.dtype)
        dfirst = [empty(state.shape, x.dtype) for state in states]
        found = [empty(weight.shape, x.dtype) for weight in weights]
        bound = self._bind(weights)
        record = _record(x, y, states, dlast, stash, None, sequence(dy), sequence(dx), _addresses(dfirst))
        self._compiled.backward(bound[1], self._table_of(found), record)
        if self.spec.cell == "gru":
            found = [_turned(array) for array in found]
        return [ordered.back(dx), *found, *dfirst]

    def _parted(self, rest: Sequence[Array]) -> tuple[Sequence[Array], Sequence[Array], Any]:
        weights, states = len(self._names), len(self._names) + len(self.spec.form.states)
        return rest[:weights], rest[weights:states], rest[states] if len(rest) > states else None

    def _run(self, weights: Any, lengths: Any, x: Array, y: Array, first: Any, last: Any, stash: Array) -> None:
        bound = self._bind(weights)
        at = None if lengths is None else address(lengths)
        self._compiled.forward(bound[1], _record(x, y, first, last, stash, at))

    def _bind(self, weights: Sequence[Array]) -> _Bound:
        """The table of the weights, rebuilt when one has moved.

        The caller keeps all of it during its call: another thread may bind other weights meanwhile, and drop these.
        """
        addresses = [address(weight) for weight in weights]
        bound = self._bound
        if addresses != bound[0]:
            # TensorFlow never writes to memory that is held elsewhere: held at the same address, it is unchanged.
            turned = [_turned(weight) for weight in weights] if self.spec.cell == "gru" else None
            kept = None if turned is None else (weights, turned)
            self._bound = bound = addresses, self._table_of(turned or weights), kept
        return bound

    def _table_of(self, weights: Sequence[Array]) -> kernel.Table:
        """A table of the canonical parameters in arrays of Keras' layout, gates in canonical order."""
        operands: dict[str, kernel.Operand] = {}
        units = self.spec.hidden_size
        for name, weight in zip(self._names, weights, strict=True):
            start, size = address(weight), weight.shape[-1]
            if not name.endswith("bias"):
                operands[name] = (start, units, 1, size)
                continue
            operands[f"{name}_ih"] = (start, units, 1)
            if weight.ndim == 2:
                operands[f"{name}_hh"] = (start + size * weight.itemsize, units, 1)
        return self._compiled.bind(operands)


def _turned(weight: Array) -> Array:
    """The first two gates swapped: z r n and r z n."""
    turned = empty(weight.shape, weight.dtype)
    gates, room = (array.reshape(*weight.shape[:-1], 3, -1) for array in (weight, turned))
    for place, gate in enumerate((1, 0, 2)):
        room[..., place, :] = gates[..., gate, :]
    return turned


def _record(
    x: Array,
    y: Array,
    first: Any,
    last: Any,
    stash: Array,
    lengths: Any,
    dy: Any = None,
    dx: Any = None,
    dfirst: Any = (None, None),
) -> kernel.CallRecord:
    return call_record(
        batch=len(x),
        time=x.shape[1],
        x=sequence(x),
        y=sequence(y),
        first=_addresses(first),
        last=_addresses(last),
        stash=address(stash) if stash.size else None,
        threads=_threads(),
        lengths=lengths,
        dy=dy,
        dx=dx,
        dfirst=dfirst,
    )


def _addresses(states: Sequence[Array]) -> kernel.States:
    h, c = (*map(address, states), None, None)[:2]
    return h, c


class _Order:
    """The order of steps in which every row is right-padded and runs forward; `reverse`: rows run from their ends."""

    def __init__(self, mask: Any, reverse: bool, time: int) -> None:
        self.lengths: Any = None
        self._steps: Any = None
        self._turned = reverse and mask is None
        if mask is not None:
            self.lengths = mask.sum(axis=1, dtype=np.int64)
            if reverse or not np.array_equal(mask, np.arange(time) < self.lengths[:, None]):
                last_first = np.argsort(~(mask[:, ::-1] if reverse else mask), axis=1, kind="stable")
                self._steps = (time - 1 - last_first if reverse else last_first)[:, :, None]

    def empty(self, shape: Sequence[int], dtype: Any) -> Array:
        """An empty sequence in this order; `back` makes it C-contiguous."""
        room = empty(shape, dtype)
        return room[:, ::-1] if self._turned else room

    def of(self, sequence: Array) -> Array:
        """`(batch, time, features)` in this order."""
        if self._turned:
            return sequence[:, ::-1]
        return sequence if self._steps is None else np.take_along_axis(sequence, self._steps, axis=1)

    def back(self, sequence: Array) -> Array:
        """The inverse of `of`."""
        if self._turned or self._steps is None:
            return self.of(sequence)
        found = empty(sequence.shape, sequence.dtype)
        np.put_along_axis(found, self._steps, sequence, axis=1)
        return found
