"""The compiled recurrence as an operation of TensorFlow, with its gradients: `multirnn.kernel` over TensorFlow's memory.

It runs by `tf.numpy_function`, so in a graph of this process and on its processor, not in what XLA compiles nor in a
SavedModel that is loaded elsewhere. TensorFlow hands its tensors over without copying, and takes those that it gets back
without copying where they are aligned to 64 bytes.
"""

import os
from collections.abc import Sequence
from copy import copy
from functools import cache
from math import prod
from typing import Any

import numpy as np

from multirnn import RecurrentSpec, kernel
from multirnn.weights import Array
from multirnn_keras.engine import ENGINE, devices
from multirnn_keras.recurrence import Plain, Tensors, differentiable

__all__ = ["Host", "in_memory", "recurrence", "serves", "there"]

ALIGNMENT = 64
Arrays = list[Array]


@cache
def threads() -> int:
    """As many as TensorFlow uses within an operation."""
    import tensorflow as tf

    return int(tf.config.threading.get_intra_op_parallelism_threads()) or len(os.sched_getaffinity(0))


def _empty(shape: Sequence[int], dtype: Any) -> Array:
    size = prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.__array_interface__["data"][0] % ALIGNMENT
    array: Array = memory[start : start + size].view(dtype).reshape(shape)
    return array


def in_memory(value: Any) -> Array:
    """A tensor or variable of TensorFlow as an array over its own memory, to be read only."""
    import tensorflow as tf

    if isinstance(value, tf.Variable):  # its read_value() takes four times as long
        value = tf.raw_ops.ReadVariableOp(resource=value.handle, dtype=value.dtype)
    array: Array = np.asarray(value)
    return array


