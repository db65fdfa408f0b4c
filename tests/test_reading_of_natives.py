"""What NumPy's `Stack` and JAX's `Recurrence` are read as is what they compute, or they are refused."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from multirnn_numpy import Stack

import multirnn as mr
from multirnn.adoption import adopt
from multirnn.numerics import draw_call

GRU = mr.RecurrentSpec("gru", 3, 5, num_layers=2, bidirectional=True)
LSTM = mr.RecurrentSpec("lstm", 3, 5)
every_spec = pytest.mark.parametrize("spec", [GRU, LSTM], ids=["gru", "lstm"])


class Scaled(Stack):
    """A stack that computes something else."""

    def forward(self, x: Any, *arguments: Any) -> Any:
        y, *rest = super().forward(x, *arguments)
        return (y * 1.01, *rest)


class Counted(Stack):
    """A stack that computes the same."""

    calls = 0

    def forward(self, *arguments: Any) -> Any:
        type(self).calls += 1
        return super().forward(*arguments)


@every_spec
def test_a_stack_that_computes_something_else_is_refused(spec: mr.RecurrentSpec) -> None:
    layer = mr.build(spec, "numpy", seed=1)
    scaled = Scaled(spec, layer.native.parameters)
    with pytest.raises(mr.Unrepresentable, match=r"^this Scaled does not compute the stack that its weights describe"):
        mr.read(scaled)
    with pytest.raises(mr.InvalidCall, match=r"^this Scaled does not compute"):
        adopt(scaled)
    forward = layer.native.forward
    layer.native.forward = lambda x, *arguments: forward(-x, *arguments)
    for read in (layer.weights, lambda: mr.read(layer.native)):
        with pytest.raises(
            mr.Unrepresentable, match=r"^this Stack does not compute the stack that its weights describe"
        ):
            read()
    del layer.native.forward
    assert mr.read(layer.native) == layer.weights()


@every_spec
def test_a_stack_that_computes_the_same_in_its_own_way_is_read(spec: mr.RecurrentSpec) -> None:
    layer = mr.build(spec, "numpy", seed=1)
    assert mr.read(Counted(spec, layer.native.parameters)) == layer.weights()
    assert Counted.calls


def test_parameters_of_one_array_are_read_under_both_names() -> None:
    """Each name has its own partial derivative; the gradient of the shared array is their sum."""
    spec = mr.RecurrentSpec("simple_rnn", 4, 4)
    layer, (x, _, _) = mr.build(spec, "numpy", seed=1), draw_call(spec)
    ih, hh = "layers.0.forward.weight_ih", "layers.0.forward.weight_hh"
    layer.native.parameters[hh] = layer.native.parameters[ih]
    weights = layer.weights()
    np.testing.assert_array_equal(weights.arrays[ih], weights.arrays[hh])
    alone, cotangent = mr.build(weights, "numpy"), layer(x)
    found = layer.vjp(x, cotangent=cotangent).weights
    for name, gradient in alone.vjp(x, cotangent=cotangent).weights.items():
        np.testing.assert_array_equal(found[name], gradient)


# --- JAX --------------------------------------------------------------------------------------------------------------

both = pytest.mark.parametrize("implementation", ["native", "fast"])


def recurrence(implementation: str, spec: mr.RecurrentSpec = GRU) -> Any:
    pytest.importorskip("jax")
    return mr.build(spec, "jax", seed=1, implementation=implementation)


def doubled(apply: Callable[..., mr.Output]) -> Callable[..., mr.Output]:
    return lambda params, x, *more: apply(params, 2 * x, *more)


def shifted(apply: Callable[..., mr.Output]) -> Callable[..., mr.Output]:
    def run(*arguments: Any) -> mr.Output:
        sequence, (h, c) = apply(*arguments)
        return mr.Output(sequence, mr.State(h + 0.1, c))

    return run


@both
@pytest.mark.parametrize("change", [doubled, shifted])
@every_spec
def test_a_recurrence_whose_function_was_replaced_is_refused(
    spec: mr.RecurrentSpec, change: Callable[..., Any], implementation: str
) -> None:
    layer = recurrence(implementation, spec)
    layer.native.apply = change(layer.native.apply)
    for read in (layer.weights, lambda: mr.read(layer.native)):
        with pytest.raises(mr.Unrepresentable, match=r"^this Recurrence does not compute the stack that its weights"):
            read()
    with pytest.raises(mr.InvalidCall, match=r"^this Recurrence does not compute"):
        adopt(layer.native)
    with pytest.raises(mr.InvalidCall, match="adopt the function"):
        adopt(layer.native, spec=spec)


@both
def test_a_recurrence_whose_function_computes_the_same_is_read(implementation: str) -> None:
    jax = pytest.importorskip("jax")
    layer = recurrence(implementation)
    weights = layer.weights()
    layer.native.apply = jax.jit(layer.native.apply)
    assert mr.read(layer.native) == layer.weights() == weights


@both
def test_a_recurrence_whose_spec_was_replaced_is_refused(implementation: str) -> None:
    layer = recurrence(implementation)
    layer.native.spec = replace(GRU, activation="relu")
    with pytest.raises(mr.Unrepresentable, match=r"^this Recurrence does not compute"):
        mr.read(layer.native)


@both
def test_a_recurrence_that_returns_something_else_is_refused(implementation: str) -> None:
    layer = recurrence(implementation)
    layer.native.apply = lambda params, x, state, lengths: x
    with pytest.raises(mr.Unrepresentable, match=r"^this Recurrence returns a \w+; Output\(sequence, State\(h, c\)\)"):
        mr.read(layer.native)


REPLACEMENTS: dict[str, tuple[Callable[[np.ndarray], Any], str]] = {
    "float64": (lambda a: a.astype("float64"), "must be an array of float32, not float64"),
    "int64": (lambda a: a.astype("int64"), "must be an array of float32, not int64"),
    "short": (lambda a: a[:1], r"must have the shape \(3, 5\), not \(1, 5\)"),
    "a list": (lambda a: a.tolist(), "must be an array of float32, not a list"),
    "masked": (lambda a: np.ma.masked_array(a, a > 0), "must be an array of float32, not a MaskedArray"),
}


@both
@pytest.mark.parametrize("what", REPLACEMENTS)
def test_params_that_are_not_the_specs_are_refused_before_jax_casts_them(what: str, implementation: str) -> None:
    layer, (x, state, lengths) = recurrence(implementation), draw_call(GRU)
    expected, name = layer(x), "layers.0.forward.bias_ih"
    replacement, why = REPLACEMENTS[what]
    first = layer.native.params[name]
    layer.native.params[name] = replacement(np.asarray(first))
    for call in (
        lambda: layer(x),
        lambda: layer(x, state, lengths=lengths),
        lambda: layer.vjp(x, cotangent=expected),
        lambda: layer.native.apply(layer.native.params, x),
    ):
        with pytest.raises(mr.InvalidCall, match=rf"^params\['{name}'\] {why}$"):
            call()
    with pytest.raises(mr.InvalidWeights, match=f"^{name} "):
        layer.weights()
    layer.native.params[name] = np.asarray(first)  # NumPy's, of the right dtype
    np.testing.assert_array_equal(layer(x).sequence, expected.sequence)


def test_an_exported_recurrence_is_serialised() -> None:
    jax = pytest.importorskip("jax")
    from jax import export

    layer, (x, state, lengths) = recurrence("native", LSTM), draw_call(LSTM)
    arguments = layer.native.params, x, mr.State(*map(jax.numpy.asarray, state.parts)), lengths.astype("int32")
    exported = export.deserialize(export.export(jax.jit(layer.native.apply))(*arguments).serialize())
    output = exported.call(*arguments)
    assert isinstance(output, mr.Output)
    assert isinstance(output.state, mr.State)
    np.testing.assert_array_equal(output.sequence, layer(x, state, lengths=lengths).sequence)


@both
def test_gradients_over_the_layer_point_to_the_pure_function(implementation: str) -> None:
    jax = pytest.importorskip("jax")
    layer, (x, _, _) = recurrence(implementation), draw_call(GRU)
    for transformed in (jax.grad(lambda x: layer(x).sequence.sum()), jax.jit(lambda x: layer(x).sequence)):
        with pytest.raises(mr.InvalidCall, match=r"call layer.native.apply\(layer.native.params, x, state, lengths\)"):
            transformed(x)
