"""The recurrent layers inside a Keras model, made fast in place: only their classes change."""

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras

from multirnn import InvalidCall, Unrepresentable
from multirnn.atomic import replacing
from multirnn.errors import an, kind_of
from multirnn.layer import FAST, Implementation
from multirnn.replacement import Kept, Replaced, Replacement, refuse_without
from multirnn.spec import DTYPES
from multirnn_keras import engines
from multirnn_keras import replaced as in_place
from multirnn_keras.activations import from_keras
from multirnn_keras.engines import engine
from multirnn_keras.fast import KERAS_CELLS, Fast, FastGRU, FastLSTM, FastRNN, FastSimpleRNN
from multirnn_keras.structure import CELLS, replaced_methods

__all__ = ["KerasReplacement", "replace_layers"]

NATIVE: dict[Any, Any] = {
    FastSimpleRNN: keras.layers.SimpleRNN,
    FastLSTM: keras.layers.LSTM,
    FastGRU: keras.layers.GRU,
    FastRNN: keras.layers.RNN,
}
"""Keras' own class of each fast one."""


IN_PLACE: dict[Any, Any] = {getattr(keras.layers, kind): getattr(in_place, kind) for kind in in_place.__all__}
"""What each class of Keras becomes."""

NATIVE.update({fast: native for native, fast in IN_PLACE.items()})
CELLS.update({fast: CELLS[native] for native, fast in IN_PLACE.items() if native in CELLS})

Change = tuple[Any, Any]
"""A layer and a class of it."""


class KerasReplacement(Replacement):
    """The result of `replace_layers` for a model or a layer of Keras.

    The names of layers and weights, the optimiser and its state, and files of weights stay as they are. A model saved by
    `model.save` needs `multirnn_keras` to be loaded; one saved by `save` does not. What `fit`, `evaluate` and `predict`
    compiled is compiled again; a `tf.function` or a model around this one keeps what it traced. A copy is fast too, but for
    what the constructor of a model of your own makes.
    """

    def __init__(self, model: Any, made: Sequence[Replaced], kept: Sequence[Kept], before: Sequence[Change]) -> None:
        super().__init__(model, made, kept)
        self._before = tuple(before)  # in the order of `replaced`

    def restore(self) -> None:
        """See `Replacement.restore`.

        Raises:
            InvalidCall: something else changed the class of a layer meanwhile; then no layer is put back.
        """
        changes = []
        for (path, name, _), (layer, before) in zip(self.replaced, self._before, strict=True):
            if not (type(layer) in NATIVE or type(layer) in IN_PLACE):
                raise InvalidCall(
                    f"{path or 'the model'} is now a {type(layer).__name__}, which has no {name} to go back to; "
                    "undo first what changed its class"
                )
            if isinstance(layer, Fast) != issubclass(before, Fast):  # else it was put back already
                changes.append((layer, before))
        if changes:
            _change(changes)
            _forget_functions(self.model)

    def __reduce__(self) -> Any:
        """A copy finds the layers in its own model by their places: Keras copies a model by its configuration."""
        places = {id(layer): place for place, (_, layer) in enumerate(_recurrent(self.model))}
        before = [(places.get(id(layer)), kind) for layer, kind in self._before]
        return _copied, (self.model, self.replaced, self.kept, len(places), before)

    def save(self, path: str | Path) -> None:
        """Write the model, with its optimiser, as a `.keras` file that loads where multirnn is not installed.

        The file appears whole or not at all. The model stays fast.

        Raises:
            InvalidCall: the path has another ending, the file cannot be written, or the model has no weights yet, is a
                layer alone, has a `HardSigmoid` of multirnn, or is of a class that Keras cannot save.
        """
        path = Path(path)
        if path.suffix != ".keras":
            raise InvalidCall(f"a Keras model is saved as a .keras file, not as {path.name!r}")
        if not isinstance(self.model, keras.Model):
            raise InvalidCall(
                f"a .keras file holds a model, not {kind_of(self.model)} alone; put it in a keras.Sequential"
            )
        if not self.model.built:
            raise InvalidCall(f"model {self.model.name!r} has no weights yet: call it before it is saved")
        with _native(self.model), tempfile.TemporaryDirectory() as folder:
            if own := next(_own_objects(self._config()), None):
                raise InvalidCall(
                    f"model {self.model.name!r} has {own!r} of multirnn, which Keras does not load without it; "
                    "save it by model.save, and import multirnn_keras where it is loaded"
                )
            whole = Path(folder) / path.name
            self.model.save(whole)
            with replacing(path, InvalidCall) as file, whole.open("rb") as written:
                shutil.copyfileobj(written, file)

    def _config(self) -> Any:
        try:
            return keras.saving.serialize_keras_object(self.model)
        except NotImplementedError as error:
            raise InvalidCall(
                f"model {self.model.name!r} cannot be saved: Keras has no configuration of an object in it, whose class "
                f"needs a get_config of its own ({str(error).strip().partition(chr(10))[0]})"
            ) from error