class Host:
    """The recurrence of a stack over NumPy arrays in Keras' layout.

    Args:
        spec: of the stack.
        reverse: run each row from its end to its beginning; of one layer in one direction.

    Attributes:
        stashing: keep in `forward` what `backward` needs; set when gradients are asked for. Else it is computed anew.
    """

    def __init__(self, spec: RecurrentSpec, reverse: bool = False) -> None:
        self.spec, self.reverse = spec, reverse
        self.stashing = False
        self._stack = kernel.Stack(spec)
        self._kinds = ("weight_ih", "weight_hh", "bias")[: 2 if spec.bias == "none" else 3]
        self._names = [f"layers.{layer}.{direction}.{kind}" for layer, direction in spec.passes for kind in self._kinds]
        self._turned: dict[str, tuple[Array, Array]] = {}

    def another(self) -> "Host":
        """The same for another place: whether it stashes is a matter of its graph."""
        other = copy(self)
        other._turned = {}
        return other

    def forward(self, x: Array, *rest: Array) -> Arrays:
        """The outputs, zero at padding, the final states, and what is stashed for `backward`.

        Args:
            x: `(batch, time, input_size)`.
            rest: kernel, recurrent kernel and bias of every pass, the parts of the initial state, and a mask
                `(batch, time)` if there is one.
        """
        weights, states, mask = self._parted(rest)
        ordered = _Order(mask, self.reverse, x.shape[1])
        x = ordered.of(x)
        y = _empty((*x.shape[:2], self.spec.output_size), x.dtype)
        last = [_empty(state.shape, x.dtype) for state in states]
        stash = self._stash(x, self.stashing)
        self._run(weights, x, y, states, last, ordered.lengths, stash)
        return [ordered.back(y), *last, stash]

    def backward(self, x: Array, *rest: Array) -> Arrays:
        """The gradients of x, of the weights and of the initial state.

        Args:
            x: as in `forward`.
            rest: the gradients of the outputs and of the final states; y and the stash that `forward` gave; then the
                other arguments of `forward`.
        """
        count = len(self.spec.form.states)
        (dy, *dlast), (y, stash), rest = rest[: 1 + count], rest[1 + count : 3 + count], rest[3 + count :]
        weights, states, mask = self._parted(rest)
        ordered = _Order(mask, self.reverse, x.shape[1])
        x, y, dy = ordered.of(x), ordered.of(y), ordered.of(dy)
        if not stash.size:
            stash, y = self._stash(x, True), _empty(y.shape, y.dtype)
            self._run(weights, x, y, states, [], ordered.lengths, stash)
        dx = _empty(x.shape, x.dtype)
        dfirst = [_empty(state.shape, x.dtype) for state in states]
        found = [_empty(weight.shape, x.dtype) for weight in weights]
        batch, time, _ = x.shape
        self._stack.backward(
            self._table(weights),
            self._bound(found),
            batch,
            time,
            kernel.sequence(x),
            kernel.sequence(y),
            _addresses(states),
            kernel.sequence(dy),
            _addresses(dlast),
            kernel.sequence(dx),
            _addresses(dfirst),
            0 if ordered.lengths is None else _address(ordered.lengths),
            _address(stash),
            threads(),
        )
        if self.spec.cell == "gru":
            found = [_turned(array) for array in found]
        return [ordered.back(dx), *found, *dfirst]

    def _parted(self, rest: Sequence[Array]) -> tuple[Sequence[Array], Sequence[Array], Any]:
        weights, states = len(self._names), len(self._names) + len(self.spec.form.states)
        return rest[:weights], rest[weights:states], rest[states] if len(rest) > states else None

    def _stash(self, x: Array, wanted: bool) -> Array:
        return _empty((self._stack.stash_size(*x.shape[:2]) if wanted else 0,), np.uint8)

    def _run(
        self, weights: Sequence[Array], x: Array, y: Array, states: Any, last: Any, lengths: Any, stash: Array
    ) -> None:
        batch, time, _ = x.shape
        self._stack.forward(
            self._table(weights),
            batch,
            time,
            kernel.sequence(x),
            kernel.sequence(y),
            _addresses(states),
            _addresses(last),
            0 if lengths is None else _address(lengths),
            _address(stash) if stash.size else 0,
            threads(),
        )

    def _table(self, weights: Sequence[Array]) -> bytes:
        if self.spec.cell != "gru":
            return self._bound(weights)
        for name, weight in zip(self._names, weights, strict=True):
            # TensorFlow never writes to memory that somebody else holds: what is held and at the same address is equal.
            held = self._turned.get(name)
            if held is None or _address(held[0]) != _address(weight):
                self._turned[name] = weight, _turned(weight)
        return self._bound([self._turned[name][1] for name in self._names])

    def _bound(self, weights: Sequence[Array]) -> bytes:
        """A table of the canonical parameters, which lie in arrays of Keras' layout, gates in our order."""
        operands: dict[str, kernel.Operand] = {}
        for name, weight in zip(self._names, weights, strict=True):
            units, size = self.spec.hidden_size, weight.shape[-1]
            address = _address(weight)
            if not name.endswith("bias"):
                operands[name] = (address, units, 1, size)
                continue
            operands[f"{name}_ih"] = (address, units, 1)
            if weight.ndim == 2:
                operands[f"{name}_hh"] = (address + size * weight.itemsize, units, 1)
        return self._stack.bind(operands)


def _turned(weight: Array) -> Array:
    """The first two gates change places: z r n and r z n."""
    gates = weight.reshape(*weight.shape[:-1], 3, -1)
    return np.ascontiguousarray(gates[..., [1, 0, 2], :]).reshape(weight.shape)  # the index alone may turn axes


def _address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


def _addresses(states: Sequence[Array]) -> tuple[int, int]:
    h, c = (*map(_address, states), 0, 0)[:2]
    return h, c


