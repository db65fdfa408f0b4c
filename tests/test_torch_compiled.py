"""Models with fast layers under `torch.compile`: whole graphs, few of them, and eager results."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from multirnn_torch.fast import FastGRU, FastLSTM, FastRNN
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import multirnn as mr
from multirnn import kernel

if kernel.refuses() is not None:
    pytest.skip(str(kernel.refuses()), allow_module_level=True)

INPUT, HIDDEN = 3, 5
LAYERS = {"rnn": FastRNN, "lstm": FastLSTM, "gru": FastGRU}
SHAPES = ((2, 7), (4, 3), (1, 9), (3, 1), (6, 2), (5, 5))  # batch and time


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch.manual_seed(6)
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Model(nn.Module):
    def __init__(self, kind: Any = FastGRU, **settings: Any) -> None:
        super().__init__()
        self.before = nn.Linear(INPUT, INPUT)
        self.layer = kind(INPUT, HIDDEN, batch_first=True, **settings)
        self.head = nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.head(self.layer(self.before(x), lengths=lengths)[0])


def drawn(batch: int, time: int) -> Tensor:
    return torch.randn(batch, time, INPUT)


def stepped(run: Any, model: nn.Module, *args: Any) -> list[Tensor]:
    """The output, and the gradients of its square."""
    y = run(*args)
    return [y, *torch.autograd.grad(y.square().sum(), list(model.parameters()))]


def assert_all_close(actual: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(actual, expected, strict=True):
        found = mr.difference(one.detach().numpy(), other.detach().numpy())
        assert found.normwise <= mr.tolerance(str(one.dtype).removeprefix("torch.")), found


def whole(model: Any, **options: Any) -> Any:
    return torch.compile(model, fullgraph=True, backend="aot_eager", **options)


# --- Graphs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("settings", [{}, {"num_layers": 2, "bias": False}])
def test_six_shapes_take_at_most_three_graphs(kind: str, settings: dict[str, Any]) -> None:
    model = Model(LAYERS[kind], **settings)
    counters.clear()
    compiled = whole(model, dynamic=True)
    for batch, time in SHAPES:  # a batch and a time of 1 are constants to PyTorch
        x = drawn(batch, time)
        assert_all_close(stepped(compiled, model, x), stepped(model, model, x))
    assert 0 < counters["stats"]["unique_graphs"] <= 3


def test_by_inductor() -> None:
    model = Model(FastLSTM, num_layers=2)
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for batch, time in SHAPES[:3]:
        x = drawn(batch, time)
        assert_all_close(stepped(compiled, model, x), stepped(model, model, x))
        with torch.no_grad():
            assert_all_close([compiled(x.transpose(0, 1).contiguous().transpose(0, 1))], [model(x)])  # other strides


def test_lengths() -> None:
    model = Model(FastGRU, num_layers=2)
    compiled = whole(model, dynamic=True)
    for batch, time in SHAPES:
        x, lengths = drawn(batch, time), torch.randint(0, time + 1, (batch,))
        assert_all_close(stepped(compiled, model, x, lengths), stepped(model, model, x, lengths))
    with pytest.raises(mr.InvalidCall, match="integers from 0 to 7"):
        compiled(drawn(2, 7), torch.tensor([1, 8]))


# --- What changes between two calls ----------------------------------------------------------------------------------


def test_weights_that_were_stepped_loaded_written_to_or_replaced() -> None:
    model = Model()
    compiled, x = whole(model), drawn(2, 7)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)

    def checked() -> None:
        assert_all_close(stepped(compiled, model, x), stepped(model, model, x))

    checked()
    compiled(x).square().sum().backward()
    optimiser.step()
    checked()
    model.load_state_dict(Model().state_dict())
    checked()
    with torch.no_grad():
        model.layer.weight_hh_l0.mul_(0.5)
    checked()
    model.layer.weight_hh_l0 = nn.Parameter(torch.randn(3 * HIDDEN, HIDDEN))
    checked()
    model.double()
    x = x.double()
    checked()


def test_a_whole_step_in_one_graph() -> None:
    stock, model = Model(nn.GRU), Model()
    model.load_state_dict(stock.state_dict())
    x = drawn(2, 7)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def loss_of(x: Tensor) -> Tensor:
        return model(x).square().mean()

    for _ in range(3):
        for net, loss in ((stock, None), (model, loss_of)):
            found = net.head(net.layer(net.before(x))[0]).square().mean() if loss is None else loss(x)
            net.zero_grad()
            found.backward()
            with torch.no_grad():
                for parameter in net.parameters():
                    parameter -= 0.1 * parameter.grad
    assert_all_close(list(model.parameters()), list(stock.parameters()))


def test_training_and_evaluation_and_modes_without_gradients() -> None:
    model = Model(FastLSTM, num_layers=2, dropout=0.5)
    compiled, x = whole(model), drawn(3, 40)
    model.eval()
    expected = model(x)
    assert_all_close([compiled(x)], [expected])
    model.train()
    drops = [compiled(x) for _ in range(3)]
    assert not torch.equal(drops[0], drops[1])
    mean = torch.stack([compiled(x) for _ in range(200)]).mean(0)
    assert (mean - expected).abs().mean() < 0.05  # the right rate, on average
    model.eval()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert_all_close([compiled(x)], [expected])


def test_weight_norm() -> None:
    model = Model(FastLSTM)
    parametrizations.weight_norm(model.layer, "weight_hh_l0")
    compiled, x = whole(model), drawn(2, 7)
    assert_all_close(stepped(compiled, model, x), stepped(model, model, x))


def test_functional_call() -> None:
    """Transformed, a layer is PyTorch's own, outside of the graph."""
    model, x = Model(), drawn(2, 7)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(weights: Any, x: Tensor) -> Tensor:
        return torch.func.functional_call(model, weights, (x,)).square().sum()

    expected = torch.func.grad(loss)(weights, x)
    compiled = torch.compile(lambda weights, x: torch.func.functional_call(model, weights, (x,)), backend="aot_eager")
    assert_all_close([compiled(weights, x)], [model(x)])
    found = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    assert_all_close(list(expected.values()), list(found))


