"""`assert_layers_agree`: pairs that agree across frameworks, and what is said of pairs that do not."""

import re
import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import multirnn as mr
from multirnn.adoption import AdoptedLayer
from multirnn.boundary import BoundaryLayer
from multirnn.numerics import TOLERANCE, draw_call
from multirnn.protocol import Backend
from multirnn.testing import Agreement, Disagreement, assert_layers_agree

GRU = mr.RecurrentSpec("gru", 5, 11)
LSTM = mr.RecurrentSpec("lstm", 5, 11)
RNN = mr.RecurrentSpec("simple_rnn", 5, 11)
WEIGHTS = {spec: mr.initialise(spec, 3) for spec in (RNN, GRU, LSTM)}


def numpy(spec: mr.RecurrentSpec = GRU) -> mr.Layer:
    return mr.build(WEIGHTS[spec], "numpy")


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def gru(
    order: tuple[int, ...] = (0, 1, 2),
    *,
    keep: bool = False,
    weights: mr.Weights = WEIGHTS[GRU],
    result: Any = lambda y, h: (y, h),
) -> Any:
    """A GRU in NumPy as it is written by hand; `order` is that in which it reads the gates r z n."""
    W, U, b, d = (array[list(order)] for array in weights.at(0, "forward").values())

    def gru_by_hand(x: np.ndarray, h0: np.ndarray) -> Any:
        h, outputs = h0[0], []
        for t in range(x.shape[1]):
            ar, az, an = np.einsum("bx,ghx->gbh", x[:, t], W) + b[:, None]
            br, bz, bn = np.einsum("bk,ghk->gbh", h, U) + d[:, None]
            z = sigmoid(az + bz)
            n = np.tanh(an + sigmoid(ar + br) * bn)
            h = z * n + (1 - z) * h if keep else (1 - z) * n + z * h
            outputs.append(h)
        return result(np.stack(outputs, axis=1), h)

    return gru_by_hand


# --- Those that agree ------------------------------------------------------------------------------------------------


def test_a_callable_and_a_layer() -> None:
    for a, b in ((gru(), numpy()), (numpy(), gru())):
        found = assert_layers_agree(a, b)
        assert set(found.eps) == {"output", "final h"}
        assert 0 < max(found.eps.values()) <= found.tolerance == TOLERANCE["float32"]
        letter = "B" if isinstance(a, BoundaryLayer) else "A"
        assert found.notes == (
            f"Note: all rows are full: {letter} takes no lengths.",
            f"Note: gradients are not compared: {letter} has none.",
            f"Note: parameters are not counted: nothing counts those of {letter}.",
        )
    assert found.worst == max(found.eps.items(), key=lambda item: item[1])
    assert str(found).splitlines()[:2] == [
        "A, NumpyLayer, and B, function gru_by_hand, agree in 2 quantities (eager).",
        f"The worst is {found.worst[0]}: {found.worst[1]:.3g} eps of float32, and 64 are allowed.",
    ]


def test_two_layers_in_all_quantities(backend: Backend) -> None:
    found = assert_layers_agree(backend.build(WEIGHTS[LSTM]), numpy(LSTM))
    gradients = {f"gradient of {name}" for name in ("x", "initial h", "initial c", *LSTM.shapes)}
    if not backend.differentiable:
        gradients = set()
    assert set(found.eps) == {"output", "final h", "final c", *gradients}
    notes = () if backend.differentiable else ("Note: gradients are not compared: A has none.",)
    assert (found.notes, found.spec, found.forms) == (notes, LSTM, ("eager",))


