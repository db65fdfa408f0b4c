"""What PyTorch users do with `layer.native`: train, save, copy, convert, move, compile, wrap; and what `read` adopts."""

import copy
import io
import os
import pickle
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import multirnn as mr
from multirnn.numerics import draw_call

torch = pytest.importorskip("torch")

STACK = {"input_size": 5, "hidden_size": 11, "num_layers": 2, "bidirectional": True}
FORMS = [
    mr.RecurrentSpec("simple_rnn", bias="single", activation="relu", **STACK),
    mr.RecurrentSpec("simple_rnn", 5, 11, bias="double"),
    mr.RecurrentSpec("lstm", bias="single", dtype="float64", **STACK),
    mr.RecurrentSpec("lstm", 5, 11, bias="none"),
    mr.RecurrentSpec("gru", bias="single", **STACK),
    mr.RecurrentSpec("gru", bias="double", dtype="float64", **STACK),
]
SINGLE = [spec for spec in FORMS if spec.bias == "single"]


@pytest.fixture(autouse=True)
def one_thread():
    """Layers as small as these are no faster on several threads, which wait for each other where tests run side by side."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def name(spec: mr.RecurrentSpec) -> str:
    return f"{spec.cell}-{spec.bias}"


every_form = pytest.mark.parametrize("spec", FORMS, ids=name)
every_single = pytest.mark.parametrize("spec", SINGLE, ids=name)


def build(spec: mr.RecurrentSpec):
    return mr.build(spec, "torch", seed=3)


def tensor(spec: mr.RecurrentSpec):
    return torch.tensor(draw_call(spec)[0])


def random_cotangent(output: mr.Output) -> mr.Output:
    rng = np.random.default_rng(7)
    sequence, *state = (
        rng.standard_normal(part.shape).astype(part.dtype) for part in (output.sequence, *states(output))
    )
    return mr.Output(sequence, mr.State(*state))


def states(output: mr.Output) -> list[np.ndarray]:
    return [part for part in output.state if part is not None]


def assert_close(actual, expected) -> None:
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert mr.difference(actual, expected).normwise <= mr.tolerance(actual.dtype)


def assert_is_spec(native, spec: mr.RecurrentSpec) -> None:
    """It has the spec's parameters and no others; what stands for a missing bias is zero."""
    assert sum(parameter.numel() for parameter in native.parameters()) == spec.parameter_count
    assert sum(array.numel() for array in native.state_dict().values()) == spec.parameter_count
    listed = [weight for weights in native.all_weights for weight in weights]
    assert sum(weight.numel() for weight in listed if weight.requires_grad) == spec.parameter_count
    assert not any(buffer.any() or buffer.requires_grad for buffer in native.buffers())
    assert mr.read(native).spec == spec


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


# --- What users do with it -------------------------------------------------------------------------------------------


def saved_and_loaded(native):
    file = io.BytesIO()
    torch.save(native, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def state_carried_over(native):
    spec = mr.read(native).spec
    other = mr.build(spec, "torch", seed=4).native
    other.load_state_dict(native.state_dict())
    return other


def converted_there_and_back(native):
    dtype = native.weight_ih_l0.dtype
    return native.double().to(dtype)


COPIES = [
    copy.deepcopy,
    lambda native: pickle.loads(pickle.dumps(native)),
    saved_and_loaded,
    state_carried_over,
    converted_there_and_back,
]


@pytest.mark.parametrize("copied", COPIES, ids=["deepcopy", "pickle", "save", "state_dict", "double"])
@every_single
def test_a_single_bias_survives(spec: mr.RecurrentSpec, copied) -> None:
    native, x = build(spec).native, tensor(spec)
    expected, _ = native(x)
    expected.sum().backward()  # what a call leaves behind must not hinder the copy
    other = copied(native)
    assert torch.equal(other(x)[0], expected)
    assert_is_spec(other, spec)
    other(x)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in other.parameters())


