"""PyTorch's layers made fast: the same function through either loop, there, back and back again, in the hands of PyTorch."""

import copy
import io
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import multirnn as mr
from multirnn import kernel
from multirnn.compare import draw_call
from multirnn.implementation import with_implementation
from multirnn.testing import cases

torch = pytest.importorskip("torch")

from multirnn_torch import BACKEND, facts, fast  # noqa: E402
from multirnn_torch import kernel as loop_by_kernel  # noqa: E402
from multirnn_torch.fast import LOOPS, FastGRU, FastLSTM, FastRNN  # noqa: E402
from torch.nn.utils import prune  # noqa: E402

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
    skip = pytest.mark.skipif(name == "kernel" and kernel.missing() is not None, reason=str(kernel.missing()))
    return pytest.param(name, marks=skip)


@pytest.fixture(params=[there(name) for name in LOOPS])
def loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each loop, for shapes too of which the framework's own layer is known to be as fast."""
    monkeypatch.setattr(fast, "slower", lambda *_: None)
    return request.param


@pytest.fixture
def ran(loop: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a loop was asked for, in order: "forward" and "backward"."""
    calls: list[str] = []
    for direction in ("forward", "backward"):
        original = getattr(LOOPS[loop], direction)

        def watched(*args, original=original, direction=direction, **kwargs):
            calls.append(direction)
            return original(*args, **kwargs)

        monkeypatch.setattr(LOOPS[loop], direction, watched)
    return calls


def pair(cell: str, loop: str, dtype=torch.float64, **kwargs):
    """A fast layer and PyTorch's own, of the same weights."""
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


# --- The same function -----------------------------------------------------------------------------------------------


class Through:
    """The fast backend, with the loop chosen."""

    def __init__(self, loop: str) -> None:
        self.name, self.differentiable, self.loop = f"torch fast by {loop}", True, loop
        self.refuses, self.read, self.versions = FAST.refuses, FAST.read, FAST.versions

    def build(self, weights: mr.Weights, *, device: str | None = None):
        layer = FAST.build(weights, device=device)
        layer.native.loop = self.loop
        return layer


@pytest.mark.parametrize("check", [pytest.param(check, id=name) for name, check in cases()])
def test_conformance(check, loop: str) -> None:
    check(Through(loop))


def test_conformance_of_what_is_chosen() -> None:
    for _, check in cases()[::9]:
        check(FAST)


@pytest.mark.parametrize("bias", ["none", "single", "double"])
@pytest.mark.parametrize("cell", ["simple_rnn", "lstm", "gru"])
def test_every_form_runs_through_the_loop(cell: str, bias: str, loop: str, ran: list[str]) -> None:
    layer = Through(loop).build(mr.initialise(mr.RecurrentSpec(cell, 5, 11, bias=bias), seed=3))
    x, state, _ = draw_call(layer.spec)
    layer(x, state)
    layer.vjp(x, state, cotangent=layer(x, state))
    assert ran == ["forward", "forward", "forward", "backward"]
    assert sum(p.numel() for p in layer.native.parameters()) == layer.parameter_count == layer.spec.parameter_count


@pytest.mark.parametrize("given", [False, True], ids=["zero state", "state"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch first"])
@pytest.mark.parametrize(
    "stack", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}], ids=["one", "stack", "no bias"]
)
@every_cell
def test_gradients_are_those_of_pytorch(cell: str, stack: dict, batch_first: bool, given: bool, loop: str, ran) -> None:
    quick, native = pair(cell, loop, batch_first=batch_first, **stack)
    x = drawn_x() if batch_first else drawn(TIME, BATCH, INPUT)
    passes = 4 if "bidirectional" in stack else 1
    hx = tuple(drawn(passes, BATCH, HIDDEN, seed=seed) for seed in (5, 6)[: 1 + (cell == "lstm")])
    hx = None if not given else hx if cell == "lstm" else hx[0]
    assert_all_close(pulled(quick, x, hx), pulled(native, x, hx))
    assert ran == ["forward", "backward"]
    with torch.no_grad():
        assert_close(quick(x, hx)[0], native(x, hx)[0])
        assert quick(x, hx)[0].stride() == quick(x, hx)[0].contiguous().stride()


@every_cell
def test_unbatched_and_strided(cell: str, loop: str, ran: list[str]) -> None:
    quick, native = pair(cell, loop)
    assert_all_close(pulled(quick, drawn(TIME, INPUT)), pulled(native, drawn(TIME, INPUT)))
    for x in (
        drawn(BATCH, TIME, INPUT).transpose(0, 1),
        drawn(TIME, BATCH, 2 * INPUT)[..., ::2],
        drawn(TIME, 1, INPUT).expand(TIME, BATCH, INPUT),
        torch.view_as_complex(drawn(TIME, BATCH, INPUT, 2)).conj().imag,
    ):
        assert_all_close(pulled(quick, x), pulled(native, x))
    assert len(ran) == 2 * 4  # the last is negated when it is read, and left to PyTorch


@every_cell
def test_what_is_not_asked_for(cell: str, loop: str) -> None:
    """Gradients of some outputs, to some inputs."""
    quick, native = pair(cell, loop, **STACK)
    for module in (quick, native):
        module.weight_ih_l0.requires_grad_(False)
        module.bias_hh_l1_reverse.requires_grad_(False)
    x = drawn_x().detach()
    for choose in (lambda y, final: y.sum(), lambda y, final: parts(final)[-1].square().sum()):
        for module in (quick, native):
            module.zero_grad()
            choose(*module(x)).backward()
        for (name, one), (_, other) in zip(quick.named_parameters(), native.named_parameters(), strict=True):
            assert (one.grad is None) == (other.grad is None), name
            if other.grad is not None and other.grad.any():
                assert_close(one.grad, other.grad)


@every_cell
def test_packed(cell: str, loop: str, ran: list[str]) -> None:
    quick, native = pair(cell, loop, **STACK)
    x = drawn_x()
    hx = tuple(drawn(4, BATCH, HIDDEN, seed=seed) for seed in (5, 6))
    found = []
    for module in (quick, native):
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor([4, 11, 7]), True, enforce_sorted=False)
        y, final = module(packed, hx if cell == "lstm" else hx[0])
        assert torch.equal(y.batch_sizes, packed.batch_sizes)
        padded, lengths = torch.nn.utils.rnn.pad_packed_sequence(y, batch_first=True)
        assert lengths.tolist() == [4, 11, 7]
        outputs = [padded, *parts(final)]
        leaves = [x, *hx[: 1 + (cell == "lstm")], *module.parameters()]
        loss = sum(output.square().sum() for output in outputs)
        gradients = torch.autograd.grad(loss, leaves, create_graph=True)
        found.append([*outputs, *gradients, *torch.autograd.grad(gradients[0].square().sum(), leaves)])
    assert_all_close(*found)
    assert bool(ran) == (loop == "kernel")


