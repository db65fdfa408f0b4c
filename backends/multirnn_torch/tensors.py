"""`TensorLoop`: a `Loop` by PyTorch's own operations, for machines without the compiled recurrence.

Only the recurrence is done step by step. The input is multiplied by its weights for all steps at once before, and the
gradients of weights and input are single products over all steps after, where autograd makes one product a step:

    for t = T-1 .. 0:   dz_t = (dy_t + dh) * slope_t;   dh = dz_t W_hh
    dW_hh = dZ^T H_before      dW_ih = dZ^T X      db = sum dZ      dX = dZ W_ih
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from multirnn import RecurrentSpec
from multirnn_torch.loop import Call, Maybe
from multirnn_torch.prepacked import PrepackedLSTM, missing

__all__ = ["TensorLoop"]


class _Weights(NamedTuple):
    """Of one layer in one direction; the biases None where there are none."""

    ih: Tensor
    hh: Tensor
    bias_ih: Maybe = None
    bias_hh: Maybe = None


class _Pass(Protocol):
    """One cell over time, in the order of `steps`; every sequence is `(time, batch, features)`."""

    @staticmethod
    def forward(
        x: Tensor, first: Sequence[Tensor], w: _Weights, y: Tensor, steps: Sequence[int]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The final states, and what `backward` needs besides y, which is written."""
        ...

    @staticmethod
    def backward(
        before: Tensor, first: Sequence[Tensor], w: _Weights, y: Tensor, kept: Sequence[Tensor],
        dy: Tensor, dfinal: Sequence[Maybe], steps: Sequence[int],
    ) -> tuple[Tensor, Tensor, list[Tensor]]:  # fmt: skip
        """Gradients: of what the input's product adds to, of what the recurrent product does, and of the first states.

        Args:
            before: h before each step.
            steps: in the order of `forward`.
        """
        ...


