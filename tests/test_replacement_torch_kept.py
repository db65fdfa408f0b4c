"""`replace_layers` on PyTorch modules: what is kept and why, and wrappers and conversions of a replaced model."""

import warnings
from collections.abc import Callable

import pytest

import multirnn as mr

torch = pytest.importorskip("torch")

from multirnn_torch.fast import FastGRU, FastLSTM  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations  # noqa: E402
from torch_fast_pairs import assert_all_close, assert_close, drawn, each_loop, one_thread, what_ran  # noqa: E402
from torch_tagger import TOKENS, Tagger, kinds  # noqa: E402

__all__ = ["each_loop", "one_thread", "what_ran"]  # the fixtures


# --- What is kept ----------------------------------------------------------------------------------------------------


class OwnForward(nn.LSTM):
    def forward(self, input, hx=None):
        return super().forward(input + 1, hx)


class OwnInput(nn.GRU):
    def check_input(self, input, batch_sizes) -> None:
        pass

    def helper(self) -> None:
        pass


class OwnName(nn.LSTM):
    pass


def patched(layer: nn.Module, name: str) -> nn.Module:
    setattr(layer, name, getattr(layer, name))
    return layer


def quantised() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.LSTM(5, 7)), {nn.LSTM})[0]


def prepared() -> nn.Module:
    layer = nn.LSTM(5, 7)
    layer.qconfig = torch.ao.quantization.default_dynamic_qconfig
    return layer


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(nn.GRU(5, 7))


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "projection": (lambda: nn.LSTM(5, 7, proj_size=3), "it projects its state (proj_size=3), which no fast layer does"),
    "forward": (lambda: OwnForward(5, 7), "its class overrides forward of LSTM"),
    "method": (lambda: OwnInput(5, 7), "its class overrides check_input of GRU"),
    "subclass": (
        lambda: OwnName(5, 7), "its class derives from LSTM, and the code of a subclass may rely on that",
    ),
    "instance": (lambda: patched(nn.RNN(5, 7), "forward"), "this object has its own forward in place of its class's"),
    "check": (
        lambda: patched(nn.RNN(5, 7), "check_input"), "this object has its own check_input in place of its class's",
    ),
    "parametrized": (
        lambda: parametrizations.weight_norm(OwnForward(5, 7), "weight_hh_l0"), "its class overrides forward of LSTM",
    ),
    "float16": (lambda: nn.LSTM(5, 7).half(), "its weights are of float16; layers of float32 and float64 are made fast"),
    "meta": (lambda: nn.LSTM(5, 7, device="meta"), "it is on 'meta'; layers are made fast on the CPU"),
    "cell": (
        lambda: nn.LSTMCell(5, 7),
        "a cell runs one step a call, in a loop of the model's own; a layer over the whole sequence is made fast",
    ),
    "quantised": (quantised, "torch.ao.quantization made it, and only layers in floating point are made fast"),
    "quantisable": (
        lambda: torch.ao.nn.quantizable.LSTM(5, 7),
        "torch.ao.quantization made it, and only layers in floating point are made fast",
    ),
    "prepared": (
        prepared, "it is prepared for quantisation (its qconfig is set), and a fast layer stays in floating point",
    ),
    "scripted": (scripted, "torch.jit has compiled it; replace layers first, then trace the model"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_kept_is_reported_with_the_reason_and_untouched(what: str) -> None:
    made, reason = REFUSED[what]
    odd = made()
    name = getattr(odd, "original_name", type(odd).__name__)
    model = nn.ModuleDict({"first": nn.GRU(5, 7), "odd": odd})
    kind, attributes = type(odd), dict(vars(odd))
    replacement = mr.replace_layers(model)
    assert replacement.kept == (("odd", name, reason),)
    assert [layer.path for layer in replacement.replaced] == ["first"]
    assert type(odd) is kind
    assert all(vars(odd)[name] is value for name, value in attributes.items())
    with pytest.raises(mr.InvalidCall) as error:
        mr.replace_layers(nn.Sequential(nn.Linear(2, 2), odd))
    assert str(error.value) == f"no recurrent layer of this Sequential can be replaced: 1 ({name}): {reason}"
    assert mr.replace_layers(nn.Sequential(odd), "native").kept == (("0", name, "it is not a fast layer"),)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_layer_on_a_gpu() -> None:
    layer = nn.LSTM(5, 7).cuda()
    with pytest.raises(mr.InvalidCall, match="it is on 'cuda'; layers are made fast on the CPU"):
        mr.replace_layers(layer)
    expected = layer(drawn(2, 3, 5).float().cuda())[0]
    replacement = mr.replace_layers(layer.cpu())
    assert torch.equal(layer.cuda()(drawn(2, 3, 5).float().cuda())[0], expected)
    replacement.restore()
    assert torch.equal(layer(drawn(2, 3, 5).float().cuda())[0], expected)


def test_a_layer_inside_a_layer_that_is_kept() -> None:
    class Outer(nn.LSTM):
        def __init__(self) -> None:
            super().__init__(5, 7)
            self.inner = nn.GRU(7, 7)

    replacement = mr.replace_layers(Outer())
    assert [layer.path for layer in replacement.kept] == [""]
    assert replacement.replaced == (("inner", "GRU", "FastGRU"),)


def test_a_replaced_flatten_parameters_is_no_obstacle() -> None:
    """Many models turn it off, to be scripted or shared between threads."""
    layer = nn.LSTM(5, 7)
    layer.flatten_parameters = lambda: None
    mr.replace_layers(layer)
    assert type(layer) is FastLSTM
    assert "flatten_parameters" in vars(layer)


def test_a_forward_that_was_replaced_in_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.LSTM, "forward", OwnForward.forward)
    with pytest.raises(mr.InvalidCall, match=r"the forward of LSTM is not PyTorch's$"):
        mr.replace_layers(nn.LSTM(5, 7))


