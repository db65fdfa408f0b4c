"""Six whole models in PyTorch, their layers replaced: the same function in eager mode, compiled, exported and in ONNX Runtime."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import multirnn_torch
import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from whole_models_torch import Acting, Enhancer, Forecaster, LanguageModel, Policy, Tagger, Translator

import multirnn as mr

Args = tuple[Tensor, ...]
BATCH, TIME = torch.export.Dim("batch"), torch.export.Dim("time")
OTHERS = ((1, 2), (5, 9), (4, 17))  # batch and time; nothing is exported or compiled with them
STOCK = {"RNN", "LSTM", "GRU"}


def words(batch: int, time: int) -> Tensor:
    return torch.randint(17, (batch, time))


@dataclass(frozen=True)
class Case:
    """A model, and arguments of a call.

    `deployed` is what is compiled and exported of it, where that is not the model itself.
    """

    make: Callable[[], nn.Module]
    draw: Callable[[int, int], Args]  # by batch and time
    dynamic: tuple[dict[int, Any], ...]  # the dynamic axes of the arguments of what is exported
    chunked: Callable[[Any, Args, list[slice]], Tensor] | None = None  # the first output, over parts of the time
    deployed: Callable[[nn.Module], nn.Module] = lambda model: model
    draw_deployed: Callable[[int, int], Args] | None = None

    def drawn_deployed(self, batch: int, time: int) -> Args:
        return (self.draw_deployed or self.draw)(batch, time)


def with_lengths(batch: int, time: int) -> Args:
    lengths = torch.randint(1, time + 1, (batch,))
    lengths[0] = time
    return words(batch, time), lengths


def frames(batch: int, time: int) -> Args:
    return torch.rand(batch, time, 12), torch.randn(batch, 2, 12), torch.randn(1, batch, 6), torch.randn(1, batch, 6)


def without_packing(model: Any) -> nn.Module:
    """The tagger, which gives the lengths to its layer if that takes them."""
    model.packs = type(model.lstm) is nn.LSTM
    return model


def rollout(batch: int, time: int) -> Args:
    return torch.randn(batch, time, 7), torch.rand(batch, time) < 0.3, *torch.randn(2, 1, batch, 8)


def step(batch: int, time: int) -> Args:
    observations, ended, h, c = rollout(batch, time)
    return observations[:, 0], ended[:, 0], h, c


def language_in_chunks(model: Any, args: Args, parts: list[slice]) -> Tensor:
    outputs, state = [], None
    for part in parts:
        logits, state = model(args[0][:, part], state)
        outputs.append(logits)
    return torch.cat(outputs, dim=1)


def frames_in_chunks(model: Any, args: Args, parts: list[slice]) -> Tensor:
    outputs, (whole, *state) = [], args
    for part in parts:
        cleaner, *state = model(whole[:, part], *state)
        outputs.append(cleaner)
    return torch.cat(outputs, dim=1)


def rollout_in_chunks(model: Any, args: Args, parts: list[slice]) -> Tensor:
    outputs, (observations, ended, *state) = [], args
    for part in parts:
        logits, *state = model(observations[:, part], ended[:, part], *state)
        outputs.append(logits)
    return torch.cat(outputs, dim=1)


def translation_in_chunks(model: Any, args: Args, parts: list[slice]) -> Tensor:
    _, state = model.encoder(model.source(args[0]))
    outputs = []
    for part in parts:
        decoded, state = model.decoder(model.target(args[1][:, part]), state)
        outputs.append(model.head(decoded))
    return torch.cat(outputs, dim=1)


ROWS = {0: BATCH, 1: TIME}
STATE = {1: BATCH}
CASES = {
    "language model": Case(LanguageModel, lambda batch, time: (words(batch, time),), (ROWS,), language_in_chunks),
    "enhancer": Case(Enhancer, frames, (ROWS, {0: BATCH}, STATE, STATE), frames_in_chunks),
    "tagger": Case(
        Tagger,
        with_lengths,
        (ROWS, {0: BATCH}),
        deployed=without_packing,
    ),
    "translator": Case(
        Translator,
        lambda batch, time: (words(batch, time + 3), words(batch, time)),
        ({0: BATCH, 1: torch.export.Dim("source_time")}, ROWS),
        translation_in_chunks,
    ),
    "policy": Case(Policy, rollout, ({0: BATCH}, {0: BATCH}, STATE, STATE), rollout_in_chunks, Acting, step),
    "forecaster": Case(Forecaster, lambda batch, time: (torch.randn(batch, time, 3),), (ROWS,)),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(3)
    yield
    torch.set_num_threads(threads)


def pair(case: Case, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module]:
    """The model with PyTorch's layers, and the same with ours."""
    stock = case.make().to(dtype)
    fast = deepcopy(stock)
    replacement = mr.replace_layers(fast)
    assert replacement.replaced
    assert not replacement.kept
    return stock, fast