class TensorLoop:
    """By PyTorch's own operations, written into buffers that are allocated once a call. Rows are full.

    Args:
        spec: the stack.
    """

    ragged = False

    def __init__(self, spec: RecurrentSpec) -> None:
        cells: dict[str, type[_Pass]] = {
            "simple_rnn": _Relu if spec.activation == "relu" else _Tanh,
            "gru": _Gru,
            "lstm": _Lstm,
        }
        self._cell = cells[spec.cell]
        self._layers, self._directions, self._hidden = spec.num_layers, len(spec.directions), spec.hidden_size

    def prepare(self, weights: Sequence[Tensor]) -> PrepackedLSTM | None:
        """See `Loop.prepare`: an LSTM in float32 is reordered for oneDNN."""
        if self._cell is not _Lstm or weights[0].dtype is not torch.float32 or missing():
            return None
        passes = [w for layer in range(self._layers) for _, w in self._at(layer, weights)]
        return PrepackedLSTM(passes, self._directions)

    def forward(self, call: Call, *, keep: bool) -> tuple[list[Tensor], list[Tensor]]:
        """See `Loop.forward`. What is kept: of each pass what its cell keeps, then the sequences between the layers."""
        if call.prepared is not None and not keep:
            return call.prepared.forward(call), []
        x, state, weights, y, *_ = call
        below = x.transpose(0, 1)
        time, batch, _ = below.shape
        shape = time, batch, self._directions * self._hidden
        levels = [*(below.new_empty(shape) for _ in range(self._layers - 1)), y.transpose(0, 1)]
        kept, finals = [], []
        for layer, above in enumerate(levels):
            for number, w in self._at(layer, weights):
                first = self._first(state, number, above)
                final, stash = self._cell.forward(below, first, w, self._half(above, number), self._steps(number, time))
                finals.append(final)
                kept += stash
            below = above
        final = [torch.stack(parts) for parts in zip(*finals, strict=True)]
        return final, [*kept, *levels[:-1]] if keep else []

    def backward(
        self, call: Call, kept: Sequence[Tensor], dy: Maybe, dfinal: Sequence[Maybe], wanted: Sequence[bool]
    ) -> list[Maybe]:
        """See `Loop.backward`."""
        x, state, weights, y, *_ = call
        between = self._layers - 1
        split = len(kept) - between
        levels = [x.transpose(0, 1), *kept[split:], y.transpose(0, 1)]
        kept = kept[:split]
        stashed = split // (self._layers * self._directions)
        dabove = torch.zeros_like(levels[-1]) if dy is None else dy.transpose(0, 1)
        dweights: list[list[Tensor]] = []
        dstates: list[list[Tensor]] = []
        for layer, (below, above) in reversed(list(enumerate(pairwise(levels)))):
            products: list[Tensor] = []
            for number, w in reversed(self._at(layer, weights)):
                steps = self._steps(number, len(below))
                first = self._first(state, number, above)
                dz, drecurrent, dfirst = self._cell.backward(
                    before := _before(self._half(above, number), first[0], steps),
                    first,
                    w,
                    self._half(above, number),
                    kept[number * stashed : (number + 1) * stashed],
                    self._half(dabove, number).contiguous(),
                    [None if part is None else part[number] for part in dfinal],
                    steps,
                )
                dweights.append(_weight_gradients(w, below, before, dz, drecurrent))
                dstates.append(dfirst)
                if layer or wanted[0]:
                    products.append(dz @ w.ih)
            dabove = torch.add(*products) if len(products) == 2 else next(iter(products), dabove)
        dstate = [torch.stack(parts[::-1]) for parts in zip(*dstates, strict=True)]
        return [
            dabove.transpose(0, 1) if wanted[0] else None,
            *dstate,
            *(gradient for gradients in reversed(dweights) for gradient in gradients),
        ]

    def _at(self, layer: int, weights: Sequence[Tensor]) -> list[tuple[int, _Weights]]:
        """The weights of the directions of a layer, each with its number among the passes."""
        count = len(weights) // (self._layers * self._directions)
        numbers = range(layer * self._directions, (layer + 1) * self._directions)
        return [(number, _Weights(*weights[number * count : (number + 1) * count])) for number in numbers]

    def _first(self, state: Sequence[Maybe], number: int, like: Tensor) -> list[Tensor]:
        return [like.new_zeros(like.shape[1], self._hidden) if part is None else part[number] for part in state]

    def _half(self, sequence: Tensor, number: int) -> Tensor:
        """The part of a direction in a sequence."""
        return sequence.narrow(2, number % self._directions * self._hidden, self._hidden)

    def _steps(self, number: int, time: int) -> range:
        return range(time - 1, -1, -1) if number % self._directions else range(time)


def _before(y: Tensor, first: Tensor, steps: Sequence[int]) -> Tensor:
    """The states before each step."""
    return torch.cat([first[None], y[:-1]] if steps[0] == 0 else [y[1:], first[None]])


def _weight_gradients(w: _Weights, x: Tensor, before: Tensor, dz: Tensor, drecurrent: Tensor) -> list[Tensor]:
    rows, recurrent_rows = dz.flatten(0, 1), drecurrent.flatten(0, 1)
    gradients = [rows.t() @ x.flatten(0, 1), recurrent_rows.t() @ before.flatten(0, 1)]
    if w.bias_ih is not None and w.bias_hh is not None:
        gradients += [rows.sum(0), recurrent_rows[:, -len(w.bias_hh) :].sum(0)]
    return gradients