class _Order:
    """The order of the steps in which every row is right-padded and runs forward.

    Args:
        mask: `(batch, time)`, or None.
        reverse: the rows run from their ends.
        time: how many steps there are.
    """

    def __init__(self, mask: Any, reverse: bool, time: int) -> None:
        self.lengths: Any = None
        self._steps: Any = None
        self._turned = reverse and mask is None
        if mask is not None:
            self.lengths = mask.sum(axis=1, dtype=np.int64)
            if reverse or not np.array_equal(mask, np.arange(time) < self.lengths[:, None]):
                last_first = np.argsort(~(mask[:, ::-1] if reverse else mask), axis=1, kind="stable")
                self._steps = (time - 1 - last_first if reverse else last_first)[:, :, None]

    def of(self, sequence: Array) -> Array:
        """`(batch, time, features)` in this order."""
        if self._turned:
            return sequence[:, ::-1]
        return sequence if self._steps is None else np.take_along_axis(sequence, self._steps, axis=1)

    def back(self, sequence: Array) -> Array:
        """The inverse of `of`."""
        if self._turned:
            return sequence[:, ::-1]
        if self._steps is None:
            return sequence
        found = _empty(sequence.shape, sequence.dtype)
        np.put_along_axis(found, self._steps, sequence, axis=1)
        return found


# --- As an operation of TensorFlow -----------------------------------------------------------------------------------


# Every call packs the weights: 10 ms for a GRU of 512 units, as much as 25 steps of it.
FEW_STEPS, MANY_WEIGHTS = 16, 100_000


def serves(spec: RecurrentSpec, device: str | None, batch: int | None, time: int | None) -> bool:
    """Whether the compiled recurrence is there, may run what is called or traced now, and is worth while for the shape.

    Args:
        spec: of the stack.
        device: that it runs on; None is the default one.
        batch, time: None where they are not known yet.
    """
    few = batch is not None and time is not None and batch * time < FEW_STEPS
    return not (few and spec.parameter_count >= MANY_WEIGHTS) and there(device) and not _in_xla()


def there(device: str | None) -> bool:
    """Whether the compiled recurrence is there for TensorFlow on this device."""
    return ENGINE == "tensorflow" and kernel.missing() is None and on_processor(device)


def on_processor(device: str | None) -> bool:
    """Whether a device, or the default one, is the processor."""
    return device.startswith("cpu") if device else all(name.startswith("cpu") for name in devices())


def _in_xla() -> bool:
    """Whether what is traced now is for XLA, which does not call back."""
    import tensorflow as tf
    from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext  # there is no public way to ask

    return not tf.executing_eagerly() and bool(GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()))


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

    spec = host.spec
    count = len(spec.form.states)
    if tf.executing_eagerly() and not could_possibly_record():
        # At once: by way of an operation a call takes 0.3 ms more, and in a tf.function 1 ms.
        *found, _ = host.forward(*map(in_memory, [*primals, *_some(mask)]))
        return [tf.convert_to_tensor(array) for array in found]

    place = host.another()

    def run(primals: Sequence[Any], mask: Any) -> tuple[Tensors, Tensors]:
        types = [spec.dtype] * (1 + count)
        y, *last, stash = tf.numpy_function(place.forward, [*primals, *_some(mask)], [*types, "uint8"], stateful=False)
        y.set_shape((*primals[0].shape[:2], spec.output_size))
        for final, first in zip(last, primals[-count:], strict=True):
            final.set_shape(first.shape)
        return [y, *last], [y, stash]

    def pull(primals: Sequence[Any], mask: Any, kept: Sequence[Any], cotangents: Sequence[Any]) -> Tensors:
        place.stashing = True
        given = [primals[0], *cotangents, *kept, *primals[1:], *_some(mask)]
        found = tf.numpy_function(place.backward, given, [spec.dtype] * len(primals), stateful=False)
        for gradient, primal in zip(found, primals, strict=True):
            gradient.set_shape(primal.shape)
        return list(found)

    return differentiable(run, pull, plain, [tf.convert_to_tensor(primal) for primal in primals], mask)


def _some(mask: Any) -> list[Any]:
    return [] if mask is None else [mask]
