"""Neural Amp Modeler's `.nam` files: a stack of LSTM layers in one list of numbers, then the weights of its head.

A layer is the rows [W | U] of the gates i f g o, one bias, and its initial h and c. Format: `NAM/lstm.cpp` of
NeuralAmpModelerCore.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multirnn.errors import FormatError
from multirnn.formats.contents import Contents, Tensor
from multirnn.formats.rtneural import FIXED, json_object, numbers

__all__ = ["read"]

STATE = (
    "its layers start from an h and c that are not zero: read(path).facts['state'] has 'h0' and 'c0', "
    "(num_layers, hidden_size); give each row of the batch a copy of them, State(h, c), in the call"
)


def read(path: Path) -> Contents:
    """The arrays by PyTorch's names, one bias, and those of the head.

    Facts: `state`, the initial `h0` and `c0`, `(num_layers, hidden_size)` each; `about`, a sentence if they are not zero;
    `settings`, arguments of `from_arrays`.

    Raises:
        FormatError: it is no such file, damaged, or a model without LSTM layers.
    """
    model = json_object(path)
    if (kind := model.get("architecture")) != "LSTM":
        raise FormatError(f"{path} holds the architecture {str(kind)[:40]!r}; a recurrent one is 'LSTM'")
    layers, features, hidden, outputs = _sizes(path, model.get("config"))
    flat = numbers(path, "weights", model.get("weights"))
    head = outputs * hidden + outputs
    needed = 4 * hidden * (features + hidden) + 6 * hidden + (layers - 1) * (8 * hidden * hidden + 6 * hidden) + head
    if flat.ndim != 1 or flat.size != needed:
        raise FormatError(f"{path} has {flat.size} weights; its sizes need {needed}")
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
    arrays["head.weight"], arrays["head.bias"] = take(outputs, hidden), take(outputs)
    stacked = {name: np.stack(state) for name, state in states.items()}
    about = (STATE,) if any(state.any() for state in stacked.values()) else ()
    return Contents("nam", arrays, {"state": stacked, "about": about, "settings": FIXED})


def _sizes(path: Path, config: Any) -> tuple[int, int, int, int]:
    """The layers, features, units, and outputs of the head."""
    fields = config if isinstance(config, dict) else {}
    sizes = [fields.get(name) for name in ("num_layers", "input_size", "hidden_size")]
    sizes.append(fields.get("out_channels", 1))
    layers, features, hidden, outputs = (size if type(size) is int else 0 for size in sizes)
    if min(layers, features, hidden, outputs) < 1:
        raise FormatError(f"{path} lacks a positive num_layers, input_size or hidden_size")
    return layers, features, hidden, outputs