class _Tanh:
    """h' = tanh(W x + b + U h + d)."""

    activate = staticmethod(torch.tanh_)

    @staticmethod
    def slope(y: Tensor) -> Tensor:
        return 1 - y * y

    @classmethod
    def forward(
        cls, x: Tensor, first: Sequence[Tensor], w: _Weights, y: Tensor, steps: Sequence[int]
    ) -> tuple[list[Tensor], list[Tensor]]:
        bias = None if w.bias_ih is None or w.bias_hh is None else w.bias_ih + w.bias_hh
        products, outputs = functional.linear(x, w.ih, bias).unbind(0), y.unbind(0)
        recurrent, activate = w.hh.t(), cls.activate
        (h,) = first
        for t in steps:
            h = activate(torch.addmm(products[t], h, recurrent, out=outputs[t]))
        return [h], []

    @classmethod
    def backward(
        cls, before: Tensor, first: Sequence[Tensor], w: _Weights, y: Tensor, kept: Sequence[Tensor],
        dy: Tensor, dfinal: Sequence[Maybe], steps: Sequence[int],
    ) -> tuple[Tensor, Tensor, list[Tensor]]:  # fmt: skip
        dz = torch.empty_like(dy)
        slopes, dys, dzs = cls.slope(y).unbind(0), dy.unbind(0), dz.unbind(0)
        dh = _plus(dys[steps[-1]], dfinal[0])
        for t, earlier in _back(steps):
            d = torch.mul(dh, slopes[t], out=dzs[t])
            dh = d @ w.hh if earlier is None else torch.addmm(dys[earlier], d, w.hh)
        return dz, dz, [dh]


class _Relu(_Tanh):
    """h' = max(0, W x + b + U h + d)."""

    activate = staticmethod(torch.relu_)

    @staticmethod
    def slope(y: Tensor) -> Tensor:
        return (y > 0).to(y.dtype)


class _Gru:
    """h' = (1 - z) n + z h, where n = tanh(W_n x + b_n + r m) and m = U_n h + d_n."""

    @staticmethod
    def forward(
        x: Tensor, first: Sequence[Tensor], w: _Weights, y: Tensor, steps: Sequence[int]
    ) -> tuple[list[Tensor], list[Tensor]]:
        hidden = y.shape[2]
        bias, candidate = w.bias_ih, x.new_zeros(hidden)
        if bias is not None and w.bias_hh is not None:
            gates, candidate = w.bias_hh[:-hidden], w.bias_hh[-hidden:]
            bias = bias + functional.pad(gates, (0, len(bias) - len(gates)))
        products = functional.linear(x, w.ih, bias)
        gates, n = products[..., : 2 * hidden], products[..., 2 * hidden :]  # they are written over in place
        m = torch.empty_like(y, memory_format=torch.contiguous_format)
        r, z = gates[..., :hidden].unbind(0), gates[..., hidden:].unbind(0)
        recurrent, recurrent_n = w.hh[: 2 * hidden].t(), w.hh[2 * hidden :].t()
        (h,) = first
        for gate, r_t, z_t, n_t, m_t, y_t in _ordered(
            steps, gates.unbind(0), r, z, n.unbind(0), m.unbind(0), y.unbind(0)
        ):
            gate.addmm_(h, recurrent).sigmoid_()
            torch.addmm(candidate, h, recurrent_n, out=m_t)
            h = torch.lerp(n_t.addcmul_(r_t, m_t).tanh_(), h, z_t, out=y_t)
        return [h], [products, m]

    @staticmethod
    def backward(
        before: Tensor, first: Sequence[Tensor], w: _Weights, y: Tensor, kept: Sequence[Tensor],
        dy: Tensor, dfinal: Sequence[Maybe], steps: Sequence[int],
    ) -> tuple[Tensor, Tensor, list[Tensor]]:  # fmt: skip
        gates, m = kept
        r, z, n = gates.chunk(3, 2)
        dn = (1 - z) * (1 - n * n)  # by which dh becomes the gradient in n before its tanh
        slopes = torch.stack([dn * m * r * (1 - r), (before - n) * z * (1 - z), dn * r], 2)
        dh_all, drecurrent = torch.empty_like(dy), torch.empty_like(slopes)
        zs, slopes_t, dys, dhs, ds = z.unbind(0), slopes.unbind(0), dy.unbind(0), dh_all.unbind(0), drecurrent.unbind(0)
        rows = drecurrent.flatten(2).unbind(0)
        dh = dhs[steps[-1]].copy_(_plus(dys[steps[-1]], dfinal[0]))
        for t, earlier in _back(steps):
            torch.mul(dh[:, None], slopes_t[t], out=ds[t])
            if earlier is None:
                dh = (rows[t] @ w.hh).addcmul_(dh, zs[t])
            else:
                dh = torch.addmm(dys[earlier], rows[t], w.hh, out=dhs[earlier]).addcmul_(dh, zs[t])
        dz = drecurrent.clone()
        torch.mul(dh_all, dn, out=dz[:, :, 2])
        return dz.flatten(2), drecurrent.flatten(2), [dh]


