"""Canonical weights to and from Keras' own layers.

`Sequential.weights` lists the arrays of the convention "keras" (`multirnn.conventions`) in its order.
"""

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import keras

from multirnn import RecurrentSpec, Unrepresentable, Weights, from_arrays, to_arrays
from multirnn.cells import CellName
from multirnn.spec import DTYPES
from multirnn.weights import Array
from multirnn_keras.activations import from_keras, to_keras
from multirnn_keras.confirmation import confirm, title_of
from multirnn_keras.engines import engine, on_device
from multirnn_keras.structure import CELLS, directions_of, is_as_made, is_both_ways, stacked, variables_of

__all__ = ["LAYERS", "current", "from_variables", "read", "stack"]

LAYERS: dict[CellName, Any] = {cell: kind for kind, cell in CELLS.items()}
"""Keras' own layer of each cell."""


def stack(weights: Weights, layers: Mapping[CellName, Any] = LAYERS) -> Any:
    """The `keras.Sequential` of these weights, one layer of its cell's class for each layer of the spec."""
    spec = weights.spec
    native_layers = [_layer(spec, layers[spec.cell]) for _ in range(spec.num_layers)]
    native = keras.Sequential([keras.Input((None, spec.input_size), dtype=spec.dtype), *native_layers])
    native.supports_masking = True  # else Keras warns, wrongly, that the mask is lost
    native.set_weights(list(to_arrays(weights, convention="keras").values()))
    return native


def _layer(spec: RecurrentSpec, kind: Any) -> Any:
    options: dict[str, Any] = {"activation": to_keras(spec.activation, spec.dtype)}
    if spec.cell != "simple_rnn":
        options["recurrent_activation"] = to_keras(spec.recurrent_activation, spec.dtype)
        # cuDNN refuses a row of length 0, and JAX's path to it reverses the outputs of a backward LSTM twice.
        options["use_cudnn"] = False
    if spec.cell == "gru":
        options["reset_after"] = spec.reset_after
    layer = kind(
        spec.hidden_size,
        use_bias=spec.bias != "none",
        return_sequences=True,
        zero_output_for_mask=True,
        dtype=spec.dtype,
        **options,
    )
    return keras.layers.Bidirectional(layer, dtype=spec.dtype) if spec.bidirectional else layer


def from_variables(arrays: Iterable[Array], spec: RecurrentSpec) -> Weights:
    """Weights, or gradients of weights, from arrays in the order of Keras' variables."""
    kinds = ("kernel", "recurrent_kernel", "bias")[: 2 if spec.bias == "none" else 3]
    names = [f"{layer}/{direction}_layer/layer_cell/{kind}" for layer, direction in spec.passes for kind in kinds]
    return from_arrays(
        dict(zip(names, arrays, strict=True)),
        convention="keras",
        cell=spec.cell,
        reset_after=spec.reset_after,
        activation=spec.activation,
        recurrent_activation=spec.recurrent_activation,
    )


def read(native: Any) -> Weights:
    """The spec and the weights of Keras' own layers.

    Args:
        native: a built `SimpleRNN`, `LSTM`, `GRU`, a `Bidirectional` one, or a `Sequential` or functional model that is
            a stack of them and of nothing else. A spec does not say whether the last of them returns its sequence, nor
            which are stateful, unrolled, regularised or frozen. It is called once, and left as it was.

    Raises:
        Unrepresentable: no spec describes it, for the reason in the message; it computes something else than its layers
            describe; or it cannot be called.
    """
    with on_device(None):
        layers, weights = _described(native)
        return confirm(native, layers, weights)


def current(native: Any) -> Weights:
    """`read`, without the call if every method that would run is Keras' or our own."""
    with on_device(None):
        layers, weights = _described(native)
        return weights if is_as_made(native, layers) else confirm(native, layers, weights)


def _described(native: Any) -> tuple[list[Any], Weights]:
    """The layers of a stack and their weights, from its structure alone."""
    layers = stacked(native)
    directions = list(chain(*map(directions_of, layers)))
    first, *others = map(_fields, directions)
    for other in others:
        for name, value in other.items():
            if value != first[name]:
                raise Unrepresentable(f"the layers differ in {name}, {first[name]!r} and {value!r}, and a spec has one")
    if len({is_both_ways(layer) for layer in layers}) > 1:
        raise Unrepresentable(
            "some of the layers are bidirectional and some are not, and a spec has one direction or both"
        )
    spec = RecurrentSpec(
        input_size=directions[0].cell.kernel.shape[0],
        num_layers=len(layers),
        bidirectional=is_both_ways(layers[0]),
        **first,
    )
    variables = list(chain(*map(variables_of, directions)))
    if len(set(map(id, variables))) < len(variables):
        raise Unrepresentable(
            f"{title_of(native)} has a weight at two places, and a spec has each once: its gradients and its training "
            "would not be those of the stack. Give every layer and direction weights of its own"
        )
    return layers, from_variables(map(engine.copied, variables), spec)


def _fields(layer: Any) -> dict[str, Any]:
    """The fields of the spec that a layer of one direction determines."""
    if not layer.cell.built:
        raise Unrepresentable(f"layer {layer.name!r} has no weights yet: call it, or build((None, None, input_size))")
    for name in ("dropout", "recurrent_dropout"):
        if getattr(layer, name):
            raise Unrepresentable(f"layer {layer.name!r} has {name}={getattr(layer, name)}, which no spec has")
    policy = layer.cell.dtype_policy
    if policy.compute_dtype != policy.variable_dtype or policy.compute_dtype not in DTYPES:
        raise Unrepresentable(
            f"layer {layer.name!r} has the dtype policy {policy.name!r}, and a spec has {' or '.join(DTYPES)} for all"
        )
    cell = CELLS[type(layer)]
    held = "double" if cell == "gru" and layer.reset_after else "single"
    return {
        "cell": cell,
        "hidden_size": layer.units,
        "reset_after": getattr(layer, "reset_after", True),
        "activation": from_keras(layer.activation),
        "recurrent_activation": from_keras(getattr(layer, "recurrent_activation", keras.activations.sigmoid)),
        "dtype": policy.compute_dtype,
        "bias": held if layer.use_bias else "none",
    }
