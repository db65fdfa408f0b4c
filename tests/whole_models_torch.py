"""Six models with recurrent layers inside, as their users write them in PyTorch.

Nothing here imports multirnn. All are batch first.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

State = tuple[Tensor, Tensor]  # h and c of an LSTM, each (layers, batch, units)


class LanguageModel(nn.Module):
    """Words to the logits of the next word: an embedding, an LSTM of two layers with dropout, a head."""

    def __init__(self, vocabulary: int = 17, units: int = 8, dropout: float = 0.2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, units)
        self.drop = nn.Dropout(dropout)
        self.lstm = nn.LSTM(units, units, num_layers=2, dropout=dropout, batch_first=True)
        self.head = nn.Linear(units, vocabulary)

    def forward(self, words: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """From (batch, time) to logits (batch, time, vocabulary), and the state after the last word."""
        outputs, state = self.lstm(self.drop(self.embedding(words)), state)
        return self.head(self.drop(outputs)), state

    @torch.no_grad()
    def generate(self, words: Tensor, count: int) -> Tensor:
        """The `count` most likely words, one by one, after (batch, time): (batch, count)."""
        logits, state = self(words)
        generated = []
        for _ in range(count):
            generated.append(logits[:, -1:].argmax(-1))
            logits, state = self(generated[-1], state)
        return torch.cat(generated, dim=1)


class Enhancer(nn.Module):
    """Noisy speech to clean: a causal convolution over frames, a GRU for each half of the bands, a mask of every band.

    Its state is what the convolution has heard before, and the states of both GRUs.
    """

    def __init__(self, bands: int = 12, channels: int = 10, units: int = 6, reach: int = 3) -> None:
        super().__init__()
        self.bands, self.units, self.before = bands, units, reach - 1
        self.convolution = nn.Conv1d(bands, channels, reach)
        self.low = nn.GRU(channels, units, batch_first=True)
        self.high = nn.GRU(channels, units, batch_first=True)
        self.low_mask = nn.Linear(units, bands // 2)
        self.high_mask = nn.Linear(units, bands - bands // 2)

    def start(self, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Silence."""
        heard = torch.zeros(batch, self.before, self.bands)
        return heard, torch.zeros(1, batch, self.units), torch.zeros(1, batch, self.units)

    def forward(
        self, frames: Tensor, heard: Tensor, low: Tensor, high: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """From magnitudes (batch, time, bands) to cleaner ones, and the state; see `start`."""
        window = torch.cat([heard, frames], dim=1)
        features = functional.relu(self.convolution(window.transpose(1, 2))).transpose(1, 2)
        lower, low = self.low(features, low)
        higher, high = self.high(features, high)
        mask = torch.sigmoid(torch.cat([self.low_mask(lower), self.high_mask(higher)], dim=2))
        return mask * frames, window[:, -self.before :], low, high


class Tagger(nn.Module):
    """Words to the logits of their tags, read in both directions; sentences end where `lengths` says.

    With `packs` off, the layer is given the lengths: multirnn's takes them. Packed sequences can be neither compiled nor
    exported.
    """

    packs = True

    def __init__(self, vocabulary: int = 17, tags: int = 5, units: int = 6) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, units)
        self.lstm = nn.LSTM(units, units, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * units, tags)

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        """From (batch, time) and (batch,) to (batch, time, tags)."""
        embedded = self.embedding(words)
        if self.packs:
            packed = pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
            outputs, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=words.shape[1])
        else:
            outputs, _ = self.lstm(embedded, lengths=lengths)
        return self.head(outputs)


class Translator(nn.Module):
    """An encoder and a decoder, which starts from the encoder's last state."""

    def __init__(self, vocabulary: int = 17, units: int = 8) -> None:
        super().__init__()
        self.source = nn.Embedding(vocabulary, units)
        self.target = nn.Embedding(vocabulary, units)
        self.encoder = nn.LSTM(units, units, batch_first=True)
        self.decoder = nn.LSTM(units, units, batch_first=True)
        self.head = nn.Linear(units, vocabulary)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """From (batch, time) and the words before each target (batch, other time) to (batch, other time, vocabulary)."""
        _, meaning = self.encoder(self.source(source))
        outputs, _ = self.decoder(self.target(target), meaning)
        return self.head(outputs)


class Policy(nn.Module):
    """Observations to the logits of actions; the state is zero again where an episode ended."""

    def __init__(self, observed: int = 7, actions: int = 3, units: int = 8) -> None:
        super().__init__()
        self.units = units
        self.features = nn.Sequential(nn.Linear(observed, units), nn.Tanh())
        self.lstm = nn.LSTM(units, units, batch_first=True)
        self.head = nn.Linear(units, actions)

    def start(self, batch: int) -> State:
        """The state at the beginning of an episode."""
        return torch.zeros(1, batch, self.units), torch.zeros(1, batch, self.units)

    def act(self, observation: Tensor, ended: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step: from (batch, observed), and whether an episode ended just before (batch,), to (batch, actions)."""
        goes_on = (~ended).to(h.dtype)[None, :, None]
        output, (h, c) = self.lstm(self.features(observation)[:, None], (goes_on * h, goes_on * c))
        return self.head(output[:, 0]), h, c

    def forward(self, observations: Tensor, ended: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A rollout: from (batch, time, observed) and (batch, time) to (batch, time, actions), and the state."""
        logits = []
        for observation, end in zip(observations.unbind(1), ended.unbind(1), strict=True):
            chosen, h, c = self.act(observation, end, h, c)
            logits.append(chosen)
        return torch.stack(logits, dim=1), h, c


class Acting(nn.Module):
    """One step of a policy, which is all that is deployed of it."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observation: Tensor, ended: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Policy.act`."""
        return self.policy.act(observation, ended, h, c)


class Forecaster(nn.Module):
    """The next `horizon` values of a series: a decoder that reads its own forecasts, from the state of an encoder."""

    def __init__(self, features: int = 3, units: int = 8, horizon: int = 4) -> None:
        super().__init__()
        self.horizon = horizon
        self.encoder = nn.GRU(features, units, batch_first=True)
        self.decoder = nn.GRU(features, units, batch_first=True)
        self.head = nn.Linear(units, features)

    def forward(self, history: Tensor) -> Tensor:
        """From (batch, time, features) to (batch, horizon, features)."""
        _, state = self.encoder(history)
        value, forecasts = history[:, -1:], []
        for _ in range(self.horizon):
            output, state = self.decoder(value, state)
            value = value + self.head(output)
            forecasts.append(value)
        return torch.cat(forecasts, dim=1)