def _copied(
    model: Any, made: Sequence[Replaced], kept: Sequence[Kept], count: int, before: Sequence[tuple[int | None, Any]]
) -> KerasReplacement:
    layers = [layer for _, layer in _recurrent(model)]
    if len(layers) != count or any(place is None for place, _ in before):
        raise InvalidCall(
            f"the recurrent layers of model {model.name!r} are not those that were replaced, so a copy cannot restore them; "
            "copy the model alone, and call replace_layers on the copy"
        )
    return KerasReplacement(model, made, kept, [(layers[place], kind) for place, kind in before if place is not None])


def replace_layers(model: Any, implementation: Implementation) -> KerasReplacement:
    """See `multirnn.replacement.replace_layers`; `model` is a model or a layer of Keras."""
    if not isinstance(model, keras.layers.Layer):
        raise InvalidCall(f"layers are replaced inside a model or a layer of Keras, not inside {kind_of(model)}")
    keeps, counterparts = (_keeps, IN_PLACE) if implementation == FAST else (_keeps_native, NATIVE)
    made, kept, before, changes = [], [], [], []
    for path, layer in _recurrent(model):
        kind = type(layer)
        if reason := keeps(layer):
            kept.append(Kept(path, _title(kind), reason))
            continue
        made.append(Replaced(path, _title(kind), _title(counterparts[kind])))
        before.append((layer, kind))
        changes.append((layer, counterparts[kind]))
    if not made and not any(reason in _ALREADY for _, _, reason in kept):
        refuse_without(model, kept)
    if changes:
        _change(changes)
        _forget_functions(model)
    return KerasReplacement(model, made, kept, before)


# --- The layers of a model -------------------------------------------------------------------------------------------


def _recurrent(model: Any) -> Iterator[tuple[str, Any]]:
    """The recurrent layers and cells of a model; not the cell of a recurrent layer."""
    return ((path, layer) for path, layer in _walk(model) if _is_recurrent(layer) or _is_cell(layer))


def _walk(root: Any) -> Iterator[tuple[str, Any]]:
    """The layer and all below it, each once, with its path of names; not the cell of a recurrent layer, nor what is in a cell."""
    seen: set[int] = set()
    taken: dict[str, int] = {}

    def below(layer: Any, path: str) -> Iterator[tuple[str, Any]]:
        if id(layer) in seen:
            return
        seen.add(id(layer))
        taken[path] = taken.get(path, 0) + 1
        path = path if taken[path] == 1 else f"{path}#{taken[path]}"  # a model of one's own may use a name twice
        yield path, layer
        cell = layer.cell if _is_recurrent(layer) else None
        for part in () if _is_cell(layer) else _parts(layer):
            if part is not cell:
                yield from below(part, f"{path}/{part.name}" if path else part.name)

    return below(root, "")


def _parts(layer: Any) -> Sequence[Any]:
    if isinstance(layer, keras.Model):
        return list(layer.layers)
    return list(layer._flatten_layers(include_self=False, recursive=False))  # a layer has no public list


def _is_recurrent(layer: Any) -> bool:
    return isinstance(layer, keras.layers.RNN)


def _is_cell(layer: Any) -> bool:
    return hasattr(layer, "state_size") and not _is_recurrent(layer)


