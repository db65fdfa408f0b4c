"""PyTorch's layers of ours as citizens: weights that are replaced or computed, copies, and what converts whole models."""

import copy
import io
import pickle
import warnings

import pytest

import multirnn as mr

torch = pytest.importorskip("torch")

from multirnn_torch import CandidateBiasGRU  # noqa: E402
from multirnn_torch.fast import FastCandidateBiasGRU, FastGRU, FastLSTM, FastRNN  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations, parametrize, prune  # noqa: E402
from torch_fast_pairs import assert_all_close, assert_close, drawn, every_shape_is_fast, one_thread, parts  # noqa: E402, F401

OWN = {
    FastRNN: nn.RNN,
    FastLSTM: nn.LSTM,
    FastGRU: nn.GRU,
    CandidateBiasGRU: nn.GRU,
    FastCandidateBiasGRU: nn.GRU,
}
every_kind = pytest.mark.parametrize("kind", OWN, ids=lambda kind: kind.__name__)
SHAPE = {"input_size": 5, "hidden_size": 7, "num_layers": 2, "batch_first": True, "dtype": torch.float64}
BATCH, TIME = 3, 4


@pytest.fixture(autouse=True)
def always_fast(monkeypatch) -> None:
    monkeypatch.setattr("multirnn_torch.facts.refuses", every_shape_is_fast)


def pair(kind):
    """A layer of ours, and PyTorch's own that computes the same."""
    torch.manual_seed(1)
    ours, own = kind(**SHAPE), OWN[kind](**SHAPE)
    with torch.no_grad():
        for name, weight in own.named_parameters():
            twin = ours.get_parameter(name if name in ours._parameters else name.replace("bias_hh", "bias_hn"))
            if twin.shape != weight.shape:
                weight[: -len(twin)] = 0
                twin.copy_(weight[-len(twin) :])
            else:
                twin.copy_(weight)
    return ours, own


def x(seed: int = 2):
    return drawn(BATCH, TIME, 5, seed=seed)


def pulled(module, hx=None):
    """Outputs, and the gradients of all parameters that PyTorch's own has too."""
    y, final = module(x(), hx)
    outputs = [y, *parts(final)]
    module.zero_grad()
    sum(output.square().sum() for output in outputs).backward()
    compared = [p for name, p in module.named_parameters() if not name.startswith("bias_h")]
    return [*outputs, *(torch.zeros_like(p) if p.grad is None else p.grad for p in compared)]


def one_step(module) -> None:
    module.zero_grad()
    module(x(4))[0].square().sum().backward()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.grad is not None and not name.startswith("bias_h"):  # of those ours has fewer
                parameter -= 0.1 * parameter.grad


# --- Weights -------------------------------------------------------------------------------------------------------


class Scaled(nn.Module):
    def forward(self, weight):
        return 1.5 * weight


def in_the_list(module) -> None:
    module._flat_weights[1] = module._flat_weights[1].detach() * 2


def another_list(module) -> None:
    module._flat_weights = [weight * 2 for weight in module._flat_weights]


def weight_drop(module) -> None:
    """As fastai and others write it: the raw weight is the parameter, and a dropped copy is put in its place."""
    raw = module.weight_hh_l1
    del module._parameters["weight_hh_l1"]
    module.register_parameter("weight_hh_l1_raw", nn.Parameter(raw.detach()))
    mask = torch.arange(raw.numel()).reshape(raw.shape) % 3 > 0
    module.weight_hh_l1 = module.weight_hh_l1_raw * mask


WAYS = {
    "in the list": in_the_list,
    "another list": another_list,
    "weight drop": weight_drop,
    "weight_norm": lambda module: nn.utils.weight_norm(module, "weight_hh_l0"),
    "spectral_norm": lambda module: nn.utils.spectral_norm(module, "weight_hh_l1"),
    "parametrizations.weight_norm": lambda module: parametrizations.weight_norm(module, "weight_ih_l1"),
    "parametrizations.spectral_norm": lambda module: parametrizations.spectral_norm(module, "weight_hh_l1"),
    "parametrizations.orthogonal": lambda module: parametrizations.orthogonal(module, "weight_ih_l0"),
    "a parametrization of two": lambda module: [
        parametrize.register_parametrization(module, name, Scaled()) for name in ("weight_ih_l0", "weight_hh_l1")
    ],
    "a parametrized bias": lambda module: parametrize.register_parametrization(module, "bias_ih_l1", Scaled()),
    "prune": lambda module: prune.l1_unstructured(module, "weight_hh_l0", amount=0.4),
    "prune, made permanent": lambda module: [
        prune.l1_unstructured(module, "weight_hh_l0", amount=0.4),
        prune.remove(module, "weight_hh_l0"),
    ],
    "tied": lambda module: setattr(module, "weight_hh_l1", module.weight_hh_l0),
    "deleted and set": lambda module: [
        delattr(module, "weight_hh_l0"),
        setattr(module, "weight_hh_l0", nn.Parameter(module.weight_hh_l1.detach().flip(0))),
    ],
}