@pytest.mark.parametrize("sizes", [[3, 2, 2], [2, 3, 1], [3, 3, 0], [3, 2]])
def test_packed_rows_that_do_not_add_up_are_left_to_pytorch(sizes: list[int]) -> None:
    """Their memory would be read beyond its end."""
    quick, native = pair("gru", "kernel")
    packed = torch.nn.utils.rnn.PackedSequence(drawn(6, INPUT), torch.tensor(sizes))
    results = []
    for module in (quick, native):
        try:
            results.append(module(packed)[0].data.shape)
        except RuntimeError as error:
            results.append(str(error))
    assert results[0] == results[1]


@every_cell
@pytest.mark.parametrize("batch_first", [False, True])
def test_lengths(cell: str, batch_first: bool, loop: str) -> None:
    quick, _ = pair(cell, loop, batch_first=batch_first)
    x = drawn_x()
    y, final = quick(x if batch_first else x.transpose(0, 1), None, torch.tensor([4, 0, 11]))
    alone, state = quick(x[:1, :4] if batch_first else x[:1, :4].transpose(0, 1))
    rows = y if batch_first else y.transpose(0, 1)
    assert_close(rows[:1, :4], alone if batch_first else alone.transpose(0, 1))
    assert_close(parts(final)[0][:, :1], parts(state)[0])
    assert not rows[0, 4:].any()
    assert not rows[1].any()
    for wrong in ([4, 0, 12], [4, -1, 3], [4, 3]):
        with pytest.raises(mr.InvalidCall, match="lengths"):
            quick(x if batch_first else x.transpose(0, 1), None, torch.tensor(wrong))


