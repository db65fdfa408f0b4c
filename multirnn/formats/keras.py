"""Keras' files: `.keras`, `.weights.h5`, and the `.h5` and `.hdf5` of Keras 1 to 3. Needs the package h5py.

The configuration is read as JSON fields and never deserialised. Formats: `keras/src/saving/saving_lib.py` and
`keras/src/legacy/saving/legacy_h5_format.py`.
"""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multirnn.errors import FormatError
from multirnn.formats import archive
from multirnn.formats.contents import Contents, Tensor, needed

__all__ = ["RecurrentLayer", "read"]

KINDS = {"SimpleRNN": "simple_rnn", "LSTM": "lstm", "GRU": "gru", "CuDNNLSTM": "lstm", "CuDNNGRU": "gru"}
FILTERS = {1, 2, 3, 4, 32000}  # gzip, shuffle, fletcher32, szip, lzf: any other filter would load a plug-in
MOST_OBJECTS = 100_000


@dataclass(frozen=True)
class RecurrentLayer:
    """A recurrent layer of a file.

    Attributes:
        name: as the file calls it.
        cell: "simple_rnn", "lstm" or "gru"; empty where neither name nor configuration tells.
        cudnn: whether its arrays lie as CuDNNLSTM and CuDNNGRU keep them.
        arrays: by direction, then kernel, recurrent kernel and bias.
        config: the fields of its configuration; None where the file has none.
        follows: the name of the recurrent layer whose sequence is its input, as the configuration says; empty for any other.
    """

    name: str
    cell: str
    cudnn: bool
    arrays: Mapping[str, tuple[NDArray[Any], ...]]
    config: Mapping[str, Any] | None = None
    follows: str = ""


