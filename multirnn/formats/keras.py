"""Keras' files: `.keras`, `.weights.h5`, and the `.h5` and `.hdf5` of Keras 1 to 3.

They are read without a package; writing needs h5py. Formats: `keras/src/saving/saving_lib.py` and
`keras/src/legacy/saving/legacy_h5_format.py`; for Keras 1 `preprocess_weights_for_loading` in `hdf5_format.py` of tf_keras.
"""

import mmap
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from multirnn.errors import FormatError
from multirnn.formats import archive
from multirnn.formats.contents import Contents, Tensor, numbers_of
from multirnn.formats.keras_config import Described, configured, described, json_of, of_keras_1
from multirnn.formats.keras_hdf5 import Group, opened
from multirnn.formats.keras_layers import RecurrentLayer
from multirnn.formats.keras_writing import write

__all__ = ["read", "write"]

_ByOwner = dict[str, dict[str, tuple[Tensor, ...]]]
"""By the path of a layer and by direction its kernel, recurrent kernel and bias."""
SEVERAL = "it runs several cells in one layer, and a spec has a layer for each"


def read(path: Path) -> Contents:
    """The weights by the paths of Keras' variables. Facts: `layers`, a tuple of `RecurrentLayer`; `version` of Keras.

    Raises:
        FormatError: it is damaged, or refers to other files.
    """
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    try:
        return _read_zip(path) if zipped else _read_h5(path)
    except FormatError as error:
        text = str(error)
        raise FormatError(text if text.startswith(str(path)) else f"{path}: {text}") from error


def _read_zip(path: Path) -> Contents:
    with archive.opened(path) as entries:
        config = json_of(bytes(entries.read("config.json")))
        version = json_of(bytes(entries.read("metadata.json"))).get("keras_version")
        arrays, layers = _of_version_3(opened(entries.read("model.weights.h5")), config)
    return Contents("keras", arrays, {"layers": layers, "version": version})


def _read_h5(path: Path) -> Contents:
    with path.open("rb") as raw:
        try:
            data = memoryview(mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ))
        except ValueError as error:
            raise FormatError(f"is empty: {error}") from error
    file = opened(data)
    attributes = file.attributes()
    group = file.open("model_weights") if "model_weights" in file.names() else file
    own = group.attributes()
    if not any(name in own for name in ("layer_names", "layer_names0")):
        arrays, layers = _of_version_3(file, _model_config(attributes))  # which only ours have here
        return Contents("keras", arrays, {"layers": layers, "version": attributes.get("keras_version")})
    version = own.get("keras_version", attributes.get("keras_version")) or "1"  # Keras 1 wrote none
    arrays, layers = _legacy(group, own, _model_config(attributes))
    return Contents("keras", arrays, {"layers": layers, "version": str(version)})


