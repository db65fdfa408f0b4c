"""Names as people's models have them: prefixes, cells, and what Flax numbers by itself."""

from typing import Any

import numpy as np
import pytest

import multirnn as mr
from multirnn.numerics import difference, tolerance

LSTM = mr.RecurrentSpec("lstm", 3, 5, num_layers=2, bidirectional=True, bias="double")


def torch_arrays(prefix: str = "") -> dict[str, np.ndarray]:
    arrays = mr.to_arrays(mr.initialise(LSTM, seed=1), convention="torch")
    return {prefix + name: array for name, array in arrays.items()}


@pytest.mark.parametrize("prefix", ["module.", "rnn.", "_orig_mod.", "encoder.lstm.", "module._orig_mod.layers.0."])
def test_one_prefix_of_all_names_is_passed_over(prefix: str) -> None:
    assert mr.from_arrays(torch_arrays(prefix), convention="torch") == mr.initialise(LSTM, seed=1)


def test_of_several_prefixes_the_sentence_names_them() -> None:
    arrays = torch_arrays("encoder.lstm.") | {"fc.weight": np.zeros((2, 10), "float32")}
    sentence = (
        r"^'fc.weight' is not the name of an array of the torch convention; pass those alone that begin with "
        r"'encoder.lstm.'$"
    )
    with pytest.raises(mr.Unrepresentable, match=sentence):
        mr.from_arrays(arrays, convention="torch")
    two = torch_arrays("encoder.") | torch_arrays("decoder.")
    with pytest.raises(mr.Unrepresentable, match=r"pass those alone that begin with 'encoder.' or with 'decoder.'$"):
        mr.from_arrays(two, convention="torch")


@pytest.mark.parametrize("prefix", ["", "cell."])
def test_the_arrays_of_a_cell_are_told_apart(prefix: str) -> None:
    spec = mr.RecurrentSpec("lstm", 3, 5, bias="double")
    arrays = mr.to_arrays(mr.initialise(spec, seed=1), convention="torch")
    cell = {prefix + name.removesuffix("_l0"): array for name, array in arrays.items()}
    with pytest.raises(
        mr.Unrepresentable, match=r"it is a cell's, whose arrays are those of a layer as 'weight_ih_l0'$"
    ):
        mr.from_arrays(cell, convention="torch")
    assert mr.from_arrays({name + "_l0": a for name, a in cell.items()}, convention="torch") == mr.initialise(spec, 1)


# --- Flax -------------------------------------------------------------------------------------------------------------


def compact(make: Any, features: int = 3) -> tuple[Any, np.ndarray, Any]:
    """The parameters of a module with `nn.compact`, x, and what the module computes."""
    jax, nn = pytest.importorskip("jax"), pytest.importorskip("flax.linen")

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return make(nn, x)

    x = np.random.default_rng(0).standard_normal((2, 7, features)).astype("float32")
    params = Model().init(jax.random.key(0), x)["params"]
    return params, x, np.asarray(Model().apply({"params": params}, x))


def assert_reads(params: Any, x: np.ndarray, expected: np.ndarray) -> mr.Weights:
    weights = mr.from_arrays(params, convention="flax-linen")
    found = mr.build(weights, "numpy")(x).sequence
    assert difference(found, expected).normwise <= tolerance("float32")
    return weights


def test_one_compact_layer() -> None:
    for kind in ("LSTMCell", "OptimizedLSTMCell", "GRUCell", "SimpleCell"):
        params, x, y = compact(lambda nn, x, kind=kind: nn.RNN(getattr(nn, kind)(5))(x))
        assert list(params) == [f"{kind}_0"]
        assert assert_reads(params, x, y).spec.num_layers == 1


def test_compact_layers() -> None:
    def make(nn: Any, x: Any) -> Any:
        for _ in range(3):
            x = nn.RNN(nn.GRUCell(5))(x)
        return x

    assert assert_reads(*compact(make)).spec.num_layers == 3


@pytest.mark.parametrize("features", [3, 5])
@pytest.mark.parametrize("layers", [1, 2])
def test_compact_directions(layers: int, features: int) -> None:
    def make(nn: Any, x: Any) -> Any:
        for _ in range(layers):
            x = nn.Bidirectional(nn.RNN(nn.LSTMCell(5)), nn.RNN(nn.LSTMCell(5)))(x)
        return x

    call = compact(make, features)
    if (layers, features) == (1, 5):
        with pytest.raises(mr.Unrepresentable, match="LSTMCell_0 and LSTMCell_1 may be two layers or two directions"):
            mr.from_arrays(call[0], convention="flax-linen")
        return
    spec = assert_reads(*call).spec
    assert (spec.num_layers, spec.bidirectional) == (layers, True)


def test_compact_cells_of_two_kinds_are_refused() -> None:
    params, *_ = compact(lambda nn, x: nn.RNN(nn.GRUCell(5))(nn.RNN(nn.LSTMCell(5))(x)))
    with pytest.raises(
        mr.Unrepresentable, match=r"the arrays are of .*Cell and .*Cell; pass those of one kind of cell"
    ):
        mr.from_arrays(params, convention="flax-linen")
