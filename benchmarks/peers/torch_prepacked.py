"""PyTorch's LSTM at its best known: oneDNN's layer by private operators, with weights that are packed once."""

from typing import Any

import multirnn as mr
from multirnn.protocol import Prepared, Work

from ._peer import Peer, gathered, modes

LSTM_MODE = 2  # of at::native::mkldnn_rnn_layer: rnn_relu, rnn_tanh, lstm, gru


def _refuses(work: Work) -> str | None:
    spec = work.weights.spec
    if spec.cell != "lstm":
        return "it is for the inference of an LSTM"
    if (spec.activation, spec.recurrent_activation) != ("tanh", "sigmoid"):
        return "oneDNN's LSTM has tanh and sigmoid"
    import torch

    for name in ("mkldnn::_reorder_mkldnn_rnn_layer_weight", "aten::mkldnn_rnn_layer"):
        if not torch._C._jit_get_schemas_for_operator(name):
            return f"this PyTorch has no operator {name}"
    return None


def prepare(work: Work, threads: int) -> Prepared:
    """The layers one after the other, time first."""
    import torch

    torch.set_num_threads(threads)
    spec = work.weights.spec
    weights = mr.split_biases(work.weights)
    x = torch.tensor(work.x.swapaxes(0, 1).copy())
    time, batch, _ = x.shape
    zero = torch.zeros(batch, spec.hidden_size)
    packed = []
    for layer, direction in spec.passes:
        p = {name: torch.tensor(a.reshape(-1, *a.shape[2:])) for name, a in weights.at(layer, direction).items()}
        backward = direction == "backward"
        sizes = [time, batch, p["weight_ih"].shape[1]]
        matrices = torch.ops.mkldnn._reorder_mkldnn_rnn_layer_weight(
            p["weight_ih"], p["weight_hh"], spec.hidden_size, backward, True, False, sizes
        )
        packed.append((*matrices, p["bias_ih"], p["bias_hh"], backward))

    @torch.inference_mode()
    def run(state: Any) -> Any:
        y, ends = x, []
        for _layer in range(spec.num_layers):
            outputs = []
            for _ in spec.directions:
                *arrays, backward = packed[len(ends)]
                h, c = state[len(ends)]
                sequence, h, c, _ = torch.ops.aten.mkldnn_rnn_layer(
                    y, *arrays, h, c, backward, [], LSTM_MODE, spec.hidden_size, 1, True, False, False, False
                )
                outputs.append(sequence)
                ends.append((h.reshape(zero.shape), c.reshape(zero.shape)))
            y = torch.cat(outputs, dim=-1) if spec.bidirectional else outputs[0]
        return y, ends

    def output(found: Any) -> mr.Output:
        return gathered(spec, found[0].swapaxes(0, 1), [part for end in found[1] for part in end])

    return modes(work, run, [(zero, zero)] * len(packed), output)


CONTENDERS = (
    Peer(
        "torch LSTM, prepacked",
        prepare,
        ("torch",),
        lacks={
            "gradients": "it is for the inference of an LSTM",
            "float64": "oneDNN's LSTM computes in float32",
            "lengths": "it takes no lengths",
        },
        also_refuses=_refuses,
    ),
)
