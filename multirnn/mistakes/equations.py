"""Mistakes in the equations: another form of the GRU, other activations, another precision."""

from dataclasses import replace
from typing import Any

from multirnn.activations import Activation
from multirnn.boundary import Inputs
from multirnn.layer import Gradients
from multirnn.mistakes.change import Change, Edit, Mistake, applied, in_family
from multirnn.spec import RecurrentSpec
from multirnn.weights import Array, Weights, fold_biases, split_biases

__all__ = ["EQUATIONS"]

# --- The reset gate --------------------------------------------------------------------------------------------------


def _reset(weights: Weights, *, after: bool) -> Weights:
    """The same arrays in a GRU of the other form, with two biases per gate; with one if it resets before the product."""
    if weights.spec.bias == "single":
        weights = split_biases(weights)
    made = Weights(replace(weights.spec, reset_after=after), weights.arrays)
    return made if after or made.spec.bias == "none" else fold_biases(made)


def _from_before(spec: RecurrentSpec, inputs: Inputs, found: Gradients) -> Gradients:
    """All biases were added up to one, whose gradient they share."""
    weights: dict[str, Array] = {}
    for name, shape in spec.shapes.items():
        array = found.weights[name.replace("bias_hh", "bias_ih")]
        weights[name] = array[-shape[0] :]  # one recurrent bias is the candidate's, and the candidate is the last gate
    return found._replace(weights=weights)


# --- Activations and precision ---------------------------------------------------------------------------------------


def _with(**fields: Any) -> Change:
    """The same arrays under a spec with other fields."""
    return Change(weights=lambda weights: Weights(replace(weights.spec, **fields), weights.arrays))


def _activation(name: str, says: str, fix: str) -> Mistake:
    return Mistake(f"activation {name}", says, fix, _with(activation=name), lambda spec: spec.activation != name)


def _gates(name: str, activation: str | Activation, says: str, fix: str) -> Mistake:
    short = Activation.of(activation).short
    return Mistake(
        f"gates through {name}",
        says,
        fix,
        _with(recurrent_activation=short),
        lambda spec: len(spec.form.gates) > 1 and spec.recurrent_activation != short,
    )


def _in(dtype: str) -> Edit:
    return lambda spec, arrays: {name: array.astype(dtype) for name, array in arrays.items()}


_NARROW, _WIDE = _in("float32"), _in("float64")

EQUATIONS: tuple[Mistake, ...] = (
    *in_family(
        "reset",
        Mistake(
            "reset before",
            "applies the reset gate before the recurrent product, U_n (r * h), as Keras does with reset_after=False and "
            "ONNX with linear_before_reset=0",
            "take reset_after=True in Keras, linear_before_reset=1 in ONNX; no weights make the two forms equal",
            Change(weights=lambda weights: _reset(weights, after=False), gradients=_from_before),
            # One unit without biases: u * (r * h) is r * (u * h).
            lambda spec: spec.cell == "gru" and spec.reset_after and (spec.hidden_size > 1 or spec.bias != "none"),
        ),
        Mistake(
            "reset after",
            "applies the reset gate after the recurrent product, r * (U_n h + d_n), as PyTorch, cuDNN and Keras by "
            "default do",
            "take reset_after=False in Keras, linear_before_reset=0 in ONNX; PyTorch has no such layer",
            Change(
                weights=lambda weights: _reset(weights, after=True),
                gradients=lambda spec, inputs, found: found._replace(
                    weights={name: found.weights[name] for name in spec.shapes}
                ),
            ),
            lambda spec: (
                spec.cell == "gru" and not spec.reset_after and (spec.hidden_size > 1 or spec.bias == "double")
            ),
        ),
    ),
    *in_family(
        "activation",
        _activation(
            "relu",
            "uses relu where the spec has another activation",
            "pass the activation when building it: nonlinearity= in PyTorch, activation= in Keras; Haiku's VanillaRNN is "
            "always relu",
        ),
        _activation(
            "tanh",
            "uses tanh, the default everywhere, where the spec has another activation",
            "pass the activation when building it: nonlinearity= in PyTorch, activation= in Keras",
        ),
        _activation(
            "linear",
            "uses no activation where the spec has one, as Keras does with activation=None",
            "name the activation when building it; None means the identity in Keras, not the default",
        ),
    ),
    *in_family(
        "recurrent activation",
        _gates(
            "hard_sigmoid of slope 0.2",
            Activation("hard_sigmoid", 0.2, 0.5),
            "computes its gates with clip(0.2 x + 0.5, 0, 1), the hard_sigmoid of Keras 2 and ONNX and the default of "
            "Keras before 2.3",
            "set recurrent_activation to what the weights were trained with",
        ),
        _gates(
            "hard_sigmoid of slope 1/6",
            Activation("hard_sigmoid", 1 / 6, 0.5),
            "computes its gates with clip(x / 6 + 0.5, 0, 1), the hard_sigmoid of Keras 3 and PyTorch",
            "set recurrent_activation to what the weights were trained with; the hard_sigmoid of Keras 2 has the slope "
            "0.2",
        ),
        _gates(
            "sigmoid",
            "sigmoid",
            "computes its gates with sigmoid, the default everywhere, where the spec has another recurrent activation",
            "set recurrent_activation to what the weights were trained with; PyTorch and cuDNN have sigmoid alone",
        ),
    ),
    *in_family(
        "precision",
        Mistake(
            "computed in float32",
            "computes in float32 where the spec says float64, as frameworks do by default",
            "build it in float64: .double() in PyTorch, dtype='float64' in Keras, jax_enable_x64 in JAX",
            Change(
                weights=lambda weights: weights.astype("float32"),
                inputs=lambda spec, inputs: replace(
                    inputs, x=inputs.x.astype("float32"), state=applied(_NARROW, spec, inputs.state)
                ),
                output=lambda spec, inputs, output: applied(_WIDE, spec, output),
                cotangent=lambda spec, inputs, cotangent: applied(_NARROW, spec, cotangent),
                gradients=lambda spec, inputs, found: applied(_WIDE, spec, found),
            ),
            lambda spec: spec.dtype == "float64",
        ),
        Mistake(
            "output rounded to float32",
            "hands back float64 outputs that went through float32",
            "keep the outputs in float64 on their way out of the framework",
            Change(output=lambda spec, inputs, output: applied(_WIDE, spec, applied(_NARROW, spec, output))),
            lambda spec: spec.dtype == "float64",
        ),
        shows="float64",
    ),
)
