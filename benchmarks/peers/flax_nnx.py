"""Flax: `nnx.RNN` over its cells, `nnx.Bidirectional` over two, split into a graph and parameters and jitted by JAX."""

from collections.abc import Iterator
from typing import Any

import numpy as np

import multirnn as mr
from multirnn.protocol import Prepared, Work

from ._jax import FLOAT32, jitted
from ._peer import Peer


def _refuses(work: Work) -> str | None:
    spec = work.weights.spec
    if (spec.activation, spec.recurrent_activation, spec.reset_after) != ("tanh", "sigmoid", True):
        return "this contender leaves Flax's cells with the activations and the reset gate that they have"
    if spec.cell == "gru" and spec.bias != "none":
        return "nnx.GRUCell has no recurrent bias in its candidate"
    if spec.bias == "double" and work.mode in ("gradients", "training"):
        return "Flax's cells have one bias, and the gradients of two are asked for"
    return None


def prepare(work: Work, threads: int) -> Prepared:
    """The layers, split into a graph that stays and parameters."""
    import jax.numpy as jnp
    from flax import nnx

    spec = work.weights.spec
    layers = _layers(work.weights)
    graph, parameters, rest = nnx.split(layers, nnx.Param, ...)
    lengths = None if work.lengths is None else jnp.asarray(work.lengths)
    state = jnp.zeros((len(work.x), spec.hidden_size))
    carry = (state, state) if spec.cell == "lstm" else state
    zero = [(carry, carry) if spec.bidirectional else carry] * spec.num_layers

    def forward(parameters: Any, x: Any, carries: Any) -> Any:
        ends = []
        for layer, carry in zip(nnx.merge(graph, parameters, rest), carries, strict=True):
            end, x = layer(x, initial_carry=carry, seq_lengths=lengths, return_carry=True)
            if lengths is not None:  # or the outputs of a cell that has run over the padding are left there
                x = jnp.where((jnp.arange(x.shape[1]) < lengths[:, None])[..., None], x, 0)
            ends.append(end)
        return x, ends

    def canonical(parameters: Any) -> dict[str, Any]:
        named = _variables(spec, nnx.merge(graph, parameters, rest))
        return {name: np.asarray(variable[...].T).reshape(spec.shapes[name]) for name, variable in named}

    return jitted(work, forward, parameters, zero, canonical, c_first=True)


def _layers(weights: mr.Weights) -> Any:
    """A list of `nnx.RNN`, or of `nnx.Bidirectional`, with these weights."""
    import jax.numpy as jnp
    from flax import nnx

    kinds = {"simple_rnn": nnx.SimpleCell, "lstm": nnx.OptimizedLSTMCell, "gru": nnx.GRUCell}
    folded = weights if weights.spec.bias == "none" else mr.fold_biases(weights)
    spec = folded.spec
    zeros = nnx.initializers.zeros_init()  # an orthogonal one takes a second to draw, and is overwritten
    drawn = {"kernel_init": zeros, "recurrent_kernel_init": zeros, "rngs": nnx.Rngs(0)}

    def layer(size: int) -> Any:
        return nnx.RNN(kinds[spec.cell](size, spec.hidden_size, **drawn), rngs=False)

    sizes = [spec.output_size if k else spec.input_size for k in range(spec.num_layers)]
    both = [
        nnx.Bidirectional(layer(size), layer(size), rngs=False) if spec.bidirectional else layer(size) for size in sizes
    ]
    layers = nnx.List(both)
    for name, variable in _variables(spec, layers):
        array = folded.arrays[name]
        variable[...] = jnp.asarray(array.reshape(-1, *array.shape[2:]).T)
    return layers


def _variables(spec: mr.RecurrentSpec, layers: Any) -> Iterator[tuple[str, Any]]:
    """The variables by canonical name, each the transpose of that array."""
    for k, direction in spec.passes:
        cell = (getattr(layers[k], f"{direction}_rnn") if spec.bidirectional else layers[k]).cell
        prefix = f"layers.{k}.{direction}."
        yield prefix + "weight_ih", cell.dense_i.kernel
        yield prefix + "weight_hh", cell.dense_h.kernel
        if spec.bias != "none":
            yield prefix + "bias_ih", (cell.dense_h if spec.cell == "lstm" else cell.dense_i).bias


CONTENDERS = (
    Peer(
        "flax.nnx.RNN",
        prepare,
        ("jax", "jaxlib", "flax"),
        lacks={"float64": FLOAT32, "empty rows": "Flax runs on over the padding of a row of length 0"},
        also_refuses=_refuses,
    ),
)
