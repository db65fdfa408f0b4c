"""The user's own modules of PyTorch behind the calls of a layer: held against the reference, and left as they were."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
from adopted_layers import GRU, LSTM, assert_equal, assert_right, reference

import multirnn as mr
from multirnn.adoption import adopt
from multirnn.comparison import widened
from multirnn.numerics import draw_call


@pytest.fixture
def torch() -> Iterator[Any]:
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # layers as small as these only wait for each other
    torch.manual_seed(0)
    yield torch
    torch.set_num_threads(threads)


MODULES: dict[str, Callable[[Any], Any]] = {
    "RNN": lambda nn: nn.RNN(5, 11),
    "RNN relu, batch first, no bias": lambda nn: nn.RNN(5, 11, nonlinearity="relu", batch_first=True, bias=False),
    "LSTM of two layers, both ways": lambda nn: nn.LSTM(5, 11, 2, bidirectional=True),
    "LSTM in float64, batch first": lambda nn: nn.LSTM(5, 11, batch_first=True).double(),
    "GRU of three layers": lambda nn: nn.GRU(5, 11, 3, batch_first=True),
    "GRU both ways": lambda nn: nn.GRU(5, 11, bidirectional=True),
    "RNNCell": lambda nn: nn.RNNCell(5, 11),
    "LSTMCell": lambda nn: nn.LSTMCell(5, 11),
    "GRUCell": lambda nn: nn.GRUCell(5, 11),
}


@contextmanager
def as_it_was(module: Any) -> Iterator[None]:
    """The module's mode, parameters, what of them is frozen, what they hold in .grad, and its attributes."""

    def seen() -> Any:
        parameters = [(p.detach().numpy().tobytes(), p.dtype, p.requires_grad, p.grad) for p in module.parameters()]
        modes = [part.training for part in module.modules()]
        return parameters, modes, sorted(vars(module)), list(module.state_dict())

    before = seen()
    yield
    assert seen() == before


@pytest.mark.parametrize("name", MODULES)
def test_a_layer_of_pytorch(torch: Any, name: str) -> None:
    module = MODULES[name](torch.nn)
    next(module.parameters()).requires_grad_(False)
    with as_it_was(module):
        adopted = adopt(module)
        assert adopted.native is module
        assert_right(adopted, mr.read(module))
        assert adopted.weights() == mr.read(module)
    frozen = next(module.parameters()).numel()
    assert adopted.parameter_count == sum(p.numel() for p in module.parameters()) - frozen
    assert adopted.takes_lengths == (not name.endswith("Cell"))
    assert (adopted.title, adopted.readable) == (f"{type(module).__name__} (torch)", True)


