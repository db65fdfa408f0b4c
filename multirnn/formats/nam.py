"""Neural Amp Modeler's `.nam` files: a stack of LSTM layers in one list of numbers, then the weights of its head.

A layer is the rows [W | U] of the gates i f g o, one bias, and its initial h and c. Format: `NAM/lstm.cpp` of
NeuralAmpModelerCore.
"""

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from multirnn.errors import FormatError
from multirnn.formats.contents import Contents, Tensor
from multirnn.formats.rtneural import json_object, numbers

__all__ = ["read"]

LARGEST = 1 << 20


def read(path: Path) -> Contents:
    """The arrays by PyTorch's names, one bias; the initial states `h0` and `c0`, `(layers, hidden_size)`, in the facts.

    Raises:
        FormatError: it is no such file, damaged, or a model without LSTM layers.
    """
    model = json_object(path)
    if (kind := model.get("architecture")) != "LSTM":
        raise FormatError(f"{path} holds the architecture {kind!r}; a recurrent one is 'LSTM'")
    config = model.get("config")
    sizes = (
        [config.get(name) for name in ("num_layers", "input_size", "hidden_size")]
        if isinstance(config, dict)
        else [None]
    )
    if not all(type(size) is int and 0 < size <= LARGEST for size in sizes):
        raise FormatError(f"{path} lacks a positive num_layers, input_size or hidden_size")
    layers, features, hidden = sizes
    flat = numbers(path, "weights", model.get("weights"))
    counts = [4 * hidden * (size + hidden) + 4 * hidden + 2 * hidden for size in [features] + [hidden] * (layers - 1)]
    if flat.ndim != 1 or flat.size != sum(counts) + hidden + 1:
        raise FormatError(f"{path} has {flat.size} weights; its sizes need {sum(counts) + hidden + 1}")
    arrays: dict[str, Tensor] = {}
    states: dict[str, list[NDArray[Any]]] = {"h0": [], "c0": []}
    place = 0

    def take(*shape: int) -> NDArray[Any]:
        nonlocal place
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        place += count
        return flat[place - count : place].reshape(shape)

    for layer in range(layers):
        size = features if not layer else hidden
        both = take(4 * hidden, size + hidden)
        arrays[f"weight_ih_l{layer}"], arrays[f"weight_hh_l{layer}"] = both[:, :size], both[:, size:]
        arrays[f"bias_ih_l{layer}"] = take(4 * hidden)
        for state in states.values():
            state.append(take(hidden))
    arrays["head.weight"], arrays["head.bias"] = take(1, hidden), take(1)
    return Contents("nam", arrays, {"state": states})