@pytest.mark.filterwarnings("ignore:.*is deprecated in favor of:FutureWarning")
@pytest.mark.parametrize("way", WAYS)
@every_kind
def test_weights_are_replaced_as_in_pytorchs_own(kind, way: str) -> None:
    """Forward and backward, in training and evaluation, before and after a step, packed and with a state."""
    modules = pair(kind)
    for module in modules:
        torch.manual_seed(3)
        WAYS[way](module)
    stale = way in ("weight drop", "another list")  # what was put there hangs on one graph, and on old weights
    for _ in range(1 if stale else 3):
        assert_all_close(*(pulled(module) for module in modules))
        if not stale:
            for module in modules:
                one_step(module)
    for module in modules:
        module.eval()
    with torch.no_grad():
        assert_close(*(module(x())[0] for module in modules))
        hx = [drawn(2, BATCH, 7, seed=seed).detach() for seed in (5, 6)]
        packed = nn.utils.rnn.pack_padded_sequence(x(), torch.tensor([4, 2, 1]), batch_first=True)
        given = tuple(hx) if kind is FastLSTM else hx[0]
        assert_close(*(module(packed, given)[0].data for module in modules))
        assert_close(*(module(x()[0])[0] for module in modules))


@pytest.mark.parametrize("kind", [FastLSTM, FastGRU, FastRNN], ids=lambda kind: kind.__name__)
def test_one_result_on_every_path(kind) -> None:
    """Fast or native, ragged or full, traced or not: by the same list of weights."""
    quick, native = pair(kind)
    for module in (quick, native):
        another_list(module)
    expected = native(x())[0]
    assert_close(quick(x())[0], expected)
    assert_close(quick(x(), None, torch.tensor([TIME] * BATCH))[0], expected)
    assert_close(quick(x().float().double(), None)[0], native(x().float().double())[0])
    quick.dropout = native.dropout = 0.5
    dropped = []
    for module in (quick, native):
        torch.manual_seed(3)
        dropped.append(module(x())[0])
    assert_close(*dropped)
    quick.eval()
    assert_close(quick(x())[0], expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quick._flat_weights = [weight.detach() for weight in quick._flat_weights]
        assert_close(torch.jit.trace(quick, (x().detach(),), check_trace=False)(x())[0], expected)


@every_kind
def test_a_parametrization_runs_as_often_as_in_pytorchs_own(kind) -> None:
    calls = []

    class Counts(nn.Module):
        def forward(self, weight):
            calls.append(weight)
            return weight + 0.01 * len(calls)

    found = []
    for module in pair(kind):
        parametrize.register_parametrization(module, "weight_hh_l0", Counts(), unsafe=True)
        module(x())
        calls.clear()
        found.append([module(x())[0], torch.tensor(float(len(calls)), dtype=torch.float64)])
    assert_all_close(*found)


@every_kind
def test_copies(kind) -> None:
    module, _ = pair(kind)
    expected = pulled(module)

    def saved(module):
        file = io.BytesIO()
        torch.save(module, file)
        file.seek(0)
        return torch.load(file, weights_only=False)

    def loaded(module):
        other = kind(**SHAPE)
        other.load_state_dict(module.state_dict())
        return other

    def assigned(module):
        other = kind(**{**SHAPE, "device": "meta"})
        other.load_state_dict({name: value.clone() for name, value in module.state_dict().items()}, assign=True)
        return other

    def moved(module):
        other = copy.deepcopy(module).to("meta").to_empty(device="cpu")
        other.load_state_dict(module.state_dict())
        return other

    def replicated(module):
        return module._replicate_for_data_parallel()

    for copied in (copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved, loaded, assigned, moved):
        other = copied(module)
        assert type(other) is kind
        assert_all_close(pulled(other), expected)
        with torch.no_grad():
            other.weight_hh_l0.mul_(2)
            assert not torch.equal(other(x())[0], expected[0])
        assert_close(module(x())[0], expected[0])
    assert_close(replicated(module)(x())[0], expected[0])


@every_kind
def test_called_with_other_parameters(kind) -> None:
    ours, own = pair(kind)
    expected = own(x())[0]
    doubled = [
        torch.func.functional_call(
            module, {name: 2 * weight for name, weight in module.named_parameters()}, (x(),)
        )[0]
        for module in (ours, own)
    ]  # fmt: skip
    assert_close(*doubled)
    assert_close(ours(x())[0], expected)


# --- What converts whole models ------------------------------------------------------------------------------------


class Model(nn.Module):
    def __init__(self, layer) -> None:
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(7, 2, dtype=layer.weight_ih_l0.dtype)

    def forward(self, x):
        return self.head(self.layer(x)[0])


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("kind", [FastRNN, FastLSTM, FastGRU], ids=lambda kind: kind.__name__)
def test_scripting_compiles_pytorchs_own_over_the_same_parameters(kind) -> None:
    layer, own = pair(kind)
    model = Model(layer)
    expected = model(x())
    with pytest.warns(UserWarning, match=rf"compiles a torch.nn.{OWN[kind].__name__} over .* leaves it in the model"):
        scripted = torch.jit.script(model)
    assert_close(scripted(x()), expected)
    assert list(scripted.state_dict()) == list(Model(own).state_dict())
    assert type(model.layer) is OWN[kind]  # PyTorch's doing, and said
    assert model.layer.weight_hh_l0 is layer.weight_hh_l0
    assert type(layer) is kind
    assert_close(model(x()), expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("kind", [FastRNN, CandidateBiasGRU, FastCandidateBiasGRU], ids=lambda kind: kind.__name__)
def test_scripting_is_refused_where_pytorch_has_no_such_layer(kind) -> None:
    layer, own = pair(kind)
    if kind is FastRNN:
        parametrize.register_parametrization(layer, "weight_hh_l0", Scaled())
    for model in (layer, Model(layer)):
        with pytest.raises(
            mr.InvalidCall, match=rf"torch.jit.script cannot compile a .*{kind.__name__}; use .*{own._get_name()}"
        ):
            torch.jit.script(model)
    assert type(Model(layer).layer) is type(layer)


class Streams(nn.Module):
    """Passes a state on, in a pair for an LSTM."""

    def __init__(self, layer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x, h, c):
        y, state = self.layer(x, (h, c) if self.layer.mode == "LSTM" else h)
        return self.layer(y[:, :, :5], state)[0]


@pytest.mark.filterwarnings("ignore:Was not able to add assertion:UserWarning")
@every_kind
def test_symbolic_tracing_gives_one_node(kind) -> None:
    layer, _ = pair(kind)
    model = Model(layer)
    graph = torch.fx.symbolic_trace(model)
    assert [node.target for node in graph.graph.nodes if node.op == "call_module"] == ["layer", "head"]
    assert_close(graph(x()), model(x()))
    assert graph.layer is layer
    streams, state = Streams(layer), [drawn(2, BATCH, 7, seed=seed).detach() for seed in (5, 6)]
    traced = torch.fx.symbolic_trace(streams)
    assert_close(traced(x(), *state), streams(x(), *state))
    held = torch.fx.symbolic_trace(streams, concrete_args={"h": state[0], "c": state[1]})
    assert len([node for node in held.graph.nodes if node.op == "call_module"]) == 2
    with pytest.raises(mr.InvalidCall, match=rf"torch.fx cannot trace through a {kind.__name__}; trace a model that"):
        torch.fx.symbolic_trace(layer)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
@every_kind
def test_quantisation_never_leaves_it_in_floating_point_without_a_word(kind) -> None:
    own = OWN[kind].__name__
    model = Model(kind(5, 7, batch_first=True))
    with pytest.warns(
        UserWarning, match=rf"leaves a {kind.__name__} in floating point.*torch.nn.{own} in its place first"
    ):
        quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear, OWN[kind]})
    assert type(quantised.layer) is kind
    for asked in ({kind}, {"layer": torch.ao.quantization.default_dynamic_qconfig}):
        with pytest.raises(mr.InvalidCall, match=rf"^torch.ao.quantization cannot quantise a {kind.__name__}"):
            torch.ao.quantization.quantize_dynamic(model, asked)