@every_single
def test_a_single_bias_converts_to_float64(spec: mr.RecurrentSpec) -> None:
    native = build(replace(spec, dtype="float32")).native.double()
    assert {buffer.dtype for buffer in native.buffers()} <= {torch.float64}
    wide = replace(spec, dtype="float64")
    assert_is_spec(native, wide)
    x = tensor(wide)
    assert_close(native(x)[0].detach(), mr.build(mr.read(native), "numpy")(x.numpy()).sequence)


@every_single
def test_a_single_bias_in_functional_call(spec: mr.RecurrentSpec) -> None:
    native, x = build(spec).native, tensor(spec)
    expected = native(x)[0]
    other = mr.build(spec, "torch", seed=4).native
    assert torch.equal(torch.func.functional_call(other, dict(native.named_parameters()), (x,))[0], expected)
    assert not torch.equal(other(x)[0], expected)


@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.Adam])
@every_single
def test_a_step_of_training_is_that_of_a_single_bias(spec: mr.RecurrentSpec, optimiser) -> None:
    """The reference's gradient, in a plain tensor a canonical parameter, gives the step that the module has to make."""
    weights = mr.initialise(spec, seed=3)
    layer, reference = mr.build(weights, "torch"), mr.build(weights.astype("float64"), "numpy")
    x = draw_call(spec)[0]

    wide = x.astype("float64")
    cotangent = mr.Output(2 * reference(wide).sequence, mr.State(*(0 * s for s in states(reference(wide)))))
    gradients = reference.vjp(wide, cotangent=cotangent).weights
    plain = {name: torch.tensor(array).double() for name, array in weights.arrays.items()}
    for array_name, parameter in plain.items():
        parameter.grad = torch.tensor(gradients[array_name])

    layer.native(torch.tensor(x))[0].square().sum().backward()
    for parameters in (layer.native.parameters(), plain.values()):
        optimiser(parameters, lr=0.1, weight_decay=0.1).step()

    moved = layer.weights()
    for array_name, parameter in plain.items():
        assert_close(moved.arrays[array_name], parameter)
        assert not np.array_equal(moved.arrays[array_name], weights.arrays[array_name])
    assert_is_spec(layer.native, spec)


def test_two_biases_move_twice_as_far() -> None:
    moved = {}
    for bias in ("single", "double"):
        spec = mr.RecurrentSpec("simple_rnn", 5, 11, bias=bias, dtype="float64")
        single = mr.initialise(replace(spec, bias="single"), seed=3)
        layer = mr.build(single if bias == "single" else mr.split_biases(single), "torch")
        layer.native(tensor(spec))[0].sum().backward()
        torch.optim.SGD(layer.native.parameters(), lr=0.1).step()
        after = layer.weights()
        folded = after if bias == "single" else mr.fold_biases(after)
        moved[bias] = folded.arrays["layers.0.forward.bias_ih"] - single.arrays["layers.0.forward.bias_ih"]
    assert_close(moved["double"], 2 * moved["single"])


# Traced, PyTorch's own LSTM fails too: aot_autograd asserts that what it saves for the way back are tensors.
@pytest.mark.parametrize(
    ("cell", "allow_rnn"),
    [("simple_rnn", False), ("simple_rnn", True), ("lstm", False), ("gru", False), ("gru", True)],
)
def test_compiles(cell: str, allow_rnn: bool) -> None:
    """By default torch.compile breaks its graph at a recurrent layer; with `allow_rnn` it traces into it."""
    spec = mr.RecurrentSpec(cell, 5, 11, bias="single")
    layer, x = build(spec), tensor(spec)[:, :3]
    expected, _ = layer.native(x)
    gradients = torch.autograd.grad(expected.sum(), list(layer.native.parameters()))
    torch.compiler.reset()
    with torch._dynamo.config.patch(allow_rnn=allow_rnn):
        # aot_eager traces forward and backward as inductor does, and needs no C++ compiler.
        compiled = torch.compile(layer.native, backend="aot_eager")
        actual, _ = compiled(x)
        found = torch.autograd.grad(actual.sum(), list(layer.native.parameters()))
    assert_close(actual.detach(), expected.detach())
    for one, other in zip(found, gradients, strict=True):
        assert_close(one, other)
    assert mr.read(compiled) == layer.weights()


