"""`multirnn_torch.export_onnx`: every kind of layer, in ONNX Runtime, at batches and lengths that it was not exported with."""

from collections import Counter
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from multirnn_torch import CandidateBiasGRU, export_onnx
from multirnn_torch.fast import FastGRU, FastLSTM
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from whole_models_torch import Enhancer, LanguageModel

import multirnn as mr
from multirnn import kernel

if kernel.refuses() is not None:
    pytest.skip(str(kernel.refuses()), allow_module_level=True)

INPUT, HIDDEN = 3, 4
OTHERS = ((1, 1), (2, 9), (5, 2))
KINDS = {
    "rnn": lambda *args, **kwargs: nn.RNN(*args, **kwargs),
    "relu": lambda *args, **kwargs: nn.RNN(*args, nonlinearity="relu", **kwargs),
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "candidate bias": CandidateBiasGRU,
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(5)


class Several(nn.Module):
    """All forms of a layer, side by side: an export takes a second or two, whatever it holds."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        forms: list[dict[str, Any]] = [
            {},
            {"batch_first": True, "num_layers": 2},
            {"bidirectional": True, "batch_first": True},
            {"bidirectional": True, "num_layers": 2},
            {"bias": False, "num_layers": 3, "dropout": 0.5},
        ]
        if kind is CandidateBiasGRU:
            forms = [form for form in forms if form.get("bias", True)]
        self.layers = nn.ModuleList(kind(INPUT, HIDDEN, **form) for form in forms)

    def forward(self, x: Tensor) -> list[Tensor]:
        """From (batch, time, features), the sequences and final states of all, time first or not."""
        found = []
        for layer in self.layers:
            y, final = layer(x if layer.batch_first else x.transpose(0, 1))
            found += [y, *(final if isinstance(final, tuple) else [final])]
        return found


def flat(outputs: Any) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else [part for output in outputs for part in flat(output)]


def served(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def call(*args: Tensor, **named: Any) -> list[np.ndarray]:
        names = [each.name for each in session.get_inputs()]
        given = {name: each.numpy() for name, each in zip(names, args, strict=False)}
        return session.run(None, given | {name.replace("__", "."): value for name, value in named.items()})

    call.inputs = [each.name for each in session.get_inputs()]  # type: ignore[attr-defined]
    call.outputs = [each.name for each in session.get_outputs()]  # type: ignore[attr-defined]
    return call


def assert_all_close(actual: Any, expected: Any) -> None:
    for one, other in zip(actual, flat(expected), strict=True):
        found = mr.difference(np.asarray(one), other.detach().numpy())
        assert found.normwise <= mr.tolerance("float32"), found


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


# --- The layers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fast", [False, True], ids=["stock", "fast"])
def test_every_form_of_every_layer(kind: str, fast: bool, tmp_path: Path) -> None:
    model = Several(KINDS[kind])
    expected = deepcopy(model).eval()
    if fast:
        mr.replace_layers(model)
    export_onnx(model, torch.randn(3, 5, INPUT), tmp_path / "model.onnx")
    run = served(tmp_path / "model.onnx")
    for batch, time in OTHERS:
        x = torch.randn(batch, time, INPUT)
        assert_all_close(run(x), expected(x))
    operator = {"lstm": "LSTM", "rnn": "RNN", "relu": "RNN"}.get(kind, "GRU")
    found = operators(tmp_path / "model.onnx")
    assert found[operator] == sum(layer.num_layers for layer in model.layers)
    assert not found.keys() & {"Loop", "Scan", "If", "Sigmoid", "Tanh"}


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_weights_are_initialisers_that_are_named_by_the_layer(kind: str, tmp_path: Path) -> None:
    model = nn.ModuleDict(
        {"first": nn.Linear(2, INPUT), "deep": nn.Sequential(KINDS[kind](INPUT, HIDDEN, num_layers=2))}
    )
    model.forward = lambda x: model["deep"](model["first"](x))  # type: ignore[method-assign]
    export_onnx(model, torch.randn(3, 5, 2), tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx").graph
    names = {initialiser.name for initialiser in graph.initializer}
    assert {f"deep.0.layers.{layer}.{part}" for layer in (0, 1) for part in "WRB"} <= names
    nodes = [node for node in graph.node if node.op_type in ("LSTM", "GRU", "RNN")]
    assert [node.name for node in nodes] == ["deep.0.layers.0", "deep.0.layers.1"]
    assert all(set(node.input[1:4]) <= names for node in nodes)
    size = sum(initialiser.ByteSize() for initialiser in graph.initializer)
    assert size < 4 * sum(parameter.numel() for parameter in model.parameters()) + 2000  # each weight once


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    layer = nn.GRU(INPUT, HIDDEN, num_layers=2, bidirectional=True, batch_first=True)
    export_onnx(layer, torch.randn(3, 5, INPUT), tmp_path / "gru.onnx")
    read = mr.load(tmp_path / "gru.onnx")
    own = mr.read(layer)
    assert read.spec == own.spec
    assert all(np.array_equal(read.arrays[name], array) for name, array in own.arrays.items())
    (stack,) = mr.inspect(tmp_path / "gru.onnx")
    assert stack.spec == own.spec


def test_a_layer_that_is_called_again_has_its_weights_once(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(HIDDEN, HIDDEN, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.gru(*self.gru(x))[0]

    model = Twice()
    export_onnx(model, torch.randn(2, 3, HIDDEN), tmp_path / "twice.onnx")
    graph = onnx.load(tmp_path / "twice.onnx").graph
    assert [node.name for node in graph.node if node.op_type == "GRU"] == ["gru.layers.0", "gru.layers.0_1"]
    assert sum(initialiser.name.startswith("gru.") for initialiser in graph.initializer) == 3
    x = torch.randn(4, 6, HIDDEN)
    assert_all_close(served(tmp_path / "twice.onnx")(x), model(x))


def test_weights_that_are_computed(tmp_path: Path) -> None:
    """They are initialisers too, as they are now."""
    layer = parametrizations.weight_norm(nn.LSTM(INPUT, HIDDEN, batch_first=True), "weight_hh_l0")
    x = torch.randn(2, 3, INPUT)
    expected = layer(x)
    export_onnx(layer, torch.randn(3, 5, INPUT), tmp_path / "normed.onnx")
    assert_all_close(served(tmp_path / "normed.onnx")(x), expected)
    names = {initialiser.name for initialiser in onnx.load(tmp_path / "normed.onnx").graph.initializer}
    assert {"layers.0.W", "layers.0.R", "layers.0.B"} <= names


def test_one_row_and_one_step_are_no_constants(tmp_path: Path) -> None:
    model = Enhancer()
    args = torch.rand(1, 1, 12), torch.rand(1, 2, 12), torch.rand(1, 1, 6), torch.rand(1, 1, 6)
    export_onnx(model, args, tmp_path / "enhancer.onnx")
    others = torch.rand(3, 7, 12), torch.rand(3, 2, 12), torch.rand(1, 3, 6), torch.rand(1, 3, 6)
    assert_all_close(served(tmp_path / "enhancer.onnx")(*others), model(*others))
    shapes = {
        one.name: [axis.dim_param or axis.dim_value for axis in one.type.tensor_type.shape.dim]
        for one in onnx.load(tmp_path / "enhancer.onnx").graph.input
    }
    assert shapes == {
        "frames": ["batch", "time", 12],
        "heard": ["batch", 2, 12],
        "low": [1, "batch", 6],
        "high": [1, "batch", 6],
    }


def test_lengths(tmp_path: Path) -> None:
    class Ragged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = FastLSTM(INPUT, HIDDEN, num_layers=2, bidirectional=True, batch_first=True)

        def forward(self, x: Tensor, lengths: Tensor) -> Any:
            return self.lstm(x, lengths=lengths)

    model = Ragged()
    export_onnx(model, (torch.randn(2, 5, INPUT), torch.tensor([5, 2])), tmp_path / "ragged.onnx")
    run = served(tmp_path / "ragged.onnx")
    for batch, time in OTHERS:
        x, lengths = torch.randn(batch, time, INPUT), torch.randint(1, time + 1, (batch,))
        assert_all_close(run(x, lengths), model(x, lengths))


def test_fixed_sizes(tmp_path: Path) -> None:
    layer = nn.GRU(INPUT, HIDDEN, batch_first=True)
    export_onnx(layer, (torch.randn(2, 5, INPUT),), tmp_path / "fixed.onnx", dynamic=False)
    x = torch.randn(2, 5, INPUT)
    assert_all_close(served(tmp_path / "fixed.onnx")(x), layer(x))
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument):
        served(tmp_path / "fixed.onnx")(torch.randn(2, 6, INPUT))
    export_onnx(layer, torch.randn(2, 5, INPUT), tmp_path / "rows.onnx", dynamic=({0: torch.export.Dim("rows")},))
    x = torch.randn(7, 5, INPUT)
    assert_all_close(served(tmp_path / "rows.onnx")(x), layer(x))


# --- Streaming -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("batch_first", [True, False])
def test_chunks_are_the_whole(kind: str, batch_first: bool, tmp_path: Path) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = KINDS[kind](INPUT, HIDDEN, num_layers=2, batch_first=batch_first)
            self.decoder = KINDS[kind](HIDDEN, HIDDEN, batch_first=batch_first)

        def forward(self, x: Tensor) -> Tensor:
            return self.decoder(torch.relu(self.encoder(x)[0]))[0]

    model, time = Model(), int(batch_first)
    path = tmp_path / "stream.onnx"
    export_onnx(model, torch.randn(3, 3, INPUT), path, streaming=True)
    run = served(path)
    parts = "hc" if kind == "lstm" else "h"
    names = [f"{layer}.{part}" for layer in ("encoder", "decoder") for part in parts]
    assert run.inputs == ["x", *(f"{name}_0" for name in names)]
    assert run.outputs[1:] == [f"{name}_n" for name in names]
    batch = 5
    x = torch.randn(batch, 9, INPUT) if batch_first else torch.randn(9, batch, INPUT)
    expected = model(x)
    state = {
        f"{name}_0": np.zeros((2 if name.startswith("encoder") else 1, batch, HIDDEN), np.float32) for name in names
    }
    found = []
    for part in torch.split(x, [4, 1, 1, 3], dim=time):
        y, *ends = run(part, **{name.replace(".", "__"): value for name, value in state.items()})
        state = dict(zip(state, ends, strict=True))
        found.append(torch.from_numpy(y))
    assert_all_close([torch.cat(found, dim=time)], expected)


def test_a_state_that_the_model_gives_stays_the_models(tmp_path: Path) -> None:
    model = LanguageModel().eval()

    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, words: Tensor, h: Tensor, c: Tensor) -> Any:
            return self.model(words, (h, c))

    args = torch.randint(17, (2, 5)), torch.randn(2, 2, 8), torch.randn(2, 2, 8)
    export_onnx(Given(), args, tmp_path / "given.onnx", streaming=True)
    run = served(tmp_path / "given.onnx")
    assert run.inputs == ["words", "h", "c"]
    assert_all_close(run(*args), model(args[0], args[1:]))


# --- Again and again -------------------------------------------------------------------------------------------------


def test_after_other_exports_in_the_same_process(tmp_path: Path) -> None:
    """PyTorch's own exporter leaves decompositions behind that freeze the time."""
    layer = nn.LSTM(INPUT, HIDDEN, batch_first=True)
    x, other = torch.randn(2, 5, INPUT), torch.randn(3, 8, INPUT)
    torch.export.export(layer, (x,)).run_decompositions()
    torch.onnx.export(layer, (x,), tmp_path / "theirs.onnx", dynamo=True, verbose=False)
    for model in (layer, deepcopy(layer), nn.Sequential(layer)):
        export_onnx(model, x, tmp_path / "ours.onnx")
        assert_all_close(served(tmp_path / "ours.onnx")(other), layer(other))
        assert operators(tmp_path / "ours.onnx")["LSTM"] == 1


@pytest.mark.parametrize("decomposed", [False, True])
def test_a_program_of_fast_layers(decomposed: bool, tmp_path: Path) -> None:
    layer = FastGRU(INPUT, HIDDEN, num_layers=2, batch_first=True)
    axes = {0: torch.export.Dim("rows"), 1: torch.export.Dim("steps")}
    program = torch.export.export(layer, (torch.randn(2, 5, INPUT),), dynamic_shapes=(axes,))
    if decomposed:
        program = program.run_decompositions()
    export_onnx(program, (), tmp_path / "program.onnx")
    x = torch.randn(3, 8, INPUT)
    assert_all_close(served(tmp_path / "program.onnx")(x), layer(x))
    assert operators(tmp_path / "program.onnx")["GRU"] == 2


@pytest.mark.parametrize("kind", ["rnn", "relu", "lstm", "gru"])
def test_a_program_of_pytorchs_layers(kind: str, tmp_path: Path) -> None:
    layer = KINDS[kind](INPUT, HIDDEN, num_layers=2, bidirectional=True, batch_first=True).eval()
    program = torch.export.export(layer, (torch.randn(2, 5, INPUT),), dynamic_shapes=({0: torch.export.Dim("rows")},))
    export_onnx(program, (), tmp_path / "program.onnx")
    x = torch.randn(3, 5, INPUT)
    assert_all_close(served(tmp_path / "program.onnx")(x), layer(x))


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = nn.ModuleDict(
        {"lstm": nn.LSTM(INPUT, HIDDEN), "fast": FastGRU(HIDDEN, 2, loop="tensors"), "drop": nn.Dropout()}
    )
    model.forward = lambda x: model["drop"](model["fast"](model["lstm"](x)[0])[0])  # type: ignore[method-assign]
    model["fast"].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    numbers = torch.get_rng_state()
    for args in (torch.randn(2, 3, INPUT), torch.randn(2, 3, INPUT + 1)):
        torch.set_rng_state(numbers)
        try:
            export_onnx(model, args, tmp_path / "model.onnx")
        except (RuntimeError, mr.InvalidCall):
            assert args.shape[-1] != INPUT
        assert [type(part) for part in model.values()] == [nn.LSTM, FastGRU, nn.Dropout]
        assert [part.training for part in model.values()] == [True, False, True]
        assert model["fast"].loop == "tensors"
        assert torch.equal(torch.get_rng_state(), numbers)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class RaggedTagger(nn.Module):
    """The lengths of its rows are given to PyTorch's `pack_padded_sequence`."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(INPUT, HIDDEN, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True)
        return pad_packed_sequence(self.lstm(packed)[0], batch_first=True)[0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::torch.jit.TracerWarning")
def test_pytorchs_older_exporter_takes_packed_sequences(tmp_path: Path) -> None:
    model = RaggedTagger()
    mr.replace_layers(model)
    x, lengths = torch.randn(3, 6, INPUT), torch.tensor([6, 4, 1])
    axes = {"x": {0: "rows", 1: "steps"}, "lengths": {0: "rows"}}
    names = ["x", "lengths"]
    path = tmp_path / "packed.onnx"
    torch.onnx.export(model, (x, lengths), path, dynamo=False, input_names=names, dynamic_axes=axes)
    assert operators(path)["LSTM"] == 1
    others = torch.randn(2, 4, INPUT), torch.tensor([4, 2])
    assert_all_close(served(path)(*others), model(*others))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_after_it_the_same_model_is_traced_scripted_and_exported_as_before(tmp_path: Path) -> None:
    model = nn.Sequential(nn.GRU(INPUT, HIDDEN, batch_first=True))
    mr.replace_layers(model)
    x = torch.randn(2, 5, INPUT)
    expected = model(x)
    export_onnx(model, x, tmp_path / "ours.onnx")
    for converted in (
        torch.jit.trace(model, (x,)),
        torch.fx.symbolic_trace(model),
        torch.export.export(model, (x,)).module(),
    ):
        assert_all_close([part.detach() for part in converted(x)], list(expected))
    torch.onnx.export(model, (x,), tmp_path / "theirs.onnx", dynamo=False)
    assert_all_close(served(tmp_path / "theirs.onnx")(x), expected)
    assert_all_close([part.detach() for part in torch.jit.script(model)(x)], list(expected))
