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
from multirnn.errors import kind_of
from multirnn.layer import FAST, Implementation
from multirnn.replacement import Kept, Replaced, Replacement, refuse_without
from multirnn.spec import DTYPES
from multirnn_keras import engines
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


def _named_as_keras(fast: Any) -> Any:
    """A fast class of the name of Keras' own: files of weights have the names of classes in their paths."""
    name = NATIVE[fast].__name__
    named = type(name, (fast,), {"__module__": __name__, "__doc__": fast.__doc__})
    return keras.saving.register_keras_serializable("multirnn", f"Replaced{name}")(named)


IN_PLACE = {native: _named_as_keras(fast) for fast, native in NATIVE.items()}
"""What each class of Keras becomes."""

NATIVE.update({fast: native for native, fast in IN_PLACE.items()})
CELLS.update({fast: CELLS[native] for native, fast in IN_PLACE.items() if native in CELLS})


class KerasReplacement(Replacement):
    """The result of `replace_layers` for a model or a layer of Keras.

    The names of layers and weights, the optimiser and its state, and files of weights stay as they are. A model saved by
    `model.save` needs `multirnn_keras` to be loaded; one saved by `save` does not. What `fit`, `evaluate` and `predict`
    compiled is compiled again; a `tf.function` or a model of your own around this one keeps what it traced.
    """

    def restore(self) -> None:
        """See `Replacement.restore`."""
        paths = {layer.path for layer in self.replaced}
        changes = [(layer, NATIVE[type(layer)]) for path, layer in _fast_layers(self.model) if path in paths]
        _change(changes)
        if changes:
            _forget_functions(self.model)

    def save(self, path: str | Path) -> None:
        """Write the model, with its optimiser, as a `.keras` file that loads where multirnn is not installed.

        The file appears whole or not at all. The model stays fast.

        Raises:
            InvalidCall: the path has another ending, the file cannot be written, or the model has no weights yet, is a
                layer alone, or has a `HardSigmoid` of multirnn.
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
            if own := next(_own_objects(keras.saving.serialize_keras_object(self.model)), None):
                raise InvalidCall(
                    f"model {self.model.name!r} has {own!r} of multirnn, which Keras does not load without it; "
                    "save it by model.save, and import multirnn_keras where it is loaded"
                )
            whole = Path(folder) / path.name
            self.model.save(whole)
            with replacing(path, InvalidCall) as file, whole.open("rb") as written:
                shutil.copyfileobj(written, file)


def replace_layers(model: Any, implementation: Implementation) -> KerasReplacement:
    """See `multirnn.replacement.replace_layers`; `model` is a model or a layer of Keras."""
    if not isinstance(model, keras.layers.Layer):
        raise InvalidCall(f"layers are replaced inside a model or a layer of Keras, not inside {kind_of(model)}")
    changes, replaced, kept = [], [], []
    for path, layer in _walk(model):
        if not (_is_recurrent(layer) or _is_cell(layer)):
            continue
        kind = type(layer)
        if reason := _kept(layer) if implementation == FAST else _kept_native(layer):
            kept.append(Kept(path, _title(kind), reason))
            continue
        after = (IN_PLACE if implementation == FAST else NATIVE)[kind]
        changes.append((layer, after))
        replaced.append(Replaced(path, _title(kind), _title(after)))
    if not replaced:
        refuse_without(model, kept)
    _change(changes)
    _forget_functions(model)
    return KerasReplacement(model, replaced, kept)


# --- The layers of a model -------------------------------------------------------------------------------------------


def _walk(root: Any) -> Iterator[tuple[str, Any]]:
    """The layer and all below it, each once, with its path of names below the root; not what is inside a recurrent layer or cell."""
    seen: set[int] = set()
    taken: dict[str, int] = {}

    def below(layer: Any, path: str) -> Iterator[tuple[str, Any]]:
        if id(layer) in seen:
            return
        seen.add(id(layer))
        taken[path] = taken.get(path, 0) + 1
        path = path if taken[path] == 1 else f"{path}#{taken[path]}"  # a model of one's own may use a name twice
        yield path, layer
        if not (_is_recurrent(layer) or _is_cell(layer)):
            for part in _parts(layer):
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


def _fast_layers(model: Any) -> list[tuple[str, Any]]:
    return [(path, layer) for path, layer in _walk(model) if type(layer) in NATIVE]


def _title(kind: Any) -> str:
    """The name of a class as its users know it."""
    return next(
        (fast.__name__ for fast in kind.__mro__ if fast in NATIVE and fast not in IN_PLACE.values()), kind.__name__
    )


# --- Why a layer is kept ---------------------------------------------------------------------------------------------


def _kept_native(layer: Any) -> str | None:
    return None if type(layer) in NATIVE else "it is not a fast layer of multirnn"


def _kept(layer: Any) -> str | None:
    """None where a layer can be replaced, else the reason why not."""
    kind = type(layer)
    if _is_cell(layer):
        return "it is a cell in a loop of the model's own; put it in a layer of Keras, such as keras.layers.RNN(cell)"
    if isinstance(layer, Fast):
        return "it is fast already"
    if kind not in IN_PLACE:
        if kind.__module__.partition(".")[0] == "keras":
            return f"no spec has a {kind.__name__}"
        return f"its class {kind.__name__} is not Keras' own, and may compute something else"
    if methods := replaced_methods(layer) | replaced_methods(layer.cell):
        return f"its method {min(methods)!r} was replaced on the object"
    if type(layer.cell) not in KERAS_CELLS:
        known = ", ".join(cell.__name__ for cell in KERAS_CELLS)
        return f"it runs a {type(layer.cell).__name__}, and fast layers run one cell of Keras' own: {known}"
    return _kept_settings(layer)


def _kept_settings(layer: Any) -> str | None:
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
    fast = [(layer, type(layer)) for _, layer in _fast_layers(model)]
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