@pytest.mark.parametrize("form", ["eager", "compiled"])
def test_torch_and_jax_and_by_hand(form: str) -> None:
    torch, jax = pytest.importorskip("torch"), pytest.importorskip("jax")
    if form == "compiled" and shutil.which("c++") is None and shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler on the CPU, and there is none")
    native = mr.build(WEIGHTS[RNN], "torch").native

    class ByHand(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = torch.nn.ParameterList(native.parameters())

        def forward(self, x: Any, h: Any) -> Any:
            W, U, b = self.weights
            h, outputs = h[0], []
            for step in x.unbind(1):
                h = torch.tanh(step @ W.T + h @ U.T + b)
                outputs.append(h)
            return torch.stack(outputs, 1), h

    module = ByHand()
    native.weight_ih_l0.grad = before = torch.ones_like(native.weight_ih_l0)
    x, state, _ = draw_call(RNN)
    two_steps = {"x": x[:2, :2], "state": mr.State(state.h[:, :2])}  # each of them takes its time to be compiled
    found = assert_layers_agree(module, native, **two_steps, forms=(form,))
    assert set(found.eps) == {"output", "final h", "gradient of x", "gradient of initial h"}
    assert found.titles == tuple(f"{name} (torch){', compiled' * (form == 'compiled')}" for name in ("ByHand", "RNN"))
    assert ("Note: B ran without being compiled" in str(found)) == (form == "compiled")
    assert native.weight_ih_l0.grad is before
    assert before.eq(1).all()
    recurrence = mr.build(WEIGHTS[GRU], "jax").native
    jitted = jax.jit(lambda x, h: tuple(recurrence.apply(recurrence.params, x, mr.State(h))))
    found = assert_layers_agree(jitted, recurrence, forms=[form])
    assert "gradient of initial h" in found.eps
    assert found.titles == tuple(
        f"{name} (jax){', compiled' * (form == 'compiled')}" for name in ("<lambda>", "Recurrence")
    )


@pytest.mark.parametrize("form", ["eager", "compiled"])
def test_keras_by_hand_against_keras_and_torch(form: str) -> None:
    pytest.importorskip("multirnn_keras")
    keras = pytest.importorskip("keras")
    if form == "compiled" and keras.config.backend() == "torch":
        pytest.skip("Keras on PyTorch has no compiled form")
    model = mr.build(WEIGHTS[LSTM], "keras").native

    class ByHand(keras.layers.Layer):
        def call(self, x: Any, initial_state: Any = None) -> Any:
            kernel, recurrent, bias = model.weights
            h, c = initial_state
            outputs = []
            for t in range(x.shape[1]):
                gates = keras.ops.matmul(x[:, t], kernel) + keras.ops.matmul(h, recurrent) + bias
                i, f, g, o = keras.ops.split(gates, 4, axis=1)
                c = keras.ops.sigmoid(f) * c + keras.ops.sigmoid(i) * keras.ops.tanh(g)
                h = keras.ops.sigmoid(o) * keras.ops.tanh(c)
                outputs.append(h)
            return keras.ops.stack(outputs, axis=1), h, c

    layer = ByHand()
    layer.built = True
    found = assert_layers_agree(layer, model, counts=False, forms=(form,))
    assert {"final c", "gradient of initial c"} <= set(found.eps)
    if form == "eager":
        pytest.importorskip("torch")
        torch_model = mr.build(mr.split_biases(WEIGHTS[LSTM]), "torch").native
        found = assert_layers_agree(torch_model, model, counts=False)
        assert {"gradient of layers.0.forward.bias_ih", "final c", "gradient of initial c"} <= set(found.eps)
        with pytest.raises(AssertionError) as caught:
            assert_layers_agree(torch_model, model)
        assert str(caught.value).splitlines() == [
            f"A, LSTM (torch), and B, Sequential (keras on {keras.config.backend()}), are one function, and not one model.",
            "A counts 792 trainable parameters and B 748. The biases are in two forms, 'double' and 'single'. "
            "Leave it out by counts=False.",
        ]


def test_biases_in_two_forms_of_a_gru() -> None:
    """The gradient of the one recurrent bias that both have."""
    single = replace(GRU, bias="single")
    weights = mr.initialise(single, 3)
    layers = mr.build(mr.split_biases(weights), "numpy"), mr.build(weights, "numpy")
    found = assert_layers_agree(*layers, counts=False)
    assert "gradient of layers.0.forward.bias_hh" in found.eps
    assert_layers_agree(*layers[::-1], counts=False)


def test_the_users_own_call() -> None:
    x, state, lengths = draw_call(GRU, 8)
    layers = numpy(), mr.build(WEIGHTS[GRU], "numpy")
    assert assert_layers_agree(*layers, x=x, state=state, lengths=lengths).worst[1] == 0
    assert_layers_agree(*layers, x=x[0].tolist(), state=mr.State(state.h[:, 0]), lengths=3)
    for options, sentence in (
        ({"state": state}, "a state or lengths belong to an x: pass x too"),
        ({"x": x[:, :, :2]}, "x must have the shape (batch, time, 5), or (time, 5) unbatched, not (5, 7, 2)"),
        ({"x": x, "lengths": [1, 2]}, "lengths must be one integer for each of the 5 rows"),
        ({"forms": ("lazy",)}, "forms must be one or both of eager, compiled, not ('lazy',)"),
        ({"forms": ()}, "forms must be one or both of eager, compiled, not ()"),
        ({"forms": "compiled"}, "neither NumpyLayer nor NumpyLayer has a compiled form"),
    ):
        with pytest.raises(mr.InvalidCall, match=re.escape(sentence)):
            assert_layers_agree(*layers, **options)
    with pytest.raises(mr.InvalidCall, match=r"^function gru_by_hand takes no lengths: leave them out$"):
        assert_layers_agree(gru(), layers[0], x=x, lengths=lengths)
    with pytest.raises(mr.InvalidCall, match=r"^function <lambda> takes no initial state: leave it out$"):
        assert_layers_agree(lambda x: gru()(x, np.zeros((1, 5, 11), x.dtype))[0], layers[0], x=x, state=state)


def test_a_function_without_a_state_is_held_from_zero() -> None:
    found = assert_layers_agree(lambda x: gru()(x, np.zeros((1, 5, 11), x.dtype))[0], numpy())
    assert set(found.eps) == {"output"}
    assert found.notes[0] == "Note: the initial state is zero: A takes none."
    assert "Note: final states are not compared: A returned none." in found.notes


def test_zero_biases_are_noted() -> None:
    weights = mr.initialise(GRU, 3, scheme="keras")
    layer = mr.build(weights, "numpy")
    assert assert_layers_agree(layer, layer).notes == (
        "Note: the biases of A are all zero, so that some mistakes in them cannot show.",
    )


def test_forms_are_put_together() -> None:
    pytest.importorskip("jax")
    recurrence = mr.build(WEIGHTS[GRU], "jax").native
    found = assert_layers_agree(numpy(), recurrence, forms=("eager", "compiled"))
    assert found.forms == ("eager", "compiled")
    assert found.titles == ("NumpyLayer", "Recurrence (jax)")
    for form in found.forms:
        alone = assert_layers_agree(numpy(), recurrence, forms=form)
        assert all(alone.eps[name] <= eps for name, eps in found.eps.items())


# --- Those that do not -----------------------------------------------------------------------------------------------


def told(a: Any, b: Any, **options: Any) -> str:
    with pytest.raises(AssertionError) as caught:
        assert_layers_agree(a, b, **options)
    return str(caught.value)


NUMBER = r"-?[\d.]+(e[+-]\d+)?"


def test_a_wrong_order_of_gates() -> None:
    lines = told(numpy(), gru((1, 0, 2))).splitlines()
    patterns = [
        r"A, NumpyLayer, and B, function gru_by_hand, do not agree\.",
        rf"  output, forward, row \d, step \d, unit \d+: A {NUMBER}, B {NUMBER}, {NUMBER} eps apart",
        rf"  final h of layer 0 forward, row \d, unit \d+: A {NUMBER}, B {NUMBER}, {NUMBER} eps apart",
        r"  2 of 2 quantities differ\.",
        rf"Allowed are 64 eps of float32; the smallest tolerance that would pass is {NUMBER}, a relative error of {NUMBER}\.",
        rf"In (output|final h), the reference in float64 with the weights of A is missed by A {NUMBER} eps and B {NUMBER} eps: B is wrong\.",
        r"First divergence: layer 0, forward, step 0.*",
        r"What the mistake may be: print\(mr\.diagnose\(a, b\)\)\.",
        r"Note: all rows are full: B takes no lengths\.",
        r"Note: gradients are not compared: B has none\.",
        r"Note: parameters are not counted: nothing counts those of B\.",
    ]
    assert len(lines) == len(patterns)
    for line, pattern in zip(lines, patterns, strict=True):
        assert re.fullmatch(pattern, line), (line, pattern)


def test_the_one_that_is_wrong_is_named_on_either_side() -> None:
    assert "with the weights of B is missed by A" in told(gru((1, 0, 2)), numpy())
    assert ": A is wrong." in told(gru((1, 0, 2)), numpy())
    assert "print(mr.diagnose(b, a))" in told(gru((1, 0, 2)), numpy())
    assert "is missed" not in told(gru((1, 0, 2)), gru(), spec=GRU)


@pytest.mark.parametrize(
    "wrong",
    [
        *(gru(order) for order in ((0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))),
        gru(keep=True),
        gru(result=lambda y, h: (y[:, ::-1], h)),
        gru(result=lambda y, h: (y, y[:, 0])),
        gru(result=lambda y, h: (y, 0 * h)),
        gru(result=lambda y, h: (y[::-1], h)),
        lambda x, h0: gru()(x, 0 * h0),
        gru(weights=mr.initialise(GRU, 4)),
    ],
)
def test_mistakes_are_seen(wrong: Any) -> None:
    with pytest.raises(Disagreement):
        assert_layers_agree(numpy(), wrong)


def test_the_smallest_tolerance_passes_and_less_does_not() -> None:
    near = gru(result=lambda y, h: (y * (1 + 1e-4), h))
    with pytest.raises(Disagreement) as caught:
        assert_layers_agree(numpy(), near)
    smallest = caught.value.smallest
    assert f"the smallest tolerance that would pass is {smallest:g}, a relative error of 0.0001." in str(caught.value)
    assert caught.value.where.startswith("output, forward, row ")
    assert "  1 of 2 quantities differ; equal: final h." in str(caught.value)
    assert smallest * 0.9 < assert_layers_agree(numpy(), near, tolerance=smallest).worst[1] <= smallest
    with pytest.raises(Disagreement, match=f"Allowed are {smallest / 2:g} eps"):
        assert_layers_agree(numpy(), near, tolerance=smallest / 2)


def test_states_in_the_wrong_order() -> None:
    layer = numpy(LSTM)

    def swapped(x: Any, state: Any) -> Any:
        sequence, (h, c) = layer(x, mr.State(*state))
        return sequence, (c, h)

    said = told(layer, swapped)
    assert re.search(r"^  final h of layer 0 forward, row \d, unit \d+: A", said, re.MULTILINE)
    assert re.search(r"^  final c of layer 0 forward, row \d, unit \d+: A", said, re.MULTILINE)
    assert "  2 of 3 quantities differ; equal: output." in said


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (gru(result=lambda y, h: (y.swapaxes(0, 1), h)), "function gru_by_hand returned y of the shape (7, 5, 11); of x (5, 7, 5) it must be (batch, time, directions * hidden_size) = (5, 7, 11); it has time before batch"),
        (gru(result=lambda y, h: (y, h.T)), "function gru_by_hand returned h of the shape (11, 5); it must be (num_layers * directions, batch, hidden_size) = (1, 5, 11)"),
        (gru(result=lambda y, h: (y, h, h)), "function gru_by_hand returned y and 2 parts of a state; (y, h) would be right, or y alone"),
    ],
)  # fmt: skip
def test_what_is_no_answer(wrong: Any, sentence: str) -> None:
    assert told(numpy(), wrong) == sentence


