"""PyTorch's frozen layers: weights packed once, what counts as a change of them, and what is left as it is."""

import copy
import io
from collections.abc import Callable

import numpy as np
import pytest

import multirnn as mr
from multirnn import kernel
from multirnn.protocol import with_implementation
from multirnn.testing import cases

torch = pytest.importorskip("torch")

from multirnn_torch import BACKEND  # noqa: E402
from multirnn_torch.fast import FastGRU, FastLSTM, FastRNN  # noqa: E402

pytestmark = pytest.mark.skipif(kernel.refuses() is not None, reason=str(kernel.refuses()))

FROZEN = with_implementation(BACKEND, "frozen")
CELLS = {"simple_rnn": (FastRNN, torch.nn.RNN), "gru": (FastGRU, torch.nn.GRU), "lstm": (FastLSTM, torch.nn.LSTM)}
every_cell = pytest.mark.parametrize("cell", CELLS)


def pair(cell: str, **kwargs):
    """A frozen layer and PyTorch's own, of the same weights, and an input of theirs."""
    fast, own = CELLS[cell]
    torch.manual_seed(1)
    native = own(5, 7, num_layers=2, bidirectional=True, batch_first=True, **kwargs)
    quick = fast(5, 7, num_layers=2, bidirectional=True, batch_first=True, **kwargs)
    quick.load_state_dict(native.state_dict())
    return quick.freeze(), native, torch.randn(3, 11, 5, dtype=native.weight_ih_l0.dtype)


def output(module, x):
    with torch.inference_mode():
        return module(x)[0]


def assert_close(actual, expected) -> None:
    found = mr.difference(actual.detach().numpy(), expected.detach().numpy())
    assert found.normwise <= mr.tolerance(str(actual.dtype).removeprefix("torch.")), found


@pytest.mark.parametrize("check", [pytest.param(check, id=name) for name, check in cases()])
def test_conformance(check) -> None:
    check(FROZEN)


@every_cell
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_frozen_layer_is_the_same_function(cell: str, dtype) -> None:
    quick, native, x = pair(cell, dtype=dtype)
    assert quick.plan(3, 11).implementation == "frozen"
    assert_close(output(quick, x), output(native, x))
    assert_close(output(quick, x[:1, :1]), output(native, x[:1, :1]))
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        x, torch.tensor([7, 11, 2]), batch_first=True, enforce_sorted=False
    )
    assert_close(output(quick, packed).data, output(native, packed).data)


@every_cell
def test_weights_are_packed_once_and_not_read_again(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[bytes] = []
    pack = kernel.CompiledRecurrence.pack
    monkeypatch.setattr(
        kernel.CompiledRecurrence, "pack", lambda self, table: packed.append(table) or pack(self, table)
    )
    quick, native, x = pair(cell)
    expected = output(native, x)
    for parameter in quick.parameters():
        parameter.data.fill_(torch.nan)  # which PyTorch does not count, as `freeze` says
    for _ in range(3):
        assert_close(output(quick, x), expected)
    assert len(packed) == 1
    assert output(quick.unfreeze(), x).isnan().all()


def _step(module) -> None:
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    module(torch.ones(2, 3, 5))[0].sum().backward()
    optimiser.step()


def _load(module) -> None:
    module.load_state_dict({name: 2 * array for name, array in module.state_dict().items()})


def _write(module) -> None:
    with torch.no_grad():
        module.weight_hh_l1.mul_(2)


def _replace(module) -> None:
    module.weight_hh_l1 = torch.nn.Parameter(2 * module.weight_hh_l1.detach())


def _point_elsewhere(module) -> None:
    module.bias_ih_l0.data = 2 * module.bias_ih_l0.detach()


def _there_and_back_again(module) -> None:
    module.double()
    module.float()


CHANGES = {f.__name__.strip("_"): f for f in (_step, _load, _write, _replace, _point_elsewhere, _there_and_back_again)}


@every_cell
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_weights_that_changed_are_refused_until_they_are_frozen_again(cell: str, change: Callable) -> None:
    quick, _, x = pair(cell)
    before = output(quick, x)
    change(quick)
    with pytest.raises(
        mr.InvalidCall, match=r"(weight|bias)_\w+_l\d\w* has changed since the module was frozen; call freeze"
    ):
        output(quick, x)
    live = copy.deepcopy(quick)
    assert_close(output(quick.freeze(), x), output(live, x))
    if change is not _there_and_back_again:
        assert not torch.equal(output(quick, x), before)


@every_cell
def test_gradients_are_of_the_weights_as_they_are(cell: str) -> None:
    quick, native, x = pair(cell)
    for module in (quick, native):
        _write(module)
        module(x)[0].square().sum().backward()
    for (name, parameter), (_, expected) in zip(quick.named_parameters(), native.named_parameters(), strict=True):
        assert parameter.grad.any(), name
        assert_close(parameter.grad, expected.grad)
    assert quick.plan(3, 11, gradients=True).implementation == "fast"


@every_cell
def test_copies_and_what_was_saved_are_not_frozen(cell: str) -> None:
    quick, _, x = pair(cell)
    memory = io.BytesIO()
    torch.save(quick, memory)
    memory.seek(0)
    for other in (copy.deepcopy(quick), torch.load(memory, weights_only=False)):
        assert other.plan(3, 11).implementation != "frozen"
        _write(other)
        output(other, x)
    assert quick.plan(3, 11).implementation == "frozen"
    output(quick, x)


def test_a_constant_in_the_place_of_a_bias() -> None:
    for cell in CELLS:
        weights = mr.initialise(mr.RecurrentSpec(cell, 5, 7, bias="single"))
        x = np.random.default_rng(1).standard_normal((3, 11, 5)).astype("float32")
        layer, expected = mr.build(weights, FROZEN), mr.build(weights, "torch")
        assert mr.difference(layer(x).sequence, expected(x).sequence).normwise <= mr.tolerance("float32")
        assert layer.parameter_count == expected.parameter_count


def test_weights_of_inference_mode_cannot_be_frozen() -> None:
    with torch.inference_mode():
        module = FastGRU(5, 7)
    with pytest.raises(mr.InvalidCall, match="inference mode cannot be frozen"):
        module.freeze()


def test_where_there_is_nothing_to_prepare_it_runs_as_before() -> None:
    projecting = FastLSTM(5, 11, num_layers=2, proj_size=7).freeze()
    by_tensors = FastGRU(5, 7, loop="tensors").freeze()
    for module in (projecting, by_tensors):
        assert module.plan(3, 11).implementation == "native"
        module.double()
        assert module(torch.ones(2, 3, 5, dtype=torch.float64))[0].shape == (2, 3, 7)
