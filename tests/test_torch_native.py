"""PyTorch's own layers as `layer.native`: how they are built and called, and what a call leaves as it is."""

import warnings

import numpy as np
import pytest

import multirnn as mr
from multirnn.numerics import draw_call

torch = pytest.importorskip("torch")

from torch_layers import (  # noqa: E402
    FORMS,
    assert_close,
    assert_is_spec,
    assert_outputs_close,
    build,
    every_form,
    one_thread,  # noqa: F401
    random_cotangent,
    states,
    tensor,
)

# --- What is built ---------------------------------------------------------------------------------------------------


@every_form
def test_agrees_with_the_reference(spec: mr.RecurrentSpec) -> None:
    weights = mr.initialise(spec, seed=3)
    x, state, lengths = draw_call(spec)
    for ragged in (None, lengths, [5, 2, 6, 1, 3], [0, 0, 4, 0, 0]):  # with a full row and without
        comparison = mr.compare(weights, x, state, lengths=ragged, backends=["torch"])
        assert comparison.ok, str(comparison)


@every_form
def test_native_is_the_layer_of_pytorch(spec: mr.RecurrentSpec) -> None:
    native = build(spec).native
    kind = {"simple_rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[spec.cell]
    assert isinstance(native, kind)
    assert native.batch_first
    if (spec.cell, spec.bias) != ("gru", "single"):
        assert type(native) is kind
    assert_is_spec(native, spec)


@every_form
def test_weights_are_those_given(spec: mr.RecurrentSpec) -> None:
    weights = mr.initialise(spec, seed=3)
    layer = mr.build(weights, "torch")
    for array_name, array in layer.weights().arrays.items():
        assert array.tobytes() == weights.arrays[array_name].tobytes()
    before = layer.weights()
    with torch.no_grad():
        layer.native.weight_ih_l0.add_(1)
    assert before == weights != layer.weights()


def test_42() -> None:
    native = build(mr.RecurrentSpec("simple_rnn", input_size=10, hidden_size=3)).native
    assert sum(p.numel() for p in native.parameters()) == 42
    assert list(native.state_dict()) == ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0"]


def test_building_leaves_the_random_numbers_of_pytorch_alone() -> None:
    before = torch.get_rng_state()
    for spec in FORMS:
        build(spec)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"cell": "gru", "reset_after": False}, "take reset_after=True, or another backend"),
        ({"cell": "simple_rnn", "activation": "softsign"}, "'tanh' and 'relu', not 'softsign'"),
        ({"cell": "simple_rnn", "activation": mr.Activation("elu", 0.5)}, "not Activation\\('elu', alpha=0.5\\)"),
        ({"cell": "lstm", "activation": "relu"}, "torch.nn.LSTM has the activation 'tanh' alone, not 'relu'"),
        ({"cell": "gru", "recurrent_activation": "tanh"}, "recurrent_activation 'sigmoid' alone, not 'tanh'"),
    ],
)
def test_refuses_what_pytorch_has_not(fields: dict, reason: str) -> None:
    spec = mr.RecurrentSpec(input_size=5, hidden_size=11, **fields)
    with pytest.raises(mr.Unsupported, match=reason):
        build(spec)


@pytest.mark.parametrize("device", ["cuda:99", "abacus", "", "meta"])
def test_a_device_that_is_not_there(device: str) -> None:
    with pytest.raises(mr.InvalidCall, match="'cpu' is always there"):
        mr.build(FORMS[0], "torch", device=device)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch has no CUDA device here")
@every_form
def test_on_cuda(spec: mr.RecurrentSpec) -> None:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        weights = mr.initialise(spec, seed=3)
        there, here = mr.build(weights, "torch", device="cuda"), mr.build(weights, "torch")
        assert there.native.weight_ih_l0.is_cuda
        x, state, lengths = draw_call(spec)
        for ragged in (None, lengths):
            expected = here(x, state, lengths=ragged)
            cotangent = random_cotangent(expected)
            there.native.eval()
            assert_outputs_close(there(x, state, lengths=ragged), expected)
            gradients, others = (layer.vjp(x, state, lengths=ragged, cotangent=cotangent) for layer in (there, here))
            assert_close(gradients.x, others.x)
            for array_name, array in gradients.weights.items():
                assert_close(array, others.weights[array_name])
        assert there.weights() == weights
        here.native.cuda()  # the layer follows
        assert_outputs_close(here(x, state, lengths=lengths), expected)
    finally:
        torch.backends.cudnn.allow_tf32 = before


def test_the_layer_follows_its_module() -> None:
    spec = mr.RecurrentSpec("gru", 5, 11)
    layer = build(spec)
    x, _, _ = draw_call(spec)
    cotangent = random_cotangent(layer(x))
    layer.native.double()
    for call in (lambda: layer(x), layer.weights, lambda: layer.vjp(x, cotangent=cotangent)):
        with pytest.raises(mr.InvalidCall, match=r"native\.to\(torch\.float32\)"):
            call()
    layer.native.to(torch.float32)
    before = layer(x).sequence
    with torch.no_grad():
        layer.native.bias_hh_l0.add_(1)
    assert not np.array_equal(layer(x).sequence, before)


