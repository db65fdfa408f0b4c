"""`TensorLoop`: a `Loop` in PyTorch's own operations with a hand-written backward pass, for machines without the kernel.

Only the recurrence runs step by step. Before it, one product with the input weights covers all steps; after it, single
products give the gradients of weights and input. Autograd makes one product per step.

    for t = T-1 .. 0:   dz_t = (dy_t + dh) * slope_t;   dh = dz_t W_hh
    dW_hh = dZ^T H_before      dW_ih = dZ^T X      db = sum dZ      dX = dZ W_ih
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from multirnn import RecurrentSpec
from multirnn_torch.loop import LoopCall, Maybe
from multirnn_torch.prepacked import PrepackedLSTM, refuses

__all__ = ["TensorLoop"]


class _Weights(NamedTuple):
    """The weights of one layer in one direction; without biases these are None."""

    ih: Tensor
    hh: Tensor
    bias_ih: Maybe = None
    bias_hh: Maybe = None


class TensorLoop:
    """Simple RNNs and GRUs over full rows, in buffers that are allocated once per call.

    There is no loop for LSTMs, since PyTorch's own is at least as fast; a frozen one in float32 runs through
    `PrepackedLSTM`.
    """

    ragged = False

    def __init__(self, spec: RecurrentSpec) -> None:
        self._cell: type[_Cell] = _Gru if spec.cell == "gru" else _Relu if spec.activation == "relu" else _Tanh
        self._lstm = spec.cell == "lstm"
        self._layers, self._directions, self._hidden = spec.num_layers, len(spec.directions), spec.hidden_size

    def prepare(self, weights: Sequence[Tensor]) -> PrepackedLSTM | None:
        """See `Loop.prepare`: an LSTM in float32 is reordered for oneDNN."""
        if not self._lstm or weights[0].dtype is not torch.float32 or refuses():
            return None
        return PrepackedLSTM(
            [w for layer in range(self._layers) for _, w in self._at(layer, weights)], self._directions
        )

    def forward(self, call: LoopCall, *, keep: bool) -> tuple[list[Tensor], list[Tensor]]:
        """See `Loop.forward`. Keeps the buffers of each pass, then the sequences between the layers."""
        if call.prepared is not None and not keep:
            return call.prepared.forward(call), []
        x, (h,), weights, y, *_ = call
        above = y.transpose(0, 1)
        between = [above.new_empty(above.shape) for _ in range(self._layers - 1)]
        levels = [x.transpose(0, 1), *between, above]
        kept, finals = [], []
        for layer, (below, above) in enumerate(pairwise(levels)):
            for number, w in self._at(layer, weights):
                first, backward = self._first(h, number, above), self._is_backward(number)
                final, stash = self._cell.forward(below, first, w, self._half(above, number), backward)
                finals.append(final)
                kept += stash
        return [torch.stack(finals)], [*kept, *between] if keep else []

    def backward(
        self, call: LoopCall, kept: Sequence[Tensor], dy: Maybe, dfinal: Sequence[Maybe], wanted: Sequence[bool]
    ) -> list[Maybe]:
        """See `Loop.backward`."""
        x, (h,), weights, y, *_ = call
        (dlast,) = dfinal
        split = len(kept) - (self._layers - 1)
        levels = [x.transpose(0, 1), *kept[split:], y.transpose(0, 1)]
        stashed = split // (self._layers * self._directions)
        dabove = torch.zeros_like(levels[-1]) if dy is None else dy.transpose(0, 1)
        dweights: list[list[Tensor]] = []
        dfirsts: list[Tensor] = []
        for layer, (below, above) in reversed(list(enumerate(pairwise(levels)))):
            products: list[Tensor] = []
            for number, w in reversed(self._at(layer, weights)):
                backward, y_half = self._is_backward(number), self._half(above, number)
                first = self._first(h, number, above)[None]
                before = torch.cat([y_half[1:], first] if backward else [first, y_half[:-1]])
                dz, drecurrent, dfirst = self._cell.backward(
                    before,
                    w,
                    y_half,
                    kept[number * stashed : (number + 1) * stashed],
                    self._half(dabove, number).contiguous(),
                    None if dlast is None else dlast[number],
                    backward,
                )
                dweights.append(_weight_gradients(w, below, before, dz, drecurrent))
                dfirsts.append(dfirst)
                if layer or wanted[0]:
                    products.append(dz @ w.ih)
            dabove = torch.add(*products) if len(products) == 2 else next(iter(products), dabove)
        dx = dabove.transpose(0, 1) if wanted[0] else None
        return [dx, torch.stack(dfirsts[::-1]), *(d for gradients in reversed(dweights) for d in gradients)]

    def _at(self, layer: int, weights: Sequence[Tensor]) -> list[tuple[int, _Weights]]:
        """The weights of each direction of a layer, with its number among the passes."""
        count = len(weights) // (self._layers * self._directions)
        numbers = range(layer * self._directions, (layer + 1) * self._directions)
        return [(number, _Weights(*weights[number * count : (number + 1) * count])) for number in numbers]

    def _first(self, h: Maybe, number: int, like: Tensor) -> Tensor:
        return like.new_zeros(like.shape[1], self._hidden) if h is None else h[number]

    def _half(self, sequence: Tensor, number: int) -> Tensor:
        """The features of one direction."""
        return sequence.narrow(2, number % self._directions * self._hidden, self._hidden)

    def _is_backward(self, number: int) -> bool:
        return number % self._directions == 1


def _weight_gradients(w: _Weights, x: Tensor, before: Tensor, dz: Tensor, drecurrent: Tensor) -> list[Tensor]:
    rows, recurrent_rows = dz.flatten(0, 1), drecurrent.flatten(0, 1)
    gradients = [rows.t() @ x.flatten(0, 1), recurrent_rows.t() @ before.flatten(0, 1)]
    if w.bias_ih is not None and w.bias_hh is not None:
        gradients += [rows.sum(0), recurrent_rows[:, -len(w.bias_hh) :].sum(0)]
    return gradients


class _Cell(Protocol):
    """One cell over all steps in one direction; sequences are `(time, batch, features)`."""

    @staticmethod
    def forward(x: Tensor, h: Tensor, w: _Weights, y: Tensor, backward: bool) -> tuple[Tensor, list[Tensor]]:
        """Write y; return the final h, and the buffers that `backward` needs in addition to y."""
        ...

    @staticmethod
    def backward(
        before: Tensor, w: _Weights, y: Tensor, kept: Sequence[Tensor], dy: Tensor, dlast: Maybe, backward: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of the input product, of the recurrent product and of the first h; `before` is h before each step."""
        ...


