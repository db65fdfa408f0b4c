"""`PrepackedLSTM`: oneDNN's LSTM through private operators of PyTorch, on weights that are reordered once.

`nn.LSTM` runs the same kernel in inference and reorders its weights in every call.
"""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from multirnn_torch.loop import LoopCall, Maybe

__all__ = ["PrepackedLSTM", "refuses"]

LSTM = 2  # among the modes of at::native::mkldnn_rnn_layer: rnn_relu, rnn_tanh, lstm, gru


@cache
def refuses() -> str | None:
    """None, or why this PyTorch cannot run it: its private operators may go."""
    needed = "mkldnn::_reorder_mkldnn_rnn_layer_weight", "aten::mkldnn_rnn_layer"
    if torch._C._has_mkldnn and all(map(torch._C._jit_get_schemas_for_operator, needed)):
        return None
    return "this PyTorch has no oneDNN, or not its private operators"


class PrepackedLSTM:
    """A stack of LSTMs over full rows, in float32 and for inference.

    Each pass has the weights of a layer and direction in PyTorch's shapes: for the input, for the state, and their biases
    or None.
    """

    def __init__(self, passes: Sequence[tuple[Tensor, Tensor, Maybe, Maybe]], directions: int) -> None:
        self._directions, self._hidden = directions, passes[0][1].shape[1]
        self._passes = [self._packed(number, *weights) for number, weights in enumerate(passes)]

    def forward(self, call: LoopCall) -> list[Tensor]:
        """Write `call.y`; return the final h and c."""
        shape = len(self._passes), call.size[0], self._hidden
        first = [call.x.new_zeros(shape) if part is None else part for part in call.state]
        below = call.x.transpose(0, 1).contiguous()
        ends = []
        for layer in range(0, len(self._passes), self._directions):
            outputs = []
            for number in range(layer, layer + self._directions):
                weights, backward = self._passes[number]
                y, *end, _ = torch.ops.aten.mkldnn_rnn_layer(
                    *(below, *weights, *(part[number] for part in first)),
                    *(backward, [], LSTM, self._hidden, 1, True, False, False, False),
                )
                outputs.append(y)
                ends.append([part.reshape(shape[1:]) for part in end])
            below = torch.cat(outputs, dim=-1) if self._directions == 2 else outputs[0]
        call.y.transpose(0, 1).copy_(below)
        return [torch.stack(parts) for parts in zip(*ends, strict=True)]

    def _packed(self, number: int, ih: Tensor, hh: Tensor, bias_ih: Maybe, bias_hh: Maybe) -> tuple[list[Tensor], bool]:
        """The operator's form of the weights, and whether they run backward in time."""
        backward = number % self._directions == 1
        biases = [ih.new_zeros(len(ih)) if bias is None else bias for bias in (bias_ih, bias_hh)]
        # The order may depend on batch and time, which are unknown yet; the operator reorders again where it differs.
        sizes = [1, 1, ih.shape[1]]
        matrices = torch.ops.mkldnn._reorder_mkldnn_rnn_layer_weight(ih, hh, self._hidden, backward, True, False, sizes)
        return [*matrices, *biases], backward
