"""RTNeural's JSON, for audio plug-ins: a list of layers with the arrays of Keras' `get_weights`, or PyTorch's by name.

RTNeural runs an LSTM and a reset-after GRU in one direction, by tanh and the sigmoid, whatever the field `activation` says.
Format: `RTNeural/model_loader.h`, `RTNeural/torch_helpers.h` and `python/model_utils.py` of that project.
"""

import json
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from multirnn.errors import FormatError, Unrepresentable, an
from multirnn.formats.contents import Contents, Tensor
from multirnn.formats.keras_layers import RecurrentLayer
from multirnn.packing import to_arrays
from multirnn.spec import RecurrentSpec
from multirnn.weights import Weights

__all__ = ["json_object", "numbers", "read", "write"]

CELLS = ("lstm", "gru")
FIXED = {"activation": "tanh", "recurrent_activation": "sigmoid"}


def read(path: Path) -> Contents:
    """The weights of all layers as `<number>/<place>`, or those of a state_dict by their names.

    Facts: `layers`, a tuple of `RecurrentLayer`; of a state_dict `settings`, arguments of `from_arrays`.

    Raises:
        FormatError: it is no such file, or damaged.
    """
    model = json_object(path)
    if isinstance(named := model.get("state_dict"), dict):
        return Contents(
            "rtneural", {name: numbers(path, name, one) for name, one in named.items()}, {"settings": FIXED}
        )
    layers = model.get("layers")
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        raise FormatError(f"{path} has no list of layers and no state_dict, which RTNeural's files have")
    arrays: dict[str, Tensor] = {}
    found: list[RecurrentLayer] = []
    for number, layer in enumerate(layers):
        weights, name = layer.get("weights", []), f"{number}"
        if not isinstance(weights, list):
            raise FormatError(f"{path}: layers[{number}].weights is no list")
        own = [numbers(path, f"layers[{number}].weights[{place}]", one) for place, one in enumerate(weights)]
        arrays |= {f"{name}/{place}": array for place, array in enumerate(own)}
        if layer.get("type") in CELLS:
            follows = found[-1].name if found and found[-1].name == f"{number - 1}" else ""
            config = FIXED | {"activation": layer.get("activation") or "tanh", "reset_after": True}
            refused = ""
            if len(own) != 3:
                refused = f"it has {len(own)} arrays, and RTNeural's have a kernel, a recurrent kernel and a bias"
            if config["activation"] != "tanh":
                refused = (
                    f"it has activation={str(config['activation'])[:40]!r}, which RTNeural ignores: it computes tanh"
                )
            found.append(
                RecurrentLayer(
                    name, str(layer["type"]), False, {"forward": tuple(own)}, config, follows, refused=refused
                )
            )
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
        raise FormatError(f"{path} has to hold a JSON object, not {an(type(found).__name__)}")
    return found


def numbers(path: Path, name: str, value: Any) -> NDArray[Any]:
    """An array of float32, in which these programs compute, from lists of numbers.

    Raises:
        FormatError: the lists are ragged, hold something else, or numbers beyond float32.
    """
    try:
        wide = np.array(value)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise FormatError(f"{path}: {name} holds no array of numbers: {error}") from error
    if wide.dtype.kind not in "iuf":
        raise FormatError(f"{path}: {name} holds no array of numbers")
    with np.errstate(over="ignore"):
        array: NDArray[Any] = wide.astype(np.float32)
    if wide.dtype.kind == "f" and (np.isinf(array) & np.isfinite(wide)).any():
        raise FormatError(f"{path}: {name} holds numbers that are too large for float32")
    return array


def write(weights: Weights, file: BinaryIO, convention: str) -> None:
    """Write a stack. A number's text is that of the float64 equal to it, so that any parser gets it back.

    Raises:
        Unrepresentable: RTNeural has no layer that computes it; the sentence says why.
    """
    spec = weights.spec
    if reason := _refuses(spec):
        raise Unrepresentable(reason)
    layers = []
    for layer in range(spec.num_layers):
        own = list(to_arrays(weights.part(layer, "forward"), convention=convention).values())
        if not all(np.isfinite(array).all() for array in own):
            raise Unrepresentable(f"layer {layer} has weights that are not finite, and JSON has no such numbers")
        shape = [None, None, spec.hidden_size]
        layers.append(
            {"type": spec.cell, "activation": "tanh", "shape": shape, "weights": [array.tolist() for array in own]}
        )
    text = json.dumps({"in_shape": [None, None, spec.input_size], "layers": layers}, allow_nan=False)
    file.write(text.encode())


def _refuses(spec: RecurrentSpec) -> str | None:
    """Why RTNeural has no layer for a spec; None if it has."""
    if spec.dtype != "float32":
        return 'RTNeural\'s files are read as float32; weights.astype("float32") rounds these first'
    if spec.cell not in CELLS:
        return f"RTNeural has an LSTM and a GRU, and no {spec.form.title}"
    if spec.bidirectional:
        return "RTNeural's layers run in one direction, since the sound comes in as it is played"
    if not spec.reset_after:
        return "RTNeural has no GRU whose reset gate acts before the recurrent product"
    if spec.bias == "none":
        return "RTNeural's layers have biases; fold_biases(split_biases(weights)) adds those of zero"
    for field, value in FIXED.items():
        if getattr(spec, field) != value:
            return f"RTNeural computes {field}={value!r} alone, not {getattr(spec, field)!r}"
    return None
