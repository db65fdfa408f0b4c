"""RTNeural's JSON: a list of layers with the arrays of Keras' `get_weights`, for audio plug-ins.

Format: `RTNeural/model_loader.h` and `python/model_utils.py` of that project.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from multirnn.errors import FormatError
from multirnn.formats.contents import Contents, Tensor
from multirnn.formats.keras_layers import RecurrentLayer

__all__ = ["json_object", "numbers", "read", "write"]


def read(path: Path) -> Contents:
    """The weights of all layers as `<number>/<place>`. Facts: `layers`, a tuple of `RecurrentLayer`.

    Raises:
        FormatError: it is no such file, or damaged.
    """
    model = json_object(path)
    layers = model.get("layers")
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        raise FormatError(f"{path} has no list of layers, which RTNeural's files have")
    arrays: dict[str, Tensor] = {}
    found: list[RecurrentLayer] = []
    for number, layer in enumerate(layers):
        weights = layer.get("weights", [])
        name = f"{number}"
        own = [numbers(path, f"layers[{number}].weights[{place}]", one) for place, one in enumerate(weights)]
        arrays |= {f"{name}/{place}": array for place, array in enumerate(own)}
        if layer.get("type") in ("lstm", "gru"):
            follows = found[-1].name if found and found[-1].name == f"{number - 1}" else ""
            config = {"activation": layer.get("activation") or "tanh", "reset_after": True}
            found.append(RecurrentLayer(name, str(layer["type"]), False, {"forward": tuple(own)}, config, follows))
    return Contents("rtneural", arrays, {"layers": tuple(found)})


def json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FormatError: it is no JSON, or no object.
    """
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is no JSON, or damaged: {error}") from error
    if not isinstance(found, dict):
        raise FormatError(f"{path} has to hold a JSON object, not a {type(found).__name__}")
    return found


def numbers(path: Path, name: str, value: Any) -> NDArray[Any]:
    """An array of float32 from lists of numbers; each number is the shortest text of a float32.

    Raises:
        FormatError: the lists are ragged, or hold something else.
    """
    try:
        array = np.array(value, np.float32)
    except (ValueError, TypeError, OverflowError) as error:
        raise FormatError(f"{path}: {name} holds no array of numbers: {error}") from error
    return array


def write(layers: Sequence[Mapping[str, Any]], input_size: int, file: BinaryIO) -> None:
    """Write layers: the `type`, the `activation`, `units` and the `weights` of each, float32."""
    made = [
        {
            "type": layer["type"],
            "activation": layer["activation"],
            "shape": [None, None, layer["units"]],
            "weights": [
                [[float(str(n)) for n in row] for row in array] if array.ndim > 1 else [float(str(n)) for n in array]
                for array in layer["weights"]
            ],
        }
        for layer in layers
    ]
    file.write(json.dumps({"in_shape": [None, None, input_size], "layers": made}).encode())
