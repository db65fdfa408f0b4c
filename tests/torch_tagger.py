"""A small model of PyTorch with two recurrent layers, one of them in two places."""

import torch
from torch import nn


class Tagger(nn.Module):
    """An embedding, an LSTM, a GRU that is used twice, and a head that shares the embedding's weight."""

    def __init__(self, seed: int = 0, dtype=torch.float64) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(11, 5, dtype=dtype)
        self.encoder = nn.LSTM(5, 7, num_layers=2, batch_first=True, dtype=dtype)
        self.decoder = nn.GRU(7, 7, batch_first=True, dtype=dtype)
        self.again = nn.ModuleList([self.decoder])
        self.head = nn.Linear(7, 5, dtype=dtype)
        self.out = nn.Linear(5, 11, dtype=dtype)
        self.out.weight = self.embedding.weight

    def forward(self, tokens):
        h = self.encoder(self.embedding(tokens))[0]
        return self.out(self.head(self.again[0](self.decoder(h)[0])[0]))


TOKENS = torch.arange(24).reshape(3, 8) * 7 % 11


def kinds(model: nn.Module) -> list[type]:
    return [type(part) for part in model.modules() if isinstance(part, nn.RNNBase)]
