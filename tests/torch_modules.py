"""Layers and cells of PyTorch that are read, and a check that reading leaves no trace."""

import random

import numpy as np
import pytest
import torch
from adopted_layers import assert_equal, reference
from multirnn_torch import CandidateBiasGRU
from multirnn_torch.fast import FastCandidateBiasGRU, FastGRU, FastLSTM, FastRNN
from torch import nn
from torch.nn.utils import parametrize

import multirnn as mr
from multirnn.comparison import widened
from multirnn.numerics import draw_call

KINDS = [nn.RNN, nn.LSTM, nn.GRU, CandidateBiasGRU, FastRNN, FastLSTM, FastGRU, FastCandidateBiasGRU]
CELLS = [nn.RNNCell, nn.LSTMCell, nn.GRUCell]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


@pytest.fixture(autouse=True)
def seeded():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2


def made(kind, **options):
    return kind(5, 11, batch_first=True, **options) if issubclass(kind, nn.RNNBase) else kind(5, 11)


def everything(module):
    """Whatever a call could leave behind, as what can be compared."""
    attributes = []
    for part in module.modules():
        for name, value in vars(part).items():
            held = value if isinstance(value, list) else value.items() if isinstance(value, dict) else [value]
            attributes.append((name, id(value), list(map(id, held)) if isinstance(value, list) else str(held)))
    tensors = [*module.parameters(), *module.buffers()]
    numbers = [
        (tensor.detach().numpy().tobytes(), tensor._version, tensor.requires_grad, tensor.grad) for tensor in tensors
    ]
    states = torch.get_rng_state().numpy().tobytes(), random.getstate(), np.random.get_state()[1].tobytes()  # noqa: NPY002
    return attributes, numbers, states, dict(parametrize._cache), parametrize._cache_enabled


def read(module):
    """`mr.read`, which leaves no trace."""
    before = everything(module)
    try:
        return mr.read(module)
    finally:
        assert everything(module) == before


def assert_read_is_what_runs(module) -> None:
    weights = read(module)
    x, state, _ = draw_call(weights.spec)
    expected = reference(weights)(x.astype("float64"), widened(state))
    hx = tuple(map(torch.from_numpy, state)) if state.c is not None else torch.from_numpy(state.h)
    with torch.no_grad():
        if isinstance(module, nn.RNNCellBase):
            hx = tuple(part[0] for part in hx) if isinstance(hx, tuple) else hx[0]
            for step in torch.from_numpy(x).unbind(1):
                hx = module(step, hx)
            assert_equal(hx[0].numpy() if isinstance(hx, tuple) else hx.numpy(), expected.state.h[0], weights.spec)
        else:
            assert_equal(module(torch.from_numpy(x), hx)[0].numpy(), expected.sequence, weights.spec)