def test_a_missing_state_of_an_lstm() -> None:
    layer = numpy(LSTM)
    said = told(lambda x, s: (layer(x, mr.State(*s)).sequence, s[0]), layer)
    assert said.endswith("returned y and 1 part of a state; (y, (h, c)) would be right, or y alone")


def test_a_value_that_is_not_finite() -> None:
    said = told(numpy(), gru(result=lambda y, h: (np.where(y > 0, np.nan, y), h)))
    assert "no tolerance would pass: there are values that are not finite" in said


def test_two_specs() -> None:
    assert told(numpy(), mr.build(mr.RecurrentSpec("gru", 5, 7, dtype="float64"), "numpy")) == (
        "A, NumpyLayer, and B, NumpyLayer, are of two specs, which differ in hidden_size (11, 7) and dtype ('float32', 'float64')."
    )


def test_other_weights() -> None:
    said = told(numpy(), mr.build(mr.initialise(GRU, 4), "numpy"))
    assert re.search(
        r"^Their weights differ, most in layers\.0\.forward\.\w+, gate \w, unit \d+.* eps\.$", said, re.MULTILINE
    )
    assert re.search(r"with their own weights is missed by A [\d.]+ eps and B [\d.]+ eps\.$", said, re.MULTILINE)


def test_float32_in_float64() -> None:
    wide = WEIGHTS[GRU].astype("float64")
    slip = gru(weights=wide, result=lambda y, h: (y.astype("float32"), h))
    said = told(mr.build(wide, "numpy"), slip)
    assert "Allowed are 256 eps of float64" in said
    assert "That is the size of rounding in float32: somewhere float64 is left." in said
    assert "float32: somewhere" not in told(mr.build(wide, "numpy"), gru((1, 0, 2), weights=wide))


