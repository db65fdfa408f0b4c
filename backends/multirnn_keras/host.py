"""`Host`: the compiled recurrence of `multirnn.kernel` over NumPy arrays in Keras' layout, in TensorFlow's memory or not."""

import os
from collections.abc import Sequence
from copy import copy
from functools import cache
from typing import Any

import numpy as np

from multirnn import RecurrentSpec, kernel
from multirnn.weights import Array
from multirnn_keras.memory import address, empty

__all__ = ["Arrays", "Host"]

Arrays = list[Array]


@cache
def threads() -> int:
    """As many as TensorFlow uses within an operation."""
    import tensorflow as tf

    return int(tf.config.threading.get_intra_op_parallelism_threads()) or len(os.sched_getaffinity(0))


_Bound = tuple[list[int], bytes, Any]
"""The addresses of weights, the table of them, and the arrays that the table points to where those are not the weights."""


class Host:
    """The recurrence of a stack over NumPy arrays in Keras' layout. It may be called from several threads at once.

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
        self._bound: _Bound = [], b"", None

    def another(self) -> "Host":
        """The same for another place: whether it stashes is a matter of its graph."""
        other = copy(self)
        other._bound = [], b"", None
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
        y = ordered.empty((*x.shape[:2], self.spec.output_size), x.dtype)
        last = [empty(state.shape, x.dtype) for state in states]
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
            stash, y = self._stash(x, True), empty(y.shape, y.dtype)
            self._run(weights, x, y, states, [], ordered.lengths, stash)
        dx = ordered.empty(x.shape, x.dtype)
        dfirst = [empty(state.shape, x.dtype) for state in states]
        found = [empty(weight.shape, x.dtype) for weight in weights]
        batch, time, _ = x.shape
        bound = self._bind(weights)
        self._stack.backward(
            bound[1],
            self._table_of(found),
            batch,
            time,
            kernel.sequence(x),
            kernel.sequence(y),
            _addresses(states),
            kernel.sequence(dy),
            _addresses(dlast),
            kernel.sequence(dx),
            _addresses(dfirst),
            address(stash),
            threads(),
        )
        if self.spec.cell == "gru":
            found = [_turned(array) for array in found]
        return [ordered.back(dx), *found, *dfirst]

    def _parted(self, rest: Sequence[Array]) -> tuple[Sequence[Array], Sequence[Array], Any]:
        weights, states = len(self._names), len(self._names) + len(self.spec.form.states)
        return rest[:weights], rest[weights:states], rest[states] if len(rest) > states else None

    def _stash(self, x: Array, wanted: bool) -> Array:
        return empty((self._stack.stash_size(*x.shape[:2]) if wanted else 0,), np.uint8)

    def _run(
        self, weights: Sequence[Array], x: Array, y: Array, states: Any, last: Any, lengths: Any, stash: Array
    ) -> None:
        batch, time, _ = x.shape
        bound = self._bind(weights)
        self._stack.forward(
            bound[1],
            batch,
            time,
            kernel.sequence(x),
            kernel.sequence(y),
            _addresses(states),
            _addresses(last),
            0 if lengths is None else address(lengths),
            address(stash) if stash.size else 0,
            threads(),
        )

    def _bind(self, weights: Sequence[Array]) -> _Bound:
        """The weights as the kernel takes them, made anew when one of them has moved.

        The caller keeps all of it until its call is over: another thread may find other weights, and forget these.
        """
        addresses = [address(weight) for weight in weights]
        bound = self._bound
        if addresses != bound[0]:
            if self.spec.cell == "gru":
                turned = [_turned(weight) for weight in weights]
                # TensorFlow never writes to memory that somebody else holds: what is held and has not moved is the same.
                bound = addresses, self._table_of(turned), (weights, turned)
            else:
                bound = addresses, self._table_of(weights), None
            self._bound = bound
        return bound

    def _table_of(self, weights: Sequence[Array]) -> bytes:
        """A table of the canonical parameters, which lie in arrays of Keras' layout, gates in our order."""
        operands: dict[str, kernel.Operand] = {}
        for name, weight in zip(self._names, weights, strict=True):
            units, size = self.spec.hidden_size, weight.shape[-1]
            start = address(weight)
            if not name.endswith("bias"):
                operands[name] = (start, units, 1, size)
                continue
            operands[f"{name}_ih"] = (start, units, 1)
            if weight.ndim == 2:
                operands[f"{name}_hh"] = (start + size * weight.itemsize, units, 1)
        return self._stack.bind(operands)


def _turned(weight: Array) -> Array:
    """The first two gates change places: z r n and r z n."""
    turned = empty(weight.shape, weight.dtype)
    gates, room = (array.reshape(*weight.shape[:-1], 3, -1) for array in (weight, turned))
    for place, gate in enumerate((1, 0, 2)):
        room[..., place, :] = gates[..., gate, :]
    return turned


def _addresses(states: Sequence[Array]) -> tuple[int, int]:
    h, c = (*map(address, states), 0, 0)[:2]
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

    def empty(self, shape: Sequence[int], dtype: Any) -> Array:
        """Room for a sequence in this order, which `back` gives in C order."""
        room = empty(shape, dtype)
        return room[:, ::-1] if self._turned else room

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
        found = empty(sequence.shape, sequence.dtype)
        np.put_along_axis(found, self._steps, sequence, axis=1)
        return found