def hand_written(torch: Any, gru: Any, **options: Any) -> Any:
    """A GRU as it is written by hand, over the weights of a torch.nn.GRU of one layer."""

    class HandWritten(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = gru
            if "batch_first" in options:
                self.batch_first = options["batch_first"]

        def forward(self, x: Any, h: Any) -> Any:
            h = h[0]
            outputs = []
            axis = 1 if options.get("batch_first", True) else 0
            for step in x.unbind(axis):
                a = step @ gru.weight_ih_l0.T + gru.bias_ih_l0
                b = h @ gru.weight_hh_l0.T + gru.bias_hh_l0
                (ar, az, an), (br, bz, bn) = a.chunk(3, 1), b.chunk(3, 1)
                r, z = torch.sigmoid(ar + br), torch.sigmoid(az + bz)
                h = (1 - z) * torch.tanh(an + r * bn) + z * h
                outputs.append(h)
            y = torch.stack(outputs, axis)
            return options.get("returns", lambda y, h: (y, h))(y, h)

    return HandWritten()


@pytest.mark.parametrize("batch_first", [None, True, False])
def test_a_module_written_by_hand(torch: Any, batch_first: bool | None) -> None:
    gru = torch.nn.GRU(5, 11)
    module = hand_written(torch, gru, **({} if batch_first is None else {"batch_first": batch_first})).eval()
    with as_it_was(module):
        adopted = adopt(module, spec=GRU)
        assert (adopted.readable, adopted.takes_lengths, adopted.takes_state) == (False, False, True)
        assert_right(adopted, mr.read(gru), weight_gradients=False)
    assert adopted.parameter_count == GRU.parameter_count
    with pytest.raises(mr.Unrepresentable, match=r"^the weights of HandWritten \(torch\) cannot be read$"):
        adopted.weights()
    with pytest.raises(mr.InvalidCall, match=r"^HandWritten \(torch\) takes no lengths: call it with full rows$"):
        adopted(*draw_call(GRU)[:2], lengths=draw_call(GRU)[2])


def test_a_gradient_that_is_cut_is_zero(torch: Any) -> None:
    module = hand_written(torch, torch.nn.GRU(5, 11), returns=lambda y, h: (y, h.detach()))
    x, state, _ = draw_call(GRU)
    adopted = adopt(module, spec=GRU)
    output = adopted(x, state)
    of_the_state = mr.Output(0 * output.sequence, output.state)
    found = adopted.vjp(x, state, cotangent=of_the_state)
    assert not found.x.any()
    assert not found.state.h.any()
    with torch.no_grad():  # and what the caller says of gradients is not what is asked here
        assert adopted.vjp(x, state, cotangent=output).x.any()
    cut = adopt(hand_written(torch, torch.nn.GRU(5, 11), returns=lambda y, h: (y.detach(), h.detach())), spec=GRU)
    assert not cut.vjp(x, state, cotangent=output).x.any()


def test_a_module_that_writes_to_its_inputs_reaches_no_array_of_the_caller(torch: Any) -> None:
    gru = torch.nn.GRU(5, 11, batch_first=True)

    class Writes(torch.nn.Module):
        def forward(self, x: Any, h: Any) -> Any:
            result = gru(x.clone(), h.clone())
            with torch.no_grad():
                x.zero_()
                h.zero_()
            return result

    x, state, _ = draw_call(GRU)
    copies = x.copy(), state.h.copy()
    adopt(Writes(), spec=GRU)(x, state)
    assert (x == copies[0]).all()
    assert (state.h == copies[1]).all()


def test_what_a_module_notes_of_a_call_is_taken_back(torch: Any) -> None:
    """A running mean, which is written in place, and a last state, which is assigned."""
    gru = torch.nn.GRU(5, 11, batch_first=True)

    class Notes(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(5)
            self.register_buffer("last", torch.ones(1))

        def forward(self, x: Any, h: Any) -> Any:
            y, h = gru(self.norm(x.transpose(1, 2)).transpose(1, 2), h * self.last.mean())
            self.last = h.detach()
            return y, h

    module = Notes()
    x, state, _ = draw_call(GRU)
    adopted = adopt(module, spec=GRU)
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    first = adopted(x, state)
    adopted.vjp(x, state, cotangent=first)
    assert (adopted(x, state).sequence == first.sequence).all()
    for name, buffer in module.named_buffers():
        assert buffer.equal(before[name]), name


def test_a_module_without_a_state(torch: Any) -> None:
    gru = torch.nn.GRU(5, 11, batch_first=True)

    class Bare(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return gru(x)[0]

    adopted = adopt(Bare(), spec=GRU)
    x, state, _ = draw_call(GRU)
    assert not adopted.takes_state
    output = adopted(x)
    assert_equal(output.sequence, reference(mr.read(gru))(x.astype("float64")).sequence, GRU)
    assert output.state == mr.State(None)
    with pytest.raises(mr.InvalidCall, match=r"^Bare \(torch\) takes no initial state: call it without one$"):
        adopted(x, state)


@pytest.mark.parametrize(
    ("make", "options", "sentence"),
    [
        (lambda nn: nn.Parameter(), {"spec": GRU}, "an object of the type Parameter cannot be run as a layer: adopt a torch.nn.Module"),
        (lambda nn: nn.Linear(5, 11), {}, "an object of the type Linear is not a torch.nn.RNN, LSTM or GRU, nor the cell of one. To run it as it is, pass spec="),
        (lambda nn: nn.GRU(5, 7), {"spec": GRU}, "and spec= says RecurrentSpec('gru', input_size=5, hidden_size=11); leave spec out"),
        (lambda nn: nn.LSTM(5, 11, 2, dropout=0.5), {"spec": LSTM}, "this LSTM drops outputs at random (it has the rate 0.5, in training mode); call its eval() first"),
        (lambda nn: nn.Sequential(nn.Linear(5, 11), nn.Dropout(0.25)), {"spec": LSTM}, "(its '1' has the rate 0.25, in training mode); call its eval() first"),
        (lambda nn: nn.Linear(5, 11).double(), {"spec": GRU}, "this Linear holds float64 and the spec computes in float32; pass a spec with dtype='float64', or convert the module by .to(torch.float32)"),
        (lambda nn: nn.Bilinear(5, 11, 3), {"spec": None}, "is not a torch.nn.RNN"),
    ],
)  # fmt: skip
def test_a_module_that_cannot_be_run(torch: Any, make: Any, options: Any, sentence: str) -> None:
    module = make(torch.nn)
    unchanged = as_it_was(module) if isinstance(module, torch.nn.Module) else nullcontext()
    with unchanged, pytest.raises(mr.InvalidCall, match=re.escape(sentence)):
        adopt(module, **options)


def test_dropout_in_evaluation_is_no_dropout(torch: Any) -> None:
    lstm = torch.nn.LSTM(5, 11, 2, dropout=0.5).eval()
    without = torch.nn.LSTM(5, 11, 2)
    without.load_state_dict(lstm.state_dict())
    spec = mr.read(without).spec
    x, state, _ = draw_call(spec)
    assert_equal(
        adopt(lstm, spec=spec)(x, state).sequence,
        reference(mr.read(without))(x.astype("float64"), widened(state)).sequence,
        spec,
    )