RANK = """
import sys
import numpy as np
import torch
import multirnn as mr
from multirnn.numerics import draw_call

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
arrays = {}
for cell in ("simple_rnn", "lstm", "gru"):
    spec = mr.RecurrentSpec(cell, 5, 11, bias="single", dtype="float64")
    layer = mr.build(spec, "torch", seed=3)
    wrapped = torch.nn.parallel.DistributedDataParallel(layer.native)
    for step in range(2):
        layer.native.zero_grad()
        output, _ = wrapped(torch.tensor(draw_call(spec)[0][rank::2][:2]))
        output.square().sum().backward()
    assert mr.read(wrapped) == layer.weights()
    arrays |= {f"{cell}/{name}": p.grad.numpy() for name, p in layer.native.named_parameters()}
if not rank:
    np.savez(f"{folder}/gradients.npz", **arrays)
torch.distributed.destroy_process_group()
"""


def train_on_two_ranks(folder: Path) -> list[str]:
    """What the two processes wrote to stderr, if one of them failed."""
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(folder)], env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        errors = [rank.communicate(timeout=300)[1] for rank in ranks]
    except subprocess.TimeoutExpired:
        return ["timeout"]
    finally:
        for rank in ranks:
            rank.kill()
    return errors if any(rank.returncode for rank in ranks) else []


@pytest.mark.skipif(
    not (torch.distributed.is_available() and sys.platform == "linux"),
    reason="needs torch.distributed with gloo, and lo",
)
def test_trains_on_two_ranks(tmp_path: Path) -> None:
    for attempt in range(2):  # the loopback can be slow to come up: once more
        folder = tmp_path / str(attempt)
        folder.mkdir()
        if not (errors := train_on_two_ranks(folder)):
            break
    assert not errors, "\n".join(errors)
    with np.load(folder / "gradients.npz") as found:
        for cell in ("simple_rnn", "lstm", "gru"):
            spec = mr.RecurrentSpec(cell, 5, 11, bias="single", dtype="float64")
            native = build(spec).native
            native(tensor(spec)[:4])[0].square().sum().backward()
            for parameter_name, parameter in native.named_parameters():
                assert_close(2 * found[f"{cell}/{parameter_name}"], parameter.grad)  # DDP takes the mean of two


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


def assert_outputs_close(actual: mr.Output, expected: mr.Output) -> None:
    assert_close(actual.sequence, expected.sequence)
    for one, other in zip(states(actual), states(expected), strict=True):
        assert_close(one, other)


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


# --- What is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_layers", "bidirectional", "dtype", "batch_first"),
    [
        (1, False, "float32", True),
        (3, False, "float64", False),
        (2, True, "float64", True),
        (2, True, "float32", False),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cell", ["simple_rnn", "relu", "lstm", "gru"])
def test_reads_what_users_make(
    cell: str, bias: bool, num_layers: int, bidirectional: bool, dtype: str, batch_first: bool
) -> None:
    kind, own, activation = {
        "simple_rnn": (torch.nn.RNN, {}, "tanh"),
        "relu": (torch.nn.RNN, {"nonlinearity": "relu"}, "relu"),
        "lstm": (torch.nn.LSTM, {}, "tanh"),
        "gru": (torch.nn.GRU, {}, "tanh"),
    }[cell]
    torch.manual_seed(1)
    module = kind(
        5, 11, num_layers, bias=bias, batch_first=batch_first, bidirectional=bidirectional,
        dtype=getattr(torch, dtype), **own,
    )  # fmt: skip
    weights = mr.read(module)
    assert weights.spec == mr.RecurrentSpec(
        "simple_rnn" if cell == "relu" else cell,
        5,
        11,
        num_layers=num_layers,
        bidirectional=bidirectional,
        bias="double" if bias else "none",
        activation=activation,
        dtype=dtype,
    )
    x, state, _ = draw_call(weights.spec)
    hx = tuple(torch.tensor(part) for part in state if part is not None)
    with torch.no_grad():
        sequence, _ = module(
            torch.tensor(x if batch_first else x.swapaxes(0, 1)), hx if cell == "lstm" else hx[0]
        )  # fmt: skip
    expected = mr.build(weights.astype("float64"), "numpy")(
        x.astype("float64"), mr.State(*(part.astype("float64") for part in state if part is not None))
    )
    assert_close(sequence if batch_first else sequence.transpose(0, 1), expected.sequence)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("cell", "kind", "own"),
    [
        ("simple_rnn", torch.nn.RNNCell, {"nonlinearity": "relu"}),
        ("lstm", torch.nn.LSTMCell, {}),
        ("gru", torch.nn.GRUCell, {}),
    ],
)
def test_reads_a_cell(cell: str, kind, own: dict, bias: bool) -> None:
    module = kind(5, 11, bias=bias, **own)
    weights = mr.read(module)
    assert weights.spec == mr.RecurrentSpec(
        cell, 5, 11, bias="double" if bias else "none", activation=own.get("nonlinearity", "tanh")
    )
    x, state, _ = draw_call(weights.spec)
    hx = tuple(torch.tensor(part[0]) for part in state if part is not None)
    with torch.no_grad():
        h = module(torch.tensor(x[:, 0]), hx if cell == "lstm" else hx[0])
    assert_close(h[0] if cell == "lstm" else h, mr.build(weights, "torch")(x[:, :1], state).state.h[0])


