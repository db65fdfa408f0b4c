"""Shared by the peers of PyTorch: a module of `torch.nn` with given weights, and the specs that have none."""

from typing import Any

import multirnn as mr
from multirnn.protocol import Work

LAYERS = {"simple_rnn": "RNN", "lstm": "LSTM", "gru": "GRU"}


def refuses(work: Work) -> str | None:
    """None, or why `torch.nn` has no such layer."""
    spec = work.weights.spec
    relu = spec.cell == "simple_rnn" and spec.activation == "relu"
    if not (spec.activation == "tanh" or relu) or spec.recurrent_activation != "sigmoid" or not spec.reset_after:
        return f"torch.nn.{LAYERS[spec.cell]} has other activations, or another reset gate"
    return None


def module(work: Work, *, batch_first: bool) -> Any:
    """The layer; of a single bias, one of PyTorch's two, the other is a zero that is not trained."""
    import torch

    spec = work.weights.spec
    made = getattr(torch.nn, LAYERS[spec.cell])(
        spec.input_size,
        spec.hidden_size,
        spec.num_layers,
        bias=spec.bias != "none",
        batch_first=batch_first,
        bidirectional=spec.bidirectional,
        dtype=getattr(torch, spec.dtype),
        **({"nonlinearity": spec.activation} if spec.cell == "simple_rnn" else {}),
    )
    weights = mr.split_biases(work.weights) if spec.bias == "single" else work.weights
    arrays = mr.to_arrays(weights, convention="torch")
    made.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
    for name, parameter in made.named_parameters():
        parameter.requires_grad_(spec.bias == "double" or not name.startswith("bias_hh"))
    return made


def output(sequence: Any, state: Any) -> mr.Output:
    """The result of such a layer, batch first, in NumPy."""
    return mr.Output(sequence.detach().numpy(), mr.State(*(part.detach().numpy() for part in parts(state))))


def parts(state: Any) -> tuple[Any, ...]:
    """A state of such a layer, h or (h, c), as a tuple."""
    return state if isinstance(state, tuple) else (state,)
