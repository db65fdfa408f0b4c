"""Flax: `nnx.RNN` over its cells, split into a graph and its parameters and jitted with JAX.

`nnx.GRUCell` has no recurrent bias in its candidate, so a GRU that has one is refused.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

import multirnn as mr
from multirnn.protocol import Prepared, Work

from ._jax import prepared, versions


class FlaxNnx:
    """`nnx.RNN` with SimpleCell, OptimizedLSTMCell and GRUCell; `nnx.Bidirectional` over two."""

    name = "flax.nnx.RNN"
    kind = "peer"

    def versions(self) -> Mapping[str, str]:
        """The versions of Flax and JAX."""
        return versions("flax")

    def refuses(self, work: Work) -> str | None:
        """What no cell of Flax is."""
        spec = work.weights.spec
        if spec.dtype != "float32":
            return "JAX computes in float32 unless the whole process is set to float64"
        if (spec.activation, spec.recurrent_activation, spec.reset_after) != ("tanh", "sigmoid", True):
            return "this contender leaves Flax's cells with the activations and the reset gate that they have"
        if spec.cell == "gru" and spec.bias != "none":
            return "nnx.GRUCell has no recurrent bias in its candidate"
        if spec.bias == "double" and work.mode in ("gradients", "training"):
            return "Flax's cells have one bias, and the gradients of two are asked for"
        if work.lengths is not None and not work.lengths.all():
            return "Flax runs on over the padding of a row of length 0"
        return None

    def prepare(self, work: Work, threads: int) -> Prepared:
        """The layers, split into a graph that stays and parameters."""
        import jax.numpy as jnp
        from flax import nnx

        spec = work.weights.spec
        layers = _layers(work.weights)
        graph, parameters, rest = nnx.split(layers, nnx.Param, ...)
        lengths = None if work.lengths is None else jnp.asarray(work.lengths)
        cell = (jnp.zeros((len(work.x), spec.hidden_size)),) * len(spec.form.states)
        pass_ = tuple(reversed(cell)) if spec.cell == "lstm" else cell[0]  # the carry of an LSTM is (c, h)
        zero = [(pass_, pass_) if spec.bidirectional else pass_] * spec.num_layers

        def forward(parameters: Any, x: Any, carries: Any) -> Any:
            ends = []
            for layer, carry in zip(nnx.merge(graph, parameters, rest), carries, strict=True):
                end, x = layer(x, initial_carry=carry, seq_lengths=lengths, return_carry=True)
                if lengths is not None:  # or the outputs of a cell that has run over the padding are left there
                    x = jnp.where((jnp.arange(x.shape[1]) < lengths[:, None])[..., None], x, 0)
                ends.append(end)
            return x, ends

        def output(found: Any) -> mr.Output:
            sequence, ends = found
            passes = [end for layer in ends for end in (layer if spec.bidirectional else (layer,))]
            parts = [tuple(reversed(end)) if spec.cell == "lstm" else (end,) for end in passes]
            return mr.Output(np.asarray(sequence), mr.State(*map(np.stack, zip(*parts, strict=True))))

        def canonical(parameters: Any) -> dict[str, Any]:
            return _canonical(spec, nnx.merge(graph, parameters, rest))

        def carried(state: mr.State) -> Any:
            return _carries(spec, state)

        return prepared(work, forward, parameters, zero, output, carried, canonical)


def _layers(weights: mr.Weights) -> Any:
    """A list of `nnx.RNN`, or of `nnx.Bidirectional`, with these weights."""
    import jax.numpy as jnp
    from flax import nnx

    kinds = {"simple_rnn": nnx.SimpleCell, "lstm": nnx.OptimizedLSTMCell, "gru": nnx.GRUCell}
    folded = weights if weights.spec.bias == "none" else mr.fold_biases(weights)
    spec = folded.spec

    def layer(k: int, direction: str) -> Any:
        arrays = folded.at(k, direction)
        W, U = (arrays[name].reshape(-1, arrays[name].shape[-1]).T for name in ("weight_ih", "weight_hh"))
        zeros = nnx.initializers.zeros_init()  # an orthogonal one takes a second to draw, and is overwritten
        drawn = {"kernel_init": zeros, "recurrent_kernel_init": zeros}
        cell = kinds[spec.cell](W.shape[0], spec.hidden_size, rngs=nnx.Rngs(0), **drawn)
        cell.dense_i.kernel[...] = jnp.asarray(W)
        cell.dense_h.kernel[...] = jnp.asarray(U)
        if spec.bias != "none":
            _biased(spec, cell).bias[...] = jnp.asarray(arrays["bias_ih"].reshape(-1))
        return nnx.RNN(cell, rngs=False)

    if spec.bidirectional:
        pairs = ((layer(k, "forward"), layer(k, "backward")) for k in range(spec.num_layers))
        return nnx.List([nnx.Bidirectional(*pair, rngs=False) for pair in pairs])
    return nnx.List([layer(k, "forward") for k in range(spec.num_layers)])


def _biased(spec: mr.RecurrentSpec, cell: Any) -> Any:
    """The product that has the bias."""
    return cell.dense_h if spec.cell == "lstm" else cell.dense_i


def _canonical(spec: mr.RecurrentSpec, layers: Any) -> dict[str, Any]:
    """The weights, or gradients of them, by their canonical names."""
    found = {}
    for k, direction in spec.passes:
        layer = getattr(layers[k], f"{direction}_rnn") if spec.bidirectional else layers[k]
        cell = layer.cell
        arrays = {"weight_ih": cell.dense_i.kernel[...].T, "weight_hh": cell.dense_h.kernel[...].T}
        if spec.bias != "none":
            arrays["bias_ih"] = _biased(spec, cell).bias[...]
        for name, array in arrays.items():
            full = f"layers.{k}.{direction}.{name}"
            found[full] = np.asarray(array).reshape(spec.shapes[full])
    return found


def _carries(spec: mr.RecurrentSpec, state: mr.State) -> list[Any]:
    """A state as Flax's layers return theirs."""
    import jax.numpy as jnp

    parts = [jnp.asarray(part) for part in state if part is not None]
    passes = [tuple(part[n] for part in reversed(parts)) for n in range(len(parts[0]))]
    single = [one if spec.cell == "lstm" else one[0] for one in passes]
    return list(zip(single[::2], single[1::2], strict=True)) if spec.bidirectional else single


CONTENDERS = (FlaxNnx(),)