def read(path: Path) -> Contents:
    """The weights by the paths of Keras' variables. Facts: `layers`, a tuple of `RecurrentLayer`; `version` of Keras.

    Raises:
        FormatError: it is damaged, or refers to other files.
        MissingFramework: the package h5py is not installed.
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
        config = _json(bytes(entries.read("config.json")))
        version = _json(bytes(entries.read("metadata.json"))).get("keras_version")
        data = entries.read("model.weights.h5")
        with _file(io.BytesIO(data), len(data)) as file:
            arrays, layers = _of_version_3(file)
    return Contents("keras", arrays, {"layers": _configured(layers, config), "version": version})


def _read_h5(path: Path) -> Contents:
    with path.open("rb") as raw, _file(raw, path.stat().st_size) as file:
        attributes = file.attributes()
        group = file.open("model_weights") if "model_weights" in file.names("") else file
        if "layer_names" not in group.attributes():
            arrays, layers = _of_version_3(file)
            return Contents("keras", arrays, {"layers": tuple(layers), "version": None})
        arrays, layers = _legacy(group)
        version = group.attributes().get("keras_version", attributes.get("keras_version"))
        if (text := attributes.get("model_config")) is not None:
            layers = list(_configured(layers, _json(text.encode() if isinstance(text, str) else bytes(text))))
    return Contents("keras", arrays, {"layers": tuple(layers), "version": version})


# --- HDF5, without following it anywhere ---------------------------------------------------------------------------------


class _Group:
    """A group of an HDF5 file whose links all stay in the file."""

    def __init__(self, h5py: Any, group: Any, size: int) -> None:
        self._h5py, self._group, self._size = h5py, group, size

    def names(self, path: str) -> tuple[str, ...]:
        group = self._at(path)
        return tuple(group) if isinstance(group, self._h5py.Group) else ()

    def open(self, path: str) -> "_Group":
        group = self._at(path)
        if not isinstance(group, self._h5py.Group):
            raise FormatError(f"{path!r} is no group")
        return _Group(self._h5py, group, self._size)

    def attributes(self, path: str = "") -> dict[str, Any]:
        found = self._at(path).attrs
        return {str(name): found[name] for name in found}

    def _at(self, path: str) -> Any:
        here = self._group
        for name in path.split("/") if path else ():
            link = here.get(name, getlink=True) if isinstance(here, self._h5py.Group) else None
            if link is None:
                raise FormatError(f"it has no {path!r}")
            if not isinstance(link, self._h5py.HardLink):
                raise FormatError(f"{path!r} is a link to elsewhere, which is not followed")
            here = here[name]
        return here

    def array(self, path: str) -> NDArray[Any]:
        dataset = self._at(path)
        if not isinstance(dataset, self._h5py.Dataset):
            raise FormatError(f"{path!r} is no array")
        created = dataset.id.get_create_plist()
        filters = {created.get_filter(number)[0] for number in range(created.get_nfilters())}
        if dataset.is_virtual or created.get_external_count():
            raise FormatError(f"{path!r} has its numbers in another file, which is not read")
        if filters - FILTERS:
            raise FormatError(f"{path!r} is compressed by the filter {min(filters - FILTERS)}, which is not read here")
        stored = dataset.id.get_storage_size()
        if dataset.nbytes > max(archive.SMALL, archive.RATIO * self._size) or (dataset.nbytes and not stored):
            raise FormatError(f"{path!r} claims the shape {dataset.shape}, and has {stored} bytes")
        if dataset.dtype.kind not in "fiub":
            raise FormatError(f"{path!r} holds {dataset.dtype}, which are no numbers")
        return np.asarray(dataset[()])

    def walk(self) -> Iterator[tuple[str, bool]]:
        """Every path below, and whether it is an array; shared and cyclic groups are met once."""
        queue, seen = [("", self._group)], set()
        while queue:
            path, here = queue.pop()
            address = self._h5py.h5o.get_info(here.id).addr
            if address in seen or len(seen) > MOST_OBJECTS:
                continue
            seen.add(address)
            for name in reversed(tuple(here)):
                inner = f"{path}/{name}" if path else name
                one = self._at(inner)
                if isinstance(one, self._h5py.Group):
                    queue.append((inner, one))
                yield inner, isinstance(one, self._h5py.Dataset)


@contextmanager
def _file(file: Any, size: int) -> Iterator[_Group]:
    h5py = needed("h5py", getattr(file, "name", "it"))
    try:
        with h5py.File(file, "r") as opened:
            yield _Group(h5py, opened, size)
    except FormatError:
        raise
    except (
        OSError,
        ValueError,
        KeyError,
        RuntimeError,
        TypeError,
        OverflowError,
        MemoryError,
        AttributeError,
    ) as error:
        raise FormatError(f"it is no HDF5 file, or damaged: {error}") from error


def _json(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"its configuration is damaged: {error}") from error
    if not isinstance(found, dict):
        raise FormatError("its configuration is no JSON object")
    return found


# --- Layers ----------------------------------------------------------------------------------------------------------


def _of_version_3(file: _Group) -> tuple[dict[str, Tensor], list[RecurrentLayer]]:
    """A `.weights.h5`: the variables of each object are in `vars/0`, `vars/1`, …, of a recurrent layer below `cell`."""
    paths = [path for path, is_array in file.walk() if is_array and "optimizer" not in path.split("/")[0]]
    arrays: dict[str, Tensor] = {path: file.array(path) for path in paths}
    grouped: dict[str, dict[str, list[tuple[int, Any]]]] = {}
    names: dict[str, tuple[str, str]] = {}
    for path in paths:
        parts = path.split("/")
        if len(parts) < 4 or parts[-3:-1] != ["cell", "vars"] or not parts[-1].isdigit():
            continue
        owner, direction = "/".join(parts[:-3]), "forward"
        cell = str(file.attributes("/".join(parts[:-1])).get("name", ""))
        if parts[-4] in ("forward_layer", "backward_layer"):
            owner, direction = "/".join(parts[:-4]), parts[-4].removesuffix("_layer")
        grouped.setdefault(owner, {}).setdefault(direction, []).append((int(parts[-1]), arrays[path]))
        own = str(file.attributes(f"{owner}/vars").get("name", "")) if "vars" in file.names(owner) else ""
        names[owner] = own or owner.rpartition("/")[2], cell
    layers = []
    for owner, by_direction in grouped.items():
        name, cell = names[owner]
        found = {
            direction: tuple(a for _, a in sorted(variables, key=lambda one: one[0]))
            for direction, variables in by_direction.items()
        }
        layers.append(RecurrentLayer(name, _cell_of(f"{cell} {owner.rpartition('/')[2]}", found), False, found))
    return arrays, layers


def _legacy(group: _Group) -> tuple[dict[str, Tensor], list[RecurrentLayer]]:
    """A group a layer; the attribute `weight_names` has its arrays in the order of `get_weights`."""
    arrays: dict[str, Tensor] = {}
    layers = []
    for layer in _words(group.attributes()["layer_names"]):
        names = _words(group.attributes(layer).get("weight_names", ()))
        found = [group.array(f"{layer}/{name}") for name in names]
        arrays.update({f"{layer}/{name}": array for name, array in zip(names, found, strict=True)})
        own = [name.rpartition("/")[2].partition(":")[0] for name in names]
        if "recurrent_kernel" not in own:
            continue
        by_direction: dict[str, list[NDArray[Any]]] = {}
        for name, array in zip(names, found, strict=True):
            direction = "backward" if "/backward_" in f"/{name}" else "forward"
            by_direction.setdefault(direction, []).append(array)
        ordered = {direction: tuple(by_direction[direction]) for direction in sorted(by_direction, reverse=True)}
        cell = _cell_of(names[0], ordered)
        layers.append(RecurrentLayer(layer, cell, _is_cudnn(cell, ordered), ordered))
    return arrays, layers


def _words(value: Any) -> list[str]:
    return [word.decode() if isinstance(word, bytes) else str(word) for word in value]


def _gates(arrays: Mapping[str, Sequence[NDArray[Any]]]) -> int:
    """The number of gates, by the shape `(hidden_size, gates * hidden_size)` of the recurrent kernel."""
    recurrent = next(iter(arrays.values()))[1:2]
    shape = recurrent[0].shape if recurrent else ()
    return shape[1] // shape[0] if len(shape) == 2 and shape[0] and not shape[1] % shape[0] else 0


def _cell_of(name: str, arrays: Mapping[str, Sequence[NDArray[Any]]]) -> str:
    by_shape = {1: "simple_rnn", 3: "gru", 4: "lstm"}.get(_gates(arrays), "")
    if not by_shape:
        raise FormatError(f"{name!r} has no recurrent kernel (hidden_size, gates * hidden_size)")
    return by_shape


def _is_cudnn(cell: str, arrays: Mapping[str, Sequence[NDArray[Any]]]) -> bool:
    """Whether the bias has the form of CuDNNLSTM and CuDNNGRU: input and recurrent bias, one after the other."""
    _, recurrent, *bias = next(iter(arrays.values()))
    return bool(bias) and cell != "simple_rnn" and bias[0].shape == (2 * recurrent.shape[1],)


# --- Configuration ---------------------------------------------------------------------------------------------------


def _configured(layers: Sequence[RecurrentLayer], config: Mapping[str, Any]) -> tuple[RecurrentLayer, ...]:
    """The layers with the fields of their configuration, and which follows which."""
    known = {name: (kind, fields, inputs) for name, kind, fields, inputs in _config_layers(config)}
    found = []
    for layer in layers:
        if layer.name not in known:
            found.append(layer)
            continue
        kind, fields, inputs = known[layer.name]
        inner = fields
        if kind == "Bidirectional":
            wrapped = fields.get("layer")
            inner = (
                {**wrapped.get("config", {}), "merge_mode": fields.get("merge_mode", "concat")}
                if isinstance(wrapped, dict)
                else {}
            )
            kind = str(wrapped.get("class_name")) if isinstance(wrapped, dict) else ""
        cell = KINDS.get(kind, layer.cell)
        follows = inputs[0] if len(inputs) == 1 and any(one.name == inputs[0] for one in layers) else ""
        found.append(replace(layer, cell=cell, cudnn=kind.startswith("CuDNN"), config=inner, follows=follows))
    return tuple(found)


def _config_layers(config: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any], list[str]]]:
    """Name, class, fields and names of the inputs of every layer, nested models included."""
    inner = config.get("config")
    layers = inner.get("layers") if isinstance(inner, dict) else inner  # a list in Keras 1 and early Keras 2
    if not isinstance(layers, list):
        return
    sequential = config.get("class_name") == "Sequential"
    before = ""
    for layer in layers:
        if not isinstance(layer, dict) or not isinstance(fields := layer.get("config"), dict):
            continue
        name, kind = str(fields.get("name", layer.get("name", ""))), str(layer.get("class_name", ""))
        yield name, kind, fields, [before] if sequential and before else _inputs(layer)
        before = name
        if kind in ("Sequential", "Functional", "Model"):
            yield from _config_layers(layer)


def _inputs(layer: Mapping[str, Any]) -> list[str]:
    """The names of the layers whose outputs a layer of a functional model takes."""
    found: list[str] = []
    queue: list[Any] = [layer.get("inbound_nodes", [])]
    while queue:
        node = queue.pop()
        if isinstance(node, dict):
            history = (
                node.get("config", {}).get("keras_history") if node.get("class_name") == "__keras_tensor__" else None
            )
            if isinstance(history, list) and history:
                found.append(str(history[0]))
            else:
                queue += list(node.values())
        elif isinstance(node, list):
            if len(node) >= 3 and isinstance(node[0], str) and all(isinstance(n, int) for n in node[1:3]):
                found.append(node[0])
            else:
                queue += node
    return found