def test_threads_that_compile_and_call() -> None:
    model, x = Model(), drawn(2, 7)
    compiled, expected, found = whole(model), model(x).detach(), []

    def call() -> None:
        for _ in range(5):
            found.extend((compiled(x).detach(), model(x).detach()))

    workers = [threading.Thread(target=call) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 30
    assert_all_close(found, [expected] * 30)


# --- What no graph holds ---------------------------------------------------------------------------------------------


class Packing(Model):
    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:  # type: ignore[override]
        packed = pack_padded_sequence(self.before(x), lengths, batch_first=True, enforce_sorted=False)
        return self.head(pad_packed_sequence(self.layer(packed)[0], batch_first=True)[0])


class Packed(Model):
    def forward(self, packed: Any) -> Tensor:  # type: ignore[override]
        return self.layer(packed)[1]


def test_packed_sequences_stay_outside_of_a_graph_or_are_refused() -> None:
    model, x, lengths = Packing(), drawn(3, 6), torch.tensor([2, 6, 3])
    compiled = torch.compile(model, backend="aot_eager")
    assert_all_close(stepped(compiled, model, x, lengths), stepped(model, model, x, lengths))
    packed = pack_padded_sequence(x, torch.tensor([6, 3, 2]), batch_first=True)
    with pytest.raises(Exception, match=r"layer\(x, lengths=\.\.\.\)"):
        whole(Packed())(packed)


@pytest.mark.parametrize("what", ["loop", "autocast", "half"])
def test_calls_outside_of_a_graph(what: str) -> None:
    """The reason is in the error where there has to be one graph; elsewhere the call is right."""
    model, x = Model(loop="tensors" if what == "loop" else None), drawn(2, 7)
    if what == "half":
        model, x = model.bfloat16(), x.bfloat16()
    reason = {
        "loop": "set its loop to None",
        "autocast": "runs without autocast",
        "half": "of one dtype, float32 or float64",
    }
    context = torch.autocast("cpu", torch.bfloat16) if what == "autocast" else torch.enable_grad()
    with context:
        expected = model(x)
        assert_all_close([torch.compile(model, backend="aot_eager")(x).float()], [expected.float()])
        torch.compiler.reset()
        with pytest.raises(Exception, match=reason[what]):
            whole(model)(x)


def test_wrong_calls_are_refused_as_in_eager_mode() -> None:
    model = Model()
    for x in (drawn(2, 7)[..., :2], torch.ones(2, 7, INPUT, dtype=torch.int64)):
        with pytest.raises((RuntimeError, ValueError)):
            model.layer(x)
        with pytest.raises((RuntimeError, ValueError)):
            torch.compile(model.layer, backend="aot_eager")(x)
        torch.compiler.reset()
