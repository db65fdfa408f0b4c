"""oneDNN's LSTM with weights reordered once, which a frozen LSTM of PyTorch runs without the compiled kernel."""

import pytest

import multirnn as mr

torch = pytest.importorskip("torch")

from multirnn_torch.fast import FastLSTM  # noqa: E402
from multirnn_torch.prepacked import PrepackedLSTM, refuses  # noqa: E402


def assert_close(actual, expected) -> None:
    found = mr.difference(actual.detach().numpy(), expected.detach().numpy())
    assert found.normwise <= mr.tolerance("float32"), found


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of what oneDNN's LSTM was given."""
    if refuses():
        pytest.skip("this PyTorch has no oneDNN, or not its private operators")
    shapes: list[tuple[int, ...]] = []
    forward = PrepackedLSTM.forward
    monkeypatch.setattr(
        PrepackedLSTM, "forward", lambda self, call: shapes.append(tuple(call.x.shape)) or forward(self, call)
    )
    return shapes


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("stack", [{}, {"num_layers": 2}, {"num_layers": 2, "bidirectional": True}])
@pytest.mark.parametrize("batch_first", [True, False])
def test_prepacked_it_is_the_same_function(stack: dict, bias: bool, batch_first: bool, ran: list) -> None:
    torch.manual_seed(1)
    native = torch.nn.LSTM(5, 7, batch_first=batch_first, bias=bias, **stack)
    quick = FastLSTM(5, 7, batch_first=batch_first, bias=bias, loop="tensors", **stack)
    quick.load_state_dict(native.state_dict())
    quick.freeze()
    assert quick.plan(3, 11).implementation == "frozen"
    assert "oneDNN" in quick.plan(3, 11).sentence
    passes = stack.get("num_layers", 1) * (1 + stack.get("bidirectional", False))
    for batch, time in ((3, 11), (1, 1), (17, 2)):
        x = torch.randn(batch, time, 5) if batch_first else torch.randn(time, batch, 5)
        state = torch.randn(passes, batch, 7), torch.randn(passes, batch, 7)
        for given in ((x,), (x, state)):
            with torch.inference_mode():
                (y, final), (expected, expected_final) = quick(*given), native(*given)
            assert_close(y, expected)
            for part, other in zip(final, expected_final, strict=True):
                assert_close(part, other)
    assert len(ran) == 6


def test_what_onednn_is_not_asked_for(ran: list) -> None:
    quick = FastLSTM(5, 7, batch_first=True, loop="tensors").freeze()
    x = torch.randn(3, 11, 5)
    assert quick.plan(3, 11, lengths=True).implementation == "native"
    with torch.no_grad():
        output = quick(x, None, torch.tensor([11, 3, 0]))[0]
        assert not output[1, 3:].any()
    quick(x)[0].sum().backward()
    assert quick.weight_hh_l0.grad.any()
    wide = FastLSTM(5, 7, loop="tensors").double().freeze()
    assert wide.plan(3, 11).implementation == "native"
    assert not ran


def test_without_the_operators_it_runs_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multirnn_torch.reverse.refuses", lambda: "no oneDNN")
    quick = FastLSTM(5, 7, loop="tensors").freeze()
    assert quick.plan(3, 11).implementation == "native"


def test_the_operators_are_looked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._C, "_jit_get_schemas_for_operator", lambda name: [])
    refuses.cache_clear()
    assert refuses()
    monkeypatch.undo()
    refuses.cache_clear()