@every_cell
def test_says_what_is_wrong_as_pytorch_does(cell: str, loop: str) -> None:
    quick, native = pair(cell, loop, **STACK)
    x = drawn_x()
    for arguments in (
        (x.float(),), (x[..., :2],), (x[:, :0],), (x[:0],), (x[0, 0],), (x, drawn(1, 1, 1)), (x[0], drawn(4, BATCH, HIDDEN)),
    ):  # fmt: skip
        said = []
        for module in (quick, native):
            try:
                said.append(module(*arguments)[0].shape)
            except Exception as error:  # noqa: BLE001  # whatever it is, it has to be the same
                said.append((type(error), str(error)))
        assert said[0] == said[1]
    quick.weight_hh_l0.data = quick.weight_hh_l0.data[:3]
    with pytest.raises(RuntimeError):
        quick(x)


# --- Back again ------------------------------------------------------------------------------------------------------


@every_cell
def test_second_derivatives(cell: str, loop: str, ran: list[str]) -> None:
    quick, _ = pair(cell, loop, batch_first=True)
    x, h = drawn(2, 3, INPUT), [drawn(1, 2, HIDDEN, seed=seed) for seed in (5, 6)[: 1 + (cell == "lstm")]]
    names = [name for name, _ in quick.named_parameters()]

    def run(x, *others):
        hx, weights = others[: len(h)], others[len(h) :]
        y, final = torch.func.functional_call(
            quick, dict(zip(names, weights, strict=True)), (x, tuple(hx) if len(hx) == 2 else hx[0])
        )
        return (y, *parts(final))

    inputs = (x, *h, *(parameter.detach().clone().requires_grad_() for parameter in quick.parameters()))
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)
    assert set(ran) == {"forward", "backward"}


@every_cell
def test_a_weight_that_depends_on_the_input(cell: str, loop: str) -> None:
    """Each path of the gradient is followed once."""
    found = []
    for module in pair(cell, loop, **STACK):
        x = drawn_x()
        weights = {name: parameter * (1 + x.mean()) for name, parameter in module.named_parameters()}
        (first,) = torch.autograd.grad(
            torch.func.functional_call(module, weights, (x,))[0].square().sum(), x, create_graph=True
        )
        found.append([first, *torch.autograd.grad(first.square().sum(), [x, *module.parameters()])])
    assert_all_close(*found)


@every_cell
def test_the_output_may_be_written_over(cell: str, loop: str) -> None:
    found = []
    for module in pair(cell, loop, **STACK):
        x = drawn_x()
        y = module(x)[0].relu_()
        found.append([y, *torch.autograd.grad(y.sum(), [x, *module.parameters()])])
    assert_all_close(*found)


@every_cell
def test_back_twice(cell: str, loop: str) -> None:
    quick, _ = pair(cell, loop, **STACK)
    x = drawn_x()
    loss = quick(x)[0].square().sum()
    once = torch.autograd.grad(loss, [x, *quick.parameters()], retain_graph=True)
    assert all(
        torch.equal(a, b) for a, b in zip(once, torch.autograd.grad(loss, [x, *quick.parameters()]), strict=True)
    )