def test_no_recurrent_layer() -> None:
    for implementation in ("fast", "native"):
        with pytest.raises(mr.InvalidCall, match=r"^this Sequential has no recurrent layer to replace$"):
            mr.replace_layers(nn.Sequential(nn.Linear(2, 2)), implementation)
    with pytest.raises(mr.InvalidCall, match=r"^layers are replaced inside a torch\.nn\.Module, not inside a Tensor$"):
        mr.replace_layers(torch.zeros(3))


def test_twice_and_what_was_fast_before() -> None:
    model = nn.ModuleDict({"ours": FastLSTM(5, 7), "theirs": nn.LSTM(5, 7)})
    first = mr.replace_layers(model)
    assert first.kept == (("ours", "FastLSTM", "it is fast already"),)
    second = mr.replace_layers(model)
    assert not second.replaced
    assert [layer.reason for layer in second.kept] == ["it is fast already"] * 2
    second.restore()
    assert kinds(model) == [FastLSTM, FastLSTM]
    first.restore()
    assert kinds(model) == [FastLSTM, nn.LSTM]
    mr.replace_layers(model, "native")
    assert kinds(model) == [nn.LSTM, nn.LSTM]


def test_layers_that_are_made_at_the_first_call() -> None:
    class Lazy(nn.Module):
        def forward(self, x):
            if not hasattr(self, "rnn"):
                self.rnn = nn.GRU(x.shape[-1], 7, dtype=x.dtype)
            return self.rnn(x)[0]

    model = nn.ModuleDict({"encoder": nn.LSTM(5, 7), "lazy": Lazy(), "linear": nn.LazyLinear(3)})
    assert [layer.path for layer in mr.replace_layers(model).replaced] == ["encoder"]
    model["lazy"](drawn(2, 3, 5))
    assert [layer.path for layer in mr.replace_layers(model).replaced] == ["lazy.rnn"]


class Derived(FastLSTM):
    pass


def test_a_class_that_derives_from_a_fast_one_stays() -> None:
    layer = Derived(5, 7)
    assert mr.replace_layers(layer).kept[0].reason == "it is fast already"
    with pytest.raises(mr.InvalidCall, match=r"its class derives from a fast layer, and PyTorch has none like it$"):
        mr.replace_layers(layer, "native")


def test_a_class_that_changed_meanwhile_is_not_put_back() -> None:
    model = nn.ModuleList([nn.LSTM(5, 7), nn.LSTM(5, 7)])
    replacement = mr.replace_layers(model)
    model[1].__class__ = Derived
    with pytest.raises(mr.InvalidCall, match=r"^1 is now a Derived, which has no LSTM to go back to; undo first what"):
        replacement.restore()
    assert kinds(model) == [FastLSTM, Derived]
    model[1].__class__ = FastLSTM
    replacement.restore()
    assert kinds(model) == [nn.LSTM, nn.LSTM]


