"""A fast layer of PyTorch beside PyTorch's own, of the same weights; the loops it runs through, and what they ran."""

import numpy as np
import pytest
import torch
from multirnn_torch import BACKEND, facts
from multirnn_torch.fast import LOOPS, FastGRU, FastLSTM, FastRNN

import multirnn as mr
from multirnn import kernel
from multirnn.protocol import with_implementation

FAST = with_implementation(BACKEND, "fast")
LAYERS = {
    "simple_rnn": (FastRNN, torch.nn.RNN, {}),
    "relu": (FastRNN, torch.nn.RNN, {"nonlinearity": "relu"}),
    "gru": (FastGRU, torch.nn.GRU, {}),
    "lstm": (FastLSTM, torch.nn.LSTM, {}),
}
STACK = {"num_layers": 2, "bidirectional": True, "batch_first": True}
INPUT, HIDDEN, BATCH, TIME = 5, 7, 3, 11

every_cell = pytest.mark.parametrize("cell", LAYERS)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def there(name: str):
    skip = pytest.mark.skipif(name == "kernel" and kernel.refuses() is not None, reason=str(kernel.refuses()))
    return pytest.param(name, marks=skip)


def every_shape_is_fast(loop: str, spec: mr.RecurrentSpec, *_) -> str | None:
    """In place of `facts.refuses`: whatever a loop can run is fast. The loop of tensors has no LSTM."""
    return "PyTorch's own LSTM is as fast" if (loop, spec.cell) == ("tensors", "lstm") else None


@pytest.fixture(name="loop", params=[there(name) for name in LOOPS])
def each_loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each loop, also for shapes for which the framework's own layer is known to be as fast."""
    monkeypatch.setattr(facts, "refuses", every_shape_is_fast)
    return request.param


@pytest.fixture(name="ran")
def what_ran(loop: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a loop was asked for, in order: "forward" and "backward"."""
    calls: list[str] = []
    for direction in ("forward", "backward"):
        original = getattr(LOOPS[loop], direction)

        def watched(*args, original=original, direction=direction, **kwargs):
            calls.append(direction)
            return original(*args, **kwargs)

        monkeypatch.setattr(LOOPS[loop], direction, watched)
    return calls


class Through:
    """The fast backend, with the loop chosen."""

    def __init__(self, loop: str) -> None:
        self.name, self.differentiable, self.loop = f"torch fast by {loop}", True, loop
        self.refuses, self.read, self.versions = FAST.refuses, FAST.read, FAST.versions

    def build(self, weights: mr.Weights, *, device: str | None = None):
        layer = FAST.build(weights, device=device)
        layer.native.loop = self.loop
        return layer


def pair(cell: str, loop: str, dtype=torch.float64, **kwargs):
    """A fast layer and PyTorch's own, of the same weights."""
    if (cell, loop) == ("lstm", "tensors"):
        pytest.skip("the loop of tensors has no LSTM")
    kind, own, arguments = LAYERS[cell]
    torch.manual_seed(1)
    native = own(INPUT, HIDDEN, dtype=dtype, **arguments, **kwargs)
    quick = kind(INPUT, HIDDEN, dtype=dtype, loop=loop, **arguments, **kwargs)
    quick.load_state_dict(native.state_dict())
    return quick, native


def drawn(*shape: int, dtype=torch.float64, seed: int = 2):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def drawn_x(**kwargs):
    return drawn(BATCH, TIME, INPUT, **kwargs)


def parts(state):
    return list(state) if isinstance(state, tuple) else [state]


def assert_close(actual, expected) -> None:
    actual, expected = (np.asarray(value.detach() if torch.is_tensor(value) else value) for value in (actual, expected))
    found = mr.difference(actual, expected)
    assert found.normwise <= mr.tolerance(actual.dtype), found


def assert_all_close(actual, expected) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other)


def pulled(module, x, hx=None):
    """Outputs, and gradients of the parameters, x and the state."""
    y, final = module(x, hx)
    outputs = [y, *parts(final)]
    cotangents = [drawn(*output.shape, dtype=output.dtype, seed=place) for place, output in enumerate(outputs)]
    leaves = [p for p in [x, *([] if hx is None else parts(hx)), *module.parameters()] if p.requires_grad]
    return [*outputs, *torch.autograd.grad(outputs, leaves, cotangents)]