def test_a_weight_changed_in_between_is_an_error(loop: str) -> None:
    quick, _ = pair("gru", loop)
    loss = quick(drawn(TIME, BATCH, INPUT))[0].sum()
    with torch.no_grad():
        quick.weight_hh_l0.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@every_cell
def test_checkpointed(cell: str, loop: str) -> None:
    found = []
    for module in pair(cell, loop, **STACK):
        x = drawn_x()
        y = torch.utils.checkpoint.checkpoint(lambda x, m=module: m(x)[0], x, use_reentrant=False)
        found.append([y, *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])])
    assert_all_close(*found)


# --- Transformed, traced, intercepted --------------------------------------------------------------------------------


def by_func(module, x):
    weights = {name: parameter.detach() for name, parameter in module.named_parameters()}

    def loss(weights, x):
        return torch.func.functional_call(module, weights, (x,))[0].square().sum()

    return torch.func.grad(loss)(weights, x.detach()).values()


def by_jacrev(module, x):
    return [torch.func.jacrev(lambda x: module(x)[0].sum((0, 1)))(x.detach())]


def by_jvp(module, x):
    return torch.func.jvp(lambda x: module(x)[0], (x.detach(),), (drawn_x(seed=9).detach(),))


def by_dual(module, x):
    with torch.autograd.forward_ad.dual_level():
        y = module(torch.autograd.forward_ad.make_dual(x.detach(), drawn_x(seed=9).detach()))[0]
        return torch.autograd.forward_ad.unpack_dual(y)


def by_batched_gradients(module, x):
    return [torch.autograd.functional.jacobian(lambda x: module(x)[0].sum((0, 1)), x, vectorize=True)]


