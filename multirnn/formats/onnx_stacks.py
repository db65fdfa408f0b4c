"""The recurrent operators of an ONNX model as stacks of layers."""

from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any

from multirnn.activations import Activation
from multirnn.errors import FormatError, InvalidSpec, InvalidWeights, Unrepresentable
from multirnn.formats import onnx_facts
from multirnn.formats.found import FileStack, Found
from multirnn.formats.onnx_facts import CONVENTION, short
from multirnn.formats.onnx_model import Model
from multirnn.formats.onnx_operators import Operator, operators
from multirnn.formats.onnx_wiring import Wiring
from multirnn.recognition import from_arrays
from multirnn.weights import Weights

__all__ = ["of_model"]


def of_model(model: Model, known: Mapping[str, Any]) -> Iterator[FileStack]:
    """The stacks of a model: operators that feed each other through nodes that keep order are one, others one each.

    Those that share their weights are one. Last are the operators that no spec describes, with the reason.

    Args:
        model: with the operators.
        known: arguments of `from_arrays`.

    Raises:
        FormatError: a part of the model is damaged, or its layers are joined in another order than those of a stack.
    """
    readable: list[Operator] = []
    refused: list[FileStack] = []
    pairs: dict[Operator, tuple[Activation, Activation]] = {}
    for one in operators(model):
        reason = one.reason
        if not reason:
            try:
                pairs[one] = onnx_facts.read(one.kind, one.attributes, one.arrays["W"].dtype.name)
                readable.append(one)
                continue
            except (Unrepresentable, InvalidSpec) as error:
                reason = str(error)
        refused.append(FileStack(Found(one.name, None, "onnx", one.stored, refused=reason), None))
    wiring = Wiring(model, readable)
    seen: set[bytes] = set()
    chains = _chains(wiring, readable)
    for chain in chains:
        weights = _weights(chain, pairs[chain[0]], known)
        key = _digest(weights) if len(chains) > 1 else b""
        if key not in seen:
            seen.add(key)
            about, alone = wiring.about(chain)
            name = "" if alone and not refused else " ".join(one.name for one in chain)
            yield FileStack(Found(name, weights.spec, "onnx", chain[0].stored, about), weights)
    yield from refused


def _digest(weights: Weights) -> bytes:
    """Equal for equal weights."""
    digest = blake2b(repr(weights.spec).encode())
    for array in weights.arrays.values():
        digest.update(array.data)
    return digest.digest()


def _chains(wiring: Wiring, readable: Sequence[Operator]) -> list[list[Operator]]:
    chains: dict[Operator, list[Operator]] = {}
    for one in readable:
        below = wiring.below.get(one)
        chains[one] = chains.pop(below) if below is not None and below in chains else []
        chains[one].append(one)
    return list(chains.values())


def _weights(chain: Sequence[Operator], pair: tuple[Activation, Activation], known: Mapping[str, Any]) -> Weights:
    first = chain[0]
    activation, gate = pair
    settings: dict[str, Any] = {
        "cell": first.cell,
        "reset_after": first.cell != "gru" or first.attributes.get("linear_before_reset", 0) == 1,
        "activation": activation,
        "recurrent_activation": gate,
    }
    for name, value in known.items():
        if name in settings and value != settings[name] and getattr(settings[name], "short", None) != value:
            raise FormatError(
                f"the operator {short(first.name)} says {name}={getattr(settings[name], 'short', settings[name])!r}, and the "
                f"call {value!r}; leave {name}= out"
            )
    arrays = {f"layers.{k}.{own}": array for k, one in enumerate(chain) for own, array in one.arrays.items()}
    try:
        return from_arrays(arrays, convention=CONVENTION, **{**known, **settings})
    except (Unrepresentable, InvalidWeights, InvalidSpec) as error:
        raise FormatError(f"the operator {short(first.name)} cannot be read: {error}") from error