@every_kind
def test_exported_and_traced(kind) -> None:
    layer, _ = pair(kind)
    model = Model(layer)
    expected = model(x())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_close(torch.jit.trace(model, (x().detach(),), check_trace=False)(x()), expected)
        assert_close(torch.export.export(model, (x().detach(),)).module()(x()), expected)


@pytest.mark.parametrize("kind", [FastRNN, FastLSTM, FastGRU, FastCandidateBiasGRU], ids=lambda kind: kind.__name__)
def test_what_is_no_tensor_is_refused_in_a_sentence(kind) -> None:
    np = pytest.importorskip("numpy")
    layer, _ = pair(kind)
    array = x().detach().numpy()
    for given in (array, np.ma.masked_array(array, array > 1), array.tolist(), None):
        with pytest.raises(mr.InvalidCall, match=r"^x must be a torch\.Tensor or a PackedSequence, not an object "):
            layer(given)
    with pytest.raises(mr.InvalidCall, match="its mask is not read; rows that end early are told by lengths"):
        layer(np.ma.masked_array(array, array > 1))
    for lengths in ([4, 2, 1], np.array([4, 2, 1]), torch.tensor([4.0, 2, 1])):
        with pytest.raises(mr.InvalidCall, match="lengths are 3 integers from 0 to 4"):
            layer(x(), None, lengths)
    negated = torch.complex(x().detach(), x(7).detach()).conj().imag
    assert negated.is_neg()
    assert_close(layer(negated)[0], layer(negated.resolve_neg())[0])
