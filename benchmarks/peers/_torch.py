"""Shared by the peers of PyTorch: a module with the weights of a work, what `torch.nn` has no layer for, and the forward pass."""

from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import multirnn as mr
from multirnn.protocol import Prepared, Work

LAYERS = {"simple_rnn": "RNN", "lstm": "LSTM", "gru": "GRU"}


class TorchPeer:
    """A peer that runs on PyTorch alone."""

    kind = "peer"

    def versions(self) -> Mapping[str, str]:
        """The version of PyTorch."""
        return {"torch": version("torch")}


def refuses(spec: mr.RecurrentSpec) -> str | None:
    """What PyTorch has no layer for."""
    relu = spec.cell == "simple_rnn" and spec.activation == "relu"
    if not (spec.activation == "tanh" or relu) or spec.recurrent_activation != "sigmoid" or not spec.reset_after:
        return f"torch.nn.{LAYERS[spec.cell]} has other activations, or another reset gate"
    return None


def module(work: Work, *, batch_first: bool) -> Any:
    """The layer; of a single bias, one of PyTorch's two, the other is a zero that nobody trains."""
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


def forward(
    work: Work, run: Callable[[Any], tuple[Any, Any]], state: Any, output: Callable[[Any], mr.Output]
) -> Prepared:
    """Inference from a state, or streaming, which carries it from call to call.

    Args:
        work: in the mode "inference" or "streaming".
        run: from a state to the sequence and the final state.
        state: the initial one.
        output: the result of `run` in NumPy.
    """
    import torch

    def call() -> Any:
        nonlocal state
        with torch.inference_mode():
            found = run(state)
        if work.mode == "streaming":
            state = found[1]
        return found

    return Prepared(call, lambda: output(call()))


def parts(state: Any) -> tuple[Any, ...]:
    """A state of such a layer, h or (h, c), as a tuple."""
    return state if isinstance(state, tuple) else (state,)
