"""PyTorch's files: what it writes is read without it, and what is written it loads."""

import argparse
import io
import sys
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from convention_stacks import stack
from formats_seeds import checkpoint, old, pickled, plain, script, text

import multirnn as mr
from multirnn import formats
from multirnn.cells import FORMS

torch = pytest.importorskip("torch")

OLD = {"_use_new_zipfile_serialization": False}


def lstm(**how: Any) -> Any:
    torch.manual_seed(1)
    return torch.nn.LSTM(5, 4, 2, bidirectional=True, **how)


def canonical(state: dict[str, Any]) -> mr.Weights:
    return mr.from_arrays({name: tensor.detach().numpy() for name, tensor in state.items()}, convention="torch")


def found(path: Path) -> dict[str, formats.Found]:
    return {one.name: one for one in mr.inspect(path)}


class Net(torch.nn.Module):
    """A model with a stack, a cell of each kind, and other layers around them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(7, 5)
        self.encoder = torch.nn.GRU(5, 4, batch_first=True)
        self.cell = torch.nn.LSTMCell(4, 3)
        self.plain = torch.nn.RNNCell(3, 3)
        self.gated = torch.nn.GRUCell(3, 2, bias=False)
        self.head = torch.nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # TorchScript reads the types
        return self.head(self.encoder(self.embedding(x))[0])


SPECS = {
    "encoder": mr.RecurrentSpec("gru", 5, 4),
    "cell": mr.RecurrentSpec("lstm", 4, 3, bias="double"),
    "plain": mr.RecurrentSpec("simple_rnn", 3, 3, bias="double"),
    "gated": mr.RecurrentSpec("gru", 3, 2, bias="none"),
}

# --- Reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("how", [{}, OLD], ids=["zip", "before 1.6"])
def test_a_state_dict_is_read_bit_for_bit(tmp_path: Path, how: dict[str, Any], protocol: int) -> None:
    path, state = tmp_path / "a.pt", lstm().state_dict()
    torch.save(state, path, pickle_protocol=protocol, **how)
    assert mr.load(path) == canonical(state)
    assert found(path)[""].convention == "torch"


@pytest.mark.parametrize("how", [{}, OLD], ids=["zip", "before 1.6"])
def test_what_a_trainer_saves_beside_the_weights_is_passed_over(tmp_path: Path, how: dict[str, Any]) -> None:
    module = lstm()
    optimiser = torch.optim.Adam(module.parameters())
    module(torch.ones(3, 2, 5))[0].sum().backward()
    optimiser.step()
    checkpoint = {
        "model_state_dict": module.state_dict(),
        "optimizer_state_dict": optimiser.state_dict(),
        "epoch": 7,
        "loss": torch.tensor(0.5),
        "arguments": argparse.Namespace(rate=0.1),
        "folder": Path("x"),
        "numbers": [np.float32(3), np.random.default_rng(0).standard_normal(3), torch.get_rng_state()],
        "sets": {1, 2},
        "counts": Counter("aab"),
        "lists": defaultdict(list, {(1, 2): [3]}),
        "device": torch.device("cpu"),
        "dtype": torch.float32,
        "shape": torch.Size([1, 2]),
    }
    torch.save(checkpoint, tmp_path / "a.ckpt", **how)
    assert set(found(tmp_path / "a.ckpt")) == {"model_state_dict"}
    assert mr.load(tmp_path / "a.ckpt") == canonical(module.state_dict())


@pytest.mark.parametrize("home", ["pytorch_lightning.utilities.parsing", "lightning.fabric.utilities.data"])
def test_the_hyperparameters_of_lightning_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    made = type("AttributeDict", (dict,), {"__module__": home})
    for end in range(1, len(home.split(".")) + 1):
        monkeypatch.setitem(sys.modules, ".".join(home.split(".")[:end]), SimpleNamespace(AttributeDict=made))
    module = lstm()
    whole = {"state_dict": module.state_dict(), "hyper_parameters": made(size=4), "global_step": 3}
    torch.save(whole, tmp_path / "a.ckpt")
    assert set(found(tmp_path / "a.ckpt")) == {"state_dict"}
    assert mr.load(tmp_path / "a.ckpt") == canonical(module.state_dict())


@pytest.mark.parametrize("how", [{}, OLD], ids=["zip", "before 1.6"])
def test_views_of_one_storage_transposed_and_strided(tmp_path: Path, how: dict[str, Any]) -> None:
    numbers = torch.arange(10_000.0).reshape(100, 100) / 1e4
    state = {
        "weight_ih": numbers[:5, 7:23].T,
        "weight_hh": numbers[3:35:2, 1:9:2],
        "bias_ih": numbers[:16, 7],
        "bias_hh": numbers[0, :16],
    }
    torch.save(state, tmp_path / "a.pt", **how)
    assert mr.load(tmp_path / "a.pt") == canonical(state)


def test_parameters_are_read_as_tensors(tmp_path: Path) -> None:
    module = lstm()
    torch.save(dict(module.named_parameters()), tmp_path / "a.pt")
    assert mr.load(tmp_path / "a.pt") == canonical(module.state_dict())


@pytest.mark.parametrize("how", [{}, OLD], ids=["zip", "before 1.6"])
def test_tensors_and_parameters_with_attributes(tmp_path: Path, how: dict[str, Any]) -> None:
    module = lstm()
    tensors = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    tensors["weight_ih_l1"] = torch.nn.Parameter(tensors["weight_ih_l1"])
    for tensor in tensors.values():
        tensor.tag = "mine"
    torch.save(tensors, tmp_path / "a.pt", **how)
    assert b"_rebuild_from_type_v2" in (tmp_path / "a.pt").read_bytes()
    assert mr.load(tmp_path / "a.pt") == canonical(module.state_dict())


@pytest.mark.parametrize("how", [{}, OLD], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_half_precision_is_widened_exactly(tmp_path: Path, stored: str, how: dict[str, Any]) -> None:
    state = {name: tensor.to(getattr(torch, stored)) for name, tensor in lstm().state_dict().items()}
    torch.save(state, tmp_path / "a.pt", **how)
    assert mr.load(tmp_path / "a.pt") == canonical({name: tensor.float() for name, tensor in state.items()})
    assert found(tmp_path / "a.pt")[""].stored == stored


def test_double_precision_stays(tmp_path: Path) -> None:
    torch.save(lstm(dtype=torch.float64).state_dict(), tmp_path / "a.pt")
    assert mr.load(tmp_path / "a.pt").spec.dtype == "float64"


WRAPPERS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "as it is": ("", lambda net: net),
    "DataParallel": ("module.", torch.nn.DataParallel),
    "compiled": ("_orig_mod.", torch.compile),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_every_stack_of_a_model_is_found_by_its_name(tmp_path: Path, wrapper: str) -> None:
    prefix, wrap = WRAPPERS[wrapper]
    net = Net()
    torch.save(wrap(net).state_dict(), tmp_path / "a.pt")
    assert {name.removeprefix(prefix): one.spec for name, one in found(tmp_path / "a.pt").items()} == SPECS
    assert mr.load(tmp_path / "a.pt", f"{prefix}cell") == canonical(net.cell.state_dict())
    with pytest.raises(mr.FormatError, match=r"holds the stacks .*encoder', .*cell'.*; pass name="):
        mr.load(tmp_path / "a.pt")


@pytest.mark.parametrize("made", ["scripted", "traced"])
def test_torchscript_is_read_as_data(tmp_path: Path, made: str) -> None:
    net = Net().eval()
    module = torch.jit.script(net) if made == "scripted" else torch.jit.trace(net, torch.zeros(2, 3, dtype=torch.long))
    module.save(tmp_path / "a.jit")
    assert {name: one.spec for name, one in found(tmp_path / "a.jit").items()} == SPECS
    assert mr.load(tmp_path / "a.jit", "encoder") == canonical(net.encoder.state_dict())


def test_a_big_endian_file_is_read(tmp_path: Path) -> None:
    state = lstm().state_dict()
    torch.save({name: torch.from_numpy(tensor.numpy().byteswap()) for name, tensor in state.items()}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as old, zipfile.ZipFile(tmp_path / "b.pt", "w") as new:
        for entry in old.namelist():
            new.writestr(entry, b"big" if entry.endswith("byteorder") else old.read(entry))
    assert all(torch.equal(tensor, state[name]) for name, tensor in torch.load(tmp_path / "b.pt").items())
    assert mr.load(tmp_path / "b.pt") == canonical(state)


def test_a_tensor_of_a_gpu_is_read(tmp_path: Path) -> None:
    arrays = mr.to_arrays(mr.initialise(mr.RecurrentSpec("lstm", 3, 2, bias="double"), 1), convention="torch")
    program = pickled(arrays).replace(text("cpu"), text("cuda:0"))
    for data in (checkpoint(program, arrays), plain(arrays, old(program))):
        (tmp_path / "a.pt").write_bytes(data)
        assert mr.to_arrays(mr.load(tmp_path / "a.pt"), convention="torch").keys() == arrays.keys()


def test_the_files_that_other_tests_make_are_torchs_own(tmp_path: Path) -> None:
    """So that what is shown of damaged ones holds of PyTorch's."""
    arrays = mr.to_arrays(mr.initialise(mr.RecurrentSpec("lstm", 3, 2, bias="double"), 1), convention="torch")
    for data in (checkpoint(pickled(arrays), arrays), plain(arrays)):
        loaded = torch.load(io.BytesIO(data), weights_only=True)["model"]
        assert all(np.array_equal(loaded[name], array) for name, array in arrays.items())
    (tmp_path / "a.jit").write_bytes(checkpoint(script(arrays), arrays))
    assert set(found(tmp_path / "a.jit")) == {"rnn"}


