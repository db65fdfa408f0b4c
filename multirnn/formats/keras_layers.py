"""The layers of Keras, and of files that keep its arrays, as stacks: which follow one another, and what their fields mean."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from multirnn.activations import ACTIVATIONS, Activation
from multirnn.errors import FormatError, InvalidSpec, InvalidWeights, Unrepresentable
from multirnn.formats.contents import Tensor, numbers_of, stored_as
from multirnn.formats.found import FileStack, Found
from multirnn.recognition import from_arrays
from multirnn.weights import Array

__all__ = ["HARD_SIGMOID", "HARD_SIGMOID_3", "RecurrentLayer", "of_layers"]

HARD_SIGMOID = Activation("hard_sigmoid", alpha=0.2, beta=0.5)
"""Keras' own before version 3."""
HARD_SIGMOID_3 = Activation("hard_sigmoid", alpha=1 / 6, beta=0.5)
"""Keras' own since version 3."""
OTHERS = (
    "celu", "exponential", "gelu", "glu", "hard_shrink", "hard_silu", "hard_swish", "hard_tanh", "leaky_relu",
    "log_sigmoid", "log_softmax", "mish", "relu6", "selu", "silu", "soft_shrink", "softmax", "softplus",
    "sparse_plus", "sparse_sigmoid", "sparsemax", "squareplus", "swish", "tanh_shrink", "threshold",
)  # fmt: skip
"""The activations of Keras that no spec has: a file that names one says what it computes."""
ALIKE = ("activation", "recurrent_activation", "reset_after", "use_bias", "merge_mode", "units", "go_backwards")


@dataclass(frozen=True)
class RecurrentLayer:
    """A recurrent layer of a file.

    Attributes:
        name: as the file calls it, after the names of the models that it is in.
        cell: "simple_rnn", "lstm" or "gru"; empty where neither shape nor configuration tells.
        cudnn: whether its arrays lie as CuDNNLSTM and CuDNNGRU keep them.
        arrays: by direction, then kernel, recurrent kernel and bias.
        config: the fields of its configuration; None where the file has none. `backward_layer` are those of the layer of
            the backward direction, if the configuration has them.
        follows: the name of the recurrent layer whose sequence is its input, and no other layer's; empty for any other.
        about: what the model does with it besides, a sentence each.
        refused: why it cannot be read; empty for any other.
    """

    name: str
    cell: str
    cudnn: bool
    arrays: Mapping[str, tuple[Tensor, ...]]
    config: Mapping[str, Any] | None = None
    follows: str = ""
    about: tuple[str, ...] = ()
    refused: str = ""


def of_layers(layers: Sequence[RecurrentLayer], version: Any, known: Mapping[str, Any]) -> Iterator[FileStack]:
    """The stacks of layers: those that follow one another and are alike are one.

    Args:
        layers: in the order of the file.
        version: of Keras, as text; None if the file does not say it.
        known: arguments of `from_arrays` that the file may not tell; it may repeat what the file says, not contradict it.
    """
    for chain in _chains(layers):
        name = " ".join(layer.name for layer in chain)
        first = chain[0]
        convention = "keras-cudnn" if first.cudnn else "keras"
        stored = next((stored_as(array) for arrays in first.arrays.values() for array in arrays), "")
        about = tuple(dict.fromkeys(sentence for layer in chain for sentence in (*layer.about, *_about(layer))))
        try:
            named = _named(chain)
            settings, left_open = _settings(first, version if isinstance(version, str) else None, known)
            weights = from_arrays(named, convention=convention, **{**settings, **known})
        except (FormatError, Unrepresentable, InvalidWeights, InvalidSpec) as error:
            yield FileStack(Found(name, None, convention, stored, about, str(error)), None)
            continue
        gates = ["recurrent_activation"] if len(weights.spec.form.gates) > 1 else []
        unsaid = tuple(one for one in ("activation", *gates) if left_open and one not in known)
        yield FileStack(Found(name, weights.spec, convention, stored, (*left_open, *about), unsaid=unsaid), weights)


