"""`PrepackedLSTM`: oneDNN's LSTM by private operators of PyTorch, on weights that are reordered once.

`nn.LSTM` runs the same kernel in inference and reorders its weights in every call.
"""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from multirnn_torch.loop import Call, Maybe

__all__ = ["PrepackedLSTM", "missing"]

LSTM = 2  # of the modes of at::native::mkldnn_rnn_layer: rnn_relu, rnn_tanh, lstm, gru


@cache
def missing() -> bool:
    """Whether this PyTorch lacks the operators; they are not promised to stay."""
    needed = "mkldnn::_reorder_mkldnn_rnn_layer_weight", "aten::mkldnn_rnn_layer"
    return not torch._C._has_mkldnn or not all(map(torch._C._jit_get_schemas_for_operator, needed))


class PrepackedLSTM:
    """A stack of LSTMs over full rows, in float32 and for inference.

    Args:
        passes: of every layer and direction the weights as PyTorch shapes them: of the input, of the state, and their two
            biases, None where there are none.
        directions: of a layer.
    """

    def __init__(self, passes: Sequence[tuple[Tensor, Tensor, Maybe, Maybe]], directions: int) -> None:
        self._directions, self._hidden = directions, passes[0][1].shape[1]
        self._passes = [self._packed(number, *weights) for number, weights in enumerate(passes)]

    def forward(self, call: Call) -> list[Tensor]:
        """The final h and c; the sequence is written into `call.y`."""
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
        """The weights as the operator takes them, and whether they run backward in time."""
        backward = number % self._directions == 1
        biases = [ih.new_zeros(len(ih)) if bias is None else bias for bias in (bias_ih, bias_hh)]
        # The order may depend on the sizes, of which those of a call are not known yet; the operator reorders what differs.
        sizes = [1, 1, ih.shape[1]]
        matrices = torch.ops.mkldnn._reorder_mkldnn_rnn_layer_weight(ih, hh, self._hidden, backward, True, False, sizes)
        return [*matrices, *biases], backward
