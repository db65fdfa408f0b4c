"""Faster forms of the loops, for machines without the compiled recurrence.

Sigmoids by tanh, s(x) = (1 + tanh(x / 2)) / 2: the columns of W, U and b that lead into a sigmoid are halved, which is exact.
All gates of an LSTM then go through one tanh, and its step takes 10 operations instead of 17; a GRU's takes one or two
less. Nothing overflows, so no np.errstate is needed. It holds for the default activations alone.

Both directions of a layer at once: one product of two matrices per step, and every function once for both. With few units a
step takes as long as its calls, and half of them are saved. The time of two loops over the time of one, for calls of 100
steps and more of 32 and 64 units: simple RNN 1.01 to 1.23, LSTM 1.04 to 1.19, GRU of several rows 1.1 to 1.46. With 128 units
0.89 to 1.14; and one row of a GRU 0.73, because its gates are then not contiguous.
"""

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np
from numpy import add, copyto, multiply, tanh
from numpy.lib.stride_tricks import as_strided

from multirnn import RecurrentSpec
from multirnn.cells import GRU_RESET_AFTER, GRU_RESET_BEFORE, LSTM, Cell
from multirnn.weights import Array
from multirnn_numpy.loop import GruResetAfter, GruResetBefore, Lstm, Pass, gates
from multirnn_numpy.workspace import Empty

__all__ = ["HALVED", "faster_together", "forward_both", "halvable", "paired"]

MOST_UNITS = 64


class _Halved(Pass):
    factors: tuple[float, ...] = (0.5, 0.5, 1)  # per gate: 1/2 for a sigmoid, 1 for the candidate

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.s = _sigmoid_of_half

    def matrices(self) -> tuple[Array, Array, Array | None]:
        W, U, b = super().matrices()
        self.half = np.repeat(np.array(self.factors, W.dtype), len(U))
        halved_W, halved_U = (multiply(matrix, self.half, self.empty(matrix.shape, matrix.dtype)) for matrix in (W, U))
        return halved_W, halved_U, None if b is None else b * self.half


def _sigmoid_of_half(x: Array, out: Array) -> None:
    tanh(x, out)
    multiply(out, 0.5, out)
    add(out, 0.5, out)


class _HalvedLstm(_Halved, Lstm):
    factors = (0.5, 0.5, 1, 0.5)

    def forward(self) -> None:
        h, c = self.states
        U, times = self.U_forward, self.multiply
        i, f, g, o = gates(self.z, 4)
        hU, ig = np.empty_like(self.z[0]), np.empty_like(h[0])
        half = np.full_like(hU, self.half)  # whole steps: four times as fast as row by row
        rest = 1 - half
        for z_t, i_t, f_t, g_t, o_t, prev_h, h_t, prev_c, c_t, frozen in zip(
            self.z, i, f, g, o, h[:-1], h[1:], c[:-1], c[1:], self.frozen, strict=True
        ):
            times(prev_h, U, hU)
            add(z_t, hU, z_t)
            tanh(z_t, z_t)  # g
            multiply(z_t, half, z_t)
            add(z_t, rest, z_t)  # i, f, o = (1 + tanh) / 2
            multiply(f_t, prev_c, c_t)
            multiply(i_t, g_t, ig)
            add(c_t, ig, c_t)  # c_t = f * c + i * g
            tanh(c_t, h_t)
            multiply(o_t, h_t, h_t)  # h_t = o * tanh(c_t)
            if frozen is not None:
                copyto(h_t, prev_h, where=frozen)
                copyto(c_t, prev_c, where=frozen)


class _HalvedGruResetAfter(_Halved, GruResetAfter):
    pass


class _HalvedGruResetBefore(_Halved, GruResetBefore):
    pass


HALVED: Mapping[Cell, type[Pass]] = {
    LSTM: _HalvedLstm,
    GRU_RESET_AFTER: _HalvedGruResetAfter,
    GRU_RESET_BEFORE: _HalvedGruResetBefore,
}


def halvable(spec: RecurrentSpec) -> bool:
    """Whether `HALVED` has the cell of a spec."""
    return spec.form in HALVED and (spec.activation, spec.recurrent_activation) == ("tanh", "sigmoid")


def faster_together(spec: RecurrentSpec, batch: int) -> bool:
    """Whether there are two directions, and one loop for both is faster."""
    return spec.bidirectional and spec.hidden_size <= MOST_UNITS and (batch > 1 or spec.cell != "gru")


def paired(empty: Empty) -> tuple[Empty, Empty]:
    """Memory for two passes of the same shapes, which allocate in the same order: side by side, step by step.

    The last allocation, a copy of x, may be made by one of them alone.
    """
    blocks: list[Array] = []
    waiting = iter(blocks)

    def of_first(shape: tuple[int, ...], dtype: Any) -> Array:
        blocks.append(empty((shape[0], 2, *shape[1:]), dtype))
        first: Array = blocks[-1][:, 0]
        return first

    def of_second(shape: tuple[int, ...], dtype: Any) -> Array:
        block = next(waiting, None)
        return empty(shape, dtype) if block is None or block[:, 1].shape != shape else block[:, 1]

    return of_first, of_second


def forward_both(passes: Sequence[Pass]) -> None:
    """`forward` of two passes at once, whose large arrays are `paired`."""
    first, second = passes
    both = copy(first)
    both.multiply = np.matmul
    both.states = [_beside(*parts) for parts in zip(first.states, second.states, strict=True)]
    both.z = _beside(first.z, second.z)
    both.U_forward = np.stack([first.U_forward, second.U_forward])
    biases = [one.parameters["bias_hh"] for one in passes if "bias_hh" in one.parameters]
    both.parameters = {"bias_hh": np.stack(biases, axis=1)[:, :, None]} if biases else {}
    if first.padded is not None and second.padded is not None:
        padded = np.stack([_with_rows(first.padded), _with_rows(second.padded)], axis=1)
        both.frozen = [step if step.any() else None for step in padded]
    both.forward()
    for direction, one in enumerate(passes):
        for name in one.kept:
            found = getattr(both, name)[:, direction]
            setattr(one, name, found[:, 0] if one.x.ndim == 2 else found)


def _beside(first: Array, second: Array) -> Array:
    """Two arrays of one block, `(time, batch, n)` each, as `(time, 2, batch, n)`; a single sequence gets its axis."""
    first, second = _with_rows(first), _with_rows(second)
    between = second.__array_interface__["data"][0] - first.__array_interface__["data"][0]
    steps, *rest = first.shape
    stride, *strides = first.strides
    return as_strided(first, (steps, 2, *rest), (stride, between, *strides))


def _with_rows(array: Any) -> Any:
    return array[:, None] if array.ndim == 2 else array