def _model_config(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    text = attributes.get("model_config")
    return json_of(text.encode()) if isinstance(text, str) else {}


# --- Keras 3 ---------------------------------------------------------------------------------------------------------


def _of_version_3(file: Group, config: Mapping[str, Any]) -> tuple[dict[str, Tensor], tuple[RecurrentLayer, ...]]:
    """A `.weights.h5`: the variables of each object are in `vars/0`, `vars/1`, …, of a recurrent layer below `cell`."""
    arrays: dict[str, Tensor] = {}
    owners: dict[str, dict[str, dict[int, Tensor]]] = {}
    several: set[str] = set()
    for path in file.walk():
        parts = path.split("/")
        if parts[0] == "optimizer":
            continue
        arrays[path] = file.array(path)
        if "cells" in parts and parts[parts.index("cells") - 1] == "cell":
            several.add("/".join(parts[: parts.index("cells") - 1]))
        if len(parts) < 4 or parts[-3:-1] != ["cell", "vars"] or not parts[-1].isdecimal():
            continue
        owner, direction = "/".join(parts[:-3]), "forward"
        if parts[-4] in ("forward_layer", "backward_layer"):
            owner, direction = "/".join(parts[:-4]), parts[-4].removesuffix("_layer")
        owners.setdefault(owner, {}).setdefault(direction, {})[int(parts[-1])] = arrays[path]
    by_path = {one.path: one for one in described(config)}
    layers = []
    for owner, by_direction in owners.items():
        found = {
            direction: tuple(variables[number] for number in sorted(variables))
            for direction, variables in sorted(by_direction.items(), reverse=True)
        }
        # TensorFlow 2.12 and 2.13 had another name for "layers".
        one = by_path.get(owner.replace("_layer_checkpoint_dependencies", "layers"))
        name = one.name if one else _own_name(file, owner)
        layers.append(_layer(name, found))
    for owner in sorted(several):
        one = by_path.get(owner)
        layers.append(
            RecurrentLayer(
                one.name if one else _own_name(file, owner),
                "",
                False,
                {
                    "forward": (
                        next(array for path, array in arrays.items() if path.startswith(f"{owner}/cell/cells/")),
                    )
                },
                refused=SEVERAL,
            )
        )
    known = {one.name: one for one in by_path.values()}
    order = list(known)
    layers.sort(key=lambda layer: order.index(layer.name) if layer.name in known else len(order))
    return arrays, configured(layers, known)


def _own_name(file: Group, owner: str) -> str:
    """The names that the variables of a layer and of the models around it have beside them, else its path."""
    parts = owner.split("/")
    names = []
    for end in range(1, len(parts) + 1):
        place = "/".join(parts[:end])
        if "vars" in file.names(place):
            names.append(str(file.attributes(f"{place}/vars").get("name") or parts[end - 1]))
    return "/".join(names) if "vars" in file.names(owner) else parts[-1]


def _layer(name: str, arrays: Mapping[str, tuple[Tensor, ...]]) -> RecurrentLayer:
    """A layer whose cell the shape of its recurrent kernel tells; refused where it has none."""
    first = next(iter(arrays.values()))
    recurrent, bias = (*first[1:3], None, None)[:2]
    shape: tuple[int, ...] = getattr(recurrent, "shape", ())
    rows, columns = shape if len(shape) == 2 else (0, 0)
    gates = columns // rows if rows and not columns % rows else 0
    cell = {1: "simple_rnn", 3: "gru", 4: "lstm"}.get(gates, "")
    if not cell:
        said = f"the shape {shape}" if recurrent is not None else "one array"
        return RecurrentLayer(
            name,
            "",
            False,
            arrays,
            refused=f"it has {said} where a recurrent kernel has (hidden_size, gates * hidden_size)",
        )
    # CuDNN's layers keep input and recurrent bias one after the other.
    cudnn = bias is not None and cell != "simple_rnn" and bias.shape == (2 * columns,)
    return RecurrentLayer(name, cell, cudnn, arrays)


# --- Keras 1 and 2, and `.h5` of Keras 3 -----------------------------------------------------------------------------


def _legacy(
    group: Group, attributes: Mapping[str, Any], config: Mapping[str, Any]
) -> tuple[dict[str, Tensor], tuple[RecurrentLayer, ...]]:
    """A group a layer; the attribute `weight_names` has its arrays in the order of `get_weights`."""
    by_group: dict[str, list[Described]] = {}
    everything: dict[str, Described] = {}
    for one in described(config):
        everything[one.name] = one
        if one.recurrent:
            by_group.setdefault(one.group, []).append(one)
    arrays: dict[str, Tensor] = {}
    layers = []
    for layer in _words(attributes, "layer_names"):
        names = _words(group.attributes(layer), "weight_names")
        own = {name: group.array(f"{layer}/{name}") for name in names}
        arrays |= {f"{layer}/{name}": array for name, array in own.items()}
        owners = _owners(own)
        inside = by_group.get(layer, [])
        if owners and layer in everything and everything[layer].kind == "StackedRNNCells":
            layers.append(RecurrentLayer(layer, "", False, next(iter(owners.values())), refused=SEVERAL))
            continue
        backward = inside[0].fields.get("backward_layer") if len(inside) == 1 else None
        if isinstance(backward, Mapping):
            owners = _joined(layer, owners, inside[0].fields.get("name"), backward.get("name"))
        for owner, by_direction in owners.items():
            named = inside[0] if len(inside) == len(owners) == 1 else _named(owner, inside)
            name = named.name if named else layer if len(owners) == 1 else f"{layer}/{owner}"
            layers.append(_layer(name, by_direction))
    found = configured(layers, everything)
    return arrays, tuple(replace(one, config=of_keras_1(one.config)) if one.config else one for one in found)


def _named(owner: str, inside: Sequence[Described]) -> Described | None:
    """The layer of a nested model whose name is the last in a path; frozen layers come last, so that order tells nothing."""
    parts = owner.split("/")
    places = {
        one.name: place for one in inside for place, part in enumerate(parts) if part == one.name.rpartition("/")[2]
    }
    last = max(places.values(), default=-1)
    found = [one for one in inside if places.get(one.name) == last]
    return found[0] if len(found) == 1 else None


def _joined(layer: str, owners: _ByOwner, forward: Any, backward: Any) -> _ByOwner:
    """The directions of one layer that have names of their own; as they are if the names are others."""
    found = {
        direction: arrays["forward"]
        for direction, name in (("forward", forward), ("backward", backward))
        for owner, arrays in owners.items()
        if name in owner.split("/") and set(arrays) == {"forward"}
    }
    return {layer: found} if len(found) == len(owners) == 2 else owners


def _owners(arrays: Mapping[str, Tensor]) -> _ByOwner:
    """The recurrent layers among the arrays of a group: by name and direction the kernel, recurrent kernel and bias."""
    old = {name: re.fullmatch(r"(.*)_([WUb])(?:_([a-z]))?(?::0)?", name) for name in arrays}
    if arrays and all(old.values()) and any(match and match[2] == "U" for match in old.values()):
        return _paired(_of_keras_1({name: match for name, match in old.items() if match}, arrays))
    by_folder: dict[str, list[tuple[str, Tensor]]] = {}
    for name, array in arrays.items():
        folder, _, own = name.partition(":")[0].rpartition("/")
        by_folder.setdefault(folder, []).append((own, array))
    return _paired(
        {
            folder: tuple(dict(found)[own] for own in ("kernel", "recurrent_kernel", "bias") if own in dict(found))
            for folder, found in by_folder.items()
            if any(own == "recurrent_kernel" for own, _ in found)
        }
    )


def _of_keras_1(parsed: Mapping[str, Any], arrays: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, ...]]:
    """Keras 1 had the arrays of each gate by themselves; here they are joined in the order of Keras 2."""
    made: dict[str, dict[str, dict[str, Tensor]]] = {}
    for name, match in parsed.items():
        made.setdefault(match[1], {}).setdefault(match[2], {})[match[3] or ""] = arrays[name]
    joined: dict[str, tuple[Tensor, ...]] = {}
    for owner, kinds in made.items():
        gates = set(kinds.get("U", ()))
        order = next((order for order in ("ifco", "zrh") if set(order) == gates), "" if gates == {""} else None)
        if order is None or any(set(one) != gates for one in kinds.values()) or set(kinds) != set("WUb"):
            continue
        parts = [[kinds[kind][gate] for gate in order or ("",)] for kind in "WUb"]
        if all(len({array.shape for array in row}) == 1 and row[0].shape for row in parts):
            each = [[numbers_of(owner, array) for array in row] for row in parts]
            joined[owner] = tuple(np.concatenate(row, -1) for row in each)
    return joined


