"""The activations of a spec as Keras has them, and back."""

from collections.abc import Mapping
from typing import Any

import keras

from multirnn import Activation, Unrepresentable

__all__ = ["HardSigmoid", "from_keras", "to_keras"]

OWN: Mapping[str, Activation] = {
    "elu": Activation("elu", alpha=1.0),
    "hard_sigmoid": Activation("hard_sigmoid", alpha=1 / 6, beta=0.5),
    **{name: Activation(name) for name in ("linear", "relu", "sigmoid", "softsign", "tanh")},
}
"""Keras' own functions by name, and the activation that each computes."""


@keras.saving.register_keras_serializable(package="multirnn")
class HardSigmoid:
    """`clip(alpha * x + beta, 0, 1)`, where Keras' own "hard_sigmoid" has the slope 1/6 and the offset 1/2.

    An object with a config, because `Bidirectional` copies its layer through its config, as saving does, and there a
    bare function loses its parameters. To load a saved model that has one, import `multirnn_keras` first.
    """

    def __init__(self, alpha: float, beta: float) -> None:
        self.alpha = alpha
        self.beta = beta

    def __call__(self, x: Any) -> Any:
        """The activation of a tensor."""
        return keras.ops.clip(self.alpha * x + self.beta, 0, 1)

    def get_config(self) -> dict[str, float]:
        """Its parameters, for Keras to save."""
        return {"alpha": self.alpha, "beta": self.beta}

    @classmethod
    def from_config(cls, config: dict[str, float]) -> "HardSigmoid":
        """The activation whose parameters Keras saved."""
        return cls(**config)


def to_keras(activation: str | Activation, dtype: str) -> Any:
    """The argument for this activation of a Keras layer of this dtype."""
    activation = Activation.of(activation)
    if OWN[activation.name] == activation:
        return getattr(keras.activations, activation.name)
    if activation.name == "elu":
        return keras.layers.ELU(**activation.parameters, dtype=dtype)
    return HardSigmoid(**activation.parameters)


def from_keras(activation: Any) -> Activation:
    """The activation of a Keras layer; `Unrepresentable` if no spec has it."""
    for name, own in OWN.items():
        if activation is getattr(keras.activations, name):
            return own
    if isinstance(activation, HardSigmoid):
        return Activation("hard_sigmoid", activation.alpha, activation.beta)
    if isinstance(activation, keras.layers.ELU):
        return Activation("elu", float(activation.alpha))
    name = getattr(activation, "__name__", type(activation).__name__)
    raise Unrepresentable(f"no spec has the activation {name!r}; there are {', '.join(OWN)}")