# --- Refused ---------------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "a whole module": (lambda: Net(), "it asks for .*Net, and only tensors and containers are read"),
    "a layer": (lambda: lstm(), r"it asks for torch.nn.modules.rnn.LSTM, .*; save the weights alone: torch.save"),
    "projections": (lambda: lstm(proj_size=2).state_dict(), "'weight_hr_l0' is a projection"),
    "an unknown tensor beside": (
        lambda: {**lstm().state_dict(), "peephole": torch.zeros(4)},
        "'peephole' is beside the arrays of the stack",
    ),
    "a missing matrix": (lambda: {"a.weight_ih_l0": torch.zeros(16, 5)}, "'a' .*: layer 0 has no array weight_hh"),
    "integers": (
        lambda: {name: tensor.to(torch.int8) for name, tensor in lstm().state_dict().items()},
        "'weight_ih_l0' is int8, and weights are floating-point numbers",
    ),
    "eight bits": (
        lambda: {name: tensor.to(torch.float8_e4m3fn) for name, tensor in lstm().state_dict().items()},
        "'weight_ih_l0' is float8_e4m3fn, which is not read here; save it as float32",
    ),
    "an expanded tensor": (
        lambda: {"weight_ih": torch.zeros(1).expand(16, 5), "weight_hh": torch.zeros(16, 4)},
        "'weight_ih' is a tensor that repeats the numbers of its storage",
    ),
    "other shapes": (
        lambda: {"weight_ih": torch.zeros(17, 5), "weight_hh": torch.zeros(17, 4)},
        "the arrays fit no cell",
    ),
    "mixed dtypes": (
        lambda: {"weight_ih": torch.zeros(16, 5), "weight_hh": torch.zeros(16, 4).double()},
        "must all be float32 or all float64",
    ),
    "no layer": (lambda: {"weight": torch.zeros(3, 4)}, "holds no recurrent stack that is known here"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_no_spec_describes_is_refused_by_name(tmp_path: Path, what: str) -> None:
    made, sentence = REFUSED[what]
    torch.save(made(), tmp_path / "a.pt")
    with pytest.raises(mr.FormatError, match=sentence):
        mr.load(tmp_path / "a.pt")


def test_what_beside_a_stack_is_not_read_is_listed(tmp_path: Path) -> None:
    net = torch.nn.ModuleDict({"a": torch.nn.LSTM(5, 4, proj_size=2), "b": torch.nn.GRU(4, 4)})
    torch.save(net.state_dict(), tmp_path / "a.pt")
    refused, read = mr.inspect(tmp_path / "a.pt")
    assert (refused.name, refused.spec, read.name) == ("a", None, "b")
    assert "'a.weight_hr_l0' is a projection" in refused.refused
    assert mr.load(tmp_path / "a.pt", "b") == canonical(net["b"].state_dict())
    with pytest.raises(mr.FormatError, match=r"the layer 'a' cannot be read: 'a.weight_hr_l0' is a projection"):
        mr.load(tmp_path / "a.pt", "a")


# --- Writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("form", "kind"), [("simple_rnn", "RNN"), ("lstm", "LSTM"), ("gru reset after", "GRU")])
def test_torch_loads_what_is_written(
    tmp_path: Path, form: str, kind: str, layers: int, bidirectional: bool, dtype: mr.spec.DType
) -> None:
    spec = stack(form, "double", num_layers=layers, bidirectional=bidirectional, dtype=dtype)
    weights = mr.initialise(spec, 1)
    written = mr.save(weights, tmp_path / "a.pt")
    module = getattr(torch.nn, kind)(5, 4, layers, bidirectional=bidirectional, dtype=getattr(torch, dtype))
    module.load_state_dict(torch.load(tmp_path / "a.pt", weights_only=True))
    assert canonical(module.state_dict()) == weights
    assert mr.load(tmp_path / "a.pt") == weights
    assert written.changes == ()
    assert written.convention == "torch"


def test_torch_maps_what_is_written_into_memory(tmp_path: Path) -> None:
    weights = mr.initialise(mr.RecurrentSpec("lstm", 5, 3, 2, True, bias="double"), 1)
    mr.save(weights, tmp_path / "a.pt")
    state = torch.load(tmp_path / "a.pt", weights_only=True, mmap=True)
    assert {tensor.data_ptr() % 64 for tensor in state.values()} == {0}
    assert canonical(state) == weights
    mr.save(weights, tmp_path / "b.pt")
    assert (tmp_path / "b.pt").read_bytes() == (tmp_path / "a.pt").read_bytes(), "the same weights, the same file"


@pytest.mark.parametrize("form", [form for form in FORMS if form != "gru reset before"])
@pytest.mark.parametrize("bias", ["none", "single"])
def test_biases_that_torch_does_not_hold_are_split_and_said(tmp_path: Path, form: str, bias: str) -> None:
    weights = mr.initialise(stack(form, bias), 1)
    written = mr.save(weights, tmp_path / "a.pt")
    held = (form, bias) != ("gru reset after", "single")
    assert written.changes == (() if held else ("biases of zero were added, which the convention torch needs",))
    assert mr.load(tmp_path / "a.pt") == (weights if held else mr.split_biases(weights))


def test_a_gru_that_torch_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(mr.Unrepresentable, match="PyTorch has no GRU whose reset gate acts before"):
        mr.save(mr.initialise(stack("gru reset before", "single")), tmp_path / "a.pt")
    assert not list(tmp_path.iterdir())