class WrongGradients(AdoptedLayer):
    """A layer that is right but for the gradient of x."""

    def vjp(self, *arguments: Any, **options: Any) -> mr.Gradients:
        found = super().vjp(*arguments, **options)
        return found._replace(x=found.x * 2)


def test_a_wrong_gradient() -> None:
    wrong = WrongGradients(numpy())
    said = told(numpy(), wrong)
    assert re.search(r"^  gradient of x, row \d, step \d, feature \d: A", said, re.MULTILINE)
    assert "  1 of 8 quantities differ." in said
    assert ": B is wrong." in said
    assert isinstance(assert_layers_agree(numpy(), wrong, gradients=False), Agreement)


@pytest.mark.parametrize(
    ("output", "gradients", "sentence"),
    [
        (lambda y: y._replace(state=mr.State(y.state.h)), None, "B has no final c."),
        (lambda y: y._replace(sequence=y.sequence[:, :3]), None, "output has the shape (5, 7, 11) in A and (5, 3, 11) in B."),
        (lambda y: y._replace(sequence=y.sequence.astype("float64")), None, "output is float64 in B, not float32."),
        (None, lambda g: g._replace(x=None), "B has no gradient of x."),
        (None, lambda g: g._replace(state=mr.State(g.state.h)), "B has no gradient of initial c."),
        (None, lambda g: g._replace(weights={}), "B has no gradient of layers.0.forward.weight_ih."),
    ],
)  # fmt: skip
def test_a_layer_that_lacks_something(output: Any, gradients: Any, sentence: str) -> None:
    class Lacks(AdoptedLayer):
        def __call__(self, *arguments: Any, **options: Any) -> mr.Output:
            found = super().__call__(*arguments, **options)
            return output(found) if output else found

        def vjp(self, *arguments: Any, **options: Any) -> mr.Gradients:
            found = super().vjp(*arguments, **options)
            return gradients(found) if gradients else found

    said = told(numpy(LSTM), Lacks(numpy(LSTM)))
    assert said == f"A, NumpyLayer, and B, NumpyLayer, do not agree: {sentence}"