# --- Calls -----------------------------------------------------------------------------------------------------------


@every_form
def test_gradients_leave_the_module_as_it_is(spec: mr.RecurrentSpec) -> None:
    layer = build(spec)
    native = layer.native.eval()
    frozen = native.weight_hh_l0.requires_grad_(False)
    x, state, lengths = draw_call(spec)
    for parameter in native.parameters():
        parameter.grad = torch.ones_like(parameter)
    cotangent = random_cotangent(layer(x, state, lengths=lengths))
    gradients = layer.vjp(x, state, lengths=lengths, cotangent=cotangent)
    assert all(bool((parameter.grad == 1).all()) for parameter in native.parameters())
    assert not frozen.requires_grad
    assert not native.training
    assert layer.parameter_count == spec.parameter_count - frozen.numel()

    expected = build(spec).vjp(x, state, lengths=lengths, cotangent=cotangent)
    assert np.array_equal(
        gradients.weights["layers.0.forward.weight_hh"], expected.weights["layers.0.forward.weight_hh"]
    )


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_in_any_mode(mode) -> None:
    spec = FORMS[4]
    x, state, _ = draw_call(spec)
    with mode():
        layer = build(spec)
        cotangent = random_cotangent(layer(x, state))
        inside = layer.vjp(x, state, cotangent=cotangent)
    outside = layer.vjp(x, state, cotangent=cotangent)
    assert np.array_equal(inside.x, outside.x)
    layer.native(tensor(spec))[0].sum().backward()


@every_form
def test_rows_of_length_zero(spec: mr.RecurrentSpec) -> None:
    layer = build(spec)
    x, state, _ = draw_call(spec)
    for lengths, rows in (([0, 7, 4, 0, 7], [0, 3]), ([0, 0, 0, 0, 0], slice(None))):
        output = layer(x, state, lengths=lengths)
        cotangent = random_cotangent(output)
        gradients = layer.vjp(x, state, lengths=lengths, cotangent=cotangent)
        assert not output.sequence[rows].any()
        assert not gradients.x[rows].any()
        for initial, final, pulled, pushed in zip(
            *map(states, [mr.Output(x, state), output, mr.Output(x, gradients.state), cotangent]), strict=True
        ):
            assert np.array_equal(final[:, rows], initial[:, rows])
            assert np.array_equal(pulled[:, rows], pushed[:, rows])
            assert not np.shares_memory(final, initial)
            assert not np.shares_memory(pulled, pushed)
        assert all(array.any() == (rows != slice(None)) for array in gradients.weights.values())


@every_form
def test_arrays_of_every_kind_give_no_warning(spec: mr.RecurrentSpec) -> None:
    layer = build(spec)
    x, state, lengths = draw_call(spec)
    expected = layer(x, state, lengths=lengths)
    cotangent = random_cotangent(expected)
    pulled = layer.vjp(x, state, lengths=lengths, cotangent=cotangent)

    def read_only(array):
        array = array.copy()
        array.flags.writeable = False
        return array

    def backwards(array):
        return np.ascontiguousarray(array[::-1])[::-1]

    def columns_first(array):
        return np.asfortranarray(array)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in (read_only, backwards, columns_first):
            arguments = kind(x), mr.State(*map(kind, (s for s in state if s is not None)))
            output = layer(*arguments, lengths=kind(lengths))
            assert_outputs_close(output, expected)
            pushed = mr.Output(kind(cotangent.sequence), mr.State(*map(kind, states(cotangent))))
            assert np.array_equal(layer.vjp(*arguments, lengths=kind(lengths), cotangent=pushed).x, pulled.x)


def test_nothing_is_copied_on_the_way_in() -> None:
    spec = mr.RecurrentSpec("simple_rnn", 5, 11)
    layer = build(spec)
    x, _, _ = draw_call(spec)
    addresses = []
    layer.native.register_forward_pre_hook(lambda module, arguments: addresses.append(arguments[0].data_ptr()))
    layer(x)
    assert addresses == [x.ctypes.data]


def test_a_call_goes_through_the_module_as_it_is_now() -> None:
    layer = build(mr.RecurrentSpec("lstm", 5, 11))
    x, _, _ = draw_call(layer.spec)
    before = layer(x)
    hook = layer.native.register_forward_hook(lambda module, arguments, result: (2 * result[0], result[1]))
    assert_outputs_close(layer(x), before._replace(sequence=2 * before.sequence))
    hook.remove()
    assert_outputs_close(layer(x), before)
    torch.nn.utils.parametrize.register_parametrization(layer.native, "weight_ih_l0", torch.nn.Identity())
    assert_outputs_close(layer(x), before)
    layer.native.double()
    with pytest.raises(mr.InvalidCall, match=r"the module now holds torch.float64, and this layer computes in float32"):
        layer(x)
