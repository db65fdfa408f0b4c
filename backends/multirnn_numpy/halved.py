"""The gated cells with fewer operations a step: sigmoids by tanh, s(x) = (1 + tanh(x / 2)) / 2.

The halves of x are had for nothing: those columns of W, U and b that lead into a sigmoid are halved, which is exact. All
gates of an LSTM then go through one tanh, and its step takes 10 operations for 17; a GRU's takes one or two less. Nothing
overflows, so nothing has to be told to keep quiet about it. All else, the way back too, is that of `cells`.

These are the activations that the cells have unless told otherwise; with others, `cells` is all there is.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy import add, copyto, multiply, tanh

from multirnn import RecurrentSpec
from multirnn.cells import GRU_RESET_AFTER, GRU_RESET_BEFORE, LSTM, Cell
from multirnn.weights import Array
from multirnn_numpy.cells import GruResetAfter, GruResetBefore, Lstm
from multirnn_numpy.passes import Pass, gates, steps

__all__ = ["HALVED", "halvable"]


class Halved(Pass):
    """A cell whose sigmoids are given x / 2.

    Attributes:
        half: 1/2 for the gates that are sigmoids and 1 for the candidate: `(gates * hidden_size,)`.
    """

    factors: tuple[float, ...]

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.s = _sigmoid_of_half

    def there(self) -> tuple[Array, Array, Array | None]:
        """Halved where they lead into a sigmoid; see `Pass.there`."""
        W, U, b = super().there()
        self.half = np.repeat(np.array(self.factors, W.dtype), len(U))
        return self._halved(W), self._halved(U), None if b is None else b * self.half

    def _halved(self, matrix: Array) -> Array:
        halved: Array = multiply(matrix, self.half, self.empty(matrix.shape, matrix.dtype))
        return halved


def _sigmoid_of_half(x: Array, out: Array) -> None:
    tanh(x, out)
    multiply(out, 0.5, out)
    add(out, 0.5, out)


class HalvedLstm(Halved, Lstm):
    """All gates through one tanh."""

    factors = (0.5, 0.5, 1, 0.5)

    def forward(self) -> None:
        """The gates stay in z."""
        h, c = self.states
        U, times = self.U_there, self.multiply
        i, f, g, o = gates(self.z, 4)
        hU, ig = np.empty_like(self.z[0]), np.empty_like(h[0])
        half = np.full_like(hU, self.half)  # whole steps: four times as fast as row by row
        rest = 1 - half
        for z_t, i_t, f_t, g_t, o_t, prev_h, h_t, prev_c, c_t, frozen in steps(
            self.z, i, f, g, o, h[:-1], h[1:], c[:-1], c[1:], self.frozen
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


class HalvedGruResetAfter(Halved, GruResetAfter):
    """Its sigmoids by tanh."""

    factors = (0.5, 0.5, 1)


class HalvedGruResetBefore(Halved, GruResetBefore):
    """Its sigmoids by tanh."""

    factors = (0.5, 0.5, 1)


HALVED: Mapping[Cell, type[Pass]] = {
    LSTM: HalvedLstm,
    GRU_RESET_AFTER: HalvedGruResetAfter,
    GRU_RESET_BEFORE: HalvedGruResetBefore,
}


def halvable(spec: RecurrentSpec) -> bool:
    """Whether a spec's cell is here."""
    return spec.form in HALVED and (spec.activation, spec.recurrent_activation) == ("tanh", "sigmoid")