def in_dtype(args: Args, dtype: torch.dtype) -> Args:
    return tuple(each.to(dtype) if each.is_floating_point() else each for each in args)


def first(outputs: Any) -> Tensor:
    return outputs[0] if isinstance(outputs, tuple | list) else outputs


def flat(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    return [part for output in outputs for part in flat(output)]


def pulled(model: Any, args: Args, parameters: Any) -> list[Tensor]:
    """All outputs, and the gradients of the parameters and of the floating arguments, with drawn cotangents."""
    given = tuple(each.detach().clone().requires_grad_(each.is_floating_point()) for each in args)
    outputs = flat(model(*given))
    generator = torch.Generator().manual_seed(8)
    cotangents = [torch.randn(each.shape, generator=generator, dtype=torch.float64).to(each.dtype) for each in outputs]
    leaves = [*parameters, *(each for each in given if each.requires_grad)]
    return [*outputs, *torch.autograd.grad(outputs, leaves, cotangents, allow_unused=True, materialize_grads=True)]


def assert_close(actual: Any, expected: Any) -> None:
    actual, expected = (each.detach().numpy() if torch.is_tensor(each) else each for each in (actual, expected))
    found = mr.difference(actual, expected)
    assert found.normwise <= mr.tolerance(actual.dtype), found


def assert_all_close(actual: Any, expected: Any) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other)


# --- Eager -----------------------------------------------------------------------------------------------------------


@every_case
def test_outputs_and_gradients_are_those_of_the_stock_model_in_float64(case: Case) -> None:
    stock, fast = pair(case)
    reference = deepcopy(stock).double().eval()
    args = case.draw(3, 11)
    actual = pulled(fast.eval(), args, fast.parameters())
    assert_all_close(actual, pulled(reference, in_dtype(args, torch.float64), reference.parameters()))


@every_case
def test_training_in_float64_is_that_of_the_stock_model_with_its_dropout(case: Case) -> None:
    stock, fast = pair(case, torch.float64)
    args = in_dtype(case.draw(3, 11), torch.float64)
    torch.manual_seed(5)
    expected = [*pulled(stock.train(), args, stock.parameters()), torch.rand(1)]
    torch.manual_seed(5)
    actual = [*pulled(fast.train(), args, fast.parameters()), torch.rand(1)]
    assert_all_close(actual, expected)
    assert actual[-1] == expected[-1]


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_dropout_after_a_layer_drops_the_same(kind: Any, bidirectional: bool) -> None:
    """Dropout draws in the order of the memory, so that is the same too."""
    stock = nn.ModuleList([kind(5, 6, batch_first=True, bidirectional=bidirectional)])
    fast = deepcopy(stock)
    mr.replace_layers(fast)
    x, lengths = torch.randn(4, 7, 5), torch.tensor([7, 3, 5, 1])
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    (whole, _), (expected, _) = fast[0](x), stock[0](x)
    (ragged, _), (data, _) = fast[0](x, lengths=lengths), stock[0](packed)
    for actual, wanted in ((whole, expected), (ragged, pad_packed_sequence(data, batch_first=True)[0])):
        assert actual.stride() == wanted.stride()
        torch.manual_seed(1)
        dropped = functional.dropout(wanted)
        torch.manual_seed(1)
        assert_close(functional.dropout(actual), dropped)


@every_case
def test_losses_of_training_are_the_same(case: Case) -> None:
    stock, fast = pair(case)
    args = case.draw(4, 9)
    target = torch.randn(first(stock(*args)).shape)

    def losses(model: nn.Module) -> np.ndarray:
        torch.manual_seed(6)
        optimiser = torch.optim.SGD(model.train().parameters(), lr=0.3, momentum=0.9)
        seen = []
        for _ in range(6):
            optimiser.zero_grad()
            loss = functional.mse_loss(first(model(*args)), target)
            loss.backward()
            optimiser.step()
            seen.append(loss.item())
        return np.array(seen, "float32")

    expected = losses(stock)
    assert expected[-1] < expected[0]
    assert_close(losses(fast), expected)


@every_case
def test_restored_it_is_the_stock_model_again(case: Case) -> None:
    model = case.make().eval()
    expected = flat(model(*(args := case.draw(2, 5))))
    kinds = [type(module) for module in model.modules()]
    replacement = mr.replace_layers(model)
    assert {type(module).__name__ for module in model.modules()}.isdisjoint(STOCK)
    replacement.restore()
    assert [type(module) for module in model.modules()] == kinds
    for one, other in zip(flat(model(*args)), expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.chunked])
def test_chunks_are_the_whole(name: str) -> None:
    case = CASES[name]
    assert case.chunked is not None
    _, fast = pair(case)
    fast.eval()
    args = case.draw(2, 12)
    whole = first(fast(*args))
    for cuts in ([0, 5, 6, 12], range(13)):
        parts = [slice(start, end) for start, end in pairwise(cuts)]
        assert_close(case.chunked(fast, args, parts), whole)


