"""`replace_layers` on PyTorch modules: the objects stay, what runs is fast, and `restore` leaves no trace."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest

import multirnn as mr

torch = pytest.importorskip("torch")

from multirnn_torch import CandidateBiasGRU  # noqa: E402
from multirnn_torch.fast import FastCandidateBiasGRU, FastGRU, FastLSTM, FastRNN  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations, parametrize  # noqa: E402
from torch_fast_pairs import (  # noqa: E402
    assert_all_close,
    assert_close,
    drawn,
    each_loop,
    one_thread,
    pulled,
    what_ran,
)  # fmt: skip
from torch_tagger import TOKENS, Tagger, kinds  # noqa: E402

__all__ = ["each_loop", "one_thread", "what_ran"]  # the fixtures

FAST = {nn.RNN: FastRNN, nn.LSTM: FastLSTM, nn.GRU: FastGRU, CandidateBiasGRU: FastCandidateBiasGRU}
KINDS: list[tuple[Any, dict[str, Any]]] = [
    (nn.RNN, {}), (nn.RNN, {"nonlinearity": "relu"}), (nn.LSTM, {"bias": False}), (nn.GRU, {}), (CandidateBiasGRU, {}),
]  # fmt: skip
every_kind = pytest.mark.parametrize(("kind", "options"), KINDS, ids=["rnn", "relu", "lstm", "gru", "candidate"])
STACK = {"num_layers": 2, "bidirectional": True, "batch_first": True, "dtype": torch.float64}


def state_of(model: nn.Module) -> list[Any]:
    """Every class, every name and the identity of every tensor and value of a model, in order."""
    found: list[Any] = []
    for part in model.modules():
        found.append((id(part), type(part)))
        for name, value in vars(part).items():
            held = [*value, *value.values()] if isinstance(value, dict) else value
            found.append((name, id(value), list(map(id, held)) if isinstance(held, list) else None))
    return found


# --- The layer itself ------------------------------------------------------------------------------------------------


@every_kind
def test_the_same_object_runs_fast_and_is_restored(kind, options, loop, ran) -> None:
    if loop == "tensors" and kind is nn.LSTM:
        pytest.skip("the loop of tensors has no LSTM")
    torch.manual_seed(1)
    layer = kind(5, 7, **STACK, **options)
    x, hx = drawn(3, 11, 5), drawn(4, 3, 7, seed=3)
    hx = (hx, drawn(4, 3, 7, seed=4)) if kind is nn.LSTM else hx
    expected, parameters = pulled(layer, x, hx), dict(layer.named_parameters())
    attributes, names, generator = dict(vars(layer)), list(layer.state_dict()), torch.get_rng_state()
    replacement = mr.replace_layers(layer)
    assert replacement.model is layer
    assert type(layer) is FAST[kind]
    assert replacement.replaced == (("", kind.__name__, FAST[kind].__name__),)
    assert all(layer.get_parameter(name) is parameter for name, parameter in parameters.items())
    assert (list(layer.state_dict()), list(dict(layer.named_parameters()))) == (names, list(parameters))
    assert torch.equal(torch.get_rng_state(), generator)
    layer.loop = loop
    assert not ran
    assert_all_close(pulled(layer, x, hx), expected)
    assert ran == ["forward", "backward"]
    assert isinstance(layer, nn.LSTM) is (type(layer) is nn.LSTM)
    replacement.restore()
    assert type(layer) is kind
    assert list(vars(layer)) == list(attributes)
    assert all(vars(layer)[name] is value for name, value in attributes.items())
    assert all(map(torch.equal, pulled(layer, x, hx), expected))
    replacement.restore()
    assert type(layer) is kind


def test_a_layer_of_ours_without_its_recurrent_bias() -> None:
    layer = mr.build(mr.RecurrentSpec("lstm", 5, 7, dtype="float64"), "torch").native
    expected = pulled(layer, drawn(3, 4, 5))
    mr.replace_layers(layer)
    assert type(layer) is FastLSTM
    assert_all_close(pulled(layer, drawn(3, 4, 5)), expected)
    assert mr.read(layer).spec.bias == "single"


# --- The model around it ---------------------------------------------------------------------------------------------


def test_a_shared_layer_is_replaced_once_and_stays_shared() -> None:
    model = Tagger()
    before, expected = state_of(model), model(TOKENS)
    replacement = mr.replace_layers(model)
    assert replacement.replaced == (("encoder", "LSTM", "FastLSTM"), ("decoder", "GRU", "FastGRU"))
    assert not replacement.kept
    assert model.again[0] is model.decoder
    assert kinds(model) == [FastLSTM, FastGRU]
    assert_close(model(TOKENS), expected)
    replacement.restore()
    assert state_of(model) == before
    assert torch.equal(model(TOKENS), expected)


def trained(model: nn.Module, optimiser, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(model(TOKENS).flatten(0, 1), TOKENS.roll(1, 1).flatten())
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def test_an_optimiser_goes_on_over_replacing_and_restoring() -> None:
    model, stock = Tagger(), Tagger()
    ours, theirs = (torch.optim.Adam(one.parameters(), lr=0.01) for one in (model, stock))
    expected = trained(stock, theirs, 6)
    losses = trained(model, ours, 2)
    averages = {id(parameter): state["exp_avg"] for parameter, state in ours.state.items()}
    parameters = list(map(id, model.parameters()))
    replacement = mr.replace_layers(model)
    losses += trained(model, ours, 2)
    assert list(map(id, model.parameters())) == parameters
    replacement.restore()
    losses += trained(model, ours, 2)
    assert list(map(id, model.parameters())) == parameters
    assert all(averages[id(parameter)] is state["exp_avg"] for parameter, state in ours.state.items())
    assert_close(torch.tensor(losses, dtype=torch.float64), torch.tensor(expected, dtype=torch.float64))
    assert_all_close(model.parameters(), stock.parameters())
    assert model.out.weight is model.embedding.weight


def test_hooks_are_called() -> None:
    model, called = Tagger(), []
    layer = model.encoder
    layer.register_forward_pre_hook(lambda *_: called.append("before"))
    layer.register_forward_hook(lambda *_: called.append("after"))
    layer.register_full_backward_hook(lambda *_: called.append("backward"))
    layer.register_state_dict_post_hook(lambda *_: called.append("state_dict"))
    replacement = mr.replace_layers(model)
    for _ in range(2):
        model(TOKENS).sum().backward()
        model.state_dict()
        assert called == ["before", "after", "backward", "state_dict"]
        called.clear()
        replacement.restore()
    handle = layer.register_forward_hook(lambda *_: called.append("new"))
    mr.replace_layers(model)
    handle.remove()
    model(TOKENS)
    assert called == ["before", "after"]


def test_tied_weights_of_two_layers_stay_tied() -> None:
    model = nn.ModuleList([nn.GRU(4, 4, dtype=torch.float64) for _ in range(2)])
    model[1].weight_hh_l0 = model[0].weight_ih_l0
    expected = model[1](drawn(2, 3, 4))[0]
    mr.replace_layers(model)
    assert model[1].weight_hh_l0 is model[0].weight_ih_l0
    with torch.no_grad():
        assert_close(model[1](drawn(2, 3, 4))[0], expected)
        model[0].weight_ih_l0.mul_(2)
        assert not torch.allclose(model[1](drawn(2, 3, 4))[0], expected)


def test_state_dicts_pass_between_replaced_and_stock() -> None:
    stock, model = Tagger(1), Tagger(2)
    mr.replace_layers(model)
    assert list(model.state_dict()) == list(stock.state_dict())
    model.load_state_dict(stock.state_dict())
    assert_close(model(TOKENS), stock(TOKENS))
    other = Tagger(3)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(TOKENS), stock(TOKENS))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_replaced_model_is_converted(dtype) -> None:
    model, stock = Tagger(), Tagger()
    replacement = mr.replace_layers(model)
    for one in (model, stock):
        one.to(dtype).eval()
    assert kinds(model) == [FastLSTM, FastGRU]
    with torch.no_grad():
        if dtype is torch.float32:
            assert_close(model(TOKENS), stock(TOKENS))
        else:
            assert model.encoder.plan(3, 8).implementation == "native"
            assert torch.equal(model(TOKENS), stock(TOKENS))
    replacement.restore()
    assert torch.equal(model(TOKENS), stock(TOKENS))


# --- Copies ----------------------------------------------------------------------------------------------------------


def saved(thing: Any) -> Any:
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: list[Callable[[Any], Any]] = [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing)), saved]
every_copy = pytest.mark.parametrize("copied", COPIES, ids=["deepcopy", "pickle", "torch.save"])


@every_copy
def test_a_copy_of_both_restores_the_copy(copied) -> None:
    model = Tagger()
    expected = model(TOKENS)
    replacement = mr.replace_layers(model)
    model(TOKENS)
    other, again = copied((model, replacement))
    assert kinds(other) == [FastLSTM, FastGRU]
    assert again.model is other
    assert (again.replaced, again.kept, str(again)) == (replacement.replaced, replacement.kept, str(replacement))
    again.restore()
    assert kinds(other) == [nn.LSTM, nn.GRU]
    assert vars(other.encoder).keys() == vars(Tagger().encoder).keys()
    assert torch.equal(other(TOKENS), expected)
    assert kinds(model) == [FastLSTM, FastGRU]


@every_copy
def test_a_copy_alone_is_put_back_by_native(copied) -> None:
    model = Tagger()
    expected = model(TOKENS)
    mr.replace_layers(model)
    other = copied(model)
    assert_close(other(TOKENS), expected)
    replacement = mr.replace_layers(other, "native")
    assert replacement.replaced == (("encoder", "FastLSTM", "LSTM"), ("decoder", "FastGRU", "GRU"))
    assert kinds(other) == [nn.LSTM, nn.GRU]
    assert torch.equal(other(TOKENS), expected)
    replacement.restore()
    assert kinds(other) == [FastLSTM, FastGRU]
    assert_close(other(TOKENS), expected)


# --- Parametrizations ------------------------------------------------------------------------------------------------


def normed(dtype=torch.float64) -> nn.Module:
    torch.manual_seed(4)
    layer = nn.GRU(5, 7, batch_first=True, dtype=dtype)
    parametrizations.weight_norm(layer, "weight_hh_l0")
    parametrizations.orthogonal(layer, "weight_ih_l0")
    return nn.Sequential(layer)


def test_a_parametrized_layer_is_replaced_and_restored(loop, ran) -> None:
    model = normed()
    layer, kind = model[0], type(model[0])
    expected, names = pulled(layer, drawn(3, 4, 5)), list(model.state_dict())
    replacement = mr.replace_layers(model)
    layer.loop = loop
    assert replacement.replaced == (("0", "ParametrizedGRU", "ParametrizedFastGRU"),)
    assert isinstance(layer, FastGRU)
    assert parametrize.type_before_parametrizations(layer) is FastGRU
    assert parametrize.is_parametrized(layer, "weight_hh_l0")
    assert_all_close(pulled(layer, drawn(3, 4, 5)), expected)
    assert ran == ["forward", "backward"]
    assert list(model.state_dict()) == names
    replacement.restore()
    assert type(layer) is kind
    assert all(map(torch.equal, pulled(layer, drawn(3, 4, 5)), expected))


def test_parametrizations_are_removed_and_added_in_between() -> None:
    model = normed()
    layer = model[0]
    with torch.no_grad():
        expected = layer(drawn(3, 4, 5))[0]
    replacement = mr.replace_layers(model)
    parametrize.remove_parametrizations(layer, "weight_hh_l0")
    assert_close(layer(drawn(3, 4, 5))[0], expected)
    replacement.restore()
    assert type(layer).__name__ == "ParametrizedGRU"
    assert not hasattr(type(layer), "weight_hh_l0")
    assert_close(layer(drawn(3, 4, 5))[0], expected)
    mr.replace_layers(model)
    parametrize.remove_parametrizations(layer, "weight_ih_l0")
    assert type(layer) is FastGRU
    assert_close(layer(drawn(3, 4, 5))[0], expected)
    parametrizations.weight_norm(layer, "weight_hh_l0")
    assert_close(layer(drawn(3, 4, 5))[0], expected)
    mr.replace_layers(model, "native")
    assert parametrize.type_before_parametrizations(layer) is nn.GRU
    parametrize.remove_parametrizations(layer, "weight_hh_l0")
    assert type(layer) is nn.GRU
    assert_close(layer(drawn(3, 4, 5))[0], expected)


def test_a_parametrized_layer_is_copied_after_a_call() -> None:
    model = normed()
    kind = type(model[0])
    replacement = mr.replace_layers(model)
    with torch.no_grad():
        expected = model(drawn(3, 4, 5))[0]
        other, again = copy.deepcopy((model, replacement))
        assert_close(other(drawn(3, 4, 5))[0], expected)
        again.restore()
        assert (type(other[0]), type(model[0]).__name__) == (kind, "ParametrizedFastGRU")
        assert_close(other(drawn(3, 4, 5))[0], expected)
    with pytest.raises(RuntimeError, match="only supported through state_dict"):  # as PyTorch says of its own
        pickle.dumps(model)


@pytest.mark.filterwarnings("ignore:.*is deprecated in favor of:FutureWarning")
def test_weights_that_a_hook_computes() -> None:
    layer = nn.utils.weight_norm(nn.LSTM(5, 7, dtype=torch.float64), "weight_hh_l0")
    expected = layer(drawn(3, 4, 5))[0]
    mr.replace_layers(layer)
    with torch.no_grad():
        assert_close(layer(drawn(3, 4, 5))[0], expected)
        layer.weight_hh_l0_g.mul_(2)
        assert not torch.allclose(layer(drawn(3, 4, 5))[0], expected)