# --- Wrappers and conversions ----------------------------------------------------------------------------------------


def test_under_torch_compile(loop, ran) -> None:
    """The same compiled object runs the fast layer, then PyTorch's again."""
    model = nn.Sequential(nn.Linear(5, 5, dtype=torch.float64), nn.GRU(5, 7, dtype=torch.float64))
    compiled = torch.compile(model, backend="eager")
    x = drawn(4, 3, 5)
    expected = compiled(x)[0]
    replacement = mr.replace_layers(compiled)
    assert [layer.path for layer in replacement.replaced] == ["_orig_mod.1"]
    model[1].loop = loop
    assert_close(compiled(x)[0], expected)
    assert_close(model(x)[0], expected)
    assert "forward" in ran
    replacement.restore()
    assert torch.equal(compiled(x)[0], expected)
    torch.compiler.reset()


def test_under_a_compile_in_place() -> None:
    model = Tagger()
    model.compile(backend="eager")
    expected = model(TOKENS)
    replacement = mr.replace_layers(model)
    assert_close(model(TOKENS), expected)
    replacement.restore()
    assert torch.equal(model(TOKENS), expected)
    torch.compiler.reset()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_under_data_parallel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    model, stock = Tagger(), Tagger()
    stock(TOKENS).square().sum().backward()
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        replacement = mr.replace_layers(wrapped)
        assert [layer.path for layer in replacement.replaced] == ["module.encoder", "module.decoder"]
        wrapped(TOKENS).square().sum().backward()
        assert_all_close([p.grad for p in model.parameters()], [p.grad for p in stock.parameters()])
        replacement.restore()
        model.zero_grad()
        wrapped(TOKENS).square().sum().backward()
        assert_all_close([p.grad for p in model.parameters()], [p.grad for p in stock.parameters()])
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:torch.ao.quantization leaves a FastGRU:UserWarning")
def test_quantising_warns_and_after_restoring_it_quantises() -> None:
    model = Tagger(dtype=torch.float32)
    replacement = mr.replace_layers(model)
    with pytest.warns(
        UserWarning, match=r"leaves a FastLSTM in floating point; to quantise it, put a torch\.nn\.LSTM in "
    ):
        half = torch.ao.quantization.quantize_dynamic(model, {nn.LSTM, nn.Linear})
    assert kinds(half) == [FastLSTM, FastGRU]
    assert "qconfig" not in vars(model.encoder)
    with pytest.raises(
        mr.InvalidCall, match=r"cannot quantise a FastLSTM; .* by multirnn\.replace_layers\(model, 'native'\)"
    ):
        torch.ao.quantization.quantize_dynamic(model, {FastLSTM})
    replacement.restore()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="torch.ao.quantization leaves")
        whole = torch.ao.quantization.quantize_dynamic(model, {nn.LSTM, nn.GRU})
    quantised_kinds = torch.ao.nn.quantized.dynamic.LSTM, torch.ao.nn.quantized.dynamic.GRU
    assert (type(whole.encoder), type(whole.decoder)) == quantised_kinds
    assert whole(TOKENS).shape == (3, 8, 11)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_tracers() -> None:
    model = Tagger()
    expected = model(TOKENS)
    replacement = mr.replace_layers(model)
    with pytest.raises(mr.InvalidCall, match=r"put a torch\.nn\.LSTM in its place first, by multirnn\.replace_layers"):
        torch.jit.script(model)
    with pytest.raises(mr.InvalidCall, match=r"put a torch\.nn\.LSTM in its place first, by multirnn\.replace_layers"):
        torch.fx.symbolic_trace(model)
    traced = torch.jit.trace(model, (TOKENS,), check_trace=False)
    assert_close(traced(TOKENS), expected)
    assert [layer.kind for layer in mr.replace_layers(traced, "native").kept] == ["FastLSTM", "FastGRU", "FastGRU"]
    replacement.restore()
    graph = torch.fx.symbolic_trace(model)  # PyTorch's layers are nodes of the graph, and their modules stay
    mr.replace_layers(graph)
    assert kinds(graph) == [FastLSTM, FastGRU]
    assert_close(graph(TOKENS), expected)
    with pytest.raises(mr.InvalidCall, match=r"torch.jit has compiled it; replace layers first"):
        mr.replace_layers(torch.jit.script(Tagger()))