def test_words_are_generated_one_by_one_as_by_the_stock_model() -> None:
    stock, fast = pair(CASES["language model"])
    given = words(2, 4)
    assert torch.equal(fast.eval().generate(given, 12), stock.eval().generate(given, 12))


def test_a_tagger_may_give_the_lengths_instead_of_packing() -> None:
    stock, fast = pair(CASES["tagger"])
    args = with_lengths(4, 7)
    without_packing(fast)
    assert_all_close(pulled(fast, args, fast.parameters()), pulled(stock, args, stock.parameters()))


# --- Compiled --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_compiled_whole_it_is_the_stock_model(name: str) -> None:
    case = CASES[name]
    stock, fast = pair(case)
    stock, fast = case.deployed(stock.eval()), case.deployed(fast.eval())
    # Inductor compiles C++ for half a minute a model; the others are traced as for it, and their operators run one by one.
    backend = "inductor" if name == "tagger" else "aot_eager"
    compiled = torch.compile(fast, fullgraph=True, dynamic=True, backend=backend)
    for batch, time in ((3, 11), (5, 9), (4, 17)):
        args = case.drawn_deployed(batch, time)
        assert_all_close(pulled(compiled, args, fast.parameters()), pulled(stock, args, stock.parameters()))


# --- Exported --------------------------------------------------------------------------------------------------------


@every_case
def test_exported_with_dynamic_batch_and_time_it_is_the_stock_model(case: Case) -> None:
    stock, fast = pair(case)
    stock, fast = case.deployed(stock.eval()), case.deployed(fast.eval())
    program = torch.export.export(fast, case.drawn_deployed(3, 11), dynamic_shapes=case.dynamic)
    module = program.module()
    parameters = dict(module.named_parameters())
    for batch, time in OTHERS:
        args = case.drawn_deployed(batch, time)
        own = [parameters[name] for name, _ in fast.named_parameters()]
        assert_all_close(pulled(module, args, own), pulled(stock, args, stock.parameters()))


def served(path: Path) -> Callable[..., list[np.ndarray]]:
    """The ONNX model in a file, called with tensors in the order of its inputs."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def call(*args: Tensor) -> list[np.ndarray]:
        names = [each.name for each in session.get_inputs()]
        return session.run(None, {name: each.numpy() for name, each in zip(names, args, strict=True)})

    return call


@every_case
def test_onnx_runtime_gives_the_outputs_of_the_stock_model(case: Case, tmp_path: Path) -> None:
    stock, fast = pair(case)
    stock, fast = case.deployed(stock.eval()), case.deployed(fast.eval())
    multirnn_torch.export_onnx(fast, case.drawn_deployed(3, 11), tmp_path / "model.onnx")
    run = served(tmp_path / "model.onnx")
    for batch, time in OTHERS:
        args = case.drawn_deployed(batch, time)
        assert_all_close(run(*args), flat(stock(*args)))


def test_a_policy_acts_step_by_step_in_onnx_runtime(tmp_path: Path) -> None:
    case = CASES["policy"]
    stock, fast = pair(case)
    multirnn_torch.export_onnx(Acting(fast), step(3, 1), tmp_path / "policy.onnx")
    act = served(tmp_path / "policy.onnx")
    for batch, time in OTHERS:
        observations, ended, h, c = rollout(batch, time)
        expected = stock(observations, ended, h, c)
        state, logits = (h, c), []
        for observation, end in zip(observations.unbind(1), ended.unbind(1), strict=True):
            chosen, *parts = map(torch.from_numpy, act(observation, end, *state))
            state = parts[0], parts[1]
            logits.append(chosen)
        assert_all_close([torch.stack(logits, dim=1), *state], expected)


def test_speech_is_enhanced_frame_by_frame_in_onnx_runtime(tmp_path: Path) -> None:
    stock, fast = pair(CASES["enhancer"])
    multirnn_torch.export_onnx(fast, frames(3, 11), tmp_path / "enhancer.onnx")
    run = served(tmp_path / "enhancer.onnx")
    noisy, *state = frames(2, 7)
    expected = stock(noisy, *state)
    cleaner = []
    for frame in noisy.split(1, dim=1):
        clean, *state = map(torch.from_numpy, run(frame, *state))
        cleaner.append(clean)
    assert_all_close([torch.cat(cleaner, dim=1), *state], expected)


# --- Told in a sentence ----------------------------------------------------------------------------------------------


def test_packed_sequences_are_refused_in_an_export_with_what_to_call_instead(tmp_path: Path) -> None:
    _, fast = pair(CASES["tagger"])
    with pytest.raises(mr.InvalidCall, match="lengths="):
        multirnn_torch.export_onnx(fast, with_lengths(3, 5), tmp_path / "tagger.onnx")
