"""What `read` takes from PyTorch: the layers and cells that users make, and why it refuses others."""

import warnings

import pytest

import multirnn as mr
from multirnn.numerics import draw_call

torch = pytest.importorskip("torch")

from torch_layers import (  # noqa: E402
    assert_close,
    build,
    every_single,
    one_thread,  # noqa: F401
)


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
