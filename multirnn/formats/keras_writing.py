"""Writes Keras' files: a `Sequential` of its recurrent layers in `.keras` and `.h5`, its variables alone in `.weights.h5`.

Needs h5py and no Keras. A model is read by `keras.saving.load_model`, variables by the method `load_weights` of a
`Sequential` or functional model whose recurrent layers are those of the spec, whatever their names.
"""

import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from multirnn.activations import Activation
from multirnn.errors import Unrepresentable
from multirnn.formats.contents import needed
from multirnn.formats.keras_layers import HARD_SIGMOID_3
from multirnn.packing import to_arrays
from multirnn.spec import RecurrentSpec
from multirnn.weights import Array, Weights

__all__ = ["write"]

VERSION = "3.0.0"
"""The first Keras with these layouts; it says which `hard_sigmoid` is meant."""
CLASSES = {"simple_rnn": "SimpleRNN", "lstm": "LSTM", "gru": "GRU"}
MOST_BYTES = 64_512
"""Of an attribute in HDF5, as Keras splits longer ones."""
AT = (1980, 1, 1, 0, 0, 0)
"""The date of all entries: equal weights make equal files."""


def write(weights: Weights, file: BinaryIO, convention: str, path: Path) -> None:
    """Write a model or its variables.

    Args:
        weights: with biases as Keras has them.
        file: open for writing.
        convention: "keras".
        path: the target; its suffix tells what is written. A `.weights.h5` has the configuration in attributes that Keras ignores.

    Raises:
        Unrepresentable: no configuration of Keras has one of the activations.
        MissingFramework: h5py is not installed.
    """
    h5py = needed("h5py", path)
    name, config = path.name.lower(), _model(weights.spec) if path.name.lower().endswith(".keras") else {}
    with tempfile.TemporaryFile(dir=path.resolve().parent) as raw:
        if name.endswith(".weights.h5"):
            with h5py.File(raw, "w") as opened:
                opened.attrs["keras_version"] = VERSION
                opened.attrs["model_config"] = json.dumps(_model(weights.spec, named=False))
                _variables(opened, weights)
        elif name.endswith(".keras"):
            with h5py.File(raw, "w") as opened:
                _variables(opened, weights)
        else:
            with h5py.File(raw, "w") as opened:
                _legacy(opened, weights)
        raw.seek(0)
        if not name.endswith(".keras"):
            shutil.copyfileobj(raw, file, 1 << 20)
            return
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(zipfile.ZipInfo("metadata.json", AT), json.dumps({"keras_version": VERSION}))
            archive.writestr(zipfile.ZipInfo("config.json", AT), json.dumps(config))
            with archive.open(zipfile.ZipInfo("model.weights.h5", AT), "w", force_zip64=True) as entry:
                shutil.copyfileobj(raw, entry, 1 << 20)


def _parts(weights: Weights) -> Iterator[tuple[str, str, list[tuple[str, Array]]]]:
    """Layer after layer: its name, the direction, and the arrays by their own names; packed one at a time."""
    names = _names(weights.spec)
    for layer, direction in weights.spec.passes:
        packed = to_arrays(weights.part(layer, direction), convention="keras")
        yield names[layer], direction, [(own.rpartition("/")[2], array) for own, array in packed.items()]


def _names(spec: RecurrentSpec) -> list[str]:
    """The names of the layers, as Keras numbers them and their variables."""
    stem = "bidirectional" if spec.bidirectional else spec.cell
    return [f"{stem}_{number}" if number else stem for number in range(spec.num_layers)]


def _variables(file: Any, weights: Weights) -> None:
    """See `_save_state` in `saving_lib.py`: a group for each layer and its cell, whose variables are numbered."""
    spec = weights.spec
    file.create_group("vars").attrs["name"] = "sequential"
    for name in _names(spec):
        file.create_group(f"layers/{name}/vars").attrs["name"] = name
    for name, direction, arrays in _parts(weights):
        owner = f"layers/{name}"
        if spec.bidirectional:
            owner += f"/{direction}_layer"
            file.create_group(f"{owner}/vars").attrs["name"] = f"{direction}_{spec.cell}"
        group = file.create_group(f"{owner}/cell/vars")
        group.attrs["name"] = f"{spec.cell}_cell"
        for number, (_, array) in enumerate(arrays):
            group[f"{number}"] = array


