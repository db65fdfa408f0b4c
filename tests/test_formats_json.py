"""RTNeural's and NAM's JSON: layouts of those projects, numbers without loss, and what they cannot hold."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import multirnn as mr
from multirnn import formats
from multirnn.errors import FormatError, Unrepresentable

CELLS = {"lstm": "single", "gru": "double"}


def written(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def rtneural(weights: mr.Weights, **fields: Any) -> dict[str, Any]:
    """A layer as RTNeural's `model_utils.py` writes Keras': `get_weights`, and a shape that ends in the units."""
    spec = weights.spec
    arrays = [array.tolist() for array in mr.to_arrays(weights, convention="keras").values()]
    return {
        "type": spec.cell,
        "activation": "tanh",
        "shape": [None, None, spec.hidden_size],
        "weights": arrays,
        **fields,
    }


def dense(inputs: int, outputs: int) -> dict[str, Any]:
    weights = [np.ones((inputs, outputs)).tolist(), np.ones(outputs).tolist()]
    return {"type": "time-distributed-dense", "activation": "", "shape": [None, None, outputs], "weights": weights}


@pytest.mark.parametrize(("cell", "layers"), list(product(CELLS, (1, 2, 3))))
def test_a_stack_comes_back_bit_for_bit(cell: str, layers: int, tmp_path: Path) -> None:
    for bias in ("single", "double"):
        weights = mr.initialise(mr.RecurrentSpec(cell, 2, 3, num_layers=layers, bias=bias))
        result = formats.save(weights, tmp_path / "a.json")
        loaded = formats.load(tmp_path / "a.json")
        assert loaded.spec == result.spec
        if bias == CELLS[cell]:
            assert not result.changes
            assert loaded == weights
        else:
            assert len(result.changes) == 1


def test_the_layout_is_that_of_its_loader(tmp_path: Path) -> None:
    weights = mr.initialise(mr.RecurrentSpec("gru", 2, 3))
    formats.save(weights, tmp_path / "a.json")
    model = json.loads((tmp_path / "a.json").read_text())
    assert model == {"in_shape": [None, None, 2], "layers": [rtneural(weights)]}
    kernel, recurrent, bias = model["layers"][0]["weights"]
    assert [np.shape(one) for one in (kernel, recurrent, bias)] == [(2, 9), (3, 9), (2, 9)]


def test_every_float32_survives_a_parser_of_float64_and_one_of_float32(tmp_path: Path) -> None:
    drawn = mr.initialise(mr.RecurrentSpec("lstm", 7, 5))
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.integers(0, 0x7F800000, array.size, np.uint32).view(np.float32).reshape(array.shape)
        for name, array in drawn.arrays.items()
    }
    arrays["layers.0.forward.bias_ih"].reshape(-1)[:4] = 1e-45, -0.0, 3.4028235e38, 0.1
    weights = mr.Weights(drawn.spec, arrays)
    formats.save(weights, tmp_path / "a.json")
    loaded = formats.load(tmp_path / "a.json")
    assert [array.tobytes() for array in loaded.arrays.values()] == [array.tobytes() for array in arrays.values()]
    with_text = json.loads((tmp_path / "a.json").read_text(), parse_float=np.float32)
    kernel = np.array(with_text["layers"][0]["weights"][0], np.float32)
    assert np.array_equal(kernel, next(iter(mr.to_arrays(weights, convention="keras").values())))


def test_layers_around_separate_stacks(tmp_path: Path) -> None:
    first = mr.initialise(mr.RecurrentSpec("lstm", 2, 3, num_layers=2), seed=1)
    last = mr.initialise(mr.RecurrentSpec("gru", 4, 3), seed=2)
    parts = [first.part(layer, "forward") for layer in range(2)]
    layers = [dense(2, 2), *map(rtneural, parts), dense(3, 4), rtneural(last), dense(3, 1)]
    path = written(tmp_path / "a.json", {"in_shape": [None, None, 2], "layers": layers})
    assert [found.name for found in formats.inspect(path)] == ["1 2", "4"]
    assert formats.load(path, "1 2") == first
    assert formats.load(path, "4") == last
    with pytest.raises(FormatError, match=r"holds the stacks '1 2', '4'; pass name="):
        formats.load(path)


def test_a_state_dict_in_json_is_pytorchs(tmp_path: Path) -> None:
    weights = mr.initialise(mr.RecurrentSpec("lstm", 1, 4, bias="double"))
    named = {f"rec.{name}": array.tolist() for name, array in mr.to_arrays(weights, convention="torch").items()}
    model = {"model_data": {"unit_type": "LSTM"}, "state_dict": {**named, "lin.weight": [[1.0] * 4], "lin.bias": [0.5]}}
    path = written(tmp_path / "a.json", model)
    (found,) = formats.inspect(path)
    assert (found.name, found.convention, found.about) == ("rec", "torch", ())
    assert formats.load(path) == weights


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (mr.RecurrentSpec("lstm", 2, 3, dtype="float64"), r'astype\("float32"\)'),
        (mr.RecurrentSpec("simple_rnn", 2, 3), "has an LSTM and a GRU, and no"),
        (mr.RecurrentSpec("lstm", 2, 3, bidirectional=True), "in one direction"),
        (mr.RecurrentSpec("gru", 2, 3, reset_after=False), "before the recurrent product"),
        (mr.RecurrentSpec("lstm", 2, 3, bias="none"), "adds those of zero"),
        (mr.RecurrentSpec("lstm", 2, 3, activation="relu"), "activation='tanh' alone, not 'relu'"),
        (mr.RecurrentSpec("gru", 2, 3, recurrent_activation="relu"), "recurrent_activation='sigmoid' alone"),
    ],
)
def test_what_rtneural_does_not_compute_is_refused(spec: mr.RecurrentSpec, reason: str, tmp_path: Path) -> None:
    with pytest.raises(Unrepresentable, match=reason):
        formats.save(mr.initialise(spec), tmp_path / "a.json")
    assert not list(tmp_path.iterdir())


def test_the_advice_for_a_stack_without_biases_holds(tmp_path: Path) -> None:
    weights = mr.initialise(mr.RecurrentSpec("lstm", 2, 3, bias="none"))
    formats.save(mr.fold_biases(mr.split_biases(weights)), tmp_path / "a.json")
    x = np.ones((1, 4, 2), "f4")
    outputs = [mr.build(one, "numpy")(x).sequence for one in (formats.load(tmp_path / "a.json"), weights)]
    assert np.array_equal(*outputs)


def test_numbers_that_json_has_not_are_refused(tmp_path: Path) -> None:
    drawn = mr.initialise(mr.RecurrentSpec("lstm", 2, 3))
    arrays = {name: np.full_like(array, np.nan) for name, array in drawn.arrays.items()}
    with pytest.raises(Unrepresentable, match="not finite"):
        formats.save(mr.Weights(drawn.spec, arrays), tmp_path / "a.json")
    assert not list(tmp_path.iterdir())


def test_a_layer_that_rtneural_runs_otherwise_is_refused_and_the_others_are_read(tmp_path: Path) -> None:
    weights = mr.initialise(mr.RecurrentSpec("lstm", 2, 2))
    short = rtneural(weights)
    short["weights"] = short["weights"][:2]
    layers = [rtneural(weights), dense(2, 2), rtneural(weights, activation="relu"), dense(2, 2), short]
    path = written(tmp_path / "a.json", {"in_shape": [None, None, 2], "layers": layers})
    assert formats.load(path, "0") == weights
    for name, reason in (("2", "which RTNeural ignores"), ("4", "has 2 arrays")):
        with pytest.raises(FormatError, match=reason):
            formats.load(path, name)


# --- NAM -------------------------------------------------------------------------------------------------------------


def nam(weights: mr.Weights, state: mr.State | None = None, **changes: Any) -> dict[str, Any]:
    """A model as NeuralAmpModelerCore reads it: rows [W | U], the bias, h and c of each layer, then the head."""
    spec = weights.spec
    numbers: list[float] = []
    for layer in range(spec.num_layers):
        own = weights.at(layer, "forward")
        rows = np.concatenate([own["weight_ih"], own["weight_hh"]], -1)
        numbers += rows.reshape(-1).tolist() + own["bias_ih"].reshape(-1).tolist()
        for part in state.parts if state else [np.zeros((spec.num_layers, 1, spec.hidden_size))] * 2:
            numbers += part[layer, 0].tolist()
    numbers += [0.25] * spec.hidden_size + [0.5]
    config = {"num_layers": spec.num_layers, "input_size": spec.input_size, "hidden_size": spec.hidden_size}
    return {"version": "0.5.2", "architecture": "LSTM", "config": config, "weights": numbers, **changes}


@pytest.mark.parametrize("layers", [1, 3])
def test_nam_is_read(layers: int, tmp_path: Path) -> None:
    weights = mr.initialise(mr.RecurrentSpec("lstm", 1, 3, num_layers=layers))
    path = written(tmp_path / "a.nam", nam(weights))
    (found,) = formats.inspect(path)
    assert found.about == ()
    assert formats.load(path) == weights
    arrays = formats.read(path).arrays
    assert np.array_equal(arrays["head.weight"], np.full((1, 3), 0.25, "f4"))
    assert np.array_equal(arrays["head.bias"], np.full(1, 0.5, "f4"))


def test_an_initial_state_is_declared_and_at_hand(tmp_path: Path) -> None:
    weights = mr.initialise(mr.RecurrentSpec("lstm", 1, 3, num_layers=2))
    rng = np.random.default_rng(0)
    state = mr.State(*rng.normal(size=(2, 2, 1, 3)).astype("f4"))
    path = written(tmp_path / "a.nam", nam(weights, state))
    (found,) = formats.inspect(path)
    assert "facts['state']" in found.about[0]
    start = formats.read(path).facts["state"]
    given = mr.State(*(start[name][:, None] for name in ("h0", "c0")))
    x = rng.normal(size=(1, 5, 1)).astype("f4")
    layer = mr.build(formats.load(path), "numpy")
    assert np.array_equal(layer(x, given).sequence, layer(x, state).sequence)
    assert not np.array_equal(layer(x, given).sequence, layer(x).sequence)


def test_nam_is_only_read(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="only read"):
        formats.save(mr.initialise(mr.RecurrentSpec("lstm", 1, 3)), tmp_path / "a.nam")


# --- Damage ----------------------------------------------------------------------------------------------------------

LAYER = {"type": "lstm", "weights": [[[1.0] * 4], [[1.0] * 4], [1.0] * 4]}
BAD: dict[str, tuple[str, Any, str]] = {
    "nothing": (".json", "", "no JSON"),
    "deep": (".json", "[" * 100_000, "no JSON"),
    "a list": (".json", "[]", "JSON object, not a list"),
    "no layers": (".json", {}, "no list of layers"),
    "layers of numbers": (".json", {"layers": [1]}, "no list of layers"),
    "weights of text": (".json", {"layers": [{**LAYER, "weights": "x"}]}, "no list"),
    "ragged": (".json", {"layers": [{**LAYER, "weights": [[[1], [1, 2]], [[1]], [1]]}]}, "no array of numbers"),
    "words": (".json", {"layers": [{**LAYER, "weights": [["a"], [[1]], [1]]}]}, "no array of numbers"),
    "truths": (".json", {"layers": [{**LAYER, "weights": [[True], [[1]], [1]]}]}, "no array of numbers"),
    "large": (".json", {"layers": [{**LAYER, "weights": [[[1e39] * 4], *LAYER["weights"][1:]]}]}, "too large"),
    "huge": (".json", {"layers": [{**LAYER, "weights": [[10**400], [[1]], [1]]}]}, "no array of numbers"),
    "empty": (".json", {"layers": [{"type": "gru", "weights": []}]}, "has 0 arrays"),
    "no cell": (".json", {"layers": [{**LAYER, "weights": [[[1.0] * 5], [[1.0] * 5], [1.0] * 5]}]}, "fit no cell"),
    "other architecture": (".nam", {"architecture": "WaveNet"}, "'WaveNet'"),
    "no config": (".nam", {"architecture": "LSTM", "weights": [1]}, "lacks a positive"),
    "huge sizes": (
        ".nam",
        {
            "architecture": "LSTM",
            "config": {"num_layers": 10**30, "input_size": 10**30, "hidden_size": 10**30},
            "weights": [],
        },
        "its sizes need",
    ),
    "matrix": (
        ".nam",
        {"architecture": "LSTM", "config": {"num_layers": 1, "input_size": 1, "hidden_size": 1}, "weights": [[1] * 16]},
        "its sizes need",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_damaged_file_is_refused_in_a_sentence(case: str, tmp_path: Path) -> None:
    suffix, content, reason = BAD[case]
    path = written(tmp_path / f"a{suffix}", content)
    with pytest.raises(FormatError, match=reason) as error:
        formats.load(path)
    assert str(path) in str(error.value)


def test_a_cut_off_file_is_refused(tmp_path: Path) -> None:
    weights = mr.initialise(mr.RecurrentSpec("lstm", 1, 3))
    formats.save(weights, tmp_path / "a.json")
    for path in (tmp_path / "a.json", written(tmp_path / "a.nam", nam(weights))):
        data = path.read_bytes()
        for size in range(0, len(data), 37):
            path.write_bytes(data[:size])
            with pytest.raises(FormatError):
                formats.load(path)