def _paired(folders: Mapping[str, tuple[Tensor, ...]]) -> _ByOwner:
    """Folders by the name of the layer; `forward_` and `backward_` beside each other are the directions of one layer."""
    named: dict[str, tuple[str, str]] = {}
    for folder in folders:
        parts = [part for part in folder.split("/") if part]
        if len(parts) > 1 and re.fullmatch(r"\w*_cell(_\d+)?", parts[-1]):
            parts.pop()
        last = parts[-1] if parts else ""
        direction, _, rest = last.partition("_")
        is_direction = direction in ("forward", "backward") and rest
        named[folder] = ("/".join((*parts[:-1], rest)), direction) if is_direction else ("/".join(parts), "")
    both = {
        key
        for key, direction in named.values()
        if direction and {(key, "forward"), (key, "backward")} <= set(named.values())
    }
    found: _ByOwner = {}
    for folder, arrays in folders.items():
        key, direction = named[folder]
        if key in both and direction:
            found.setdefault(key, {})[direction] = arrays
        else:
            found[folder] = {"forward": arrays}
    return {key: dict(sorted(one.items(), reverse=True)) for key, one in found.items()}


def _words(attributes: Mapping[str, Any], name: str) -> Sequence[str]:
    """A list of texts; Keras spreads long ones over attributes with numbers behind the name."""
    if name in attributes:
        found = attributes[name]
    else:
        parts = [attributes[f"{name}{place}"] for place in range(len(attributes)) if f"{name}{place}" in attributes]
        found = [word for part in parts if isinstance(part, list) for word in part]
    if not isinstance(found, list):
        raise FormatError(f"its attribute {name!r} is no list")
    words = [str(word) for word in found]
    if len(set(words)) < len(words):
        raise FormatError(f"its attribute {name!r} has a name twice")
    return words