def _legacy(file: Any, weights: Weights) -> None:
    """See `save_model_to_hdf5` in `legacy_h5_format.py`: a group a layer, and the configuration in an attribute."""
    spec = weights.spec
    file.attrs["keras_version"] = VERSION
    file.attrs["backend"] = "tensorflow"
    file.attrs["model_config"] = json.dumps(_model(spec))
    group = file.create_group("model_weights")
    group.attrs["keras_version"] = VERSION
    group.attrs["backend"] = "tensorflow"
    names = _names(spec)
    _texts(group, "layer_names", names)
    written: dict[str, list[str]] = {name: [] for name in names}
    for name, direction, arrays in _parts(weights):
        folder = f"{name}/{direction}_{spec.cell}" if spec.bidirectional else name
        for own, array in arrays:
            written[name].append(f"sequential/{folder}/{spec.cell}_cell/{own}")
            group.create_dataset(f"{name}/{written[name][-1]}", data=array)
    for name, paths in written.items():
        _texts(group[name], "weight_names", paths)
    group.create_group("top_level_model_weights").attrs["weight_names"] = np.array([])


def _texts(group: Any, name: str, words: Sequence[str]) -> None:
    """A list of texts, split over several attributes if it is long."""
    data = np.array([word.encode() for word in words])
    each = max(1, MOST_BYTES // data.itemsize)
    if len(data) <= each:
        group.attrs[name] = data
    for place in range(0, len(data), each) if len(data) > each else ():
        group.attrs[f"{name}{place // each}"] = data[place : place + each]


# --- The configuration -----------------------------------------------------------------------------------------------


def _model(spec: RecurrentSpec, named: bool = True) -> dict[str, Any]:
    """The configuration of a model.

    Args:
        spec: of the stack.
        named: whether Keras has to know all activations.
    """
    first = _object(
        "InputLayer", {"batch_shape": [None, None, spec.input_size], "dtype": spec.dtype, "name": "input_layer"}
    )
    layers = [_layer(spec, name, named) for name in _names(spec)]
    config = {"name": "sequential", "trainable": True, "dtype": spec.dtype, "layers": [first, *layers]}
    return {"module": "keras", "class_name": "Sequential", "config": config, "registered_name": None}


def _layer(spec: RecurrentSpec, name: str, named: bool) -> dict[str, Any]:
    config: dict[str, Any] = {
        "name": f"forward_{spec.cell}" if spec.bidirectional else name,
        "trainable": True,
        "dtype": spec.dtype,
        "return_sequences": True,
        "zero_output_for_mask": True,
        "units": spec.hidden_size,
        "activation": _activation("activation", spec, named),
        "use_bias": spec.bias != "none",
    }
    if spec.cell != "simple_rnn":
        config["recurrent_activation"] = _activation("recurrent_activation", spec, named)
    if spec.cell == "gru":
        config["reset_after"] = spec.reset_after
    kind = CLASSES[spec.cell]
    if not spec.bidirectional:
        return _object(kind, config)
    both = {
        "name": name,
        "trainable": True,
        "dtype": spec.dtype,
        "merge_mode": "concat",
        "layer": _object(kind, config),
    }
    back = {**config, "name": f"backward_{spec.cell}", "go_backwards": True}
    return _object("Bidirectional", {**both, "backward_layer": _object(kind, back)})


def _object(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    return {"module": "keras.layers", "class_name": kind, "config": config, "registered_name": None}


def _activation(field: str, spec: RecurrentSpec, named: bool) -> Any:
    activation = Activation.of(getattr(spec, field))
    if not activation.parameters or activation in (HARD_SIGMOID_3, Activation("elu", alpha=1.0)):
        return activation.name
    if activation.name == "elu":
        return _object("ELU", {"name": "elu", "alpha": activation.alpha, "trainable": True, "dtype": spec.dtype})
    if not named:
        return {"class_name": "HardSigmoid", "config": activation.parameters, "registered_name": "multirnn>HardSigmoid"}
    raise Unrepresentable(
        f"no configuration of Keras 3 has {field}={activation!r}, whose hard_sigmoid has the slope 1/6 and the offset 1/2; "
        "a .weights.h5 holds the arrays, for a model that computes it"
    )