class Subclass(torch.nn.GRU):
    """A user's own."""


def test_reads_subclasses_wrapped_frozen_and_parametrised() -> None:
    gru = Subclass(5, 11)
    weights = mr.read(gru)
    assert weights.spec == mr.RecurrentSpec("gru", 5, 11, bias="double")
    assert mr.read(torch.nn.DataParallel(gru)) == weights
    assert mr.read(torch.compile(gru)) == weights
    assert mr.read(gru.requires_grad_(False)) == weights
    normed = torch.nn.utils.parametrizations.weight_norm(gru, "weight_hh_l0")
    with torch.no_grad():
        normed.parametrizations.weight_hh_l0.original0.mul_(2)
    doubled = mr.read(normed).arrays["layers.0.forward.weight_hh"]
    assert_close(doubled, 2 * weights.arrays["layers.0.forward.weight_hh"])


@every_single
def test_reads_its_own_single_bias(spec: mr.RecurrentSpec) -> None:
    layer = build(spec)
    assert mr.read(layer.native) == layer.weights() == mr.initialise(spec, seed=3)


def dropping(rate: float, num_layers: int):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's, of a rate without a second layer
        return torch.nn.LSTM(5, 11, num_layers, dropout=rate)


def test_dropout_between_no_layers_is_none() -> None:
    assert mr.read(dropping(0.5, 1)).spec.num_layers == 1


def mixed():
    module = torch.nn.GRU(5, 11)
    module.bias_hh_l0 = torch.nn.Parameter(module.bias_hh_l0.double())
    return module


def with_a_constant(kind, value: float):
    module = kind(5, 11)
    del module.bias_hh_l0
    module.register_buffer("bias_hh_l0", torch.full_like(module.bias_ih_l0, value))
    module._init_flat_weights()
    return module


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (lambda: dropping(0.5, 2), "dropout=0.5.*set its dropout to 0"),
        (lambda: torch.nn.LSTM(5, 11, proj_size=3), "proj_size=3"),
        (mixed, "weights of float32 and float64"),
        (lambda: torch.nn.GRU(5, 11, dtype=torch.bfloat16), "weights of bfloat16"),
        (lambda: torch.nn.GRU(5, 11, device="meta"), "holds no numbers"),
        (lambda: with_a_constant(torch.nn.RNN, 1.0), "the constant bias_hh_l0, which is not zero"),
        (lambda: with_a_constant(torch.nn.GRU, 0.0), "trains the candidate's"),
        (lambda: torch.nn.Linear(5, 11), "an object of the type Linear is not a torch.nn.RNN, LSTM or GRU"),
        (lambda: torch.nn.Sequential(torch.nn.GRU(5, 11), torch.nn.Tanh()), "read what it holds: 0"),
        (lambda: torch.ones(3), "an object of the type Tensor is not"),
    ],
)
def test_says_why_a_module_cannot_be_read(module, reason: str) -> None:
    with pytest.raises(mr.Unrepresentable, match=reason):
        mr.read(module())