class _Tanh:
    """h' = tanh(W x + b + U h + d)."""

    activate = staticmethod(torch.tanh_)

    @staticmethod
    def slope(y: Tensor) -> Tensor:
        return 1 - y * y

    @classmethod
    def forward(cls, x: Tensor, h: Tensor, w: _Weights, y: Tensor, backward: bool) -> tuple[Tensor, list[Tensor]]:
        bias = None if w.bias_ih is None or w.bias_hh is None else w.bias_ih + w.bias_hh
        recurrent, activate = w.hh.t(), cls.activate
        for product, output in zip(*_steps(backward, functional.linear(x, w.ih, bias), y), strict=True):
            h = activate(torch.addmm(product, h, recurrent, out=output))
        return h, []

    @classmethod
    def backward(
        cls, before: Tensor, w: _Weights, y: Tensor, kept: Sequence[Tensor], dy: Tensor, dlast: Maybe, backward: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        dz = torch.empty_like(dy)
        slopes, dys, dzs = _steps(not backward, cls.slope(y), dy, dz)
        dh = dys[0] if dlast is None else dys[0] + dlast
        for slope, dz_t, earlier in zip(slopes, dzs, (*dys[1:], None), strict=True):
            torch.mul(dh, slope, out=dz_t)
            dh = dz_t @ w.hh if earlier is None else torch.addmm(earlier, dz_t, w.hh)
        return dz, dz, dh


class _Relu(_Tanh):
    """h' = max(0, W x + b + U h + d)."""

    activate = staticmethod(torch.relu_)

    @staticmethod
    def slope(y: Tensor) -> Tensor:
        return (y > 0).to(y.dtype)


class _Gru:
    """h' = (1 - z) n + z h, where n = tanh(W_n x + b_n + r m) and m = U_n h + d_n."""

    @staticmethod
    def forward(x: Tensor, h: Tensor, w: _Weights, y: Tensor, backward: bool) -> tuple[Tensor, list[Tensor]]:
        hidden = y.shape[2]
        bias, candidate = w.bias_ih, x.new_zeros(hidden)
        if bias is not None and w.bias_hh is not None:
            gates, candidate = w.bias_hh[:-hidden], w.bias_hh[-hidden:]
            bias = bias + functional.pad(gates, (0, len(bias) - len(gates)))
        products = functional.linear(x, w.ih, bias)  # r, z and n are computed in place
        r, z, n = products.chunk(3, 2)
        m = torch.empty_like(y, memory_format=torch.contiguous_format)
        recurrent, recurrent_n = w.hh[: 2 * hidden].t(), w.hh[2 * hidden :].t()
        views = _steps(backward, products[..., : 2 * hidden], r, z, n, m, y)
        for gates_t, r_t, z_t, n_t, m_t, y_t in zip(*views, strict=True):
            gates_t.addmm_(h, recurrent).sigmoid_()
            torch.addmm(candidate, h, recurrent_n, out=m_t)
            h = torch.lerp(n_t.addcmul_(r_t, m_t).tanh_(), h, z_t, out=y_t)
        return h, [products, m]

    @staticmethod
    def backward(
        before: Tensor, w: _Weights, y: Tensor, kept: Sequence[Tensor], dy: Tensor, dlast: Maybe, backward: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        gates, m = kept
        r, z, n = gates.chunk(3, 2)
        dn = (1 - z) * (1 - n * n)  # times dh it is the gradient of n before its tanh
        slopes = torch.stack([dn * m * r * (1 - r), (before - n) * z * (1 - z), dn * r], 2)
        dh_all, drecurrent = torch.empty_like(dy), torch.empty_like(slopes)
        views = z, slopes, drecurrent, drecurrent.flatten(2), dy, dh_all
        *current, dys, dhs = _steps(not backward, *views)
        dh = dhs[0].copy_(dys[0] if dlast is None else dys[0] + dlast)
        following = zip((*dys[1:], None), (*dhs[1:], None), strict=True)
        for z_t, slope, d, row, (earlier, out) in zip(*current, following, strict=True):
            torch.mul(dh[:, None], slope, out=d)
            product = row @ w.hh if earlier is None else torch.addmm(earlier, row, w.hh, out=out)
            dh = product.addcmul_(dh, z_t)
        dz = drecurrent.clone()
        torch.mul(dh_all, dn, out=dz[:, :, 2])
        return dz.flatten(2), drecurrent.flatten(2), dh


def _steps(reverse: bool, *sequences: Tensor) -> list[tuple[Tensor, ...]]:
    """The steps of each sequence, from the last to the first if `reverse`."""
    return [sequence.unbind(0)[::-1] if reverse else sequence.unbind(0) for sequence in sequences]