def _title(kind: Any) -> str:
    """The name of a class as its users know it."""
    return str((kind.__base__ if kind in IN_PLACE.values() else kind).__name__)


# --- Why a layer is kept ---------------------------------------------------------------------------------------------


_FAST_ALREADY, _NATIVE_ALREADY = _ALREADY = "it is fast already", "it is not a fast layer"


def _keeps_native(layer: Any) -> str | None:
    """None where a fast layer can be made Keras' own again, else the reason why not."""
    if not isinstance(layer, Fast):
        return _NATIVE_ALREADY
    return None if type(layer) in NATIVE else "its class derives from a fast layer, and Keras has none like it"


def _keeps(layer: Any) -> str | None:
    """None where a layer can be made fast, else the reason why not."""
    kind = type(layer)
    if _is_cell(layer):
        return "it is a cell in a loop of the model's own; put it in a layer of Keras, such as keras.layers.RNN(cell)"
    if isinstance(layer, Fast):
        return _FAST_ALREADY
    if kind not in IN_PLACE:
        if kind.__module__.partition(".")[0] == "keras":
            return f"no spec has {an(kind.__name__)}"
        return f"its class {kind.__name__} is not Keras' own, and may compute something else"
    if methods := replaced_methods(layer) | replaced_methods(layer.cell):
        return f"its method {min(methods)!r} was replaced on the object"
    if type(layer.cell) not in KERAS_CELLS:
        known = ", ".join(cell.__name__ for cell in KERAS_CELLS)
        return f"it runs {an(type(layer.cell).__name__)}, and fast layers run one cell of Keras' own: {known}"
    return _keeps_settings(layer)


def _keeps_settings(layer: Any) -> str | None:
    if layer.unroll:
        return "it is unrolled, and a fast layer is a loop; make it with unroll=False"
    for name in ("activation", "recurrent_activation"):
        try:
            from_keras(getattr(layer.cell, name, keras.activations.sigmoid))
        except Unrepresentable as error:
            return str(error)
    for policy in (layer.dtype_policy, layer.cell.dtype_policy):
        if policy.name not in DTYPES:
            return f"its dtype policy is {policy.name!r}, and fast layers compute in {' or '.join(DTYPES)}"
        if reason := engines.refuses(policy.name):
            return reason
    if layer.dtype_policy.name != layer.cell.dtype_policy.name:
        return f"it computes in {layer.dtype_policy.name} and its cell in {layer.cell.dtype_policy.name}"
    cudnn = getattr(layer, "use_cudnn", False)
    if cudnn is True:
        return "it asks for cuDNN; make it with use_cudnn=False"
    if cudnn and engine.device_count("gpu"):
        return "on a GPU Keras may run it by cuDNN; set its use_cudnn to False to replace it"
    return None


# --- The change ------------------------------------------------------------------------------------------------------


def _change(changes: Iterable[tuple[Any, Any]]) -> None:
    for layer, kind in changes:
        object.__setattr__(layer, "__class__", kind)  # past Keras' own, which tracks what it is given


def _forget_functions(model: Any) -> None:
    """Models compile their steps again: what they traced has the layers as they were."""
    for _, layer in _walk(model):
        if isinstance(layer, keras.Model):
            layer.train_function = layer.test_function = layer.predict_function = None


@contextmanager
def _native(model: Any) -> Iterator[None]:
    """The classes of all fast layers are Keras' own meanwhile: the same function, and what is compiled stays."""
    fast = [(layer, type(layer)) for _, layer in _recurrent(model) if type(layer) in NATIVE]
    try:
        _change((layer, NATIVE[kind]) for layer, kind in fast)
        yield
    finally:
        _change(fast)


def _own_objects(config: Any) -> Iterator[str]:
    """The names of multirnn's classes in a Keras config."""
    if isinstance(config, Mapping):
        if str(config.get("registered_name")).startswith("multirnn>"):
            yield str(config.get("class_name"))
        for value in config.values():
            yield from _own_objects(value)
    elif isinstance(config, list | tuple):
        for value in config:
            yield from _own_objects(value)