class Miscounts(AdoptedLayer):
    """A layer that counts one parameter too many."""

    @property
    def parameter_count(self) -> int:
        return self.spec.parameter_count + 1


def test_a_wrong_count() -> None:
    count = GRU.parameter_count
    assert told(numpy(), Miscounts(numpy())).splitlines() == [
        "A, NumpyLayer, and B, NumpyLayer, are one function, and not one model.",
        f"A counts {count} trainable parameters and B {count + 1}. Leave it out by counts=False.",
    ]
    assert_layers_agree(numpy(), Miscounts(numpy()), counts=False)
    assert f"A counts {count} trainable" in told(mr.build(mr.initialise(GRU, 4), "numpy"), Miscounts(numpy()))


def test_a_mistake_in_the_compiled_form_alone() -> None:
    jax = pytest.importorskip("jax")
    recurrence = mr.build(WEIGHTS[GRU], "jax").native
    apply = recurrence.apply

    def wrong(params: Any, x: Any, state: mr.State, lengths: Any) -> mr.Output:
        output = apply(params, x, state, lengths)
        return output._replace(sequence=output.sequence * (2 if isinstance(x, jax.core.Tracer) else 1))

    recurrence.apply = wrong
    assert_layers_agree(numpy(), recurrence, gradients=False)
    said = told(numpy(), recurrence, gradients=False, forms=("eager", "compiled"))
    assert said.startswith("A, NumpyLayer, and B, Recurrence (jax), compiled, do not agree.")
    assert "It is the compiled form that was run." in said