class _Lstm:
    """c' = f c + i g and h' = o tanh(c')."""

    @staticmethod
    def forward(
        x: Tensor, first: Sequence[Tensor], w: _Weights, y: Tensor, steps: Sequence[int]
    ) -> tuple[list[Tensor], list[Tensor]]:
        hidden = y.shape[2]
        bias = None if w.bias_ih is None or w.bias_hh is None else w.bias_ih + w.bias_hh
        gates = functional.linear(x, w.ih, bias)
        i, f, g, o = (part.unbind(0) for part in gates.chunk(4, 2))
        input_forget = gates[..., : 2 * hidden].unbind(0)
        cells, tanhs = (torch.empty_like(y, memory_format=torch.contiguous_format) for _ in range(2))
        recurrent = w.hh.t()
        h, c = first
        views = gates.unbind(0), input_forget, i, f, g, o, cells.unbind(0), tanhs.unbind(0), y.unbind(0)
        for gate, i_f, i_t, f_t, g_t, o_t, c_t, tanh_t, y_t in _ordered(steps, *views):
            gate.addmm_(h, recurrent)
            i_f.sigmoid_()
            g_t.tanh_()
            o_t.sigmoid_()
            c = torch.mul(f_t, c, out=c_t).addcmul_(i_t, g_t)
            h = torch.mul(o_t, torch.tanh(c, out=tanh_t), out=y_t)
        return [h, c], [gates, cells, tanhs]

    @staticmethod
    def backward(
        before: Tensor, first: Sequence[Tensor], w: _Weights, y: Tensor, kept: Sequence[Tensor],
        dy: Tensor, dfinal: Sequence[Maybe], steps: Sequence[int],
    ) -> tuple[Tensor, Tensor, list[Tensor]]:  # fmt: skip
        gates, cells, tanhs = kept
        i, f, g, o = gates.chunk(4, 2)
        slopes = torch.stack([g * i * (1 - i), _before(cells, first[1], steps) * f * (1 - f), i * (1 - g * g)], 2)
        slope_o, slope_c = tanhs * o * (1 - o), o * (1 - tanhs * tanhs)
        dz = dy.new_empty(*dy.shape[:2], 4, dy.shape[2])
        dc_parts, do_parts, rows = dz[:, :, :3].unbind(0), dz[:, :, 3].unbind(0), dz.flatten(2).unbind(0)
        fs, slopes_t, slope_os, slope_cs, dys = (part.unbind(0) for part in (f, slopes, slope_o, slope_c, dy))
        last = steps[-1]
        dh = _plus(dys[last], dfinal[0])
        dc = torch.zeros_like(dh) if dfinal[1] is None else dfinal[1].clone()
        for t, earlier in _back(steps):
            dc.addcmul_(dh, slope_cs[t])
            torch.mul(dc[:, None], slopes_t[t], out=dc_parts[t])
            torch.mul(dh, slope_os[t], out=do_parts[t])
            dc.mul_(fs[t])
            dh = rows[t] @ w.hh if earlier is None else torch.addmm(dys[earlier], rows[t], w.hh)
        return dz.flatten(2), dz.flatten(2), [dh, dc]


def _plus(gradient: Tensor, other: Maybe) -> Tensor:
    return gradient if other is None else gradient + other


def _back(steps: Sequence[int]) -> Iterable[tuple[int, int | None]]:
    """The steps from the last to the first, each with the one before it."""
    return zip(reversed(steps), [*reversed(steps[:-1]), None], strict=True)


def _ordered(steps: Sequence[int], *views: Sequence[Tensor]) -> Iterable[tuple[Tensor, ...]]:
    """The steps of several sequences side by side, in this order."""
    return zip(*(view if steps[0] == 0 else view[::-1] for view in views), strict=True)
