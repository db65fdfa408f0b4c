"""Two models with recurrent layers inside, as their users write them in Flax NNX. Nothing here imports multirnn."""

import jax
import jax.numpy as jnp
from flax import nnx


class LanguageModel(nnx.Module):
    """Words to the logits of the next word: an embedding, two LSTMs with dropout, a head."""

    def __init__(self, vocabulary: int = 17, units: int = 8, dropout: float = 0.2, *, rngs: nnx.Rngs) -> None:
        self.embedding = nnx.Embed(vocabulary, units, rngs=rngs)
        self.first = nnx.RNN(nnx.OptimizedLSTMCell(units, units, rngs=rngs), return_carry=True)
        self.second = nnx.RNN(nnx.OptimizedLSTMCell(units, units, rngs=rngs), return_carry=True)
        self.drop = nnx.Dropout(dropout, rngs=rngs)
        self.head = nnx.Linear(units, vocabulary, rngs=rngs)

    def __call__(self, words: jax.Array, state: tuple | None = None) -> tuple[jax.Array, tuple]:
        """From (batch, time) to logits (batch, time, vocabulary), and the state after the last word."""
        first, second = state or (None, None)
        first, outputs = self.first(self.drop(self.embedding(words)), initial_carry=first)
        second, outputs = self.second(self.drop(outputs), initial_carry=second)
        return self.head(self.drop(outputs)), (first, second)


class Tagger(nnx.Module):
    """Words to the logits of their tags, read in both directions; sentences end where `lengths` says."""

    def __init__(self, vocabulary: int = 17, tags: int = 5, units: int = 6, *, rngs: nnx.Rngs) -> None:
        self.embedding = nnx.Embed(vocabulary, units, rngs=rngs)
        self.layer = nnx.Bidirectional(
            nnx.RNN(nnx.LSTMCell(units, units, rngs=rngs)), nnx.RNN(nnx.LSTMCell(units, units, rngs=rngs))
        )
        self.head = nnx.Linear(2 * units, tags, rngs=rngs)

    def __call__(self, words: jax.Array, lengths: jax.Array) -> jax.Array:
        """From (batch, time) and (batch,) to (batch, time, tags), zero at padding."""
        logits = self.head(self.layer(self.embedding(words), seq_lengths=lengths))
        within = jnp.arange(words.shape[1]) < lengths[:, None]
        return jnp.where(within[:, :, None], logits, 0)