def _chains(layers: Sequence[RecurrentLayer]) -> Iterator[list[RecurrentLayer]]:
    by_name = {layer.name: layer for layer in layers}
    chains: dict[str, list[RecurrentLayer]] = {}
    for layer in layers:
        before = by_name.get(layer.follows)
        if before is not None and before.name in chains and _alike(before, layer):
            chains[layer.name] = [*chains.pop(before.name), layer]
        else:
            chains[layer.name] = [layer]
    yield from chains.values()


def _alike(a: RecurrentLayer, b: RecurrentLayer) -> bool:
    """Whether two layers have one cell, one size and one configuration, so that one spec describes both."""
    if a.refused or b.refused or (a.cell, a.cudnn, set(a.arrays)) != (b.cell, b.cudnn, set(b.arrays)):
        return False
    shapes = [[array.shape for array in next(iter(layer.arrays.values()))[1:]] for layer in (a, b)]
    first, second = a.config or {}, b.config or {}
    dtypes = {stored_as(array) for layer in (a, b) for arrays in layer.arrays.values() for array in arrays}
    return (
        shapes[0] == shapes[1]
        and len(dtypes) == 1
        and all(first.get(field) == second.get(field) for field in ALIKE)
        and first.get("return_sequences", True) is not False
    )


def _named(chain: Sequence[RecurrentLayer]) -> dict[str, Array]:
    """The arrays by the names of the convention.

    Raises:
        FormatError: a layer is refused, or its arrays are no numbers.
    """
    named: dict[str, Array] = {}
    for number, layer in enumerate(chain):
        if layer.refused:
            raise FormatError(layer.refused)
        for direction, arrays in layer.arrays.items():
            inner = f"{direction}_layer/" if len(layer.arrays) > 1 else ""
            cell = "" if layer.cudnn else "layer_cell/"
            if len(arrays) > 3:
                raise FormatError(
                    f"it has {len(arrays)} arrays, and a layer has a kernel, a recurrent kernel and a bias"
                )
            for own, array in zip(("kernel", "recurrent_kernel", "bias"), arrays, strict=False):
                named[f"layer_{number}/{inner}{cell}{own}"] = numbers_of(f"{layer.name}/{own}", array)
    return named