def by_autocast(module, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return [copy.deepcopy(module).float()(x.float())[0].float()]


def by_export(module, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [torch.export.export(module, (x.detach(),)).module()(x)[0]]


def by_trace(module, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [torch.jit.trace(module, (x.detach(),), check_trace=False)(x)[0]]


def by_bfloat16(module, x):
    return [copy.deepcopy(module).bfloat16()(x.bfloat16())[0].float()]


def by_fake(module, x):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        return [np.array(module(mode.from_tensor(x.detach()))[0].shape, float)]


NATIVE_WAYS = [by_jvp, by_dual, by_autocast, by_export, by_trace, by_bfloat16, by_fake]


@pytest.mark.parametrize("way", [*NATIVE_WAYS, by_func, by_jacrev, by_batched_gradients], ids=lambda way: way.__name__)
@every_cell
def test_under_what_pytorch_does_with_functions(cell: str, way: Callable, loop: str, ran: list[str]) -> None:
    """Where PyTorch has to see operations of its own, the layer is PyTorch's own."""
    if way is by_jvp and cell == "lstm":
        pytest.skip("PyTorch's own has no forward derivative of an LSTM")
    quick, native = pair(cell, loop, **STACK)
    x = drawn_x()
    try:
        expected = list(way(native, x))
    except (NotImplementedError, RuntimeError) as error:
        with pytest.raises(type(error)):
            way(quick, x)
        return
    for one, other in zip(way(quick, x), expected, strict=True):
        assert_close(one, other)
    if way in NATIVE_WAYS:
        assert not ran


# Traced, PyTorch's own LSTM fails too: aot_autograd asserts that what it saves for the way back are tensors.
@pytest.mark.parametrize(
    ("cell", "allow_rnn"),
    [("simple_rnn", False), ("simple_rnn", True), ("lstm", False), ("gru", False), ("gru", True)],
)
def test_compiled(cell: str, allow_rnn: bool, loop: str, ran: list[str]) -> None:
    """By default torch.compile breaks its graph at a recurrent layer, which then is the fast one."""
    found = []
    for module in pair(cell, loop, **STACK):
        model = torch.nn.Sequential(torch.nn.Tanh(), module)
        x = drawn_x()[:, :3]
        torch.compiler.reset()
        with torch._dynamo.config.patch(allow_rnn=allow_rnn):
            y = torch.compile(model, backend="aot_eager")(x)[0]
            found.append([y, *torch.autograd.grad(y.square().sum(), list(module.parameters()))])
    assert_all_close(*found)
    assert ran == ([] if allow_rnn else ["forward", "backward"])


# --- Weights as they are now -----------------------------------------------------------------------------------------


def replaced(native) -> None:
    native.weight_hh_l0 = torch.nn.Parameter(native.weight_hh_l0.detach() * 2)


def moved(native) -> None:
    native.bias_ih_l0.data = native.bias_ih_l0.data * 3


def stepped(native) -> None:
    native.zero_grad()
    native(drawn_x(dtype=native.weight_hh_l0.dtype))[0].square().sum().backward()
    torch.optim.Adam(native.parameters(), lr=0.1).step()


CHANGES = {
    "in place": lambda native: native.weight_ih_l1.detach().mul_(2),
    "through data": lambda native: native.weight_hh_l0.data.mul_(2),
    "through NumPy": lambda native: native.weight_hh_l0_reverse.detach().numpy().__imul__(2),
    "a bias through data": lambda native: native.bias_hh_l1.data.add_(1),
    "moved": moved,
    "replaced": replaced,
    "a step": stepped,
    "state_dict": lambda native: native.load_state_dict({k: 2 * v for k, v in native.state_dict().items()}),
    "float": lambda native: native.float(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@every_cell
def test_weights_are_never_stale(cell: str, change: Callable, loop: str, ran: list[str]) -> None:
    quick, native = pair(cell, loop, **STACK)
    x = drawn_x()
    with torch.no_grad():
        before = quick(x)[0]
    change(quick)
    change(native)
    x = x.detach().to(quick.weight_hh_l0.dtype)
    with torch.no_grad():
        assert not torch.equal(quick(x)[0].double(), before)
    assert_all_close(pulled(quick, x), pulled(native, x))
    assert ran


@every_cell
def test_copies_stand_alone(cell: str, loop: str, ran: list[str]) -> None:
    quick, native = pair(cell, loop, **STACK)
    x = drawn_x()
    quick(x)[0].sum().backward()  # what a call leaves behind must not hinder the copy

    def saved(native):
        file = io.BytesIO()
        torch.save(native, file)
        file.seek(0)
        return torch.load(file, weights_only=False)

    for copied in (copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module)), saved):
        other = copied(quick)
        assert type(other) is type(quick)
        assert other.loop == loop
        assert torch.equal(other(x)[0], quick(x)[0])
        with torch.no_grad():
            other.weight_hh_l0.zero_()
        assert not torch.equal(other(x)[0], quick(x)[0])
        assert_close(quick(x)[0], native(x)[0])
    assert list(quick.state_dict()) == list(native.state_dict())


@every_cell
def test_tied_and_parametrised(cell: str, loop: str, ran: list[str]) -> None:
    quick, native = pair(cell, loop, **STACK)
    x = drawn_x()
    for module in (quick, native):
        torch.nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
        prune.random_unstructured(module, "weight_ih_l0", amount=0.0)
        module.weight_hh_l1 = module.weight_hh_l1_reverse
        module(x)[0].square().sum().backward()
    assert ran == ["forward", "backward"]
    for (name, one), (_, other) in zip(quick.named_parameters(), native.named_parameters(), strict=True):
        assert_close(one.grad, other.grad), name


def test_a_constant_in_the_place_of_a_bias(loop: str) -> None:
    layer = Through(loop).build(mr.initialise(mr.RecurrentSpec("lstm", 5, 11, bias="single"), seed=3))
    x, _, _ = draw_call(layer.spec)
    before = layer(x).sequence
    layer.native.bias_hh_l0.add_(1)
    assert not np.array_equal(layer(x).sequence, before)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes(mode, loop: str) -> None:
    quick, native = pair("lstm", loop, **STACK)
    with mode():
        y, (h, _) = quick(drawn_x())
        again, _ = quick(drawn_x(), (h, h))
        assert_close(again, native(drawn_x(), (h, h))[0])
    assert not y.requires_grad
    quick(drawn_x())[0].sum().backward()


def test_dropout_and_projections_are_those_of_pytorch(loop: str, ran: list[str]) -> None:
    quick, native = pair("gru", loop, dropout=0.5, **STACK)
    for module in (quick, native):
        torch.manual_seed(5)
        module.dropped = module(drawn_x())[0]
    assert torch.equal(quick.dropped, native.dropped)
    assert not ran
    assert "dropout=0.5" in quick.plan(BATCH, TIME).sentence
    assert quick.eval().plan(BATCH, TIME).implementation == "fast"
    assert_close(quick(drawn_x())[0], native.eval()(drawn_x())[0])
    assert ran == ["forward"]
    projecting = FastLSTM(INPUT, HIDDEN, proj_size=3, loop=loop)
    assert projecting(drawn(TIME, INPUT, dtype=torch.float32))[0].shape == (TIME, 3)
    assert "proj_size=3" in projecting.plan(BATCH, TIME).sentence


@every_cell
def test_training_goes_the_same_way(cell: str, loop: str) -> None:
    losses = []
    for module in pair(cell, loop, **STACK):
        optimiser = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
        course = []
        for _ in range(5):
            optimiser.zero_grad()
            loss = module(drawn_x().detach())[0].square().mean()
            loss.backward()
            optimiser.step()
            course.append(loss.item())
        losses.append(np.array(course))
    assert losses[0][-1] < losses[0][0]
    assert_close(*losses)


RANK = """
import sys
import numpy as np
import torch
from multirnn_torch import fast
from multirnn_torch.fast import FastGRU, FastLSTM, FastRNN

fast.slower = lambda *_: None
rank, folder, loop = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
arrays = {}
x = torch.randn(4, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
for kind in (FastRNN, FastLSTM, FastGRU):
    torch.manual_seed(1)
    layer = kind(5, 11, batch_first=True, dtype=torch.float64, loop=loop)
    wrapped = torch.nn.parallel.DistributedDataParallel(layer)
    output, _ = wrapped(x[rank::2])
    assert "Recurrence" in type(output.grad_fn).__name__, output.grad_fn
    output.square().sum().backward()
    arrays |= {f"{kind.__name__}/{name}": p.grad.numpy() for name, p in layer.named_parameters()}
if not rank:
    np.savez(f"{folder}/gradients.npz", **arrays)
torch.distributed.destroy_process_group()
"""


@pytest.mark.skipif(
    not (torch.distributed.is_available() and sys.platform == "linux"),
    reason="needs torch.distributed with gloo, and lo",
)
def test_trains_on_two_ranks(tmp_path: Path, loop: str) -> None:
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RANK]
    for attempt in range(2):  # the loopback can be slow to come up: once more
        folder = tmp_path / str(attempt)
        folder.mkdir()
        ranks = [
            subprocess.Popen(
                [*command, str(rank), str(folder), loop], env=environment, stderr=subprocess.PIPE, text=True
            )
            for rank in range(2)
        ]
        try:
            errors = [rank.communicate(timeout=120)[1] for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
        if not any(rank.returncode for rank in ranks):
            break
    assert not any(rank.returncode for rank in ranks), "\n".join(errors)
    x = torch.randn(4, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with np.load(folder / "gradients.npz") as found:
        for kind in (FastRNN, FastLSTM, FastGRU):
            torch.manual_seed(1)
            native = kind.__mro__[2](5, 11, batch_first=True, dtype=torch.float64)
            native(x)[0].square().sum().backward()
            for name, parameter in native.named_parameters():
                assert_close(2 * found[f"{kind.__name__}/{name}"], parameter.grad)  # DDP takes the mean of two


# --- What runs -------------------------------------------------------------------------------------------------------


def test_an_unknown_loop_is_refused() -> None:
    with pytest.raises(mr.InvalidCall, match=r"'kernel', 'tensors'.*not 'Kernel'"):
        FastRNN(INPUT, HIDDEN, loop="Kernel")


def test_without_the_kernel_tensors_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "missing", lambda: "no compiler")
    monkeypatch.setattr(fast, "slower", lambda *_: None)
    native = FastRNN(INPUT, HIDDEN)
    assert "PyTorch's operations" in native.plan(BATCH, TIME, gradients=True).sentence
    assert native(drawn(TIME, BATCH, INPUT, dtype=torch.float32))[0].shape == (TIME, BATCH, HIDDEN)


def test_a_plan_says_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = mr.build(mr.RecurrentSpec("lstm", 5, 11), FAST)
    monkeypatch.setattr(fast, "slower", lambda *_: "measured")
    plan = layer.plan(BATCH, TIME)
    assert plan.implementation == "native"
    assert plan.sentence == "torch.nn.LSTM itself: measured"
    y, _ = layer.native(drawn(BATCH, TIME, 5, dtype=torch.float32))
    assert "Recurrence" not in type(y.grad_fn).__name__
    monkeypatch.setattr(fast, "slower", lambda *_: None)
    assert layer.plan(BATCH, TIME).implementation == "fast"
    layer.native.bfloat16()
    assert "bfloat16" in layer.plan(BATCH, TIME).sentence


@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch has no CUDA device here")
@every_cell
def test_on_cuda_it_is_cudnn(cell: str, loop: str, ran: list[str]) -> None:
    quick, native = pair(cell, loop, **STACK)
    x = drawn_x().cuda()
    assert_all_close([t.cpu() for t in pulled(quick.cuda(), x)], [t.cpu() for t in pulled(native.cuda(), x)])
    assert not ran
    assert "cuda" in quick.plan(BATCH, TIME).sentence


def test_the_threads_of_pytorch_are_sent_home_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        monkeypatch.setattr(loop_by_kernel, "LARGE", 0)
        pauses: list[int] = []
        pause = loop_by_kernel._pause()
        if pause is None:
            pytest.skip("the OpenMP of this PyTorch has no omp_pause_resource_all")
        monkeypatch.setattr(loop_by_kernel, "_pause", lambda: lambda kind: pauses.append(pause(kind)))
        weights = mr.initialise(mr.RecurrentSpec("lstm", 5, 11, bias="double"), seed=3)
        layer, large = mr.build(weights, "torch", implementation="fast"), torch.ones(1_000_000)
        x = np.random.default_rng(0).standard_normal((3, 7, 5)).astype("float32")
        wanted = mr.build(weights.astype("float64"), "numpy")(x.astype("float64"))
        for _ in range(3):
            output = layer(x)
            assert mr.difference(output.sequence, wanted.sequence).normwise <= mr.tolerance("float32")
            assert float((large + 1).sum()) == 2_000_000
        assert pauses == [0, 0, 0]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_where_the_kernel_is_known_to_be_faster() -> None:
    """Few steps of all rows, where the weights are not packed, or enough of them to win the packing back."""
    large, small = mr.RecurrentSpec("gru", 512, 512), mr.RecurrentSpec("gru", 64, 64)

    def known(spec: mr.RecurrentSpec, batch: int, time: int) -> bool:
        return facts.slower("kernel", spec, batch, time, gradients=False) is None

    assert known(large, 1, 1)
    assert known(large, 8, 1)
    assert known(large, 1, 40)
    assert not known(large, 9, 1)
    assert known(large, 9, 2)
    assert all(known(small, batch, time) for batch in (1, 128) for time in (1, 40))
    assert known(mr.RecurrentSpec("lstm", 512, 512), 128, 1)
    reason = facts.slower("kernel", large, 128, 1, gradients=False)
    assert reason is not None
    assert "from 2 steps on, or up to 8 steps of all rows" in reason
