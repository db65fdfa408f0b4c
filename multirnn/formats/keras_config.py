"""Keras' configuration of a model, read as JSON fields and never deserialised: its layers, and who feeds whom."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from multirnn.errors import FormatError
from multirnn.formats.keras_layers import RecurrentLayer

__all__ = ["Described", "configured", "described", "json_of"]

KINDS = {
    "SimpleRNN": "simple_rnn",
    "LSTM": "lstm",
    "GRU": "gru",
    "CuDNNLSTM": "lstm",
    "CuDNNGRU": "gru",
    "SimpleRNNCell": "simple_rnn",
    "LSTMCell": "lstm",
    "GRUCell": "gru",
}
MODELS = ("Sequential", "Functional", "Model")
DEEPEST = 50
OF_KERAS_1 = {
    "output_dim": "units",
    "inner_activation": "recurrent_activation",
    "dropout_W": "dropout",
    "dropout_U": "recurrent_dropout",
}


@dataclass(frozen=True)
class Described:
    """A layer as the configuration has it.

    Attributes:
        name: after the names of the models that it is in.
        group: the name of the layer of the outermost model that it is, or is in.
        path: of its variables in a `.weights.h5`.
        kind: its class, without wrappers.
        fields: of its configuration; those of a wrapper beside it, and of its backward layer.
        inputs: the names of the layers that feed it, call after call.
        about: what the model does with it, a sentence each.
        returned: whether its output is one of its model's.
    """

    name: str
    group: str
    path: str
    kind: str
    fields: Mapping[str, Any]
    inputs: tuple[str, ...] = ()
    about: tuple[str, ...] = ()
    returned: bool = False

    @property
    def recurrent(self) -> bool:
        """Whether it is one of Keras' recurrent layers."""
        return self.kind in KINDS


