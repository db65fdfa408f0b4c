"""Keras' files without Keras: round trips bit for bit, files of older versions, and what is left open in them."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import multirnn as mr
from multirnn import Activation, formats
from multirnn.cells import FORMS
from multirnn.conventions import CONVENTIONS
from multirnn.errors import FormatError, MissingFramework
from multirnn.formats.keras_config import described

h5py = pytest.importorskip("h5py")

SUFFIXES = (".keras", ".h5", ".hdf5", ".weights.h5")
OLD_HARD = Activation("hard_sigmoid", alpha=0.2, beta=0.5)
NEW_HARD = Activation("hard_sigmoid", alpha=1 / 6, beta=0.5)
Named = Mapping[str, np.ndarray]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_what_the_format_holds_comes_back_bit_for_bit(
    form: str, bidirectional: bool, suffix: str, tmp_path: Path
) -> None:
    cell = FORMS[form]
    path = tmp_path / f"a{suffix}"
    for layers, bias, dtype in product((1, 2, 3), ("none", "single", "double"), ("float32", "float64")):
        spec = mr.RecurrentSpec(
            cell.name,
            5,
            3,
            num_layers=layers,
            bidirectional=bidirectional,
            bias=bias,
            reset_after=cell.reset_after,
            dtype=dtype,
        )
        weights = mr.initialise(spec)
        written = formats.save(weights, path)
        loaded = formats.load(path)
        assert loaded.spec == written.spec
        if CONVENTIONS["keras"].refuses(spec) is None:
            assert not written.changes
            assert loaded == weights
        else:
            assert len(written.changes) == 1
            x = np.ones((2, 3, 5), dtype)
            outputs = [mr.build(one, "numpy")(x).sequence for one in (loaded, weights)]
            assert mr.difference(*outputs).normwise <= mr.tolerance(dtype)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_equal_weights_make_equal_files_and_odd_numbers_survive(suffix: str, tmp_path: Path) -> None:
    drawn = mr.initialise(mr.RecurrentSpec("lstm", 2, 3))
    arrays = {name: array.copy() for name, array in drawn.arrays.items()}
    odd = next(iter(arrays.values()))
    odd.reshape(-1)[:4] = np.nan, -np.inf, -0.0, 1e-45
    weights = mr.Weights(drawn.spec, arrays)
    for name in "ab":
        formats.save(weights, tmp_path / f"{name}{suffix}")
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    loaded = formats.load(tmp_path / f"a{suffix}")
    assert [array.tobytes() for array in loaded.arrays.values()] == [array.tobytes() for array in arrays.values()]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"a{suffix}", f"b{suffix}"]


def test_reading_needs_no_package_and_writing_names_the_one_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = mr.initialise(mr.RecurrentSpec("gru", 2, 3))
    formats.save(weights, tmp_path / "a.keras")
    code = (
        "import sys; from multirnn import formats; formats.load(sys.argv[1]); "
        "print({'h5py', 'keras', 'tensorflow'} & set(sys.modules))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.keras"], capture_output=True, text=True, check=True, timeout=60
    )
    assert run.stdout == "set()\n"
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert formats.load(tmp_path / "a.keras") == weights
    with pytest.raises(MissingFramework, match="'h5py'"):
        formats.save(weights, tmp_path / "b.keras")


# --- Files of older versions -----------------------------------------------------------------------------------------


def legacy(
    path: Path,
    groups: Mapping[str, Named],
    *,
    version: str | None = None,
    layers: Sequence[Any] | None = None,
    kind: str = "Sequential",
) -> Path:
    """A file as Keras 1 and 2 wrote it: of weights alone, or of a model with these layers."""
    with h5py.File(path, "w") as file:
        if layers is not None:
            config = list(layers) if version is None or version < "2.2.3" else {"name": "m", "layers": list(layers)}
            file.attrs["model_config"] = json.dumps({"class_name": kind, "config": config}).encode()
        top = file.create_group("model_weights") if layers is not None else file
        top.attrs["layer_names"] = np.array([name.encode() for name in groups])
        if version is not None:
            top.attrs["keras_version"] = version.encode()
        for name, arrays in groups.items():
            group = top.create_group(name)
            group.attrs["weight_names"] = np.array([own.encode() for own in arrays])
            for own, array in arrays.items():
                group[own] = array
    return path


def of_keras(weights: mr.Weights, folder: str, colon: str = ":0") -> dict[str, np.ndarray]:
    arrays = mr.to_arrays(weights, convention="keras")
    return {f"{folder}/{name.rpartition('/')[2]}{colon}": array for name, array in arrays.items()}


def layer(kind: str, name: str, **fields: Any) -> dict[str, Any]:
    return {"class_name": kind, "config": {"name": name, "units": 3, **fields}}


@pytest.mark.parametrize(
    ("version", "gate"),
    [("2.1.5", OLD_HARD), ("2.3.0", OLD_HARD), ("2.13.1", OLD_HARD), ("3.0.0", NEW_HARD), ("3.12.0", NEW_HARD)],
)
def test_the_version_that_wrote_the_file_says_which_hard_sigmoid(
    version: str, gate: Activation, tmp_path: Path
) -> None:
    weights = mr.initialise(mr.RecurrentSpec("lstm", 2, 3))
    fields = {"activation": "tanh", "recurrent_activation": "hard_sigmoid"}
    path = legacy(
        tmp_path / "a.h5", {"l": of_keras(weights, "l")}, version=version, layers=[layer("LSTM", "l", **fields)]
    )
    loaded = formats.load(path)
    assert loaded.spec.recurrent_activation == gate
    assert loaded.arrays.keys() == weights.arrays.keys()
    assert all(np.array_equal(array, weights.arrays[name]) for name, array in loaded.arrays.items())
    assert formats.load(path, recurrent_activation=gate) == loaded
    with pytest.raises(FormatError, match="and the call 'sigmoid'; leave recurrent_activation= out"):
        formats.load(path, recurrent_activation="sigmoid")


@pytest.mark.parametrize(
    ("version", "gate", "words"),
    [
        ("2.1.5", OLD_HARD, "hard_sigmoid(alpha=0.2, beta=0.5), the defaults of Keras 2.1.5"),
        ("2.2.4-tf", "sigmoid", "if TensorFlow 1 wrote it"),
        ("2.4.0", "sigmoid", "taken are tanh and sigmoid, the defaults of Keras 2.4.0"),
        (None, OLD_HARD, "the defaults of Keras 1"),
    ],
)
def test_weights_alone_are_taken_with_the_defaults_of_their_version(
    version: str | None, gate: Any, words: str, tmp_path: Path
) -> None:
    weights = mr.initialise(mr.RecurrentSpec("lstm", 2, 3))
    path = legacy(tmp_path / "a.hdf5", {"l": of_keras(weights, "l")}, version=version)
    (found,) = formats.inspect(path)
    assert found.spec is not None
    assert found.spec.recurrent_activation == gate
    assert words in " ".join(found.about)
    assert formats.load(path, recurrent_activation="sigmoid") == weights


@pytest.mark.parametrize("fields", [{}, {"reset_after": False}])
def test_a_gru_of_early_keras_resets_before(fields: dict[str, bool], tmp_path: Path) -> None:
    weights = mr.initialise(mr.RecurrentSpec("gru", 2, 3, reset_after=False, bias="none"))
    config = layer("GRU", "g", activation="tanh", recurrent_activation="sigmoid", **fields)
    path = legacy(tmp_path / "a.h5", {"g": of_keras(weights, "g")}, version="2.1.2", layers=[config])
    assert formats.load(path) == weights


def test_without_bias_and_configuration_the_form_of_a_gru_is_asked_for(tmp_path: Path) -> None:
    weights = mr.initialise(mr.RecurrentSpec("gru", 2, 3, reset_after=False, bias="none"))
    path = legacy(tmp_path / "a.h5", {"g": of_keras(weights, "g")}, version="2.4.0")
    with pytest.raises(FormatError, match="reset_after=True or reset_after=False"):
        formats.load(path)
    assert formats.load(path, reset_after=False) == weights


def test_layers_of_cudnn_in_weights_alone(tmp_path: Path) -> None:
    weights = mr.initialise(mr.RecurrentSpec("lstm", 2, 3, bias="double"))
    arrays = mr.to_arrays(weights, convention="keras-cudnn")
    own = {f"rnn_1/{name.rpartition('/')[2]}:0": array for name, array in arrays.items()}
    path = legacy(
        tmp_path / "a.hdf5", {"rnn_1": own, "embedding": {"embedding/embeddings:0": np.ones((3, 2))}}, version="2.1.5"
    )
    (found,) = formats.inspect(path)
    assert (found.name, found.convention, found.about) == ("rnn_1", "keras-cudnn", ())
    assert formats.load(path) == weights


@pytest.mark.parametrize(("cell", "kind"), [("lstm", "CuDNNLSTM"), ("gru", "CuDNNGRU")])
def test_layers_of_cudnn_with_their_configuration(cell: str, kind: str, tmp_path: Path) -> None:
    weights = mr.initialise(mr.RecurrentSpec(cell, 2, 3, num_layers=2, bidirectional=True, bias="double"))
    arrays = mr.to_arrays(weights, convention="keras-cudnn")
    groups: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        groups.setdefault(name.partition("/")[0], {})[f"{name}:0"] = array
    inner = {"class_name": kind, "config": {"name": "inner", "units": 3, "return_sequences": True}}
    layers = [
        {"class_name": "Bidirectional", "config": {"name": name, "merge_mode": "concat", "layer": inner}}
        for name in groups
    ]
    path = legacy(tmp_path / "a.h5", groups, version="2.2.4", layers=layers)
    (found,) = formats.inspect(path)
    assert (found.name, found.convention, found.about) == (" ".join(groups), "keras-cudnn", ())
    assert formats.load(path) == weights


@pytest.mark.parametrize("version", ["2.1.5", "2.4.0"])
def test_directions_and_the_numbered_cells_of_tensorflow(version: str, tmp_path: Path) -> None:
    weights = mr.initialise(mr.RecurrentSpec("lstm", 2, 3, bidirectional=True))
    cells = ("", "") if version == "2.1.5" else ("/lstm_cell_1", "/lstm_cell_2")
    arrays = {
        name: array
        for direction, cell in zip(("forward", "backward"), cells, strict=True)
        for name, array in of_keras(weights.part(0, direction), f"both/{direction}_lstm_1{cell}").items()
    }
    inner = layer("LSTM", "lstm_1", activation="tanh", recurrent_activation="sigmoid", return_sequences=True)
    config = {"class_name": "Bidirectional", "config": {"name": "both", "merge_mode": "concat", "layer": inner}}
    assert formats.load(legacy(tmp_path / "a.h5", {"both": arrays}, version=version, layers=[config])) == weights
    alone = legacy(tmp_path / "b.h5", {"both": arrays}, version=version)
    assert formats.load(alone, recurrent_activation="sigmoid") == weights


def test_a_layer_that_is_called_forward_is_no_direction(tmp_path: Path) -> None:
    weights = mr.initialise(mr.RecurrentSpec("simple_rnn", 2, 3))
    path = legacy(tmp_path / "a.h5", {"forward_rnn": of_keras(weights, "forward_rnn")}, version="2.4.0")
    assert formats.load(path, "forward_rnn") == weights


OF_KERAS_1 = {"lstm": ("LSTM", "icfo", "ifco"), "gru": ("GRU", "zrh", "zrh"), "simple_rnn": ("SimpleRNN", "", "")}


@pytest.mark.parametrize("cell", OF_KERAS_1)
def test_keras_1_kept_each_gate_apart(cell: str, tmp_path: Path) -> None:
    kind, order, gates = OF_KERAS_1[cell]
    reset = {"reset_after": False} if cell == "gru" else {}
    hard = {} if cell == "simple_rnn" else {"recurrent_activation": OLD_HARD}
    weights = mr.initialise(mr.RecurrentSpec(cell, 2, 3, activation="relu", **reset, **hard))
    both = list(mr.to_arrays(weights, convention="keras").values())
    parts = [np.split(array, max(1, len(gates)), -1) for array in both]
    arrays: dict[str, np.ndarray] = {}
    for gate in order or ("",):
        for own, part in zip("WUb", parts, strict=True):
            arrays[f"{cell}_1_{own}" + (f"_{gate}" if gate else "")] = part[gates.index(gate) if gate else 0]
    fields = {
        "output_dim": 3,
        "activation": "relu",
        "dropout_U": 0.5,
        **({"inner_activation": "hard_sigmoid"} if hard else {}),
    }
    config = {"class_name": kind, "config": {"name": "r", **fields}}
    path = legacy(tmp_path / "a.h5", {"r": arrays, "d": {"d_W": np.ones((3, 1)), "d_b": np.ones(1)}}, layers=[config])
    assert formats.load(path) == weights
    assert "recurrent_dropout=0.5" in " ".join(formats.inspect(path)[0].about)


def test_a_long_list_of_layers_is_spread_over_attributes(tmp_path: Path) -> None:
    weights = mr.initialise(mr.RecurrentSpec("simple_rnn", 2, 3))
    path = legacy(tmp_path / "a.h5", {"r": of_keras(weights, "r"), "d": {}}, version="2.4.0")
    with h5py.File(path, "r+") as file:
        del file.attrs["layer_names"]
        file.attrs["layer_names0"], file.attrs["layer_names1"] = np.array([b"d"]), np.array([b"r"])
    assert formats.load(path) == weights


def test_the_files_of_tensorflow_2_13_have_another_name_for_layers(tmp_path: Path) -> None:
    weights = mr.initialise(mr.RecurrentSpec("gru", 2, 3))
    formats.save(weights, tmp_path / "a.weights.h5")
    with h5py.File(tmp_path / "a.weights.h5", "r+") as file:
        file.move("layers", "_layer_checkpoint_dependencies")
        del file["_layer_checkpoint_dependencies/gru/vars"].attrs["name"]
    assert formats.load(tmp_path / "a.weights.h5", "gru") == weights


def test_a_hard_sigmoid_of_an_unknown_version_is_asked_for(tmp_path: Path) -> None:
    weights = mr.initialise(mr.RecurrentSpec("gru", 2, 3, recurrent_activation=NEW_HARD))
    path = tmp_path / "a.weights.h5"
    formats.save(weights, path)
    assert formats.load(path) == weights
    with h5py.File(path, "r+") as file:
        del file.attrs["keras_version"]
    with pytest.raises(FormatError, match=r"slope 0\.2 before Keras 3 and 1/6 since.*pass recurrent_activation="):
        formats.load(path)
    assert formats.load(path, recurrent_activation=NEW_HARD) == weights


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"kernel": np.ones((2, 12), "i4"), "recurrent_kernel": np.ones((3, 12), "i4")}, "int32"),
        ({"kernel": np.ones((2, 12)), "recurrent_kernel": np.ones((3, 12), "f4")}, "float32 and float64"),
        ({"kernel": np.ones((2, 12)), "recurrent_kernel": np.ones((4, 12)), "bias": np.ones(7)}, "no place for bias"),
        ({"kernel": np.ones((2, 12)), "recurrent_kernel": np.ones((3, 13))}, r"the shape \(3, 13\) where a recurrent"),
        ({"kernel": np.ones((3, 3, 2, 4)), "recurrent_kernel": np.ones((3, 3, 1, 4))}, "where a recurrent kernel"),
    ],
)
def test_arrays_that_are_no_layer_leave_the_others_readable(arrays: Named, reason: str, tmp_path: Path) -> None:
    good = mr.initialise(mr.RecurrentSpec("lstm", 2, 3))
    groups = {"bad": {f"bad/{name}:0": array for name, array in arrays.items()}, "good": of_keras(good, "good")}
    path = legacy(tmp_path / "a.h5", groups, version="2.4.0")
    bad, other = formats.inspect(path)
    assert (bad.name, bad.spec, other.name, other.refused) == ("bad", None, "good", "")
    assert formats.load(path, "good") == good
    with pytest.raises(FormatError, match=reason):
        formats.load(path, "bad")


def test_numbers_of_layers_follow_their_class_and_not_their_names() -> None:
    parts = [layer("LSTM", "b"), layer("GRU", "c"), layer("LSTM", "a"), layer("MyOwnRNN2D", "d")]
    config = {
        "class_name": "Functional",
        "config": {"layers": [*parts, layer("Sequential", "m", layers=[layer("GRU", "c")])]},
    }
    found = {one.name: one.path for one in described(config)}
    assert found == {
        "b": "layers/lstm",
        "c": "layers/gru",
        "a": "layers/lstm_1",
        "d": "layers/my_own_rnn2d",
        "m": "layers/sequential",
        "m/c": "layers/sequential/layers/gru",
    }


MALFORMED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no layers": lambda config: {"config": 3},
    "layers of numbers": lambda config: {"config": {"layers": [1, None, "x", {"config": 2}]}},
    "a list": lambda config: [config],
    "deep": lambda config: {"class_name": "Sequential", "config": _nested(200)},
}


def _nested(depth: int) -> dict[str, Any]:
    return {"layers": [{"class_name": "Sequential", "config": _nested(depth - 1) if depth else {}}]}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_configuration_without_the_layers_says_nothing_of_them(case: str, tmp_path: Path) -> None:
    weights = mr.initialise(mr.RecurrentSpec("lstm", 2, 3))
    path = tmp_path / "a.h5"
    formats.save(weights, path)
    with h5py.File(path, "r+") as file:
        file.attrs["model_config"] = json.dumps(MALFORMED[case](json.loads(file.attrs["model_config"])))
    if case == "a list":
        with pytest.raises(FormatError, match="no JSON object"):
            formats.load(path)
    else:
        assert formats.load(path) == weights


def test_a_configuration_of_another_name_says_nothing_of_the_layer(tmp_path: Path) -> None:
    weights = mr.initialise(mr.RecurrentSpec("lstm", 3, 3, num_layers=2))
    path = tmp_path / "a.h5"
    formats.save(weights, path)
    assert [found.name for found in formats.inspect(path)] == ["lstm lstm_1"]
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        config["config"]["layers"][1]["config"]["name"] = "other"
        config["config"]["layers"][2]["inbound_nodes"] = [[["lstm", 0, 0, {}]]]
        file.attrs["model_config"] = json.dumps({**config, "class_name": "Functional"})
    assert [found.name for found in formats.inspect(path)] == ["lstm", "lstm_1"]
    assert formats.load(path, "lstm") == weights.part(0, "forward")


def test_a_call_may_repeat_what_the_file_says_and_not_contradict_it(tmp_path: Path) -> None:
    weights = mr.initialise(
        mr.RecurrentSpec("gru", 2, 3, activation="relu", recurrent_activation=NEW_HARD, reset_after=True)
    )
    path = tmp_path / "a.keras"
    formats.save(weights, path)
    said = {"cell": "gru", "reset_after": True, "activation": "relu", "recurrent_activation": NEW_HARD}
    assert formats.load(path, **said) == formats.load(path, activation=Activation("relu")) == weights
    for name, other in {
        "cell": "lstm",
        "reset_after": False,
        "activation": "tanh",
        "recurrent_activation": OLD_HARD,
    }.items():
        with pytest.raises(FormatError, match=rf"says {name}=.*, and the call .*; leave {name}= out"):
            formats.load(path, **{name: other})
    bare = tmp_path / "a.weights.h5"
    formats.save(mr.initialise(mr.RecurrentSpec("lstm", 2, 3)), bare)
    with h5py.File(bare, "r+") as file:
        for name in list(file.attrs):
            del file.attrs[name]
    assert formats.load(bare, activation="relu").spec.activation == "relu"


@pytest.mark.parametrize(("name", "told"), [("my_own", True), ("swish", False)])
def test_a_function_of_the_users_own_is_what_the_call_says(name: str, told: bool, tmp_path: Path) -> None:
    weights = mr.initialise(mr.RecurrentSpec("lstm", 2, 3, activation="relu"))
    config = {"class_name": "LSTM", "config": {"name": "r", "activation": name}}
    path = legacy(tmp_path / "a.h5", {"r": of_keras(weights, "r")}, layers=[config], version="2.4.0")
    with pytest.raises(FormatError, match=f"{name}' is in no spec"):
        formats.load(path)
    if told:
        assert formats.load(path, activation="relu") == weights
        return
    with pytest.raises(FormatError, match="'swish' is in no spec"):
        formats.load(path, activation="relu")


def test_layers_of_cudnn_have_no_other_activation(tmp_path: Path) -> None:
    weights = mr.initialise(mr.RecurrentSpec("lstm", 2, 3, bias="double"))
    arrays = mr.to_arrays(weights, convention="keras-cudnn")
    config = {"class_name": "CuDNNLSTM", "config": {"name": "r", "units": 3}}
    named = {f"r/{name.rpartition('/')[2]}:0": array for name, array in arrays.items()}
    path = legacy(tmp_path / "a.h5", {"r": named}, layers=[config])
    assert formats.load(path, activation="tanh").spec.activation == "tanh"
    with pytest.raises(FormatError, match="the file says activation='tanh', and the call 'relu'"):
        formats.load(path, activation="relu")
