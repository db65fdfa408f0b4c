"""Mistakes in the equations: another form of the GRU, other activations, another precision."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from multirnn.activations import Activation
from multirnn.boundary import Inputs
from multirnn.layer import Gradients, Output, State
from multirnn.mistakes import Change, Mistake
from multirnn.spec import RecurrentSpec
from multirnn.weights import Array, Weights, fold_biases, split_biases

__all__ = ["EQUATIONS"]

# --- The reset gate --------------------------------------------------------------------------------------------------


def _reset_before(weights: Weights) -> Weights:
    """The same arrays in a GRU that resets before the recurrent product, with one bias per gate."""
    if weights.spec.bias == "single":
        weights = split_biases(weights)
    before = Weights(replace(weights.spec, reset_after=False), weights.arrays)
    return before if before.spec.bias == "none" else fold_biases(before)


def _from_before(spec: RecurrentSpec, inputs: Inputs, found: Gradients) -> Gradients:
    """All biases were added up to one, whose gradient they share."""
    weights: dict[str, Array] = {}
    for name, shape in spec.shapes.items():
        array = found.weights[name.replace("bias_hh", "bias_ih")]
        weights[name] = array[-shape[0] :]  # one recurrent bias is the candidate's, and the candidate is the last gate
    return found._replace(weights=weights)


def _reset_after(weights: Weights) -> Weights:
    """The same arrays in a GRU that resets after the recurrent product, with two biases per gate."""
    if weights.spec.bias == "single":
        weights = split_biases(weights)
    return Weights(replace(weights.spec, reset_after=True), weights.arrays)


def _from_after(spec: RecurrentSpec, inputs: Inputs, found: Gradients) -> Gradients:
    return found._replace(weights={name: found.weights[name] for name in spec.shapes})


_RESET = (
    Mistake(
        "reset before",
        "reset",
        "applies the reset gate before the recurrent product, U_n (r * h), as Keras does with reset_after=False and ONNX "
        "with linear_before_reset=0",
        "take reset_after=True in Keras, linear_before_reset=1 in ONNX; no weights make the two forms equal",
        # One unit without biases: u * (r * h) is r * (u * h).
        lambda spec: spec.cell == "gru" and spec.reset_after and not (spec.hidden_size == 1 and spec.bias == "none"),
        realise=Change(weights=_reset_before, gradients=_from_before),
    ),
    Mistake(
        "reset after",
        "reset",
        "applies the reset gate after the recurrent product, r * (U_n h + d_n), as PyTorch, cuDNN and Keras by default do",
        "take reset_after=False in Keras, linear_before_reset=0 in ONNX; PyTorch has no such layer",
        lambda spec: (
            spec.cell == "gru" and not spec.reset_after and not (spec.hidden_size == 1 and spec.bias != "double")
        ),
        realise=Change(weights=_reset_after, gradients=_from_after),
    ),
)

# --- Activations -----------------------------------------------------------------------------------------------------


def _with(**fields: Any) -> Change:
    """The same arrays under a spec with other fields."""
    return Change(weights=lambda weights: Weights(replace(weights.spec, **fields), weights.arrays))


def _activation(name: str, instead: Callable[[RecurrentSpec], bool], says: str, fix: str) -> Mistake:
    return Mistake(f"activation {name}", "activation", says, fix, instead, realise=_with(activation=name))


def _gates(name: str, activation: str | Activation, says: str, fix: str) -> Mistake:
    short = Activation.of(activation).short
    return Mistake(
        f"gates through {name}",
        "recurrent activation",
        says,
        fix,
        lambda spec: len(spec.form.gates) > 1 and spec.recurrent_activation != short,
        realise=_with(recurrent_activation=short),
    )


_ACTIVATIONS = (
    _activation(
        "relu",
        lambda spec: spec.activation != "relu",
        "uses relu where the spec has another activation",
        "pass the activation when building it: nonlinearity= in PyTorch, activation= in Keras; Haiku's VanillaRNN is always relu",
    ),
    _activation(
        "tanh",
        lambda spec: spec.activation != "tanh",
        "uses tanh, the default everywhere, where the spec has another activation",
        "pass the activation when building it: nonlinearity= in PyTorch, activation= in Keras",
    ),
    _activation(
        "linear",
        lambda spec: spec.activation != "linear",
        "uses no activation where the spec has one, as Keras does with activation=None",
        "name the activation when building it; None means the identity in Keras, not the default",
    ),
    _gates(
        "hard_sigmoid of slope 0.2",
        Activation("hard_sigmoid", 0.2, 0.5),
        "computes its gates with clip(0.2 x + 0.5, 0, 1), the hard_sigmoid of Keras 2 and ONNX and the default of Keras "
        "before 2.3",
        "set recurrent_activation to what the weights were trained with",
    ),
    _gates(
        "hard_sigmoid of slope 1/6",
        Activation("hard_sigmoid", 1 / 6, 0.5),
        "computes its gates with clip(x / 6 + 0.5, 0, 1), the hard_sigmoid of Keras 3 and PyTorch",
        "set recurrent_activation to what the weights were trained with; the hard_sigmoid of Keras 2 has the slope 0.2",
    ),
    _gates(
        "sigmoid",
        "sigmoid",
        "computes its gates with sigmoid, the default everywhere, where the spec has another recurrent activation",
        "set recurrent_activation to what the weights were trained with; PyTorch and cuDNN have sigmoid alone",
    ),
)

# --- Precision -------------------------------------------------------------------------------------------------------


def _cast(state: State, dtype: str) -> State:
    return State(*(part.astype(dtype) for part in state if part is not None))


def _output_in(dtype: str) -> Callable[[RecurrentSpec, Inputs, Output], Output]:
    return lambda spec, inputs, output: Output(output.sequence.astype(dtype), _cast(output.state, dtype))


def _rounded_output(spec: RecurrentSpec, inputs: Inputs, output: Output) -> Output:
    rounded = _output_in("float32")(spec, inputs, output)
    return _output_in(spec.dtype)(spec, inputs, rounded)


_PRECISION = (
    Mistake(
        "computed in float32",
        "precision",
        "computes in float32 where the spec says float64, as frameworks do by default",
        "build it in float64: .double() in PyTorch, dtype='float64' in Keras, jax_enable_x64 in JAX",
        lambda spec: spec.dtype == "float64",
        realise=Change(
            weights=lambda weights: weights.astype("float32"),
            inputs=lambda spec, inputs: replace(
                inputs, x=inputs.x.astype("float32"), state=_cast(inputs.state, "float32")
            ),
            output=_output_in("float64"),
            cotangent=_output_in("float32"),
            gradients=lambda spec, inputs, found: Gradients(
                {name: array.astype("float64") for name, array in found.weights.items()},
                found.x.astype("float64"),
                _cast(found.state, "float64"),
            ),
        ),
        shows="float64",
    ),
    Mistake(
        "output rounded to float32",
        "precision",
        "hands back float64 outputs that went through float32",
        "keep the outputs in float64 on their way out of the framework",
        lambda spec: spec.dtype == "float64",
        realise=Change(output=_rounded_output),
        shows="float64",
    ),
)

EQUATIONS: tuple[Mistake, ...] = (*_RESET, *_ACTIVATIONS, *_PRECISION)
