"""Training with PyTorch: `torch.optim.SGD` and `Adam` over the parameters of the module itself."""

from collections.abc import Callable, Iterable, Mapping
from inspect import signature
from types import MappingProxyType

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from multirnn.parity import Batch, Optimiser
from multirnn.weights import Array
from multirnn_torch.layer import TorchLayer

__all__ = ["OPTIMISERS", "default_epsilon", "train"]

OPTIMISERS: Mapping[str, Callable[[Iterable[nn.Parameter], Optimiser], torch.optim.Optimizer]] = MappingProxyType(
    {
        "sgd": lambda parameters, o: torch.optim.SGD(parameters, lr=o.learning_rate),
        "momentum": lambda parameters, o: torch.optim.SGD(parameters, lr=o.learning_rate, momentum=o.momentum),
        "adam": lambda parameters, o: torch.optim.Adam(
            parameters, lr=o.learning_rate, betas=(o.beta_1, o.beta_2), eps=o.epsilon
        ),
    }
)


def train(layer: TorchLayer, batch: Batch, optimiser: Optimiser, steps: int) -> Array:
    """Train the module in place; see `multirnn.protocol.Trains`."""
    native = layer.native
    losses = []
    with torch.inference_mode(False), torch.enable_grad():
        chosen = OPTIMISERS[optimiser.name](native.parameters(), optimiser)
        device, lengths = next(native.parameters()).device, torch.tensor(batch.lengths)
        x, target = (
            pack_padded_sequence(torch.tensor(array, device=device), lengths, batch_first=True, enforce_sorted=False)
            for array in (batch.x, batch.target)
        )
        for _ in range(steps):
            sequence, _ = native(x)
            loss = nn.functional.mse_loss(sequence.data, target.data)  # packed data are the valid steps alone
            chosen.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            chosen.step()
            losses.append(loss.item())
    return np.array(losses, layer.spec.dtype)


def default_epsilon() -> float:
    """The default of `torch.optim.Adam`."""
    return float(signature(torch.optim.Adam).parameters["eps"].default)