def json_of(text: bytes) -> dict[str, Any]:
    """The object in a JSON text.

    Raises:
        FormatError: it is no JSON, or no object.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"its configuration is damaged: {error}") from error
    if not isinstance(found, dict):
        raise FormatError("its configuration is no JSON object")
    return found


def configured(layers: Sequence[RecurrentLayer], known: Mapping[str, Described]) -> tuple[RecurrentLayer, ...]:
    """The layers with the fields of their configuration, and which follows which.

    Args:
        layers: of a file, each under the name that `known` has for it.
        known: the layers of the configuration, of which some are among them.
    """
    feeds: dict[str, int] = {}
    for one in known.values():
        for source in one.inputs:
            feeds[source] = feeds.get(source, 0) + 1
    there = {layer.name for layer in layers}
    found = []
    for layer in layers:
        own = known.get(layer.name)
        if own is None:
            found.append(layer)
            continue
        before = own.inputs[0] if len(own.inputs) == 1 else ""
        alone = before in known and feeds.get(before) == 1 and not known[before].returned
        found.append(
            replace(
                layer,
                cell=KINDS.get(own.kind, layer.cell),
                cudnn=own.kind.startswith("CuDNN"),
                config=own.fields,
                follows=before if before in there and alone else "",
                about=(*layer.about, *own.about),
            )
        )
    return tuple(found)


def described(
    config: Mapping[str, Any], *, prefix: str = "", group: str = "", path: str = "", depth: int = 0
) -> Iterator[Described]:
    """Every layer of a model, those of nested models after the model.

    Args:
        config: of the model.
        prefix: before the names of its layers.
        group, path: of the model, if it is in another.
        depth: of nesting; deeper ones are left out.
    """
    inner = config.get("config")
    layers = inner.get("layers") if isinstance(inner, dict) else inner  # a list in Keras 1 and early Keras 2
    if not isinstance(layers, list) or depth > DEEPEST:
        return
    sequential = config.get("class_name") == "Sequential"
    used: dict[str, int] = {}
    before, masks = "", _masks(layers)
    outputs = _inputs(inner.get("output_layers")) if isinstance(inner, dict) else []
    for layer in layers:
        if not isinstance(layer, dict) or not isinstance(fields := layer.get("config"), dict):
            continue
        name, kind = str(layer.get("name") or fields.get("name") or ""), str(layer.get("class_name", ""))
        own = _snake(kind)
        used[own] = used.get(own, -1) + 1
        place = f"{path}layers/{own}" + (f"_{used[own]}" if used[own] else "")
        calls = _calls(layer)
        inputs = [before] if sequential and before else [one for call in calls for one in call]
        about = tuple(masks)
        if len(calls) > 1:
            about += (f"it is called {len(calls)} times",)
        elif len(inputs) > 1:
            about += ("its call takes more than its input, such as an initial state",)
        kind, fields, place = _unwrapped(kind, fields, place)
        sources = tuple(prefix + one for one in inputs)
        yield Described(prefix + name, group or name, place, kind, fields, sources, about, name in outputs)
        before = name
        if kind in MODELS:
            yield from described(
                {**layer, "config": fields, "class_name": kind},
                prefix=f"{prefix}{name}/",
                group=group or name,
                path=f"{place}/",
                depth=depth + 1,
            )


def _masks(layers: Sequence[Any]) -> list[str]:
    """A sentence if a layer of the model masks steps."""
    for layer in layers:
        fields = layer.get("config") if isinstance(layer, dict) else None
        if isinstance(fields, dict) and (layer.get("class_name") == "Masking" or fields.get("mask_zero") is True):
            return [f"the layer {str(fields.get('name'))[:40]!r} of its model masks steps; lengths= does it here"]
    return []


def _unwrapped(kind: str, fields: Mapping[str, Any], path: str) -> tuple[str, Mapping[str, Any], str]:
    """Class, fields and path of the layer in a wrapper, or in an RNN of one cell; of any other as it is."""
    wrapped = fields.get("cell" if kind == "RNN" else "layer")
    if kind not in ("Bidirectional", "TimeDistributed", "RNN") or not isinstance(wrapped, dict):
        return kind, fields, path
    inner = wrapped.get("config")
    own: dict[str, Any] = dict(inner) if isinstance(inner, dict) else {}
    if kind == "TimeDistributed":
        return str(wrapped.get("class_name")), own, f"{path}/layer"
    if kind == "RNN":
        taken = ("return_sequences", "go_backwards", "stateful", "time_major")
        return str(wrapped.get("class_name")), own | {name: fields[name] for name in taken if name in fields}, path
    own["merge_mode"] = fields.get("merge_mode", "concat")
    back = fields.get("backward_layer")
    if isinstance(back, dict) and isinstance(back.get("config"), dict):
        own["backward_layer"] = back["config"]
    inside, own_inside, _ = _unwrapped(str(wrapped.get("class_name")), own, path)
    return inside, {**own_inside, **{name: own[name] for name in ("merge_mode", "backward_layer") if name in own}}, path


def _snake(kind: str) -> str:
    """The name of a class as Keras' `naming.to_snake_case` writes it."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", kind[:200]))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _calls(layer: Mapping[str, Any]) -> list[list[str]]:
    """For each call of a layer of a functional model, the names of the layers whose outputs it takes."""
    nodes = layer.get("inbound_nodes", [])
    return [_inputs(node) for node in nodes] if isinstance(nodes, list) else []


def _inputs(node: Any) -> list[str]:
    found: list[str] = []
    queue: list[Any] = [node]
    while queue:
        one = queue.pop()
        if isinstance(one, dict):
            fields = one.get("config")
            history = fields.get("keras_history") if isinstance(fields, dict) else None
            if one.get("class_name") == "__keras_tensor__" and isinstance(history, list) and history:
                found.append(str(history[0]))
            else:
                queue += list(one.values())
        elif isinstance(one, list):
            if len(one) >= 3 and isinstance(one[0], str) and all(type(number) is int for number in one[1:3]):
                found.append(one[0])
                queue += one[3:]
            else:
                queue += one
    return found


def of_keras_1(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a layer of Keras 1 by their later names."""
    return {OF_KERAS_1.get(name, name): value for name, value in fields.items()}
