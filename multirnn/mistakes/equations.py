"""Mistakes in the equations: another form of the GRU, other activations, another precision."""

from dataclasses import replace
from typing import Any

from multirnn.activations import Activation
from multirnn.boundary import Inputs
from multirnn.layer import Gradients
from multirnn.mistakes.change import Applies, Change, known
from multirnn.mistakes.edits import Edit, applied
from multirnn.spec import RecurrentSpec
from multirnn.weights import Weights, fold_biases, split_biases

__all__ = ["EQUATIONS"]


def _reset(weights: Weights, *, after: bool) -> Weights:
    """The same arrays in a GRU of the other form, with two biases per gate; with one if it resets before the product."""
    if weights.spec.bias == "single":
        weights = split_biases(weights)
    made = Weights(replace(weights.spec, reset_after=after), weights.arrays)
    return made if after or made.spec.bias == "none" else fold_biases(made)


def _from_before(spec: RecurrentSpec, inputs: Inputs, found: Gradients) -> Gradients:
    """All biases were added up to one, whose gradient they share; one recurrent bias alone is the last gate's."""
    shared = {name: found.weights[name.replace("bias_hh", "bias_ih")] for name in spec.shapes}
    # One recurrent bias is the candidate's, and the candidate is the last gate.
    return found._replace(weights={name: shared[name][-shape[0] :] for name, shape in spec.shapes.items()})


def _with(**fields: Any) -> Change:
    """The same arrays under a spec with other fields."""
    return Change(weights=lambda weights: Weights(replace(weights.spec, **fields), weights.arrays))


def _activation(name: str) -> tuple[Change, Applies]:
    return _with(activation=name), lambda spec: spec.activation != name


def _gates(activation: str | Activation) -> tuple[Change, Applies]:
    short = Activation.of(activation).short
    other = _with(recurrent_activation=short)
    return other, lambda spec: len(spec.form.gates) > 1 and spec.recurrent_activation != short


def _in(dtype: str) -> Edit:
    return lambda spec, arrays: {name: array.astype(dtype) for name, array in arrays.items()}


_NARROW, _WIDE = _in("float32"), _in("float64")


def _float64(spec: RecurrentSpec) -> bool:
    return spec.dtype == "float64"


EQUATIONS = known(
    "equations",
    {
        # One unit without biases: u * (r * h) is r * (u * h).
        "reset before": (
            Change(weights=lambda weights: _reset(weights, after=False), gradients=_from_before),
            lambda spec: spec.cell == "gru" and spec.reset_after and (spec.hidden_size > 1 or spec.bias != "none"),
        ),
        "reset after": (
            Change(
                weights=lambda weights: _reset(weights, after=True),
                gradients=lambda spec, inputs, found: found._replace(
                    weights={n: found.weights[n] for n in spec.shapes}
                ),
            ),
            lambda spec: (
                spec.cell == "gru" and not spec.reset_after and (spec.hidden_size > 1 or spec.bias == "double")
            ),
        ),
        "activation relu": _activation("relu"),
        "activation tanh": _activation("tanh"),
        "activation linear": _activation("linear"),
        "gates through hard_sigmoid of slope 0.2": _gates(Activation("hard_sigmoid", 0.2, 0.5)),
        "gates through hard_sigmoid of slope 1/6": _gates(Activation("hard_sigmoid", 1 / 6, 0.5)),
        "gates through sigmoid": _gates("sigmoid"),
        "computed in float32": (
            Change(
                weights=lambda weights: weights.astype("float32"),
                inputs=lambda spec, inputs: replace(
                    inputs, x=inputs.x.astype("float32"), state=applied(_NARROW, spec, inputs.state)
                ),
                output=lambda spec, inputs, output: applied(_WIDE, spec, output),
                cotangent=lambda spec, inputs, cotangent: applied(_NARROW, spec, cotangent),
                gradients=lambda spec, inputs, found: applied(_WIDE, spec, found),
            ),
            _float64,
        ),
        "output rounded to float32": (
            Change(output=lambda spec, inputs, output: applied(_WIDE, spec, applied(_NARROW, spec, output))),
            _float64,
        ),
    },
)