def _settings(
    layer: RecurrentLayer, version: str | None, known: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The arguments of `from_arrays` that the configuration gives, and what it leaves open.

    Raises:
        FormatError: no spec has one of its settings.
    """
    settings: dict[str, Any] = {"cell": layer.cell} if layer.cell else {}
    if layer.cudnn:
        settings |= {"activation": "tanh", "recurrent_activation": "sigmoid"}  # cuDNN has no other
        _agree(settings, known)
        return settings, ()
    config = layer.config
    old = _before(version, (2, 3))
    gate: str | Activation = HARD_SIGMOID if old and "-tf" not in str(version) else "sigmoid"
    if config is None:
        _agree(settings, known)
        taken = ["tanh", str(gate)][: 1 if layer.cell == "simple_rnn" else 2]
        why = f", the default{'s' * (len(taken) > 1)} of Keras {version}" if version else ""
        said = [f"its activations are not in the file; taken are {' and '.join(taken)}{why}"]
        if old and gate == "sigmoid" and layer.cell != "simple_rnn":
            said.append(
                "if TensorFlow 1 wrote it, its gates were hard: pass recurrent_activation=Activation('hard_sigmoid', 0.2, 0.5)"
            )
        return {**settings, "recurrent_activation": gate}, tuple(said)
    _refuse(layer, config)
    for name in ("activation", "recurrent_activation"):
        if name in config:
            settings[name] = _activation(name, config[name], version, known.get(name))
    if layer.cell == "gru":
        settings["reset_after"] = bool(
            config.get("reset_after", False)
        )  # absent before Keras 2.1.3, which had no other
    _agree(settings, known)
    return {"recurrent_activation": gate, **settings}, ()


def _agree(settings: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """The caller may repeat what the file says.

    Raises:
        FormatError: the caller says something else.
    """
    for name, said in settings.items():
        given = known.get(name, said)
        if (Activation.of(given) != Activation.of(said)) if name.endswith("activation") else given != said:
            raise FormatError(f"the file says {name}={said!r}, and the call {given!r}; leave {name}= out")


def _refuse(layer: RecurrentLayer, config: Mapping[str, Any]) -> None:
    if config.get("go_backwards"):
        raise FormatError("it has go_backwards=True, and no spec runs backward alone")
    if config.get("merge_mode", "concat") != "concat":
        raise FormatError(
            f"it has merge_mode={str(config['merge_mode'])[:40]!r}, and a spec joins directions by 'concat'"
        )
    back = config.get("backward_layer")
    if not isinstance(back, Mapping):
        return
    if not back.get("go_backwards", True):
        raise FormatError("its second layer runs forward too, and no spec has that")
    for field in ("activation", "recurrent_activation", "reset_after", "use_bias", "units"):
        if field in back and back[field] != config.get(field):
            raise FormatError(f"its directions differ in {field}, and a spec has one for both")


def _about(layer: RecurrentLayer) -> list[str]:
    config = layer.config or {}
    said = [
        f"in training it has {name}={config[name]}" for name in ("dropout", "recurrent_dropout") if config.get(name)
    ]
    for field, value, sentence in (
        ("return_sequences", False, "it returns its last output alone"),
        ("stateful", True, "it keeps its state from one batch to the next"),
        ("time_major", True, "its input is (time, batch, features)"),
    ):
        if config.get(field) is value:
            said.append(sentence)
    policy = config.get("dtype")
    if isinstance(policy, Mapping):
        inner = policy.get("config")
        policy = inner.get("name") if isinstance(inner, Mapping) else None
    if isinstance(policy, str) and policy.startswith("mixed"):
        said.append(f"it computes by the dtype policy {policy[:40]!r}, and a spec in the dtype of its weights")
    return said


def _activation(field: str, value: Any, version: str | None, given: Any) -> str | Activation:
    """An activation by what a configuration has in its place.

    Args:
        given: the caller's word where a name means two functions, or one of the user's own; None if there is none.

    Raises:
        FormatError: no spec has it; or neither the version nor the caller tells which of two functions a name means.
    """
    if value is None:
        return "linear"
    if value == "hard_sigmoid":
        if version is None:
            if given in (HARD_SIGMOID, HARD_SIGMOID_3):
                return given  # type: ignore[no-any-return]
            raise FormatError(
                f"its {field} 'hard_sigmoid' has the slope 0.2 before Keras 3 and 1/6 since, and the file does not say "
                f"its version; pass {field}=Activation('hard_sigmoid', 0.2, 0.5) or Activation('hard_sigmoid', 1/6, 0.5)"
            )
        return HARD_SIGMOID if _before(version, (3,)) else HARD_SIGMOID_3
    if isinstance(value, str) and value in ACTIVATIONS:
        return Activation(value).short
    if isinstance(value, Mapping) and isinstance(fields := value.get("config"), Mapping):
        kind = value.get("registered_name") or f"{value.get('module')}>{value.get('class_name')}"
        ours = {"multirnn>HardSigmoid": ("hard_sigmoid", ("alpha", "beta")), "keras.layers>ELU": ("elu", ("alpha",))}
        if kind in ours:
            name, parameters = ours[kind]
            return Activation(name, **{parameter: fields.get(parameter) for parameter in parameters}).short
    shown = value.get("class_name") if isinstance(value, Mapping) else value
    if shown == "function" and isinstance(value, Mapping):
        shown = value.get("config")
    of_keras = isinstance(value, Mapping) and str(value.get("module")).startswith("keras")
    if given is not None and not of_keras and shown not in OTHERS:
        return given  # type: ignore[no-any-return]
    raise FormatError(f"its {field} {str(shown)[:60]!r} is in no spec; there are {', '.join(ACTIVATIONS)}")


def _before(version: str | None, limit: tuple[int, ...]) -> bool:
    parts = tuple(int(part) for part in (version or "").split(".")[: len(limit)] if part.isdigit())
    return bool(parts) and parts < limit
